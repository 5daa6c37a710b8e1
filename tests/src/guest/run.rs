//! One guest from its start to its end.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::files::MARK;
use super::{Contents, EMULATOR, Kernel};
use crate::TempDir;
use crate::command::Running;

/// How many lines of the console a failure shows.
const LAST_LINES: usize = 150;

/// A guest's memory: its file system is in it, twice while it boots.
const MEMORY: &str = "2560M";

/// A kernel with contents, to be booted.
#[derive(Debug)]
pub struct Guest<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// Its file system and what it does.
    pub contents: &'a Contents,
    /// A guest that is not done by then hangs.
    pub deadline: Duration,
}

/// What a guest that passed has said.
#[derive(Debug)]
pub struct Outcome {
    /// Every line of its console.
    pub console: Vec<String>,
    /// How long it ran.
    pub took: Duration,
}

impl Guest<'_> {
    /// Boots it and waits for its end.
    ///
    /// # Errors
    /// If a step failed, the kernel panicked, it ended early, or not in time: with the last lines of its console.
    pub fn run(&self) -> Result<Outcome> {
        let folder = TempDir::new()?;
        let image = folder.path().join("initramfs");
        self.contents.write(&self.kernel, &image)?;
        let release = self.kernel.release()?;
        let start = Instant::now();
        let mut emulator = Running(
            command(&self.kernel.folder().join("boot").join(format!("vmlinuz-{release}")), &image)
                .spawn()
                .with_context(|| format!("starting {EMULATOR}: run `cargo xtask setup`"))?,
        );
        let output = emulator.0.stdout.take().context("the guest's console")?;
        let ended = watch(output, self.deadline);
        let took = start.elapsed();
        // It is killed now, if it is still there.
        drop(emulator);
        let title = format!("Linux {release} in the emulator");
        let (console, hangs) = ended;
        let told = |what: &str| {
            let last = console[console.len().saturating_sub(LAST_LINES)..].join("\n");
            format!("{title} {what}; the last lines of its console:\n{last}")
        };
        if hangs {
            bail!("{}", told(&format!("was not done after {} s", self.deadline.as_secs())));
        }
        match failures(&console) {
            Some(0) => Ok(Outcome { console, took }),
            Some(failed) => bail!("{}", told(&format!("failed in {failed} steps"))),
            None => bail!("{}", told("ended before it was done")),
        }
    }
}

/// Collects the lines of the console until it ends, or the time is over; whether that was so.
fn watch(output: impl Read + Send + 'static, deadline: Duration) -> (Vec<String>, bool) {
    let (send, receive) = channel();
    // Ends with the emulator, whose output it reads.
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let until = Instant::now() + deadline;
    let mut console = Vec::new();
    loop {
        match receive.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => console.push(line),
            Err(RecvTimeoutError::Disconnected) => return (console, false),
            Err(RecvTimeoutError::Timeout) => return (console, true),
        }
    }
}

/// What the guest said at its end; `None`: it did not get there.
fn failures(console: &[String]) -> Option<u32> {
    let mut said = console.iter().filter_map(|line| line.strip_prefix(MARK)?.strip_prefix(" done: "));
    said.next_back()?.strip_suffix(" failed")?.parse().ok()
}

fn command(kernel: &Path, image: &Path) -> Command {
    // Whatever else runs is to be in time; the guest does not notice. Where the kernel shares processors among sessions first
    // (sched(7), "The autogroup feature"), it needs one of its own, as a `nice` counts inside of a session only.
    let mut command = Command::new("setsid");
    // It ends with this process, however that ends.
    command.args(["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c"]);
    command.args(["echo 19 2>/dev/null >/proc/self/autogroup; exec nice -n 19 \"$@\"", "sh", EMULATOR]);
    // The guest's clock counts its instructions, two nanoseconds each, and jumps to the next timer where the guest waits: however
    // little this machine has left for it, no time-out of the guest's ends early, and what waits takes no time. Linux 6.1 starts
    // no second processor by such a clock.
    command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1", "-m", MEMORY]);
    command.args(["-icount", "shift=1,sleep=off", "-rtc", "clock=vm"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    // After a panic it reboots at once, which ends the emulator.
    command.args(["-append", "console=ttyS0 panic=-1 loglevel=4 mitigations=off"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// The numbers of a test program's last line, `passed` and `failed`, among the lines of a console.
///
/// # Errors
/// If no test ran.
pub fn sum(console: &[String]) -> Result<u32> {
    let results = console.iter().filter_map(|line| line.split_once("test result: ok. ")?.1.split(' ').next());
    let passed: u32 = results.filter_map(|number| number.parse::<u32>().ok()).sum();
    ensure!(passed > 0, "no test ran");
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn only_a_guest_that_says_so_has_passed() {
        assert_eq!(failures(&lines("==guest== Linux 6.1\n==guest== done: 0 failed\n[ 9.1] reboot")), Some(0));
        assert_eq!(failures(&lines("==guest== done: 2 failed")), Some(2));
        assert_eq!(failures(&lines("==guest== begin packets\n[ 9.1] Kernel panic - not syncing")), None);
        // What a test prints is no word of the guest's.
        assert_eq!(failures(&lines("a line with ==guest== done: 0 failed")), None);
    }

    #[test]
    fn a_console_that_goes_silent_is_given_up_with_what_it_said() {
        let mut child = Command::new("sh")
            .args(["-c", "echo one; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let _running = Running(child);
        assert_eq!(watch(output, Duration::from_millis(300)), (lines("one"), true));
        assert_eq!(watch(&b"one\ntwo\r\n"[..], Duration::from_secs(10)), (lines("one\ntwo"), false));
    }

    #[test]
    fn tests_that_ran_are_counted() {
        let console = "test result: ok. 3 passed; 0 failed\ntest result: ok. 1 passed; 0 failed\n";
        assert_eq!(sum(&lines(console)).unwrap(), 4);
        assert!(sum(&lines("hello")).is_err());
    }
}
