//! The objects of the scripted API server, and their history.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Path, plural, kind and apiVersion of what it has.
pub const KINDS: &[(&str, &str, &str, &str)] = &[
    ("/api/v1", "namespaces", "Namespace", "v1"),
    ("/api/v1", "serviceaccounts", "ServiceAccount", "v1"),
    ("/api/v1", "nodes", "Node", "v1"),
    ("/api/v1", "pods", "Pod", "v1"),
    ("/api/v1", "services", "Service", "v1"),
    ("/apis/discovery.k8s.io/v1", "endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
    ("/apis/networking.k8s.io/v1", "servicecidrs", "ServiceCIDR", "networking.k8s.io/v1"),
    ("/api/v1/namespaces/portcullis-system", "configmaps", "ConfigMap", "v1"),
    ("/apis/networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", "networking.k8s.io/v1"),
    ("/apis/portcullis.dev/v1alpha1", "identitypolicies", "IdentityPolicy", "portcullis.dev/v1alpha1"),
    (
        "/apis/portcullis.dev/v1alpha1",
        "clusteridentitypolicies",
        "ClusterIdentityPolicy",
        "portcullis.dev/v1alpha1",
    ),
];

/// An event of the history.
#[derive(Clone, Debug)]
pub struct Event {
    /// The version of the store that it made.
    pub version: u64,
    /// The kind.
    pub plural: &'static str,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub what: &'static str,
    /// The object, with its version.
    pub object: Value,
}

impl Event {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        key(&self.object)
    }

    /// The UID of the object.
    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }
}

/// Objects and history.
#[derive(Debug)]
pub struct Store {
    /// Rises with each change.
    pub version: u64,
    /// By plural, then `namespace/name`.
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// What happened since it was forgotten last.
    pub history: Vec<Event>,
    /// Versions up to this one have no history any more.
    pub compacted: u64,
    /// Kinds that are not there.
    pub missing: BTreeSet<&'static str>,
    /// Kinds that may not be read.
    pub forbidden: BTreeSet<&'static str>,
    /// Lists that go on: their objects by continue token.
    pages: BTreeMap<String, (Vec<Value>, u64)>,
}

/// `namespace/name`.
pub fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

impl Default for Store {
    fn default() -> Self {
        Self {
            version: 1,
            objects: KINDS.iter().map(|(_, plural, ..)| (*plural, BTreeMap::new())).collect(),
            history: Vec::new(),
            compacted: 0,
            missing: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            pages: BTreeMap::new(),
        }
    }
}

impl Store {
    /// The kind's own plural, that lives for ever.
    pub fn plural(plural: &str) -> &'static str {
        KINDS.iter().find(|(_, known, ..)| *known == plural).unwrap().1
    }

    /// An object.
    pub fn get(&self, plural: &str, key: &str) -> Option<&Value> {
        self.objects[plural].get(key)
    }

    fn note(&mut self, plural: &'static str, what: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push(Event { version: self.version, plural, what, object: object.clone() });
        object
    }

    /// Makes or changes an object; returns the version after that.
    pub fn put(&mut self, plural: &str, object: Value) -> u64 {
        let plural = Self::plural(plural);
        let key = key(&object);
        let what = if self.objects[plural].contains_key(&key) { "MODIFIED" } else { "ADDED" };
        let object = self.note(plural, what, object);
        self.objects.entry(plural).or_default().insert(key, object);
        self.version
    }

    /// Removes an object, if it is there; returns the version after that.
    pub fn remove(&mut self, plural: &str, key: &str) -> u64 {
        let plural = Self::plural(plural);
        if let Some(object) = self.objects.entry(plural).or_default().remove(key) {
            self.note(plural, "DELETED", object);
        }
        self.version
    }

    /// Forgets the history.
    pub fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
        self.pages.clear();
    }

    /// A page of a list: the objects, the token of the next page, the version of the list. `None`: the token is too old.
    pub fn page(
        &mut self,
        plural: &str,
        limit: usize,
        token: Option<&str>,
    ) -> Option<(Vec<Value>, Option<String>, u64)> {
        let (mut objects, version) = match token {
            Some(token) => self.pages.get(token)?.clone(),
            None => (self.objects[plural].values().cloned().collect(), self.version),
        };
        let rest = objects.split_off(limit.min(objects.len()));
        let next = (!rest.is_empty()).then(|| {
            let token = format!("{plural}-{version}-{}", rest.len());
            self.pages.insert(token.clone(), (rest, version));
            token
        });
        Some((objects, next, version))
    }
}
