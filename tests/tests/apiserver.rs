//! What a real API server says to the files in `deploy/`: it takes what we install and every policy that we show, and
//! refuses what cannot mean anything, with a message that says what to write instead.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_tests::apiserver::ApiServer;
use portcullis_tests::cluster::binaries;
use portcullis_tests::command::{run, run_with_input};
use portcullis_tests::{TempDir, deploy, eventually, privileged_test};
use serde_json::Value;

/// A section of a policy that has one rule with these peers.
const RULE: &str = "rules: [{action: Accept, from: [{entities: [world]}]";

/// Specifications that are refused, and the message.
fn refused() -> Vec<(String, &'static str)> {
    let ingress = |section: &str| format!("{{subject: {{}}, ingress: {{{section}}}}}");
    let egress = |section: &str| format!("{{subject: {{}}, egress: {{{section}}}}}");
    let from = |peer: &str| ingress(&format!("rules: [{{action: Accept, from: [{peer}]}}]"));
    let protocol = |protocol: &str| ingress(&format!("{RULE}, protocols: [{protocol}]}}]"));
    vec![
        ("{subject: {}}".to_owned(), "a policy without `ingress` and `egress` does nothing"),
        ("{subject: {}, ingress: null}".to_owned(), "a policy without `ingress` and `egress` does nothing"),
        ("{ingress: {}}".to_owned(), "spec.subject: Required value"),
        // The word without quotes is `false` to kubectl.
        ("{mode: Off, subject: {}, ingress: {}}".to_owned(), "\"Enforce\", \"Audit\", \"Disabled\", \"Off\""),
        ("{mode: Sometimes, subject: {}, ingress: {}}".to_owned(), "\"Enforce\", \"Audit\", \"Disabled\", \"Off\""),
        ("{subject: {}, ingres: {}}".to_owned(), "unknown field \"spec.ingres\""),
        ("{subject: {serviceAccounts: {names: []}}, ingress: {}}".to_owned(), "the list of names is empty"),
        ("{subject: {serviceAccounts: {names: ['*']}}, ingress: {}}".to_owned(), "should match"),
        (
            "{subject: {serviceAccounts: {selector: {matchExpressions: [{key: a, operator: In}]}}}, ingress: {}}".to_owned(),
            "`In` and `NotIn` need `values`",
        ),
        (
            "{subject: {serviceAccounts: {selector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}}, ingress: {}}".to_owned(),
            "`Exists` and `DoesNotExist` must have none",
        ),
        (ingress("rules: [{action: Deny, from: [{entities: [world]}]}]"), "only Deny rules must say `isolate` itself"),
        (egress("rules: [{action: Deny, to: [{entities: [world]}]}]"), "only Deny rules must say `isolate` itself"),
        (ingress("isolate: false"), "`isolate: false` without rules does nothing: write rules, or leave `ingress` out"),
        (egress("isolate: false"), "`isolate: false` without rules does nothing: write rules, or leave `egress` out"),
        (ingress("rules: [{action: Pass, from: [{pods: {}}]}]"), "\"Accept\", \"Deny\""),
        (ingress("rules: [{action: Accept}]"), "from: Required value"),
        (ingress("rules: [{action: Accept, from: []}]"), "at least one peer in `from`"),
        (egress("rules: [{action: Accept, to: []}]"), "at least one peer in `to`"),
        (ingress("rules: [{name: '', action: Accept, from: [{pods: {}}]}]"), "name: Invalid value"),
        (
            ingress("isolate: true, rules: [{action: Deny, from: [{pods: {}}, {entities: [node, host]}]}]"),
            "so a Deny of `host` has no effect here",
        ),
        (from("{}"), "a peer is exactly one of `serviceAccounts`, `pods`, `ipBlock` and `entities`"),
        (from("{pods: {}, entities: [world]}"), "a peer is exactly one of"),
        (from("{entities: []}"), "the list of entities is empty"),
        (from("{entities: [internet]}"), "\"host\", \"node\", \"world\", \"unmanaged\""),
        (from("{serviceAccounts: {names: []}}"), "the list of names is empty"),
        (from("{ipBlock: {cidr: 10.0.0.1}}"), "`cidr` is no range of addresses"),
        (from("{ipBlock: {cidr: 10.0.0.0/33}}"), "`cidr` is no range of addresses"),
        (from("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.1]}}"), "`except` has something that is no range"),
        (from("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}"), "must be a smaller part of `cidr`"),
        (from("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"), "must be a smaller part of `cidr`"),
        (from("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}"), "must be a smaller part of `cidr`"),
        (ingress(&format!("{RULE}, protocols: []}}]")), "the list of protocols is empty"),
        (egress("rules: [{action: Accept, to: [{pods: {}}], protocols: []}]"), "the list of protocols is empty"),
        (protocol("{}"), "exactly one of `tcp`, `udp`, `sctp` and `destinationNamedPort`"),
        (protocol("{tcp: {}, udp: {}}"), "exactly one of `tcp`, `udp`, `sctp` and `destinationNamedPort`"),
        (protocol("{destinationNamedPort: HTTP}"), "should match"),
        (protocol("{tcp: {destinationPort: {}}}"), "exactly one of `number` and `range`"),
        (protocol("{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}"), "exactly one of `number` and `range`"),
        (protocol("{udp: {destinationPort: {number: 0}}}"), "greater than or equal to 1"),
        (protocol("{udp: {destinationPort: {number: 65536}}}"), "less than or equal to 65535"),
        (protocol("{sctp: {destinationPort: {range: {start: 9, end: 8}}}}"), "`start` must not be greater than `end`"),
        (
            egress("rules: [{action: Accept, to: [{entities: [world]}], protocols: [{destinationNamedPort: http}]}]"),
            "only pods name their ports, and `to` has none",
        ),
    ]
}

