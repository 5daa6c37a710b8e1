//! What `portcullis dump` says after an attack.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::stage::Stage;

/// A flow.
#[derive(Debug, Deserialize)]
pub struct FlowRecord {
    pub protocol: String,
    pub local_address: IpAddr,
    pub local_port: u16,
    pub remote_port: u16,
    pub state: String,
}

/// The interface of a pod.
#[derive(Deserialize)]
struct EndpointRecord {
    pod: Option<String>,
    addresses: Vec<IpAddr>,
}

/// What a pair counted.
#[derive(Deserialize)]
struct PairRecord {
    source: String,
    destination: String,
    direction: String,
    packets: ByVerdict,
    bytes: ByVerdict,
}

#[derive(Deserialize)]
struct ByVerdict {
    allowed: u64,
    denied: u64,
}

impl Stage<'_> {
    /// The flows of all pods that have one of these ports at an end.
    pub fn flows(&self, ports: &[u16]) -> Result<Vec<FlowRecord>> {
        let text = self.agent.cli(["dump", "flows", "-o", "json"])?;
        let mut flows: Vec<FlowRecord> = serde_json::from_str(&text)?;
        flows.retain(|flow| ports.contains(&flow.local_port) || ports.contains(&flow.remote_port));
        Ok(flows)
    }

    /// The pods of this node that may send from an address.
    pub fn owners(&self, address: IpAddr) -> Result<Vec<String>> {
        let text = self.agent.cli(["dump", "endpoints", "-o", "json"])?;
        let mut endpoints: Vec<EndpointRecord> = serde_json::from_str(&text)?;
        endpoints.retain(|endpoint| endpoint.addresses.contains(&address));
        Ok(endpoints.into_iter().filter_map(|endpoint| endpoint.pod).collect())
    }

    /// Bytes that the API was allowed to send to the database, or got back, as the database's interface counts them.
    pub fn bytes_of_the_api(&self) -> Result<u64> {
        Ok(self.counted_at_db("shop/api")?.context("the pair of API and database")?.bytes.allowed)
    }

    /// Packets of a sender that were denied on their way into the database.
    pub fn denied_at_db(&self, sender: &str) -> Result<u64> {
        Ok(self.counted_at_db(sender)?.map_or(0, |pair| pair.packets.denied))
    }

    fn counted_at_db(&self, sender: &str) -> Result<Option<PairRecord>> {
        let text = self.agent.cli(["dump", "counters", "-o", "json"])?;
        let pairs: Vec<PairRecord> = serde_json::from_str(&text)?;
        let is_pair = |pair: &PairRecord| {
            pair.source == sender && pair.destination == "shop/db" && pair.direction == "ingress"
        };
        Ok(pairs.into_iter().find(is_pair))
    }
}
