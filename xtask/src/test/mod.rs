//! `cargo xtask test`: unit tests, then the privileged tests, one after the other, and after each program a look for
//! what it left behind.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::teardown::sweep;
use portcullis_tests::privileged::{TEARDOWN, describe, leftovers, require_privileges};
use portcullis_tests::residue::Snapshot;

use crate::cargo::{self, Executable};
use crate::tally::Tally;

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
    // The same packages in both commands, so that nothing is compiled twice with different features.
    let mut tests = cargo::executables(["test", "--workspace", "--lib", "--bins", "--tests", "--no-run"])?;
    tests.retain(|found| found.test);
    let built = cargo::executables(["build", "--workspace", "--bins"])?;
    // The build may just have replaced the file that runs here, so the path of this process says nothing.
    let programs =
        Programs { agent: cargo::program(&built, "portcullis")?, xtask: cargo::program(&built, "xtask")? };
    // A cluster runs on without the test that made it, and takes memory and processors from the tests to come.
    for name in sweep()? {
        println!("note: an earlier run was cut off and left a cluster; removed: {}", name.as_str());
    }
    for thing in Snapshot::take().orphans() {
        println!("note: an earlier run was cut off and left behind: {thing}");
    }
    // Unit tests first: they are quick, and what they find explains what fails later.
    tests.sort_by_key(|found| (is_privileged(found), found.package.clone(), found.target.clone()));
    let mut image = false;
    for test in &tests {
        if !image && WITH_IMAGE.contains(&test.target.as_str()) && has_tests(test, name)? {
            crate::image::build_default()?;
            image = true;
        }
        *sum += program(test, &programs, name)?;
    }
    Ok(())
}

/// What tests start.
struct Programs {
    agent: PathBuf,
    xtask: PathBuf,
}

/// Tests of the product as it is installed: they need the container image.
const WITH_IMAGE: &[&str] = &["examples", "cluster_reach", "cluster_life"];

/// Whether a test program has tests of this name.
fn has_tests(test: &Executable, name: Option<&str>) -> Result<bool> {
    let mut command = Command::new(&test.path);
    command.args(name.filter(|name| *name != test.target)).arg("--list");
    let output = command.output().with_context(|| format!("listing the tests of {}", test.title()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": test")))
}

/// Integration tests of the tests' package load programs and make namespaces; nothing else does.
fn is_privileged(test: &Executable) -> bool {
    test.kind == "test" && test.package.file_name() == Some(OsStr::new("tests"))
}

/// Runs one test program.
fn program(test: &Executable, programs: &Programs, name: Option<&str>) -> Result<Tally> {
    let mut command = Command::new(&test.path);
    // The name of a file of tests stands for all of them.
    command.args(name.filter(|name| *name != test.target)).current_dir(&test.package);
    command.env("CARGO_MANIFEST_DIR", &test.package).env("PORTCULLIS_BIN", &programs.agent);
    command.env("PORTCULLIS_XTASK", &programs.xtask);
    // A failed test's message says what was wrong; the path through the harness says nothing more.
    command.env("RUST_LIB_BACKTRACE", "0");
    if !is_privileged(test) {
        return stream(&test.title(), &mut command);
    }
    let before = Snapshot::take();
    let mut tally = stream(&test.title(), command.arg("--test-threads=1"))?;
    let left = leftovers(&before, TEARDOWN);
    if !left.is_empty() {
        println!("FAILED: {} {}", test.title(), describe(&left));
        tally += Tally::one(false);
    }
    Ok(tally)
}

/// Runs a test program and shows its output as it comes; a program that does not get to its end counts as a failure.
fn stream(title: &str, command: &mut Command) -> Result<Tally> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut tally = None;
    let mut titled = false;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("reading the output of {title}"))?;
            let line = String::from_utf8_lossy(&line);
            if let Some(result) = Tally::of_result_line(&line) {
                tally = Some(result);
            } else if !is_noise(&line) {
                if !titled {
                    println!("==> {title}");
                    titled = true;
                }
                println!("{line}");
            }
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {title}"))?;
    let mut tally = tally.unwrap_or_default();
    if !status.success() && tally.failed == 0 {
        println!("FAILED: {title} ended with {status} and did not finish its tests");
        tally += Tally::one(false);
    }
    if tally != Tally::default() {
        println!("    {tally} in {:.1} s", start.elapsed().as_secs_f64());
    }
    Ok(tally)
}

/// Lines of a test program that a person can do without.
fn is_noise(line: &str) -> bool {
    line.is_empty() || (line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tally {
        stream("a script", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn the_sum_is_the_programs_own() {
        let tally = shell("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'");
        assert_eq!(tally, Tally { passed: 2, failed: 0 });
        let tally = shell("echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101");
        assert_eq!(tally, Tally { passed: 2, failed: 1 });
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        assert_eq!(shell("kill -ABRT $$"), Tally { passed: 0, failed: 1 });
        assert_eq!(
            shell("echo 'test result: ok. 2 passed; 0 failed'; exit 1"),
            Tally { passed: 2, failed: 1 }
        );
    }
}
