//! Dropped packets by reason.

use portcullis_common::{Direction, Reason};
use serde::Serialize;

use super::{Context, Part};
use crate::cli::table::Table;

/// Packets dropped for a reason.
#[derive(Clone, Debug, Serialize)]
struct Record {
    reason: &'static str,
    reason_number: u8,
    direction: &'static str,
    packets: u64,
}

fn record((reason, direction, packets): (Reason, Direction, u64)) -> Record {
    Record { reason: reason.name(), reason_number: reason as u8, direction: direction.name(), packets }
}

pub fn part(context: &Context) -> anyhow::Result<Part> {
    let records: Vec<Record> = context.reader.drops()?.into_iter().map(record).collect();
    let table = Table::of(&["REASON", "DIRECTION", "PACKETS"], &records, |r| {
        vec![r.reason.to_owned(), r.direction.to_owned(), r.packets.to_string()]
    });
    Ok(Part { name: "drops", tables: vec![table], json: serde_json::to_value(&records)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_name_and_number() {
        let json = serde_json::to_string(&record((Reason::NoFlow, Direction::Egress, 3))).unwrap();
        assert_eq!(json, r#"{"reason":"no-flow","reason_number":25,"direction":"egress","packets":3}"#);
    }
}
