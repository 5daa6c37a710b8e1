//! The demo as a newcomer starts it: that it holds, that each policy matters, and that an interruption leaves nothing.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use portcullis_tests::{agent, privileged_test};

/// The demo with the agent that is tested.
fn demo(args: &[&str]) -> Result<Command> {
    let xtask = std::env::var_os("PORTCULLIS_XTASK");
    let xtask = xtask.context("PORTCULLIS_XTASK is not set: run this by `cargo xtask test`")?;
    let mut command = Command::new(xtask);
    command.args(["demo", "--binary"]).arg(agent::binary()?).args(args).stdin(Stdio::null());
    Ok(command)
}

/// Runs it to its end: exit code and last line.
fn last_line(args: &[&str]) -> Result<(Option<i32>, String)> {
    let output = demo(args)?.stderr(Stdio::inherit()).output().context("starting the demo")?;
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().context("the demo printed nothing")?.to_owned();
    if !output.status.success() {
        println!("{text}");
    }
    Ok((output.status.code(), last))
}

/// The numbers of `demo: N expectations held, M failed`.
fn numbers(line: &str) -> Option<(u32, u32)> {
    let (held, failed) = line.strip_prefix("demo: ")?.split_once(" expectations held, ")?;
    Some((held.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

#[test]
fn every_expectation_holds_with_routed_and_with_bridged_pods() -> Result<()> {
    privileged_test(|| {
        for network in ["routed", "bridged"] {
            let (code, line) = last_line(&["--network", network])?;
            assert_eq!(code, Some(0), "{network}: {line}");
            let (held, failed) = numbers(&line).with_context(|| line.clone())?;
            assert!(held >= 20 && failed == 0, "{network}: {line}");
        }
        Ok(())
    })
}

#[test]
fn without_any_one_policy_the_demo_fails() -> Result<()> {
    privileged_test(|| {
        let (code, line) = last_line(&["--without", "db-egress.yaml"])?;
        assert_eq!(code, Some(1), "{line}");
        assert!(numbers(&line).is_some_and(|(_, failed)| failed > 0), "{line}");
        let (code, line) = last_line(&["--without-each"])?;
        assert_eq!(code, Some(0), "{line}");
        Ok(())
    })
}

#[test]
fn interrupted_at_any_step_the_demo_leaves_nothing_behind() -> Result<()> {
    // The first while the pods are being made, the others in the middle of the step that follows the line.
    for line in ["Who may talk", "== Without an agent", "== The agent runs", "== A sweep", "== Lies"] {
        privileged_test(|| {
            let mut child =
                demo(&[])?.process_group(0).stdout(Stdio::piped()).spawn().context("starting the demo")?;
            let stdout = BufReader::new(child.stdout.take().context("the demo's output")?);
            let mut seen = false;
            for text in stdout.lines() {
                if !seen && text?.starts_with(line) {
                    seen = true;
                    interrupt(&child)?;
                }
            }
            let status = child.wait()?;
            ensure!(seen, "the demo did not print `{line}`");
            assert_eq!(status.code(), Some(130), "interrupted after `{line}`");
            Ok(())
        })?;
    }
    Ok(())
}

/// What a terminal does on Ctrl-C: the signal goes to the demo and to every program that it has started.
fn interrupt(child: &Child) -> Result<()> {
    let group = libc::pid_t::try_from(child.id())?;
    // SAFETY: a system call without pointers; the group is that of our child, which was not waited for.
    ensure!(unsafe { libc::kill(-group, libc::SIGINT) } == 0, "kill: {}", std::io::Error::last_os_error());
    Ok(())
}
