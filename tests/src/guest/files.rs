//! What a guest's file system holds: the programs of this machine that the tests call, the tests themselves, and a script
//! that runs them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::archive::Archive;
use super::{Kernel, modules};
use crate::cluster::binaries::in_path;
use crate::command::run;

/// What a guest prints before and after each step, and at its end.
pub const MARK: &str = "==guest==";

/// Programs of the system that tests and demo call.
const TOOLS: [&str; 6] = ["ip", "tc", "bridge", "nsenter", "iptables", "ip6tables"];

/// Programs that busybox stands in for.
const SMALL: [&str; 10] =
    ["sh", "mount", "insmod", "cat", "poweroff", "uname", "true", "sleep", "mkdir", "env"];

/// Where iptables has its extensions.
const EXTENSIONS: [&str; 2] = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib64/xtables"];

/// What a guest has and does.
#[derive(Debug, Default)]
pub struct Contents {
    archive: Archive,
    steps: String,
}

impl Contents {
    /// The tools, and no steps.
    ///
    /// # Errors
    /// If one is missing here.
    pub fn new() -> Result<Self> {
        let mut contents = Self::default();
        for folder in ["proc", "sys", "dev", "run", "tmp", "var", "etc", "root"] {
            contents.archive.folder(folder);
        }
        let busybox = in_path("busybox").context("busybox is missing: run `cargo xtask setup`")?;
        contents.program(&busybox, "/bin/busybox", false)?;
        for name in SMALL {
            contents.archive.link(&format!("/bin/{name}"), "busybox");
        }
        for name in TOOLS {
            let path =
                in_path(name).with_context(|| format!("{name} is missing: run `cargo xtask setup`"))?;
            contents.program(&path, &format!("/usr/sbin/{name}"), false)?;
            // Where the harness looks for it.
            contents.archive.link(&format!("/sbin/{name}"), &format!("/usr/sbin/{name}"));
        }
        let extensions = EXTENSIONS.iter().map(Path::new).find(|folder| folder.is_dir());
        let extensions = extensions.context("iptables has no folder of extensions here")?;
        for entry in fs::read_dir(extensions)? {
            let path = entry?.path();
            contents.program(&path, &path.to_string_lossy(), false)?;
        }
        Ok(contents)
    }

    /// Adds a program of ours, without what is for debuggers, with the libraries that it is linked to.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn add_program(&mut self, path: &Path, name: &str) -> Result<()> {
        self.program(path, &format!("/tests/{name}"), true)
    }

    /// Adds a folder with everything in it, at the same place.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn add_folder(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                self.add_folder(&path)?;
            } else {
                self.archive.program(&path.to_string_lossy(), fs::read(&path)?);
            }
        }
        Ok(())
    }

    /// Sets a variable for the steps to come.
    pub fn add_variable(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.steps, "export {name}='{value}'");
    }

    /// Adds a command of the shell, run after those before it, whether they ended well or not.
    pub fn add_step(&mut self, title: &str, command: &str) {
        let _ = writeln!(
            self.steps,
            "echo '{MARK} begin {title}'; begin; {command} 2>&1; code=$?; [ $code = 0 ] || failed=$((failed + 1)); \
             echo \"{MARK} end {title}: exit code $code after $(seconds) s\""
        );
    }

    /// Writes the file system for a kernel.
    ///
    /// # Errors
    /// If the kernel's modules are missing or the file cannot be written.
    pub fn write(&self, kernel: &Kernel, to: &Path) -> Result<()> {
        let mut archive = self.archive.clone();
        let modules = kernel.folder().join("lib/modules").join(kernel.release()?);
        for (number, (name, content)) in modules::ordered(&modules)?.into_iter().enumerate() {
            archive.program(&format!("/modules/{number:03}-{name}.ko"), content);
        }
        archive.program("/init", self.script().into_bytes());
        let mut file = std::io::BufWriter::new(fs::File::create(to)?);
        archive
            .write(&mut file)
            .and_then(|()| std::io::Write::flush(&mut file))
            .with_context(|| format!("writing {}", to.display()))
    }

    /// The guest's first process. `ip` is busybox's own there, which knows no namespaces; the first one makes the mount that they all
    /// share, which no test is to be blamed for. When it ends by mistake the kernel panics, and the emulator ends.
    fn script(&self) -> String {
        format!(
            "#!/bin/sh\n\
             export PATH=/usr/sbin:/bin\n\
             mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
             mount -t tmpfs run /run; mount -t bpf bpf /sys/fs/bpf\n\
             failed=0\n\
             begin() {{ read since _ < /proc/uptime; since=${{since%.*}}; }}\n\
             seconds() {{ read now _ < /proc/uptime; echo $((${{now%.*}} - since)); }}\n\
             for module in /modules/*; do insmod $module || failed=$((failed + 1)); done\n\
             ip link set lo up || failed=$((failed + 1))\n\
             /usr/sbin/ip netns add first && /usr/sbin/ip netns delete first || failed=$((failed + 1))\n\
             export PORTCULLIS_BIN=/tests/portcullis RUST_BACKTRACE=0\n\
             echo \"{MARK} Linux $(uname -r)\"\n\
             {}\
             echo \"{MARK} done: $failed failed\"\n\
             poweroff -f\n",
            self.steps
        )
    }

    fn program(&mut self, path: &Path, at: &str, stripped: bool) -> Result<()> {
        let content = if stripped { strip(path)? } else { fs::read(path)? };
        self.archive.program(at, content);
        for library in libraries(path)? {
            let name = library.to_string_lossy();
            if !self.archive.has(&name) {
                self.archive.program(&name, fs::read(&library)?);
            }
        }
        Ok(())
    }
}

/// A program without debugging symbols: a tenth of the size.
fn strip(path: &Path) -> Result<Vec<u8>> {
    let folder = crate::TempDir::new()?;
    let to = folder.path().join("stripped");
    run(Command::new("strip").arg("-o").arg(&to).arg(path))?;
    fs::read(&to).with_context(|| format!("reading what `strip` made of {}", path.display()))
}

/// The libraries that a program is linked to; none for a static one.
fn libraries(path: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(path).output().context("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("not found"), "{} lacks a library:\n{text}", path.display());
    Ok(parse_libraries(&text))
}

/// From `libc.so.6 => /lib/libc.so.6 (0x..)` and `/lib64/ld-linux-x86-64.so.2 (0x..)`.
fn parse_libraries(text: &str) -> BTreeSet<PathBuf> {
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_read() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        let found: Vec<PathBuf> = parse_libraries(text).into_iter().collect();
        assert_eq!(found, [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
        assert_eq!(parse_libraries("\tnot a dynamic executable\n").len(), 0);
    }
}
