//! The loaded programs with hand-written maps, in a network namespace and a bpffs folder of their own.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis::datapath::inspect::AnyKey;
use portcullis::datapath::testrun::{ProbeMetadata, ProbeResult};
use portcullis::datapath::{
    AttachMode, Datapath, EndpointSpec, KernelMaps, Options, Pins, Sizes, cleanup, inspect,
};
use portcullis::policy::{Desired, Function, PodIdentity, RowSet, service_key};
pub use portcullis_checks::host::SLOT;
use portcullis_common::abi::{Counters, Endpoint, Mode, config};
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6};
use portcullis_common::policy::{Decision, PortKey, wildcard_of};
use portcullis_common::service::{SERVICE_ENTRIES, Service, ServiceEntry, entry_flags};
use portcullis_common::table::FlowEntry;
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};

use crate::owner;
use crate::packets::{POD_MAC, Packet, flags};
use crate::privileged::privileged_test;
use crate::tables::{change, empty};
use crate::untouched;

/// Principal, and peer class, of the pod behind the endpoint.
pub const API: u32 = 16;
/// A peer that the pod may talk with.
pub const WEB: u32 = 17;
/// A peer that it may not talk with.
pub const INTRUDER: u32 = 18;
/// Subject class of the pod.
pub const SUBJECT: u32 = 1;

/// Peer class of the addresses of services.
pub const SERVICE_PEER: u32 = 19;

/// Every address of the fixture: the pod, its peers, this node, another node.
pub const ADDRESSES: &[(&str, u32, Kind)] = &[
    ("10.0.0.2", API, Kind::Pod),
    ("fd00::2", API, Kind::Pod),
    ("10.0.0.3", WEB, Kind::Pod),
    ("fd00::3", WEB, Kind::Pod),
    ("10.0.0.4", INTRUDER, Kind::Pod),
    ("fd00::4", INTRUDER, Kind::Pod),
    ("10.0.0.1", Kind::Host as u32, Kind::Host),
    ("fd00::1", Kind::Host as u32, Kind::Host),
    ("10.0.9.1", Kind::Node as u32, Kind::Node),
    ("fd00:9::1", Kind::Node as u32, Kind::Node),
    ("10.0.0.255", Kind::Unmanaged as u32, Kind::Unmanaged),
    ("fd00::", Kind::Unmanaged as u32, Kind::Unmanaged),
];

/// How a packet comes in by another pod's interface or an uplink, never from the node itself.
pub const FROM_OUTSIDE: ProbeMetadata = ProbeMetadata { ingress_ifindex: 99, ifindex: 0 };

/// Loaded programs and their maps.
pub struct Fixture {
    /// The datapath.
    pub datapath: Datapath,
    sizes: Sizes,
    /// What was applied last.
    pub desired: Desired,
    folder: PathBuf,
    maps: OnceCell<KernelMaps>,
}

/// A constant function.
pub fn always(verdict: Verdict) -> Arc<Function> {
    Arc::new(Function::constant(Decision { verdict, reason: Reason::Policy, rule: 1 }))
}

/// Allows these ports and nothing else.
pub fn only(ports: &[(u8, u16, u16)]) -> Arc<Function> {
    let allow = Decision { verdict: Verdict::Allow, reason: Reason::Policy, rule: 2 };
    let deny = Decision { verdict: Verdict::Deny, reason: Reason::Policy, rule: 3 };
    let mut steps = BTreeMap::from([(PortKey::FIRST, deny)]);
    for &(protocol, first, last) in ports {
        steps.insert(PortKey::new(protocol, first), allow);
        steps.insert(PortKey(PortKey::new(protocol, last).0 + 1), deny);
    }
    Arc::new(Function::new(steps).expect("sorted steps"))
}

/// Rows: every kind gets `default` in both directions, `WEB` its own function.
pub fn rows(default: Verdict, web: &Arc<Function>) -> Arc<RowSet> {
    let mut rows = RowSet::new();
    for &direction in Direction::ALL {
        for kind in Kind::ALL {
            rows.insert((direction, wildcard_of(kind)), always(default));
        }
        rows.insert((direction, WEB), Arc::clone(web));
    }
    Arc::new(rows)
}

