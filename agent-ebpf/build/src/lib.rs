//! Finds the eBPF toolchain and builds the programs of `agent-ebpf`.
//!
//! The agent's build script and `cargo xtask` share it, so that there is one place that knows how the kernel side is
//! compiled. It installs nothing: what is missing is an [`Error`] whose text says what to run.

mod command;
mod toolchain;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use toolchain::{BPF_LINKER_VERSION, Toolchain, find_linker};

/// What the kernel side is compiled for: little endian, as are all machines that it is built for so far.
pub const TARGET: &str = "bpfel-unknown-none";

/// What to build and where to put it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which object: `portcullis`, or `witness` for tests.
    pub object: &'static str,
    /// Cargo features of `agent-ebpf`: `bench`, `log`.
    pub features: Vec<String>,
    /// Where intermediate results live between builds; each set of features gets a folder of its own below it.
    pub target_dir: PathBuf,
    /// Where the finished object is copied to.
    pub output: PathBuf,
    /// The processor that will run the programs, as in cargo's `CARGO_CFG_TARGET_ARCH`; it decides the layout of
    /// `pt_regs` and the like.
    pub arch: String,
}

impl Options {
    /// Options for a build without features, for this machine's processor.
    pub fn new(target_dir: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            object: "portcullis",
            features: Vec::new(),
            target_dir: target_dir.into(),
            output: output.into(),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }

    /// Adds a cargo feature of `agent-ebpf`.
    #[must_use]
    pub fn feature(mut self, name: &str) -> Self {
        self.features.push(name.to_owned());
        self
    }

    /// With another object.
    #[must_use]
    pub const fn object(mut self, name: &'static str) -> Self {
        self.object = name;
        self
    }

    /// One folder a set of features: two builds at the same time must not overwrite each other's object.
    fn own_target_dir(&self) -> PathBuf {
        let mut features = self.features.clone();
        features.sort();
        let name = if features.is_empty() { "plain".to_owned() } else { features.join("-") };
        self.target_dir.join(name)
    }
}

/// Why there is no object.
#[derive(Debug)]
pub enum Error {
    /// No compiler for the BPF target.
    NoCompiler,
    /// A compiler, but nothing that links BPF objects.
    NoLinker,
    /// The compiler could not be started, or a file not be written.
    Io {
        /// What was being done, with the object.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The compiler ran and refused.
    Failed {
        /// The command, for people to repeat.
        command: String,
        /// What the compiler printed.
        output: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCompiler => {
                f.write_str("there is no compiler for the eBPF programs here: run `cargo xtask setup`")
            }
            Self::NoLinker => {
                f.write_str("bpf-linker, which links the eBPF programs, is missing: run `cargo xtask setup`")
            }
            Self::Io { doing, source } => write!(f, "{doing}: {source}"),
            Self::Failed { command, output } => {
                write!(f, "the eBPF programs do not compile; the command was `{command}`\n{output}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::NoCompiler | Self::NoLinker | Self::Failed { .. } => None,
        }
    }
}

/// The folder of the `agent-ebpf` crate.
pub fn source_dir() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The files and folders whose change makes a new object, for `cargo::rerun-if-changed`.
pub fn inputs() -> Vec<PathBuf> {
    let ebpf = source_dir();
    let root = ebpf.parent().unwrap_or(&ebpf).to_path_buf();
    let mut inputs = vec![ebpf.join("src"), ebpf.join("Cargo.toml")];
    // Cargo takes a path that does not exist for one that has changed, and would run the script each time.
    inputs.extend(Some(ebpf.join("Cargo.lock")).filter(|lock| lock.exists()));
    inputs.extend(["agent-common/src", "agent-common/Cargo.toml", "Cargo.toml"].map(|file| root.join(file)));
    inputs
}

/// Builds the programs and returns the path of the object ([`Options::output`]).
pub fn build(options: &Options) -> Result<PathBuf, Error> {
    let toolchain = Toolchain::find().ok_or(Error::NoCompiler)?;
    let linker = find_linker().ok_or(Error::NoLinker)?;
    let target_dir = options.own_target_dir();
    let mut command = toolchain.cargo("build");
    command
        .current_dir(source_dir())
        .args(["--release", "--bin", options.object, "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&options.arch, &linker));
    if !options.features.is_empty() {
        command.args(["--features", &options.features.join(",")]);
    }
    run(&mut command)?;
    let built = target_dir.join(TARGET).join("release").join(options.object);
    std::fs::copy(&built, &options.output).map_err(|source| Error::Io {
        doing: format!("copying {} to {}", built.display(), options.output.display()),
        source,
    })?;
    Ok(options.output.clone())
}

/// Compiler flags in the form of `CARGO_ENCODED_RUSTFLAGS`, which allows blanks in paths.
fn rustflags(arch: &str, linker: &Path) -> String {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // Line numbers and types: they become BTF, which the maps need.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
        // 32-bit arithmetic and atomics that return a value. The compiler passes it to the linker, which generates
        // the code.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    // Line numbers name files: every machine shall build the same object, and no path of this one is in it.
    let root = source_dir();
    let sources = root.parent().map(|root| (root.to_path_buf(), "/portcullis"));
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let paths = sources.into_iter().chain(home.map(|home| (home, "/cargo")));
    flags.extend(paths.map(|(path, shown)| format!("--remap-path-prefix={}={shown}", path.display())));
    flags.join("\u{1f}")
}

fn run(command: &mut Command) -> Result<(), Error> {
    let shown = command::describe(command);
    let output =
        command.output().map_err(|source| Error::Io { doing: format!("starting `{shown}`"), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed { command: shown, output: String::from_utf8_lossy(&output.stderr).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_of_features_has_a_folder_of_its_own_whatever_the_order() {
        let plain = Options::new("/t", "/o");
        let one = plain.clone().feature("log").feature("bench");
        let other = plain.clone().feature("bench").feature("log");
        assert_ne!(plain.own_target_dir(), one.own_target_dir());
        assert_eq!(one.own_target_dir(), other.own_target_dir());
    }

    #[test]
    fn a_missing_toolchain_is_one_sentence_that_names_the_command() {
        for error in [Error::NoCompiler, Error::NoLinker] {
            let text = error.to_string();
            assert!(text.ends_with("run `cargo xtask setup`") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn the_inputs_are_there() {
        for path in inputs().iter().filter(|path| !path.ends_with("agent-ebpf/src")) {
            assert!(path.exists(), "{}", path.display());
        }
    }
}
