//! Documents to objects.
//!
//! A file that is enforced is decoded as a whole: either every document of it is understood, or every mistake in it is
//! reported and none of its objects is used. One that is only looked at ([`decode_each`]) is decoded object by object, and
//! what is not understood of a policy is narrowed. Policies are read strictly, because a misspelt field would change what
//! they permit.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::document::{self, Document, Node, SyntaxError};
use super::workload;
use crate::api;
use crate::model::{self, ConvertError, Object, ObjectKey};
use crate::sources::narrow::{self, Narrow, Narrowed, Unclear};
use crate::sources::typed::Strictness::{Lenient, Strict};
use crate::sources::typed::{Mistake, Step, convert_mistake, show_path, typed};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// Its objects.
    pub objects: Vec<Object>,
    /// Objects of kinds that are none of our business, `apps/v1 Deployment shop/web`.
    pub ignored: Vec<String>,
    /// Of a file that is only looked at: where each object stands, in the order of `objects`.
    pub written: Vec<Written>,
    /// Of such a file: fields of policies that are narrowed.
    pub narrowed: Vec<(ObjectKey, String)>,
}

/// Where an object stands and what it says there.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// Its document, counted from 1.
    pub document: usize,
    /// What names it.
    pub key: ObjectKey,
    /// What it says.
    pub node: Node,
}

impl Written {
    /// A mistake in a field of it.
    pub fn mistake(&self, path: &[Step], message: String) -> DocumentError {
        let field = (!path.is_empty()).then(|| show_path(path));
        let place = Place { object: Some(self.key.to_string()), line: self.node.line_of(path), field };
        DocumentError { document: self.document, place, message }
    }
}

/// A mistake in a document. Its text names the document, the object, the line and the field as far as they are known;
/// the name of the file is put before it where it is reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}{place}: {message}")]
pub(super) struct DocumentError {
    /// Counted from 1.
    document: usize,
    place: Place,
    /// What is wrong and what to do.
    message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    object: Option<String>,
    line: Option<u64>,
    field: Option<String>,
}

impl DocumentError {
    /// The object that it is about, as far as it says what it is.
    pub fn object(&self) -> Option<&str> {
        self.place.object.as_deref()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, line, field } = self;
        object.iter().try_for_each(|object| write!(f, " ({object})"))?;
        line.iter().try_for_each(|line| write!(f, ", line {line}"))?;
        field.iter().try_for_each(|field| write!(f, ", field `{field}`"))
    }
}

/// Decodes the text of a file.
pub(super) fn decode(text: &str, is_json: bool) -> Result<Decoded, Vec<DocumentError>> {
    let documents = if is_json { document::read_json(text) } else { document::read_yaml(text) };
    let documents = documents.map_err(|error| vec![syntax_mistake(error, is_json)])?;
    let mut decoder = Decoder::default();
    for document in &documents {
        decoder.document(document);
    }
    if decoder.errors.is_empty() { Ok(decoder.decoded) } else { Err(decoder.errors) }
}

/// Decodes the text of a file that is only looked at: whatever can be understood of it, and every mistake. What makes pods
/// ([`workload`]) stands for one of them.
pub(super) fn decode_each(text: &str, is_json: bool) -> (Decoded, Vec<DocumentError>) {
    let (documents, errors) =
        if is_json { document::read_json_each(text) } else { document::read_yaml_each(text) };
    let errors = errors.into_iter().map(|error| syntax_mistake(error, is_json)).collect();
    let mut decoder = Decoder { each: true, errors, ..Decoder::default() };
    for document in &documents {
        decoder.document(document);
    }
    (decoder.decoded, decoder.errors)
}

fn syntax_mistake(error: SyntaxError, is_json: bool) -> DocumentError {
    let SyntaxError { document, line, message } = error;
    let language = if is_json { "JSON" } else { "YAML" };
    let message = format!("not valid {language}: {message}; correct the syntax");
    DocumentError { document, place: Place { line, ..Place::default() }, message }
}

/// The kinds that are read, whose typed lists (`PodList`) are read as well.
const KINDS: [&str; 11] = [
    "Pod",
    "Namespace",
    "ServiceAccount",
    "Node",
    "Service",
    "EndpointSlice",
    "ServiceCIDR",
    "NetworkPolicy",
    "IdentityPolicy",
    "ClusterIdentityPolicy",
    "ConfigMap",
];

