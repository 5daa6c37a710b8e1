//! A folder, read once, for commands that answer a question about it and enforce nothing.
//!
//! Everything that can be understood counts, each object for itself, and every mistake is named with its place. What is
//! not understood of a policy is narrowed as that of an API server is, so that no answer is wider than what was meant.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use portcullis_common::policy::protocol;
use serde_json::Value;

use super::decode::{self, DocumentError, Written};
use super::folder::{Objects, read_limited};
use super::survey::{self, Seen};
use super::{ManifestsError, STACK, endpoints, workload};
use crate::model::{Object, ObjectKey, ObjectKind};
use crate::sources::SourceProblem;
use crate::sources::typed::parse_path;

/// What a folder says.
#[derive(Debug, Default)]
pub struct Reading {
    /// Every object; of two definitions the one in the first file by path. Workloads that no pod of the folder belongs
    /// to have a pod each, by the name of [`workload_name`](Self::workload_name).
    pub objects: Vec<Object>,
    /// What cannot be understood, and where.
    pub problems: Vec<SourceProblem>,
    /// Objects of kinds that decide nothing here, `apps/v1 Deployment shop/web`.
    pub ignored: Vec<String>,
    /// Protocol and port of every port that a container of a pod or workload declares.
    pub container_ports: BTreeSet<(u8, u16)>,
    /// How many files there are.
    pub files: usize,
    /// Namespaces and service accounts that are in the folder and not understood, as `Namespace shop`.
    unclear: BTreeSet<String>,
    /// Where each object that counts stands, by `NetworkPolicy shop/db`.
    written: BTreeMap<String, (PathBuf, Written)>,
    /// Fields of policies that are narrowed, by object.
    narrowed: BTreeMap<String, Vec<String>>,
    /// The pods, by UID.
    uids: BTreeMap<String, String>,
}

