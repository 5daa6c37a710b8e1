//! The loaded programs with a whole compiled world: every pod of it has an interface, and packets go through the program
//! of a hook by test runs. The world reaches the kernel the way that the agent brings it there: numbers that persist,
//! [`Datapath::apply`] with the difference to the world before, then the collection of what was retired.
//!
//! Invariant: a verdict is believed only if the counters say the same: each packet is judged once, and counted for the
//! pair that it is about.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use portcullis::datapath::testrun::ProbeMetadata;
use portcullis::datapath::{AttachMode, Datapath, EndpointSpec, Options, Reader, Sizes, cleanup};
use portcullis::identity::Numbers;
use portcullis::model::World;
use portcullis::policy::{Desired, compile};
use portcullis_common::abi::{NumberSpace, PairKey};
use portcullis_common::{Direction, Reason, Verdict};

use crate::command::run_with_input;
use crate::netns::interface_index;
use crate::owner;
use crate::packets::{POD_MAC, Packet, flags};
use crate::privileged::privileged_test;
use crate::untouched;

/// Loaded programs and the world that they enforce.
pub struct Loaded {
    datapath: Datapath,
    folder: PathBuf,
    numbers: Numbers,
    /// What was applied last.
    pub desired: Desired,
    /// Index of the interface of each place.
    interfaces: Vec<u32>,
    reader: Reader,
    slots: HashMap<PairKey, u32>,
    decisions: HashMap<u32, [u64; 3]>,
    packets: u64,
}

/// A flow to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Who opens it.
    pub source: std::net::IpAddr,
    /// To whom.
    pub destination: std::net::IpAddr,
    /// IANA number; ICMP stands for an echo request of either family.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

/// What a program did with the first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict that was counted.
    pub verdict: Verdict,
    /// The direction that it was counted for: egress on the way into a pod, where the source's policies deny.
    pub direction: Direction,
}

/// Runs `body` on a thread with a network namespace of its own and loaded programs in it, and takes everything away.
///
/// # Errors
/// What `body` says, and what was left behind.
pub fn with_loaded<T: Send + 'static>(
    body: impl FnOnce(&mut Loaded) -> Result<T> + Send + 'static,
) -> Result<T> {
    let mut found = None;
    privileged_test(|| {
        let thread = std::thread::spawn(move || {
            // SAFETY: changes the network namespace of this thread only.
            let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            ensure!(entered == 0, "making a network namespace: {}", std::io::Error::last_os_error());
            body(&mut Loaded::new()?)
        });
        found = Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        Ok(())
    })?;
    found.context("the thread of the test has ended without a result")
}

