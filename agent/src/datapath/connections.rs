//! Connections that are older than their flows, by what conntrack knows of them.
//!
//! Invariant: the loaded programs judge. They are run on the packets with which the connection began, so it gets the flow
//! that it would have got then under the policy of now, or none.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use portcullis_common::abi::endpoint_flags;
use portcullis_common::{Direction, Kind};
use tracing::{debug, info, warn};

use super::segment::{self, ACK, SYN, SYN_ACK};
use super::testrun::ProbeMetadata;
use super::{Datapath, DatapathError, sys};
use crate::conntrack::{Client, Connection, Dumped, Error, Places, Tuple, View, views};

/// How many connections are judged at the start at most. Others are judged when they send.
const SEED_CONNECTIONS: usize = 100_000;
/// How long the start may take for it.
const SEED_TIME: Duration = Duration::from_secs(3);

/// Where this node's addresses are, as the maps have it.
struct Known<'a> {
    datapath: &'a Datapath,
    endpoints: HashMap<IpAddr, Vec<u32>>,
}

impl<'a> Known<'a> {
    fn new(datapath: &'a Datapath) -> Self {
        let mut endpoints: HashMap<IpAddr, Vec<u32>> = HashMap::new();
        // Those that the API has given an address to come first.
        for unknown in [false, true] {
            let wanted = datapath
                .slots
                .written()
                .filter(|endpoint| unknown == (endpoint.flags & endpoint_flags::KNOWN == 0));
            for endpoint in wanted {
                let v4 = endpoint.addr4_be.iter().map(|a| IpAddr::from(a.to_ne_bytes()));
                let v6 = endpoint.addr6.iter().map(|a| IpAddr::from(a.to_bytes()));
                for address in v4.chain(v6).filter(|address| !address.is_unspecified()) {
                    endpoints.entry(address).or_default().push(endpoint.ifindex);
                }
            }
        }
        Self { datapath, endpoints }
    }
}

impl Places for Known<'_> {
    fn endpoints(&self, address: IpAddr) -> &[u32] {
        self.endpoints.get(&address).map_or(&[], Vec::as_slice)
    }
    fn is_node(&self, address: IpAddr) -> bool {
        self.datapath.addresses.exact().get(&address).is_some_and(|i| i.kind == Kind::Host as u8)
    }
}

/// What was found at the start.
#[derive(Debug, Default)]
struct Seeds {
    views: Vec<View>,
    cut: bool,
}

impl Datapath {
    /// Gives the endpoints whose flow tables are new the flows of the connections that are open now. For the time before
    /// their programs are attached: afterwards [`Self::recall`] is asked for single ones.
    pub(super) fn seed(&mut self, fresh: &HashSet<u32>) {
        if fresh.is_empty() || !self.may_judge() {
            return;
        }
        let until = Instant::now() + SEED_TIME;
        let Seeds { views, mut cut } = match find_seeds(&Known::new(self), fresh, until) {
            Ok(seeds) => seeds,
            Err(error) if error.is_absence() => {
                info!(%error, "the kernel tracks no connections: what is open has to be opened again");
                return;
            }
            Err(error) => {
                warn!(%error, "conntrack cannot be asked: what is open has to be opened again");
                return;
            }
        };
        let (mut judged, mut allowed) = (0_usize, 0_usize);
        for view in views {
            if Instant::now() >= until {
                cut = true;
                break;
            }
            judged += 1;
            match self.judge_view(&view) {
                Ok(passed) => allowed += usize::from(passed),
                Err(error) => debug!(%error, "an open connection was not judged"),
            }
        }
        info!(judged, allowed, "connections that were open before have been judged, at each end here");
        if cut {
            warn!(
                connections = SEED_CONNECTIONS,
                seconds = SEED_TIME.as_secs(),
                "there are more open connections than are judged at the start; the others are when they send"
            );
        }
    }

    /// Judges the connection of a packet that was dropped for want of a flow, as conntrack tells who opened it; `false`: it
    /// is denied, or the connection is not that of the packet.
    ///
    /// # Errors
    /// If the programs cannot be run.
    pub fn recall(
        &mut self,
        connection: &Connection,
        ifindex: u32,
        packet: Tuple,
    ) -> Result<bool, DatapathError> {
        if !self.may_judge() {
            return Ok(false);
        }
        let seen = views(connection, &Known::new(self)).into_iter().find(|view| {
            view.ifindex == ifindex && (view.local, view.remote) == (packet.source, packet.destination)
        });
        seen.map_or(Ok(false), |view| self.judge_view(&view))
    }

    /// Whether the programs may be run on packets of ours: not beside real ones, where those could interrupt them.
    fn may_judge(&self) -> bool {
        !self.adopted && self.seeding || sys::has_exclusive_test_runs()
    }

    /// Runs the programs on a connection's SYN and then, if it passed, on the rest of its handshake, as far as it came: what
    /// is half open is soon forgotten, and a flood of it pushes out no open connection.
    fn judge_view(&mut self, view: &View) -> Result<bool, DatapathError> {
        let Some(mac) = self.slots.of(view.ifindex).map(|endpoint| endpoint.mac) else { return Ok(false) };
        let View { ifindex, local, remote, opener, ingress_ifindex, half_open } = *view;
        let mut run = |hook: Direction, flags, ingress_ifindex| -> Result<bool, DatapathError> {
            let (source, destination): (SocketAddr, SocketAddr) = match hook {
                Direction::Egress => (local, remote),
                Direction::Ingress => (remote, local),
            };
            // What a pod sends must carry its MAC address; nobody looks at that of others.
            let Some(frame) = segment::frame(mac, source, destination, flags) else { return Ok(false) };
            Ok(self.probe(hook, &frame, ProbeMetadata { ingress_ifindex, ifindex }, 1)?.passed)
        };
        let back = opener.opposite();
        Ok(run(opener, SYN, ingress_ifindex)?
            && run(back, SYN_ACK, ingress_ifindex)?
            && (half_open || run(opener, ACK, ingress_ifindex)?))
    }
}

/// The open connections at some endpoints.
fn find_seeds(known: &Known<'_>, fresh: &HashSet<u32>, until: Instant) -> Result<Seeds, Error> {
    let mut seeds = Seeds::default();
    let dumped = Client::open()?.dump(until, |connection| {
        seeds
            .views
            .extend(views(&connection, known).into_iter().filter(|view| fresh.contains(&view.ifindex)));
        seeds.views.len() < SEED_CONNECTIONS
    })?;
    seeds.cut = dumped == Dumped::Cut;
    Ok(seeds)
}
