//! What is decided about whom: the rows in force, their port tables in words, and the policies they come from.

use portcullis_common::policy::{Decision, PortKey};
use serde::Serialize;

use super::{Context, Part};
use crate::cli::names::Names;
use crate::cli::table::Table;
use crate::datapath::{KeyRange, PolicyRow};
use crate::state::{PolicyState, ProblemState};

/// All ports of a row that get the same decision.
#[derive(Clone, Debug, Serialize)]
struct Record {
    subject: String,
    subject_number: u32,
    direction: &'static str,
    peer: String,
    peer_number: u32,
    /// `any`, or ranges such as `tcp/80`, `udp/5000-5010`, `sctp` (all its ports) and `other` (every protocol without
    /// ports, such as ICMP).
    ports: Vec<String>,
    /// Whether these are most ports of the row: what its other records do not name.
    rest: bool,
    verdict: &'static str,
    reason: &'static str,
    rule: String,
    rule_number: u32,
}

#[derive(Clone, Debug, Serialize)]
struct Dump<'a> {
    rows: Vec<Record>,
    policies: &'a [PolicyState],
    problems: &'a [ProblemState],
}

/// A range of keys within one protocol, in words.
fn words(from: u32, to: u32) -> Vec<String> {
    let mut found = Vec::new();
    for (protocol, base) in [("tcp", 0), ("udp", 1 << 16), ("sctp", 2 << 16)] {
        let (low, high) = (from.max(base), to.min(base + 0xffff));
        if low > high {
            continue;
        }
        found.push(match (low - base, high - base) {
            (0, 0xffff) => protocol.to_owned(),
            (low, high) if low == high => format!("{protocol}/{low}"),
            (low, high) => format!("{protocol}/{low}-{high}"),
        });
    }
    if to >= PortKey::OTHER.0 {
        found.push("other".to_owned());
    }
    found
}

/// Groups the ranges of a row by decision, in the order of their first port.
fn records(row: &PolicyRow, names: &Names) -> Vec<Record> {
    let mut groups: Vec<(Decision, Vec<&KeyRange>)> = Vec::new();
    for range in &row.ranges {
        match groups.iter_mut().find(|(decision, _)| *decision == range.decision) {
            Some((_, ranges)) => ranges.push(range),
            None => groups.push((range.decision, vec![range])),
        }
    }
    let size = |ranges: &[&KeyRange]| ranges.iter().map(|r| r.to.0 - r.from.0 + 1).sum::<u32>();
    let largest = groups.iter().map(|(_, ranges)| size(ranges)).max().unwrap_or(0);
    let single = groups.len() == 1;
    let mut records: Vec<Record> = groups
        .iter()
        .map(|(decision, ranges)| Record {
            subject: names.subject(row.subject),
            subject_number: row.subject,
            direction: row.direction.name(),
            peer: names.peer(row.peer),
            peer_number: row.peer,
            ports: if single {
                vec!["any".to_owned()]
            } else {
                ranges.iter().flat_map(|r| words(r.from.0, r.to.0)).collect()
            },
            rest: !single && size(ranges) == largest,
            verdict: decision.verdict.name(),
            reason: decision.reason.name(),
            rule: names.rule(*decision),
            rule_number: decision.rule,
        })
        .collect();
    // What is said about named ports first, then the rest.
    records.sort_by_key(|record| record.rest);
    records
}

pub fn part(context: &Context) -> anyhow::Result<Part> {
    let names = &context.names;
    let rows: Vec<Record> = context.reader.policies()?.iter().flat_map(|row| records(row, names)).collect();
    let header = ["SUBJECT", "DIRECTION", "PEER", "PORTS", "VERDICT", "RULE"];
    let table = Table::of(&header, &rows, |r| {
        vec![
            r.subject.clone(),
            r.direction.to_owned(),
            r.peer.clone(),
            if r.rest { "the rest".to_owned() } else { r.ports.join(" ") },
            r.verdict.to_owned(),
            r.rule.clone(),
        ]
    });
    let state = names.state();
    let mut tables = vec![table];
    tables.extend(policy_tables(&state.policies, &state.problems));
    let dump = Dump { rows, policies: &state.policies, problems: &state.problems };
    Ok(Part { name: "policies", tables, json: serde_json::to_value(&dump)? })
}

