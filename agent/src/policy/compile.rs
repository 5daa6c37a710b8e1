//! Compiling a world from nothing, and the policies that are in force in it.

use std::collections::HashMap;

use portcullis_common::abi::Mode;

use super::compiler::Compiler;
use super::desired::{Desired, Problem};
use super::ir::{Policy, Report, parse_mode};
use super::{cluster_identity_policy, identity_policy, network_policy};
use crate::api::MODE_KEY;
use crate::identity::Numbers;
use crate::model::World;

/// Compiles a world from nothing.
///
/// Numbers are used from [`Numbers::begin`] on, so that afterwards [`Numbers::unused`] tells which are no longer needed.
/// The mode of the whole agent is not looked at: the datapath applies it.
pub fn compile(world: &World, numbers: &mut Numbers) -> Desired {
    let mut compiler = Compiler::default();
    compiler.rebuild(world, numbers);
    compiler.into_desired()
}

/// The modes that namespaces ask for.
pub(super) fn namespace_modes(world: &World, problems: &mut Vec<Problem>) -> HashMap<String, Mode> {
    let mode = |namespace: &crate::model::Namespace| {
        let mut report = Report::new(format_args!("Namespace {}", namespace.name), problems);
        let text = namespace.labels.get(MODE_KEY).map(String::as_str);
        (namespace.name.clone(), parse_mode(text, &format!("metadata.labels[{MODE_KEY}]"), &mut report))
    };
    world.namespaces.values().map(mode).collect()
}

/// Every policy, translated, but for those that are switched off: themselves, or by their namespace, if they have one.
pub(super) fn policies_in_force(
    world: &World,
    modes: &HashMap<String, Mode>,
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
    let of_cluster = world.cluster_identity_policies.values();
    policies.extend(of_cluster.map(|policy| cluster_identity_policy::translate(policy, problems)));
    policies.retain(|policy| {
        let namespace = modes.get(policy.name.namespace.as_str()).copied().unwrap_or(Mode::Enforce);
        policy.mode.max(namespace) != Mode::Off
    });
    policies
}
