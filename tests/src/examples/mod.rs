//! The examples of `deploy/examples`, as the tests read them: what is applied, and the table of what then holds. One
//! table serves two tests: the compiler is asked each line, and each line is tried in a real cluster.

mod expand;
mod judge;
mod live;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use expand::Expanded;
pub use judge::Judge;
pub use live::{Live, add_hosts};
pub use table::{End, Expect, Host, Line, Place, Port, Protocol, Table};

/// The cluster's DNS, which clusters have and examples do not bring along: a server in its place.
pub const KUBE_DNS: &str = include_str!("kube-dns.yaml");

/// One folder.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub folder: PathBuf,
    /// The applications.
    pub apps: Manifest,
    /// The policies, one a file.
    pub policies: Vec<Manifest>,
    /// What holds.
    pub table: Table,
}

/// A file with objects.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its name below the folder.
    pub file: String,
    /// Its text.
    pub text: String,
    /// Its objects.
    pub objects: Vec<Value>,
}

impl Manifest {
    fn read(folder: &Path, file: String) -> Result<Self> {
        let path = folder.join(&file);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let objects = objects(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self { file, text, objects })
    }
}

/// The objects of a YAML text.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(text)?)
}

/// The folder of the examples.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples")
}

/// Every example, by name.
pub fn load_all() -> Result<Vec<Example>> {
    let folder = folder();
    let mut examples = Vec::new();
    for name in names(&folder)? {
        if folder.join(&name).is_dir() {
            examples.push(Example::load(&folder.join(&name), name)?);
        }
    }
    Ok(examples)
}

impl Example {
    fn load(folder: &Path, name: String) -> Result<Self> {
        let apps = Manifest::read(folder, "apps.yaml".to_owned())?;
        let files = names(&folder.join("policies"))?;
        let policies = files.into_iter().map(|file| Manifest::read(folder, format!("policies/{file}")));
        let policies = policies.collect::<Result<_>>()?;
        let path = folder.join("expect.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let table: Table = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        let example = Self { name, folder: folder.to_owned(), apps, policies, table };
        example.check_names().with_context(|| path.display().to_string())?;
        Ok(example)
    }

    /// Every end of a line is something that exists.
    fn check_names(&self) -> Result<()> {
        let mut known: BTreeSet<String> = self.table.hosts.iter().map(|host| host.name.clone()).collect();
        let fixture = objects(KUBE_DNS)?;
        for object in self.apps.objects.iter().chain(&fixture) {
            if is_workload(object) {
                known.insert(format!(
                    "{}/{}",
                    text(object, "/metadata/namespace"),
                    text(object, "/metadata/name")
                ));
            }
        }
        for line in &self.table.expect {
            for end in [&line.from, &line.to] {
                let is_node = matches!(end, End::OwnNode | End::OtherNode);
                ensure!(
                    is_node || known.contains(&end.to_string()),
                    "`{end}` is nobody, in the line: {line}"
                );
            }
        }
        Ok(())
    }
}

/// Whether pods are made of it.
pub fn is_workload(object: &Value) -> bool {
    matches!(text(object, "/kind"), "Deployment" | "DaemonSet")
}

/// A text within an object; empty if it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
