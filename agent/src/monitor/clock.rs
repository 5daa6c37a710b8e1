//! Events carry the monotonic clock; people read the wall clock.

use k8s_openapi::jiff::Timestamp;

/// How far the wall clock is ahead of the monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    ahead: i128,
}

impl Clock {
    /// The clocks as they are now. The wall clock is set now and then, so this is not to be kept for long.
    pub fn now() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes the struct; this clock always exists.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        let monotonic = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        Self { ahead: Timestamp::now().as_nanosecond() - monotonic }
    }

    /// A monotonic time in the form of RFC 3339, UTC, with milliseconds.
    pub fn text(self, monotonic_ns: u64) -> String {
        let time = Timestamp::from_nanosecond(self.ahead + i128::from(monotonic_ns));
        time.map_or_else(|_| "?".to_owned(), |time| format!("{time:.3}"))
    }

    /// Clocks that differ by this many nanoseconds.
    #[cfg(test)]
    pub const fn ahead_by(nanoseconds: i128) -> Self {
        Self { ahead: nanoseconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monotonic_time_becomes_one_of_the_wall_clock() {
        let clock = Clock::ahead_by(1_764_097_200_000_000_000);
        assert_eq!(clock.text(62_500_000_000), "2025-11-25T19:01:02.500Z");
        assert_eq!(clock.text(0), "2025-11-25T19:00:00.000Z");
        assert!(Clock::now().text(0) < Timestamp::now().to_string(), "the machine was started before now");
    }
}
