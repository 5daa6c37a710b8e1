//! Changes that are compiled and written one by one: how much each writes, that the kernel holds then what writing
//! everything gives, and what packets meet on the way.
#![expect(clippy::unwrap_used, reason = "a helper of a test ends the test when what it needs is not there")]

use std::net::IpAddr;

use portcullis::datapath::Applied;
use portcullis::identity::Numbers;
use portcullis::model::{Changes, IdentityPolicy, Namespace, Object, Pod, ServiceAccount, World};
use portcullis::policy::{Compiler, compile};
use portcullis_common::abi::Mode;
use portcullis_tests::fixture::{Fixture, endpoint, with_fixture};
use portcullis_tests::meanwhile::probed_meanwhile;
use portcullis_tests::packets::{Packet, flags};
use portcullis_tests::worlds::{HERE, Scale, address, namespace};

/// A world that is kept compiled, and in the maps of a fixture.
struct Live<'f> {
    fixture: &'f mut Fixture,
    world: World,
    compiler: Compiler,
    numbers: Numbers,
}

impl<'f> Live<'f> {
    fn start(fixture: &'f mut Fixture, world: World) -> Self {
        let (mut numbers, mut compiler) = (Numbers::default(), Compiler::default());
        compiler.update(&world, &Changes::everything(), &mut numbers);
        let mut live = Self { fixture, world, compiler, numbers };
        live.apply_everything();
        live
    }

    fn apply_everything(&mut self) -> Applied {
        self.numbers.take_changed();
        let (desired, numbers) = (self.compiler.desired(), self.numbers.entries());
        let applied = self.fixture.datapath.apply(desired, &[endpoint()], Mode::Enforce, numbers).unwrap();
        assert!(applied.errors.is_empty(), "{:?}", applied.errors);
        applied
    }

    /// Changes objects, and writes what follows.
    fn change(&mut self, objects: impl IntoIterator<Item = Object>) -> Applied {
        let mut changes = Changes::default();
        objects.into_iter().for_each(|object| changes.apply(&mut self.world, object));
        self.follow(&changes)
    }

    fn delete(&mut self, object: &Object) -> Applied {
        let uid = match object {
            Object::Pod(pod) => Some(pod.uid.as_str()),
            _ => None,
        };
        let mut changes = Changes::default();
        changes.delete(&mut self.world, &object.key(), uid);
        self.follow(&changes)
    }

    fn follow(&mut self, changes: &Changes) -> Applied {
        let delta = self.compiler.update(&self.world, changes, &mut self.numbers);
        if delta.everything {
            return self.apply_everything();
        }
        let numbers = self.numbers.take_changed();
        let desired = self.compiler.desired();
        let applied =
            self.fixture.datapath.apply_delta(desired, &delta, &[endpoint()], Mode::Enforce, numbers);
        let applied = applied.unwrap();
        assert!(applied.errors.is_empty(), "{:?}", applied.errors);
        applied
    }

    /// What the housekeeping does until there is nothing left to do.
    fn collect(&mut self) {
        while self.fixture.datapath.has_retired() {
            self.fixture.datapath.collect().unwrap();
        }
        let unused: Vec<_> = self.numbers.unused().collect();
        for key in unused {
            self.numbers.free(key);
        }
    }

    /// An agent that starts now, and reads what is in the kernel, finds nothing to write.
    fn assert_nothing_is_missing(&mut self) {
        let applied = self.apply_everything();
        assert_eq!(applied.writes, 0, "everything was compared");
        self.fixture.reopen();
        let applied = self.apply_everything();
        assert!(!applied.revised, "{} writes of an agent that read the kernel", applied.writes);
    }
}

fn labelled(mut pod: Pod, key: &str, value: &str) -> Object {
    pod.labels.insert(key.to_owned(), value.to_owned());
    Object::Pod(pod)
}