/// The fixture's desired state: the pod talks with `WEB` on TCP and UDP 80 and 8000 to 8010 only.
pub fn desired() -> Desired {
    let web = only(&[(6, 80, 80), (6, 8000, 8010), (17, 80, 80)]);
    let mut desired = Desired::default();
    for &(address, number, kind) in ADDRESSES {
        desired.ipcache.insert(address.parse().expect("address"), Identity::new(number, number, kind));
    }
    for net in ["0.0.0.0/0", "::/0"] {
        desired.cidrs.insert(net.parse().expect("prefix"), Identity::WORLD);
    }
    desired.subjects.insert(SUBJECT, rows(Verdict::Deny, &web));
    desired.pods.insert("api".to_owned(), pod());
    desired
}

/// An endpoint of a service: its principal, which is its peer class, its port, and whether it is judged again.
pub type Backend = (u32, u16, bool);

/// The entry of an endpoint; that of a pod unless the number is one of a reserved principal.
pub fn backend((number, port, again): Backend) -> ServiceEntry {
    let kind = u8::try_from(number).ok().and_then(Kind::from_number).unwrap_or(Kind::Pod);
    let flags = if again { entry_flags::JUDGED_AGAIN } else { 0 };
    ServiceEntry { peer: number, principal: number, port, kind: kind as u8, flags }
}

/// Adds a frontend, and makes its address a service's unless it is known already or stands for every node.
///
/// # Panics
/// If the address is none, or there are more endpoints than fit.
pub fn add_frontend(desired: &mut Desired, address: &str, protocol: u8, port: u16, backends: &[Backend]) {
    assert!(backends.len() <= SERVICE_ENTRIES, "no room");
    let address: IpAddr = address.parse().expect("address");
    let key = service_key(address, protocol, port);
    let count = u32::try_from(backends.len()).expect("a few");
    let mut service = Service { tag: key.tag(), count, ..Service::default() };
    for (entry, found) in service.entries.iter_mut().zip(backends) {
        *entry = backend(*found);
    }
    desired.services.insert(key, service);
    if !address.is_unspecified() {
        let identity = Identity::new(Kind::Service.principal(), SERVICE_PEER, Kind::Service);
        desired.ipcache.entry(address).or_insert(identity);
    }
}

fn pod() -> PodIdentity {
    let addresses: Vec<IpAddr> =
        ["10.0.0.2", "fd00::2"].iter().map(|a| a.parse().expect("address")).collect();
    PodIdentity { name: "shop/api".to_owned(), principal: API, subject: SUBJECT, addresses, routes: false }
}

/// The endpoint of the fixture: the loopback interface of its network namespace.
pub fn endpoint() -> EndpointSpec {
    EndpointSpec {
        ifindex: 1,
        name: "lo".to_owned(),
        master: None,
        mac: Some(POD_MAC),
        pod: Some("api".to_owned()),
        addresses: Vec::new(),
        unknown: Verdict::Deny,
    }
}

/// Flow tables with nine places for whatever comes, one in each IP version.
pub fn nine_places() -> Sizes {
    Sizes { flows_size: 1, ..Sizes::default() }
}

/// Runs `test` on a thread with a network namespace of its own, with loaded programs; takes everything away after it,
/// also when it fails.
///
/// # Panics
/// If the test does, or if the machine cannot run it.
pub fn with_fixture(test: impl FnOnce(&mut Fixture) + Send + 'static) {
    with_sizes(Sizes::default(), test);
}

