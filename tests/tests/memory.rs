//! What the maps cost a node at their fullest, by the kernel's own count, against the memory limit of the manifests.
#![expect(clippy::unwrap_used, reason = "a helper of a test ends the test when what it needs is not there")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;

use aya::maps::MapData;
use ipnet::IpNet;
use portcullis::datapath::{Pins, Reader, Sizes};
use portcullis::policy::{Desired, RowSet};
use portcullis_common::abi::{Addr6, names};
use portcullis_common::cache::{self, CachedVerdict};
use portcullis_common::{Direction, Identity, Kind, Verdict};
use portcullis_tests::deploy;
use portcullis_tests::fixture::{add_frontend, always, with_fixture};

/// Pods of a node: more than twice what a kubelet takes by default.
const PODS: u64 = 250;
/// Possible CPUs of a large machine.
const CPUS: u64 = 128;
/// What the process takes in a cluster of 100,000 pods; `cargo xtask bench large` measures it.
const PROCESS: u64 = 300 << 20;
/// `NUMBERS` and `SLOTS`, which traffic and time fill: 262,144 and 16,384 entries of less than 128 bytes.
const OTHERS: u64 = (262_144 + 16_384) * 128;
/// What each processor remembers (`portcullis_common::cache`), in maps that are not pinned.
const REMEMBERED: usize =
    cache::VERDICTS * (size_of::<CachedVerdict<u32>>() + size_of::<CachedVerdict<Addr6>>());
/// Rows of a subject in this test.
const ROWS: u32 = 128;

/// Fills every map that policies, pods and services fill, to its last entry.
fn fill(desired: &mut Desired, sizes: &Sizes) {
    let v4 = |i: u32| Ipv4Addr::from_bits(0x0b00_0000 + i);
    let v6 = |i: u32| Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) + u128::from(i));
    for i in 0..sizes.services_size {
        let at = Ipv4Addr::from_bits(0x0c00_0000 + i / 1024).to_string();
        add_frontend(desired, &at, 6, u16::try_from(i % 1024).unwrap(), &[]);
    }
    let someone = |i: u32| Identity::new(1000 + i, 1000 + i, Kind::Pod);
    let known = |is_v4| desired.ipcache.keys().filter(|ip| ip.is_ipv4() == is_v4).count();
    let missing = [true, false].map(|is_v4| sizes.ipcache_size - u32::try_from(known(is_v4)).unwrap());
    desired.ipcache.extend((0..missing[0]).map(|i| (IpAddr::V4(v4(i)), someone(i))));
    desired.ipcache.extend((0..missing[1]).map(|i| (IpAddr::V6(v6(i)), someone(i))));
    for i in 0..sizes.cidrs_size - 1 {
        let nets = [IpNet::new(v4(i << 8).into(), 24), IpNet::new(v6(i << 8).into(), 120)];
        desired.cidrs.extend(nets.map(|net| (net.unwrap(), Identity::WORLD)));
    }
    let used: usize = desired.subjects.values().map(|rows| rows.len()).sum();
    let free = sizes.rows_size - u32::try_from(used).unwrap();
    for i in 0..free / ROWS {
        let rows = (0..ROWS).map(|peer| ((Direction::Ingress, 1000 + peer), always(Verdict::Allow)));
        desired.subjects.insert(10 + i, Arc::new(rows.collect::<RowSet>()));
    }
}

/// Bytes of a pinned map, by the kernel's count.
fn bytes(pin: &Path) -> u64 {
    let map = MapData::from_pin(pin).unwrap();
    let fd = map.fd().as_fd().as_raw_fd();
    let text = fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
    line.trim().parse().unwrap()
}

/// Bytes of all maps but the flow tables.
fn all(pins: &Pins) -> u64 {
    names::ALL.iter().map(|name| bytes(&pins.map(name))).sum()
}

/// The limit of the agent's container.
fn limit() -> u64 {
    let text = fs::read_to_string(deploy::folder().join("portcullis.yaml")).unwrap();
    let mut lines = text.lines().skip_while(|line| line.trim() != "limits:");
    let line = lines.find_map(|line| line.trim().strip_prefix("memory: ")).unwrap();
    line.strip_suffix("Gi").unwrap().parse::<u64>().unwrap() << 30
}

#[test]
fn full_maps_flows_of_many_pods_and_the_process_fit_into_the_limit_of_the_container() {
    with_fixture(|f| {
        let pins = Pins::new(f.folder());
        let empty = all(&pins);
        fill(&mut f.desired, &Sizes::default());
        f.apply();
        let full = all(&pins);
        let census = Reader::open(f.folder()).unwrap().census().unwrap();
        for name in [names::IPCACHE4, names::IPCACHE6, names::CIDRS4, names::CIDRS6, names::SERVICES] {
            let usage = census.usage.iter().find(|usage| usage.map == name).unwrap();
            assert_eq!(usage.entries, usage.capacity, "{name} is not full");
        }
        let rows = census.usage.iter().find(|usage| usage.map == names::ROWS).unwrap();
        assert!(rows.entries + u64::from(ROWS) > rows.capacity, "the rows are not full: {rows:?}");
        let cpus = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
        let cpus = cpus.trim().rsplit_once('-').map_or(1, |(_, last)| last.parse::<u64>().unwrap() + 1);
        // What else is there for each CPU is small.
        let counters = bytes(&pins.map(names::COUNTERS)) / cpus * CPUS.saturating_sub(cpus);
        let slot = fs::read_dir(pins.flows()).unwrap().map(|entry| bytes(&entry.unwrap().path()));
        let flows: u64 = slot.sum();
        assert!(flows > 500_000, "one pod's flow tables: {flows}");
        let remembered = u64::try_from(REMEMBERED).unwrap() * CPUS;
        let worst = full + counters + remembered + OTHERS + PODS * flows + PROCESS;
        println!(
            "maps: {empty} bytes empty and {full} full with {cpus} CPUs, {} full with {CPUS}; a pod's flows: {flows}; \
             altogether {worst} of {}",
            full + counters,
            limit()
        );
        assert!(worst <= limit(), "{worst} bytes are more than the limit of {}", limit());
    });
}
