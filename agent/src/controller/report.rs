//! The names file and the state that metrics and status show, made from what the owner knows.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_common::Direction;

use super::owner::Owner;
use crate::cli::hook_name;
use crate::datapath::HookState;
use crate::model::{ObjectKey, ObjectKind, World};
use crate::policy::{frontend_text, summarize};
use crate::sources::Source;
use crate::state::{EndpointState, FORMAT, PolicyState, ProblemState, SourceState, State};
use crate::status_writer::{Verdict, Verdicts};

/// Seconds since the epoch.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// The state of now.
pub fn state(owner: &Owner, source: &Source) -> State {
    let names = &owner.desired().names;
    let mut problems: Vec<ProblemState> = owner
        .desired()
        .problems
        .iter()
        .map(|p| ProblemState {
            object: p.object.clone(),
            field: p.field.clone(),
            message: p.message.clone(),
        })
        .collect();
    problems.extend(owner.bypassed.iter().map(|(name, kind)| ProblemState {
        object: format!("interface {name}"),
        field: String::new(),
        message: format!(
            "is a {kind} of a pod, on which our programs do not see every packet: the pod is not judged"
        ),
    }));
    let pods = owner
        .desired()
        .pods
        .values()
        .flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.name.clone())))
        .chain(
            crate::identity::owners(&owner.world)
                .into_iter()
                .map(|(address, pod)| (address, format!("{}/{}", pod.namespace, pod.name))),
        )
        .collect();
    State {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: owner.world.settings.node_name.clone(),
        pid: std::process::id(),
        written: seconds(SystemTime::now()),
        last_success: owner.last_success.map_or(0, seconds),
        attach: if owner.datapath().uses_tcx() { "tcx" } else { "clsact" }.to_owned(),
        mode: owner.world.mode().name().to_owned(),
        mode_source: mode_source(&owner.world),
        source: source_state(owner, source),
        principals: names.principals.clone(),
        peers: names.peers.clone(),
        subjects: names.subjects.clone(),
        rules: names.rules.clone(),
        services: names.services.iter().map(|(key, name)| (frontend_text(key), name.clone())).collect(),
        pods,
        endpoints: endpoints(owner),
        uncovered: owner.coverage.uncovered().clone(),
        ignored: owner.ignored.clone(),
        policies: summarize(&owner.world)
            .into_iter()
            .map(|policy| PolicyState {
                kind: policy.kind.to_owned(),
                namespace: policy.namespace,
                name: policy.name,
                mode: policy.mode.name().to_owned(),
                directions: policy.directions.iter().map(|d| d.name().to_owned()).collect(),
                pods: policy.pods,
            })
            .collect(),
        problems,
        errors: owner.errors.clone(),
        ..State::default()
    }
}

/// What became of each policy of our own kinds: what the compiler and the source do not understand of it.
pub fn verdicts(owner: &Owner) -> Verdicts {
    let mut problems: HashMap<String, Vec<String>> = HashMap::new();
    for problem in &owner.desired().problems {
        let text = if problem.field.is_empty() {
            problem.message.clone()
        } else {
            format!("{}: {}", problem.field, problem.message)
        };
        problems.entry(problem.object.clone()).or_default().push(text);
    }
    for problem in &owner.problems {
        problems.entry(problem.place.clone()).or_default().push(problem.message.clone());
    }
    let world = &owner.world;
    let namespaced = world.identity_policies.values().map(|policy| {
        (ObjectKind::IdentityPolicy, policy.namespace.as_str(), &policy.name, policy.generation)
    });
    let of_cluster = world
        .cluster_identity_policies
        .values()
        .map(|policy| (ObjectKind::ClusterIdentityPolicy, "", &policy.name, policy.generation));
    let verdict = |(kind, namespace, name, generation): (_, &str, &String, _)| {
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() };
        let problems = problems.remove(&key.to_string()).unwrap_or_default();
        (key, Verdict { generation, problems })
    };
    namespaced.chain(of_cluster).map(verdict).collect()
}

/// Where the mode comes from.
pub fn mode_source(world: &World) -> String {
    match world.cluster_config() {
        Some(config) if config.mode().is_some() => format!("ConfigMap {}/{}", config.namespace, config.name),
        _ => "--mode".to_owned(),
    }
}