/// Specifications that are near to those and mean something.
const TAKEN: &[&str] = &[
    "{subject: {}, ingress: {}}",
    "{mode: Disabled, subject: {serviceAccounts: {}}, egress: {}}",
    "{mode: 'Off', subject: {serviceAccounts: {names: [a, b.c-d]}}, egress: {isolate: true}}",
    "{subject: {}, ingress: {isolate: false, rules: [{action: Deny, from: [{entities: [node, world, unmanaged]}]}]}}",
    "{subject: {}, ingress: {isolate: true, rules: [{action: Deny, from: [{pods: {namespaces: {}}}]}]}}",
    "{subject: {}, ingress: {rules: [{action: Accept, from: [{entities: [host]}]}]}}",
    "{subject: {}, egress: {isolate: false, rules: [{action: Deny, to: [{entities: [host]}]}]}}",
    "{subject: {}, ingress: {rules: [{action: Accept, from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.0.0.0/9]}}]}]}}",
    "{subject: {}, ingress: {rules: [{action: Accept, from: [{ipBlock: {cidr: '::/0', except: ['fd00::/8']}}]}]}}",
    "{subject: {}, egress: {rules: [{action: Accept, to: [{pods: {}}, {entities: [world]}],
        protocols: [{destinationNamedPort: dns-tcp}, {udp: {}}, {tcp: {destinationPort: {range: {start: 8, end: 8}}}}]}]}}",
    "{subject: {serviceAccounts: {selector: {matchLabels: {a: b}, matchExpressions: [{key: x.y/z, operator: NotIn, values: [c]},
        {key: d, operator: Exists}]}}}, ingress: {}}",
];

/// A direction of a ClusterIdentityPolicy.
fn cluster(direction: &str) -> String {
    format!("{{tier: Admin, priority: 0, subject: {{namespaces: {{}}}}, {direction}}}")
}

