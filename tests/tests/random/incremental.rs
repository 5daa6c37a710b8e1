//! Change after change: what is desired then is what compiling the world from nothing gives, but for the numbers behind the
//! names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis::identity::Numbers;
use portcullis::model::{CachedAddresses, Changes, Object, ObjectKey, World};
use portcullis::policy::{Compiler, Desired, compile};
use portcullis_common::Identity;
use portcullis_common::abi::NumberSpace;
use portcullis_common::service::{SERVICE_COMPILED, ServiceEntry};
use portcullis_tests::random::{OTHERS, Rng, objects};

/// What is desired, in words.
fn in_words(desired: &Desired) -> BTreeMap<String, String> {
    let mut words = BTreeMap::new();
    let names = &desired.names;
    let name = |of: &BTreeMap<u32, String>, number: u32| match number {
        0 => "-".to_owned(),
        number => of.get(&number).cloned().unwrap_or_else(|| format!("#{number}")),
    };
    let entry = |e: &ServiceEntry| {
        let (peer, principal) = (name(&names.peers, e.peer), name(&names.principals, e.principal));
        format!("[{peer}] of {principal} port {} kind {} flags {}", e.port, e.kind, e.flags)
    };
    let entries = |list: &[ServiceEntry]| list.iter().map(entry).collect::<Vec<_>>();
    let peer = |number: u32| match desired.sets.get(&number) {
        Some(set) => format!("set {} {:?}", set.protocol, entries(&set.entries)),
        None if number & 0x8000_0000 != 0 => format!("kind {number:x}"),
        None => name(&names.peers, number),
    };
    let identity = |i: &Identity| {
        let (principal, subject) = (name(&names.principals, i.principal), name(&names.subjects, i.subject));
        format!("{principal} | {} | {subject} | kind {} flags {}", peer(i.peer), i.kind, i.flags)
    };
    let mut say = |key: String, value: String| assert_eq!(words.insert(key, value), None, "said twice");
    for (address, found) in &desired.ipcache {
        say(format!("address {address}"), identity(found));
    }
    for (prefix, found) in &desired.cidrs {
        say(format!("prefix {prefix}"), identity(found));
    }
    for (key, service) in &desired.services {
        let count = if service.count == SERVICE_COMPILED { 1 } else { service.count as usize };
        let behind: Vec<String> = service.entries[..count]
            .iter()
            .map(|e| {
                let who = name(&names.principals, e.principal);
                format!("{} of {who} port {} kind {} flags {}", peer(e.peer), e.port, e.kind, e.flags)
            })
            .collect();
        say(format!("frontend {key:?}"), format!("{} {behind:?} {}", service.count, names.services[key]));
    }
    for (number, set) in &desired.sets {
        say(peer(*number), format!("{} {}", names.peers[number], set.entries.len()));
    }
    for (number, rows) in &desired.subjects {
        for ((direction, to), function) in rows.iter() {
            let steps: Vec<String> = function
                .steps()
                .iter()
                .map(|(key, d)| {
                    format!("{key:?} {:?} {:?} {}", d.verdict, d.reason, name(&names.rules, d.rule))
                })
                .collect();
            let subject = name(&names.subjects, *number);
            say(format!("row {subject} {direction:?} {}", peer(*to)), format!("{steps:?}"));
        }
    }
    for (uid, pod) in &desired.pods {
        let (principal, subject) =
            (name(&names.principals, pod.principal), name(&names.subjects, pod.subject));
        say(format!("pod {uid}"), format!("{} {principal} {subject} {:?}", pod.name, pod.addresses));
    }
    let all = |of: &BTreeMap<u32, String>| format!("{:?}", of.values().collect::<BTreeSet<_>>());
    say("principals".to_owned(), all(&names.principals));
    say("peers".to_owned(), all(&names.peers));
    say("subjects".to_owned(), all(&names.subjects));
    say("rules".to_owned(), all(&names.rules));
    say("problems".to_owned(), format!("{:?}", desired.problems));
    words
}

/// How many numbers of each space somebody uses.
fn used(numbers: &Numbers) -> [usize; 4] {
    let spaces = [NumberSpace::Principal, NumberSpace::Peer, NumberSpace::Subject, NumberSpace::Rule]
        .map(|s| s as u32);
    let unused: BTreeSet<_> = numbers.unused().collect();
    let taken: BTreeSet<_> =
        numbers.entries().map(|(key, _)| key).filter(|key| !unused.contains(key)).collect();
    spaces.map(|space| taken.iter().filter(|key| key.space == space).count())
}

fn world(rng: &mut Rng) -> World {
    let mut world = rng.world_with_identities();
    rng.add_services(&mut world);
    rng.add_guardrails(&mut world);
    world
}

