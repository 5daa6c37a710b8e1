//! The TC programs of Portcullis: one a direction, on the host side of a pod's interface.
//!
//! Thin entry points: the parser, the walk and the verdict procedure are in `portcullis-common`.
#![no_std]
#![no_main]
// For one atomic addition; both toolchains that build this crate accept it (see the `ebpf-build` crate).
#![feature(core_intrinsics)]
#![allow(internal_features)]

#[cfg(feature = "bench")]
mod bench;
mod entry;
mod maps;
mod object;
mod path;
mod skb;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use portcullis_common::abi::{Endpoint, Mode, config, endpoint_flags};
use portcullis_common::flow::key_of;
use portcullis_common::judge::{Config, Family, Maps, V4, V6, endpoint_of};
use portcullis_common::known::{known_flow, permitted_flow};
use portcullis_common::packet::{
    ETHERNET, FragmentPart, Packet, Parsed, ethertype, parse_ipv4, parse_ipv4_direct, parse_ipv6,
    parse_ipv6_direct,
};
use portcullis_common::process::{
    ARP_BYTES, Action, Datapath, Step, Transit, Work, address, admit_arp, consider, consult, decide,
    goes_first, prepare, refuse,
};
use portcullis_common::reason::{Direction, Reason};
use portcullis_common::service::SERVICE_ENTRIES;

use crate::maps::{WORK4, WORK6};
use crate::path::{Path, count_drop};
use crate::skb::Skb;

/// TC ingress of the host side: what the pod sends.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let action = run(ctx.skb.skb, Direction::Egress);
    log(&ctx, "from-pod", action);
    action
}

/// TC egress of the host side: what the pod receives.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let action = run(ctx.skb.skb, Direction::Ingress);
    log(&ctx, "to-pod", action);
    action
}

/// One line a packet, for development.
#[cfg(feature = "log")]
#[inline(always)]
fn log(ctx: &TcContext, hook: &str, action: i32) {
    let ifindex = Skb::new(ctx.skb.skb).ifindex();
    aya_log_ebpf::debug!(ctx, "{} of interface {}: {} bytes, action {}", hook, ifindex, ctx.len(), action);
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn log(_: &TcContext, _: &str, _: i32) {}

/// `TC_ACT_UNSPEC` is `TCX_NEXT`: other programs on the hook still run.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

#[inline(always)]
fn run(raw: *mut __sk_buff, hook: Direction) -> i32 {
    let path = Path { ifindex: Skb::new(raw).ifindex() };
    let Some((slot, endpoint)) = endpoint_of::<V4, Path>(&path, path.ifindex) else {
        return refused(&path, Reason::NoEndpoint, hook);
    };
    // After the call that looks the endpoint up: fewer registers are to be kept over it.
    let skb = Skb::new(raw);
    if matches!(hook, Direction::Egress) {
        if endpoint.flags & endpoint_flags::CHECK_MAC != 0 && !own_mac(&skb, endpoint) {
            return refused(&path, Reason::SpoofedSource, hook);
        }
        skb.stamp(slot);
    }
    match skb.ethertype() {
        ethertype::IPV4 => match parse_ipv4_direct(&skb) {
            Some(packet) => direct::<V4>(raw, &path, &skb, hook, (slot, endpoint), packet),
            None => indirect_v4(raw, hook as u32, slot),
        },
        ethertype::IPV6 => match parse_ipv6_direct(&skb) {
            Some(packet) => direct::<V6>(raw, &path, &skb, hook, (slot, endpoint), packet),
            None => indirect_v6(raw, hook as u32, slot),
        },
        ethertype::ARP if matches!(hook, Direction::Egress) => arp(raw, slot),
        ethertype::ARP => PASS,
        _ => refused(&path, Reason::UnknownEthertype, hook),
    }
}

/// An ARP packet of a pod.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn arp(raw: *mut __sk_buff, slot: u32) -> i32 {
    let skb = Skb::new(raw);
    let path = Path { ifindex: skb.ifindex() };
    let Some(endpoint) = Maps::<V4>::endpoint(&path, slot) else { return DROP };
    let result = match skb.load::<ARP_BYTES>(ETHERNET) {
        Some(packet) => admit_arp(&path, endpoint, &packet),
        None => Err(Reason::Truncated),
    };
    match result {
        Ok(()) => PASS,
        Err(reason) => refused(&path, reason, Direction::Egress),
    }
}

