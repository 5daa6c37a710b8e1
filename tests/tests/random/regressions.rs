//! Worlds that told right from wrong, shrunk to what made the difference and kept by name, each with the question and the
//! answer: asked of the reference, of the compiled maps, and of the loaded programs.
//!
//! A new one: put the manifests that a failed test printed into `tests/data/regressions`, and its question into the table.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use portcullis::model::World;
use portcullis_common::{Direction, Verdict};
use portcullis_tests::TempDir;
use portcullis_tests::loaded::with_loaded;
use portcullis_tests::oracle::Compiled;
use portcullis_tests::random::questions::Asked;
use portcullis_tests::random::{manifests, packets};
use portcullis_tests::reference;

use Direction::{Egress, Ingress};
use Verdict::{Allow, Deny};

/// File, direction, the other address, protocol and port, and the answer about the pod `uid0`.
const CASES: [(&str, Direction, &str, u8, u16, Verdict); 3] = [
    // The end of a range alone names no port; taken for "every port" it would open all of them.
    ("range-without-a-start", Egress, "192.0.2.1", 132, 443, Deny),
    // A hole that is no part of its block: nobody can say what was meant, so the block matches nobody.
    ("hole-outside-of-its-block", Ingress, "10.0.1.7", 17, 80, Deny),
    // Without `policyTypes` an empty list of egress rules is none, and isolates nobody for egress.
    ("empty-egress-without-types", Egress, "192.0.2.1", 6, 81, Allow),
];

fn world(file: &str) -> Result<World> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/regressions/{file}.yaml"));
    let folder = TempDir::new()?;
    folder
        .write("world.yaml", &std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    let mut world = manifests::read(folder.path())?;
    "here".clone_into(&mut world.settings.node_name);
    Ok(world)
}

fn asked(&(_, direction, peer, protocol, port, _): &(&str, Direction, &str, u8, u16, Verdict)) -> Asked {
    Asked { subject: "uid0".to_owned(), direction, peer: peer.parse().unwrap(), protocol, port }
}

#[test]
fn what_differed_once_is_answered_alike_by_the_reference_and_the_compiled_maps() -> Result<()> {
    for case in &CASES {
        let (file, wanted) = (case.0, case.5);
        let world = world(file)?;
        let question = asked(case).of_world(&world).context(file)?;
        ensure!(reference::identity::verdict(&question) == wanted, "{file}: the reference");
        ensure!(Compiled::new(&world).verdict(&question) == Some(wanted), "{file}: the compiled maps");
    }
    Ok(())
}

#[test]
fn what_differed_once_is_answered_alike_by_the_loaded_programs() -> Result<()> {
    with_loaded(|loaded| {
        for case in &CASES {
            let (file, wanted) = (case.0, case.5);
            let world = world(file)?;
            let places = ["uid0".to_owned()];
            loaded.program(&world, &places)?;
            let asked = asked(case);
            let packet =
                asked.of_world(&world).and_then(|question| packets::case(&question)).context(file)?;
            ensure!(packet.wanted.verdict == wanted, "{file}: the reference");
            packets::send(loaded, &places, &asked, &packet).context(file)?;
        }
        Ok(())
    })
}
