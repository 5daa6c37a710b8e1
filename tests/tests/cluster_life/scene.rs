//! The pods, policies and servers that all phases share.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use portcullis_tests::cluster::images::BUSYBOX;
use portcullis_tests::cluster::names::OUTSIDE;
use portcullis_tests::cluster::{Cluster, Options};
use portcullis_tests::installed::{self, Wanted};
use portcullis_tests::lifecycle::{Agents, Kind, Line, LivePod, Watch, leftovers};
use portcullis_tests::traffic::Echo;

/// The namespace of everything.
pub const LIFE: &str = "life";
/// The port of all servers.
pub const PORT: u16 = 5432;

/// Account, pod and node of the pods; the account is also the label `app`.
const PODS: &[(&str, &str, usize)] = &[
    ("db", "db-0", 0),
    ("db", "db-1", 1),
    ("api", "api-0", 0),
    ("api", "api-1", 1),
    ("intruder", "intruder-0", 0),
    ("intruder", "intruder-1", 1),
    ("api", "guest-0", 0),
    ("auditor", "auditor-0", 0),
    ("former", "former-1", 1),
    ("web", "web-1", 1),
    ("client", "client-0", 0),
];

/// The database is for the API (and for `former`, until that changes); the intruder is kept from everything, and `right`
/// and `wrong` are those of the burst. The web pod is for those with a label.
const POLICIES: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: life}
spec:
  subject: {serviceAccounts: {names: [db]}}
  ingress:
    rules:
    - name: api
      action: Accept
      from: [{serviceAccounts: {names: [api, former, right]}}]
---
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: kept-in, namespace: life}
spec:
  subject: {serviceAccounts: {names: [intruder, wrong]}}
  egress: {}
---
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: right, namespace: life}
spec:
  subject: {serviceAccounts: {names: [right]}}
  egress:
    rules:
    - name: all
      action: Accept
      to: [{serviceAccounts: {names: [db]}}, {ipBlock: {cidr: 172.30.0.200/32}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: life}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]
";

/// The cluster and what runs in it.
pub struct Scene {
    pub cluster: Cluster,
    pub db: [LivePod; 2],
    pub api: [LivePod; 2],
    pub intruder: [LivePod; 2],
    /// What the first agents loaded into the kernel.
    pub loaded: BTreeSet<String>,
    servers: Vec<Echo>,
}

/// A pod on a node that only sleeps.
pub fn pod(account: &str, name: &str, node: usize, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {LIFE}, labels: {{app: {account}{more}}}}}\n\
         spec:\n  serviceAccountName: {account}\n  nodeName: node{node}\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: [sleep, infinity]}}]\n"
    )
}