/// The kinds of ours.
const OWN_KINDS: [&str; 2] = ["IdentityPolicy", "ClusterIdentityPolicy"];
const NETWORK_POLICY: &str = "networking.k8s.io/v1";
const OWN: &str = "portcullis.dev/v1alpha1";

#[derive(Default)]
struct Decoder {
    /// Each object counts for itself, and what is not understood of a policy is narrowed.
    each: bool,
    decoded: Decoded,
    errors: Vec<DocumentError>,
    keys: BTreeSet<ObjectKey>,
    uids: BTreeSet<String>,
}

/// An object within a document: the document itself, or an item of a list.
#[derive(Clone, Copy)]
struct Item<'a> {
    document: &'a Document,
    node: &'a Node,
    path: &'a [Step],
    /// What the items of a typed list (`PodList`) are, as they need not say so themselves.
    inherited: Option<(&'a str, &'a str)>,
}

impl Decoder {
    fn document(&mut self, document: &Document) {
        self.item(Item { document, node: &document.root, path: &[], inherited: None });
    }

    fn item(&mut self, item: Item<'_>) {
        if let Err(mistakes) = self.try_item(item) {
            for Mistake { path, message } in mistakes {
                let path: Vec<_> = item.path.iter().cloned().chain(path).collect();
                let line = item.document.root.line_of(&path);
                let field = (!path.is_empty()).then(|| show_path(&path));
                let place = Place { object: name_item(item), line, field };
                self.errors.push(DocumentError { document: item.document.number, place, message });
            }
        }
    }

