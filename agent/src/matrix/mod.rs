//! Who can reach whom: the compiled policies of a folder of manifests, asked about every pair of pods.
//!
//! Invariants: the answer comes from the lowered maps by the procedure that runs in the kernel; where a pod runs plays no
//! part; and what is assumed because the folder does not say it is said in a note.

mod addresses;
mod cast;
mod cells;

use std::collections::BTreeSet;

use ipnet::IpNet;
use portcullis_common::Verdict;
use portcullis_common::abi::Mode;

pub use crate::policy::Port;
pub use cells::{MEANINGS, Tables};

use crate::identity::Numbers;
use crate::policy::{HostMaps, compile, mentioned_ports};
use crate::sources::SourceProblem;
use crate::sources::manifests::Reading;
use cast::Cast;

/// What the rows and columns are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Pods, and workloads that stand for theirs.
    #[default]
    Pod,
    /// Principals.
    Principal,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What the rows and columns are.
    pub by: By,
    /// The ports; none: those that policies or containers name.
    pub ports: Vec<Port>,
    /// Where pods without an address get one from; none: the ranges of the Nodes, else a usual one.
    pub pod_cidrs: Vec<IpNet>,
    /// The verdict where no policy has a say.
    pub default_verdict: Verdict,
}

impl Default for Options {
    fn default() -> Self {
        Self { by: By::Pod, ports: Vec::new(), pod_cidrs: Vec::new(), default_verdict: Verdict::Allow }
    }
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matrix {
    /// The rows and columns: `namespace/name`, or principals, by namespace and name.
    pub names: Vec<String>,
    /// For each port who can reach whom on it, in the order of the ports.
    pub tables: Vec<(Port, Tables)>,
    /// What is left out, and what was assumed.
    pub notes: Vec<String>,
    /// What is not understood.
    pub problems: Vec<SourceProblem>,
}

/// Answers for what a folder says.
pub fn ask(reading: &Reading, options: &Options) -> Matrix {
    let mut cast = Cast::new(reading, options);
    let ports = ports(&mut cast, reading, options);
    let desired = compile(&cast.world, &mut Numbers::default());
    let maps = HostMaps::new(&desired);
    let mut problems = reading.problems.clone();
    let of_policies =
        desired.problems.iter().filter(|problem| !reading.is_narrowed(&problem.object, &problem.field));
    problems
        .extend(of_policies.map(|problem| reading.locate(&problem.object, &problem.field, &problem.message)));
    if cast.world.mode() != Mode::Enforce {
        cast.notes.push(format!(
            "the ConfigMap of Portcullis sets mode {} for the whole cluster: while it does, nothing that is shown as denied \
             is dropped",
            cast.world.mode().name()
        ));
    }
    cast.note_addresses(&desired);
    let others = reading.ignored.iter().filter(|object| object.contains("NetworkPolicy"));
    cast.notes.extend(others.map(|object| format!("{object}: this kind decides nothing in Portcullis")));
    let mut judged = cells::judge(&cast.members, &desired, &maps, options.by, &ports);
    cast.notes.append(&mut judged.notes);
    Matrix { names: judged.names, tables: judged.tables, notes: cast.notes, problems }
}

fn ports(cast: &mut Cast, reading: &Reading, options: &Options) -> BTreeSet<Port> {
    if !options.ports.is_empty() {
        return options.ports.iter().copied().collect();
    }
    let mentioned = mentioned_ports(&cast.world);
    let named = mentioned.iter().chain(&reading.container_ports);
    let mut ports: BTreeSet<Port> = named.map(|&(protocol, number)| Port { protocol, number }).collect();
    if ports.is_empty() && !cast.members.is_empty() {
        cast.notes.push(format!("no policy and no container names a port: shown for {}", Port::HTTP));
        ports.insert(Port::HTTP);
    }
    ports
}