impl Scene {
    /// Starts everything, in mode Enforce.
    pub fn up(note: &impl Fn(&str)) -> Result<Self> {
        let cluster = Cluster::up(&Options { images: vec![installed::image()?], ..Options::default() })?;
        note("the cluster is up");
        installed::install(&cluster)?;
        installed::set_mode(&cluster, "Enforce")?;
        note("Portcullis enforces");
        let mut manifests = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {LIFE}}}\n");
        for account in ["db", "api", "intruder", "auditor", "former", "web", "client", "right", "wrong"] {
            manifests.extend([format!(
                "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {LIFE}}}\n"
            )]);
        }
        for (account, name, node) in PODS {
            manifests += &pod(account, name, *node, if *account == "client" { ", role: client" } else { "" });
        }
        manifests.extend([format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: {LIFE}}}\n\
             spec: {{selector: {{app: db}}, ports: [{{port: {PORT}}}]}}\n"
        )]);
        cluster.apply(&format!("{manifests}---{POLICIES}"))?;
        let ready = |name: &str| LivePod::ready(&cluster, LIFE, name);
        let both =
            |name: &str| Ok::<_, anyhow::Error>([ready(&format!("{name}-0"))?, ready(&format!("{name}-1"))?]);
        let (db, api, intruder, web) = (both("db")?, both("api")?, both("intruder")?, ready("web-1")?);
        cluster.wait_for(LIFE, "pods --all", "condition=Ready")?;
        note("the pods are ready");
        let mut servers = Vec::new();
        for pod in db.iter().chain([&web]) {
            servers.push(pod.net.tcp_echo(pod.v4(PORT))?);
            servers.push(pod.net.tcp_echo(pod.v6(PORT))?);
        }
        servers.push(cluster.outside.tcp_echo((OUTSIDE.0, PORT).into())?);
        let policy = |name: &str| (LIFE.to_owned(), name.to_owned());
        let pods = db.iter().chain(&api).chain(&intruder);
        let pods = pods.flat_map(|pod| [pod.v4, pod.v6].map(|at| (at, format!("{LIFE}/{}", pod.name))));
        let wanted =
            Wanted { policies: ["db", "kept-in", "right", "web"].map(policy).into(), pods: pods.collect() };
        installed::wait_programmed(&cluster, &wanted)?;
        note("the policies are programmed");
        let loaded = leftovers::loaded(&cluster)?;
        Ok(Self { cluster, db, api, intruder, loaded, servers })
    }

    /// The agents.
    pub fn agents(&self) -> Agents<'_> {
        Agents(&self.cluster)
    }

    /// Starts another pod and waits until it is ready.
    pub fn add(&self, account: &str, name: &str, node: usize) -> Result<LivePod> {
        self.cluster.apply(&pod(account, name, node, ""))?;
        LivePod::ready(&self.cluster, LIFE, name)
    }

    /// A pod that is there.
    pub fn pod(&self, name: &str) -> Result<LivePod> {
        LivePod::ready(&self.cluster, LIFE, name)
    }

    /// A server outside of the cluster.
    pub fn outside() -> SocketAddr {
        (OUTSIDE.0, PORT).into()
    }

    /// Connections of the API, which are permitted: within a node, across nodes, by both families and by the service.
    pub fn permitted(&self) -> Result<Vec<Line>> {
        let service = self.cluster.value(LIFE, "service/db", "{.spec.clusterIP}")?;
        let service = (service.parse::<std::net::IpAddr>().context("the service's address")?, PORT).into();
        let [db0, db1] = &self.db;
        let mut lines = Vec::new();
        for (kind, from, to) in [
            (Kind::Permitted, &self.api[0], db0.v4(PORT)),
            (Kind::Permitted, &self.api[0], db1.v6(PORT)),
            (Kind::Permitted, &self.api[1], db0.v4(PORT)),
            (Kind::Permitted, &self.api[1], service),
            (Kind::Established, &self.api[0], db0.v6(PORT)),
            (Kind::Established, &self.api[0], db1.v4(PORT)),
            (Kind::Established, &self.api[1], db0.v6(PORT)),
            (Kind::Established, &self.api[1], service),
        ] {
            lines.push(Line { kind, from: from.net(), to });
        }
        Ok(lines)
    }

    /// Connections of the intruder, which are not; and of one that only the database refuses.
    pub fn forbidden(&self) -> Result<Vec<Line>> {
        let [db0, db1] = &self.db;
        let auditor = self.pod("auditor-0")?;
        let lines = [
            (&self.intruder[0], db0.v4(PORT)),
            (&self.intruder[0], db1.v6(PORT)),
            (&self.intruder[1], db0.v4(PORT)),
            (&self.intruder[1], Self::outside()),
            (&auditor, db0.v4(PORT)),
            (&auditor, db1.v4(PORT)),
        ];
        Ok(lines.map(|(from, to)| Line { kind: Kind::Forbidden, from: from.net(), to }).into())
    }

    /// All of it at once, without a pause.
    pub fn watch(&self) -> Result<Watch> {
        let mut lines = self.permitted()?;
        lines.extend(self.forbidden()?);
        Watch::start(lines)
    }

    /// As [`Self::watch`], without the auditor, whom the outage lets in.
    pub fn watch_but_the_auditor(&self) -> Result<Watch> {
        let mut lines = self.permitted()?;
        lines.extend(self.forbidden()?.into_iter().filter(|line| line.from.label() != "auditor-0"));
        Watch::start(lines)
    }

    /// Fails if a connection of the API was ever denied, however briefly: the counters know what a second SYN hides.
    pub fn nothing_permitted_was_denied(&self) -> Result<()> {
        for (source, destination) in [("api", "db"), ("db", "api")] {
            let labels = [
                ("source_service_account", source),
                ("destination_service_account", destination),
                ("verdict", "deny"),
            ];
            let count = installed::metric(&self.cluster, "portcullis_decisions_total", &labels)?;
            anyhow::ensure!(count == 0.0, "{count} connections of {source} to {destination} were denied");
        }
        Ok(())
    }

    /// Ends the servers and the cluster.
    pub fn down(self) -> Result<()> {
        drop(self.servers);
        self.cluster.down()
    }
}
