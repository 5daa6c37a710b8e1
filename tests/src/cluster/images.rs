//! The images that every cluster has, made from programs of this machine: no registry is asked for anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::archive::{Entry, Image};
use super::binaries;
use crate::command::run;

/// Raised when images change other than by their programs.
const VERSION: u32 = 1;

/// What holds a pod's namespaces.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";
/// Servers and clients of the Kubernetes project's own tests, and a shell with the usual tools.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";
/// A shell with the usual tools.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";

/// The cluster's DNS server.
pub const COREDNS: &str = "registry.k8s.io/coredns/coredns:v1.12.4";

/// What an image is made of besides the usual tools.
struct Recipe {
    name: &'static str,
    reference: &'static str,
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
    /// A program of the cluster's, in the image's root.
    program: Option<&'static str>,
}

const PAUSE_RECIPE: Recipe = Recipe {
    name: "pause",
    reference: PAUSE,
    entrypoint: &["/bin/busybox", "sleep", "infinity"],
    command: &[],
    program: None,
};
const BUSYBOX_RECIPE: Recipe =
    Recipe { name: "busybox", reference: BUSYBOX, entrypoint: &[], command: &["sh"], program: None };
const AGNHOST_RECIPE: Recipe = Recipe {
    name: "agnhost",
    reference: AGNHOST,
    entrypoint: &["/agnhost"],
    command: &["pause"],
    program: Some("agnhost"),
};
const COREDNS_RECIPE: Recipe = Recipe {
    name: "coredns",
    reference: COREDNS,
    entrypoint: &["/coredns"],
    command: &[],
    program: Some(binaries::DNS_SERVER),
};

/// Makes the archives that are not there yet, or older than what they are made from, and returns all.
pub fn archives(dns: bool) -> Result<Vec<PathBuf>> {
    let folder = binaries::cache().join(format!("images-{VERSION}"));
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let busybox = binaries::in_path("busybox").context("busybox is missing: run `cargo xtask setup`")?;
    let mut recipes = vec![PAUSE_RECIPE, BUSYBOX_RECIPE, AGNHOST_RECIPE];
    recipes.extend(dns.then_some(COREDNS_RECIPE));
    recipes.iter().map(|recipe| recipe.archive(&folder, &busybox)).collect()
}

impl Recipe {
    fn archive(&self, folder: &Path, busybox: &Path) -> Result<PathBuf> {
        let archive = folder.join(format!("{}.tar", self.name));
        let program = self.program.map(|program| Ok::<_, anyhow::Error>((program, binaries::find(program)?)));
        let program = program.transpose()?;
        let sources = program.iter().map(|(_, path)| path.as_path()).chain([busybox]);
        if is_current(&archive, sources) {
            return Ok(archive);
        }
        let mut entries = vec![Entry::Folder { name: "tmp".to_owned(), mode: 0o1777 }];
        entries.extend(tools(busybox)?);
        entries.extend(program.map(|(name, path)| Entry::File { name: name.to_owned(), path }));
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let image = Image {
            reference: self.reference.to_owned(),
            entrypoint: owned(self.entrypoint),
            command: owned(self.command),
            entries,
        };
        image.write(&archive).with_context(|| format!("making the image {}", self.reference))?;
        Ok(archive)
    }
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

/// Whether a file is newer than everything that it is made from.
fn is_current<'a>(file: &Path, mut sources: impl Iterator<Item = &'a Path>) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    changed(file).is_some_and(|made| sources.all(|source| changed(source).is_some_and(|at| at < made)))
}
