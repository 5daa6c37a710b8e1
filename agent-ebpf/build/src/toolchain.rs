//! Which compiler and linker for BPF are on this machine.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TARGET;
use crate::command::clean;

/// The version of bpf-linker that this project is built and tested with.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// Where a distribution installs its compiler, as opposed to rustup's.
const SYSTEM_BIN: &str = "/usr/bin";

/// A compiler that can build for the BPF target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// The distribution's, with a prebuilt `core` for BPF (Debian: `rustc-web`, `cargo-web` and
    /// `libstd-rust-web-dev-bpf`).
    System {
        /// Folder of `cargo` and `rustc`.
        bin: PathBuf,
    },
    /// A nightly of rustup with the component `rust-src`, from which `core` is built.
    Nightly {
        /// Folder of `cargo` and `rustc`.
        bin: PathBuf,
    },
}

impl Toolchain {
    /// The one to use: the distribution's if it is complete, because its compiler and its LLVM fit together and stay
    /// as they are; else rustup's nightly.
    pub fn find() -> Option<Self> {
        Self::find_system(Path::new(SYSTEM_BIN)).or_else(Self::find_nightly)
    }

    fn find_system(bin: &Path) -> Option<Self> {
        if !bin.join("cargo").exists() {
            return None;
        }
        let libdir = stdout(clean(bin.join("rustc")).args(["--print", "target-libdir", "--target", TARGET]))?;
        let mut entries = std::fs::read_dir(libdir).ok()?.flatten();
        let has_core = entries.any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
        has_core.then(|| Self::System { bin: bin.to_path_buf() })
    }

    fn find_nightly() -> Option<Self> {
        // `which` installs nothing, `run` might.
        let rustc =
            PathBuf::from(stdout(clean("rustup").args(["which", "--toolchain", "nightly", "rustc"]))?);
        let bin = rustc.parent()?;
        let source = bin.parent()?.join("lib/rustlib/src/rust/library/core");
        source.exists().then(|| Self::Nightly { bin: bin.to_path_buf() })
    }

    /// `cargo <subcommand>` of this toolchain; what it needs to build for BPF is set.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let (Self::System { bin } | Self::Nightly { bin }) = self;
        let mut command = clean(bin.join("cargo"));
        command.arg(subcommand).env("RUSTC", bin.join("rustc"));
        match self {
            // aya-ebpf uses unstable features, which a stable compiler allows only so.
            Self::System { .. } => command.env("RUSTC_BOOTSTRAP", "1"),
            Self::Nightly { .. } => command.arg("-Zbuild-std=core"),
        };
        command
    }

    /// The compiler's name and version, for people.
    pub fn version(&self) -> Option<String> {
        let (Self::System { bin } | Self::Nightly { bin }) = self;
        stdout(clean(bin.join("rustc")).arg("--version"))
    }
}

/// Finds bpf-linker where cargo installs it, else on the path.
pub fn find_linker() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    home.map(|home| home.join("bin"))
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
}

/// The trimmed output of a command; nothing if it fails or says nothing.
fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_compiler_is_no_toolchain() {
        assert_eq!(Toolchain::find_system(Path::new("/nonexistent")), None);
    }

    #[test]
    fn the_outer_toolchain_does_not_leak_into_the_inner_one() {
        let command = Toolchain::System { bin: PathBuf::from("/usr/bin") }.cargo("build");
        let value = |name: &str| command.get_envs().find(|(key, _)| *key == name).map(|(_, value)| value);
        assert_eq!(value("RUSTUP_TOOLCHAIN"), Some(None));
        assert_eq!(value("RUSTFLAGS"), Some(None));
        assert_eq!(value("RUSTC"), Some(Some("/usr/bin/rustc".as_ref())));
    }
}
