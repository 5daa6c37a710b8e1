//! Packets that a test run of the programs cannot have: on a wire, with tags, beyond the linear part, cut below an IP
//! header, aggregated and with checksums left to the hardware.

#![allow(clippy::unwrap_used, reason = "tests: a failure is a panic")]

use std::io::{Read, Write};
use std::mem::size_of_val;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use portcullis::datapath::EndpointSpec;
use portcullis_common::abi::{Counters, Mode};
use portcullis_common::{Direction, Reason};
use portcullis_tests::command::run;
use portcullis_tests::fixture::{API, Fixture, INTRUDER, WEB, endpoint, with_fixture};
use portcullis_tests::netns::interface_index;
use portcullis_tests::packets::{HOST_MAC, POD_MAC, Packet};
use portcullis_tests::raw::Raw;
use portcullis_tests::{Namespace, eventually};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;
/// MTU of the wire.
const JUMBO: usize = 9000;
/// Data of a large packet: more than a page, so that it may lie beyond the linear part.
const LARGE: usize = 6000;

/// A veth between this namespace, where the programs are, and the pod's.
struct Wire<'a> {
    f: &'a mut Fixture,
    pod: Namespace,
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(words: &str) -> Result<String> {
    run(Command::new("ip").args(words.split(' '))).context("making the wire")
}

impl Wire<'_> {
    fn spec() -> EndpointSpec {
        EndpointSpec { ifindex: interface_index("host0").unwrap(), name: "host0".to_owned(), ..endpoint() }
    }

    /// Sends frames of the pod, one after the other, whole or parted.
    fn sends(&self, frames: &[Vec<u8>], linear: Option<u16>) {
        self.pod
            .run(|| {
                let mut raw = Raw::open("pod0", linear.is_some())?;
                for frame in frames {
                    match linear {
                        Some(linear) => raw.send_parted(frame, linear)?,
                        None => raw.send(frame)?,
                    }
                }
                Ok(())
            })
            .unwrap();
    }

    /// Waits until as many packets of a pair had a verdict (allowed, denied), and returns the counters.
    fn counted(&self, pair: (u32, u32, Direction), allowed: u64, denied: u64) -> Counters {
        let counters = || self.f.counters(pair.0, pair.1, pair.2);
        let outcome = eventually("the counters", || counters().packets == [allowed, denied, 0]);
        assert!(outcome.is_ok(), "{pair:?}: {:?}, and not {allowed} and {denied}", counters());
        counters()
    }

    fn dropped(&self, reason: Reason, direction: Direction, count: u64) {
        let drops = || self.f.drops(reason, direction);
        let outcome = eventually("the drops", || drops() == count);
        assert!(outcome.is_ok(), "{reason} {direction}: {}, and not {count}", drops());
    }
}