    fn try_item(&mut self, item: Item<'_>) -> Result<(), Vec<Mistake>> {
        let one = |mistake| vec![mistake];
        if !item.node.is_mapping() {
            return Err(one(Mistake::at(
                "",
                "not a Kubernetes object; each document must be a mapping with a kind",
            )));
        }
        let (api_version, kind) = type_of(item).map_err(one)?;
        match kind.strip_suffix("List") {
            Some("") => return self.list(item, None).map_err(one),
            Some(of) if KINDS.contains(&of) => return self.list(item, Some((api_version, of))).map_err(one),
            _ => {}
        }
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        match (api_version, kind) {
            ("v1", "Pod") => self.add::<core::Pod, model::Pod>(item, None),
            ("v1", "Namespace") => self.add::<core::Namespace, model::Namespace>(item, None),
            ("v1", "ServiceAccount") => self.add::<core::ServiceAccount, model::ServiceAccount>(item, None),
            ("v1", "Node") => self.add::<core::Node, model::Node>(item, None),
            ("v1", "Service") => self.add::<core::Service, model::Service>(item, None),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.add::<discovery::EndpointSlice, model::EndpointSlice>(item, None)
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.add::<networking::ServiceCIDR, model::ServiceCidr>(item, None)
            }
            // Others are configuration of somebody else.
            ("v1", "ConfigMap") if name_of(item.node) == Some(model::ClusterConfig::NAME) => {
                self.add::<core::ConfigMap, model::ClusterConfig>(item, None)
            }
            ("networking.k8s.io/v1", "NetworkPolicy") => self
                .add::<networking::NetworkPolicy, model::NetworkPolicy>(item, Some(narrow::network_policy)),
            ("portcullis.dev/v1alpha1", "IdentityPolicy") => {
                self.add::<api::IdentityPolicy, model::IdentityPolicy>(item, Some(narrow::identity_policy))
            }
            ("portcullis.dev/v1alpha1", "ClusterIdentityPolicy") => {
                let narrow = narrow::cluster_identity_policy;
                self.add::<api::ClusterIdentityPolicy, model::ClusterIdentityPolicy>(item, Some(narrow))
            }
            (_, "NetworkPolicy") if matches!(group, "networking.k8s.io" | "extensions") => {
                let message = format!("NetworkPolicy `{api_version}` is not known; write `{NETWORK_POLICY}`");
                self.policy_of_no_type(item, kind, message)
            }
            _ if group == api::GROUP && OWN_KINDS.contains(&kind) => {
                let message = format!(
                    "{kind} `{api_version}` is not known to this version; write `{OWN}`, or update Portcullis"
                );
                self.policy_of_no_type(item, kind, message)
            }
            _ if group == api::GROUP => Err(one(Mistake::at(
                "kind",
                format!(
                    "`{api_version}` {kind} is not known to this version; write `{OWN}` IdentityPolicy or \
                     ClusterIdentityPolicy, or update Portcullis"
                ),
            ))),
            // A policy in a group that does not exist is a slip, and would silently not be there.
            ("v1" | "", "NetworkPolicy" | "IdentityPolicy" | "ClusterIdentityPolicy") => {
                let right = if kind == "NetworkPolicy" { NETWORK_POLICY } else { OWN };
                let message = format!("a {kind} has the apiVersion `{right}`; write that");
                self.policy_of_no_type(item, kind, message)
            }
            _ if self.each && workload::is_workload(api_version, kind) => self.workload(item, kind),
            _ => {
                let name = metadata_name(item.node);
                let ignored = format!("{api_version} {kind}{}{name}", if name.is_empty() { "" } else { " " });
                tracing::debug!(object = ignored, "ignored an object of a kind that decides nothing here");
                self.decoded.ignored.push(ignored);
                Ok(())
            }
        }
    }

    fn list(&mut self, item: Item<'_>, inherited: Option<(&str, &str)>) -> Result<(), Mistake> {
        let items = item.node.get("items");
        let Some(elements) = items.and_then(Node::elements) else {
            // An empty list of the API has `null` here.
            return match items {
                Some(items) if items.is_null() => Ok(()),
                _ => Err(Mistake::at("items", "a list has its objects here, as a sequence; correct it")),
            };
        };
        for (index, node) in elements.iter().enumerate() {
            let path: Vec<_> = item
                .path
                .iter()
                .cloned()
                .chain([Step::Key("items".to_owned()), Step::Index(index)])
                .collect();
            self.item(Item { document: item.document, node, path: &path, inherited });
        }
        Ok(())
    }

    /// Adds an object. Policies say how they are narrowed, and are read strictly.
    fn add<Api, Trimmed>(&mut self, item: Item<'_>, narrow: Option<Narrow>) -> Result<(), Vec<Mistake>>
    where
        Api: DeserializeOwned,
        Trimmed: TryFrom<Api, Error = ConvertError> + Into<Object>,
    {
        let mut value = item.node.to_json();
        if let (Some((api_version, kind)), Value::Object(fields)) = (item.inherited, &mut value) {
            fields.entry("apiVersion").or_insert_with(|| api_version.into());
            fields.entry("kind").or_insert_with(|| kind.into());
        }
        let strictness = if narrow.is_some() { Strict } else { Lenient };
        if self.each && narrow.is_some() {
            let mut mistakes: Vec<_> = name_it(item, &mut value).into_iter().collect();
            let reading = narrow::read::<Api, Trimmed>(&mut value, strictness, narrow);
            if let Some(object) = reading.object {
                let fields = reading.unclear.iter().map(|unclear| (object.key(), show_path(&unclear.path)));
                self.decoded.narrowed.extend(fields);
                mistakes.extend(self.keep(item, object).err().into_iter().flatten());
            }
            mistakes.extend(reading.unclear.into_iter().map(narrowed_mistake));
            return if mistakes.is_empty() { Ok(()) } else { Err(mistakes) };
        }
        let object = typed::<Api>(&value, strictness)?;
        let object = Trimmed::try_from(object).map_err(|error| vec![convert_mistake(&error)])?;
        self.keep(item, object.into())
    }

    fn policy_of_no_type(&mut self, item: Item<'_>, kind: &str, message: String) -> Result<(), Vec<Mistake>> {
        match kind {
            "NetworkPolicy" => self.of_no_type::<networking::NetworkPolicy, model::NetworkPolicy>(
                item,
                (NETWORK_POLICY, kind),
                narrow::network_policy,
                message,
            ),
            "IdentityPolicy" => self.of_no_type::<api::IdentityPolicy, model::IdentityPolicy>(
                item,
                (OWN, kind),
                narrow::identity_policy,
                message,
            ),
            _ => self.of_no_type::<api::ClusterIdentityPolicy, model::ClusterIdentityPolicy>(
                item,
                (OWN, kind),
                narrow::cluster_identity_policy,
                message,
            ),
        }
    }

    /// A policy of a version or group that does not exist: who wrote it meant a policy, so where each object counts for
    /// itself it is one of which nothing is understood.
    fn of_no_type<Api, Trimmed>(
        &mut self,
        item: Item<'_>,
        (api_version, kind): (&str, &str),
        narrow: Narrow,
        mut message: String,
    ) -> Result<(), Vec<Mistake>>
    where
        Api: DeserializeOwned,
        Trimmed: TryFrom<Api, Error = ConvertError> + Into<Object>,
    {
        if self.each {
            let mut value = item.node.to_json();
            name_it(item, &mut value);
            (value["apiVersion"], value["kind"]) = (api_version.into(), kind.into());
            if let Narrowed::To(follows) = narrow(&mut value, &[]) {
                message = format!("{message}; until then {follows}");
            }
            if let Some(object) = narrow::read::<Api, Trimmed>(&mut value, Strict, Some(narrow)).object {
                self.decoded.narrowed.push((object.key(), "spec".to_owned()));
                self.keep(item, object)?;
            }
        }
        Err(vec![Mistake::at("apiVersion", message)])
    }

    /// Adds a pod for what makes pods like it.
    fn workload(&mut self, item: Item<'_>, kind: &str) -> Result<(), Vec<Mistake>> {
        let prefixed = |mut mistake: Mistake| {
            mistake.path = workload::written_path(kind, mistake.path);
            mistake
        };
        let read = |pod: Value| {
            let pod = typed::<core::Pod>(&pod, Lenient)?;
            model::Pod::try_from(pod).map_err(|error| vec![convert_mistake(&error)])
        };
        let pod = workload::pod(kind, &item.node.to_json())
            .map_err(|mistake| vec![mistake])
            .and_then(|pod| read(pod).map_err(|mistakes| mistakes.into_iter().map(prefixed).collect()))?;
        self.keep(item, Object::Pod(pod))
    }

    fn keep(&mut self, item: Item<'_>, object: Object) -> Result<(), Vec<Mistake>> {
        let key = object.key();
        if !self.keys.insert(key.clone()) {
            let message = format!("{key} is already defined in this file; remove one of the two");
            return Err(vec![Mistake::at("metadata.name", message)]);
        }
        if let Object::Pod(pod) = &object
            && !self.uids.insert(pod.uid.clone())
        {
            let message =
                format!("another pod of this file has the uid `{}` as well; remove or change it", pod.uid);
            return Err(vec![Mistake::at("metadata.uid", message)]);
        }
        if self.each {
            let written = Written { document: item.document.number, key, node: item.node.clone() };
            self.decoded.written.push(written);
        }
        self.decoded.objects.push(object);
        Ok(())
    }
}

