//! The status of policies, written into a real API server with the rights that the manifests in `deploy/` give.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::kubernetes::{Contacts, client, config};
use portcullis::model::{ObjectKey, ObjectKind};
use portcullis::status_writer::{Options, Pace, StatusWriter, Verdict, Verdicts};
use portcullis_tests::{ApiServer, poll};
use tokio::sync::watch;

const POLICIES: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: default}
spec: {subject: {}, ingress: {rules: [{action: Accept, from: [{entities: [node]}]}]}}
---
apiVersion: portcullis.dev/v1alpha1
kind: ClusterIdentityPolicy
metadata: {name: guardrail}
spec: {tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: {rules: [{action: Deny, from: [{entities: [world]}]}]}}
";

/// The roles of the manifests, bound to the user `restricted` as they are to the agent's account.
const BINDINGS: &str = "
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: restricted},
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: portcullis},
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: restricted}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: restricted, namespace: portcullis-system},
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: portcullis},
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: restricted}]}
";

#[test]
fn the_condition_is_written_with_the_rights_of_the_manifests_and_shows_in_kubectl() -> Result<()> {
    let server = ApiServer::start()?;
    let deploy = |file: &str| {
        let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).context(path)
    };
    server.apply(&deploy("crds/identitypolicies.portcullis.dev.yaml")?)?;
    server.apply(&deploy("crds/clusteridentitypolicies.portcullis.dev.yaml")?)?;
    server.apply(&deploy("base/namespace.yaml")?)?;
    poll::eventually("the kinds to be served", || server.apply(POLICIES).is_ok())?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connection = runtime.block_on(config(Some(&server.kubeconfig("restricted"))))?;
    let (verdicts, receiver) = watch::channel(Arc::default());
    let options = Options {
        namespace: "portcullis-system".to_owned(),
        node: "n1".to_owned(),
        pace: Pace { lease: Duration::from_secs(3), retry: Duration::from_millis(200) },
    };
    let connect = move || client(&connection, &Contacts::new([])).map_err(|error| error.to_string());
    let writer = StatusWriter::start(connect, options, receiver)?;
    let tell = |generation: i64, problems: &[&str]| {
        let problems = problems.iter().map(|problem| (*problem).to_owned()).collect();
        let key = |kind, namespace: &str, name: &str| ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        verdicts.send_replace(Arc::new(Verdicts::from([
            (key(ObjectKind::IdentityPolicy, "default", "db"), Verdict { generation, problems }),
            (
                key(ObjectKind::ClusterIdentityPolicy, "", "guardrail"),
                Verdict { generation: 1, problems: Vec::new() },
            ),
        ])));
    };
    let shown = |path: &str| server.kubectl(["get", "identitypolicy", "db", "-o", path]);
    tell(1, &["spec.ingress.rules[0]: it is not understood"]);
    poll::eventually("the missing rights to be said", || {
        writer.state().borrow().error.as_ref().is_some_and(|error| error.contains("the Role `portcullis`"))
    })?;
    server.apply(&deploy("base/rbac.yaml")?)?;
    server.apply(BINDINGS)?;

    let accepted = "jsonpath={.status.conditions[?(@.type=='Accepted')].status}";
    poll::eventually("the condition", || shown(accepted).is_ok_and(|text| text == "False"))?;
    let guardrail = || server.kubectl(["get", "cidpol", "guardrail", "-o", accepted]);
    poll::eventually("the condition of the cluster's", || guardrail().is_ok_and(|text| text == "True"))?;
    let message = shown("jsonpath={.status.conditions[0].message}")?;
    ensure!(message == "spec.ingress.rules[0]: it is not understood", "{message}");
    let since = shown("jsonpath={.status.conditions[0].lastTransitionTime}")?;
    tell(1, &[]);
    poll::eventually("the condition to change", || shown(accepted).is_ok_and(|text| text == "True"))?;
    ensure!(shown("jsonpath={.status.conditions[0].observedGeneration}")? == "1");
    ensure!(since <= shown("jsonpath={.status.conditions[0].lastTransitionTime}")?);
    // What it says by itself costs no write: the object stays as it is while the Lease is renewed.
    let version = shown("jsonpath={.metadata.resourceVersion}")?;
    let lease =
        |path: &str| server.kubectl(["-n", "portcullis-system", "get", "lease", "portcullis", "-o", path]);
    ensure!(lease("jsonpath={.spec.holderIdentity}")? == "n1");
    let renewed = lease("jsonpath={.spec.renewTime}")?;
    poll::eventually("the Lease to be renewed", || {
        lease("jsonpath={.spec.renewTime}").is_ok_and(|time| time > renewed)
    })?;
    ensure!(shown("jsonpath={.metadata.resourceVersion}")? == version);
    // Who ends gives it back.
    drop(writer);
    ensure!(lease("jsonpath={.spec.holderIdentity}")?.is_empty());
    Ok(())
}
