//! The clsact filters of interfaces, by rtnetlink: which BPF programs are behind those of a hook, in the order in which
//! they run, and taking ours away again. (aya attaches them; it can neither list them nor remove the qdisc.)
//!
//! Invariant: a qdisc is removed only when no filter of anybody is left in it.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use portcullis_common::Direction;

/// Kinds of messages (include/uapi/linux/rtnetlink.h).
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `..EGRESS` (`include/uapi/linux/pkt_sched.h`).
const PARENT_INGRESS: u32 = 0xffff_fff2;
const PARENT_EGRESS: u32 = 0xffff_fff3;
/// Parent and handle of the qdisc itself.
const QDISC_PARENT: u32 = 0xffff_fff1;
const QDISC_HANDLE: u32 = 0xffff_0000;
const QDISC_KIND: &[u8] = b"clsact\0";
/// `ETH_P_ALL` in network order: what filters of every protocol have in the lower half of `tcm_info`.
const EVERY_PROTOCOL: u32 = 3u16.to_be() as u32;
/// Attributes of a qdisc or filter and of a BPF filter's options (include/uapi/linux/rtnetlink.h, `pkt_cls.h`).
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// Lengths of `struct nlmsghdr` and `struct tcmsg`.
const HEADER: usize = 16;
const MESSAGE: usize = 20;

/// A clsact filter that runs a BPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The lowest runs first.
    pub priority: u16,
    /// Tells filters of one priority apart.
    pub handle: u32,
    /// Id of the program.
    pub program: u32,
    /// What whoever attached it called it: the program's name, where aya did.
    pub name: String,
}

/// The BPF filters of the host side of a pod's hook, in the order in which they run; none without a clsact qdisc.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn filters(ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    let request = request(RTM_GETTFILTER, NLM_F_DUMP, [ifindex, 0, parent(direction), 0]);
    dump(&request, RTM_NEWTFILTER, &mut |message| found.extend(filter(message)))?;
    Ok(found)
}

/// The interfaces of this network namespace that have a clsact qdisc.
///
/// # Errors
/// As [`filters`].
pub fn interfaces() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    dump(&request(RTM_GETQDISC, NLM_F_DUMP, [0; 4]), RTM_NEWQDISC, &mut |message| {
        let kind = message.get(HEADER + MESSAGE..).and_then(|attributes| attribute(attributes, TCA_KIND));
        if kind == Some(QDISC_KIND) {
            found.extend(word(message, HEADER + 4));
        }
    })?;
    Ok(found)
}

/// Takes a filter away; and the qdisc with it, if no other filter is left at either of its hooks.
///
/// # Errors
/// What the kernel says.
pub fn remove(ifindex: u32, direction: Direction, priority: u16, handle: u32) -> io::Result<()> {
    let info = u32::from(priority) << 16 | EVERY_PROTOCOL;
    ask(&request(RTM_DELTFILTER, NLM_F_ACK, [ifindex, handle, parent(direction), info]))?;
    let mut others = false;
    for &direction in Direction::ALL {
        let all = request(RTM_GETTFILTER, NLM_F_DUMP, [ifindex, 0, parent(direction), 0]);
        // Whatever it is: another classifier, or only a priority that somebody has made.
        dump(&all, RTM_NEWTFILTER, &mut |_| others = true)?;
    }
    if others {
        return Ok(());
    }
    let mut request = request(RTM_DELQDISC, NLM_F_ACK, [ifindex, QDISC_HANDLE, QDISC_PARENT, 0]);
    // The older `ingress` qdisc has the same parent and handle, and is not ours.
    request.extend((4 + 7u16).to_ne_bytes());
    request.extend(TCA_KIND.to_ne_bytes());
    request.extend(QDISC_KIND);
    request.push(0); // to a multiple of four
    finish(&mut request);
    ask(&request)
}

/// What the pod sends comes in on the host side.
const fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => PARENT_INGRESS,
        Direction::Ingress => PARENT_EGRESS,
    }
}

fn request(kind: u16, flags: u16, words: [u32; 4]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + 4]; // sequence number and port id are zero, and so are family and padding
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    for word in words {
        bytes.extend(word.to_ne_bytes());
    }
    finish(&mut bytes);
    bytes
}

/// Writes the length of a message into it.
fn finish(message: &mut [u8]) {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
}

/// One request, one answer, one socket.
fn send(request: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    Ok(socket)
}

/// Sends a request and hands out the messages of one kind of the answer.
fn dump(request: &[u8], kind: u16, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let socket = send(request)?;
    loop {
        let (reply, _) = socket.recv_from_full()?;
        if reply.is_empty() || take(&reply, kind, each) {
            return Ok(());
        }
    }
}

/// Sends a request and waits for the kernel to say that it was done.
fn ask(request: &[u8]) -> io::Result<()> {
    let (reply, _) = send(request)?.recv_from_full()?;
    match (half(&reply, 4), word(&reply, HEADER)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => {
            Err(io::Error::from_raw_os_error(code.wrapping_neg().cast_signed()))
        }
        _ => Err(io::Error::other("the kernel's answer is not understood")),
    }
}

/// Hands out the messages of one datagram of the answer; whether it was the last one. An error ends the answer, too: a
/// hook without a clsact qdisc has no filters.
fn take(mut bytes: &[u8], wanted: u16, each: &mut dyn FnMut(&[u8])) -> bool {
    loop {
        let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) else { return false };
        if kind == NLMSG_DONE || kind == NLMSG_ERROR {
            return true;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER);
        let Some(message) = bytes.get(..length) else { return false };
        if kind == wanted {
            each(message);
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
    let name = attribute(options, TCA_BPF_NAME).unwrap_or_default();
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    Some(Filter { priority: (info >> 16) as u16, handle, program: word(id, 0)?, name })
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
        let info = u32::from(priority) << 16 | EVERY_PROTOCOL;
        let mut bytes = request(RTM_NEWTFILTER, 0, [3, handle, PARENT_INGRESS, info]);
        bytes.extend(put(1, b"bpf\0"));
        if let Some(program) = program {
            let options =
                [put(TCA_BPF_NAME, b"from_pod\0"), put(TCA_BPF_ID, &program.to_ne_bytes())].concat();
            bytes.extend(put(0x8000 | TCA_OPTIONS, &options));
        }
        finish(&mut bytes);
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
        let expected = [(1, 9, 70), (1, 0x71, 71), (49152, 1, 72)].map(|(priority, handle, program)| {
            Filter { priority, handle, program, name: "from_pod".to_owned() }
        });
        let read = |bytes: &[u8]| {
            let mut found = Vec::new();
            let last = take(bytes, RTM_NEWTFILTER, &mut |message| found.extend(filter(message)));
            (found, last)
        };
        assert_eq!(read(&answer), (expected.to_vec(), false), "more may follow");
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            assert_eq!(read(&done(kind)), (Vec::new(), true));
        }
        for length in 0..answer.len() {
            let (found, _) = read(&answer[..length]);
            assert!(expected.starts_with(&found) && found.len() < 3, "{length} bytes: {found:?}");
        }
    }
}
