//! Programs of somebody else before and behind ours, at one hook of an interface, which say what they saw.

use anyhow::{Context, Result, ensure};
use aya::maps::Array;
use aya::programs::TcAttachType;
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifier, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::{Ebpf, Pod};
use portcullis::datapath::WITNESS_OBJECT;

use crate::netns::Namespace;
use crate::poll::eventually;

/// What one of them saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Which metadata was not what the program before had written in some of them: a bit a field.
    pub changed: u64,
}

// SAFETY: integers without padding; any bytes are a value.
unsafe impl Pod for Seen {}

/// How they are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// TCX: at the head and at the end of the hook.
    Tcx,
    /// clsact filters of the first priority, where the last one that came is first, and of a later one.
    Clsact,
}

/// Two programs around whatever is between them. They go with it.
#[derive(Debug)]
pub struct Witness(Ebpf, By);

/// The bit of `tc_classid`, which the kernel gives to each filter anew (`cls_bpf_classify`).
const CLASS: u64 = 1 << 3;

impl Witness {
    /// Attaches them at a hook of an interface.
    pub fn around(ns: &Namespace, interface: &str, hook: TcAttachType, by: By) -> Result<Self> {
        let mut ebpf = Ebpf::load(WITNESS_OBJECT)?;
        if by == By::Clsact {
            // There is one already if ours is a filter.
            let _ = ns.run(|| Ok(qdisc_add_clsact(interface)));
        }
        for (name, order, priority) in [("before", LinkOrder::first(), 1), ("behind", LinkOrder::last(), 9)] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
            let options = match by {
                By::Tcx => TcAttachOptions::TcxOrder(order),
                By::Clsact => TcAttachOptions::Netlink(NlOptions {
                    priority,
                    handle: TcHandle::new(0, 0x99),
                    ..NlOptions::default()
                }),
            };
            ns.run(|| Ok(program.attach_with_options(interface, hook, options)))?
                .with_context(|| format!("attaching {name} to {interface}"))?;
        }
        let mut witness = Self(ebpf, by);
        // What passed while only one of them was there is nobody's.
        eventually("the witnesses to begin together", || {
            witness.forget().and_then(|()| witness.seen()).is_ok_and(|seen| seen == [Seen::default(); 2])
        })?;
        Ok(witness)
    }

    /// Both begin to count again, one after the other.
    fn forget(&mut self) -> Result<()> {
        let seen = self.0.map_mut("SEEN").context("no map SEEN")?;
        let mut seen: Array<_, Seen> = Array::try_from(seen)?;
        [0, 1].into_iter().try_for_each(|at| Ok(seen.set(at, Seen::default(), 0)?))
    }

    /// What the one before and the one behind saw so far.
    pub fn seen(&self) -> Result<[Seen; 2]> {
        let seen: Array<_, Seen> = Array::try_from(self.0.map("SEEN").context("no map SEEN")?)?;
        Ok([seen.get(&0, 0)?, seen.get(&1, 0)?])
    }

    /// Waits until the one before has seen so many packets more than the one behind, all of these as it had made them.
    pub fn wait_for_dropped(&self, dropped: u64) -> Result<[Seen; 2]> {
        let mut seen = [Seen::default(); 2];
        eventually("the witnesses to differ by what was dropped", || {
            self.seen().is_ok_and(|now| {
                seen = now;
                seen[0].packets == seen[1].packets + dropped
            })
        })
        .with_context(|| format!("before and behind: {seen:?}, and {dropped} dropped"))?;
        let kept = if self.1 == By::Tcx { 0 } else { CLASS };
        ensure!(seen[1].changed & !kept == 0, "metadata was changed: {seen:?}");
        Ok(seen)
    }
}
