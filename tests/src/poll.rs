//! Waiting for a condition, never for time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long to wait before a condition is called unmet: more than anything takes on a busy machine, which is slow, not wrong.
/// What comes late comes from pauses that grow (an agent's between two tries, a kubelet's between two starts), up to a minute
/// each.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits up to [`PATIENCE`] for a condition; the error names `what` was waited for.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    eventually_within(PATIENCE, what, condition)
}

/// Waits up to `deadline` for a condition; the error names `what` was waited for.
pub fn eventually_within(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        if condition() {
            return Ok(());
        }
        if start.elapsed() >= deadline {
            bail!("waited {:.1} s in vain for: {what}", start.elapsed().as_secs_f64());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until a count reaches `goal`, for as long as it grows: up to `patience` each time.
pub fn eventually_all(
    patience: Duration,
    what: &str,
    goal: usize,
    mut count: impl FnMut() -> usize,
) -> Result<()> {
    let mut now = 0;
    while now < goal {
        let before = now;
        let grows = || {
            now = count();
            now > before
        };
        eventually_within(patience, "more", grows).with_context(|| format!("{now} of {goal} {what}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_becomes_true_is_enough_and_one_that_does_not_is_named() {
        let mut looks = 0;
        eventually("the third look", || {
            looks += 1;
            looks == 3
        })
        .unwrap();
        eventually_all(PATIENCE, "looks", 6, || {
            looks += 1;
            looks
        })
        .unwrap();
        assert_eq!(looks, 6);
        let error = eventually_all(Duration::ZERO, "looks", 8, || 7).unwrap_err();
        assert!(error.to_string().starts_with("7 of 8 looks"), "{error}");
        let error = eventually_within(Duration::ZERO, "godot", || false).unwrap_err();
        assert!(error.to_string().ends_with("in vain for: godot"), "{error}");
    }
}
