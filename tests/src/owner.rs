//! Names that tell which test process made a thing, so that it can be told whether it was left behind.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// What every name of a namespace, folder or pin of the harness begins with.
pub const PREFIX: &str = "pct-";

/// The environment variable that marks processes which the harness started; its value is a [`fresh_name`].
pub const MARK: &str = "PORTCULLIS_TEST_OWNER";

/// A name that nobody else uses: `pct-<process>-<number>`.
pub fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The process whose name this is, if it is one of [`fresh_name`] (also with something before or behind it).
pub fn owner(name: &str) -> Option<u32> {
    let (_, rest) = name.split_once(PREFIX)?;
    let (process, number) = rest.split_once('-')?;
    number.starts_with(|first: char| first.is_ascii_digit()).then(|| process.parse().ok())?
}

/// Whether a name belongs to another test process that is still at work.
pub fn is_foreign(name: &str) -> bool {
    owner(name).is_some_and(|process| process != std::process::id() && is_alive(process))
}

/// Whether a name belongs to a test process that has ended.
pub fn is_orphaned(name: &str) -> bool {
    owner(name).is_some_and(|process| !is_alive(process))
}

fn is_alive(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_from_names_and_paths() {
        assert_eq!(owner("pct-17-0"), Some(17));
        assert_eq!(owner("/sys/fs/bpf/portcullis-pct-17-3/v1"), Some(17));
        assert_eq!(owner("pct-seventeen-0"), None);
        assert_eq!(owner("pct-17"), None);
        assert_eq!(owner("pct-17-x"), None);
        assert_eq!(owner("cni0"), None);
    }

    #[test]
    fn own_names_are_neither_foreign_nor_orphaned() {
        let name = fresh_name();
        assert!(!is_foreign(&name) && !is_orphaned(&name));
        assert_ne!(name, fresh_name());
        // The first process is always there, and is not this one.
        assert!(is_foreign("pct-1-0") && !is_orphaned("pct-1-0"));
        // Above the largest process id of a 64-bit kernel.
        assert!(is_orphaned("pct-4194305-0") && !is_foreign("pct-4194305-0"));
    }
}
