//! Running cargo and reading what it built.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The root of the workspace.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// A cargo command in the root of the workspace.
pub fn cargo<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo told this program about itself is not about the packages that are built now.
    for (name, _) in std::env::vars_os() {
        let about_us = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"].contains(&name)
        });
        if about_us {
            command.env_remove(name);
        }
    }
    command.args(args).current_dir(root());
    command
}

/// An executable that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// Name of the target: `portcullis`, `harness`.
    pub target: String,
    /// Kind of the target: `lib`, `bin`, `test`.
    pub kind: String,
    /// Folder of its package.
    pub package: PathBuf,
    /// Whether it is a test program.
    pub test: bool,
    /// Where it is.
    pub path: PathBuf,
}

impl Executable {
    /// The name of the package's folder and of the target, for people.
    pub fn title(&self) -> String {
        let package = self.package.strip_prefix(root()).unwrap_or(&self.package).display();
        format!("{package}: {} {}", self.kind, self.target)
    }
}

/// Runs a cargo command that builds, and returns the executables; cargo's own progress goes to the terminal.
pub fn executables<'a>(args: impl IntoIterator<Item = &'a str>) -> Result<Vec<Executable>> {
    executables_of(cargo(args))
}

/// As [`executables`], of a command that has more than arguments.
pub fn executables_of(mut command: Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let mut found = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            found.extend(executable(&line.context("reading what cargo built")?));
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    if !status.success() {
        bail!("the build failed ({status})");
    }
    Ok(found)
}

/// The part of cargo's messages that is used here.
#[derive(Debug, Deserialize)]
struct Message {
    manifest_path: PathBuf,
    target: Target,
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// The executable that a line of cargo's output announces; other messages have other fields.
fn executable(line: &str) -> Option<Executable> {
    let Message { manifest_path, target, profile, executable } = serde_json::from_str(line).ok()?;
    Some(Executable {
        target: target.name,
        kind: target.kind.into_iter().next()?,
        package: manifest_path.parent()?.to_path_buf(),
        test: profile.test,
        path: executable?,
    })
}

/// The executable of this name that is not a test program.
pub fn program(executables: &[Executable], name: &str) -> Result<PathBuf> {
    let mut programs = executables.iter().filter(|found| found.kind == "bin" && !found.test);
    let found = programs.find(|found| found.target == name);
    found.map(|found| found.path.clone()).with_context(|| format!("cargo built no program `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargos_messages_and_the_rest_is_not() {
        let line = r#"{"reason":"compiler-artifact","package_id":"x","manifest_path":"/r/agent/Cargo.toml",
            "target":{"kind":["bin"],"name":"portcullis","src_path":"/r/agent/src/main.rs"},
            "profile":{"opt_level":"0","test":false},"executable":"/r/target/debug/portcullis","fresh":true}"#;
        let found = executable(line).unwrap();
        assert_eq!((found.kind.as_str(), found.test), ("bin", false));
        assert_eq!(found.package, Path::new("/r/agent"));
        let programs = [Executable { test: true, ..found.clone() }, found];
        assert_eq!(program(&programs, "portcullis").unwrap(), Path::new("/r/target/debug/portcullis"));
        assert!(program(&programs[..1], "portcullis").is_err(), "a test program is not the program");
        assert!(program(&programs, "other").is_err());

        assert_eq!(executable(&line.replace(r#""/r/target/debug/portcullis""#, "null")), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
