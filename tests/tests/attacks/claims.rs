//! A pod that had the addresses of another one before the agent came.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use portcullis_tests::{Network, Node, eventually};

use super::addresses::{claim, receives_nothing, say};
use super::stage::{Family, Stage, Wait, on_stage};

/// Plays where the agent finds two interfaces with the API's addresses, and has said so.
fn on_both(
    prepare: impl Fn(&Node) -> Result<()>,
    wait: Wait,
    warning: &str,
    play: impl Fn(&mut Stage<'_>) -> Result<()>,
) -> Result<()> {
    for network in [Network::Routed, Network::Bridged] {
        on_stage(network, &prepare, wait, |stage| {
            eventually(warning, || {
                stage.agent.cli(["dump", "endpoints", "-o", "json"]).is_ok_and(|dump| dump.contains(warning))
            })?;
            play(stage).with_context(|| format!("{network:?} pods"))
        })?;
    }
    Ok(())
}

/// That the database does not hear the intruder in the API's name.
fn says_nothing(stage: &Stage<'_>, family: Family) -> Result<()> {
    let heard = stage.heard();
    let dropped = || -> Result<u64> {
        Ok(stage.agent.dropped("spoofed-source")? + stage.agent.dropped("unknown-endpoint")?)
    };
    let before = dropped()?;
    say(stage, family)?;
    // Either of both comes: a wait for the drop alone would take long where there is none.
    eventually("what it says to be dropped", || {
        stage.heard() > heard || dropped().is_ok_and(|now| now > before)
    })?;
    ensure!(stage.heard() == heard, "the database heard the intruder over {family:?}");
    Ok(())
}

#[test]
fn a_pod_that_has_a_neighbours_address_too_when_the_agent_comes_takes_nothing_from_its_owner() -> Result<()> {
    on_both(claim, Wait::UntilReady, "it is bound to neither, and denied", |stage| {
        for family in Family::BOTH {
            says_nothing(stage, family)?;
            receives_nothing(stage, family)?;
        }
        stage.begin().context("the API connects to the database")?;
        stage.api_goes_on()
    })
}

/// Puts the API's addresses in place of the intruder's own.
fn replace(node: &Node) -> Result<()> {
    claim(node)?;
    let (own, api) = (&node.pods[2], &node.pods[0]);
    for address in [IpAddr::from(own.v4), own.v6.into()] {
        own.ns.ip(&format!("addr flush dev eth0 to {address}"))?;
    }
    // The way out goes with the address that it was to be left from.
    let router = if node.ns.hardware_address("cni0").is_ok() { "10.77.0.1" } else { "169.254.1.1" };
    own.ns.ip(&format!(
        "route replace {router} dev eth0 scope link\nroute replace default via {router} src {}",
        api.v4
    ))
}

#[test]
fn a_pod_that_has_a_neighbours_address_in_place_of_its_own_when_the_agent_comes_is_not_taken_for_it()
-> Result<()> {
    // Which of both is the owner cannot be told then, and the agent says that a pod is missing.
    on_both(replace, Wait::No, "whose it is cannot be told, and both are denied", |stage| {
        Family::BOTH.into_iter().try_for_each(|family| says_nothing(stage, family))
    })
}
