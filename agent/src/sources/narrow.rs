//! What becomes of a policy of which a part is not understood: that part is put into a form that says nothing, and the
//! compiler knows what to make of those. An allow or Accept matches nothing by it; a Deny or Pass denies its peer on every
//! port, or everyone if the peer is what is unclear; an unclear subject is every pod of the namespace, or of the cluster. So
//! access is never wider than it was meant to be.
//!
//! This is about what a newer API server or a newer definition of our kinds may send, and about folders of manifests that
//! are looked at and not enforced. The schema of the API server refuses most of the rest, but nothing here relies on that.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::typed::{Mistake, Step, Strictness, convert_mistake, typed};
use crate::model::{ConvertError, Object};

/// Narrows an object at a path.
pub(super) type Narrow = fn(&mut Value, &[Step]) -> Narrowed;

/// How many parts of an object are narrowed before all of it counts as not understood.
const MOST_PARTS: usize = 64;

/// What could be made of an object.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The trimmed object, with the parts that are not understood narrowed; `None` if nothing of it is understood.
    pub object: Option<Object>,
    /// What is not understood.
    pub unclear: Vec<Unclear>,
}

/// A part that is not understood. What says nothing about the meaning of the object is none.
#[derive(Debug)]
pub(super) struct Unclear {
    /// The field; empty for the whole object.
    pub path: Vec<Step>,
    /// What is wrong with it.
    pub what: String,
    /// What follows, where the object is used without it.
    pub follows: Option<&'static str>,
}

/// Reads an object, and narrows what is not understood of it. Nothing is narrowed of a kind that has no way to.
pub(super) fn read<Api, Trimmed>(value: &mut Value, strictness: Strictness, narrow: Option<Narrow>) -> Reading
where
    Api: DeserializeOwned,
    Trimmed: TryFrom<Api, Error = ConvertError> + Into<Object>,
{
    let read = |value: &Value| {
        let object = typed::<Api>(value, strictness)?;
        Trimmed::try_from(object).map_err(|error| vec![convert_mistake(&error)])
    };
    let mut reading = Reading::default();
    for _ in 0..MOST_PARTS {
        let mistakes = match read(value) {
            Ok(object) => {
                reading.object = Some(object.into());
                return reading;
            }
            Err(mistakes) => mistakes,
        };
        for Mistake { path, message } in mistakes {
            let what = message.split("; ").next().unwrap_or_default().to_owned();
            match narrow.map_or(Narrowed::Not, |narrow| narrow(value, &path)) {
                Narrowed::To(follows) => {
                    reading.unclear.push(Unclear { path, what, follows: Some(follows) });
                }
                Narrowed::Passed => {}
                Narrowed::Not => {
                    reading.unclear.push(Unclear { path, what, follows: None });
                    return reading;
                }
            }
        }
    }
    // A policy must not vanish because too much of it is unclear.
    if let Some(narrow) = narrow
        && let Narrowed::To(follows) = narrow(value, &[])
    {
        let what = format!("more than {MOST_PARTS} parts are not understood");
        reading.unclear.push(Unclear { path: Vec::new(), what, follows: Some(follows) });
        reading.object = read(value).ok().map(Into::into);
    }
    reading
}

/// What was done about a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Narrowed {
    /// It is narrowed, with this consequence.
    To(&'static str),
    /// It says nothing about what the policy permits and is passed over.
    Passed,
    /// Nothing can be done.
    Not,
}
use Narrowed::{Not, Passed, To};

/// A step that can be matched.
enum Seg<'a> {
    K(&'a str),
    I(usize),
}
use Seg::{I, K};

fn segments(path: &[Step]) -> Vec<Seg<'_>> {
    let segment = |step| match step {
        &Step::Index(index) => I(index),
        Step::Key(key) => K(key.as_str()),
    };
    path.iter().map(segment).collect()
}

/// The field that holds the peers of a rule.
fn side(direction: &str) -> &'static str {
    if direction == "ingress" { "from" } else { "to" }
}

/// Takes a field of the metadata away. Without the annotation that makes it milder, a policy is enforced.
fn without_metadata(object: &mut Value, field: &str) -> Narrowed {
    match field {
        "name" | "namespace" => Not,
        _ => object["metadata"]
            .as_object_mut()
            .and_then(|metadata| metadata.remove(field))
            .map_or(Not, |_| Passed),
    }
}

