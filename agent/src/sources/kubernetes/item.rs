//! An object as it comes from the API: decoded and trimmed at once, so that no full object lives longer than its own
//! decoding; and never an error, because one object that cannot be understood must not end the watch of its kind.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::DynamicResourceScope;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::kinds::Kind;
use crate::model::Object;
use crate::sources::narrow::{self, Unclear};
use crate::sources::typed::show_path;

/// An object of a kind.
#[derive(Clone)]
pub(super) struct Item<K> {
    /// Name, namespace, UID and version; nothing else.
    metadata: ObjectMeta,
    /// What could be made of it.
    pub decoded: Decoded,
    kind: PhantomData<K>,
}

/// What could be made of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Decoded {
    /// The trimmed object; `None` if nothing of it is understood.
    pub object: Option<Object>,
    /// What is not understood and what follows.
    pub problems: Vec<String>,
}

impl<K> Item<K> {
    /// What it is known by.
    pub fn id(&self) -> Id {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Id {
            namespace: text(&self.metadata.namespace),
            name: text(&self.metadata.name),
            uid: text(&self.metadata.uid),
            version: self.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()),
        }
    }
}

/// What an object is known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Id {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// The resource version, if it is a number: those of one kind can be compared, by the conventions of the API.
    pub version: Option<u64>,
}

impl<K> fmt::Debug for Item<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item").field("id", &self.id()).field("decoded", &self.decoded).finish_non_exhaustive()
    }
}

impl<K: Kind> Resource for Item<K> {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::ABOUT.kind.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::ABOUT.group.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::ABOUT.version.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::ABOUT.plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de, K: Kind> Deserialize<'de> for Item<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Fields { top: true }.deserialize(deserializer)?;
        let text = |field: &str| {
            value.get("metadata").and_then(|metadata| metadata.get(field)?.as_str()).map(str::to_owned)
        };
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, decoded: decode::<K>(&mut value), kind: PhantomData })
    }
}

/// Reads an object, and narrows what is not understood of it.
fn decode<K: Kind>(value: &mut Value) -> Decoded {
    let about = K::ABOUT;
    if let Value::Object(fields) = &mut *value {
        // Items of a list do not say what they are.
        fields.entry("apiVersion").or_insert_with(|| about.api_version().into());
        fields.entry("kind").or_insert_with(|| about.kind.into());
    }
    let reading = narrow::read::<K::Api, K::Trimmed>(value, about.strictness, about.narrow);
    let problem = |Unclear { path, what, follows }: &Unclear| {
        let field = if path.is_empty() && follows.is_some() {
            String::new()
        } else {
            format!("field `{}`: ", show_path(path))
        };
        let follows = follows.map_or_else(String::new, |follows| format!("; {follows}"));
        format!("{field}{what}{follows}")
    };
    Decoded { problems: reading.unclear.iter().map(problem).collect(), object: reading.object }
}

/// Reads an object without what the server keeps about the managers of its fields, often more than the rest: that is not
/// even allocated.
struct Fields {
    /// The object itself; else its metadata.
    top: bool,
}

impl<'de> DeserializeSeed<'de> for Fields {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of the API")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = match key.as_str() {
                "metadata" if self.top => map.next_value_seed(Self { top: false })?,
                "managedFields" if !self.top => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => map.next_value::<Value>()?,
            };
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
#[path = "item_tests.rs"]
mod tests;
