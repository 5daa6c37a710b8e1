//! Commands that do not inherit the toolchain of the cargo that runs us.

use std::ffi::OsStr;
use std::process::Command;

/// What an outer cargo or rustup sets for its own compiler, which would make the inner one use it too.
const FOREIGN: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_UNSTABLE_BUILD_STD",
    "MAKEFLAGS",
    "MFLAGS",
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "TARGET",
];

/// A command without the variables that tie it to the outer toolchain; `CARGO_HOME` stays, so downloads are shared.
pub(crate) fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in FOREIGN {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        // Outer settings such as CARGO_PROFILE_RELEASE_LTO, CARGO_CFG_.. and CARGO_FEATURE_.. are not about us.
        let foreign = name.to_str().is_some_and(|name| {
            ["CARGO_PROFILE_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_", "CARGO_TARGET_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        });
        if foreign {
            command.env_remove(name);
        }
    }
    command
}

/// The command as one would type it, without its environment.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
