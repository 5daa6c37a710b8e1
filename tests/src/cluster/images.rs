//! The images that every cluster has, made from programs of this machine: no registry is asked for anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::archive::{Entry, Image};
use super::binaries;
use crate::command::run;

/// What holds a pod's namespaces.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";
/// Servers and clients of the Kubernetes project's own tests, and a shell with the usual tools.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";
/// A shell with the usual tools.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";

/// Makes the archives that are not there yet, or older than what they are made from, and returns all.
pub fn archives() -> Result<Vec<PathBuf>> {
    let folder = binaries::cache().join("images");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let busybox = binaries::in_path("busybox").context("busybox is missing: run `cargo xtask setup`")?;
    let agnhost = binaries::find("agnhost")?;
    let tools = || tools(&busybox);
    let file = |name: &str, path: &Path| Entry::File { name: name.to_owned(), path: path.to_owned() };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut archives = Vec::new();
    for (name, reference, entrypoint, command, programs) in [
        ("pause", PAUSE, words(&["/bin/busybox", "sleep", "infinity"]), vec![], vec![]),
        ("busybox", BUSYBOX, vec![], words(&["sh"]), vec![]),
        ("agnhost", AGNHOST, words(&["/agnhost"]), words(&["pause"]), vec![("agnhost", agnhost.as_path())]),
    ] {
        let archive = folder.join(format!("{name}.tar"));
        let sources = programs.iter().map(|(_, path)| *path).chain([busybox.as_path()]);
        if !is_current(&archive, sources) {
            let mut entries = vec![Entry::Folder { name: "tmp".to_owned(), mode: 0o1777 }];
            entries.extend(tools()?);
            entries.extend(programs.iter().map(|(name, path)| file(name, path)));
            let image = Image { reference: reference.to_owned(), entrypoint, command, entries };
            image.write(&archive).with_context(|| format!("making the image {reference}"))?;
        }
        archives.push(archive);
    }
    Ok(archives)
}

/// busybox under all of its names.
fn tools(busybox: &Path) -> Result<Vec<Entry>> {
    let names = run(Command::new(busybox).arg("--list"))?;
    let links = names
        .lines()
        .filter(|name| *name != "busybox")
        .map(|name| Entry::Link { name: format!("bin/{name}"), to: "busybox".to_owned() });
    let program = Entry::File { name: "bin/busybox".to_owned(), path: busybox.to_owned() };
    Ok(std::iter::once(program).chain(links).collect())
}

/// Whether a file is newer than everything that it is made from, this program included.
fn is_current<'a>(file: &Path, sources: impl Iterator<Item = &'a Path>) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let this = std::env::current_exe().ok();
    let mut sources: Vec<&Path> = sources.collect();
    sources.extend(this.as_deref());
    changed(file).is_some_and(|made| sources.iter().all(|source| changed(source).is_some_and(|at| at < made)))
}
