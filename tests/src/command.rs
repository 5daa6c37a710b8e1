//! Running commands whose failure says which command it was and what it printed.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end and returns what it printed; an exit code other than 0 is an error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    checked(command, &output)
}

/// As [`run`], with input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that stops reading fails by itself, with a better message than a broken pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {command:?}"))?;
    checked(command, &output).with_context(|| format!("the input was:\n{input}"))
}

/// A process that is killed with it.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn checked(command: &Command, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed with {}: {}{}", output.status, stderr.trim(), stdout.trim());
    }
    Ok(stdout.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo because >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("\"sh\"") && error.contains("because") && error.contains('3'), "{error}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(run_with_input(&mut Command::new("cat"), "hello").unwrap(), "hello");
    }
}
