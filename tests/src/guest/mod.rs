//! Other kernels than the running one: they boot in an emulator, with test programs of this machine in their initial file
//! system, and say on the serial line how those ended.
//!
//! Invariant: a guest passes only if it says itself that every step ended well. One that panics, hangs or ends early does
//! not, and neither it nor its emulator outlives its [`Guest`].

mod archive;
mod files;
mod modules;
mod run;

pub use files::Contents;
pub use run::{Guest, Outcome, sum};

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cluster::binaries::cache;

/// A kernel that the tests know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The series that its release begins with.
    pub series: &'static str,
    /// Debian's package that depends on the newest of the series.
    pub package: &'static str,
}

/// The oldest kernel that Portcullis is for, which has clsact filters only, and one in the middle, which has TCX.
pub const KERNELS: [Kernel; 2] = [
    Kernel { series: "6.1", package: "linux-image-cloud-amd64" },
    Kernel { series: "6.12", package: "linux-image-6.12-cloud-amd64" },
];

/// The emulator.
pub const EMULATOR: &str = "qemu-system-x86_64";

impl Kernel {
    /// The folder that its package is unpacked into, once.
    pub fn folder(&self) -> PathBuf {
        cache().join("kernels").join(self.series)
    }

    /// Its release (`6.1.0-56-cloud-amd64`), by what is unpacked.
    ///
    /// # Errors
    /// If it is not there.
    pub fn release(&self) -> Result<String> {
        let boot = self.folder().join("boot");
        let names = std::fs::read_dir(&boot).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names
            .filter_map(|name| name.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
            .find(|release| is_of_series(release, self.series))
            .with_context(|| {
                format!("no Linux {} in {}: run `cargo xtask setup`", self.series, boot.display())
            })
    }
}

/// Whether a release, or the name of its package without `linux-image-`, is of a series: 6.12 is none of 6.1.
pub fn is_of_series(release: &str, series: &str) -> bool {
    release.strip_prefix(series).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_ends_at_its_dot() {
        assert!(is_of_series("6.1.0-56-cloud-amd64", "6.1") && is_of_series("6.12.117+deb12-amd64", "6.12"));
        assert!(!is_of_series("6.12.117+deb12-amd64", "6.1") && !is_of_series("6.1", "6.1"));
    }
}
