//! `portcullis dump`: what is in the pinned maps, with the names of the names file. Works with the agent dead.
//!
//! Every part is a vector of plain records, serialised as they are for JSON and laid out by column for people. The
//! records' fields are a promise: they are added to, not renamed (the tests keep their names).

mod counters;
mod drops;
pub mod endpoints;
mod flows;
mod identities;
mod policies;
mod services;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::names::Names;
use super::output::{self, Format};
use super::table::Table;
use super::{Outcome, Paths};
use crate::datapath::Reader;

/// Flags of `dump`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DumpArgs {
    /// What to print
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
}

const EXAMPLES: &str = "\
Reads the pinned maps and the names file, so it works with the agent dead. Names that are not known
are printed as numbers, such as #17.

Examples:
  portcullis dump
  portcullis dump counters -o json
  portcullis dump flows | grep shop/db
  portcullis --root /host dump policies";

/// Parts of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Who is behind every address
    Identities,
    /// The interfaces of this node's pods
    Endpoints,
    /// What is decided about whom, on which ports and by which rule
    Policies,
    /// The addresses of services, and what stands behind each
    Services,
    /// Conversations under way
    Flows,
    /// Packets, bytes and decisions by pair of principals
    Counters,
    /// Dropped packets by reason
    Drops,
    /// Everything
    All,
}

/// Where a dump reads from.
struct Context {
    reader: Reader,
    names: Names,
}

/// A part, ready to print.
struct Part {
    name: &'static str,
    tables: Vec<Table>,
    json: Value,
}

/// Runs the command.
pub fn run(args: &DumpArgs, format: Format, paths: &Paths) -> anyhow::Result<Outcome> {
    let context = Context { reader: Reader::open(&paths.bpffs)?, names: Names::load(&paths.run_dir) };
    let parts = match args.what {
        What::Identities => vec![identities::part(&context)?],
        What::Endpoints => vec![endpoints::part(&context)?],
        What::Policies => vec![policies::part(&context)?],
        What::Services => vec![services::part(&context)?],
        What::Flows => vec![flows::part(&context)?],
        What::Counters => vec![counters::part(&context)?],
        What::Drops => vec![drops::part(&context)?],
        What::All => vec![
            identities::part(&context)?,
            endpoints::part(&context)?,
            policies::part(&context)?,
            services::part(&context)?,
            flows::part(&context)?,
            counters::part(&context)?,
            drops::part(&context)?,
        ],
    };
    match format {
        Format::Table => {
            let whole = args.what == What::All;
            let blocks: Vec<String> = parts
                .iter()
                .map(|part| {
                    let tables: Vec<String> = part.tables.iter().map(Table::render).collect();
                    let title = if whole { format!("{}:\n", part.name) } else { String::new() };
                    format!("{title}{}", tables.join("\n"))
                })
                .collect();
            output::write(&blocks.join("\n"))?;
        }
        Format::Json => {
            let mut parts = parts;
            let value = match (args.what, parts.len()) {
                (What::All, _) => parts.into_iter().map(|part| (part.name.to_owned(), part.json)).collect(),
                (_, 1) => parts.remove(0).json,
                _ => Value::Null,
            };
            output::write_json(&value)?;
        }
    }
    Ok(Outcome::Good)
}

#[cfg(test)]
fn fields(record: &impl serde::Serialize) -> Vec<String> {
    let Value::Object(map) = serde_json::to_value(record).unwrap() else { panic!("not an object") };
    map.keys().cloned().collect()
}
