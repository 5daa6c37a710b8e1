//! The file of truth tables: small clusters with the expected verdict of every pair of pods on some ports.
//!
//! Invariant: what does not fit the shape is refused with a sentence that names the step and the field. A cell is never
//! skipped silently.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::networking::v1 as networking;
use portcullis::model::{Labels, Namespace, NetworkPolicy, Object, Pod, ServiceAccount, World};
use serde::Deserialize;
use serde_json::Value;

/// A transport protocol by name, with its IANA number.
const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];
/// The ports that every pod of such a cluster serves, whatever the tables ask.
const SERVED: [u16; 2] = [80, 81];
/// The three tables of a step.
const TABLES: [&str; 3] = ["ingress", "egress", "combined"];

/// A protocol and a port: the key of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// IANA number.
    pub protocol: u8,
    /// The port.
    pub number: u16,
}

impl Port {
    fn parse(text: &str) -> Result<Self> {
        let fits = || {
            let (name, number) = text.split_once('/')?;
            let (_, protocol) = PROTOCOLS.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
            Some(Self { protocol, number: number.parse().ok().filter(|number| *number > 0)? })
        };
        fits().with_context(|| {
            format!("`{text}` is no port: write TCP/, UDP/ or SCTP/ and a number from 1 to 65535")
        })
    }

    /// The name of the protocol.
    pub fn protocol_name(self) -> &'static str {
        PROTOCOLS.iter().find(|(_, number)| *number == self.protocol).map_or("?", |(name, _)| name)
    }

    /// What the container's port is called.
    pub fn container_name(self) -> String {
        format!("serve-{}-{}", self.number, self.protocol_name().to_lowercase())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol_name(), self.number)
    }
}

/// Whether each of the three is allowed, in the order ingress, egress, combined.
pub type Cell = [bool; 3];

/// A pod of a step.
#[derive(Clone, Debug)]
pub struct StepPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Its addresses, the one that the tables are about first.
    pub addresses: Vec<IpAddr>,
}

impl fmt::Display for StepPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A cluster with its tables.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it is in the file and what it is about, for people.
    pub title: String,
    /// Number of the case, and of the step in it, where the file gives them.
    pub id: (u64, u64),
    /// Namespaces with their labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// The pods, in the order of rows and columns.
    pub pods: Vec<StepPod>,
    /// The policies.
    pub policies: Vec<networking::NetworkPolicy>,
    /// By port: row of the sender, column of the receiver.
    pub tables: BTreeMap<Port, Vec<Vec<Cell>>>,
}

/// A question that a step answers.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Index of the sending pod.
    pub from: usize,
    /// Index of the receiving pod.
    pub to: usize,
    /// Protocol and destination port.
    pub port: Port,
    /// The truth.
    pub wanted: Cell,
}

/// Whose service account the pods of a world have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accounts {
    /// All of a namespace `default`, as the file has it.
    Default,
    /// Each one of its own, so that each pair of pods has counters of its own.
    PerPod,
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Vec<Step>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no file of truth tables", path.display()))
}

/// Reads the text of a file.
pub fn parse(text: &str) -> Result<Vec<Step>> {
    let values: Vec<Value> = serde_json::from_str(text).context("a JSON list of steps is wanted")?;
    ensure!(!values.is_empty(), "there is no step in it");
    values.into_iter().enumerate().map(|(index, value)| step(index, value)).collect()
}

/// A step as the file has it.
#[derive(Deserialize)]
struct RawStep {
    #[serde(default)]
    case: u64,
    #[serde(default)]
    step: u64,
    #[serde(default)]
    description: String,
    namespaces: BTreeMap<String, Labels>,
    pods: Vec<RawPod>,
    policies: Vec<Value>,
    ingress: RawTable,
    egress: RawTable,
    combined: RawTable,
}

type RawTable = BTreeMap<String, Vec<String>>;

#[derive(Deserialize)]
struct RawPod {
    namespace: String,
    name: String,
    #[serde(default)]
    labels: Labels,
    /// One address, or several.
    ip: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(IpAddr),
    More(Vec<IpAddr>),
}

fn step(index: usize, value: Value) -> Result<Step> {
    let number = |field: &str| value.get(field).and_then(Value::as_u64).unwrap_or_default();
    let place = format!("step {} of the file (case {} step {})", index + 1, number("case"), number("step"));
    let raw = serde_json::from_value(value).map_err(anyhow::Error::from);
    raw.and_then(convert).with_context(|| place)
}

fn convert(raw: RawStep) -> Result<Step> {
    let RawStep { case, step, description, namespaces, pods, policies, ingress, egress, combined } = raw;
    let pods = pods.into_iter().map(|pod| StepPod {
        namespace: pod.namespace,
        name: pod.name,
        labels: pod.labels,
        addresses: match pod.ip {
            OneOrMore::One(address) => vec![address],
            OneOrMore::More(addresses) => addresses,
        },
    });
    let pods: Vec<StepPod> = pods.collect();
    check_pods(&pods, &namespaces)?;
    let policies = policies.into_iter().enumerate().map(|(index, value)| {
        serde_json::from_value(value)
            .map_err(anyhow::Error::from)
            .and_then(|policy| named(policy, &namespaces))
            .with_context(|| format!("policies[{index}]"))
    });
    let mut step = Step {
        title: format!("case {case} step {step} ({description})"),
        id: (case, step),
        policies: policies.collect::<Result<_>>()?,
        namespaces,
        pods,
        tables: BTreeMap::new(),
    };
    step.take_tables(&[ingress, egress, combined])?;
    Ok(step)
}

