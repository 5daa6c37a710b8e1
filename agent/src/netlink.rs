//! What the netlink families have in common: the messages of a datagram, and how an answer ends.
//!
//! Invariant: whatever the bytes, nothing here panics or loops.

use netlink_packet_core::{NetlinkBuffer, parse_i32};

// Numbers of include/uapi/linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The messages of a datagram; ends at the first that has no whole header.
pub fn packets(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let packet = NetlinkBuffer::new_checked(rest).ok()?;
        // At least a header's length, as `new_checked` has seen, so the loop advances.
        let length = usize::try_from(packet.length()).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(packet)
    })
}

/// What a message that ends a dump, or is an answer without content, says: 0 or an errno. `None`: it is another message.
pub fn end(message_type: u16, payload: &[u8]) -> Option<i32> {
    matches!(message_type, NLMSG_ERROR | NLMSG_DONE).then(|| {
        // The kernel may leave out the code of a dump that ended well.
        let code = payload.get(..4).and_then(|bytes| parse_i32(bytes).ok()).unwrap_or(0);
        code.saturating_neg()
    })
}

/// Recorded messages, and what may become of them.
#[cfg(test)]
pub mod recorded {
    /// The datagram of that name in a file of lines with a name and hexadecimal digits.
    pub fn datagram(lines: &str, name: &str) -> Vec<u8> {
        let line = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let hex = line.unwrap_or_else(|| panic!("no recorded message {name}")).as_bytes();
        hex.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// It cut to every length, as it is and with a header that agrees with the cut.
    pub fn cuts(whole: &[u8]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
        (0..whole.len()).map(|length| {
            let mut agreeing = whole[..length].to_vec();
            if let Some(field) = agreeing.get_mut(..4) {
                field.copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
            }
            (&whole[..length], agreeing)
        })
    }

    /// It with another value at every place.
    pub fn damages(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        (0..whole.len()).flat_map(|position| {
            [0, 1, 0x7f, 0xff].map(|value| {
                let mut damaged = whole.to_vec();
                damaged[position] = value;
                damaged
            })
        })
    }
}
