//! Values to typed objects, with every mistake and the field in which it is.
//!
//! Both sources read with this. Policies are read strictly: a field that is not known would change what they permit.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::ConvertError;

/// A step of the way to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a sequence.
    Index(usize),
}

/// What is wrong with an object: the way to the field from the object's top, and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The field.
    pub path: Vec<Step>,
    /// What is wrong and what to do.
    pub message: String,
}

impl Mistake {
    /// A mistake in the field with a path as [`show_path`] writes it.
    pub fn at(path: &str, message: impl Into<String>) -> Self {
        Self { path: parse_path(path), message: message.into() }
    }
}

/// What becomes of fields that are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strictness {
    /// They are passed over.
    Lenient,
    /// They are mistakes.
    Strict,
}

/// Reads a value as a type. The status of a policy is passed over: it is what others found out about it, may be newer
/// than we are, and decides nothing.
pub(super) fn typed<T: DeserializeOwned>(value: &Value, strictness: Strictness) -> Result<T, Vec<Mistake>> {
    if strictness == Strictness::Strict && value.get("status").is_some() {
        let mut bare = value.clone();
        if let Value::Object(fields) = &mut bare {
            fields.remove("status");
        }
        return typed(&bare, strictness);
    }
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = Vec::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(deserializer, |path| {
        let path = ignored_steps(&path);
        if strictness == Strictness::Strict && !is_about_the_object(&path) {
            unknown.push(path);
        }
    });
    let object = result.map_err(|error: serde_json::Error| {
        let path = track.path().iter().filter_map(step_of).collect();
        vec![Mistake { path, message: format!("{error}; correct it") }]
    })?;
    if unknown.is_empty() {
        return Ok(object);
    }
    let mistake = |path: Vec<Step>| Mistake {
        path,
        message:
            "unknown field; a policy is not used without a part that is not understood: correct the name or \
                  remove the field"
                .to_owned(),
    };
    Err(unknown.into_iter().map(mistake).collect())
}

/// Fields that do not specify anything: the type, which is known by now, and the status, which is what others found out
/// about the object and may be newer than we are.
fn is_about_the_object(path: &[Step]) -> bool {
    matches!(path.first(), Some(Step::Key(key)) if matches!(key.as_str(), "apiVersion" | "kind" | "status"))
}

fn step_of(segment: &serde_path_to_error::Segment) -> Option<Step> {
    match segment {
        serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
        serde_path_to_error::Segment::Map { key } => Some(Step::Key(key.clone())),
        serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
    }
}

fn ignored_steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(Step::Index(*index))),
        Path::Map { parent, key } => (parent, Some(Step::Key(key.clone()))),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            (parent, None)
        }
    };
    let mut steps = ignored_steps(parent);
    steps.extend(step);
    steps
}

/// A conversion's error as a mistake.
pub(super) fn convert_mistake(error: &ConvertError) -> Mistake {
    let message = match error {
        ConvertError::Missing { .. } => "is missing; add it".to_owned(),
        ConvertError::Invalid { value, expected, .. } => format!("`{value}` is not {expected}; correct it"),
    };
    Mistake::at(error.field(), message)
}

/// `spec.podIPs[0].ip`.
pub(super) fn show_path(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text.extend(["[", &index.to_string(), "]"]),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text += key;
            }
        }
    }
    text
}

/// The opposite of [`show_path`], for paths of our own making.
pub(super) fn parse_path(path: &str) -> Vec<Step> {
    let parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_or_else(|_| Step::Key(part.to_owned()), Step::Index)).collect()
}
