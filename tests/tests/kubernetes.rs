//! The Kubernetes source against a real API server.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::model::{ObjectKey, World};
use portcullis::sources::kubernetes::{KubernetesSource, Options, Pace};
use portcullis::sources::{Batch, SourceEvent, SourceProblem};
use portcullis_tests::{ApiServer, poll};
use tokio::sync::mpsc;

const OBJECTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: portcullis-system}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.0.0.0/24], podCIDR: 10.0.0.0/24}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: api, namespace: shop, labels: {tier: back}}}
---
apiVersion: v1
kind: Pod
metadata: {name: api-1, namespace: shop, labels: {app: api}}
spec: {serviceAccountName: api, nodeName: n1, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: shop}
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: http}]}]}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: portcullis, namespace: portcullis-system}, data: {mode: Audit}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: another, namespace: portcullis-system}, data: {mode: "Off"}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: http}]}
"#;

const IDENTITY_POLICY: &str = r"
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: idp, namespace: shop}
spec: {subject: {}, ingress: {rules: [{action: Accept, from: [{entities: [node]}]}]}}
";

const GUARDRAIL: &str = r"
apiVersion: portcullis.dev/v1alpha1
kind: ClusterIdentityPolicy
metadata: {name: cidp}
spec: {tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: {rules: [{action: Pass, from: [{entities: [node]}]}]}}
";

/// Everything but Secrets of a real role; the test takes rules away.
fn role(resources: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: restricted}}\n\
         rules: [{{apiGroups: ['', discovery.k8s.io, networking.k8s.io, portcullis.dev], resources: [{resources}], \
         verbs: [get, list, watch]}}]\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: restricted}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: restricted}}\n\
         subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: restricted}}]\n"
    )
}