/// Specifications of a ClusterIdentityPolicy that are refused, and the message; those of its peers and ports are the same
/// as of an IdentityPolicy, and each of their rules is tried once more.
fn refused_of_cluster() -> Vec<(String, &'static str)> {
    let rules = |rule: &str| cluster(&format!("ingress: {{rules: [{rule}]}}"));
    let to = |rule: &str| cluster(&format!("egress: {{rules: [{rule}]}}"));
    let from = |peer: &str| rules(&format!("{{action: Pass, from: [{peer}]}}"));
    let protocol = |protocol: &str| {
        rules(&format!("{{action: Pass, from: [{{entities: [world]}}], protocols: [{protocol}]}}"))
    };
    let good = cluster("ingress: {rules: [{action: Deny, from: [{entities: [world]}]}]}");
    vec![
        (good.replace("tier: Admin, ", ""), "spec.tier: Required value"),
        (good.replace("Admin", "Cluster"), "\"Admin\", \"Baseline\""),
        (good.replace("priority: 0, ", ""), "spec.priority: Required value"),
        (good.replace("priority: 0", "priority: -1"), "greater than or equal to 0"),
        (good.replace("priority: 0", "priority: 1001"), "less than or equal to 1000"),
        (good.replace("priority: 0", "priority: 1.5"), "must be of type integer"),
        (good.replace("subject: {namespaces: {}}, ", ""), "spec.subject: Required value"),
        (good.replace("namespaces: {}", ""), "write `subject: {namespaces: ..}`"),
        (good.replace("namespaces: {}", "namespaces: null"), "write `subject: {namespaces: ..}`"),
        (
            good.replace("namespaces: {}", "namespaces: {}, serviceAccounts: {names: []}"),
            "the list of names is empty",
        ),
        (
            good.replace("namespaces: {}", "namespaces: {matchExpressions: [{key: a, operator: In}]}"),
            "`In` and `NotIn` need `values`",
        ),
        (good.replace("action: Deny", "action: Log"), "\"Accept\", \"Deny\", \"Pass\""),
        (good.replace("ingress: {", "ingress: {isolate: true, "), "unknown field \"spec.ingress.isolate\""),
        (
            "{tier: Admin, priority: 0, subject: {namespaces: {}}}".to_owned(),
            "a policy without `ingress` and `egress` does nothing",
        ),
        (cluster("ingress: {}"), "write rules, or leave `ingress` out"),
        (cluster("egress: {rules: []}"), "write rules, or leave `egress` out"),
        (rules("{action: Pass, from: []}"), "at least one peer in `from`"),
        (to("{action: Pass, to: []}"), "at least one peer in `to`"),
        (rules("{action: Deny, from: [{entities: [node, host]}]}"), "so a Deny of `host` has no effect here"),
        (from("{entities: [world]}, {pods: {}}"), "`pods` of `from`; `namespaces: {}` is every one"),
        (from("{serviceAccounts: {names: [api]}}"), "`pods` of `from`; `namespaces: {}` is every one"),
        (to("{action: Deny, to: [{serviceAccounts: {}}]}"), "`pods` of `to`; `namespaces: {}` is every one"),
        (from("{}"), "a peer is exactly one of `serviceAccounts`, `pods`, `ipBlock` and `entities`"),
        (from("{entities: []}"), "the list of entities is empty"),
        (from("{serviceAccounts: {namespaces: {}, names: []}}"), "the list of names is empty"),
        (from("{ipBlock: {cidr: 10.0.0.1}}"), "`cidr` is no range of addresses"),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.1]}}"),
            "`except` has something that is no range",
        ),
        (from("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}"), "must be a smaller part of `cidr`"),
        (
            rules("{action: Pass, from: [{entities: [world]}], protocols: []}"),
            "the list of protocols is empty",
        ),
        (to("{action: Pass, to: [{entities: [world]}], protocols: []}"), "the list of protocols is empty"),
        (protocol("{tcp: {}, udp: {}}"), "exactly one of `tcp`, `udp`, `sctp` and `destinationNamedPort`"),
        (protocol("{tcp: {destinationPort: {}}}"), "exactly one of `number` and `range`"),
        (
            protocol("{sctp: {destinationPort: {range: {start: 9, end: 8}}}}"),
            "`start` must not be greater than `end`",
        ),
        (
            to("{action: Accept, to: [{entities: [world]}], protocols: [{destinationNamedPort: http}]}"),
            "only pods name their ports, and `to` has none",
        ),
    ]
}

/// Specifications of a ClusterIdentityPolicy that are near to those and mean something.
const TAKEN_OF_CLUSTER: &[&str] = &[
    "{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: {rules: [{action: Pass, from: [{entities: [host, node]}]}]}}",
    "{mode: Audit, tier: Baseline, priority: 1000, subject: {namespaces: {matchLabels: {a: b}}, serviceAccounts: {names: [c]}},
        egress: {rules: [{action: Deny, to: [{entities: [host]}]}]}}",
    "{tier: Admin, priority: 5, subject: {namespaces: {matchExpressions: [{key: a, operator: Exists}]}},
        ingress: {rules: [{name: r, action: Accept, from: [{serviceAccounts: {namespaces: {}, names: [x]}}, {pods: {namespaces: {}}}]}]},
        egress: {rules: [{action: Deny, to: [{ipBlock: {cidr: '::/0'}}], protocols: [{udp: {}}, {destinationNamedPort: dns}]}]}}",
];

const READ: &[&str] = &["get", "list", "watch"];