/// Runs a test with the programs at the host's side of a wire.
fn with_wire(test: impl FnOnce(&mut Wire<'_>) + Send + 'static) {
    with_fixture(|f| {
        let pod = Namespace::new("pod").unwrap();
        let name = pod.name().to_owned();
        ip(&format!("link add host0 mtu {JUMBO} type veth peer name pod0 mtu {JUMBO} netns {name}")).unwrap();
        ip(&format!("link set host0 address {} up", mac(HOST_MAC))).unwrap();
        for address in ["10.0.0.3/24", "10.0.0.4/24"] {
            ip(&format!("addr add {address} dev host0")).unwrap();
        }
        pod.ip(&format!("link set pod0 address {} up\naddr add 10.0.0.2/24 dev pod0", mac(POD_MAC))).unwrap();
        f.apply_with(&[Wire::spec()], Mode::Enforce);
        test(&mut Wire { f, pod });
        // The interface goes with its namespace, and its programs with it.
    });
}

#[test]
fn headers_beyond_the_linear_part_are_read() {
    with_wire(|wire| {
        let frames = |port: u16, more: &dyn Fn(Packet) -> Packet| -> Vec<Vec<u8>> {
            let of = |pod: &str, web: &str| more(Packet::udp(pod, 4000, web, port).data(LARGE)).bytes();
            vec![of("10.0.0.2", "10.0.0.3"), of("fd00::2", "fd00::3")]
        };
        let plain = |packet: Packet| packet;
        let with_more =
            |packet: Packet| packet.options(&[1; 40]).extension(0, &[0; 6]).extension(60, &[0; 2000]);
        let (mut allowed, mut denied, mut bytes) = (0, 0, 0);
        // Only the Ethernet header is linear; the IP header is; half of it is.
        for linear in [14, 24, 34, 54] {
            for more in [&plain as &dyn Fn(Packet) -> Packet, &with_more] {
                let permitted = frames(80, more);
                wire.sends(&permitted, Some(linear));
                wire.sends(&frames(81, more), Some(linear));
                allowed += 2;
                denied += 2;
                bytes += permitted.iter().map(|frame| frame.len() as u64).sum::<u64>();
                let counters = wire.counted((API, WEB, EGRESS), allowed, denied);
                assert_eq!(counters.bytes[0], bytes, "linear: {linear}");
            }
        }
        // A source that is not the pod's, where direct access does not reach it.
        let forged = Packet::udp("10.0.0.9", 4000, "10.0.0.3", 80).data(LARGE).bytes();
        wire.sends(&[forged], Some(14));
        wire.dropped(Reason::SpoofedSource, EGRESS, 1);
        // Too many headers, and a header that the packet does not have.
        let mut many = Packet::udp("fd00::2", 4000, "fd00::3", 80).data(LARGE);
        for _ in 0..9 {
            many = many.extension(60, &[0; 6]);
        }
        wire.sends(&[many.bytes()], Some(14));
        wire.dropped(Reason::TooManyHeaders, EGRESS, 1);
        assert_eq!(wire.f.drops(Reason::Truncated, EGRESS), 0);
    });
}

#[test]
fn a_tag_hides_nothing_and_two_are_dropped() {
    with_wire(|wire| {
        let tagged = |packet: &Packet, tags: &[[u8; 4]]| {
            let mut frame = packet.bytes();
            frame.splice(12..12, tags.concat());
            frame
        };
        let vlan = [0x81, 0x00, 0x00, 0x05];
        let provider = [0x88, 0xa8, 0x00, 0x06];
        let to = |port| Packet::udp("10.0.0.2", 4000, "10.0.0.3", port);
        let to6 = |port| Packet::udp("fd00::2", 4000, "fd00::3", port);
        for (number, tag) in (1..).zip([vlan, provider]) {
            wire.sends(&[tagged(&to(80), &[tag]), tagged(&to6(80), &[tag])], None);
            wire.sends(&[tagged(&to(81), &[tag]), tagged(&to6(81), &[tag])], None);
            wire.counted((API, WEB, EGRESS), 2 * number, 2 * number);
        }
        // A source and a MAC address behind a tag are looked at, too.
        wire.sends(&[tagged(&Packet::udp("10.0.0.9", 4000, "10.0.0.3", 80), &[vlan])], None);
        wire.sends(&[tagged(&to(80).from_mac([2, 9, 9, 9, 9, 9]), &[vlan])], None);
        wire.dropped(Reason::SpoofedSource, EGRESS, 2);
        for tags in [[vlan, vlan], [provider, vlan], [vlan, provider]] {
            wire.sends(&[tagged(&to(80), &tags)], None);
        }
        wire.dropped(Reason::UnknownEthertype, EGRESS, 3);

        // Towards the pod a tag in the data is an ethertype like any other; one in the metadata is not in the way there
        // either, but that takes a VLAN interface, which not every kernel has.
        let mut raw = Raw::open("host0", false).unwrap();
        for tags in [&[vlan][..], &[provider], &[vlan, vlan]] {
            // Who sends on the interface itself hears of a drop there.
            let sent = raw.send(&tagged(&Packet::udp("10.0.0.3", 4000, "10.0.0.2", 80), tags));
            assert!(sent.is_err(), "{tags:?}");
        }
        wire.dropped(Reason::UnknownEthertype, INGRESS, 3);
        raw.send(&Packet::udp("10.0.0.3", 4000, "10.0.0.2", 80).bytes()).unwrap();
        assert!(raw.send(&Packet::udp("10.0.0.4", 4000, "10.0.0.2", 80).bytes()).is_err());
        wire.counted((WEB, API, INGRESS), 1, 0);
        wire.counted((INTRUDER, API, INGRESS), 0, 1);
    });
}

#[test]
fn frames_below_an_ip_header_are_dropped_at_every_length() {
    with_wire(|wire| {
        let mut count = 0;
        for packet in
            [Packet::udp("10.0.0.2", 4000, "10.0.0.3", 80), Packet::udp("fd00::2", 4000, "fd00::3", 80)]
        {
            let frame = packet.bytes();
            let frames: Vec<Vec<u8>> = (14..frame.len()).map(|length| frame[..length].to_vec()).collect();
            count += frames.len() as u64;
            wire.sends(&frames, None);
        }
        wire.dropped(Reason::Truncated, EGRESS, count);
        assert_eq!(wire.f.counters(API, WEB, EGRESS), Counters::default());
    });
}

#[test]
fn aggregated_segments_and_datagrams_with_checksums_to_come_are_judged_and_counted_whole() {
    const BULK: usize = 8 << 20;
    with_wire(|wire| {
        let listener = TcpListener::bind("10.0.0.3:80").unwrap();
        let sender = wire.pod.run(|| {
            std::thread::scope(|scope| {
                let receiver = scope.spawn(|| {
                    let (mut stream, _) = listener.accept()?;
                    let mut received = Vec::new();
                    stream.read_to_end(&mut received)?;
                    anyhow::Ok(received.len())
                });
                let mut stream = TcpStream::connect("10.0.0.3:80")?;
                stream.write_all(&vec![7; BULK])?;
                drop(stream);
                receiver.join().unwrap()
            })
        });
        assert_eq!(sender.unwrap(), BULK);
        let counters = wire.f.counters(API, WEB, EGRESS);
        assert_eq!(counters.decisions, [1, 0, 0]);
        assert!(counters.bytes[0] > BULK as u64, "{counters:?}");
        // Acknowledgements count, too: what the pod sends is larger than any frame of the wire by far.
        assert!(
            counters.bytes[0] / counters.packets[0] > JUMBO as u64,
            "nothing was aggregated: {counters:?}"
        );

        // Ten datagrams in one packet.
        let server = UdpSocket::bind("10.0.0.3:80").unwrap();
        server.set_read_timeout(Some(portcullis_tests::poll::PATIENCE)).unwrap();
        let send = |to: &str| {
            wire.pod.run(|| {
                let socket = UdpSocket::bind("10.0.0.2:4000")?;
                let size = 1000i32;
                let length = u32::try_from(size_of_val(&size))?;
                // SAFETY: a number that lives as long as the call, with its length.
                let set = unsafe {
                    let fd = socket.as_raw_fd();
                    libc::setsockopt(fd, libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), length)
                };
                ensure!(set == 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
                // What is dropped here is an error for the sender.
                Ok(socket.send_to(&[1; 10_000], to).is_ok())
            })
        };
        assert!(send("10.0.0.3:80").unwrap());
        let mut buffer = [0; 2000];
        for _ in 0..10 {
            assert_eq!(server.recv(&mut buffer).unwrap(), 1000);
        }
        let after = wire.f.counters(API, WEB, EGRESS);
        assert_eq!(after.decisions, [2, 0, 0]);
        assert_eq!(after.packets[0] - counters.packets[0], 1, "one packet for ten datagrams");
        assert_eq!(after.bytes[0] - counters.bytes[0], 10_000 + 14 + 20 + 8);
        let _ = send("10.0.0.3:81").unwrap();
        let denied = wire.counted((API, WEB, EGRESS), after.packets[0], 1);
        assert_eq!(denied.bytes[1], 10_000 + 14 + 20 + 8);
    });
}