#[test]
fn after_each_change_the_kernel_holds_what_writing_everything_gives() {
    with_fixture(|f| {
        let scale = Scale { pods: 400, accounts: 30, policies: 90, services: 20 };
        let mut live = Live::start(f, scale.world());
        for i in 0..120 {
            let pod = scale.pod(i * 7 % 400);
            let other = scale.pod(i * 13 % 400);
            match i % 8 {
                0 => live.change([labelled(pod, "app", &format!("app-{}", i % 10))]),
                1 => live.change([Object::Pod(Pod { addresses: vec![address(1000 + i)], ..pod })]),
                2 => live.delete(&Object::Pod(pod)),
                3 => live.change([Object::Pod(Pod { node: HERE.to_owned(), ..pod }), Object::Pod(other)]),
                4 => live.change([Object::Pod(Pod {
                    addresses: other.addresses,
                    sandbox_started: i64::MAX,
                    ..pod
                })]),
                5 => {
                    let [service, slice] = scale.service(i % 20);
                    if i % 16 == 5 { live.delete(&slice) } else { live.change([service, slice]) }
                }
                6 => {
                    let mut changed = scale.namespace(i % 3);
                    changed.labels.insert("team".to_owned(), format!("t{}", i % 20));
                    live.change([Object::Namespace(changed)])
                }
                _ => {
                    let labels = [("tier".to_owned(), format!("tier-{}", i % 4))].into();
                    let name = format!("app-{}", i % 10);
                    live.change([Object::ServiceAccount(ServiceAccount {
                        namespace: namespace(i % 3),
                        name,
                        labels,
                    })])
                }
            };
            if i % 10 == 9 {
                live.collect();
            }
            if i % 40 == 39 {
                live.assert_nothing_is_missing();
            }
            let fresh = compile(&live.world, &mut Numbers::default());
            assert_eq!(fresh.ipcache.len(), live.compiler.desired().ipcache.len(), "change {i}");
        }
    });
}

#[test]
fn a_changed_label_of_a_namespace_of_a_thousand_pods_writes_what_changed() {
    with_fixture(|f| {
        let scale = Scale { pods: 1000, accounts: 10, policies: 30, services: 0 };
        let mut live = Live::start(f, scale.world());
        let with = |key: &str, value: &str| {
            let mut namespace = scale.namespace(0);
            namespace.labels.insert(key.to_owned(), value.to_owned());
            Object::Namespace(namespace)
        };
        let before = live.compiler.desired().clone();
        assert_eq!(live.change([with("owner", "somebody")]).writes, 0, "no policy looks at this label");
        assert_eq!(*live.compiler.desired(), before);

        let applied = live.change([with("team", "t4")]);
        let after = live.compiler.desired();
        let moved =
            after.ipcache.iter().filter(|(address, new)| before.ipcache.get(*address) != Some(new)).count();
        let rows = |number: &u32| {
            let (old, new) = (before.subjects.get(number), after.subjects.get(number));
            let keys = old.iter().chain(&new).flat_map(|rows| rows.keys());
            keys.filter(|key| old.and_then(|r| r.get(*key)) != new.and_then(|r| r.get(*key))).count()
        };
        let rows: usize = after.subjects.keys().map(rows).sum();
        assert!(moved >= 100 && rows > 0, "{moved} addresses and {rows} rows are others now");
        // A set of rows that changes in more than one place is written as a whole, beside the old one; and new classes get
        // first what their addresses had.
        let sets: usize = after.subjects.values().map(|rows| rows.len()).sum();
        assert!(applied.writes <= moved + 2 * sets + rows, "{} of {moved} + {rows}", applied.writes);
        live.assert_nothing_is_missing();

        let one = live.change([labelled(scale.pod(500), "version", "v9")]);
        assert_eq!(one.writes, 0, "no policy looks at this label either");
        let one = live.change([labelled(scale.pod(501), "app", "app-2")]);
        assert!((1..=40).contains(&one.writes), "{} for one pod", one.writes);
        live.assert_nothing_is_missing();
    });
}

/// The pod behind the endpoint, an intruder at 10.0.0.4, five thousand others, and a policy that denies what is `bad` and
/// lets in everybody else; `slow` is told apart for another port.
fn guarded() -> World {
    let mut world = World::default();
    HERE.clone_into(&mut world.settings.node_name);
    world.apply(Object::Namespace(Namespace { name: "shop".into(), ..Namespace::default() }));
    for name in ["api", "web"] {
        let (namespace, name) = ("shop".into(), name.into());
        world.apply(Object::ServiceAccount(ServiceAccount { namespace, name, ..ServiceAccount::default() }));
    }
    world.apply(Object::Pod(pod("api", "api", "10.0.0.2", HERE)));
    world.apply(bad(&pod("intruder", "web", "10.0.0.4", "elsewhere")));
    let spec = serde_json::json!({
        "subject": {"serviceAccounts": {"names": ["api"]}},
        "ingress": {"rules": [
            {"name": "bad", "action": "Deny", "from": [{"pods": {"selector": {"matchLabels": {"bad": "yes"}}}}]},
            {"name": "slow", "action": "Deny",
             "from": [{"pods": {"selector": {"matchExpressions": [{"key": "slow", "operator": "Exists"}]}}}],
             "protocols": [{"tcp": {"destinationPort": {"number": 9000}}}]},
            {"name": "pods", "action": "Accept", "from": [{"pods": {"selector": {}}}]},
        ]},
    });
    world.apply(Object::IdentityPolicy(IdentityPolicy {
        namespace: "shop".into(),
        name: "api".into(),
        generation: 1,
        spec: serde_json::from_value(spec).unwrap(),
    }));
    world
}