/// Narrows a NetworkPolicy at a path.
pub(super) fn network_policy(object: &mut Value, path: &[Step]) -> Narrowed {
    if !object.is_object() {
        return Not;
    }
    let path = segments(path);
    match path.as_slice() {
        [K("metadata"), K(field), ..] => return without_metadata(object, field),
        [K("spec"), _, ..] if object["spec"].is_object() => {}
        _ => {
            object["spec"] = json!({"podSelector": unclear_selector(), "policyTypes": ["Ingress", "Egress"]});
            return To("the policy isolates every pod of its namespace and allows nothing");
        }
    }
    let spec = &mut object["spec"];
    match path.get(1..).unwrap_or_default() {
        [K(d @ ("ingress" | "egress")), I(i), K(peers @ ("from" | "to")), I(j), ..] => {
            spec[d][i][peers][j] = json!({});
            To("this peer matches nothing")
        }
        [K(d @ ("ingress" | "egress")), I(i), K("ports"), I(j), ..] => {
            spec[d][i]["ports"][j] = json!({"protocol": "not understood"});
            To("this port matches nothing")
        }
        [K(d @ ("ingress" | "egress")), I(i), ..] => {
            spec[d][i] = json!({side(d): [{}]});
            To("the rule matches nothing")
        }
        [K(d @ ("ingress" | "egress")), ..] => {
            spec[d] = json!([{side(d): [{}]}]);
            To("the policy allows nothing in this direction")
        }
        [K("podSelector"), ..] => {
            spec["podSelector"] = unclear_selector();
            To("the policy isolates every pod of its namespace and allows nothing")
        }
        [K("policyTypes"), ..] => {
            spec["policyTypes"] = json!(["not understood"]);
            To("the policy isolates its pods in both directions")
        }
        [K(field), ..] => {
            if let Some(spec) = spec.as_object_mut() {
                spec.remove(*field);
            }
            for direction in ["ingress", "egress"] {
                for rule in spec[direction].as_array_mut().into_iter().flatten() {
                    *rule = json!({side(direction): [{}]});
                }
                without_null(spec, direction);
            }
            To("the policy isolates its pods and allows nothing")
        }
        _ => Not,
    }
}

fn unclear_selector() -> Value {
    json!({"matchExpressions": [{"key": "unclear", "operator": "not understood"}]})
}

/// Indexing makes a field where there was none.
fn without_null(value: &mut Value, field: &str) {
    if value[field].is_null()
        && let Some(fields) = value.as_object_mut()
    {
        fields.remove(field);
    }
}

/// Narrows an IdentityPolicy at a path.
pub(super) fn identity_policy(object: &mut Value, path: &[Step]) -> Narrowed {
    if !object.is_object() {
        return Not;
    }
    let path = segments(path);
    match path.as_slice() {
        [K("metadata"), K(field), ..] => return without_metadata(object, field),
        [K("spec"), ..] if object["spec"].is_object() => {}
        _ => {
            object["spec"] = closed();
            return To("every pod of the namespace is closed");
        }
    }
    let spec = &mut object["spec"];
    match path.get(1..).unwrap_or_default() {
        // Of the specification itself only the subject can be missing.
        [] if spec.get("subject").is_none() => unclear_subject(spec),
        [K("subject"), ..] => unclear_subject(spec),
        [K("mode"), ..] => {
            remove(spec, "mode");
            To("the policy is enforced")
        }
        [K(d @ ("ingress" | "egress")), rest @ ..] => section(&mut spec[d], side(d), rest),
        [K(field), ..] => {
            remove(spec, field);
            for direction in ["ingress", "egress"] {
                if spec.get(direction).is_some() {
                    unclear_section(&mut spec[direction], side(direction));
                }
            }
            To(
                "in the directions that it names, the policy isolates its pods and accepts nothing, and what it \
                denies is denied on every port",
            )
        }
        _ => {
            *spec = closed();
            To("every pod of the namespace is closed")
        }
    }
}

/// Narrows a ClusterIdentityPolicy at a path.
///
/// It has no isolation that could close what an unclear part may have meant to close: a Deny of everyone does.
pub(super) fn cluster_identity_policy(object: &mut Value, path: &[Step]) -> Narrowed {
    if !object.is_object() {
        return Not;
    }
    let path = segments(path);
    match path.as_slice() {
        [K("metadata"), K(field), ..] => return without_metadata(object, field),
        [K("spec"), ..] if object["spec"].is_object() => {}
        _ => {
            object["spec"] = closed_cluster();
            return To("every pod of the cluster is closed");
        }
    }
    let spec = &mut object["spec"];
    match path.get(1..).unwrap_or_default() {
        // Of the specification itself only the subject can be missing.
        [] if spec.get("subject").is_none() => unclear_cluster_subject(spec),
        [K("subject"), ..] => unclear_cluster_subject(spec),
        [K("mode"), ..] => {
            remove(spec, "mode");
            To("the policy is enforced")
        }
        [K(field @ ("tier" | "priority")), ..] => {
            remove(spec, field);
            To("the policy comes first and accepts nothing, and what it would pass on it denies")
        }
        [K(d @ ("ingress" | "egress")), K("rules"), I(i), rest @ ..] => {
            rule(&mut spec[d]["rules"][i], side(d), rest)
        }
        [K(d @ ("ingress" | "egress")), ..] => {
            spec[d] = denied_section(side(d));
            To("everything is denied in this direction")
        }
        [K(field), ..] => {
            remove(spec, field);
            for direction in ["ingress", "egress"] {
                if spec.get(direction).is_some_and(|section| !section.is_null()) {
                    spec[direction] = denied_section(side(direction));
                }
            }
            To("everything is denied in the directions that it names")
        }
        _ => {
            *spec = closed_cluster();
            To("every pod of the cluster is closed")
        }
    }
}

