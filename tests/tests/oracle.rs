//! The truth tables that come with the project: every cell, in three ways.

use anyhow::{Result, ensure};
use portcullis_tests::loaded::with_loaded;
use portcullis_tests::oracle::{self, Way};

#[test]
fn every_cell_of_the_truth_tables_holds_for_the_reference_the_compiled_maps_and_the_loaded_programs()
-> Result<()> {
    let steps = oracle::read(&oracle::bundled())?;
    let comparison = with_loaded(move |loaded| oracle::compare(&steps, loaded))?;
    println!("{comparison}");
    ensure!(comparison.differences() == 0, "{comparison}");
    for way in Way::ALL {
        ensure!(comparison.tallies[way as usize].cells == 200_052, "all of them, by {way}");
    }
    ensure!(comparison.packets == 2 * 200_052 / 3, "one for each hook");
    Ok(())
}

#[test]
fn a_wrong_cell_is_told_by_all_three_ways_and_counted() -> Result<()> {
    let text = std::fs::read_to_string(oracle::bundled())?;
    let mut steps: serde_json::Value = serde_json::from_str(&text)?;
    let mut step = steps[0].take();
    // From y/a to x/a on TCP 80: denied, in truth.
    let row = step["ingress"]["TCP/80"][3].as_str().unwrap_or_default().to_owned();
    ensure!(row.starts_with('X'), "{row}");
    step["ingress"]["TCP/80"][3] = row.replacen('X', ".", 1).into();
    let steps = oracle::parse(&serde_json::json!([step]).to_string())?;
    let comparison = with_loaded(move |loaded| oracle::compare(&steps, loaded))?;
    ensure!(comparison.tallies.iter().all(|tally| tally.differences == 1), "{comparison}");
    ensure!(comparison.told.len() == 3, "{comparison}");
    ensure!(comparison.told.iter().all(|told| told.contains("y/a -> x/a TCP/80")), "{comparison}");
    Ok(())
}
