//! Which BPF programs are behind the clsact filters of a hook, in the order in which they run: a dump of
//! `RTM_GETTFILTER` (`net/sched/cls_api.c`), in which each filter has its `TCA_BPF_ID`.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use portcullis_common::Direction;

/// `RTM_NEWTFILTER` and `RTM_GETTFILTER` (include/uapi/linux/rtnetlink.h).
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 1;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `..EGRESS` (`include/uapi/linux/pkt_sched.h`).
const PARENT_INGRESS: u32 = 0xffff_fff2;
const PARENT_EGRESS: u32 = 0xffff_fff3;
/// Attributes of a filter and of a BPF filter's options (include/uapi/linux/rtnetlink.h, `pkt_cls.h`).
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
/// Lengths of `struct nlmsghdr` and `struct tcmsg`.
const HEADER: usize = 16;
const MESSAGE: usize = 20;

/// A clsact filter that runs a BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The lowest runs first.
    pub priority: u16,
    /// Tells filters of one priority apart.
    pub handle: u32,
    /// Id of the program.
    pub program: u32,
}

/// The BPF filters of the host side of a pod's hook, in the order in which they run; none without a clsact qdisc.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn filters(ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // What the pod sends comes in on the host side.
    let parent = match direction {
        Direction::Egress => PARENT_INGRESS,
        Direction::Ingress => PARENT_EGRESS,
    };
    socket.send(&request(ifindex, parent), 0)?;
    let mut found = Vec::new();
    loop {
        let (reply, _) = socket.recv_from_full()?;
        if reply.is_empty() || take(&reply, &mut found) {
            return Ok(found);
        }
    }
}

fn request(ifindex: u32, parent: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + MESSAGE);
    bytes.extend(36u32.to_ne_bytes());
    bytes.extend(RTM_GETTFILTER.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port id: one request, one answer, one socket
    bytes.extend([0; 4]); // family and padding
    for word in [ifindex, 0, parent, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// Takes the filters of one datagram of the answer; whether it was the last one. An error ends the answer, too: a hook
/// without a clsact qdisc has no filters.
fn take(mut bytes: &[u8], found: &mut Vec<Filter>) -> bool {
    loop {
        let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) else { return false };
        if kind == NLMSG_DONE || kind == NLMSG_ERROR {
            return true;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER);
        let Some(message) = bytes.get(..length) else { return false };
        if kind == RTM_NEWTFILTER {
            found.extend(filter(message));
        }
        let Some(rest) = bytes.get(length.next_multiple_of(4)..) else { return false };
        bytes = rest;
    }
}

/// The BPF filter in a message; the messages about a whole priority and other classifiers have none.
fn filter(message: &[u8]) -> Option<Filter> {
    let handle = word(message, HEADER + 8)?;
    let info = word(message, HEADER + 16)?;
    let options = attribute(message.get(HEADER + MESSAGE..)?, TCA_OPTIONS)?;
    let id = attribute(options, TCA_BPF_ID)?;
    Some(Filter { priority: (info >> 16) as u16, handle, program: word(id, 0)? })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The payload of the first attribute of a type.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        if kind == wanted {
            return bytes.get(4..length);
        }
        bytes = bytes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + payload.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A filter's message as the kernel writes it.
    fn message(priority: u16, handle: u32, program: Option<u32>) -> Vec<u8> {
        let mut bytes = request(3, PARENT_INGRESS);
        bytes[4..6].copy_from_slice(&RTM_NEWTFILTER.to_ne_bytes());
        bytes[HEADER + 8..HEADER + 12].copy_from_slice(&handle.to_ne_bytes());
        bytes[HEADER + 16..HEADER + 20].copy_from_slice(&(u32::from(priority) << 16 | 0x0300).to_ne_bytes());
        bytes.extend(put(1, b"bpf\0"));
        if let Some(program) = program {
            let options = [put(7, b"from_pod\0"), put(TCA_BPF_ID, &program.to_ne_bytes())].concat();
            bytes.extend(put(0x8000 | TCA_OPTIONS, &options));
        }
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn filters_are_found_in_order_among_what_is_none_and_not_in_cut_answers() {
        let done = |kind: u16| {
            let mut bytes = 20u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(20, 0);
            bytes
        };
        let answer = [
            message(1, 0, None),
            message(1, 9, Some(70)),
            message(1, 0x71, Some(71)),
            message(49152, 1, Some(72)),
        ]
        .concat();
        let expected = [(1, 9, 70), (1, 0x71, 71), (49152, 1, 72)]
            .map(|(priority, handle, program)| Filter { priority, handle, program });
        let mut found = Vec::new();
        assert!(!take(&answer, &mut found), "more may follow");
        assert_eq!(found, expected);
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            assert!(take(&done(kind), &mut found));
        }
        for length in 0..answer.len() {
            let mut found = Vec::new();
            take(&answer[..length], &mut found);
            assert!(expected.starts_with(&found) && found.len() < 3, "{length} bytes: {found:?}");
        }
    }
}
