//! What makes pods, as a pod: a policy repository has Deployments rather than pods, and policies select by the labels of
//! their templates. One pod stands for all that a workload makes; its name, `deployment/web`, can be no pod's.

use serde_json::{Value, json};

use crate::sources::typed::{Mistake, Step};

/// Kinds that make pods: API version, kind, and where the template is.
const KINDS: [(&str, &str, &[&str]); 7] = [
    ("apps/v1", "Deployment", &["spec", "template"]),
    ("apps/v1", "StatefulSet", &["spec", "template"]),
    ("apps/v1", "DaemonSet", &["spec", "template"]),
    ("apps/v1", "ReplicaSet", &["spec", "template"]),
    ("v1", "ReplicationController", &["spec", "template"]),
    ("batch/v1", "Job", &["spec", "template"]),
    ("batch/v1", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// Whether objects of a type make pods.
pub(super) fn is_workload(api_version: &str, kind: &str) -> bool {
    KINDS.iter().any(|(version, name, _)| (*version, *name) == (api_version, kind))
}

fn template_path(kind: &str) -> &'static [&'static str] {
    KINDS.iter().find(|(_, name, _)| *name == kind).map_or(&[], |(.., path)| path)
}

/// The name of the pod that stands for a workload.
pub(super) fn pod_name(kind: &str, name: &str) -> String {
    format!("{}/{name}", kind.to_lowercase())
}

/// A pod as a workload makes them.
pub(super) fn pod(kind: &str, workload: &Value) -> Result<Value, Mistake> {
    let metadata = &workload["metadata"];
    let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) else {
        return Err(Mistake::at("metadata.name", "is missing; add it"));
    };
    let path = template_path(kind);
    let template = path.iter().fold(workload, |value, key| &value[key]);
    if !template.is_object() {
        return Err(Mistake::at(
            &path.join("."),
            "is missing; a workload says here what its pods are: add it",
        ));
    }
    let mut pod = json!({
        "metadata": {"name": pod_name(kind, name), "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    });
    if !metadata["namespace"].is_null() {
        pod["metadata"]["namespace"] = metadata["namespace"].clone();
    }
    Ok(pod)
}

/// Where a field of such a pod is written.
pub(super) fn written_path(kind: &str, path: Vec<Step>) -> Vec<Step> {
    let own = |key: &Step| matches!(key, Step::Key(key) if key == "name" || key == "namespace");
    if path.get(1).is_some_and(own) && path.len() == 2 {
        return path;
    }
    template_path(kind).iter().map(|key| Step::Key((*key).to_owned())).chain(path).collect()
}
