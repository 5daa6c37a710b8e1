//! The compiler: from the world to the desired maps, a pure function but for the numbers that it asks for.
//!
//! Policies are translated ([`super::ir`]), linked ([`super::linked`]) and matched against the pods
//! ([`super::population`]); addresses fall into peer classes ([`super::classes`]), pods into subject classes
//! ([`super::subjects`]), and each subject class gets its rows by way of the tiers ([`super::tiers`]). Everything is
//! visited in the order of names and addresses, so that the same world and numbers give the same result.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use portcullis_common::abi::{Mode, NumberSpace};
use portcullis_common::identity::identity_flags;
use portcullis_common::{Direction, Identity, Kind};

use super::blocks::Regions;
use super::classes::{PeerClass, PeerClasses, used_ports};
use super::desired::{Desired, PodIdentity, Problem, RowSet};
use super::ir::{Policy, Report, parse_mode};
use super::linked::Linked;
use super::population::{Holder, Population};
use super::subjects::{RowWriter, SubjectClass};
use super::{cluster_config, identity_policy, network_policy, services};
use crate::api::MODE_KEY;
use crate::identity::Numbers;
use crate::model::World;

/// Compiles the world.
///
/// Numbers are used from [`Numbers::begin`] on, so that afterwards [`Numbers::unused`] tells which are no longer needed.
/// The mode of the whole agent is not looked at: the datapath applies it.
pub fn compile(world: &World, numbers: &mut Numbers) -> Desired {
    numbers.begin();
    let mut desired = Desired::default();
    cluster_config::report(world, &mut desired.problems);
    let modes = namespace_modes(world, &mut desired.problems);
    let linked = Linked::new(policies_in_force(world, &modes, &mut desired.problems));
    let population = Population::new(world, &linked);
    let pod_ranges = world.nodes.values().flat_map(|node| &node.pod_cidrs).chain(&world.settings.pod_cidrs);
    let regions = Regions::new(&linked.blocks, &pod_ranges.copied().collect(), &services::ranges(world));

    let mut compiler =
        Compiler { world, linked: &linked, population: &population, regions: &regions, numbers, desired };
    let mut peers = compiler.addresses();
    compiler.desired.names.peers = std::mem::take(&mut peers.names);
    services::compile(world, &population, compiler.numbers, &mut compiler.desired);
    compiler.subjects(&modes, &peers);
    desired = compiler.desired;
    desired.problems.sort();
    desired.problems.dedup();
    desired
}

/// The modes that namespaces ask for.
pub(super) fn namespace_modes<'w>(world: &'w World, problems: &mut Vec<Problem>) -> HashMap<&'w str, Mode> {
    let mode = |namespace: &'w crate::model::Namespace| {
        let mut report = Report::new(format_args!("Namespace {}", namespace.name), problems);
        let text = namespace.labels.get(MODE_KEY).map(String::as_str);
        (namespace.name.as_str(), parse_mode(text, &format!("metadata.labels[{MODE_KEY}]"), &mut report))
    };
    world.namespaces.values().map(mode).collect()
}

/// Every policy, translated, but for those that are switched off: themselves, or by their namespace.
pub(super) fn policies_in_force(
    world: &World,
    modes: &HashMap<&str, Mode>,
    problems: &mut Vec<Problem>,
) -> Vec<Policy> {
    let mut policies = Vec::new();
    if world.settings.network_policies {
        policies.extend(
            world.network_policies.values().map(|policy| network_policy::translate(policy, problems)),
        );
    }
    policies
        .extend(world.identity_policies.values().map(|policy| identity_policy::translate(policy, problems)));
    policies.retain(|policy| {
        let namespace = modes.get(policy.name.namespace.as_str()).copied().unwrap_or(Mode::Enforce);
        policy.mode.max(namespace) != Mode::Off
    });
    policies
}

struct Compiler<'a> {
    world: &'a World,
    linked: &'a Linked,
    population: &'a Population<'a>,
    regions: &'a Regions,
    numbers: &'a mut Numbers,
    desired: Desired,
}

