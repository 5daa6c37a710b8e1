//! The walk's view of the maps.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::size_of;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};
use portcullis_common::abi::{Addr6, Endpoint, FlowBudget, PairKey, config};
use portcullis_common::cache::{self, CachedVerdict};
use portcullis_common::event::Event;
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6};
use portcullis_common::identity::Identity;
use portcullis_common::judge::{Config, Maps, V4, V6};
use portcullis_common::policy::{PolicyMaps, PortKey, PortStep, Row, RowKey, decisive_step};
use portcullis_common::process::Datapath;
use portcullis_common::reason::{Direction, Reason, Verdict};
use portcullis_common::service::{Service, ServiceKey};
use portcullis_common::table::{find, home, store};

use crate::entry::Entry;
use crate::maps::*;

/// The kernel's maps.
#[derive(Clone, Copy)]
pub struct Path {
    /// Interface that the program runs on, for events.
    pub ifindex: u32,
}

impl Config for Path {
    #[inline(always)]
    fn config(&self, word: u32) -> u32 {
        match CONFIG.get_ptr(word) {
            // SAFETY: a map value; written by user space at any time.
            Some(value) => unsafe { read_volatile(value) },
            None => 0,
        }
    }
}

impl PolicyMaps for Path {
    #[inline(always)]
    fn rowset(&self, subject: u32) -> u32 {
        match SUBJECTS.get_ptr(subject) {
            // SAFETY: as in `config`.
            Some(value) => unsafe { read_volatile(value) },
            None => 0,
        }
    }

    #[inline(always)]
    fn row(&self, key: &RowKey) -> Option<Row> {
        // SAFETY: the value is copied at once; rows are replaced whole and freed after a grace period.
        unsafe { ROWS.get(key) }.copied()
    }

    #[inline(always)]
    fn step(&self, index: u32) -> Option<PortStep> {
        PORTS.get(index).copied()
    }

    #[inline(always)]
    fn decisive(
        &self,
        subject: u32,
        direction: Direction,
        peer: u32,
        kind: u8,
        key: PortKey,
    ) -> Option<PortStep> {
        PortStep::from_bits(find_step(subject, direction as u32, peer, u32::from(kind), key.0))
    }

    #[inline(always)]
    fn opaque(&self, number: u32, any: u32) -> u32 {
        let cell = addr_of!(any);
        // SAFETY: a word on the stack. The compiler may not take the two for one; the processor has both at once, where a number
        // that is written in halves and read whole, which the verifier does not follow either, takes it a dozen cycles.
        unsafe { number.wrapping_add(read_volatile(cell)).wrapping_sub(read_volatile(cell)) }
    }
}

/// The search of all verdicts.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_step(subject: u32, direction: u32, peer: u32, kind: u32, key: u32) -> u64 {
    let path = Path { ifindex: 0 };
    match decisive_step(&path, subject, direction, peer, kind as u8, PortKey(key)) {
        Some(step) => step.to_bits(),
        None => 0,
    }
}

impl Maps<V4> for Path {
    #[inline(always)]
    fn exact(&self, address: u32) -> Option<Identity> {
        // SAFETY: copied at once.
        unsafe { IPCACHE4.get(address) }.copied()
    }
    #[inline(always)]
    fn prefix(&self, address: u32) -> Option<Identity> {
        CIDRS4.get(&Key::new(32, address)).copied()
    }
    #[inline(always)]
    fn service(&self, key: &ServiceKey, into: &mut Service) -> bool {
        service(key, into)
    }
    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
        ENDPOINTS.get(slot)
    }
}

impl Maps<V6> for Path {
    #[inline(always)]
    fn exact(&self, address: Addr6) -> Option<Identity> {
        // SAFETY: copied at once.
        unsafe { IPCACHE6.get(address) }.copied()
    }
    #[inline(always)]
    fn prefix(&self, address: Addr6) -> Option<Identity> {
        CIDRS6.get(&Key::new(128, address)).copied()
    }
    #[inline(always)]
    fn service(&self, key: &ServiceKey, into: &mut Service) -> bool {
        service(key, into)
    }
    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
        ENDPOINTS.get(slot)
    }
}

#[inline(always)]
fn service(key: &ServiceKey, into: &mut Service) -> bool {
    // SAFETY: copied at once; the tag, which is read last, says whether the element was reused meanwhile.
    let Some(value) = (unsafe { SERVICES.get(key) }) else { return false };
    let from = (value as *const Service).cast::<u64>();
    let to = (into as *mut Service).cast::<u64>();
    for word in 0..size_of::<Service>() / size_of::<u64>() {
        // SAFETY: inside of both values, whose alignment is that of these words. By words, because the compiler would
        // call a function that copies by bytes.
        unsafe { write_volatile(to.add(word), read_volatile(from.add(word))) };
    }
    // SAFETY: a map value.
    into.tag = unsafe { read_volatile(addr_of!(value.tag)) };
    true
}

