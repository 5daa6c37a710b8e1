//! The shop demo: a small shop of network namespaces, real packets, and a comparison with what a person wrote down.
//!
//! `deploy/demo` has the manifests and the expectations; the code knows no verdict. Whatever way the demo ends, nothing
//! that it made stays, and it looks whether that is so.

mod expectations;
mod manifests;
mod play;
mod probe;
mod readings;
mod report;
mod scenes;
mod shop;
mod spoof;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use portcullis_tests::Network;
use portcullis_tests::privileged::require_privileges;

use self::expectations::Expectations;
use self::manifests::Manifests;
use self::play::Play;
use self::report::Check;
use crate::interrupt::{self, Interrupted};

/// What the demo takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How the pods are joined
    #[arg(long, value_enum, default_value_t = NetworkArgument::Routed)]
    network: NetworkArgument,
    /// Leave one policy file out, to see what it was good for: the demo must fail then
    #[arg(long, value_name = "FILE")]
    without: Option<String>,
    /// Play once without each policy file, and fail if one of them turns out not to be needed
    #[arg(long, conflicts_with = "without")]
    without_each: bool,
    /// An agent to use instead of building one
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Show the agent's log as well
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NetworkArgument {
    /// A route to each pod's veth, as Calico and others do
    Routed,
    /// All veths in one bridge, as flannel and kind do
    Bridged,
}

/// Runs the demo.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    require(arguments)?;
    let result = with_agent(arguments);
    if result.as_ref().is_err_and(anyhow::Error::is::<Interrupted>) {
        // What a shell reports for a program that SIGINT has ended.
        return Ok(ExitCode::from(130));
    }
    result
}

/// Says what is missing and installs it, before anything is built or made. With a finished agent nothing is built.
fn require(arguments: &Arguments) -> Result<()> {
    if arguments.binary.is_none() {
        crate::setup::ensure_ready(crate::setup::Purpose::Demo)?;
    }
    require_privileges()
}

fn with_agent(arguments: &Arguments) -> Result<ExitCode> {
    let folder = crate::cargo::root().join("deploy/demo");
    let expectations = Expectations::load(&folder.join("expectations.yaml"))?;
    let manifests = Manifests::load(&folder.join("manifests"))?;
    let without = arguments.without.as_deref().map(|name| manifests.policy(name)).transpose()?;
    let binary = match &arguments.binary {
        Some(path) => path.clone(),
        None => crate::build::agent(false)?,
    };
    // Not before: Ctrl-C shall end the build at once.
    interrupt::watch("the demo")?;
    let network = match arguments.network {
        NetworkArgument::Routed => Network::Routed,
        NetworkArgument::Bridged => Network::Bridged,
    };
    let play = Play {
        expectations: &expectations,
        manifests: &manifests,
        binary: &binary,
        network,
        without,
        verbose: arguments.verbose,
        quiet: false,
        start: Instant::now(),
    };
    if arguments.without_each { without_each(&play) } else { Ok(sum(&play.perform()?)) }
}

/// Prints the failures and the sum.
fn sum(checks: &[Check]) -> ExitCode {
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.held).collect();
    if !failed.is_empty() {
        println!("Not as expected:");
        for check in &failed {
            println!("  {}", check.failure());
        }
        println!();
    }
    println!("demo: {} expectations held, {} failed", checks.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays without each policy, after once with all of them: a policy whose absence changes nothing shows nothing.
fn without_each(play: &Play<'_>) -> Result<ExitCode> {
    let failures = |without| -> Result<Vec<String>> {
        let checks = Play { without, quiet: true, start: Instant::now(), ..*play }.perform()?;
        Ok(checks.iter().filter(|check| !check.held).map(Check::failure).collect())
    };
    let with_all = failures(None)?;
    ensure!(
        with_all.is_empty(),
        "with every policy in place these expectations fail:\n{}",
        with_all.join("\n")
    );
    println!("with every policy: everything holds");
    let mut useless = 0;
    for policy in &play.manifests.policies {
        let failed = failures(Some(&policy.file))?;
        println!("without {}: {} expectations fail", policy.file, failed.len());
        for failure in &failed {
            println!("    {failure}");
        }
        useless += usize::from(failed.is_empty());
    }
    println!("\n{} policies, {useless} of them not needed", play.manifests.policies.len());
    Ok(if useless == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_expectations_is_one_of_the_manifests_or_a_host() {
        let folder = crate::cargo::root().join("deploy/demo");
        let expectations = Expectations::load(&folder.join("expectations.yaml")).unwrap();
        let manifests = Manifests::load(&folder.join("manifests")).unwrap();
        let mut known: Vec<&str> = vec!["node"];
        known.extend(manifests.pods.iter().flat_map(|pod| [pod.name.as_str(), pod.account.as_str()]));
        known.extend(expectations.outside.iter().map(|outside| outside.name.as_str()));
        let traffic = expectations.traffic.iter().flat_map(|line| [&line.from, &line.to]);
        let sweeps = expectations.sweeps.iter().flat_map(|line| [&line.from, &line.to]);
        let spoofs = expectations.spoofs.iter().flat_map(|line| [&line.from, &line.pretends, &line.to]);
        for name in traffic.chain(sweeps).chain(spoofs) {
            assert!(known.contains(&name.as_str()), "{name}");
        }
    }
}