/// A subject class on its way to its rows.
struct Wanted {
    class: SubjectClass,
    definition: String,
    /// A pod of this node has it.
    local: bool,
    /// UIDs of the pods.
    pods: BTreeSet<String>,
}

impl<'a> Compiler<'a> {
    /// Fills the address maps, and finds the peer classes.
    fn addresses(&mut self) -> PeerClasses<'a> {
        let names = &mut self.desired.names.principals;
        for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Pod | Kind::Service)) {
            names.insert(kind.principal(), kind.name().to_owned());
        }
        let mut peers = PeerClasses::new(self.linked);
        let principals: Vec<(u32, String)> = self
            .population
            .groups
            .iter()
            .map(|group| {
                let name = format!("{}/{}", group.namespace, group.account);
                let number = self.numbers.number(NumberSpace::Principal, &name);
                names.insert(number, name.clone());
                (number, name)
            })
            .collect();
        for (&address, &holder) in &self.population.holders {
            let blocks = self.regions.find(address).map(|region| region.blocks.clone()).unwrap_or_default();
            let (kind, group, ports) = match holder {
                Holder::Kind(kind) => (kind, None, Arc::default()),
                Holder::Service { borrowed } => {
                    let identity = self.service(&mut peers);
                    let flags = if borrowed { identity_flags::BORROWED } else { 0 };
                    self.desired.ipcache.insert(address, Identity { flags, ..identity });
                    continue;
                }
                Holder::Pod(pod, group) => {
                    let ports =
                        used_ports(&pod.named_ports, |name| self.linked.peer_port_names.contains(name));
                    (Kind::Pod, Some(group), ports.into_iter().collect())
                }
            };
            let (principal, name) = match group {
                Some(group) => (principals[group].0, principals[group].1.as_str()),
                None => (kind.principal(), kind.name()),
            };
            let selectors =
                group.map(|group| self.population.groups[group].selectors.clone()).unwrap_or_default();
            let class = PeerClass { kind, principal, selectors, blocks, ports };
            let peer = peers.number(class, name, self.numbers);
            self.desired.ipcache.insert(address, Identity::new(principal, peer, kind));
        }
        for (prefix, region) in self.regions.iter() {
            if region.service_range {
                let identity = self.service(&mut peers);
                self.desired.cidrs.insert(prefix, identity);
                continue;
            }
            let kind = if region.pod_range { Kind::Unmanaged } else { Kind::World };
            let class = PeerClass {
                kind,
                principal: kind.principal(),
                selectors: Arc::default(),
                blocks: region.blocks.clone(),
                ports: Arc::default(),
            };
            let peer = peers.number(class, kind.name(), self.numbers);
            self.desired.cidrs.insert(prefix, Identity::new(kind.principal(), peer, kind));
        }
        peers
    }

    /// The identity of a service's address: no selector and no block is about it.
    fn service(&mut self, peers: &mut PeerClasses<'a>) -> Identity {
        let kind = Kind::Service;
        let class = PeerClass {
            kind,
            principal: kind.principal(),
            selectors: Arc::default(),
            blocks: Arc::default(),
            ports: Arc::default(),
        };
        Identity::new(kind.principal(), peers.number(class, kind.name(), self.numbers), kind)
    }

    /// Finds the subject classes, gives them to their pods and writes their rows.
    fn subjects(&mut self, modes: &HashMap<&str, Mode>, peers: &PeerClasses<'_>) {
        let wanted = self.wanted(modes);
        // This node's own pods come first: should the numbers run out, it is not they who go without.
        let (local, remote): (Vec<Wanted>, Vec<Wanted>) = wanted.into_iter().partition(|wanted| wanted.local);
        let wanted: Vec<Wanted> = local.into_iter().chain(remote).collect();

        let mut rule_numbers = vec![0; self.linked.rule_names.len()];
        let mut subject_of: HashMap<&str, u32> = HashMap::new();
        let mut numbered: Vec<(&Wanted, u32)> = Vec::with_capacity(wanted.len());
        for subject in &wanted {
            let number = self.numbers.number(NumberSpace::Subject, &subject.definition);
            if number == 0 {
                self.desired.problems.push(Problem {
                    object: format!("subject class {}", subject.definition),
                    field: String::new(),
                    message: "there is no room for it in the array of subject classes: its pods on this node are \
                              denied everything, and egress of pods elsewhere is not checked again here; make the \
                              array larger"
                        .to_owned(),
                });
                continue;
            }
            for &direction in directions(subject.local) {
                for rule in subject.class.rules(self.linked, direction) {
                    if rule_numbers[rule] != 0 {
                        continue;
                    }
                    let name = &self.linked.rule_names[rule];
                    rule_numbers[rule] = self.numbers.number(NumberSpace::Rule, name);
                    self.desired.names.rules.insert(rule_numbers[rule], name.clone());
                }
            }
            self.desired.names.subjects.insert(number, subject.definition.clone());
            subject_of.extend(subject.pods.iter().map(|uid| (uid.as_str(), number)));
            numbered.push((subject, number));
        }

        let mut writer =
            RowWriter { linked: self.linked, peers, rule_numbers: &rule_numbers, functions: HashSet::new() };
        for (subject, number) in numbered {
            let mut rows = RowSet::new();
            for &direction in directions(subject.local) {
                writer.write(&subject.class, direction, &mut rows);
            }
            if subject.local {
                writer.write_sets(&self.desired.sets, &mut rows);
            }
            self.desired.subjects.insert(number, Arc::new(rows));
        }

        for (&address, &holder) in &self.population.holders {
            let Holder::Pod(pod, group) = holder else { continue };
            let subject = subject_of.get(pod.uid.as_str()).copied().unwrap_or_default();
            let Some(identity) = self.desired.ipcache.get_mut(&address) else { continue };
            identity.subject = subject;
            if is_local(self.world, &pod.node) {
                let entry = self.desired.pods.entry(pod.uid.clone()).or_insert_with(|| PodIdentity {
                    name: format!("{}/{}", self.population.groups[group].namespace, pod.name),
                    principal: identity.principal,
                    subject,
                    addresses: Vec::new(),
                });
                entry.addresses.push(address);
            }
        }
    }

    /// The subject classes that need rows here: of this node's pods, and of other pods on whose egress a policy acts. In
    /// the order of their definitions.
    fn wanted(&self, modes: &HashMap<&str, Mode>) -> Vec<Wanted> {
        let default = self.world.settings.default_verdict;
        let mut by_class: HashMap<SubjectClass, Wanted> = HashMap::new();
        for holder in self.population.holders.values() {
            let Holder::Pod(pod, group) = *holder else { continue };
            let group = &self.population.groups[group];
            let mode = modes.get(group.namespace).copied().unwrap_or(Mode::Enforce);
            let class = SubjectClass::new(self.linked, group, pod, mode, default);
            let local = is_local(self.world, &pod.node);
            if !local && !class.acts(self.linked, Direction::Egress) {
                continue;
            }
            let wanted = by_class.entry(class).or_insert_with_key(|class| Wanted {
                class: class.clone(),
                definition: class.definition(self.linked, default),
                local: false,
                pods: BTreeSet::new(),
            });
            wanted.local |= local;
            wanted.pods.insert(pod.uid.clone());
        }
        let by_definition: BTreeMap<String, Wanted> =
            by_class.into_values().map(|wanted| (wanted.definition.clone(), wanted)).collect();
        by_definition.into_values().collect()
    }
}

fn directions(local: bool) -> &'static [Direction] {
    if local { &[Direction::Ingress, Direction::Egress] } else { &[Direction::Egress] }
}

/// Whether a pod is one of this node's: it runs here, or nothing says where it runs.
fn is_local(world: &World, node: &str) -> bool {
    node.is_empty() || node == world.settings.node_name
}
