//! Taken off again, while it enforces.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::lifecycle::{leftovers, uninstall};

use crate::scene::{PORT, Scene};

const SOON: Duration = Duration::from_secs(10);

/// Nothing is left on any node, and everything passes.
pub fn leaves_nothing(scene: &Scene, note: &impl Fn(&str)) -> Result<()> {
    let cluster = &scene.cluster;
    for i in 0..2 {
        let there = leftovers::on_node(cluster, i)?;
        for kind in ["program", "file /sys/fs/bpf", "file /run/portcullis"] {
            ensure!(there.iter().any(|thing| thing.contains(kind)), "node{i} has no {kind}: {there:?}");
        }
    }
    let mut loaded = leftovers::loaded(cluster)?;
    ensure!(
        ["program from_pod", "program to_pod", "map IPCACHE4", "map FLOWS4"]
            .iter()
            .all(|what| loaded.iter().any(|thing| thing.starts_with(what))),
        "not all of what is loaded is found: {loaded:?}"
    );
    ensure!(leftovers::still_loaded(&loaded) == loaded, "what is loaded is not seen to be");
    loaded.extend(scene.loaded.iter().cloned());
    uninstall::uninstall(cluster, note)?;
    uninstall::nothing_left(cluster, &loaded)?;
    for (from, to) in [
        (&scene.intruder[0], scene.db[0].v4(PORT)),
        (&scene.intruder[0], scene.db[1].v6(PORT)),
        (&scene.intruder[1], scene.db[0].v4(PORT)),
        (&scene.intruder[1], Scene::outside()),
    ] {
        from.net.tcp_exchange(to, SOON).with_context(|| format!("{} to {to}", from.name))?;
    }
    note("nothing is left, and everything passes");
    Ok(())
}