/// As [`with_fixture`], with maps of these sizes.
///
/// # Panics
/// As [`with_fixture`].
pub fn with_sizes(sizes: Sizes, test: impl FnOnce(&mut Fixture) + Send + 'static) {
    let outcome = privileged_test(|| {
        let thread = std::thread::spawn(move || {
            // SAFETY: changes the network namespace of this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "needs root (CAP_SYS_ADMIN)");
            let mut fixture = Fixture::new(sizes);
            fixture.apply();
            test(&mut fixture);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

fn options(folder: &Path, sizes: Sizes) -> Options {
    Options {
        bpffs: folder.to_owned(),
        attach: AttachMode::Auto,
        sizes,
        sample: 0,
        event_rate: 1000,
        new_flow_rate: 0,
    }
}

impl Fixture {
    /// Loads the programs.
    ///
    /// # Panics
    /// If that fails.
    pub fn new(sizes: Sizes) -> Self {
        let folder = PathBuf::from("/sys/fs/bpf").join(format!("portcullis-{}", owner::fresh_name()));
        let datapath = Datapath::open(options(&folder, sizes)).expect("the datapath");
        Self { datapath, sizes, desired: desired(), folder, maps: OnceCell::new() }
    }

    /// The agent dies, and the next one opens what it left, without applying anything.
    ///
    /// # Panics
    /// If that fails.
    pub fn reopen(&mut self) {
        self.reopen_as(self.sizes, |_| ());
    }

    /// As [`Fixture::reopen`], with maps of other sizes, and after something happened to the pins.
    ///
    /// # Panics
    /// As [`Fixture::reopen`].
    pub fn reopen_as(&mut self, sizes: Sizes, meanwhile: impl FnOnce(&Pins)) {
        // A stand-in, so that the lock is free before the next one opens.
        let scratch = PathBuf::from("/sys/fs/bpf").join(format!("portcullis-{}", owner::fresh_name()));
        let stand_in = Datapath::open(options(&scratch, Sizes::default())).expect("a stand-in");
        drop(std::mem::replace(&mut self.datapath, stand_in));
        meanwhile(&Pins::new(&self.folder));
        self.sizes = sizes;
        let next = Datapath::open(options(&self.folder, self.sizes)).expect("the adopted datapath");
        drop(std::mem::replace(&mut self.datapath, next));
        self.maps = OnceCell::new();
        cleanup(&scratch).expect("the stand-in is taken away");
    }

    /// Writes a word of the configuration, as an agent with another flag would.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn set_config(&mut self, word: u32, value: u32) {
        let mut maps = inspect::open(&self.folder).expect("the maps");
        maps.config.set(word, value, 0).expect("a write");
    }

    /// Raises the revision, as a change that revokes something does: existing flows are judged again.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn revise(&mut self) {
        let mut maps = inspect::open(&self.folder).expect("the maps");
        let revision = inspect::config_word(&maps, config::REVISION).expect("the revision") + 1;
        maps.config.set(config::REVISION, revision, 0).expect("a write");
        let endpoint = maps.endpoints.get(&SLOT, 0).expect("the endpoint");
        maps.endpoints.set(SLOT, Endpoint { revision, ..endpoint }, 0).expect("a write");
    }

    /// Folder of the pins.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The maps, to read: opened once, because each of them is looked at then.
    ///
    /// # Panics
    /// If they cannot be opened.
    pub fn maps(&self) -> &KernelMaps {
        self.maps.get_or_init(|| inspect::open(&self.folder).expect("the maps"))
    }

    /// The endpoint as it is in the map.
    ///
    /// # Panics
    /// If the maps cannot be read.
    pub fn endpoint(&self) -> Option<Endpoint> {
        let endpoint = self.maps().endpoints.get(&SLOT, 0).expect("the endpoints");
        (endpoint.ifindex != 0).then_some(endpoint)
    }

    /// Applies what is desired, with the one endpoint, enforced.
    ///
    /// # Panics
    /// If anything could not be programmed.
    pub fn apply(&mut self) {
        self.apply_with(&[endpoint()], Mode::Enforce);
    }

    /// As [`Fixture::apply`].
    ///
    /// # Panics
    /// If anything could not be programmed.
    pub fn apply_with(&mut self, endpoints: &[EndpointSpec], mode: Mode) {
        let applied = self
            .datapath
            .apply(&self.desired, endpoints, mode, std::iter::empty())
            .expect("the state is applied");
        assert!(applied.errors.is_empty(), "{:?}", applied.errors);
    }

    /// Lets so many seconds pass for the flows.
    ///
    /// # Panics
    /// If the maps cannot be written.
    pub fn age(&self, seconds: u32) {
        let ticks = u64::from(seconds * inspect::config_word(self.maps(), config::HZ).expect("the ticks"));
        let older = |flow: Flow| Flow { last_seen: flow.last_seen.wrapping_sub(ticks), ..flow };
        self.change_flows(
            |entry| FlowEntry { flow: older(entry.flow), ..entry },
            |entry| FlowEntry { flow: older(entry.flow), ..entry },
        );
    }

    /// Gives the values of flows and fragments to other keys, as a program sees it that looks one up while another processor
    /// takes its place, or the kernel uses its entry again.
    ///
    /// # Panics
    /// If the maps cannot be written.
    pub fn reuse_entries(&self) {
        self.change_flows(
            |entry| FlowEntry { key: FlowKey4 { rest: u64::MAX, ..entry.key }, ..entry },
            |entry| FlowEntry { key: FlowKey6 { rest: u64::MAX, ..entry.key }, ..entry },
        );
    }

    fn change_flows(
        &self,
        v4: impl Fn(FlowEntry<FlowKey4>) -> FlowEntry<FlowKey4>,
        v6: impl Fn(FlowEntry<FlowKey6>) -> FlowEntry<FlowKey6>,
    ) {
        let pins = Pins::new(&self.folder);
        change(&pins.flow(SLOT, 4), v4).expect("the table");
        change(&pins.flow(SLOT, 6), v6).expect("the table");
    }

    /// Forgets flows and fragments; what was judged is remembered.
    ///
    /// # Panics
    /// If the maps cannot be written.
    pub fn forget(&self) {
        let pins = Pins::new(&self.folder);
        let [v4, v6] = [4, 6].map(|version| pins.flow(SLOT, version));
        // There are none while the pod has no slot.
        let clear = |pin: &Path, empty: fn(&Path) -> anyhow::Result<usize>| {
            if pin.exists() {
                empty(pin).expect("a table of flows");
            }
        };
        clear(&v4, empty::<FlowKey4>);
        clear(&v6, empty::<FlowKey6>);
    }

    /// Runs a packet through the program of a direction, as generated by this node.
    ///
    /// # Panics
    /// If the kernel refuses to.
    pub fn run(&mut self, direction: Direction, packet: &Packet) -> bool {
        self.run_with(direction, &packet.bytes(), ProbeMetadata::default())
    }

    /// As [`Fixture::run`], with bytes and metadata.
    ///
    /// # Panics
    /// If the kernel refuses to.
    pub fn run_with(&mut self, direction: Direction, packet: &[u8], metadata: ProbeMetadata) -> bool {
        self.probe(direction, packet, metadata, 1).passed
    }

    /// As [`Fixture::run_with`], `repeat` times. What is left of the packet is looked at if it is once.
    ///
    /// # Panics
    /// If the kernel refuses to.
    pub fn probe(
        &mut self,
        direction: Direction,
        packet: &[u8],
        metadata: ProbeMetadata,
        repeat: u32,
    ) -> ProbeResult {
        let result = if repeat == 1 {
            untouched::probe(&mut self.datapath, direction, packet, metadata)
        } else {
            self.datapath.probe(direction, packet, metadata, repeat)
        };
        result.expect("the program runs")
    }

    /// A packet that the pod sends.
    pub fn sends(&mut self, packet: &Packet) -> bool {
        self.run(Direction::Egress, packet)
    }

    /// A packet that reaches the pod [from outside](FROM_OUTSIDE) of the node.
    pub fn receives(&mut self, packet: &Packet) -> bool {
        self.run_with(Direction::Ingress, &packet.bytes(), FROM_OUTSIDE)
    }

    /// A TCP handshake of the pod with port 80 of a peer, whose connection is open then; whether all of it passed.
    pub fn connects(&mut self, pod: &str, port: u16, peer: &str) -> bool {
        let sent = |flags| Packet::tcp(pod, port, peer, 80, flags);
        let answer = Packet::tcp(peer, 80, pod, port, flags::SYN | flags::ACK);
        self.sends(&sent(flags::SYN)) && self.receives(&answer) && self.sends(&sent(flags::ACK))
    }

    /// The flows of the endpoint.
    ///
    /// # Panics
    /// If its tables cannot be read.
    pub fn flows(&self) -> Vec<(AnyKey, Flow)> {
        inspect::flows(&Pins::new(&self.folder), SLOT).expect("the flows")
    }

    /// Counters of a pair in a direction; zero if it was never seen.
    ///
    /// # Panics
    /// If the maps cannot be read.
    pub fn counters(&self, source: u32, destination: u32, direction: Direction) -> Counters {
        inspect::pair_counters(self.maps())
            .expect("the counters")
            .into_iter()
            .filter_map(|found| found.pair.map(|pair| (pair, found.counters)))
            .find(|(pair, _)| {
                (pair.source, pair.destination, pair.direction) == (source, destination, direction as u32)
            })
            .map_or_else(Counters::default, |(_, counters)| counters)
    }

    /// Dropped packets of a reason and a direction.
    ///
    /// # Panics
    /// If the maps cannot be read.
    pub fn drops(&self, reason: Reason, direction: Direction) -> u64 {
        inspect::drops(self.maps())
            .expect("the drops")
            .into_iter()
            .find(|(r, d, _)| (*r, *d) == (reason, direction))
            .map_or(0, |(_, _, count)| count)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // The lock is held by the datapath; taking the pins away directly is what a cleanup does after it.
        for _ in 0..2 {
            if cleanup(&self.folder).is_ok() {
                return;
            }
            if std::fs::remove_dir_all(Pins::new(&self.folder).folder()).is_err() {
                break;
            }
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}