/// The policies and what of them was not understood; nothing where nothing is known.
fn policy_tables(policies: &[PolicyState], problems: &[ProblemState]) -> Vec<Table> {
    let mut tables = Vec::new();
    if !policies.is_empty() {
        let header = ["POLICY", "NAMESPACE", "NAME", "MODE", "DIRECTIONS", "PODS", "PROBLEMS"];
        tables.push(Table::of(&header, policies, |p| {
            let slash = if p.namespace.is_empty() { "" } else { "/" };
            let object = format!("{} {}{slash}{}", p.kind, p.namespace, p.name);
            vec![
                p.kind.clone(),
                p.namespace.clone(),
                p.name.clone(),
                p.mode.clone(),
                p.directions.join(","),
                p.pods.to_string(),
                problems.iter().filter(|problem| problem.object == object).count().to_string(),
            ]
        }));
    }
    if !problems.is_empty() {
        tables.push(Table::of(&["OBJECT", "FIELD", "PROBLEM"], problems, |p| {
            vec![p.object.clone(), p.field.clone(), p.message.clone()]
        }));
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::policy::protocol::{TCP, UDP};
    use portcullis_common::{Direction, Reason, Verdict};

    fn row(steps: &[(PortKey, Decision)]) -> PolicyRow {
        let ends = steps.iter().skip(1).map(|(key, _)| key.0).chain([PortKey::END]);
        let ranges = steps
            .iter()
            .zip(ends)
            .map(|((from, decision), end)| KeyRange {
                from: *from,
                to: PortKey(end - 1),
                decision: *decision,
            })
            .collect();
        PolicyRow { subject: 2, direction: Direction::Ingress, peer: 20, ranges }
    }

    #[test]
    fn ports_with_the_same_decision_are_one_line_and_the_rest_comes_last() {
        let deny = Decision::new(Verdict::Deny, Reason::Policy);
        let allow = Decision { verdict: Verdict::Allow, reason: Reason::Policy, rule: 5 };
        let records = records(
            &row(&[
                (PortKey::FIRST, deny),
                (PortKey::new(TCP, 80), allow),
                (PortKey::new(TCP, 81), deny),
                (PortKey::new(TCP, 5000), allow),
                (PortKey::new(TCP, 5011), deny),
                (PortKey::new(UDP, 53), allow),
                (PortKey::new(UDP, 54), deny),
            ]),
            &Names::default(),
        );
        let seen: Vec<_> =
            records.iter().map(|r| (r.ports.join(" "), r.verdict, r.rest, r.rule.as_str())).collect();
        assert_eq!(seen[0], ("tcp/80 tcp/5000-5010 udp/53".to_owned(), "allow", false, "#5"));
        assert_eq!(
            seen[1],
            (
                "tcp/0-79 tcp/81-4999 tcp/5011-65535 udp/0-52 udp/54-65535 sctp other".to_owned(),
                "deny",
                true,
                "(isolated, and no rule allows it)"
            )
        );
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_constant_is_any_and_whole_protocols_are_named_without_ports() {
        let allow = Decision::new(Verdict::Allow, Reason::Default);
        let deny = Decision::new(Verdict::Deny, Reason::Policy);
        let constant = records(&row(&[(PortKey::FIRST, allow)]), &Names::default());
        assert_eq!(
            (constant[0].ports.join(" "), constant[0].rest, constant.len()),
            ("any".to_owned(), false, 1)
        );
        let udp = records(
            &row(&[(PortKey::FIRST, allow), (PortKey::new(UDP, 0), deny), (PortKey(2 << 16), allow)]),
            &Names::default(),
        );
        assert_eq!((udp[0].ports.join(" "), udp[0].verdict), ("udp".to_owned(), "deny"));
        assert_eq!(udp[1].ports.join(" "), "tcp sctp other");
        assert_eq!(
            super::super::fields(&udp[0]).join(" "),
            "direction peer peer_number ports reason rest rule rule_number subject subject_number verdict"
        );
    }
}
