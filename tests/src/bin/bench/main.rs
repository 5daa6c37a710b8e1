//! `cargo xtask bench`: what a packet costs, and what the compiler costs.
//!
//! `bench compile` needs no privileges; `bench packets`, `bench events` (what events cost a flood of denials) and `bench
//! floods` (what a flood of new flows costs) and `bench traffic` (real connections between two pods) do. Without a word these
//! are measured. `bench large` is the cluster of the budgets, compiled and (as root) written to the kernel's maps. With
//! `check` a missed budget is a failure.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measuring tool: what fails ends it with a message"
)]

mod budgets;
mod compile;
mod events;
mod figures;
mod floods;
mod kernel;
mod packets;
mod process;
mod traffic;

use std::process::ExitCode;

use serde_json::{Map, Value};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, rest @ ..] = arguments.as_slice()
        && word == process::CHILD
    {
        compile::child(rest);
        return ExitCode::SUCCESS;
    }
    let json = arguments.iter().any(|word| matches!(word.as_str(), "json" | "--output=json" | "-ojson"));
    let named = |word: &str| arguments.iter().any(|argument| argument == word);
    let all = !["compile", "packets", "events", "floods", "traffic", "large"].into_iter().any(named);
    let mut report = Map::new();
    let mut budgets = Vec::new();
    if all || named("packets") {
        budgets.extend(packets::run(json, &mut report));
    }
    if all || named("events") {
        events::run(json, &mut report);
    }
    if all || named("floods") {
        floods::run(json, &mut report);
    }
    if all || named("traffic") {
        budgets.extend(traffic::run(json, &mut report));
    }
    if all || named("compile") {
        compile::run(json, &mut report);
    }
    if named("large") {
        compile::run_large(json, &mut report);
    }
    if json {
        report.insert("budgets".to_owned(), budgets::report(&budgets));
        println!("{}", Value::Object(report));
    } else {
        budgets::show(&budgets);
    }
    if named("check") && !budgets::are_met(&budgets) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
