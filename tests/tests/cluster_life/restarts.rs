//! Agents killed, replaced and away, while traffic goes on.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use portcullis_tests::lifecycle::{LivePod, image};
use portcullis_tests::{TempDir, eventually, installed};

use crate::scene::{LIFE, PORT, Scene};

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_millis(1300);
/// Short tries, so that many begin around the moment that counts.
const QUICK: Duration = Duration::from_millis(100);

/// Seconds of the clock that agents publish times of.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Killed on each node, then rolled to another image: nothing permitted is lost, nothing forbidden passes.
pub fn killed_and_rolled(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let folder = TempDir::new()?;
    scene.cluster.load(&image::another(&installed::image()?, folder.path())?)?;
    let watch = scene.watch()?;
    for i in 0..2 {
        scene.agents().kill(i)?;
        note(&format!("the agent of node{i} was killed, and another one is ready"));
    }
    watch.check()?;
    let before = scene.agents().images()?;
    scene.agents().set_image(image::NEXT)?;
    let after = scene.agents().images()?;
    ensure!(
        before.len() == 2
            && before.keys().eq(after.keys())
            && before.iter().all(|(node, id)| after[node] != *id),
        "not every agent runs another image: {before:?} before, {after:?} now"
    );
    note("all agents run from another image");
    note(&watch.finish()?.to_string());
    scene.nothing_permitted_was_denied()
}

/// While a node has no agent a pod goes and one of another account gets its addresses, and a new one comes.
pub fn dead_while_an_address_is_reused(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let watch = scene.watch()?;
    let guest = scene.pod("guest-0")?;
    let (v4, v6) = (guest.v4, guest.v6);
    scene.agents().remove(0)?;
    scene.cluster.kubectl(["--namespace", LIFE, "delete", "pod", "guest-0", "--wait"])?;
    give_next(scene, &guest)?;
    let heir = scene.add("intruder", "heir-0", 0)?;
    ensure!((heir.v4, heir.v6) == (v4, v6), "the address was not reused: {v4} and then {}", heir.v4);
    let late = scene.add("api", "late-0", 0)?;
    let [db0, db1] = &scene.db;
    // What the node without an agent lets pass is what the documents say.
    for (what, from, to, passes) in [
        ("the heir to the same node, as whom it replaced", &heir, db0.v4(PORT), true),
        ("the heir to the outside, unjudged", &heir, Scene::outside(), true),
        ("the heir to the other node", &heir, db1.v4(PORT), false),
        ("the new pod to the same node", &late, db0.v4(PORT), false),
        ("the new pod to the other node", &late, db1.v4(PORT), true),
    ] {
        let found = from.net.tcp_exchange(to, if passes { SOON } else { NEVER }).is_ok();
        note(&format!("  no agent on node0: {what}: {}", if found { "passes" } else { "refused" }));
        ensure!(found == passes, "the documents say otherwise of: {what}");
    }
    // What it opens now is open when the agent is back.
    let mut open = Vec::new();
    for to in [db0.v4(PORT), Scene::outside()] {
        let mut connection = heir.net.tcp_connect(to, SOON)?;
        connection.exchange(SOON).with_context(|| format!("the heir's connection to {to}, unjudged"))?;
        open.push((to, connection));
    }
    right_before_ready(scene, &heir)?;
    for (to, connection) in &mut open {
        ensure!(connection.exchange(NEVER).is_err(), "the heir's connection to {to} outlived the gap");
    }
    late.net.tcp_exchange(db0.v4(PORT), NEVER).context("the new pod, once the agent is ready")?;
    late.net.tcp_exchange(db1.v6(PORT), NEVER).context("the new pod, to the other node")?;
    for to in [db0.v6(PORT), db1.v4(PORT), Scene::outside()] {
        ensure!(heir.net.tcp_exchange(to, NEVER).is_err(), "the heir reaches {to}");
    }
    note(&watch.finish()?.to_string());
    Ok(())
}

/// Lets the node hand out the addresses of a pod that is gone to the next one.
fn give_next(scene: &Scene, pod: &LivePod) -> Result<()> {
    let folder = scene.cluster.node(0).folder().join("addresses/pods");
    let (std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)) = (pod.v4, pod.v6) else {
        anyhow::bail!("the addresses of {} are not of both families", pod.name)
    };
    // A pod that is deleted without grace is gone from the API before it is gone from the node.
    eventually(&format!("the addresses of {} to be free", pod.name), || {
        !folder.join(v4.to_string()).exists() && !folder.join(v6.to_string()).exists()
    })?;
    let before4 = std::net::Ipv4Addr::from_bits(v4.to_bits() - 1);
    let before6 = std::net::Ipv6Addr::from_bits(v6.to_bits() - 1);
    std::fs::write(folder.join("last_reserved_ip.0"), before4.to_string()).context("the node's addresses")?;
    std::fs::write(folder.join("last_reserved_ip.1"), before6.to_string()).context("the node's addresses")
}

/// When the agent of a node that has just been given one had programmed everything for the first time, by its own word and
/// clock: it is not ready before.
fn first_success(scene: &Scene, node: usize) -> Result<f64> {
    let mut at = 0.0;
    eventually("the agent to say that everything is programmed", || {
        at = installed::metric_of(&scene.cluster, node, "portcullis_last_success_timestamp_seconds", &[])
            .unwrap_or_default();
        at > 0.0
    })?;
    Ok(at)
}

/// Brings the agent back. No connection that begins after it has programmed everything may pass as the old owner's.
fn right_before_ready(scene: &Scene, heir: &LivePod) -> Result<()> {
    let (stop, passed) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (db, outside) = (scene.db[0].v4(PORT), Scene::outside());
    let try_all = |to| {
        heir.net.run(|| {
            while !stop.load(Ordering::SeqCst) {
                let begun = now();
                if std::net::TcpStream::connect_timeout(&to, QUICK).is_ok() {
                    passed.lock().unwrap_or_else(PoisonError::into_inner).push((begun, to));
                    std::thread::sleep(QUICK / 10);
                }
            }
            Ok(())
        })
    };
    let right = std::thread::scope(|scope| {
        let tries = [scope.spawn(|| try_all(db)), scope.spawn(|| try_all(outside))];
        let right = scene.agents().restore(0).and_then(|()| first_success(scene, 0));
        let ready = scene.agents().wait_ready(0);
        // Some tries that begin when it is ready.
        let refused = heir.net.tcp_exchange(db, NEVER).is_err();
        stop.store(true, Ordering::SeqCst);
        for one in tries {
            one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        ready?;
        ensure!(refused, "the heir passes when the agent is ready");
        right
    })?;
    let passed = passed.into_inner().unwrap_or_else(PoisonError::into_inner);
    for to in [db, outside] {
        let count = passed.iter().filter(|(_, at)| *at == to).count();
        ensure!(count > 0, "the heir should have reached {to} while nobody judged it");
        let late = passed.iter().filter(|(begun, at)| *at == to && *begun > right).count();
        ensure!(
            late == 0,
            "{late} of {count} connections of the heir to {to} passed after the agent had programmed everything"
        );
    }
    Ok(())
}
