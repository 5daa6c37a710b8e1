//! `cargo xtask test`: every test, in a few lanes side by side ([`lanes`]), and after each privileged program a look for
//! what it left behind ([`program`]).

mod lanes;
mod program;
mod screen;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::teardown::sweep;
use portcullis_tests::netns;
use portcullis_tests::privileged::require_privileges;
use portcullis_tests::residue::Snapshot;

use crate::cargo;
use crate::tally::Tally;
use program::Runner;

/// What `test` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Run only the tests whose name contains this, or all of the test file of this name
    name: Option<String>,
    /// With the name `oracle`: compare the verdicts of this file of truth tables instead of the bundled one's
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
}

/// Runs the tests and prints the sum.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(file) = &arguments.truth {
        ensure!(
            arguments.name.as_deref() == Some(ORACLE),
            "--truth belongs to one test: run `cargo xtask test {ORACLE} --truth {}`",
            file.display()
        );
        return compare_truth(file);
    }
    Ok(all(arguments.name.as_deref()).finish())
}

/// The tests, and the program, that compare verdicts with truth that nobody here wrote.
const ORACLE: &str = "oracle";

/// Becomes the program that compares a file of truth tables with what Portcullis says.
fn compare_truth(file: &Path) -> Result<ExitCode> {
    // Before anything is built: the path is relative to where the person is.
    let file = file.canonicalize().with_context(|| format!("the file of truth tables {}", file.display()))?;
    crate::setup::ensure_ready(crate::setup::Purpose::Test)?;
    require_privileges()?;
    let built = cargo::executables(["build", "--package", "portcullis-tests", "--bin", ORACLE])?;
    let program = cargo::program(&built, ORACLE)?;
    let error = Command::new(&program).arg(file).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Runs the tests and returns the sum; what keeps them from running is a failure too.
pub fn all(name: Option<&str>) -> Tally {
    let mut sum = Tally::default();
    if let Err(error) = try_all(name, &mut sum) {
        eprintln!("error: {error:#}");
        sum += Tally::one(false);
    }
    if sum == Tally::default() {
        eprintln!(
            "error: no test {}",
            name.map_or("ran".to_owned(), |name| format!("or file of tests is called `{name}`"))
        );
    }
    sum
}

fn try_all(name: Option<&str>, sum: &mut Tally) -> Result<()> {
    crate::setup::ensure_ready(crate::setup::Purpose::Test)?;
    require_privileges()?;
    // Once: a second command that builds less has other features, and compiles the agent once more.
    let built = cargo::executables(["test", "--workspace", "--lib", "--bins", "--tests", "--no-run"])?;
    let agent = cargo::program(&built, "portcullis")?;
    let tests: Vec<_> = built.into_iter().filter(|found| found.test).collect();
    let privileged = tests.iter().filter(|test| lanes::is_privileged(test)).map(|test| &test.path);
    let programs = program::Programs {
        agent,
        xtask: std::env::current_exe().context("the path of this program")?,
        tests: std::env::join_paths(privileged).context("a list of the test programs")?,
    };
    // A cluster runs on without the test that made it, and takes memory and processors from the tests to come.
    for name in sweep()? {
        println!("note: an earlier run was cut off and left a cluster; removed: {}", name.as_str());
    }
    for thing in Snapshot::take().orphans() {
        println!("note: an earlier run was cut off and left behind: {thing}");
    }
    // For all lanes, so that it is no test of theirs that leaves it.
    let _folder = netns::Folder::open()?;
    let runner = Runner::new(programs, name);
    let (lanes, shared) = lanes::of(tests);
    thread::scope(|scope| {
        let running: Vec<_> =
            lanes.iter().map(|own| scope.spawn(|| runner.lane(own.iter().chain(shared.left())))).collect();
        for lane in running {
            *sum += lane.join().unwrap_or(Tally::one(false));
        }
    });
    Ok(())
}