impl Loaded {
    /// Loads the programs, in the network namespace of this thread.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> Result<Self> {
        let folder = PathBuf::from("/sys/fs/bpf").join(format!("portcullis-{}", owner::fresh_name()));
        let options = Options {
            bpffs: folder.clone(),
            attach: AttachMode::Auto,
            sizes: Sizes::default(),
            sample: 0,
            event_rate: 0,
            new_flow_rate: 0,
        };
        let datapath = Datapath::open(options)?;
        let reader = Reader::open(&folder)?;
        Ok(Self {
            datapath,
            folder,
            numbers: Numbers::default(),
            desired: Desired::default(),
            interfaces: Vec::new(),
            reader,
            slots: HashMap::new(),
            decisions: HashMap::new(),
            packets: 0,
        })
    }

    /// Compiles a world and brings the kernel to it. The pods of `places`, by UID, are behind the interfaces, in this
    /// order; one that is no pod of this node is unknown there.
    ///
    /// # Errors
    /// If anything could not be programmed.
    pub fn program(&mut self, world: &World, places: &[String]) -> Result<()> {
        self.make_interfaces(places.len())?;
        self.desired = compile(world, &mut self.numbers);
        let endpoints: Vec<EndpointSpec> =
            places.iter().zip(&self.interfaces).map(|(uid, ifindex)| endpoint(uid, *ifindex)).collect();
        let applied = self.datapath.apply(&self.desired, &endpoints, world.mode(), self.numbers.entries())?;
        ensure!(applied.errors.is_empty(), "not everything was programmed: {:?}", applied.errors);
        self.collect()
    }

    /// As the agent does it: retired rows, then their tables, then the numbers that nobody uses.
    fn collect(&mut self) -> Result<()> {
        let principal = NumberSpace::Principal as u32;
        let unused: Vec<_> = self.numbers.unused().filter(|key| key.space != principal).collect();
        while self.datapath.has_retired() {
            self.datapath.collect()?;
        }
        for key in unused {
            self.numbers.free(key);
        }
        Ok(())
    }

    fn make_interfaces(&mut self, wanted: usize) -> Result<()> {
        let first = self.interfaces.len();
        if first >= wanted {
            return Ok(());
        }
        let lines: Vec<String> =
            (first..wanted).map(|i| format!("link add pod{i} type veth peer name peer{i}\n")).collect();
        run_with_input(Command::new("ip").args(["-batch", "-"]), &lines.concat())
            .context("making interfaces")?;
        for i in first..wanted {
            self.interfaces.push(interface_index(&format!("pod{i}"))?);
        }
        Ok(())
    }

    /// The interface of a place.
    pub fn interface(&self, place: usize) -> u32 {
        self.interfaces[place]
    }

    /// The folder of the pins.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Steps of port tables in use.
    pub fn port_steps(&self) -> u32 {
        self.datapath.port_usage().0
    }

    /// The numbers that were given out.
    pub const fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Opens a flow at the hook of a place, as it comes in by `ingress_ifindex`, and reads what was counted for the pair
    /// of principals.
    ///
    /// # Errors
    /// If the kernel does not run the program, or what it did is not what it counted.
    pub fn open(
        &mut self,
        hook: Direction,
        place: usize,
        opening: &Opening,
        (source, destination): (u32, u32),
        ingress_ifindex: u32,
    ) -> Result<Judged> {
        let pair = |direction: Direction| PairKey { source, destination, direction: direction as u32 };
        self.packets += 1;
        let frame = first_packet(opening, self.packets);
        let metadata = ProbeMetadata { ingress_ifindex, ifindex: self.interfaces[place] };
        let passed = untouched::probe(&mut self.datapath, hook, &frame, metadata)?.passed;
        let mut found = self.counted(pair(hook))?.map(|verdict| Judged { verdict, direction: hook });
        if hook == Direction::Ingress {
            let egress = self.counted(pair(Direction::Egress))?;
            ensure!(found.is_none() || egress.is_none(), "{opening:?} was counted in both directions");
            let by_source = egress.map(|verdict| Judged { verdict, direction: Direction::Egress });
            found = found.or(by_source);
        }
        let judged = found.with_context(|| {
            format!("{opening:?} at {hook} {} and was not counted for its pair", told(passed))
        })?;
        ensure!(
            passed == (judged.verdict != Verdict::Deny),
            "{opening:?} at {hook} {} and was counted as {}",
            told(passed),
            judged.verdict
        );
        Ok(judged)
    }

    /// The one decision that was counted for a pair since it was last asked about; `None` if there was none.
    fn counted(&mut self, pair: PairKey) -> Result<Option<Verdict>> {
        let slot = match self.slots.get(&pair) {
            Some(slot) => *slot,
            None => match self.reader.slot_of(&pair)? {
                Some(slot) => *self.slots.entry(pair).or_insert(slot),
                None => return Ok(None),
            },
        };
        ensure!(slot != 0, "there are no counters left for {pair:?}");
        let now = self.reader.slot_counters(slot)?.decisions;
        let before = self.decisions.insert(slot, now).unwrap_or_default();
        let new: Vec<u64> = now.iter().zip(before).map(|(now, before)| now - before).collect();
        ensure!(
            new.iter().sum::<u64>() <= 1,
            "one packet was counted as {new:?} (allow, deny, audit) for {pair:?}"
        );
        Ok(Verdict::ALL.iter().copied().find(|verdict| new[*verdict as usize] == 1))
    }

    /// All decisions so far, over all pairs, by direction and verdict.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn totals(&self) -> Result<[[u64; 3]; 2]> {
        let mut totals = [[0; 3]; 2];
        for found in self.reader.counters()? {
            let pair = found.pair.context("something was counted for `other`")?;
            let sums = totals.get_mut(pair.direction as usize).context("a direction that is none")?;
            sums.iter_mut().zip(found.counters.decisions).for_each(|(sum, more)| *sum += more);
        }
        Ok(totals)
    }

    /// Dropped packets so far: by what policies say, and for any other reason.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn drops(&self) -> Result<(u64, u64)> {
        let (mut by_policy, mut other) = (0, 0);
        for (reason, _, count) in self.reader.drops()? {
            *(if matches!(reason, Reason::Policy | Reason::Default) {
                &mut by_policy
            } else {
                &mut other
            }) += count;
        }
        Ok((by_policy, other))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // The lock is held by the datapath; taking the pins away directly is what a cleanup does after it.
        let version = self.folder.join(format!("v{}", portcullis_common::abi::ABI));
        if cleanup(&self.folder).is_err() && std::fs::remove_dir_all(version).is_ok() {
            let _ = std::fs::remove_dir(&self.folder);
        }
    }
}

const fn told(passed: bool) -> &'static str {
    if passed { "passed" } else { "was dropped" }
}

fn endpoint(uid: &str, ifindex: u32) -> EndpointSpec {
    EndpointSpec {
        ifindex,
        name: format!("interface {ifindex}"),
        master: None,
        mac: Some(POD_MAC),
        pod: Some(uid.to_owned()),
        addresses: Vec::new(),
        unknown: Verdict::Deny,
    }
}

/// The first packet of a flow. `count` makes it another flow than those before: what is known would not be judged again.
fn first_packet(opening: &Opening, count: u64) -> Vec<u8> {
    let Opening { source, destination, protocol, port } = *opening;
    let (source, destination) = (source.to_string(), destination.to_string());
    // The truncation is meant: a flow of the same port, tens of thousands of packets ago, has another revision.
    let own = 1024 + u16::try_from(count % 64_000).unwrap_or_default();
    let packet = match protocol {
        6 => Packet::tcp(&source, own, &destination, port, flags::SYN),
        17 => Packet::udp(&source, own, &destination, port),
        132 => Packet::sctp(&source, own, &destination, port),
        _ => Packet::echo(&source, &destination, true, own),
    };
    packet.bytes()
}
