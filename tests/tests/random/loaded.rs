//! The loaded programs, with packets, against the reference: a sample of the questions of each world.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use portcullis::model::World;
use portcullis_common::{Direction, Verdict};
use portcullis_tests::loaded::{Loaded, Opening, with_loaded};
use portcullis_tests::oracle::Compiled;
use portcullis_tests::random::questions::{self, Asked, owner};
use portcullis_tests::random::services::PORT;
use portcullis_tests::random::shrink::shrink;
use portcullis_tests::random::{Rng, manifests, packets};
use portcullis_tests::reference::services;

/// How many worlds, and how many questions of each.
const WORLDS: u64 = 150;
const QUESTIONS: usize = 120;

/// UIDs of the pods of a random world: each has an interface.
pub fn places() -> Vec<String> {
    (0..9).map(|i| format!("uid{i}")).collect()
}

/// What is wrong with the answer to a question.
fn difference(loaded: &mut Loaded, world: &World, asked: &Asked) -> Option<String> {
    let case = packets::case(&asked.of_world(world)?)?;
    packets::send(loaded, &places(), asked, &case).err().map(|error| format!("{error:#}"))
}

#[test]
fn packets_of_random_worlds_are_judged_and_counted_as_the_reference_judges_them() -> Result<()> {
    let counts = with_loaded(|loaded| {
        let mut counts = [[0u64; 3]; 2];
        for seed in 0..WORLDS {
            let mut world = if seed % 3 == 0 { Rng(seed).world() } else { Rng(seed).world_with_identities() };
            if seed % 3 == 1 {
                Rng(seed + 5000).add_guardrails(&mut world);
            }
            loaded.program(&world, &places())?;
            let mut all: Vec<_> =
                questions::all(&world).filter_map(|q| Some((Asked::of(&q), packets::case(&q)?))).collect();
            Rng(seed).shuffle(&mut all);
            all.truncate(QUESTIONS);
            for (asked, case) in all {
                if let Err(error) = packets::send(loaded, &places(), &asked, &case) {
                    let small = shrink(&world, |world| {
                        loaded.program(world, &places()).is_ok()
                            && difference(loaded, world, &asked).is_some()
                    });
                    return Err(error.context(format!(
                        "seed {seed}: {asked:?}, in this world:\n{}",
                        manifests::text(&small)
                    )));
                }
                counts[case.wanted.direction as usize][case.wanted.verdict as usize] += 1;
            }
        }
        // What was asked one by one is all that was counted, and denials are the only drops.
        ensure!(loaded.totals()? == counts, "{:?} were counted, {counts:?} were asked", loaded.totals()?);
        let denied: u64 = counts.iter().map(|verdicts| verdicts[Verdict::Deny as usize]).sum();
        ensure!(loaded.drops()? == (denied, 0), "{:?} were dropped, {denied} were denied", loaded.drops()?);
        Ok(counts)
    })?;
    println!("packets by direction (ingress, egress) and verdict (allow, deny, audit): {counts:?}");
    ensure!(counts.iter().flatten().all(|count| *count > 300), "too rare to say anything: {counts:?}");
    Ok(())
}

#[test]
fn packets_to_random_services_are_judged_as_the_reference_judges_them() -> Result<()> {
    let counts = with_loaded(|loaded| {
        let mut counts = [0u64; 3];
        for seed in 0..WORLDS / 2 {
            let mut world = Rng(seed).world_with_identities();
            Rng(seed).add_services(&mut world);
            loaded.program(&world, &places())?;
            let compiled = Compiled::new(&world);
            let node: IpAddr = "172.18.0.1".parse()?;
            for flow in services::flows(&world, PORT, node, |address| owner(&world, address)) {
                let own = flow.subject.addresses.iter().find(|own| own.is_ipv4() == flow.frontend.is_ipv4());
                let Some(&source) = own else { continue };
                let pod =
                    compiled.desired.pods.get(&flow.subject.uid).context("a pod that is not compiled")?;
                // Whom it counts for only the compiled endpoints say: principals are named alike in both.
                let (_, principal) =
                    compiled.maps.decide_egress(pod.subject, flow.frontend, (flow.protocol, flow.port));
                let name = &compiled.desired.names.principals[&principal];
                let named = |(number, other): (&u32, &String)| (other == name).then_some(*number);
                let destination =
                    loaded.desired.names.principals.iter().find_map(named).context("a principal")?;
                let opening =
                    Opening { source, destination: flow.frontend, protocol: flow.protocol, port: flow.port };
                let place = places().iter().position(|uid| *uid == flow.subject.uid).context("a place")?;
                let pair = (loaded.desired.identity(source).principal, destination);
                let found = loaded.open(Direction::Egress, place, &opening, pair, 0);
                let found = found.with_context(|| format!("seed {seed}:\n{}", manifests::text(&world)))?;
                ensure!(
                    found.verdict == flow.wanted,
                    "seed {seed}: {opening:?}: {found:?}, the reference says {}, in this world:\n{}",
                    flow.wanted,
                    manifests::text(&world)
                );
                counts[flow.wanted as usize] += 1;
            }
        }
        Ok(counts)
    })?;
    println!("packets to services by verdict (allow, deny, audit): {counts:?}");
    ensure!(counts.iter().all(|count| *count > 100), "too rare to say anything: {counts:?}");
    Ok(())
}
