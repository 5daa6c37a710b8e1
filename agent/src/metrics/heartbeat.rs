//! Whether the agent's loop still turns. The health answer comes from another thread, which would go on answering for a
//! loop that hangs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The loop turns once a second; a start in a large cluster takes seconds. What is silent for so long hangs.
const SILENCE: Duration = Duration::from_secs(60);

/// When the loop turned last. Clones share it.
#[derive(Clone, Debug)]
pub struct Heartbeat(Arc<Mutex<Instant>>);

impl Default for Heartbeat {
    /// As if it had turned just now.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Heartbeat {
    /// The loop turns.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long the loop has been silent at `now`, if that is too long.
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(now.saturating_duration_since(last)).filter(|silence| *silence > SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_noticed_and_one_that_turns_again_is_alive() {
        let heartbeat = Heartbeat::default();
        let now = Instant::now();
        assert_eq!(heartbeat.silent(now + SILENCE / 2), None);
        assert!(heartbeat.silent(now + SILENCE * 2).is_some());
        heartbeat.beat();
        assert_eq!(heartbeat.silent(Instant::now()), None);
    }
}
