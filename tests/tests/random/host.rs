//! The compiled maps on the host against the reference: every question that can be asked of each world. Every verdict is
//! read from the lowered maps by the procedure that runs in the kernel.

use std::net::IpAddr;

use portcullis::identity::Numbers;
use portcullis::model::World;
use portcullis::policy::compile;
use portcullis_common::Verdict;
use portcullis_tests::oracle::Compiled;
use portcullis_tests::random::questions::{self, Asked, owner};
use portcullis_tests::random::services::PORT;
use portcullis_tests::random::shrink::shrink;
use portcullis_tests::random::{Rng, manifests};
use portcullis_tests::reference::{self, Question, services};

/// What the reference says about a question.
pub type Reference = fn(&Question<'_>) -> Verdict;

/// The reference for worlds with `NetworkPolicies` only.
pub fn by_network_policies(question: &Question<'_>) -> Verdict {
    if reference::allowed(question) { Verdict::Allow } else { Verdict::Deny }
}

/// Compares every question that can be asked of a world, and counts the answers by verdict.
fn compare(seed: u64, world: &World, reference: Reference, counts: &mut [u64; 3]) -> usize {
    let compiled = Compiled::new(world);
    for question in questions::all(world) {
        let wanted = reference(&question);
        if compiled.verdict(&question) != Some(wanted) {
            tell(seed, world, &Asked::of(&question), reference);
        }
        counts[wanted as usize] += 1;
    }
    compiled.desired.problems.len()
}

/// What the compiled maps and the reference say, where they differ.
pub fn difference(world: &World, asked: &Asked, reference: Reference) -> Option<(Verdict, Verdict)> {
    let question = asked.of_world(world)?;
    let pair = (Compiled::new(world).verdict(&question)?, reference(&question));
    (pair.0 != pair.1).then_some(pair)
}

fn tell(seed: u64, world: &World, asked: &Asked, reference: Reference) -> ! {
    let small = shrink(world, |world| difference(world, asked, reference).is_some());
    let (compiled, wanted) = difference(&small, asked, reference).unwrap();
    panic!(
        "seed {seed}: {asked:?}: compiled {compiled}, the reference says {wanted}, in this world:\n{}",
        manifests::text(&small)
    );
}

fn check_counts(what: &str, counts: [u64; 3], seen: &[Verdict], problems: usize) {
    let all: u64 = counts.iter().sum();
    println!(
        "{all} cells of {what} compared: {counts:?} allowed, denied, audited; {problems} problems reported"
    );
    for &verdict in seen {
        assert!(counts[verdict as usize] > all / 50, "{verdict} is too rare to say anything: {counts:?}");
    }
    assert!(problems > 100, "what cannot be understood is frequent in these worlds");
}

#[test]
fn random_network_policies_are_judged_as_the_reference_judges_them() {
    let (mut counts, mut problems) = ([0; 3], 0);
    for seed in 0..250 {
        problems += compare(seed, &Rng(seed).world(), by_network_policies, &mut counts);
    }
    check_counts("random network policies", counts, &[Verdict::Allow, Verdict::Deny], problems);
}

#[test]
fn random_identity_policies_and_modes_are_judged_as_the_reference_judges_them() {
    let (mut counts, mut problems) = ([0; 3], 0);
    for seed in 0..250 {
        let world = Rng(seed).world_with_identities();
        problems += compare(seed, &world, reference::identity::verdict, &mut counts);
    }
    check_counts("random identity policies", counts, Verdict::ALL, problems);
}

#[test]
fn random_guardrails_over_policies_of_namespaces_are_judged_as_the_reference_judges_them() {
    let (mut counts, mut problems) = ([0; 3], 0);
    for seed in 0..250 {
        let mut world = Rng(seed).world_with_identities();
        Rng(seed + 5000).add_guardrails(&mut world);
        problems += compare(seed, &world, reference::identity::verdict, &mut counts);
    }
    check_counts("random guardrails", counts, Verdict::ALL, problems);
}

#[test]
fn random_services_are_judged_as_the_reference_judges_them() {
    let (mut counts, mut compiled_sets) = ([0; 3], 0);
    for seed in 0..250 {
        let mut world = Rng(seed).world_with_identities();
        Rng(seed).add_services(&mut world);
        if seed % 2 == 0 {
            Rng(seed).add_guardrails(&mut world);
        }
        let compiled = Compiled::new(&world);
        compiled_sets += compiled.desired.sets.len();
        for flow in services::flows(&world, PORT, "172.18.0.1".parse().unwrap(), |address: IpAddr| {
            owner(&world, address)
        }) {
            let Some(pod) = compiled.desired.pods.get(&flow.subject.uid) else { continue };
            let (got, _) =
                compiled.maps.decide_egress(pod.subject, flow.frontend, (flow.protocol, flow.port));
            assert_eq!(
                got.verdict,
                flow.wanted,
                "seed {seed}: {}/{} to {}\n{}",
                flow.subject.namespace,
                flow.subject.name,
                flow.frontend,
                manifests::text(&world)
            );
            counts[flow.wanted as usize] += 1;
        }
    }
    println!("{counts:?} flows to services allowed, denied, audited; {compiled_sets} compiled sets");
    assert!(counts.iter().all(|count| *count > 500) && compiled_sets > 50, "{counts:?} {compiled_sets}");
}

#[test]
fn the_same_world_compiles_to_the_same_maps_and_numbers_survive_a_restart() {
    for seed in 0..50 {
        let mut world = Rng(seed).world_with_identities();
        Rng(seed).add_services(&mut world);
        Rng(seed).add_guardrails(&mut world);
        let mut numbers = Numbers::default();
        let first = compile(&world, &mut numbers);
        assert_eq!(first, compile(&world, &mut numbers));
        assert_eq!(numbers.unused().count(), 0);
        let mut after = Numbers::default();
        after.load(numbers.entries());
        assert_eq!(first, compile(&world, &mut after));
        // From other numbers the result is the same but for the numbers.
        compile(&Rng(seed + 1000).world_with_identities(), &mut after);
        let again = compile(&world, &mut after);
        assert_eq!(first, again, "what was not freed keeps its number");
    }
}
