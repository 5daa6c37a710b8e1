//! One test program after the other, and a look for what each left behind.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use portcullis_tests::cluster::teardown::sweep;
use portcullis_tests::privileged::{TEARDOWN, describe, leftovers};
use portcullis_tests::residue::Snapshot;

use super::lanes::{is_privileged, needs_image};
use super::screen::Screen;
use crate::cargo::Executable;
use crate::tally::Tally;

/// What tests start.
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// This program.
    pub xtask: PathBuf,
    /// The privileged test programs, for the one that runs others.
    pub tests: OsString,
}

/// What the lanes of a run share.
pub struct Runner<'a> {
    programs: Programs,
    /// Only tests whose name contains this, or all of the file of this name.
    name: Option<&'a str>,
    screen: Screen,
    /// Built by the first program that needs it.
    image: OnceLock<Result<(), String>>,
}

impl<'a> Runner<'a> {
    /// A run of all tests, or of those of this name.
    pub fn new(programs: Programs, name: Option<&'a str>) -> Self {
        Self { programs, name, screen: Screen::default(), image: OnceLock::new() }
    }

    /// Runs these programs one after the other; what keeps one from running is a failure, and the others run.
    pub fn lane<'t>(&self, tests: impl Iterator<Item = &'t Executable>) -> Tally {
        let mut sum = Tally::default();
        for test in tests {
            sum += self.program(test).unwrap_or_else(|error| {
                self.screen.line(&test.title(), &format!("FAILED: {error:#}"));
                Tally::one(false)
            });
        }
        sum
    }

    fn program(&self, test: &Executable) -> Result<Tally> {
        if needs_image(test) && self.has_tests(test)? {
            let image = self.image.get_or_init(|| match crate::image::build_default() {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{error:#}")),
            });
            image.clone().map_err(|error| anyhow!("the image was not built: {error}"))?;
        }
        let mut command = Command::new(&test.path);
        command.args(self.filter(test)).current_dir(&test.package);
        command.env("CARGO_MANIFEST_DIR", &test.package).env("PORTCULLIS_BIN", &self.programs.agent);
        command.env("PORTCULLIS_XTASK", &self.programs.xtask);
        command.env("PORTCULLIS_TEST_PROGRAMS", &self.programs.tests);
        // Who asks for one test wants to read what it notes, and has time for more of it.
        command.args(self.name.map(|_| "--show-output"));
        command.envs(self.name.map(|name| ("PORTCULLIS_TEST_NAME", name)));
        // A failed test's message says what was wrong; the path through the harness says nothing more.
        command.env("RUST_LIB_BACKTRACE", "0");
        if !is_privileged(test) {
            return stream(&self.screen, &test.title(), &mut command);
        }
        // What programs of other lanes own is not seen: their names tell.
        let before = Snapshot::take();
        let mut tally = stream(&self.screen, &test.title(), command.arg("--test-threads=1"))?;
        let left = leftovers(&before, TEARDOWN);
        if !left.is_empty() {
            self.screen.line(&test.title(), &format!("FAILED: {}", describe(&left)));
            tally += Tally::one(false);
            // What a test that died left running takes memory and processors from the tests to come.
            for name in sweep()? {
                self.screen.line(&test.title(), &format!("note: removed the cluster {}", name.as_str()));
            }
        }
        Ok(tally)
    }

    /// The name of a file of tests stands for all of them.
    fn filter(&self, test: &Executable) -> Option<&'a str> {
        self.name.filter(|name| *name != test.target)
    }

    /// Whether a test program has tests of the name.
    fn has_tests(&self, test: &Executable) -> Result<bool> {
        let mut command = Command::new(&test.path);
        command.args(self.filter(test)).arg("--list");
        let output = command.output().with_context(|| format!("listing the tests of {}", test.title()))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": test")))
    }
}

/// Runs a test program and shows its output as it comes; a program that does not get to its end counts as a failure.
fn stream(screen: &Screen, title: &str, command: &mut Command) -> Result<Tally> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut tally = None;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("reading the output of {title}"))?;
            let line = String::from_utf8_lossy(&line);
            if let Some(result) = Tally::of_result_line(&line) {
                tally = Some(result);
            } else if !is_noise(&line) {
                screen.line(title, &line);
            }
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {title}"))?;
    let mut tally = tally.unwrap_or_default();
    if !status.success() && tally.failed == 0 {
        screen.line(title, &format!("FAILED: {title} ended with {status} and did not finish its tests"));
        tally += Tally::one(false);
    }
    if tally != Tally::default() {
        screen.line(title, &format!("    {tally} in {:.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(tally)
}

/// Lines of a test program that a person can do without; a program of which no test was asked for has no others.
fn is_noise(line: &str) -> bool {
    ["", "successes:"].contains(&line)
        || (line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tally {
        stream(&Screen::default(), "a script", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn the_sum_is_the_programs_own() {
        let tally = shell("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'");
        assert_eq!(tally, Tally { passed: 2, failed: 0 });
        let tally = shell("echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101");
        assert_eq!(tally, Tally { passed: 2, failed: 1 });
    }

    #[test]
    fn of_a_program_without_a_test_nothing_is_shown() {
        let lines = ["", "running 0 tests", "successes:"];
        assert!(lines.iter().all(|line| is_noise(line)) && !is_noise("test a ... ok"));
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