/// One random event: an object of other worlds comes or replaces one, or one goes. Pods and slices move most.
fn event(rng: &mut Rng, world: &mut World, others: &[Vec<Object>], changes: &mut Changes) -> String {
    let moves =
        |object: &Object| matches!(object, Object::Pod(_) | Object::EndpointSlice(_) | Object::Service(_));
    if rng.chance(6) {
        let here = OTHERS.iter().filter(|_| rng.chance(20)).map(|text| text.parse().unwrap()).collect();
        changes.set_local_addresses(world, &here);
        return format!("this machine has {here:?}");
    }
    if rng.chance(6) {
        let given = world.pods.keys().filter(|_| rng.chance(20)).cloned().collect::<Vec<_>>();
        let cached = given.into_iter().map(|uid| {
            let addresses = [IpAddr::from([10, 0, 0, u8::try_from(rng.below(12)).unwrap()])].into();
            (uid, CachedAddresses { addresses, started: i64::try_from(rng.below(12)).unwrap() })
        });
        let cached = cached.collect();
        changes.set_cached(world, cached);
        return "the cache says something else".to_owned();
    }
    let only_moving = rng.chance(70);
    let fits = |object: &&Object| !only_moving || moves(object);
    if rng.chance(65) {
        let from: Vec<&Object> = rng.pick(others).iter().filter(fits).collect();
        let mut object = (*rng.pick(&from)).clone();
        if let Object::Pod(pod) = &mut object {
            // Elsewhere, and somewhere else than before; and with a UID of its own, so that addresses have two claims.
            if rng.chance(40) {
                pod.node = rng.pick(&["here", "there", ""]).to_string();
            }
            if rng.chance(20) {
                pod.uid = format!("{}-again", pod.uid);
                pod.sandbox_started += 7;
            }
            pod.judges = rng.chance(5);
            if rng.chance(10) {
                pod.addresses.clear();
            }
        }
        let said = format!("apply {:?}", object.key());
        changes.apply(world, object);
        return said;
    }
    let present = objects::of(world);
    let present: Vec<&Object> = present.iter().filter(fits).collect();
    if present.is_empty() {
        return "nothing".to_owned();
    }
    let object = *rng.pick(&present);
    let uid = match object {
        Object::Pod(pod) if rng.chance(80) => Some(pod.uid.clone()),
        _ => None,
    };
    let key: ObjectKey = object.key();
    changes.delete(world, &key, uid.as_deref());
    format!("delete {key:?} {uid:?}")
}

fn assert_same(got: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>, after: &[String]) {
    let keys: BTreeSet<&String> = got.keys().chain(wanted.keys()).collect();
    let different: Vec<String> = keys
        .into_iter()
        .filter(|key| got.get(*key) != wanted.get(*key))
        .map(|key| format!("{key}\n  is     {:?}\n  wanted {:?}", got.get(key), wanted.get(key)))
        .take(5)
        .collect();
    let last = after.len().saturating_sub(4);
    assert!(different.is_empty(), "after {:#?}:\n{}", &after[last..], different.join("\n"));
}

#[test]
fn after_any_series_of_changes_the_maps_are_those_compiled_from_nothing() {
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let mut now = world(&mut rng);
        let others: Vec<Vec<Object>> = (0..4).map(|_| objects::of(&world(&mut rng))).collect();
        let mut numbers = Numbers::default();
        let mut compiler = Compiler::default();
        compiler.update(&now, &Changes::everything(), &mut numbers);
        let mut kernel = compiler.desired().clone();
        let mut said = Vec::new();
        for step in 0..40 {
            let mut changes = Changes::default();
            for _ in 0..=rng.below(3) {
                said.push(format!(
                    "seed {seed} step {step}: {}",
                    event(&mut rng, &mut now, &others, &mut changes)
                ));
            }
            let delta = compiler.update(&now, &changes, &mut numbers);
            let mut fresh = Numbers::default();
            let wanted = compile(&now, &mut fresh);
            let desired = compiler.desired();
            assert_same(&in_words(desired), &in_words(&wanted), &said);
            assert_eq!(used(&numbers), used(&fresh), "after {:?}", said.last());
            // What the delta does not name is as it was.
            if !delta.everything {
                let addresses: BTreeSet<_> = kernel.ipcache.keys().chain(desired.ipcache.keys()).collect();
                for address in addresses {
                    let same = kernel.ipcache.get(address) == desired.ipcache.get(address);
                    assert!(same || delta.addresses.contains(address), "{address} {:?}", said.last());
                }
                let keys: BTreeSet<_> = kernel.services.keys().chain(desired.services.keys()).collect();
                for key in keys {
                    let same = kernel.services.get(key) == desired.services.get(key);
                    assert!(same || delta.services.contains(key), "{key:?} {:?}", said.last());
                }
                let subjects: BTreeSet<_> = kernel.subjects.keys().chain(desired.subjects.keys()).collect();
                for subject in subjects {
                    let same = kernel.subjects.get(subject) == desired.subjects.get(subject);
                    assert!(same || delta.subjects.contains(subject), "{subject} {:?}", said.last());
                }
                assert!(kernel.cidrs == desired.cidrs && (delta.sets || kernel.sets == desired.sets));
            }
            kernel = desired.clone();
            if rng.chance(30) {
                // The housekeeping gives numbers back, and they mean something else later.
                let unused: Vec<_> = numbers.unused().collect();
                for key in unused {
                    numbers.free(key);
                }
            }
        }
    }
}
