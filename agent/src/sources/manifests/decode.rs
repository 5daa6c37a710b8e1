//! Documents to objects.
//!
//! A file is decoded as a whole: either every document of it is understood, or every mistake in it is reported and none
//! of its objects is used. Policies are read strictly, because a misspelt field would change what they permit.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::document::{self, Document, Node, SyntaxError};
use crate::api;
use crate::model::{self, ConvertError, Object, ObjectKey};
use crate::sources::typed::Strictness::{Lenient, Strict};
use crate::sources::typed::{Mistake, Step, Strictness, convert_mistake, show_path, typed};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// Its objects.
    pub objects: Vec<Object>,
    /// Objects of kinds that are none of our business, `apps/v1 Deployment shop/web`.
    pub ignored: Vec<String>,
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
    let documents = documents.map_err(|SyntaxError { document, line, message }| {
        let language = if is_json { "JSON" } else { "YAML" };
        let message = format!("not valid {language}: {message}; correct the syntax");
        vec![DocumentError { document, place: Place { line, ..Place::default() }, message }]
    })?;
    let mut decoder = Decoder::default();
    for document in &documents {
        decoder.document(document);
    }
    if decoder.errors.is_empty() { Ok(decoder.decoded) } else { Err(decoder.errors) }
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

/// Those of them that are our own.
const OWN_KINDS: [&str; 2] = ["IdentityPolicy", "ClusterIdentityPolicy"];

#[derive(Default)]
struct Decoder {
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
            ("v1", "Pod") => self.add::<core::Pod, model::Pod>(item, Lenient),
            ("v1", "Namespace") => self.add::<core::Namespace, model::Namespace>(item, Lenient),
            ("v1", "ServiceAccount") => {
                self.add::<core::ServiceAccount, model::ServiceAccount>(item, Lenient)
            }
            ("v1", "Node") => self.add::<core::Node, model::Node>(item, Lenient),
            ("v1", "Service") => self.add::<core::Service, model::Service>(item, Lenient),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.add::<discovery::EndpointSlice, model::EndpointSlice>(item, Lenient)
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.add::<networking::ServiceCIDR, model::ServiceCidr>(item, Lenient)
            }
            // Others are configuration of somebody else.
            ("v1", "ConfigMap") if name_of(item.node) == Some(model::ClusterConfig::NAME) => {
                self.add::<core::ConfigMap, model::ClusterConfig>(item, Lenient)
            }
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                self.add::<networking::NetworkPolicy, model::NetworkPolicy>(item, Strict)
            }
            ("portcullis.dev/v1alpha1", "IdentityPolicy") => {
                self.add::<api::IdentityPolicy, model::IdentityPolicy>(item, Strict)
            }
            ("portcullis.dev/v1alpha1", "ClusterIdentityPolicy") => {
                self.add::<api::ClusterIdentityPolicy, model::ClusterIdentityPolicy>(item, Strict)
            }
            (_, "NetworkPolicy") if matches!(group, "networking.k8s.io" | "extensions") => {
                Err(one(Mistake::at(
                    "apiVersion",
                    format!("NetworkPolicy `{api_version}` is not known; write `networking.k8s.io/v1`"),
                )))
            }
            _ if group == api::GROUP => Err(one(Mistake::at(
                if OWN_KINDS.contains(&kind) { "apiVersion" } else { "kind" },
                format!(
                    "`{api_version}` {kind} is not known to this version; write `{}/v1alpha1` {}, or update \
                     Portcullis",
                    api::GROUP,
                    if OWN_KINDS.contains(&kind) { kind } else { "IdentityPolicy or ClusterIdentityPolicy" }
                ),
            ))),
            // A policy in a group that does not exist is a slip, and would silently not be there.
            ("v1" | "", "NetworkPolicy" | "IdentityPolicy" | "ClusterIdentityPolicy") => {
                let right =
                    if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "portcullis.dev/v1alpha1" };
                Err(one(Mistake::at(
                    "apiVersion",
                    format!("a {kind} has the apiVersion `{right}`; write that"),
                )))
            }
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

    fn add<Api, Trimmed>(&mut self, item: Item<'_>, strictness: Strictness) -> Result<(), Vec<Mistake>>
    where
        Api: DeserializeOwned,
        Trimmed: TryFrom<Api, Error = ConvertError> + Into<Object>,
    {
        let mut value = item.node.to_json();
        if let (Some((api_version, kind)), Value::Object(fields)) = (item.inherited, &mut value) {
            fields.entry("apiVersion").or_insert_with(|| api_version.into());
            fields.entry("kind").or_insert_with(|| kind.into());
        }
        let object = typed::<Api>(&value, strictness)?;
        let object: Object = Trimmed::try_from(object).map_err(|error| vec![convert_mistake(&error)])?.into();
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
        self.decoded.objects.push(object);
        Ok(())
    }
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