/// What the agent's account may do: verbs, resource (with a name, where it is limited to one), namespace.
const ALLOWED: &[(&[&str], &str, &str)] = &[
    (READ, "pods", "default"),
    (READ, "namespaces", "default"),
    (READ, "serviceaccounts", "default"),
    (READ, "nodes", "default"),
    (READ, "services", "default"),
    (READ, "endpointslices.discovery.k8s.io", "default"),
    (READ, "servicecidrs.networking.k8s.io", "default"),
    (READ, "networkpolicies.networking.k8s.io", "default"),
    (READ, "identitypolicies.portcullis.dev", "default"),
    (&["patch"], "identitypolicies.portcullis.dev/status", "default"),
    (READ, "clusteridentitypolicies.portcullis.dev", "default"),
    (&["patch"], "clusteridentitypolicies.portcullis.dev/status", "default"),
    (READ, "configmaps/portcullis", "portcullis-system"),
    (&["get", "update"], "leases.coordination.k8s.io/portcullis", "portcullis-system"),
    (&["create"], "leases.coordination.k8s.io", "portcullis-system"),
];

/// Some of what it may not.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("get", "secrets", "portcullis-system"),
    ("list", "configmaps", "portcullis-system"),
    ("update", "configmaps/portcullis", "portcullis-system"),
    ("get", "configmaps/portcullis", "default"),
    ("update", "leases.coordination.k8s.io/other", "portcullis-system"),
    ("create", "leases.coordination.k8s.io", "kube-system"),
    ("update", "identitypolicies.portcullis.dev", "default"),
    ("update", "identitypolicies.portcullis.dev/status", "default"),
    ("patch", "leases.coordination.k8s.io/portcullis", "portcullis-system"),
    ("get", "clusternetworkpolicies.policy.networking.k8s.io", "default"),
    ("update", "clusteridentitypolicies.portcullis.dev", "default"),
    ("patch", "pods", "default"),
    ("create", "pods", "portcullis-system"),
    ("patch", "nodes", "default"),
];

fn policy(kind: &str, name: &str, spec: &str) -> String {
    let namespace = if kind == "IdentityPolicy" { ", namespace: default" } else { "" };
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}\n"
    )
}

/// Applies as people do, which is where a field that does not exist is told.
fn apply(server: &ApiServer, manifests: &str) -> Result<String> {
    run_with_input(server.kubectl_command().args(["apply", "--filename", "-"]), manifests)
}

/// Whether the account of the agent may do something; a subresource is `kind/status`, a name `kind/name`.
fn may(server: &ApiServer, verb: &str, resource: &str, namespace: &str) -> Result<bool> {
    let mut command = server.kubectl_command();
    command.args(["auth", "can-i", verb, "--namespace", namespace, "--quiet"]);
    command.arg("--as=system:serviceaccount:portcullis-system:portcullis");
    match resource.strip_suffix("/status") {
        Some(resource) => command.args([resource, "--subresource=status"]),
        None => command.arg(resource),
    };
    let output = command.output().context("starting kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Ok(true),
        Some(1) if !said.contains("rror") => Ok(false),
        _ => bail!("{command:?}: {said}"),
    }
}

/// The messages of all rules of a schema.
fn messages(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            for rule in fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten()
            {
                found.insert(rule["message"].as_str().unwrap_or("a rule without a message").to_owned());
            }
            fields.values().for_each(|value| messages(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| messages(value, found)),
        _ => {}
    }
}

/// Folders with a kustomization below one.
fn kustomizations(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.retain(|path| path.join("kustomization.yaml").is_file());
    found.sort();
    found
}