fn pod(uid: &str, account: &str, address: &str, node: &str) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: uid.into(),
        uid: uid.into(),
        service_account: account.into(),
        node: node.into(),
        addresses: vec![address.parse::<IpAddr>().unwrap()],
        ..Pod::default()
    }
}

fn bad(pod: &Pod) -> Object {
    labelled(pod.clone(), "bad", "yes")
}

/// Others that come in the same change, so that it takes a while.
fn crowd(label: &str) -> impl Iterator<Item = Object> {
    (0..5000usize)
        .map(move |i| labelled(Scale { pods: 1, accounts: 1, policies: 0, services: 0 }.pod(i), label, "yes"))
        .map(|object| {
            let Object::Pod(pod) = object else { unreachable!("it is a pod") };
            Object::Pod(Pod { namespace: "shop".into(), service_account: "web".into(), ..pod })
        })
}

#[test]
fn a_pod_that_moves_to_a_new_class_and_stays_forbidden_is_never_let_through() {
    with_fixture(|f| {
        let mut live = Live::start(f, guarded());
        let Object::Pod(intruder) = bad(&pod("intruder", "web", "10.0.0.4", "elsewhere")) else {
            unreachable!("it is a pod")
        };
        let (passed, dropped) = probed_meanwhile(|| {
            let applied = live.change(crowd("slow").chain([labelled(intruder, "slow", "yes")]));
            assert!(applied.writes > 5000);
        });
        assert_eq!(passed, 0, "of {dropped}");
        live.assert_nothing_is_missing();
    });
}

#[test]
fn a_pod_that_moves_to_a_new_class_and_stays_permitted_is_never_dropped() {
    with_fixture(|f| {
        let mut live = Live::start(f, guarded());
        let friend = pod("intruder", "web", "10.0.0.4", "elsewhere");
        live.change([Object::Pod(friend.clone())]);
        let (passed, dropped) = probed_meanwhile(|| {
            live.change(crowd("bad").chain([labelled(friend, "slow", "yes")]));
        });
        assert_eq!(dropped, 0, "of {passed}");
        live.assert_nothing_is_missing();
    });
}

#[test]
fn a_wildcard_and_its_exceptions_change_together() {
    with_fixture(|f| {
        // Default allow: with the policy gone everybody may; the account alone decides then.
        let mut live = Live::start(f, guarded());
        let policy = live.world.identity_policies.values().next().unwrap().clone();
        let mut other = policy.clone();
        // The wildcard turns from "may" to "may not", and the intruder's exception from a row to none.
        other.spec = serde_json::from_value(serde_json::json!({
            "subject": {"serviceAccounts": {"names": ["api"]}},
            "ingress": {"rules": [
                {"name": "slow", "action": "Accept",
                 "from": [{"pods": {"selector": {"matchExpressions": [{"key": "slow", "operator": "Exists"}]}}}]},
            ]},
        }))
        .unwrap();
        let (passed, dropped) = probed_meanwhile(|| {
            for _ in 0..20 {
                live.change([Object::IdentityPolicy(other.clone())]);
                live.change([Object::IdentityPolicy(policy.clone())]);
                live.collect();
            }
        });
        assert_eq!(passed, 0, "of {dropped}: the intruder is denied by either");
    });
}

#[test]
fn a_number_that_is_used_again_says_nothing_of_what_it_meant_before() {
    with_fixture(|f| {
        let mut live = Live::start(f, guarded());
        let intruder = pod("intruder", "web", "10.0.0.4", "elsewhere");
        live.delete(&Object::Pod(intruder.clone()));
        live.collect();
        let peer =
            |live: &Live<'_>, address: &str| live.compiler.desired().identity(address.parse().unwrap()).peer;
        // A pod that may, of a class of its own, which goes; its number is free then.
        let friend = pod("friend", "web", "10.0.0.5", "elsewhere");
        live.change([labelled(friend.clone(), "slow", "yes")]);
        let number = peer(&live, "10.0.0.5");
        assert!(live.fixture.receives(&Packet::tcp("10.0.0.5", 4000, "10.0.0.2", 80, flags::SYN)));
        let (passed, dropped) = probed_meanwhile(|| {
            for _ in 0..20 {
                live.delete(&Object::Pod(friend.clone()));
                live.collect();
                live.change([bad(&intruder)]);
                assert_eq!(peer(&live, "10.0.0.4"), number, "the number is used again");
                live.delete(&Object::Pod(intruder.clone()));
                live.collect();
                live.change([labelled(friend.clone(), "slow", "yes")]);
                assert_eq!(peer(&live, "10.0.0.5"), number);
            }
        });
        // Unknown, and known and bad: denied by both.
        assert_eq!(passed, 0, "of {dropped}");
    });
}