/// Reads a folder. What cannot be read is a problem of the result.
///
/// # Errors
/// If the folder cannot even be named.
pub fn read(directory: &Path) -> Result<Reading, ManifestsError> {
    let root = std::path::absolute(directory)
        .map_err(|source| ManifestsError::Path { path: directory.to_owned(), source })?;
    let thread_error = |source| ManifestsError::Thread { path: directory.to_owned(), source };
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("manifests".to_owned()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, || read_from(directory, &root)).map_err(thread_error)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn read_from(directory: &Path, root: &Path) -> Reading {
    let survey = survey::survey(root);
    let mut reading = Reading { files: survey.files.len(), ..Reading::default() };
    let mut objects = Objects::new();
    for (folder, why) in &survey.unreadable {
        reading.problem(&shown(directory, root, folder), &format!("cannot be listed: {why}"));
    }
    for (path, seen) in &survey.files {
        let place = shown(directory, root, path);
        match seen {
            Seen::Unreadable(why) => {
                reading.problem(&place, &format!("{why}; make it readable or remove it"));
            }
            Seen::Version(_) => match text_of(path) {
                Ok(text) => reading.file(&place, &text, &mut objects),
                Err(why) => reading.problem(&place, &why),
            },
        }
    }
    reading.leave_out_represented(&mut objects);
    for slice in endpoints::slices(&objects) {
        let object = Object::EndpointSlice(slice);
        objects.insert(object.key(), Arc::new(object));
    }
    reading.objects = objects.into_values().map(Arc::unwrap_or_clone).collect();
    reading
}

/// Whether a pod of a [`Reading`] stands for those of a workload: its name is `deployment/web`.
pub fn is_workload(pod: &str) -> bool {
    pod.contains('/')
}

/// A path below the folder as the user named it.
fn shown(directory: &Path, root: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix(root) {
        Ok(below) if below.as_os_str().is_empty() => directory.to_owned(),
        Ok(below) => directory.join(below),
        Err(_) => path.to_owned(),
    }
}

fn text_of(path: &Path) -> Result<String, String> {
    let bytes = read_limited(path)
        .map_err(|error| format!("cannot be read: {error}; make it readable or remove it"))?;
    String::from_utf8(bytes).map_err(|error| {
        format!("not UTF-8 from byte {} on; save it as UTF-8", error.utf8_error().valid_up_to())
    })
}

impl Reading {
    /// Whether a namespace or service account is in the folder and not understood.
    pub fn is_unclear(&self, key: &ObjectKey) -> bool {
        let name = key.to_string();
        let short = (key.namespace == "default").then(|| format!("ServiceAccount {}", key.name));
        let named = self.unclear.contains(&name) || short.is_some_and(|short| self.unclear.contains(&short));
        // A second definition is a mistake that leaves the first one as it is.
        named && !self.written.contains_key(&name)
    }

    /// Whether what is wrong with a field of an object only follows from what has been narrowed there.
    pub fn is_narrowed(&self, object: &str, field: &str) -> bool {
        let fields = self.narrowed.get(object).into_iter().flatten();
        fields.map(|narrowed| narrowed_part(narrowed)).any(|part| field.starts_with(part))
    }

    /// A problem in a field of an object (`NetworkPolicy shop/db`), with its file, document and line.
    pub fn locate(&self, object: &str, field: &str, message: &str) -> SourceProblem {
        match self.written.get(object) {
            Some((path, written)) => {
                let mistake = written.mistake(&parse_path(field), message.to_owned());
                SourceProblem { place: path.display().to_string(), message: mistake.to_string() }
            }
            None if field.is_empty() => {
                SourceProblem { place: object.to_owned(), message: message.to_owned() }
            }
            None => {
                SourceProblem { place: object.to_owned(), message: format!("field `{field}`: {message}") }
            }
        }
    }

    fn problem(&mut self, place: &Path, message: &str) {
        // One mistake is one line.
        let message = message.replace(['\n', '\r'], " ");
        self.problems.push(SourceProblem { place: place.display().to_string(), message });
    }

    fn file(&mut self, path: &Path, text: &str, objects: &mut Objects) {
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let (decoded, errors) = decode::decode_each(text, is_json);
        for error in errors {
            self.mistake(path, &error);
        }
        self.ignored.extend(decoded.ignored);
        for (key, field) in decoded.narrowed {
            self.narrowed.entry(key.to_string()).or_default().push(field);
        }
        for (object, written) in decoded.objects.into_iter().zip(decoded.written) {
            let name = written.key.to_string();
            let other = match &object {
                Object::Pod(pod) => self.uids.get(&pod.uid).filter(|other| **other != name),
                _ => None,
            };
            let taken = self.written.get(other.unwrap_or(&name));
            if let Some((first, earlier)) = taken {
                let (field, how) = match other {
                    Some(other) => ("metadata.uid", format!(" as {other} with the same uid")),
                    None => ("metadata.name", String::new()),
                };
                let message = format!(
                    "{name} is also defined in {}, document {}{how}; that definition is used, remove one of the two",
                    first.display(),
                    earlier.document
                );
                let error = written.mistake(&parse_path(field), message);
                self.mistake(path, &error);
                continue;
            }
            if let Object::Pod(pod) = &object {
                self.uids.insert(pod.uid.clone(), name.clone());
            }
            objects.insert(written.key.clone(), Arc::new(object));
            self.written.insert(name, (path.to_owned(), written));
        }
    }

    fn mistake(&mut self, path: &Path, error: &DocumentError) {
        if let Some(object) = error.object()
            && (object.starts_with("Namespace ") || object.starts_with("ServiceAccount "))
        {
            self.unclear.insert(object.to_owned());
        }
        self.problem(path, &error.to_string());
    }

    /// Takes workloads away that other objects of the folder stand for: their pods, or what made them.
    fn leave_out_represented(&mut self, objects: &mut Objects) {
        let pods = |(name, (_, written)): (&String, &(PathBuf, Written))| {
            (written.key.kind == ObjectKind::Pod)
                .then(|| (name.clone(), written.key.clone(), written.node.to_json()))
        };
        let pods: Vec<(String, ObjectKey, Value)> = self.written.iter().filter_map(pods).collect();
        let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (name, key, value) in &pods {
            for owner in value["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
                if let (Some(kind), Some(owner)) = (owner["kind"].as_str(), owner["name"].as_str()) {
                    let owner = ObjectKey { name: workload::pod_name(kind, owner), ..key.clone() };
                    owners.entry(name).or_default().push(owner.to_string());
                }
            }
            self.container_ports.extend(container_ports(value));
        }
        let owners_of = |name: &str| owners.get(name).into_iter().flatten();
        // What made the pods of the folder, and what made that.
        let mut represented: BTreeSet<&str> = BTreeSet::new();
        let real = pods.iter().filter(|(_, key, _)| !is_workload(&key.name));
        let mut next: Vec<&str> = real.map(|(name, ..)| name.as_str()).collect();
        while let Some(owned) = next.pop() {
            next.extend(owners_of(owned).map(String::as_str).filter(|owner| represented.insert(owner)));
        }
        for (name, key, _) in pods.iter().filter(|(_, key, _)| is_workload(&key.name)) {
            let made_here = owners_of(name).any(|owner| self.written.contains_key(owner));
            if made_here || represented.contains(name.as_str()) {
                objects.remove(key);
            }
        }
    }
}

/// The part of a policy that is narrowed for a field in it: a peer, a port, a rule, else everything.
fn narrowed_part(field: &str) -> &str {
    let Some(rule) = field.find(']') else { return "" };
    let rest = &field[rule + 1..];
    let lists = [".from[", ".to[", ".ports[", ".protocols["];
    match rest.find(']') {
        Some(end) if lists.iter().any(|list| rest.starts_with(list)) => &field[..rule + end + 2],
        _ => &field[..=rule],
    }
}

/// The ports that the containers of a pod or workload declare, with a name or without.
fn container_ports(written: &Value) -> BTreeSet<(u8, u16)> {
    let mut ports = BTreeSet::new();
    let templates = ["/spec", "/spec/template/spec", "/spec/jobTemplate/spec/template/spec"];
    for spec in templates.into_iter().filter_map(|pointer| written.pointer(pointer)) {
        let containers = spec["containers"].as_array().into_iter().flatten();
        let init = spec["initContainers"].as_array().into_iter().flatten();
        let init = init.filter(|container| container["restartPolicy"] == "Always");
        for port in containers.chain(init).filter_map(|container| container["ports"].as_array()).flatten() {
            let Ok(port) = serde_json::from_value::<core::ContainerPort>(port.clone()) else { continue };
            let protocol = match port.protocol.as_deref() {
                None | Some("" | "TCP") => protocol::TCP,
                Some("UDP") => protocol::UDP,
                Some("SCTP") => protocol::SCTP,
                Some(_) => continue,
            };
            ports.extend(u16::try_from(port.container_port).ok().map(|number| (protocol, number)));
        }
    }
    ports
}

#[cfg(test)]
#[path = "once_tests.rs"]
mod tests;
