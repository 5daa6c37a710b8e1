//! `cargo xtask`: everything that a developer and the CI run.

mod bench;
mod build;
mod cargo;
mod ci;
mod cluster;
mod demo;
mod fuzz;
mod image;
mod interrupt;
mod manifests;
mod progress;
mod setup;
mod tally;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build and developer commands of Portcullis.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what building and testing need and this machine lacks; says first what and why
    Setup(setup::Arguments),
    /// Build the `portcullis` binary, with the eBPF programs in it
    Build(build::Arguments),
    /// Write the container image as an archive, which `ctr images import` and `docker load` take; needs no engine
    Image(image::Arguments),
    /// Write the files in deploy/ that are made from others: the CRDs and portcullis.yaml
    Manifests,
    /// Show the shop demo: real packets, allowed and denied by identity (needs root)
    Demo(demo::Arguments),
    /// A real Kubernetes cluster on this machine, for playing and for tests (needs root)
    Cluster(cluster::Arguments),
    /// Run every test, or those whose name contains NAME (needs root)
    Test(test::Arguments),
    /// Measure the cost of a packet (needs root)
    Bench(bench::Arguments),
    /// Try packets that a fuzzer thinks of on the parser and on the walk
    Fuzz(fuzz::Arguments),
    /// Run what the CI runs: format, lints, licences, then every test
    Ci(ci::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::Build(arguments) => build::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Manifests => manifests::run(),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Cluster(arguments) => cluster::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Ci(arguments) => Ok(ci::run(&arguments)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
