//! Packets made of others: what an attacker would try, and what happens to bits.

use portcullis_common::Direction;

use crate::random::Random;

/// Where the IP header begins.
const IP: usize = 14;

/// A packet to begin with, and the hook that it is made for.
#[derive(Clone, Debug)]
pub struct Seed {
    /// The hook.
    pub hook: Direction,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Makes packets of seeds, in one buffer.
#[derive(Debug)]
pub struct Mutator {
    seeds: Vec<Seed>,
    /// The packet.
    pub frame: Vec<u8>,
}

/// The fewest bytes that the kernel's test run takes for an ethertype.
pub fn least(frame: &[u8]) -> usize {
    match [frame[12], frame[13]] {
        [0x08, 0x00] => IP + 20,
        [0x86, 0xdd] => IP + 40,
        _ => IP,
    }
}

impl Mutator {
    /// With these packets to begin with. Those that the kernel's test run does not take are left out.
    pub fn new(mut seeds: Vec<Seed>) -> Self {
        seeds.retain(|seed| seed.frame.len() >= IP && seed.frame.len() >= least(&seed.frame));
        assert!(!seeds.is_empty());
        Self { seeds, frame: Vec::new() }
    }

    /// Makes the next packet, in [`Mutator::frame`].
    pub fn next(&mut self, random: &mut Random) -> Direction {
        let seed = &self.seeds[random.below(self.seeds.len())];
        self.frame.clear();
        self.frame.extend_from_slice(&seed.frame);
        let hook = if random.one_in(16) { seed.hook.opposite() } else { seed.hook };
        for _ in 0..random.of(&[0, 0, 1, 1, 1, 2, 3, 6]) {
            self.change(random);
        }
        hook
    }

    fn change(&mut self, random: &mut Random) {
        let Self { seeds, frame } = self;
        let length = frame.len();
        let v6 = frame[12] == 0x86;
        // Headers are where a change means something.
        let headers = length.min(IP + 96);
        // Of other frames than IP's nothing is known but that they have bytes.
        let ip = least(frame) > IP;
        match random.below(if ip { 16 } else { 6 }) {
            0 | 1 => frame[anywhere(random, headers)] ^= 1 << random.below(8),
            2 => frame[anywhere(random, headers)] = random.byte(),
            3 => frame[anywhere(random, length)] = random.of(&[0, 1, 0x40, 0x7f, 0x80, 0xff]),
            4 => {
                let at = least(frame);
                frame.truncate(at + random.below(length - at + 1));
            }
            5 => frame.extend_from_slice(&[0; 24][..random.below(25)]),
            6 => swap_addresses(frame, v6),
            7 => {
                // An address of somebody else.
                let at = if v6 { random.of(&[IP + 23, IP + 39]) } else { random.of(&[IP + 15, IP + 19]) };
                if at < length {
                    frame[at] = random.of(&[1, 2, 3, 4, 9]);
                }
            }
            8 => swap_blocks(frame, random),
            9 => {
                // The end of another packet of the same sort.
                let other = &seeds[random.below(seeds.len())].frame;
                if other[12..14] == frame[12..14] {
                    let at = least(frame).min(other.len());
                    frame.truncate(at);
                    frame.extend_from_slice(&other[at..]);
                }
            }
            10 => {
                // A port where the transport header is if there are no other headers.
                let at = if v6 { IP + 40 } else { IP + 20 } + random.of(&[0, 2]);
                if at + 2 <= length {
                    let port: u16 = random.of(&[80, 81, 4000, 5000, 7999, 8000, 8010, 8011]);
                    frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
                }
            }
            11 => {
                let at = if v6 { IP + 53 } else { IP + 33 };
                if at < length {
                    frame[at] = random.of(&[0, 1, 2, 3, 4, 0x10, 0x11, 0x12, 0x14, 0x3f]);
                }
            }
            12 => {
                // The protocol, or the first header.
                let at = if v6 { IP + 6 } else { IP + 9 };
                frame[at] = random
                    .of(&[0, 1, 2, 4, 6, 17, 33, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 136, 253]);
            }
            13 => fragment(frame, v6, random),
            14 => {
                let at = if v6 { IP + 7 } else { IP + 8 };
                frame[at] = random.of(&[0, 1, 2, 64, 254, 255]);
            }
            _ => lengthen(frame, v6, random),
        }
    }
}

/// A place that is not the ethertype's: the kernel's test run wants a whole IP header behind that of IP.
fn anywhere(random: &mut Random, length: usize) -> usize {
    let at = random.below(length - 2);
    if at >= 12 { at + 2 } else { at }
}

fn swap_addresses(frame: &mut [u8], v6: bool) {
    let (at, size) = if v6 { (IP + 8, 16) } else { (IP + 12, 4) };
    if frame.len() >= at + 2 * size {
        let (source, destination) = frame[at..at + 2 * size].split_at_mut(size);
        source.swap_with_slice(destination);
    }
}

fn swap_blocks(frame: &mut [u8], random: &mut Random) {
    let blocks = (frame.len() - IP) / 8;
    if blocks > 1 {
        let (a, b) = (random.below(blocks), random.below(blocks));
        for byte in 0..8 {
            frame.swap(IP + a * 8 + byte, IP + b * 8 + byte);
        }
    }
}

/// Makes a fragment of one of a few datagrams of the packet.
fn fragment(frame: &mut Vec<u8>, v6: bool, random: &mut Random) {
    let offset: u16 = random.of(&[0, 0, 1, 2, 3, 185, 0x1fff]);
    let more = random.one_in(2);
    let id = 1 + u16::from(random.one_in(3));
    if v6 {
        let field = offset << 3 | u16::from(more);
        let mut header = [frame[IP + 6], 0, 0, 0, 0, 0, 0, 0];
        header[2..4].copy_from_slice(&field.to_be_bytes());
        header[6..8].copy_from_slice(&id.to_be_bytes());
        frame.splice(IP + 40..IP + 40, header);
        frame[IP + 6] = 44;
        let payload = u16::from_be_bytes([frame[IP + 4], frame[IP + 5]]).wrapping_add(8);
        frame[IP + 4..IP + 6].copy_from_slice(&payload.to_be_bytes());
    } else {
        let field = offset | if more { 0x2000 } else { 0 };
        frame[IP + 6..IP + 8].copy_from_slice(&field.to_be_bytes());
        frame[IP + 4..IP + 6].copy_from_slice(&id.to_be_bytes());
    }
}

/// Changes the length that the IP header tells by a little.
fn lengthen(frame: &mut [u8], v6: bool, random: &mut Random) {
    let at = if v6 { IP + 4 } else { IP + 2 };
    let length = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let change = u16::try_from(random.below(41)).unwrap();
    let length = length.wrapping_add(change).wrapping_sub(20);
    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
}
