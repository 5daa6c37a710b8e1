//! Packets, bytes and decisions by pair of principals.

use portcullis_common::abi::Counters;
use portcullis_common::{Direction, Verdict};
use serde::Serialize;

use super::{Context, Part};
use crate::cli::names::Names;
use crate::cli::table::Table;
use crate::datapath::inspect::PairCounters;

/// Numbers by verdict.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct ByVerdict {
    allowed: u64,
    denied: u64,
    audited: u64,
}

impl ByVerdict {
    const fn of(values: [u64; 3]) -> Self {
        Self {
            allowed: values[Verdict::Allow as usize],
            denied: values[Verdict::Deny as usize],
            audited: values[Verdict::Audit as usize],
        }
    }

    const fn total(self) -> u64 {
        self.allowed + self.denied + self.audited
    }
}

/// Counters of a pair.
#[derive(Clone, Debug, Serialize)]
struct Record {
    /// Who opened the flows; `other` for all pairs that found no counters of their own.
    source: String,
    source_number: Option<u32>,
    destination: String,
    destination_number: Option<u32>,
    /// As the pod of this node sees it: `ingress` or `egress`; empty for `other`.
    direction: &'static str,
    packets: ByVerdict,
    bytes: ByVerdict,
    decisions: ByVerdict,
}

fn record(found: &PairCounters, names: &Names) -> Record {
    let PairCounters { pair, counters: Counters { packets, bytes, decisions } } = found;
    let name =
        |number: Option<u32>| number.map_or_else(|| "other".to_owned(), |number| names.principal(number));
    let direction = pair.and_then(|pair| Direction::from_number(u8::try_from(pair.direction).ok()?));
    let (source, destination) = (pair.map(|pair| pair.source), pair.map(|pair| pair.destination));
    Record {
        source: name(source),
        source_number: source,
        destination: name(destination),
        destination_number: destination,
        direction: direction.map_or("", Direction::name),
        packets: ByVerdict::of(*packets),
        bytes: ByVerdict::of(*bytes),
        decisions: ByVerdict::of(*decisions),
    }
}

pub fn part(context: &Context) -> anyhow::Result<Part> {
    let found = context.reader.counters()?;
    let mut records: Vec<Record> = found.iter().map(|pair| record(pair, &context.names)).collect();
    records.sort_by(|a, b| {
        let key =
            |r: &Record| (r.source_number.is_none(), r.source.clone(), r.destination.clone(), r.direction);
        key(a).cmp(&key(b))
    });
    let table = table(&records);
    Ok(Part { name: "counters", tables: vec![table], json: serde_json::to_value(&records)? })
}

fn table(records: &[Record]) -> Table {
    let header = ["SOURCE", "DESTINATION", "DIRECTION", "ALLOWED", "DENIED", "AUDITED", "BYTES", "DECISIONS"];
    Table::of(&header, records, |r| {
        vec![
            r.source.clone(),
            r.destination.clone(),
            r.direction.to_owned(),
            r.packets.allowed.to_string(),
            r.packets.denied.to_string(),
            r.packets.audited.to_string(),
            r.bytes.total().to_string(),
            r.decisions.total().to_string(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::abi::PairKey;

    #[test]
    fn verdicts_go_to_their_columns_and_the_pair_without_a_slot_is_other() {
        let counters = Counters { packets: [7, 8, 9], bytes: [70, 80, 90], decisions: [1, 2, 3] };
        let pair = PairKey { source: 17, destination: 4, direction: 1 };
        let records =
            [Some(pair), None].map(|pair| record(&PairCounters { pair, counters }, &Names::default()));
        let wanted = "\
SOURCE  DESTINATION  DIRECTION  ALLOWED  DENIED  AUDITED  BYTES  DECISIONS
#17     world        egress           7       8        9    240          6
other   other        -                7       8        9    240          6
";
        assert_eq!(table(&records).render(), wanted);
        assert_eq!(
            super::super::fields(&records[0]).join(" "),
            "bytes decisions destination destination_number direction packets source source_number"
        );
    }
}
