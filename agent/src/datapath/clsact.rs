//! Which program is behind our clsact filter: one `RTM_GETTFILTER` (`net/sched/cls_api.c`), answered with `TCA_BPF_ID`.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use portcullis_common::Direction;

/// `RTM_NEWTFILTER` and `RTM_GETTFILTER` (include/uapi/linux/rtnetlink.h).
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 1;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `..EGRESS` (`include/uapi/linux/pkt_sched.h`).
const PARENT_INGRESS: u32 = 0xffff_fff2;
const PARENT_EGRESS: u32 = 0xffff_fff3;
const ETH_P_ALL: u16 = 0x0003;
/// Attributes of a filter and of a BPF filter's options (include/uapi/linux/rtnetlink.h, `pkt_cls.h`).
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
/// Lengths of `struct nlmsghdr` and `struct tcmsg`.
const HEADER: usize = 16;
const MESSAGE: usize = 20;

/// The id of the program behind the filter with this priority and handle on the host side of a pod's hook; `None` if
/// there is no such filter.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn program(ifindex: u32, direction: Direction, priority: u16, handle: u32) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // What the pod sends comes in on the host side.
    let parent = match direction {
        Direction::Egress => PARENT_INGRESS,
        Direction::Ingress => PARENT_EGRESS,
    };
    socket.send(&request(ifindex, parent, priority, handle), 0)?;
    let (reply, _) = socket.recv_from_full()?;
    Ok(program_of(&reply))
}

fn request(ifindex: u32, parent: u32, priority: u16, handle: u32) -> Vec<u8> {
    let info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    let mut bytes = Vec::with_capacity(HEADER + MESSAGE);
    bytes.extend(36u32.to_ne_bytes());
    bytes.extend(RTM_GETTFILTER.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port id: one request, one answer, one socket
    bytes.extend([0; 4]); // family and padding
    for word in [ifindex, handle, parent, info] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// The program id in an answer; anything but a filter with one (an error, too) is none.
fn program_of(reply: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    if kind != RTM_NEWTFILTER {
        return None;
    }
    let options = attribute(reply.get(HEADER + MESSAGE..)?, TCA_OPTIONS)?;
    let id = attribute(options, TCA_BPF_ID)?;
    Some(u32::from_ne_bytes(id.get(..4)?.try_into().ok()?))
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

    #[test]
    fn the_program_is_found_among_other_attributes_and_nothing_in_errors_or_cut_answers() {
        let options = [put(7, b"from_pod\0"), put(TCA_BPF_ID, &77u32.to_ne_bytes())].concat();
        let mut reply = request(3, PARENT_INGRESS, 1, 0x71);
        reply[4..6].copy_from_slice(&RTM_NEWTFILTER.to_ne_bytes());
        reply.extend([put(1, b"bpf\0"), put(0x8000 | TCA_OPTIONS, &options)].concat());
        assert_eq!(program_of(&reply), Some(77));
        for length in 0..reply.len() {
            assert_eq!(program_of(&reply[..length]), None, "{length} bytes");
        }
        reply[4..6].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(program_of(&reply), None);
    }
}
