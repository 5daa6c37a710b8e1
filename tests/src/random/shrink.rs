//! Makes a world that shows a difference as small as it gets while it still shows it: objects go first, then parts of
//! those that are left. Greedy, and without knowledge of what the parts mean.

use portcullis::model::{Labels, Object, World};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::changes::Change;
use super::objects;

/// The smallest world that is found by taking things away one at a time for which `fails` still holds. It holds for the
/// given one.
pub fn shrink(world: &World, mut fails: impl FnMut(&World) -> bool) -> World {
    let mut left = objects::of(world);
    loop {
        let before = left.len();
        let mut changed = false;
        let mut at = 0;
        while at < left.len() {
            let mut fewer = left.clone();
            fewer.remove(at);
            if stands(&fewer) && fails(&objects::world(fewer.clone(), world)) {
                left = fewer;
            } else {
                at += 1;
            }
        }
        for at in 0..left.len() {
            while let Some(smaller) = simpler(&left[at]).into_iter().find(|object| {
                let mut smaller = left.clone();
                smaller[at] = object.clone();
                fails(&objects::world(smaller, world))
            }) {
                left[at] = smaller;
                changed = true;
            }
        }
        if left.len() == before && !changed {
            return objects::world(left, world);
        }
    }
}

/// The shortest series that is found by leaving changes out for which `fails` still holds.
pub fn shrink_changes(changes: &[Change], mut fails: impl FnMut(&[Change]) -> bool) -> Vec<Change> {
    let mut left = changes.to_vec();
    let mut at = left.len();
    while at > 0 {
        at -= 1;
        let mut fewer = left.clone();
        fewer.remove(at);
        if fails(&fewer) {
            left = fewer;
        }
    }
    left
}

/// Whether every pod has its namespace and its account: without them it is another question.
fn stands(objects: &[Object]) -> bool {
    let has = |wanted: &dyn Fn(&Object) -> bool| objects.iter().any(wanted);
    objects.iter().all(|object| match object {
        Object::Pod(pod) => {
            has(&|other| matches!(other, Object::Namespace(found) if found.name == pod.namespace))
                && has(&|other| {
                    matches!(other, Object::ServiceAccount(found)
                        if found.namespace == pod.namespace && found.name == pod.service_account)
                })
        }
        _ => true,
    })
}

/// The same object with one part less, for every part that it can do without.
fn simpler(object: &Object) -> Vec<Object> {
    match object {
        Object::NetworkPolicy(policy) => {
            let specs = without_a_part(&policy.spec).into_iter();
            let mut found: Vec<_> = specs.map(|spec| (spec, policy.mode.clone())).collect();
            if policy.mode.is_some() {
                found.push((policy.spec.clone(), None));
            }
            let with = |(spec, mode)| {
                let mut policy = policy.clone();
                (policy.spec, policy.mode) = (spec, mode);
                Object::NetworkPolicy(policy)
            };
            found.into_iter().map(with).collect()
        }
        Object::IdentityPolicy(policy) => {
            let with = |spec| {
                let mut policy = policy.clone();
                policy.spec = spec;
                Object::IdentityPolicy(policy)
            };
            without_a_part(&policy.spec).into_iter().map(with).collect()
        }
        Object::ClusterIdentityPolicy(policy) => {
            let with = |spec| {
                let mut policy = policy.clone();
                policy.spec = spec;
                Object::ClusterIdentityPolicy(policy)
            };
            without_a_part(&policy.spec).into_iter().map(with).collect()
        }
        Object::Pod(pod) => {
            let mut found = with_fewer_labels(&pod.labels, |labels| {
                let mut pod = pod.clone();
                pod.labels = labels;
                Object::Pod(pod)
            });
            for at in 0..pod.named_ports.len() {
                let mut pod = pod.clone();
                pod.named_ports.remove(at);
                found.push(Object::Pod(pod));
            }
            for at in 0..pod.addresses.len() {
                let mut pod = pod.clone();
                pod.addresses.remove(at);
                found.push(Object::Pod(pod));
            }
            found
        }
        Object::Namespace(namespace) => with_fewer_labels(&namespace.labels, |labels| {
            let mut namespace = namespace.clone();
            namespace.labels = labels;
            Object::Namespace(namespace)
        }),
        Object::ServiceAccount(account) => with_fewer_labels(&account.labels, |labels| {
            let mut account = account.clone();
            account.labels = labels;
            Object::ServiceAccount(account)
        }),
        _ => Vec::new(),
    }
}

fn with_fewer_labels(labels: &Labels, make: impl Fn(Labels) -> Object) -> Vec<Object> {
    let without = |key: &String| {
        let mut labels = labels.clone();
        labels.remove(key);
        make(labels)
    };
    labels.keys().map(without).collect()
}

/// Every value that is the same but for one element of a list or one field; the large parts come first.
fn without_a_part<T: Serialize + DeserializeOwned + PartialEq>(whole: &T) -> Vec<T> {
    let Ok(json) = serde_json::to_value(whole) else { return Vec::new() };
    let mut found = Vec::new();
    collect(&json, &mut Vec::new(), &mut found);
    found.sort_by_key(Vec::len);
    let without = |path: &Vec<Part>| {
        let smaller = serde_json::from_value(removed(json.clone(), path)).ok()?;
        (smaller != *whole).then_some(smaller)
    };
    found.iter().filter_map(without).collect()
}

#[derive(Clone, Debug)]
enum Part {
    Field(String),
    Element(usize),
}

/// The paths to every field and element.
fn collect(value: &Value, path: &mut Vec<Part>, found: &mut Vec<Vec<Part>>) {
    let children: Vec<(Part, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (Part::Field(name.clone()), value)).collect()
        }
        Value::Array(elements) => {
            elements.iter().enumerate().map(|(at, value)| (Part::Element(at), value)).collect()
        }
        _ => Vec::new(),
    };
    for (part, child) in children {
        path.push(part);
        found.push(path.clone());
        collect(child, path, found);
        path.pop();
    }
}

fn removed(mut value: Value, path: &[Part]) -> Value {
    let Some((last, parents)) = path.split_last() else { return value };
    let mut at = Some(&mut value);
    for part in parents {
        at = at.and_then(|at| match part {
            Part::Field(name) => at.get_mut(name),
            Part::Element(index) => at.get_mut(index),
        });
    }
    match (at, last) {
        (Some(Value::Object(fields)), Part::Field(name)) => drop(fields.remove(name)),
        (Some(Value::Array(elements)), Part::Element(index)) => drop(elements.remove(*index)),
        _ => {}
    }
    value
}