/// The state while nothing is programmed yet: what is in force, and all that its numbers mean, is the earlier agent's;
/// only what keeps this one from programming is its own, and whether it writes the status of policies. So a start that never
/// gets that far loses no name and no binding, and tells why.
pub fn before_programming(now: State, earlier: &State) -> State {
    State {
        format: now.format,
        version: now.version,
        node: now.node,
        pid: now.pid,
        written: now.written,
        source: now.source,
        errors: now.errors,
        writes_status: now.writes_status,
        status_error: now.status_error,
        ..earlier.clone()
    }
}

fn source_state(owner: &Owner, source: &Source) -> SourceState {
    let world = &owner.world;
    let counts = [
        ("Pod", world.pods.len()),
        ("Namespace", world.namespaces.len()),
        ("ServiceAccount", world.service_accounts.len()),
        ("Node", world.nodes.len()),
        ("Service", world.services.len()),
        ("EndpointSlice", world.endpoint_slices.len()),
        ("ServiceCIDR", world.service_cidrs.len()),
        ("NetworkPolicy", world.network_policies.len()),
        ("IdentityPolicy", world.identity_policies.len()),
        ("ClusterIdentityPolicy", world.cluster_identity_policies.len()),
        ("ConfigMap", world.cluster_configs.len()),
    ];
    SourceState {
        name: source.name(),
        synced: owner.synced,
        errors: owner.problems.iter().map(ToString::to_string).collect(),
        objects: counts.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
        silent_since: source.silent_since().map_or(0, seconds),
    }
}

fn endpoints(owner: &Owner) -> Vec<EndpointState> {
    owner
        .endpoints
        .iter()
        .map(|candidate| {
            let uid = owner.bindings.uid(candidate.ifindex);
            let pod = uid.and_then(|uid| owner.desired().pods.get(uid));
            let hooks = Direction::ALL
                .iter()
                .map(|direction| {
                    let state = match owner.hook(candidate.ifindex, *direction) {
                        HookState::Attached => "attached",
                        HookState::NotFirst => "not-first",
                        HookState::Missing => "missing",
                    };
                    (hook_name(*direction).to_owned(), state.to_owned())
                })
                .collect();
            let foreign = Direction::ALL
                .iter()
                .map(|d| (hook_name(*d).to_owned(), owner.foreign(candidate.ifindex, *d).to_vec()))
                .filter(|(_, programs)| !programs.is_empty())
                .collect();
            let warning = owner.bindings.warning(candidate.ifindex).map(str::to_owned);
            EndpointState {
                ifindex: candidate.ifindex,
                interface: candidate.name.clone(),
                pod: pod.map(|pod| pod.name.clone()),
                uid: uid.map(str::to_owned),
                unknown: owner.bindings.unknown(candidate.ifindex).name().to_owned(),
                principal: pod
                    .and_then(|pod| owner.desired().names.principals.get(&pod.principal).cloned())
                    .unwrap_or_else(|| "unmanaged".to_owned()),
                addresses: pod.map_or_else(|| candidate.addresses.clone(), |pod| pod.addresses.clone()),
                hooks,
                foreign,
                warning,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_start_that_programs_nothing_keeps_names_and_bindings_and_tells_what_is_wrong() {
        let earlier = State {
            pid: 1,
            last_success: 7,
            principals: BTreeMap::from([(16, "shop/api".to_owned())]),
            endpoints: vec![EndpointState {
                ifindex: 5,
                uid: Some("api".to_owned()),
                ..EndpointState::default()
            }],
            source: SourceState { synced: true, ..SourceState::default() },
            writes_status: Some(true),
            ..State::default()
        };
        let source = SourceState { errors: vec!["db.yaml: typo".to_owned()], ..SourceState::default() };
        let now = State { pid: 2, source: source.clone(), writes_status: Some(false), ..State::default() };
        let merged = before_programming(now, &earlier);
        assert_eq!((merged.pid, &merged.source), (2, &source));
        assert_eq!(merged.writes_status, Some(false), "the earlier one led, and this one is a candidate");
        let rest = State { pid: 1, source: earlier.source.clone(), writes_status: Some(true), ..merged };
        assert_eq!(rest, earlier);
    }
}
