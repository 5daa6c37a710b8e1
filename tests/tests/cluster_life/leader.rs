//! Who writes the status of policies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::eventually_within;

use crate::scene::{LIFE, Scene};

/// An agent that starts looks at the Lease at once. (One that runs looks once in one or two minutes, for which nobody waits
/// here: that is tested with a shorter Lease.)
const PATIENCE: Duration = Duration::from_secs(60);

/// A policy that the first leader never sees.
const LATER: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: later, namespace: life}
spec:
  subject: {serviceAccounts: {names: [nobody-at-all]}}
  ingress: {}
";

/// The Lease, for who has to find out what happened.
fn lease(scene: &Scene) -> String {
    let lease = scene.cluster.value("portcullis-system", "lease/portcullis", "{.spec}");
    lease.unwrap_or_else(|error| format!("{error:#}"))
}

/// Waits until exactly one agent leads.
fn the_one_that_leads(scene: &Scene) -> Result<usize> {
    let mut found = Ok(0);
    let waited = eventually_within(PATIENCE, "exactly one agent to lead", || {
        found = scene.agents().leader();
        found.is_ok()
    });
    let leader = found.with_context(|| lease(scene))?;
    waited?;
    Ok(leader)
}

/// One agent leads and says of every policy that it is accepted. One that goes gives the Lease back, another one leads and
/// goes on, and the first one leaves it to that when it is back.
pub fn another_one_leads(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let first = the_one_that_leads(scene)?;
    scene.cluster.wait_for(LIFE, "identitypolicies --all", "condition=Accepted")?;
    let holder = scene.cluster.value("portcullis-system", "lease/portcullis", "{.spec.holderIdentity}")?;
    ensure!(
        holder == format!("node{first}"),
        "the Lease is held by {holder}, and the agent of node{first} leads"
    );
    note(&format!("the agent of node{first} leads, and every policy is accepted"));

    scene.agents().remove(first)?;
    let holder = scene.cluster.value("portcullis-system", "lease/portcullis", "{.spec.holderIdentity}")?;
    ensure!(holder != format!("node{first}"), "the agent that went has kept the Lease");
    scene.cluster.apply(LATER)?;
    scene.agents().kill(1 - first)?;
    eventually_within(PATIENCE, "the other agent to lead", || {
        scene.agents().leader().is_ok_and(|leader| leader != first)
    })?;
    scene.cluster.wait_for(LIFE, "identitypolicy/later", "condition=Accepted")?;
    scene.agents().restore(first)?;
    scene.agents().wait_ready(first)?;
    let leader = scene.agents().leader().with_context(|| lease(scene))?;
    ensure!(leader != first, "the former leader took the Lease back: {}", lease(scene));
    scene.cluster.delete(LATER)?;
    note(&format!("node{first} lost its agent, and that of node{leader} leads"));
    Ok(())
}
