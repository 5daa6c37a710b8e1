//! Portcullis over its life in a real cluster: switched, killed, replaced, cut off from the API server, under a burst of
//! new pods, and removed, while permitted and forbidden traffic goes on.

mod burst;
mod leader;
mod modes;
mod outage;
mod restarts;
mod scene;
mod uninstall;

use std::time::Instant;

use anyhow::Result;
use portcullis_tests::privileged_test;

use scene::Scene;

#[test]
fn no_event_of_its_life_loses_what_is_permitted_or_lets_through_what_is_not() -> Result<()> {
    privileged_test(|| {
        let start = Instant::now();
        let note = |what: &str| println!("{:>5.1} s  {what}", start.elapsed().as_secs_f64());
        let scene = Scene::up(&note)?;
        modes::audit_and_back(&scene, &note)?;
        restarts::killed_and_rolled(&scene, &note)?;
        leader::another_one_leads(&scene, &note)?;
        restarts::dead_while_an_address_is_reused(&scene, &note)?;
        modes::opened_with_the_agent_dead(&scene, &note)?;
        outage::api_server_away(&scene, &note)?;
        burst::many_pods_at_once(&scene, &note)?;
        uninstall::leaves_nothing(&scene, &note)?;
        scene.down()?;
        note("the cluster is down");
        Ok(())
    })
}