fn check_pods(pods: &[StepPod], namespaces: &BTreeMap<String, Labels>) -> Result<()> {
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for pod in pods {
        ensure!(namespaces.contains_key(&pod.namespace), "the namespace of the pod {pod} is not there");
        ensure!(names.insert((&pod.namespace, &pod.name)), "there are two pods {pod}");
        ensure!(!pod.addresses.is_empty(), "the pod {pod} has no address");
        for address in &pod.addresses {
            ensure!(addresses.insert(address), "{address} of the pod {pod} is another pod's, too");
        }
    }
    Ok(())
}

/// A policy with what it takes to be one: its namespace and its name.
fn named(
    policy: networking::NetworkPolicy,
    namespaces: &BTreeMap<String, Labels>,
) -> Result<networking::NetworkPolicy> {
    let namespace = policy.metadata.namespace.as_deref().context("it has no metadata.namespace")?;
    ensure!(policy.metadata.name.is_some(), "it has no metadata.name");
    ensure!(namespaces.contains_key(namespace), "its namespace {namespace} is not there");
    Ok(policy)
}

impl Step {
    fn take_tables(&mut self, tables: &[RawTable; 3]) -> Result<()> {
        let keys: BTreeSet<&String> = tables.iter().flat_map(BTreeMap::keys).collect();
        ensure!(!keys.is_empty(), "its tables are empty");
        let size = self.pods.len();
        for key in keys {
            let port = Port::parse(key)?;
            let mut cells = vec![vec![Cell::default(); size]; size];
            for (which, (table, name)) in tables.iter().zip(TABLES).enumerate() {
                let rows = table.get(key).with_context(|| format!("the table {name} lacks {key}"))?;
                ensure!(rows.len() == size, "{name} {key} has {} rows for {size} pods", rows.len());
                for (i, row) in rows.iter().enumerate() {
                    let letters: Vec<char> = row.chars().collect();
                    ensure!(
                        letters.len() == size,
                        "row {i} of {name} {key} has {} cells for {size} pods",
                        letters.len()
                    );
                    for (j, letter) in letters.into_iter().enumerate().filter(|(j, _)| *j != i) {
                        cells[i][j][which] = match letter {
                            '.' => true,
                            'X' => false,
                            other => {
                                bail!("`{other}` in row {i}, column {j} of {name} {key} is neither . nor X")
                            }
                        };
                    }
                }
            }
            ensure!(self.tables.insert(port, cells).is_none(), "{key} is there twice");
        }
        Ok(())
    }

    /// Every cell but the diagonal's: a policy cannot keep a pod from itself.
    pub fn questions(&self) -> impl Iterator<Item = Asked> + '_ {
        self.tables.iter().flat_map(|(&port, rows)| {
            rows.iter().enumerate().flat_map(move |(from, row)| {
                let others = row.iter().enumerate().filter(move |(to, _)| *to != from);
                others.map(move |(to, &wanted)| Asked { from, to, port, wanted })
            })
        })
    }

    /// Addresses of one family by which the one pod talks to the other: the first that they have.
    pub fn addresses(&self, from: usize, to: usize) -> Result<(IpAddr, IpAddr)> {
        let (from, to) = (&self.pods[from], &self.pods[to]);
        let pairs = from.addresses.iter().flat_map(|a| to.addresses.iter().map(move |b| (*a, *b)));
        let mut same = pairs.filter(|(a, b)| a.is_ipv4() == b.is_ipv4());
        same.next().with_context(|| format!("{from} and {to} have no addresses of one family"))
    }

    /// The ports that the pods' containers have, by name.
    pub fn served(&self) -> BTreeSet<Port> {
        let always =
            SERVED.into_iter().flat_map(|number| PROTOCOLS.map(|(_, protocol)| Port { protocol, number }));
        self.tables.keys().copied().chain(always).collect()
    }

    /// The UID of a pod in [`Step::world`].
    pub fn uid(&self, pod: usize) -> String {
        self.pods[pod].to_string()
    }

    /// The cluster.
    pub fn world(&self, accounts: Accounts) -> Result<World> {
        let mut world = World::default();
        let account = |pod: &StepPod| match accounts {
            Accounts::Default => "default".to_owned(),
            Accounts::PerPod => pod.name.clone(),
        };
        for (name, labels) in &self.namespaces {
            world.apply(Object::Namespace(Namespace { name: name.clone(), labels: labels.clone() }));
        }
        let ports: Vec<_> = self
            .served()
            .into_iter()
            .map(|port| (port.container_name(), port.protocol, port.number))
            .collect();
        for (index, pod) in self.pods.iter().enumerate() {
            world.apply(Object::ServiceAccount(ServiceAccount {
                namespace: pod.namespace.clone(),
                name: account(pod),
                labels: Labels::new(),
            }));
            world.apply(Object::Pod(Pod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: self.uid(index),
                service_account: account(pod),
                labels: pod.labels.clone(),
                addresses: pod.addresses.clone(),
                named_ports: ports.clone(),
                ..Pod::default()
            }));
        }
        for policy in &self.policies {
            let policy = NetworkPolicy::try_from(policy.clone())
                .with_context(|| format!("a policy of {} is none", self.title))?;
            world.apply(Object::NetworkPolicy(policy));
        }
        Ok(world)
    }
}