#[test]
fn a_real_api_server_takes_what_we_show_and_refuses_what_means_nothing() -> Result<()> {
    privileged_test(|| {
        let server = ApiServer::start()?;
        let file = |name: &str| deploy::folder().join(name).display().to_string();

        // What is installed, and the variants of it.
        server.kubectl(["apply", "--filename", &file("portcullis.yaml")])?;
        server.kubectl(["apply", "--filename", &file("cleanup.yaml")])?;
        for overlay in kustomizations(&deploy::folder().join("overlays")) {
            server.kubectl(["apply", "--dry-run=server", "--kustomize", &overlay.display().to_string()])?;
        }
        for kind in ["idpol", "cidpol"] {
            eventually("the kind is served", || server.kubectl(["get", kind, "--all-namespaces"]).is_ok())?;
        }

        // What we show.
        server.kubectl(["create", "namespace", "shop"])?;
        server.kubectl(["apply", "--filename", &file("demo/manifests/policies")])?;
        for example in kustomizations(&deploy::folder().join("examples")) {
            server.kubectl(["apply", "--kustomize", &example.display().to_string()])?;
        }
        let kinds = [
            ("IdentityPolicy", TAKEN, refused()),
            ("ClusterIdentityPolicy", TAKEN_OF_CLUSTER, refused_of_cluster()),
        ];
        for ((kind, taken, refused), definition) in kinds.into_iter().zip(portcullis::api::definitions()?) {
            assert_eq!(definition["spec"]["names"]["kind"], kind);
            for (i, spec) in taken.iter().enumerate() {
                apply(&server, &policy(kind, &format!("taken-{i}"), spec))?;
            }

            // What means nothing.
            let mut said = String::new();
            for (spec, message) in refused {
                match apply(&server, &policy(kind, "refused", &spec)) {
                    Ok(_) => panic!("{kind}: it was taken: {spec}"),
                    Err(error) => {
                        let error = format!("{error:#}");
                        assert!(error.contains(message), "{kind} {spec}: {error}");
                        said.push_str(&error);
                    }
                }
            }
            let mut rules = BTreeSet::new();
            messages(&definition, &mut rules);
            let untried: Vec<&String> =
                rules.iter().filter(|message| !said.contains(message.as_str())).collect();
            assert!(untried.is_empty(), "{kind}: no case above is refused with {untried:#?}");
        }

        // What the agent may do, and what not.
        for (verbs, resource, namespace) in ALLOWED {
            for verb in *verbs {
                ensure!(
                    may(&server, verb, resource, namespace)?,
                    "the agent must be able to {verb} {resource}"
                );
            }
        }
        for (verb, resource, namespace) in FORBIDDEN {
            ensure!(
                !may(&server, verb, resource, namespace)?,
                "the agent may {verb} {resource} in {namespace}"
            );
        }

        // What people see, and what the agent writes.
        let condition = r#"{"status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Understood",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]}}"#;
        let patch =
            ["patch", "idpol", "taken-1", "--subresource=status", "--type=merge", "--patch", condition];
        server.kubectl(patch)?;
        let table = server.kubectl(["get", "idpol", "taken-1", "--output=wide"])?;
        let columns: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(columns[0], ["NAME", "MODE", "ACCEPTED", "REASON", "AGE"]);
        assert_eq!(columns[1][..4], ["taken-1", "Disabled", "True", "Understood"]);
        let patch =
            ["patch", "cidpol", "taken-1", "--subresource=status", "--type=merge", "--patch", condition];
        server.kubectl(patch)?;
        let table = server.kubectl(["get", "cidpol", "taken-1", "--output=wide"])?;
        let columns: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(columns[0], ["NAME", "TIER", "PRIORITY", "MODE", "ACCEPTED", "REASON", "AGE"]);
        assert_eq!(columns[1][..6], ["taken-1", "Baseline", "1000", "Audit", "True", "Understood"]);
        Ok(())
    })
}

/// Says to the process that the test below starts that it is the inner one.
const INNER: &str = "PORTCULLIS_TEST_INNER";

#[test]
fn ready_made_programs_are_taken_from_the_folder_of_the_variable() -> Result<()> {
    const ASSETS: &str = "KUBEBUILDER_ASSETS";
    if std::env::var_os(INNER).is_some() {
        let server = ApiServer::start()?;
        server.kubectl(["get", "namespaces"])?;
        return Ok(());
    }
    privileged_test(|| {
        // Programs that note that they were asked for, and then are those that are there.
        let folder = TempDir::new()?;
        for program in ["etcd", "kube-apiserver"] {
            let real = binaries::find(program)?;
            let note = folder.path().join(format!("{program}.ran"));
            folder.write(
                program,
                &format!("#!/bin/sh\ntouch '{}'\nexec '{}' \"$@\"\n", note.display(), real.display()),
            )?;
            let path = folder.path().join(program);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        // The environment of a running process is not to be changed, so another one has it.
        let test = "ready_made_programs_are_taken_from_the_folder_of_the_variable";
        let mut inner = Command::new(std::env::current_exe()?);
        inner.args(["--exact", test]).env(ASSETS, folder.path()).env(INNER, "1");
        let said = run(&mut inner)?;
        ensure!(said.contains("1 passed"), "the inner test did not run: {said}");
        for program in ["etcd", "kube-apiserver"] {
            ensure!(
                folder.path().join(format!("{program}.ran")).exists(),
                "{program} is not that of the folder"
            );
        }
        Ok(())
    })
}
