//! What a peer class gets while addresses move to it: neither the old nor the new rows alone answer for a class that
//! was split off, so it first gets, in the sets in force, what its addresses get today.
//!
//! Invariant: between two applied states no address gets a verdict that neither state gives it, unless it moves to a
//! class that other addresses have already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_common::identity::{FIRST_PEER, Identity};
use portcullis_common::policy::{Decision, PortKey};
use portcullis_common::{Direction, Kind, Reason, Verdict};

use super::scope::{Addresses, Scope};
use crate::policy::{Desired, EndpointSet, Function, RowSet, function_of, longest, row_of_set};

/// A peer class with the kind of its addresses.
type Class = (u32, u8);

/// From which classes addresses come and to which they go.
#[derive(Debug, Default)]
pub struct Moves {
    /// Classes that no address has yet, with those that their addresses have now.
    into: BTreeMap<Class, BTreeSet<Class>>,
    /// Classes that no address will have, with those that their addresses will have.
    out_of: BTreeMap<Class, BTreeSet<Class>>,
    /// Classes of this node's pods, before or afterwards.
    local: BTreeSet<u32>,
    /// Endpoint sets that are new.
    new_sets: BTreeMap<u32, Arc<EndpointSet>>,
    /// Endpoint sets that will be gone.
    old_sets: BTreeMap<u32, Arc<EndpointSet>>,
}

impl Moves {
    /// The moves from what the kernel holds to what is desired.
    pub fn between(
        held: &Addresses,
        sets: &BTreeMap<u32, Arc<EndpointSet>>,
        desired: &Desired,
        scope: &Scope,
        local: BTreeSet<u32>,
    ) -> Self {
        let missing = |from: &BTreeMap<u32, Arc<EndpointSet>>, of: &BTreeMap<u32, Arc<EndpointSet>>| {
            let missing = of.iter().filter(|(number, _)| !from.contains_key(number));
            missing.map(|(number, set)| (*number, Arc::clone(set))).collect()
        };
        let mut moves = Self {
            local,
            new_sets: missing(sets, &desired.sets),
            old_sets: missing(&desired.sets, sets),
            ..Self::default()
        };
        // How many more, or fewer, will have a class.
        let mut more: HashMap<u32, i64> = HashMap::new();
        let mut pairs = Vec::new();
        let (cidrs, wanted) = (held.prefixes(), &desired.cidrs);
        for address in &scope.addresses {
            let (old, new) = (held.exact().get(address), desired.ipcache.get(address));
            count(&mut more, old, new);
            if old != new {
                let net = IpNet::from(*address);
                let old = old.copied().unwrap_or_else(|| longest(cidrs, net));
                pairs.push((old, new.copied().unwrap_or_else(|| longest(wanted, net))));
            }
        }
        for net in &scope.prefixes {
            let (old, new) = (cidrs.get(net), wanted.get(net));
            count(&mut more, old, new);
            if old != new {
                pairs.push((longest(cidrs, *net), longest(wanted, *net)));
            }
        }
        let before = |peer: u32| i64::try_from(held.peers().count(peer)).unwrap_or(i64::MAX);
        let after = |peer: u32| before(peer) + more.get(&peer).copied().unwrap_or_default();
        for (from, to) in pairs {
            let (from, to) = ((from.peer, from.kind), (to.peer, to.kind));
            if from == to {
                continue;
            }
            if to.0 >= FIRST_PEER && before(to.0) == 0 {
                moves.into.entry(to).or_default().insert(from);
            }
            if from.0 >= FIRST_PEER && after(from.0) == 0 {
                moves.out_of.entry(from).or_default().insert(to);
            }
        }
        moves
    }

    /// Whether anything is to be written before addresses move.
    pub fn needs_staging(&self) -> bool {
        !self.into.is_empty() || !self.new_sets.is_empty()
    }

    /// Rows in force with those of the new classes; `None` if none is needed. `strict`: they get nothing.
    pub fn stage(&self, rows: &RowSet, strict: bool) -> Option<RowSet> {
        with_sets(rows, self.with_classes(rows, &self.into, strict), &self.new_sets)
    }

    /// Rows of a new subject class with those of the classes that addresses are about to leave; `None` if none is needed.
    pub fn unstaged(&self, rows: &RowSet) -> Option<RowSet> {
        with_sets(rows, self.with_classes(rows, &self.out_of, false), &self.old_sets)
    }

