//! Prefixes and the regions between them.
//!
//! Every prefix that decides about anything (blocks, their holes, pod ranges, everything) gets a region: the addresses of
//! which it is the longest match. Within a region every address is in the same blocks, because a block or hole that
//! told two of them apart would be a longer prefix.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ir::Block;

/// What all addresses have in common of which a prefix is the longest match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Indexes of the blocks that contain them, ascending.
    pub blocks: Arc<[u32]>,
    /// They belong to a pod range.
    pub pod_range: bool,
    /// They belong to a range of service addresses.
    pub service_range: bool,
}

/// The regions by prefix.
#[derive(Default)]
pub struct Regions {
    by_prefix: BTreeMap<IpNet, Region>,
    /// Prefix lengths that occur, longest first.
    lengths4: Vec<u8>,
    lengths6: Vec<u8>,
}

impl Regions {
    /// The regions that blocks and ranges make. Where a pod range and a service range overlap, the smaller one counts.
    pub fn new(blocks: &[Block], pod_ranges: &BTreeSet<IpNet>, service_ranges: &BTreeSet<IpNet>) -> Self {
        let pod_ranges: BTreeSet<IpNet> = pod_ranges.iter().map(IpNet::trunc).collect();
        let everything: [IpNet; 2] = [Ipv4Net::default().into(), Ipv6Net::default().into()];
        let mut prefixes: BTreeSet<IpNet> =
            everything.into_iter().chain(pod_ranges.iter().chain(service_ranges).copied()).collect();
        let mut by_cidr: HashMap<IpNet, Vec<u32>> = HashMap::new();
        for (id, block) in (0..).zip(blocks) {
            prefixes.insert(block.cidr);
            prefixes.extend(&block.except);
            by_cidr.entry(block.cidr).or_default().push(id);
        }
        let lengths = |is4: bool| -> Vec<u8> {
            let lengths =
                prefixes.iter().filter(|net| matches!(net, IpNet::V4(_)) == is4).map(IpNet::prefix_len);
            lengths.collect::<BTreeSet<u8>>().into_iter().rev().collect()
        };
        let mut regions =
            Self { by_prefix: BTreeMap::new(), lengths4: lengths(true), lengths6: lengths(false) };
        let mut shared: HashMap<Vec<u32>, Arc<[u32]>> = HashMap::new();
        for prefix in prefixes {
            let mut contains = Vec::new();
            let (mut pod_range, mut service_range) = (false, false);
            for around in regions.around(prefix.addr(), prefix.prefix_len()) {
                let candidates = by_cidr.get(&around).into_iter().flatten().copied();
                contains.extend(candidates.filter(|&id| blocks[id as usize].contains(&prefix)));
                if !pod_range && !service_range {
                    pod_range = pod_ranges.contains(&around);
                    service_range = !pod_range && service_ranges.contains(&around);
                }
            }
            contains.sort_unstable();
            let blocks = shared.entry(contains).or_insert_with_key(|ids| ids.as_slice().into()).clone();
            regions.by_prefix.insert(prefix, Region { blocks, pod_range, service_range });
        }
        regions
    }

    /// The prefixes of a length that occurs, up to `longest`, that contain an address; the longest first.
    fn around(&self, address: IpAddr, longest: u8) -> impl Iterator<Item = IpNet> {
        let lengths = if address.is_ipv4() { &self.lengths4 } else { &self.lengths6 };
        let lengths = lengths.iter().filter(move |&&length| length <= longest);
        lengths.filter_map(move |&length| IpNet::new(address, length).ok()).map(|net| net.trunc())
    }

    /// The region of an address. There is always one: every address is in the prefix of its family.
    pub fn find(&self, address: IpAddr) -> Option<&Region> {
        self.around(address, u8::MAX).find_map(|net| self.by_prefix.get(&net))
    }

    /// Every prefix with its region, in order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &Region)> {
        self.by_prefix.iter().map(|(&net, region)| (net, region))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(cidr: &str, except: &[&str]) -> Block {
        let except: Vec<String> = except.iter().map(|s| (*s).to_owned()).collect();
        Block::parse(cidr, &except).unwrap()
    }

    #[test]
    fn an_address_is_in_the_blocks_of_its_longest_prefix() {
        let blocks = [
            block("10.0.0.0/8", &["10.9.0.0/16"]),
            block("10.9.1.0/24", &[]),
            block("0.0.0.0/0", &[]),
            block("fd00::/8", &["fd00:1::/32", "fd00:1:2::/48"]),
            block("10.9.0.0/16", &["10.9.1.128/25"]),
        ];
        let pod_ranges = ["10.9.0.0/20".parse().unwrap(), "fd00:1::/32".parse().unwrap()].into();
        let service_ranges = ["10.9.1.0/28".parse().unwrap(), "10.0.0.0/8".parse().unwrap()].into();
        let regions = Regions::new(&blocks, &pod_ranges, &service_ranges);
        for (address, wanted, pod_range) in [
            ("10.1.1.1", &[0, 2][..], false),
            ("10.9.200.1", &[2, 4], false),
            ("10.9.2.1", &[2, 4], true),
            ("10.9.1.17", &[1, 2, 4], true),
            ("10.9.1.1", &[1, 2, 4], false),
            ("10.9.1.129", &[1, 2], true),
            ("11.0.0.0", &[2], false),
            ("fd00::1", &[3], false),
            ("fd00:1:2::1", &[], true),
            ("fe80::1", &[], false),
        ] {
            let region = regions.find(address.parse().unwrap()).unwrap();
            assert_eq!((&*region.blocks, region.pod_range), (wanted, pod_range), "{address}");
            let service_range = address.starts_with("10.") && !pod_range;
            assert_eq!(region.service_range, service_range, "{address}");
        }
        // Straight from the definition of a block, for addresses around every border.
        for (net, _) in regions.iter() {
            for address in [net.network(), net.broadcast()] {
                let single = IpNet::from(address);
                let wanted: Vec<u32> =
                    (0..).zip(&blocks).filter(|(_, b)| b.contains(&single)).map(|(i, _)| i).collect();
                assert_eq!(*regions.find(address).unwrap().blocks, wanted, "{address}");
            }
        }
    }
}
