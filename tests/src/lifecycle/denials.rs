//! What the agents of a cluster say they denied, packet by packet, while something goes on.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use portcullis::monitor::{EventRecord, Lost, Record};
use portcullis_common::Reason;

use super::Agents;
use crate::cluster::Cluster;
use crate::command::Running;

/// A `portcullis monitor` in the agent of each node.
#[derive(Debug)]
pub struct Denials {
    monitors: Vec<Running>,
    readers: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Seen>>,
}

/// What the monitors said.
#[derive(Debug, Default)]
pub struct Seen {
    /// Denied packets, each with the name of the node.
    pub events: Vec<(String, EventRecord)>,
    /// Denied packets that the monitors did not see.
    pub missed: u64,
    /// What could not be read.
    broken: Vec<String>,
}

impl Seen {
    /// Denied packets of flows between two addresses, whichever of them opened it.
    pub fn between(&self, a: IpAddr, b: IpAddr) -> impl Iterator<Item = &(String, EventRecord)> {
        self.events.iter().filter(move |(_, event)| {
            let ends = (event.source.address, event.destination.address);
            ends == (a, b) || ends == (b, a)
        })
    }

    /// When an endpoint was denied something because its pod was not known yet: the first and the last time.
    pub fn unknown(&self, address: IpAddr) -> Option<(&str, &str)> {
        let unknown = self.events.iter().filter(|(_, event)| {
            event.reason == Reason::UnknownEndpoint.name()
                && [event.source.address, event.destination.address].contains(&address)
        });
        let times = || unknown.clone().map(|(_, event)| event.time.as_str());
        Some((times().min()?, times().max()?))
    }

    fn take(&mut self, node: &str, line: &str) {
        match serde_json::from_str(line) {
            Ok(Record::Event(event)) => self.events.push((node.to_owned(), *event)),
            Ok(Record::Missed { count, at: Lost::Kernel | Lost::Queue }) => self.missed += count,
            Ok(Record::Agent(_) | Record::Unknown) => {}
            Err(error) => self.broken.push(format!("{node}: {error}: {line}")),
        }
    }
}

impl Denials {
    /// Starts to listen; what is denied from here on is seen.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut denials = Self { monitors: Vec::new(), readers: Vec::new(), seen: Arc::clone(&seen) };
        for node in 0..cluster.nodes().len() {
            // By its path: an image that a test has made names none.
            let command = ["/portcullis", "monitor", "--verdict", "deny", "-o", "json"];
            let (mut monitor, errors) = Agents(cluster).monitor(node, command)?;
            let lines = BufReader::new(monitor.0.stdout.take().context("its output")?).lines();
            let (seen, node) = (Arc::clone(&seen), format!("node{node}"));
            denials.readers.push(thread::spawn(move || {
                // Held as long as it runs, so that nothing it says breaks a pipe.
                let _errors = errors;
                for line in lines.map_while(Result::ok) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).take(&node, &line);
                }
            }));
            denials.monitors.push(monitor);
        }
        Ok(denials)
    }

    /// Stops to listen.
    pub fn finish(mut self) -> Result<Seen> {
        for monitor in &mut self.monitors {
            ensure!(monitor.0.try_wait()?.is_none(), "a monitor ended by itself");
        }
        self.monitors.clear();
        for reader in self.readers.drain(..) {
            ensure!(reader.join().is_ok(), "a reader of a monitor ended by a panic");
        }
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(seen.broken.is_empty(), "monitors said what cannot be read: {:?}", seen.broken);
        Ok(seen)
    }
}