    fn with_classes(
        &self,
        rows: &RowSet,
        classes: &BTreeMap<Class, BTreeSet<Class>>,
        strict: bool,
    ) -> Option<RowSet> {
        // Pods elsewhere are asked for here only where a pod of this node is the peer.
        let elsewhere = !rows.keys().any(|(direction, _)| *direction == Direction::Ingress);
        let deny = || Arc::new(Function::constant(Decision::new(Verdict::Deny, Reason::Default)));
        let mut staged: Option<RowSet> = None;
        for (&class, others) in classes {
            if elsewhere && class.1 == Kind::Pod as u8 && !self.local.contains(&class.0) {
                continue;
            }
            for &direction in Direction::ALL {
                let mut functions = others.iter().map(|other| function_of(rows, direction, *other));
                let Some(first) = functions.next() else { continue };
                let today = functions.fold(first.cloned(), |found, next| match (found, next) {
                    (None, None) => None,
                    (Some(a), Some(b)) if a == *b => Some(a),
                    (Some(a), Some(b)) => Some(Arc::new(strictest(&a, b))),
                    // Without rows there is no permission.
                    _ => Some(deny()),
                });
                let Some(today) = today else { continue };
                if function_of(rows, direction, class) == Some(&today) {
                    continue;
                }
                let function = if strict { deny() } else { today };
                staged.get_or_insert_with(|| rows.clone()).insert((direction, class.0), function);
            }
        }
        staged
    }
}

/// Rows in force of pods elsewhere, with those that are wanted for classes that no pod of this node has yet: nobody is
/// asked about them until one has. `None` if there are none.
pub fn newly_met(rows: &RowSet, wanted: &RowSet, newly_local: &BTreeSet<u32>) -> Option<RowSet> {
    if newly_local.is_empty() || rows.keys().any(|(direction, _)| *direction == Direction::Ingress) {
        return None;
    }
    let mut staged: Option<RowSet> = None;
    for peer in newly_local {
        let key = (Direction::Egress, *peer);
        if let Some(function) = wanted.get(&key).filter(|_| !rows.contains_key(&key)) {
            staged.get_or_insert_with(|| rows.clone()).insert(key, Arc::clone(function));
        }
    }
    staged
}

fn count(more: &mut HashMap<u32, i64>, old: Option<&Identity>, new: Option<&Identity>) {
    if let Some(identity) = old {
        *more.entry(identity.peer).or_default() -= 1;
    }
    if let Some(identity) = new {
        *more.entry(identity.peer).or_default() += 1;
    }
}

/// Adds what endpoint sets get, by the rows that their endpoints have then.
fn with_sets(
    rows: &RowSet,
    mut staged: Option<RowSet>,
    sets: &BTreeMap<u32, Arc<EndpointSet>>,
) -> Option<RowSet> {
    // Rows for ingress alone, or of a pod elsewhere, are not asked about frontends.
    if sets.is_empty() || !rows.keys().any(|(direction, _)| *direction == Direction::Egress) {
        return staged;
    }
    for (&number, set) in sets {
        let function = row_of_set(staged.as_ref().unwrap_or(rows), set);
        let rows = staged.get_or_insert_with(|| rows.clone());
        rows.insert((Direction::Egress, number), Arc::new(function));
    }
    staged
}

/// For each port the stricter of two decisions.
fn strictest(a: &Function, b: &Function) -> Function {
    let rank = |decision: &Decision| match decision.verdict {
        Verdict::Allow => 0,
        Verdict::Audit => 1,
        Verdict::Deny => 2,
    };
    let keys: BTreeSet<PortKey> = a.steps().iter().chain(b.steps()).map(|(key, _)| *key).collect();
    let steps = keys.into_iter().map(|key| {
        let (a, b) = (a.decide(key), b.decide(key));
        (key, if rank(&b) > rank(&a) { b } else { a })
    });
    Function::new(steps).unwrap_or_else(|| Function::constant(Decision::new(Verdict::Deny, Reason::Default)))
}

#[cfg(test)]
mod tests {
    use super::super::rows::RowSets;
    use super::super::services::Frontends;
    use super::*;
    use portcullis_common::policy::wildcard_of;

    fn always(verdict: Verdict) -> Arc<Function> {
        Arc::new(Function::constant(Decision::new(verdict, Reason::Policy)))
    }

    fn desired(entries: &[(&str, u32)], nets: &[(&str, u32)]) -> Desired {
        let mut desired = Desired::default();
        for (address, peer) in entries {
            desired.ipcache.insert(address.parse().unwrap(), Identity::new(*peer, *peer, Kind::Pod));
        }
        for (net, peer) in nets {
            desired.cidrs.insert(net.parse().unwrap(), Identity::new(4, *peer, Kind::World));
        }
        desired
    }