macro_rules! datapath {
    ($family:ty, $address:ty, $flows:ident, $key:ty, $verdicts:ident, $store:ident) => {
        /// Stores a flow of the endpoint in a slot.
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $store(slot: u32, home: u32, key: *const $key, flow: *const Flow) -> u32 {
            // SAFETY: the verifier lets nobody call this with pointers to less than what they point to.
            let (Some(key), Some(flow)) = (unsafe { key.as_ref() }, unsafe { flow.as_ref() }) else {
                return 0;
            };
            let Some(flows) = $flows.get(slot) else { return 0 };
            u32::from(store(key, flow, home, |index| flows.get_ptr_mut(index).map(Entry)))
        }

        impl Datapath<$family> for Path {
            type Flow = Entry<$key>;

            #[inline(always)]
            fn now(&self) -> u64 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_jiffies64() }
            }

            #[inline(always)]
            fn flow(&self, endpoint: &Endpoint, slot: u32, key: &$key) -> Option<Entry<$key>> {
                let flows = $flows.get(slot)?;
                find(key, home(key, endpoint.flow_seed, endpoint.flow_homes), |index| {
                    flows.get_ptr_mut(index).map(Entry)
                })
            }

            #[inline(always)]
            fn cached_verdict(&self, place: usize) -> Option<CachedVerdict<$address>> {
                let verdicts = $verdicts.get_ptr(0)?;
                // SAFETY: this CPU's copy of a map value, and a place inside of it.
                Some(unsafe { *verdicts.cast::<CachedVerdict<$address>>().add(place % cache::VERDICTS) })
            }

            #[inline(always)]
            fn cache_verdict(&self, place: usize, verdict: CachedVerdict<$address>) {
                if let Some(verdicts) = $verdicts.get_ptr_mut(0) {
                    // SAFETY: as above.
                    unsafe {
                        *verdicts.cast::<CachedVerdict<$address>>().add(place % cache::VERDICTS) = verdict
                    };
                }
            }

            #[inline(always)]
            fn spend(&self, slot: u32, opener: Direction, now: u64) -> bool {
                spend(self, slot, opener, now)
            }

            #[inline(always)]
            fn refund(&self, slot: u32, opener: Direction) {
                refund(self, slot, opener);
            }

            #[inline(always)]
            fn insert(&self, endpoint: &Endpoint, slot: u32, key: &$key, flow: &Flow) -> bool {
                let home = home(key, endpoint.flow_seed, endpoint.flow_homes);
                $store(slot, home, key, flow) != 0
            }

            #[inline(always)]
            fn count(&self, slot: u32, verdict: Verdict, bytes: u64, decision: bool) {
                count(slot, verdict, bytes, decision);
            }

            #[inline(always)]
            fn slot_of(&self, pair: &PairKey) -> u32 {
                slot_of(pair)
            }

            #[inline(always)]
            fn count_drop(&self, reason: Reason, direction: Direction) {
                count_drop(reason, direction);
            }

            #[inline(always)]
            fn may_report(&self, now: u64) -> bool {
                may_report(self, now)
            }

            #[inline(always)]
            fn report(&self, event: &Event) {
                report(self.ifindex, event);
            }

            #[inline(always)]
            fn sampled(&self, one_in: u32) -> bool {
                // SAFETY: a helper without arguments.
                (unsafe { bpf_get_prandom_u32() }) % one_in == 0
            }
        }
    };
}

datapath!(V4, u32, FLOWS4, FlowKey4, VERDICT_CACHE4, store_v4);
datapath!(V6, Addr6, FLOWS6, FlowKey6, VERDICT_CACHE6, store_v6);

#[inline(always)]
fn count(slot: u32, verdict: Verdict, bytes: u64, decision: bool) {
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else { return };
    // SAFETY: this CPU's copy of a map value; programs of a CPU do not interrupt each other.
    let counters = unsafe { &mut *counters };
    // Indexes are constants in each arm, so the verifier sees them inside the value.
    match verdict {
        Verdict::Allow => {
            counters.packets[0] += 1;
            counters.bytes[0] += bytes;
            counters.decisions[0] += decision as u64;
        }
        Verdict::Deny => {
            counters.packets[1] += 1;
            counters.bytes[1] += bytes;
            counters.decisions[1] += decision as u64;
        }
        Verdict::Audit => {
            counters.packets[2] += 1;
            counters.bytes[2] += bytes;
            counters.decisions[2] += decision as u64;
        }
    }
}

