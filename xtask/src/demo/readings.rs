//! What the agent says: `portcullis dump -o json` and `/metrics`, read as a user's script would.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use portcullis_tests::Agent;
use serde::Deserialize;
use serde_json::Value;

use super::expectations::Protocol;

/// Runs `portcullis dump WHAT -o json`.
pub fn dump(agent: &Agent<'_>, what: &str) -> Result<Value> {
    let text = agent.cli(["dump", what, "-o", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("reading `portcullis dump {what} -o json`"))
}

/// Packets by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Packets {
    pub allowed: u64,
    pub denied: u64,
    pub audited: u64,
}

impl Packets {
    /// The number under this name.
    pub fn of(&self, verdict: &str) -> Option<u64> {
        match verdict {
            "allowed" => Some(self.allowed),
            "denied" => Some(self.denied),
            "audited" => Some(self.audited),
            _ => None,
        }
    }
}

/// Counters by source, destination and direction.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<(String, String, String), Packets>);

#[derive(Deserialize)]
struct CounterRow {
    source: String,
    destination: String,
    direction: String,
    packets: Packets,
}

impl Counters {
    /// Reads them.
    pub fn read(agent: &Agent<'_>) -> Result<Self> {
        let rows: Vec<CounterRow> = serde_json::from_value(dump(agent, "counters")?).context("counters")?;
        Ok(Self(rows.into_iter().map(|r| ((r.source, r.destination, r.direction), r.packets)).collect()))
    }

    /// Packets of a pair in a direction.
    pub fn get(&self, source: &str, destination: &str, direction: &str) -> Packets {
        let key = (source.to_owned(), destination.to_owned(), direction.to_owned());
        self.0.get(&key).copied().unwrap_or_default()
    }

    /// Denied packets of a pair, wherever they were denied.
    pub fn denied(&self, source: &str, destination: &str) -> u64 {
        ["ingress", "egress"].map(|direction| self.get(source, destination, direction).denied).iter().sum()
    }

    /// Audited packets of a pair, wherever they were audited.
    pub fn audited(&self, source: &str, destination: &str) -> u64 {
        ["ingress", "egress"].map(|direction| self.get(source, destination, direction).audited).iter().sum()
    }
}

/// An end of a conversation.
pub type End = (IpAddr, u16);

/// Verdicts of the flows between two ends, seen by the endpoint that has the first.
#[derive(Debug, Default)]
pub struct Flows(HashMap<(Protocol, End, End), String>);

#[derive(Deserialize)]
struct FlowRow {
    protocol: String,
    local_address: IpAddr,
    local_port: u16,
    remote_address: IpAddr,
    remote_port: u16,
    verdict: String,
}

impl Flows {
    /// Reads them.
    pub fn read(agent: &Agent<'_>) -> Result<Self> {
        let rows: Vec<FlowRow> = serde_json::from_value(dump(agent, "flows")?).context("flows")?;
        let mut flows = HashMap::new();
        for row in rows {
            let (protocol, ports) = match row.protocol.as_str() {
                "tcp" => (Protocol::Tcp, (row.local_port, row.remote_port)),
                "udp" => (Protocol::Udp, (row.local_port, row.remote_port)),
                // The id is the same at both ends.
                "icmp" | "icmpv6" => (Protocol::Icmp, (row.local_port, row.local_port)),
                _ => continue,
            };
            flows
                .insert((protocol, (row.local_address, ports.0), (row.remote_address, ports.1)), row.verdict);
        }
        Ok(Self(flows))
    }

    /// The verdicts at the endpoints of either end.
    pub fn between(&self, protocol: Protocol, one: End, other: End) -> Vec<&str> {
        let found =
            [(one, other), (other, one)].map(|(local, remote)| self.0.get(&(protocol, local, remote)));
        found.into_iter().flatten().map(String::as_str).collect()
    }
}

/// Whether a list of rows, or one of the lists in an object, has a row with these fields.
pub fn has_row(value: &Value, row: &BTreeMap<String, Value>) -> bool {
    match value {
        Value::Array(rows) => {
            rows.iter().any(|found| row.iter().all(|(name, value)| found.get(name) == Some(value)))
        }
        Value::Object(parts) => parts.values().any(|part| part.is_array() && has_row(part, row)),
        _ => false,
    }
}

/// Packets that were dropped for this reason, in both directions.
pub fn drops(agent: &Agent<'_>, reason: &str) -> Result<u64> {
    let rows = dump(agent, "drops")?;
    let rows = rows.as_array().context("`portcullis dump drops` is no list")?;
    let of_reason = rows.iter().filter(|row| row["reason"] == reason);
    of_reason.map(|row| row["packets"].as_u64().context("drops without a number")).sum()
}

/// The text of `/metrics`.
pub fn metrics(agent: &Agent<'_>) -> Result<String> {
    let (status, text) = agent.get("/metrics")?;
    ensure!(status == 200, "GET /metrics: {status} {text}");
    Ok(text)
}

/// The sum of the series of a metric that have these labels; `None` if there is none.
pub fn sum(text: &str, metric: &str, labels: &BTreeMap<String, String>) -> Option<f64> {
    let series = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?.strip_prefix('{')?;
        let (found, value) = rest.split_once("} ")?;
        let has = |(name, value): (&String, &String)| {
            let wanted = format!("{name}=\"{value}\"");
            found.split(',').any(|label| label == wanted)
        };
        labels.iter().all(has).then(|| value.parse::<f64>().ok())?
    });
    series.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_by_all_its_fields() {
        let dump =
            serde_json::json!({"rows": [], "policies": [{"name": "a", "mode": "audit"}, {"name": "b"}]});
        let row = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect::<BTreeMap<_, _>>()
        };
        assert!(has_row(&dump, &row(&[("name", "a"), ("mode", "audit")])));
        assert!(has_row(&dump["policies"], &row(&[("name", "b")])));
        assert!(!has_row(&dump, &row(&[("name", "b"), ("mode", "audit")])));
    }

    #[test]
    fn series_with_the_labels_are_added_up_and_others_are_not() {
        let text = "# HELP m_total x\nm_total{a=\"1\",b=\"2\"} 3\nm_total{a=\"1\",b=\"3\"} 4\n\
                    m_total_more{a=\"1\"} 9\nm_total{a=\"11\",b=\"2\"} 5\n";
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(sum(text, "m_total", &labels(&[("a", "1")])), Some(7.0));
        assert_eq!(sum(text, "m_total", &labels(&[("a", "1"), ("b", "3")])), Some(4.0));
        assert_eq!(sum(text, "m_total", &labels(&[("a", "2")])), None);
        assert_eq!(sum(text, "other", &labels(&[])), None);
    }
}
