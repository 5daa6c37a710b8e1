//! The architectures of the image, and how a static binary is built for each.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::cargo::{self, root};

/// An architecture, as Kubernetes and container runtimes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// x86-64
    Amd64,
    /// 64-bit ARM
    Arm64,
}

/// What is written in place of the folder of this machine that crates come from.
const CARGO_HOME: &str = "/cargo";

impl Target {
    /// The one that this machine has.
    pub const fn native() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }

    /// Go's name, which images use.
    pub const fn go_name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The compiler's name: musl, because such a binary needs no library of the system.
    pub const fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The C compiler. Of C code, cryptography is the most part; it includes no more than headers.
    const fn c_compiler(self) -> &'static str {
        match (self, Self::native()) {
            (Self::Amd64, Self::Amd64) | (Self::Arm64, Self::Arm64) => "musl-gcc",
            (Self::Amd64, Self::Arm64) => "x86_64-linux-gnu-gcc",
            (Self::Arm64, Self::Amd64) => "aarch64-linux-gnu-gcc",
        }
    }

    /// Builds the binary for the image and returns its path.
    pub fn build(self) -> Result<PathBuf> {
        self.check()?;
        let args =
            ["build", "--locked", "--package", "portcullis", "--profile", "image", "--target", self.triple()];
        let mut command = cargo::cargo(args);
        let variable = self.triple().replace('-', "_");
        command
            .env(format!("CC_{variable}"), self.c_compiler())
            .env("CARGO_ENCODED_RUSTFLAGS", Self::flags());
        if self != Self::native() {
            command.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), self.c_compiler());
        }
        cargo::program(&cargo::executables_of(command)?, "portcullis")
    }

    /// No path of this machine goes into the binary, so that every machine builds the same. The workspace's own files are
    /// compiled by relative paths; a flag that named its folder would make every other checkout compile all crates anew.
    fn flags() -> String {
        let flags = cargo_home().map(|home| format!("--remap-path-prefix={}={CARGO_HOME}", home.display()));
        flags
            .into_iter()
            .chain(["-Ctarget-feature=+crt-static".to_owned()])
            .collect::<Vec<_>>()
            .join("\u{1f}")
    }

    /// Whether the compilers are there; those for this machine are `setup`'s, the others are asked for here.
    fn check(self) -> Result<()> {
        let triple = self.triple();
        ensure!(has_std(triple), "Rust's library for {triple} is missing: run `rustup target add {triple}`");
        let compiler = self.c_compiler();
        let package = match compiler {
            "musl-gcc" => "musl-tools",
            "aarch64-linux-gnu-gcc" => "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
            _ => "gcc-x86-64-linux-gnu and libc6-dev-amd64-cross",
        };
        ensure!(
            Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success()),
            "the C compiler {compiler}, with which {} is built, is missing: Debian has it in the package {package}",
            self.go_name()
        );
        Ok(())
    }
}

/// Where crates are kept on this machine.
fn cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home)
}

/// A path of this machine that shows in a binary.
pub fn path_of_this_machine(binary: &[u8]) -> Option<PathBuf> {
    let shows = |path: &PathBuf| {
        let text = path.as_os_str().as_encoded_bytes();
        binary.windows(text.len()).any(|window| window == text)
    };
    [root().to_path_buf()].into_iter().chain(cargo_home()).find(shows)
}

/// Whether the compiler that cargo uses has a standard library for a target.
pub fn has_std(triple: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", triple]).current_dir(root());
    let Ok(output) = command.output() else { return false };
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_this_machine_is_found() {
        let line = format!("x{}/agent/src/main.rs", root().display());
        assert_eq!(path_of_this_machine(line.as_bytes()), Some(root().to_path_buf()));
        assert_eq!(path_of_this_machine(b"/cargo/registry and agent/src/main.rs"), None);
    }

    #[test]
    fn a_target_that_nobody_has_is_not_there() {
        assert!(has_std(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH)));
        assert!(!has_std("msp430-none-elf"));
    }
}