/// The budget of an endpoint and a direction, and what is in it at most; `None`: it is not limited.
#[inline(always)]
fn flow_budget(path: &Path, slot: u32, opener: Direction) -> Option<(*mut FlowBudget, i64)> {
    let rate = path.config(config::NEW_FLOW_RATE);
    if rate == 0 {
        return None;
    }
    Some((FLOW_BUDGETS.get_ptr_mut(slot * 2 + opener as u32)?, i64::from(rate)))
}

#[inline(always)]
fn spend(path: &Path, slot: u32, opener: Direction, now: u64) -> bool {
    let Some((budget, rate)) = flow_budget(path, slot, opener) else { return true };
    // SAFETY: aligned words of a map value that all CPUs write; two that begin a second, or take the last flow, at the
    // same time let a few more in than the rate says.
    unsafe {
        let (since, unanswered) = (addr_of_mut!((*budget).since), addr_of_mut!((*budget).unanswered));
        if now.wrapping_sub(read_volatile(since)) >= u64::from(path.config(config::HZ)) {
            write_volatile(since, now);
            write_volatile(unanswered, 0);
        }
        if read_volatile(unanswered) as i64 >= rate {
            return false;
        }
        atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(unanswered, 1);
    }
    true
}

#[inline(always)]
fn refund(path: &Path, slot: u32, opener: Direction) {
    let Some((budget, _)) = flow_budget(path, slot, opener) else { return };
    // SAFETY: as in `spend`. A flow of an earlier second gives back as well: what is limited is how many more are not answered.
    unsafe {
        let unanswered = addr_of_mut!((*budget).unanswered);
        if read_volatile(unanswered) as i64 > 0 {
            atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(unanswered, u64::MAX);
        }
    }
}

#[inline(always)]
fn slot_of(pair: &PairKey) -> u32 {
    // SAFETY: copied at once; a pair keeps its slot while its series lives.
    if let Some(slot) = unsafe { SLOTS.get(pair) } {
        return *slot;
    }
    let Some(next) = NEXT_SLOT.get_ptr_mut(0) else { return 0 };
    let capacity = match CONFIG.get_ptr(config::SLOT_CAPACITY) {
        // SAFETY: a map value.
        Some(value) => u64::from(unsafe { read_volatile(value) }),
        None => 0,
    };
    // The intrinsic, because `core` offers no `fetch_add` on a target without compare-and-swap of every width; with
    // acquire and release, because LLVM 22 turns a relaxed one into an addition that does not fetch, and then takes the
    // addend for the former value.
    // SAFETY: an aligned word of a map value.
    let slot = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(next, 1) };
    if slot >= capacity {
        return 0;
    }
    let slot = slot as u32;
    if SLOTS.insert(pair, slot, BPF_NOEXIST as u64).is_ok() {
        return slot;
    }
    // Another CPU was faster; its slot counts, ours stays unused.
    // SAFETY: copied at once.
    match unsafe { SLOTS.get(pair) } {
        Some(slot) => *slot,
        None => 0,
    }
}

#[inline(always)]
pub fn count_drop(reason: Reason, direction: Direction) {
    if let Some(drops) = DROPS.get_ptr_mut(reason as u32 * 2 + direction as u32) {
        // SAFETY: this CPU's copy of a map value.
        unsafe { *drops += 1 };
    }
}

#[inline(always)]
fn may_report(path: &Path, now: u64) -> bool {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's copy of a map value.
    let budget = unsafe { &mut *budget };
    if now.wrapping_sub(budget.since) >= u64::from(path.config(config::HZ)) {
        budget.since = now;
        budget.sent = 0;
    }
    if budget.sent >= u64::from(path.config(config::EVENT_RATE)) {
        budget.missed += 1;
        return false;
    }
    budget.sent += 1;
    true
}

#[inline(always)]
fn report(ifindex: u32, event: &Event) {
    match EVENTS.reserve_untyped::<Event>(0) {
        Some(mut entry) => {
            // SAFETY: a helper without arguments.
            let time_ns = unsafe { bpf_ktime_get_ns() };
            entry.write(Event { time_ns, ifindex, ..*event });
            entry.submit(0);
        }
        None => {
            if let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) {
                // SAFETY: this CPU's copy of a map value.
                unsafe { (*budget).missed += 1 };
            }
        }
    }
}
