//! A port as people write it: `TCP/80`.

use std::fmt;
use std::str::FromStr;

use portcullis_common::policy::{PortKey, protocol};

use super::protocol_name;

/// A protocol and a destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// IANA protocol number.
    pub protocol: u8,
    /// The port.
    pub number: u16,
}

impl Port {
    /// What is asked about where nothing names a port.
    pub const HTTP: Self = Self { protocol: protocol::TCP, number: 80 };

    /// What a policy function is asked.
    pub const fn key(self) -> PortKey {
        PortKey::new(self.protocol, self.number)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", protocol_name(self.protocol), self.number)
    }
}

/// A text that is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a protocol (TCP, UDP or SCTP) and a port from 1 to 65535, such as TCP/80")]
pub struct BadPort;

impl FromStr for Port {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        let (name, number) = text.split_once('/').ok_or(BadPort)?;
        let protocol = match name.to_ascii_uppercase().as_str() {
            "TCP" => protocol::TCP,
            "UDP" => protocol::UDP,
            "SCTP" => protocol::SCTP,
            _ => return Err(BadPort),
        };
        match number.parse() {
            Ok(number) if number != 0 => Ok(Self { protocol, number }),
            _ => Err(BadPort),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_written_as_it_is_read() {
        for text in ["TCP/80", "UDP/53", "SCTP/65535"] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), text);
            assert_eq!(text.to_lowercase().parse::<Port>().unwrap().to_string(), text);
        }
        for text in ["80", "TCP", "TCP/0", "TCP/65536", "TCP/http", "ICMP/1", "/80", "TCP/-1", ""] {
            assert_eq!(text.parse::<Port>(), Err(BadPort), "{text}");
        }
    }
}
