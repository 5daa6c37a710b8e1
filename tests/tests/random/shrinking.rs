//! The shrinker, tried on references that are wrong on purpose: what is left is the one rule that shows it.

use portcullis_common::Verdict;
use portcullis_tests::random::questions::{self, Asked};
use portcullis_tests::random::shrink::shrink;
use portcullis_tests::random::{Rng, manifests};
use portcullis_tests::reference::Question;

use crate::host::{Reference, by_network_policies, difference};

/// A reference that takes a range of ports for its first port.
fn without_ranges(question: &Question<'_>) -> Verdict {
    let mut world = question.world.clone();
    for policy in world.network_policies.values_mut() {
        for rule in policy.spec.ingress.iter_mut().flatten() {
            rule.ports.iter_mut().flatten().for_each(|port| port.end_port = None);
        }
        for rule in policy.spec.egress.iter_mut().flatten() {
            rule.ports.iter_mut().flatten().for_each(|port| port.end_port = None);
        }
    }
    by_network_policies(&Question { world: &world, ..*question })
}

/// A reference that does not know the holes of blocks.
fn without_holes(question: &Question<'_>) -> Verdict {
    let mut world = question.world.clone();
    for policy in world.network_policies.values_mut() {
        let ingress =
            policy.spec.ingress.iter_mut().flatten().flat_map(|rule| rule.from.iter_mut().flatten());
        let egress = policy.spec.egress.iter_mut().flatten().flat_map(|rule| rule.to.iter_mut().flatten());
        for peer in ingress.chain(egress) {
            if let Some(block) = &mut peer.ip_block {
                block.except = None;
            }
        }
    }
    by_network_policies(&Question { world: &world, ..*question })
}

/// A reference that takes every direction for isolated of which the policy has a list, however empty.
fn with_empty_lists(question: &Question<'_>) -> Verdict {
    let mut world = question.world.clone();
    for policy in world.network_policies.values_mut() {
        if policy.spec.policy_types.is_none() && policy.spec.egress.is_some() {
            policy.spec.policy_types = Some(vec!["Ingress".into(), "Egress".into()]);
        }
    }
    by_network_policies(&Question { world: &world, ..*question })
}

/// The first difference between a wrong reference and the compiled maps, shrunk; and how many objects there were before.
fn first(reference: Reference) -> (Asked, portcullis::model::World) {
    for seed in 0..250 {
        let world = Rng(seed).world();
        let compiled = portcullis_tests::oracle::Compiled::new(&world);
        let differs = |question: &Question<'_>| compiled.verdict(question) != Some(reference(question));
        if let Some(question) = questions::all(&world).step_by(7).find(differs) {
            let asked = Asked::of(&question);
            let small = shrink(&world, |world| difference(world, &asked, reference).is_some());
            return (asked, small);
        }
    }
    panic!("no world shows what is wrong with it");
}

#[test]
fn a_difference_shrinks_to_the_part_that_makes_it() {
    let cases: [(Reference, &str); 3] =
        [(without_ranges, "endPort"), (without_holes, "except"), (with_empty_lists, "\"egress\":[]")];
    for (reference, part) in cases {
        let (asked, small) = first(reference);
        let text = manifests::text(&small);
        println!("{asked:?}\n{text}");
        assert_eq!(small.network_policies.len(), 1, "{text}");
        assert!(text.contains(part), "{part} is what it is about:\n{text}");
        assert!(small.pods.len() <= 2, "{text}");
        assert!(text.len() < 1800, "{} bytes are left:\n{text}", text.len());
    }
}
