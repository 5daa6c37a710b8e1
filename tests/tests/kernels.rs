//! Older kernels: the tests of packets, flows and lifecycle, and the demo's scenario, in guests of an emulator.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portcullis_tests::guest::{Contents, Guest, KERNELS, Kernel, sum};
use portcullis_tests::{agent, privileged_test};

/// A guest that is not done by then hangs: long enough for a machine that does much else, which comes first.
const DEADLINE: Duration = Duration::from_secs(2700);

const OLDEST: Kernel = KERNELS[0];
const MIDDLE: Kernel = KERNELS[1];

/// A test program, which of its tests (none: all of them), and on which kernels.
type Choice = (&'static str, &'static [&'static str], &'static [Kernel]);

const THE_OTHER_WAY: &str = "attaching_the_other_way_leaves_one_program_on_each_hook";

/// What runs always, with the demo at the end; on the oldest kernel more, which is most unlike this one.
const TESTS: &[Choice] = &[
    ("verifier", &[], &KERNELS),
    ("differential", &[], &KERNELS),
    ("golden", &["every_case_does_what_the_table_says_in_the_kernel_and_on_the_host"], &KERNELS),
    ("adoption", &["a_class_that_stays_forbidden_is_never_let_through_while_addresses_move"], &KERNELS),
    ("agent", &[THE_OTHER_WAY], &[MIDDLE]),
    (
        "agent",
        &[
            THE_OTHER_WAY,
            "a_killed_agent_leaves_enforcement_and_connections_and_its_restart_disturbs_nothing",
            "cleanup_takes_every_trace_away_and_refuses_while_an_agent_runs",
        ],
        &[OLDEST],
    ),
    (
        "foreign",
        &["filters_of_others_run_before_and_behind_our_filters_and_outlive_them"],
        // It has no links.
        &[OLDEST],
    ),
    ("foreign", &[], &[MIDDLE]),
    ("floods", &["connections_that_are_idle_stay_while_the_pod_s_own_table_is_flooded"], &[OLDEST]),
    ("tables", &["flows_that_differ_in_one_word_are_told_apart_in_the_same_places"], &[OLDEST]),
    ("wire", &[], &[OLDEST]),
    (
        "conntrack",
        &[
            "permitted_connections_that_were_open_before_the_first_start_live_on_and_forbidden_ones_are_cut",
            "a_permitted_connection_survives_the_loss_of_its_flow_whoever_speaks_first",
        ],
        &KERNELS,
    ),
];

/// What runs besides if somebody asks for the kernels by name: each of these tests loads the programs, which takes an emulated
/// processor seconds, and asks again what the golden table has asked already.
const MORE: &[Choice] = &[("cache", &[], &[OLDEST]), ("packets", &[], &[OLDEST])];

/// Packets of `differential` in a guest.
const ROUNDS: u32 = 20_000;

/// A test program, by its name: beside the name there is a number of cargo's.
fn program(name: &str) -> Result<PathBuf> {
    let paths = std::env::var_os("PORTCULLIS_TEST_PROGRAMS");
    let paths =
        paths.context("PORTCULLIS_TEST_PROGRAMS is not set: run this by `cargo xtask test kernels`")?;
    let is = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str());
        file.and_then(|file| file.rsplit_once('-')).is_some_and(|(found, _)| found == name)
    };
    std::env::split_paths(&paths).find(is).with_context(|| format!("there is no test program {name}"))
}

fn contents(kernel: Kernel) -> Result<Contents> {
    let mut contents = Contents::new()?;
    contents.add_variable("PORTCULLIS_TEST_ROUNDS", &ROUNDS.to_string());
    contents.add_program(&agent::binary()?, "portcullis")?;
    let more: &[Choice] = if std::env::var_os("PORTCULLIS_TEST_NAME").is_some() { MORE } else { &[] };
    for (name, tests, _) in TESTS.iter().chain(more).filter(|(.., kernels)| kernels.contains(&kernel)) {
        contents.add_program(&program(name)?, name)?;
        contents.add_step(
            name,
            &format!("/tests/{name} --test-threads=1 --show-output --exact {}", tests.join(" ")),
        );
    }
    let xtask = std::env::var_os("PORTCULLIS_XTASK").context("PORTCULLIS_XTASK is not set")?;
    contents.add_program(Path::new(&xtask), "xtask")?;
    contents.add_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo").canonicalize()?)?;
    contents.add_step("demo", "/tests/xtask demo --binary /tests/portcullis --network routed");
    Ok(contents)
}

/// Runs a guest; what it says that a person wants to read.
fn passes_on(kernel: Kernel) -> Result<()> {
    let contents = contents(kernel)?;
    let outcome = Guest { kernel, contents: &contents, deadline: DEADLINE }.run()?;
    let passed = sum(&outcome.console)?;
    // Not captured: whoever runs the tests sees it.
    let mut out = std::io::stdout().lock();
    for line in &outcome.console {
        if ["verifier: ", "==guest== end", " packets: ", "demo: "].iter().any(|start| line.contains(start)) {
            writeln!(out, "{line}")?;
        }
    }
    writeln!(out, "Linux {}: {passed} tests passed in {} s", kernel.release()?, outcome.took.as_secs())?;
    Ok(())
}

/// Side by side: a guest has one processor.
#[test]
fn the_oldest_kernel_with_filters_and_one_of_the_middle_with_links_do_what_this_one_does() -> Result<()> {
    privileged_test(|| {
        let outcomes = thread::scope(|scope| {
            let guests = KERNELS.map(|kernel| scope.spawn(move || passes_on(kernel)));
            guests.map(|guest| guest.join().unwrap_or_else(|_| bail!("the guest's thread panicked")))
        });
        let failures: Vec<String> =
            outcomes.into_iter().filter_map(|outcome| Some(format!("{:?}", outcome.err()?))).collect();
        ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
        Ok(())
    })
}