/// A packet that direct access could parse: the known flow here, the rest in a function of its own, so that the common
/// case has few instructions and little stack.
#[inline(always)]
fn direct<F: Slow>(
    raw: *mut __sk_buff,
    path: &Path,
    skb: &Skb,
    hook: Direction,
    (slot, endpoint): (u32, &Endpoint),
    packet: Parsed<F::Address>,
) -> i32
where
    Path: Datapath<F>,
{
    let transit = Transit::<F> { packet, hook, slot, length: skb.length(), metadata: Default::default() };
    let key: F::Key = key_of(&transit.packet, hook);
    if known_flow(path, endpoint, &transit, &key) {
        return PASS;
    }
    F::indirect(raw, hook as u32, slot)
}

/// A family and its functions for everything but known flows.
trait Slow: Family {
    /// The work on the packet at hand, which one function at a time has.
    fn work() -> Option<&'static mut Work<Self>>;
    fn indirect(raw: *mut __sk_buff, hook: u32, slot: u32) -> i32;
}

/// The work on the packet at hand, and the endpoint in a slot.
#[inline(always)]
fn at<F: Slow>(path: &Path, slot: u32) -> Option<(&'static mut Work<F>, &Endpoint)>
where
    Path: Maps<F>,
{
    Some((F::work()?, path.endpoint(slot)?))
}

/// The part of the walk between a known flow and the verdict, for one family: functions of their own, because the stack
/// of a program is 512 bytes over all nested calls. They are global, so that the verifier follows each once, with any
/// arguments, and not again for every state in which it is called; such a function returns a number. One must use all of
/// its arguments: the compiler does not pass what is not used, and the verifier refuses the call.
macro_rules! slow {
    ($family:ty, $parse:ident, $direct:ident, $scratch:ident, $indirect:ident, $begin:ident, $permit:ident, $prepare:ident, $address:ident, $consult:ident, $consider:ident, $decide:ident, $refuse:ident) => {
        impl Slow for $family {
            #[inline(always)]
            fn work() -> Option<&'static mut Work<Self>> {
                // SAFETY: this CPU's copy of a map value; programs of a CPU do not interrupt each other.
                $scratch.get_ptr_mut(0).map(|work| unsafe { &mut *work })
            }

            #[inline(always)]
            fn indirect(raw: *mut __sk_buff, hook: u32, slot: u32) -> i32 {
                $indirect(raw, hook, slot)
            }
        }

        #[inline(always)]
        fn $indirect(raw: *mut __sk_buff, hook: u32, slot: u32) -> i32 {
            let mut step = $begin(raw, hook, slot);
            if step == STEP_LOOKED && $permit(raw, slot) != 0 {
                return PASS;
            }
            if step == STEP_PREPARE || step == STEP_LOOKED {
                step = $prepare(raw, slot, step);
            }
            if step == STEP_JUDGE {
                let entries = $address(slot);
                // One function an entry, whose result is in the map: here the verifier has nothing to tell apart.
                for index in 0..SERVICE_ENTRIES as u32 {
                    if index >= entries {
                        break;
                    }
                    $consult(slot, index);
                }
                // What the work area has otherwise is the judgement of the packet before.
                return if $consider(slot) != 0 { $decide(raw, slot) } else { DROP };
            }
            match step {
                STEP_PASS => PASS,
                reason => $refuse(raw, reason),
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $begin(raw: *mut __sk_buff, hook: u32, slot: u32) -> u32 {
            let skb = Skb::new(raw);
            let hook = if hook == Direction::Egress as u32 { Direction::Egress } else { Direction::Ingress };
            let Some(work) = <$family>::work() else { return Reason::NoEndpoint as u32 };
            // Most packets were parsed directly already, and have no flow.
            let direct = $direct(&skb);
            let looked = direct.is_some();
            match direct.map_or_else(|| $parse(&skb), Ok) {
                Ok(packet) => {
                    let fragment = packet.fragment as u8 != FragmentPart::Whole as u8;
                    work.transit = Transit {
                        packet,
                        hook,
                        slot,
                        length: skb.length(),
                        metadata: skb.metadata(fragment),
                    };
                    work.key = key_of(&work.transit.packet, hook);
                    if looked { STEP_LOOKED } else { STEP_PREPARE }
                }
                Err(reason) => {
                    work.transit.hook = hook;
                    STEP_UNPARSED | reason as u32
                }
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $permit(raw: *mut __sk_buff, slot: u32) -> u32 {
            let path = Path { ifindex: Skb::new(raw).ifindex() };
            let Some((work, endpoint)) = at::<$family>(&path, slot) else { return 0 };
            let same = endpoint.ifindex == path.ifindex;
            u32::from(same && permitted_flow(&path, endpoint, &work.transit, &work.key))
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $prepare(raw: *mut __sk_buff, slot: u32, step: u32) -> u32 {
            let path = Path { ifindex: Skb::new(raw).ifindex() };
            let Some((work, endpoint)) = at::<$family>(&path, slot) else { return Reason::NoEndpoint as u32 };
            // The slot may have changed hands since the entry point looked it up.
            if endpoint.ifindex != path.ifindex {
                return Reason::NoEndpoint as u32;
            }
            // What direct access cannot parse, it could not look for: options, other protocols, headers beyond the linear part.
            if step == STEP_PREPARE
                && goes_first(&work.transit.packet)
                && known_flow(&path, endpoint, &work.transit, &work.key)
            {
                return STEP_PASS;
            }
            match prepare(&path, endpoint, work) {
                Step::Done(Action::Pass) => STEP_PASS,
                Step::Done(Action::Drop) => Reason::None as u32,
                Step::Refuse(reason) => reason as u32,
                Step::Judge => STEP_JUDGE,
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $address(slot: u32) -> u32 {
            let path = Path { ifindex: 0 };
            let Some((work, endpoint)) = at::<$family>(&path, slot) else { return 0 };
            address(&path, endpoint, work)
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $consult(slot: u32, index: u32) -> u32 {
            let path = Path { ifindex: 0 };
            let Some((work, endpoint)) = at::<$family>(&path, slot) else { return 0 };
            consult(&path, endpoint, work, index);
            0
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $consider(slot: u32) -> u32 {
            let path = Path { ifindex: 0 };
            let Some((work, endpoint)) = at::<$family>(&path, slot) else { return 0 };
            consider(&path, endpoint, work);
            1
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $decide(raw: *mut __sk_buff, slot: u32) -> i32 {
            let path = Path { ifindex: Skb::new(raw).ifindex() };
            let Some((work, endpoint)) = at::<$family>(&path, slot) else { return DROP };
            if endpoint.ifindex != path.ifindex {
                return refused(&path, Reason::NoEndpoint, work.transit.hook);
            }
            match decide(&path, endpoint, work) {
                Action::Pass => PASS,
                Action::Drop => DROP,
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $refuse(raw: *mut __sk_buff, reason: u32) -> i32 {
            let path = Path { ifindex: Skb::new(raw).ifindex() };
            let Some(work) = <$family>::work() else { return DROP };
            let known = match Reason::from_number(reason as u8) {
                Some(known) => known,
                None => Reason::Malformed,
            };
            if reason & STEP_UNPARSED != 0 {
                return refused(&path, known, work.transit.hook);
            }
            match refuse(&path, work, known) {
                Action::Pass => PASS,
                Action::Drop => DROP,
            }
        }
    };
}

/// Results of the steps, as scalars; below them the number of a [`Reason`].
const STEP_PASS: u32 = 0x100;
const STEP_JUDGE: u32 = 0x200;
const STEP_PREPARE: u32 = 0x400;
/// As before, and the flow was looked up: there is none that lets the packet pass.
const STEP_LOOKED: u32 = 0x1000;
/// The packet could not be parsed: the rest is the reason, and there are no addresses to report.
const STEP_UNPARSED: u32 = 0x800;

slow!(
    V4,
    parse_ipv4,
    parse_ipv4_direct,
    WORK4,
    indirect_v4,
    begin_v4,
    permit_v4,
    prepare_v4,
    address_v4,
    consult_v4,
    consider_v4,
    decide_v4,
    refuse_v4
);
slow!(
    V6,
    parse_ipv6,
    parse_ipv6_direct,
    WORK6,
    indirect_v6,
    begin_v6,
    permit_v6,
    prepare_v6,
    address_v6,
    consult_v6,
    consider_v6,
    decide_v6,
    refuse_v6
);

/// Drops what could not even be parsed, or belongs to no endpoint, unless the mode lets everything pass.
#[inline(always)]
fn refused(path: &Path, reason: Reason, hook: Direction) -> i32 {
    let lenient = Mode::Audit as u32;
    if path.config(config::MODE) >= lenient || path.config(config::OVERRIDE) >= lenient {
        return PASS;
    }
    count_drop(reason, hook);
    DROP
}

#[inline(always)]
fn own_mac(skb: &Skb, endpoint: &Endpoint) -> bool {
    use portcullis_common::packet::Head;
    let Some(head) = skb.head(14) else { return false };
    let m = &endpoint.mac;
    head.u32_be(6) == u32::from_ne_bytes([m[0], m[1], m[2], m[3]])
        && head.u16(10) == u16::from_be_bytes([m[4], m[5]])
}