fn unclear_cluster_subject(spec: &mut Value) -> Narrowed {
    spec["subject"] = json!({});
    To(
        "the policy is about every pod of the cluster and accepts nothing, and what it would pass on it denies",
    )
}

/// A specification of a ClusterIdentityPolicy of which nothing is understood, also not when it has its say.
fn closed_cluster() -> Value {
    json!({"subject": {"namespaces": {}}, "ingress": denied_section("from"), "egress": denied_section("to")})
}

fn denied_section(side: &str) -> Value {
    json!({"rules": [{"action": "Deny", side: [{}]}]})
}

fn remove(value: &mut Value, field: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
}

fn unclear_subject(spec: &mut Value) -> Narrowed {
    spec["subject"] = json!({"serviceAccounts": {"names": []}});
    To("the policy is about every account of its namespace and accepts nothing")
}

/// A specification of which nothing is understood.
fn closed() -> Value {
    json!({"subject": {}, "ingress": closed_section("from"), "egress": closed_section("to")})
}

fn closed_section(side: &str) -> Value {
    json!({"isolate": true, "rules": [{"action": "Deny", side: [{}]}]})
}

fn section(section: &mut Value, side: &'static str, path: &[Seg<'_>]) -> Narrowed {
    if !section.is_object() {
        *section = closed_section(side);
        return To("everything is denied in this direction");
    }
    match path {
        [K("isolate"), ..] => {
            section["isolate"] = true.into();
            To("the policy isolates its pods in this direction")
        }
        [K("rules"), I(i), rest @ ..] => rule(&mut section["rules"][i], side, rest),
        [K("rules"), ..] => {
            *section = closed_section(side);
            To("everything is denied in this direction")
        }
        [K(field), ..] => {
            remove(section, field);
            unclear_section(section, side);
            To(
                "in this direction the policy isolates its pods and accepts nothing, and what it denies is denied on \
                every port",
            )
        }
        _ => {
            *section = closed_section(side);
            To("everything is denied in this direction")
        }
    }
}

fn unclear_section(section: &mut Value, side: &'static str) {
    if !section.is_object() || !(section["rules"].is_array() || section["rules"].is_null()) {
        *section = closed_section(side);
        return;
    }
    section["isolate"] = true.into();
    for rule in section["rules"].as_array_mut().into_iter().flatten() {
        unclear_rule(rule, side);
    }
    without_null(section, "rules");
}

fn rule(rule: &mut Value, side: &'static str, path: &[Seg<'_>]) -> Narrowed {
    match path {
        [K(peers), I(j), ..] if *peers == side => {
            rule[peers][j] = json!({});
            To("an Accept matches nobody by this peer, anything else denies everybody")
        }
        [K("protocols"), I(j), ..] => {
            rule["protocols"][j] = json!({});
            To("an Accept matches nothing by this protocol, anything else denies every protocol and port")
        }
        [K("name"), ..] => {
            remove(rule, "name");
            Passed
        }
        _ => {
            unclear_rule(rule, side);
            To("an Accept matches nothing, anything else denies its peer on every port")
        }
    }
}

/// What is left of a rule whose meaning as a whole is unclear.
fn unclear_rule(rule: &mut Value, side: &'static str) {
    let mut left = Map::new();
    let action = if rule["action"] == "Accept" { "Accept" } else { "Deny" };
    left.insert("action".to_owned(), action.into());
    let peers = if rule[side].is_array() { rule[side].take() } else { json!([{}]) };
    left.insert(side.to_owned(), peers);
    left.insert("protocols".to_owned(), json!([{}]));
    if rule["name"].is_string() {
        left.insert("name".to_owned(), rule["name"].take());
    }
    *rule = Value::Object(left);
}
