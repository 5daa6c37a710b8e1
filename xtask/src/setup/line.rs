//! A command that `setup` runs, and how it is shown to people.

use std::process::Command;

/// Runs a command while a policy of Debian's forbids to start daemons. A policy that is there already stays as it is.
const QUIETLY: &str = r#"policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy" || exit
fi
"$@""#;

/// A command line with the variables it is run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    variables: Vec<(&'static str, String)>,
    words: Vec<String>,
    /// Runs it without the daemons that a package brings being started.
    quiet: bool,
}

impl Line {
    /// A command of these words.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self { variables: Vec::new(), words: words.into_iter().map(str::to_owned).collect(), quiet: false }
    }

    /// With a variable.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// For `apt-get install`: the daemons in the packages are not started.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// As one would type it.
    pub fn shown(&self) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("{name}={value}"));
        let words =
            self.words.iter().map(|word| if word.contains(' ') { format!("'{word}'") } else { word.clone() });
        let shown = variables.chain(words).collect::<Vec<_>>().join(" ");
        if self.quiet { shown + "  (and starts no daemon)" } else { shown }
    }

    /// Whether only root may run it.
    pub fn needs_root(&self) -> bool {
        matches!(self.words.first().map(String::as_str), Some("apt-get" | "mount" | "systemctl"))
    }

    /// The command.
    pub fn build(&self) -> Command {
        let mut command = if self.quiet {
            let mut shell = Command::new("sh");
            shell.args(["-c", QUIETLY, "sh"]).args(&self.words);
            shell
        } else {
            let mut command = Command::new(self.words.first().map_or("false", String::as_str));
            command.args(self.words.iter().skip(1));
            command
        };
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        // A cargo that runs us fixes the toolchain for its children; these commands find their own.
        command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let line = Line::new(["cargo", "install", "x"]).with("LLVM_PREFIX", "/llvm");
        assert_eq!(line.shown(), "LLVM_PREFIX=/llvm cargo install x");
        assert!(!line.needs_root());
        assert!(Line::new(["apt-get", "update"]).needs_root());
        assert_eq!(Line::new(["go", "-ldflags", "-s -w"]).shown(), "go -ldflags '-s -w'");
        assert!(Line::new(["apt-get", "install"]).quiet().shown().contains("starts no daemon"));
    }
}