/// A file of the folder that people install from.
fn deployed(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Defines our kinds, and waits until they are served.
fn define(server: &ApiServer) -> Result<()> {
    for kind in OURS {
        server.apply(&deployed(&format!("crds/{kind}.yaml"))?)?;
    }
    server.kubectl(["wait", "--for=condition=Established", "crd", OURS[0], OURS[1]])?;
    Ok(())
}

/// The definitions of our kinds.
const OURS: [&str; 2] = ["identitypolicies.portcullis.dev", "clusteridentitypolicies.portcullis.dev"];

/// A source and the world that it has told of.
struct Consumer {
    source: KubernetesSource,
    batches: mpsc::Receiver<Batch>,
    world: World,
    synced: bool,
    problems: Vec<SourceProblem>,
    deleted: Vec<ObjectKey>,
}

impl Consumer {
    fn start(server: &ApiServer, user: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = runtime.block_on(portcullis::kubernetes::config(Some(&server.kubeconfig(user))))?;
        let (sender, batches) = mpsc::channel(64);
        let pace = Pace {
            first_retry: Duration::from_millis(50),
            longest_retry: Duration::from_millis(500),
            look_again: Duration::from_millis(200),
            patience: Duration::from_secs(1),
            ..Pace::default()
        };
        let options =
            Options { config, namespace: "portcullis-system".to_owned(), node_name: "n1".to_owned(), pace };
        Ok(Self {
            source: KubernetesSource::start(options, sender)?,
            batches,
            world: World::default(),
            synced: false,
            problems: Vec::new(),
            deleted: Vec::new(),
        })
    }

    fn read(&mut self) {
        while let Ok(batch) = self.batches.try_recv() {
            for event in batch.events {
                match event {
                    SourceEvent::Apply(object) => self.world.apply(object),
                    SourceEvent::Delete { key, uid } => {
                        self.world.delete(&key, uid.as_deref());
                        self.deleted.push(key);
                    }
                    SourceEvent::Synced => self.synced = true,
                    SourceEvent::Problems(problems) => self.problems = problems,
                }
            }
        }
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) -> Result<()> {
        let outcome = poll::eventually_within(Duration::from_secs(60), what, || {
            self.read();
            wanted(self)
        });
        outcome.with_context(|| format!("problems: {:#?}, world: {:#?}", self.problems, self.world))
    }

    fn policies(&self) -> usize {
        self.world.identity_policies.len() + self.world.cluster_identity_policies.len()
    }
}

#[test]
fn a_real_server_s_objects_make_the_world_and_follow_its_changes() -> Result<()> {
    let server = ApiServer::start()?;
    server.apply(OBJECTS)?;
    server.set_status(
        "shop",
        "pod/api-1",
        r#"{"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}], "podIP": "10.0.0.7"}"#,
    )?;
    server.set_status("", "node/n1", r#"{"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}"#)?;
    let mut agent = Consumer::start(&server, "admin")?;
    agent.until("everything is listed, without our kinds", |agent| agent.synced)?;
    let world = &agent.world;
    let pod = world.pods.values().find(|pod| pod.name == "api-1").context("no pod")?;
    ensure!(
        (pod.namespace.as_str(), pod.service_account.as_str(), pod.node.as_str()) == ("shop", "api", "n1")
    );
    ensure!(pod.addresses == ["10.0.0.7".parse::<std::net::IpAddr>()?], "{pod:?}");
    ensure!(pod.named_ports == [("http".to_owned(), 6, 8080)], "{pod:?}");
    ensure!(world.namespaces["shop"].labels["team"] == "shop");
    ensure!(world.service_accounts[&("shop".to_owned(), "api".to_owned())].labels["tier"] == "back");
    ensure!(world.nodes["n1"].addresses == ["192.0.2.1".parse::<std::net::IpAddr>()?]);
    ensure!(world.network_policies.contains_key(&("shop".to_owned(), "np".to_owned())));
    ensure!(world.mode() == portcullis_common::abi::Mode::Audit);
    ensure!(world.cluster_configs.len() == 1, "{:?}", world.cluster_configs);
    ensure!(agent.problems.is_empty(), "{:?}", agent.problems);

    // Our kinds appear, have objects, vanish and come again.
    for _ in 0..2 {
        define(&server)?;
        server.apply(IDENTITY_POLICY)?;
        server.apply(GUARDRAIL)?;
        agent.until("the policies are there", |agent| agent.policies() == 2)?;
        ensure!(agent.world.cluster_identity_policies["cidp"].spec.priority == Some(7));
        server.kubectl(["delete", "crd", OURS[0], OURS[1]])?;
        agent.until("the policies are gone", |agent| agent.policies() == 0)?;
    }

    // A pod of the same name is another pod.
    let old = agent.world.pods.keys().cloned().collect::<BTreeSet<_>>();
    server.kubectl(["delete", "--namespace=shop", "pod/api-1", "--grace-period=0", "--force"])?;
    server.apply(OBJECTS)?;
    agent.until("another pod", |agent| {
        agent.world.pods.len() == 1 && agent.world.pods.keys().all(|uid| !old.contains(uid))
    })?;
    server.kubectl(["delete", "--namespace=shop", "networkpolicy/np", "service/api"])?;
    agent.until("the network policy is gone", |agent| agent.world.network_policies.is_empty())?;
    Ok(())
}

#[test]
fn a_real_server_that_was_away_is_caught_up_with_also_when_its_history_is_gone() -> Result<()> {
    let mut server = ApiServer::start()?;
    define(&server)?;
    server.apply(OBJECTS)?;
    server.apply(IDENTITY_POLICY)?;
    let mut agent = Consumer::start(&server, "admin")?;
    agent.until("everything is listed", |agent| agent.synced && agent.policies() == 1)?;
    let before = agent.world.clone();

    server.stop_server()?;
    let silent = |agent: &Consumer| agent.problems.iter().any(|p| p.message.contains("does not answer for"));
    agent.until("the silence is reported", silent)?;
    ensure!(
        agent.world == before && agent.deleted.is_empty(),
        "an outage changed something: {:?}",
        agent.deleted
    );

    server.start_server()?;
    agent.until("all is well", |agent| agent.problems.is_empty())?;
    ensure!(
        agent.world == before && agent.deleted.is_empty(),
        "a restart changed something: {:?}",
        agent.deleted
    );

    // While it is away for the agent, everything changes, and the way from there to here is forgotten.
    let lists = |agent: &Consumer| agent.source.watch().status().kinds["Pod"].lists;
    let listed = lists(&agent);
    server.stop_server()?;
    agent.until("the silence is reported", silent)?;
    server.start_server_aside()?;
    server.kubectl(["delete", "--namespace=shop", "pod/api-1", "--grace-period=0", "--force"])?;
    server.apply(&OBJECTS.replace("name: api-1", "name: api-2"))?;
    server.kubectl(["delete", "--namespace=shop", "identitypolicy/idp"])?;
    server.compact()?;
    server.stop_server()?;
    ensure!(agent.world == before, "it was not away");
    server.start_server()?;
    agent.until("the new state", |agent| {
        agent.policies() == 0 && agent.world.pods.values().map(|pod| pod.name.as_str()).eq(["api-2"])
    })?;
    agent.until("all is well", |agent| agent.problems.is_empty())?;
    ensure!(lists(&agent) > listed, "it went on from where it was");
    let mut fresh = Consumer::start(&server, "admin")?;
    fresh.until("everything is listed", |agent| agent.synced)?;
    ensure!(fresh.world == agent.world, "fresh: {:#?} old: {:#?}", fresh.world, agent.world);
    Ok(())
}

#[test]
fn what_a_real_server_forbids_is_named_by_its_rule_until_it_is_allowed() -> Result<()> {
    const ALL: &str = "pods, namespaces, serviceaccounts, nodes, services, endpointslices, servicecidrs, configmaps, \
                       identitypolicies, clusteridentitypolicies, networkpolicies";
    let server = ApiServer::start()?;
    server.apply(OBJECTS)?;
    server.apply(&role(ALL.trim_end_matches(", networkpolicies")))?;
    let mut agent = Consumer::start(&server, "restricted")?;
    agent.until("the missing rule is named", |agent| {
        agent.problems.iter().any(|problem| {
            problem.place == "NetworkPolicy"
                && problem.message.contains(
                    "add to the ClusterRole: {apiGroups: [\"networking.k8s.io\"], resources: \
                                             [\"networkpolicies\"], verbs: [\"get\", \"list\", \"watch\"]}",
                )
        })
    })?;
    ensure!(!agent.synced);
    server.apply(&role(ALL))?;
    agent.until("everything is listed", |agent| agent.synced && agent.problems.is_empty())?;
    ensure!(agent.world.network_policies.len() == 1);
    Ok(())
}

#[test]
fn the_role_that_people_install_is_enough() -> Result<()> {
    let server = ApiServer::start()?;
    server.apply(OBJECTS)?;
    define(&server)?;
    server.apply(IDENTITY_POLICY)?;
    server.apply(GUARDRAIL)?;
    server.apply(&deployed("base/rbac.yaml")?)?;
    server.add_account("portcullis-system", "portcullis")?;
    let mut agent = Consumer::start(&server, "portcullis")?;
    agent.until("everything is listed", |agent| agent.synced || !agent.problems.is_empty())?;
    ensure!(agent.problems.is_empty(), "{:#?}", agent.problems);
    ensure!((agent.policies(), agent.world.cluster_configs.len()) == (2, 1));
    Ok(())
}
