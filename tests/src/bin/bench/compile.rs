//! What the compiler costs.

use std::time::{Duration, Instant};

use portcullis::identity::Numbers;
use portcullis::policy::compile;
use portcullis_tests::worlds::Scale;
use serde_json::{Map, Value, json};

use super::process;

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

fn scale(arguments: &[String]) -> Scale {
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok()).expect("a number");
    Scale { pods: number(0), accounts: number(1), policies: number(2), services: number(3) }
}

/// Measures one world and prints the figures.
pub fn child(arguments: &[String]) {
    let scale = scale(arguments);
    let (before, _) = process::resident();
    let world = scale.world();
    let (after_world, _) = process::resident();
    let started = Instant::now();
    let mut numbers = Numbers::default();
    let desired = compile(&world, &mut numbers);
    let full = seconds(started);
    let (live, peak) = process::resident();
    let rows: usize = desired.subjects.values().map(|rows| rows.len()).sum();
    println!(
        "{}",
        json!({"full_s": full, "base": before, "world": after_world - before, "live": live, "peak": peak,
               "subjects": desired.subjects.len(), "rows": rows})
    );
}

/// The sizes of the issue.
pub fn run(json: bool, report: &mut Map<String, Value>) {
    let _ = (json, report, Duration::ZERO);
    for policies in [100, 1000, 10_000] {
        println!("{policies}: {}", process::measure(&[10_000, 500, policies, 500].map(|n: usize| n.to_string())));
    }
}

/// The size of the budgets.
pub fn run_large(json: bool, report: &mut Map<String, Value>) {
    let _ = (json, report);
    println!("large: {}", process::measure(&[100_000, 5000, 10_000, 5000].map(|n: usize| n.to_string())));
}
