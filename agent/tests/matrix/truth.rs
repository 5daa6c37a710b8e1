//! The truth tables, as manifests: each step a folder, in forms that leave out more and more of what can be left out.

use std::collections::BTreeMap;
use std::process::Command;

use portcullis::matrix::{Options, Tables};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::folder::{Asked, Folder};

const TRUTH: &str = include_str!("../../../tests/data/networkpolicy-truth.json");

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the file")]
struct Step {
    case: u32,
    step: u32,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: Vec<StepPod>,
    policies: Vec<Value>,
    ingress: BTreeMap<String, Vec<String>>,
    egress: BTreeMap<String, Vec<String>>,
    combined: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct StepPod {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    ip: String,
}

/// How much of a cluster the manifests say.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Everything, as a cluster would list it, with nodes.
    Listed,
    /// Neither service accounts nor UIDs.
    Bare,
    /// As people write it: no addresses either. Only where no rule looks at them.
    Written,
}

impl Step {
    fn has_blocks(&self) -> bool {
        self.policies.iter().any(|policy| policy.to_string().contains("ipBlock"))
    }

    fn folder(&self, form: Form) -> Folder {
        let mut objects = Vec::new();
        for (name, labels) in &self.namespaces {
            objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
            if form == Form::Listed {
                objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": {"name": "default", "namespace": name}}));
            }
        }
        // The order of the file is not that of the answer.
        for (i, pod) in self.pods.iter().enumerate().rev() {
            let ports = [80, 81].into_iter().flat_map(|port| {
                ["TCP", "UDP", "SCTP"].map(|protocol| {
                    let name = format!("serve-{port}-{}", protocol.to_lowercase());
                    json!({"name": name, "containerPort": port, "protocol": protocol})
                })
            });
            let mut object = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
                "spec": {"containers": [{"name": "all", "ports": ports.collect::<Value>()}]}});
            if form == Form::Listed {
                object["metadata"]["uid"] = json!(format!("uid-{i}"));
                object["spec"]["nodeName"] = json!(["one", "two"][i % 2]);
            }
            if form != Form::Written {
                object["status"] = json!({"phase": "Running", "podIPs": [{"ip": pod.ip}]});
            }
            objects.push(object);
        }
        let cluster = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let policies: Vec<Value> = self
            .policies
            .iter()
            .cloned()
            .map(|mut policy| {
                (policy["apiVersion"], policy["kind"]) =
                    ("networking.k8s.io/v1".into(), "NetworkPolicy".into());
                policy
            })
            .collect();
        let policies = json!({"apiVersion": "v1", "kind": "List", "items": policies}).to_string();
        Folder::new(&[("cluster.json", &cluster), ("policies.json", &policies)])
    }

    /// Compares all cells but those of a pod and itself. Returns how many.
    fn compare(&self, asked: &Asked, form: Form) -> usize {
        let place = format!("case {} step {} {form:?}", self.case, self.step);
        assert_eq!(asked.problems(), [""; 0], "{place}");
        let name = |pod: &StepPod| format!("{}/{}", pod.namespace, pod.name);
        let mut sorted: Vec<&StepPod> = self.pods.iter().collect();
        sorted.sort_by_key(|pod| (&pod.namespace, &pod.name));
        let names: Vec<String> = sorted.into_iter().map(name).collect();
        assert_eq!(asked.found.names, names, "{place}");
        // Where the answer has the step's pods, whose order is another.
        let at: Vec<usize> =
            self.pods.iter().map(|pod| names.iter().position(|other| *other == name(pod)).unwrap()).collect();
        let mut cells = 0;
        for key in self.combined.keys() {
            let Tables { ingress, egress, combined, shown: _ } = asked.tables(key);
            for (what, found, wanted) in [
                ("ingress", ingress, &self.ingress[key]),
                ("egress", egress, &self.egress[key]),
                ("combined", combined, &self.combined[key]),
            ] {
                for (from, row) in wanted.iter().enumerate() {
                    for (to, wanted) in row.chars().enumerate() {
                        let found = found[at[from]].as_bytes()[at[to]] as char;
                        let wanted = if from == to { '.' } else { wanted };
                        let (from, to) = (&names[at[from]], &names[at[to]]);
                        assert_eq!(found, wanted, "{place} {what} of {key}: {from} to {to}");
                        cells += usize::from(from != to);
                    }
                }
            }
        }
        cells
    }
}

fn steps() -> Vec<Step> {
    let steps: Vec<Step> = serde_json::from_str(TRUTH).unwrap();
    assert_eq!(steps.len(), 155, "all of them are there");
    steps
}

#[test]
fn the_matrix_of_every_truth_step_is_the_truth_table() {
    let mut cells = BTreeMap::new();
    for step in steps() {
        for form in [Form::Listed, Form::Bare, Form::Written] {
            if form == Form::Written && step.has_blocks() {
                continue;
            }
            // By default every port that is asked about is there: the containers name them.
            let asked = step.folder(form).ask(&Options::default());
            *cells.entry(format!("{form:?}")).or_insert(0) += step.compare(&asked, form);
        }
    }
    println!("cells compared: {cells:?}");
    assert_eq!((cells["Listed"], cells["Bare"]), (200_052, 200_052), "all of them");
    assert!(cells["Written"] > 100_000, "{cells:?}");
}

#[test]
fn the_command_prints_the_truth_tables_as_json() {
    for step in steps().iter().step_by(40) {
        let folder = step.folder(Form::Bare);
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["matrix", "--manifests", folder.path(), "-o", "json"]);
        command.args(["--port", "TCP/80", "--port", "udp/81"]);
        let run = command.output().unwrap();
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        let json: Value = serde_json::from_slice(&run.stdout).unwrap();
        let tables = json["tables"].as_object().unwrap();
        assert_eq!(tables.keys().collect::<Vec<_>>(), ["TCP/80", "UDP/81"]);
        let asked = folder.ask(&Options::default());
        for (key, printed) in tables {
            let Tables { ingress, egress, combined, shown: _ } = asked.tables(key);
            assert_eq!(*printed, json!({"ingress": ingress, "egress": egress, "combined": combined}));
        }
        assert_eq!(json["pods"], json!(asked.found.names));
    }
}