    fn between(before: &Desired, after: &Desired) -> Moves {
        let held = Addresses::new(before.ipcache.clone(), before.cidrs.clone());
        let scope = Scope::between(&held, &Frontends::default(), &RowSets::new(1), after);
        Moves::between(&held, &before.sets, after, &scope, BTreeSet::new())
    }

    #[test]
    fn a_new_class_gets_the_strictest_of_what_its_addresses_get_today() {
        let before = desired(&[("10.0.0.1", 20), ("10.0.0.2", 21), ("10.0.0.3", 20)], &[("0.0.0.0/0", 1)]);
        let after = desired(&[("10.0.0.1", 30), ("10.0.0.2", 30), ("10.0.0.3", 20)], &[("0.0.0.0/0", 1)]);
        let moves = between(&before, &after);
        let pods = (Direction::Ingress, wildcard_of(Kind::Pod));
        let rows =
            RowSet::from([(pods, always(Verdict::Allow)), ((Direction::Ingress, 21), always(Verdict::Deny))]);
        let staged = moves.stage(&rows, false).unwrap();
        assert_eq!(staged.get(&(Direction::Ingress, 30)), Some(&always(Verdict::Deny)));
        assert_eq!(staged.len(), 3, "egress has no rows, so it gets none");
        let equal = RowSet::from([(pods, always(Verdict::Allow))]);
        assert_eq!(moves.stage(&equal, false), None, "its kind's row says the same");
        let new =
            RowSet::from([(pods, always(Verdict::Allow)), ((Direction::Ingress, 30), always(Verdict::Deny))]);
        let unstaged = moves.unstaged(&new).unwrap();
        assert_eq!(unstaged.get(&(Direction::Ingress, 21)), Some(&always(Verdict::Deny)));
        assert_eq!(unstaged.get(&(Direction::Ingress, 20)), None, "an address stays in it");
    }

    #[test]
    fn rows_of_pods_elsewhere_are_there_before_the_first_pod_of_a_class_comes() {
        let pods = (Direction::Egress, wildcard_of(Kind::Pod));
        let rows = RowSet::from([(pods, always(Verdict::Allow))]);
        let denied = always(Verdict::Deny);
        let wanted = RowSet::from([
            (pods, always(Verdict::Audit)),
            ((Direction::Egress, 30), denied.clone()),
            ((Direction::Egress, 31), denied.clone()),
        ]);
        let staged = newly_met(&rows, &wanted, &BTreeSet::from([30])).unwrap();
        assert_eq!(staged, RowSet::from([(pods, always(Verdict::Allow)), ((Direction::Egress, 30), denied)]));
        assert_eq!(newly_met(&rows, &wanted, &BTreeSet::new()), None);
        let local = RowSet::from([((Direction::Ingress, 30), always(Verdict::Allow))]);
        assert_eq!(
            newly_met(&local, &wanted, &BTreeSet::from([30])),
            None,
            "a pod of this node has its rows"
        );
    }

    #[test]
    fn an_address_that_was_nobody_s_had_what_its_longest_prefix_has() {
        let before = desired(&[], &[("0.0.0.0/0", 1), ("10.0.0.0/8", 40)]);
        let after =
            desired(&[("10.0.0.1", 30)], &[("0.0.0.0/0", 1), ("10.0.0.0/8", 40), ("192.0.2.0/24", 41)]);
        let moves = between(&before, &after);
        let world = Kind::World as u8;
        assert_eq!(moves.into[&(30, Kind::Pod as u8)], BTreeSet::from([(40, world)]));
        assert_eq!(moves.into[&(41, world)], BTreeSet::from([(1, world)]));
    }

    #[test]
    fn the_stricter_decision_wins_at_each_port() {
        use Verdict::{Allow, Audit, Deny};
        let function = |steps: &[(u16, Verdict)]| {
            let step = |&(port, v): &(u16, _)| (PortKey::new(6, port), Decision::new(v, Reason::Policy));
            Function::new(steps.iter().map(step)).unwrap()
        };
        let a = function(&[(0, Allow), (80, Deny), (81, Allow)]);
        let b = function(&[(0, Audit), (80, Allow), (90, Deny)]);
        let both = strictest(&a, &b);
        let got = [0, 79, 80, 81, 89, 90].map(|port| both.decide(PortKey::new(6, port)).verdict);
        assert_eq!(got, [Audit, Audit, Deny, Allow, Allow, Deny]);
    }
}