/// Gives a policy without a name one, so that it does not vanish.
fn name_it(item: Item<'_>, value: &mut Value) -> Option<Mistake> {
    if name_of(item.node).is_some_and(|name| !name.is_empty()) {
        return None;
    }
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    value["metadata"]["name"] = format!("(document {})", item.document.number).into();
    Some(Mistake::at("metadata.name", "is missing; add it"))
}

/// What is wrong with a part of an object that is used without it.
fn narrowed_mistake(Unclear { path, what, follows }: Unclear) -> Mistake {
    let follows = follows.unwrap_or("the object is not used");
    Mistake { path, message: format!("{what}: {follows}; correct it") }
}

/// apiVersion and kind.
fn type_of<'a>(item: Item<'a>) -> Result<(&'a str, &'a str), Mistake> {
    let read = |field: &str, inherited: Option<&'a str>| match item.node.get(field) {
        Some(node) => node
            .as_str()
            .filter(|text| !text.is_empty())
            .ok_or_else(|| Mistake::at(field, "must be a text that is not empty; correct it")),
        None => inherited.ok_or_else(|| {
            Mistake::at(field, "is missing; every object says its apiVersion and kind: add it")
        }),
    };
    let kind = read("kind", item.inherited.map(|(_, kind)| kind))?;
    Ok((read("apiVersion", item.inherited.map(|(version, _)| version))?, kind))
}

fn name_of(node: &Node) -> Option<&str> {
    node.get("metadata")?.get("name")?.as_str()
}

/// `shop/db`, or as much of it as the object says.
fn metadata_name(node: &Node) -> String {
    let field = |field: &str| node.get("metadata").and_then(|m| m.get(field)).and_then(Node::as_str);
    match (field("namespace"), field("name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (_, name) => name.unwrap_or_default().to_owned(),
    }
}

fn name_item(item: Item<'_>) -> Option<String> {
    let kind = item.node.get("kind").and_then(Node::as_str).or(item.inherited.map(|(_, kind)| kind))?;
    let name = metadata_name(item.node);
    Some(if name.is_empty() { kind.to_owned() } else { format!("{kind} {name}") })
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
