//! Long commands, shown in short: a line when one begins, one now and then, and one with the time it took.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a command that still runs is mentioned.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// How much of its output is shown when it fails.
const TAIL: usize = 40;

/// Runs a command; its output is condensed to its latest line every few seconds, and shown when it fails.
pub fn run(what: &str, command: &mut Command) -> Result<()> {
    println!("==> {what}");
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let (sender, lines) = mpsc::channel();
    forward(child.stdout.take(), sender.clone());
    forward(child.stderr.take(), sender);
    let mut tail = VecDeque::new();
    let mut next_sign = start + SIGN_OF_LIFE;
    loop {
        match lines.recv_timeout(next_sign.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                let latest = tail.back().map_or("", |line: &String| line.trim());
                println!("    {:4} s  {latest:.90}", start.elapsed().as_secs());
                next_sign += SIGN_OF_LIFE;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {command:?}"))?;
    if !status.success() {
        for line in tail {
            eprintln!("    {line}");
        }
        bail!("{what}: {command:?} failed with {status}");
    }
    println!("    done in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Sends the lines of a pipe until it ends.
fn forward(pipe: Option<impl Read + Send + 'static>, lines: Sender<String>) {
    let Some(pipe) = pipe else { return };
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        run("nothing", &mut Command::new("true")).unwrap();
        let error = run("the impossible", Command::new("sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert!(error.starts_with("the impossible: ") && error.contains("exit status: 3"), "{error}");
    }
}
