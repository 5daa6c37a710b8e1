//! Random series of changes: whatever comes in whatever order, what is compiled and what is in the kernel are those of a world
//! that was there from the start.

use anyhow::{Context, Result, ensure};
use portcullis::identity::Numbers;
use portcullis::model::World;
use portcullis::policy::{Desired, compile};
use portcullis_common::abi::NumberSpace;
use portcullis_tests::loaded::{Loaded, with_loaded};
use portcullis_tests::picture::Picture;
use portcullis_tests::random::changes::Change;
use portcullis_tests::random::shrink::{shrink, shrink_changes};
use portcullis_tests::random::{Rng, manifests, objects};

use crate::loaded::places;

/// Changes in a series.
const CHANGES: usize = 60;

/// What an agent keeps between two compilations. An incremental compiler takes its place here.
#[derive(Default)]
struct Keeper {
    numbers: Numbers,
}

impl Keeper {
    fn desired(&mut self, world: &World) -> Desired {
        compile(world, &mut self.numbers)
    }

    /// As the agent does it once the kernel holds what was compiled last.
    fn collect(&mut self) {
        let principal = NumberSpace::Principal as u32;
        let unused: Vec<_> = self.numbers.unused().filter(|key| key.space != principal).collect();
        for key in unused {
            self.numbers.free(key);
        }
    }
}

/// A world to begin with.
fn beginning(rng: &mut Rng) -> World {
    let mut world = rng.world_with_identities();
    rng.add_services(&mut world);
    rng.add_guardrails(&mut world);
    world
}

/// The same world, made at once of its objects in another order.
fn from_scratch(world: &World, rng: &mut Rng) -> World {
    let mut objects = objects::of(world);
    rng.shuffle(&mut objects);
    objects::world(objects, world)
}

/// What a world means that was there from the start, with the pods behind the interfaces of some places.
fn wanted(world: &World, places: &[(u32, String)]) -> (Picture, Desired) {
    let mut numbers = Numbers::default();
    let desired = compile(world, &mut numbers);
    (Picture::of_desired(&desired, &numbers, places), desired)
}

/// Compiles after each change, and compares the last result with that of the same world from scratch; returns how many
/// entries there are.
fn replay(beginning: &World, changes: &[Change], seed: u64) -> Result<usize> {
    let mut rng = Rng(seed);
    let mut world = beginning.clone();
    let mut keeper = Keeper::default();
    let mut desired = keeper.desired(&world);
    for change in changes {
        change.clone().bring_to(&mut world);
        desired = keeper.desired(&world);
        if rng.chance(30) {
            keeper.collect();
        }
    }
    let (clean, by_scratch) = wanted(&from_scratch(&world, &mut rng), &[]);
    let picture = Picture::of_desired(&desired, &keeper.numbers, &[]);
    picture.ensure_equal(&clean)?;
    ensure!(desired.problems == by_scratch.problems, "other problems are reported");
    Ok(picture.len())
}

#[test]
fn after_any_changes_what_is_compiled_is_what_is_compiled_from_scratch() -> Result<()> {
    let (mut compared, mut entries) = (0, 0);
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let world = beginning(&mut rng);
        let changes = rng.changes(CHANGES);
        // Every tenth state is looked at: each that differs differs until it is put right.
        for count in (0..=CHANGES).step_by(10) {
            let Err(error) = replay(&world, &changes[..count], seed).map(|found| entries += found) else {
                compared += 1;
                continue;
            };
            let fails = |world: &World, changes: &[Change]| replay(world, changes, seed).is_err();
            let few = shrink_changes(&changes[..count], |few| fails(&world, few));
            let small = shrink(&world, |small| fails(small, &few));
            let error = replay(&small, &few, seed).err().unwrap_or(error);
            return Err(error.context(format!(
                "seed {seed}, after these changes:\n{}\nof this world:\n{}",
                few.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
                manifests::text(&small)
            )));
        }
    }
    println!("{compared} states with {entries} entries compared");
    ensure!(entries > 40 * compared, "too little was there to compare");
    Ok(())
}

#[test]
fn after_any_changes_the_kernel_holds_what_a_clean_start_puts_there() -> Result<()> {
    with_loaded(|loaded| {
        let (mut compared, mut entries) = (0, 0);
        for seed in 100..106 {
            let mut rng = Rng(seed);
            let mut world = beginning(&mut rng);
            for (at, change) in rng.changes(CHANGES).into_iter().enumerate() {
                change.clone().bring_to(&mut world);
                // Several changes come in one batch at times.
                if rng.chance(50) {
                    continue;
                }
                loaded.program(&world, &places())?;
                let world = from_scratch(&world, &mut rng);
                entries += compare(loaded, &world)
                    .with_context(|| format!("seed {seed}, after change {at}: {change}"))?;
                compared += 1;
            }
        }
        // Nothing of what was there before is left: no row, no table, no number but the principals'.
        loaded.program(&World::default(), &places())?;
        compare(loaded, &World::default())?;
        ensure!(loaded.port_steps() == 0, "{} steps of port tables are left", loaded.port_steps());
        println!("{compared} states of the kernel with {entries} entries compared");
        ensure!(entries > 40 * compared, "too little was there to compare");
        Ok(())
    })
}

#[test]
fn a_kernel_after_changes_and_one_after_a_clean_start_are_equal() -> Result<()> {
    // Two datapaths of their own, one after the other: the pictures are of two kernels, no compiler between.
    let mut pictures = Vec::new();
    for changes in [true, false] {
        pictures.push(with_loaded(move |loaded| {
            let mut rng = Rng(7);
            let mut world = beginning(&mut rng);
            for change in rng.changes(CHANGES) {
                change.bring_to(&mut world);
                if changes {
                    loaded.program(&world, &places())?;
                }
            }
            let world = from_scratch(&world, &mut rng);
            loaded.program(&world, &places())?;
            Picture::of_kernel(loaded.folder())
        })?);
    }
    ensure!(pictures[0].len() > 40, "too little was there to compare");
    pictures[0].ensure_equal(&pictures[1])
}

/// The kernel against the compilation from scratch; returns how many entries there are.
fn compare(loaded: &Loaded, world: &World) -> Result<usize> {
    let behind: Vec<(u32, String)> =
        places().into_iter().enumerate().map(|(place, uid)| (loaded.interface(place), uid)).collect();
    let (wanted, _) = wanted(world, &behind);
    let found = Picture::of_kernel(loaded.folder())?;
    found.ensure_equal(&wanted)?;
    Ok(found.len())
}
