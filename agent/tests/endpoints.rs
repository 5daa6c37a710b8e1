//! The watcher against the kernel: a namespace that plays the node and two that play pods, in which `ip` makes and
//! changes interfaces. Needs root and iproute2, and fails without them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests: a failure is a panic")]

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use portcullis::endpoints::{Classification, Link, LinkKind, Options, PeerLink, Snapshot, Watcher, classify};
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(20);
const CAP_NET_BROADCAST: u32 = 11;
const CAP_NET_ADMIN: u32 = 12;

/// A node and its pods; gone when dropped, after a panic too.
struct Net {
    prefix: String,
}

impl Net {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("pctest-{}-{}-", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let net = Self { prefix };
        net.ip(&["netns add NODE", "netns add POD1", "netns add POD2", "-n NODE link set lo up"]);
        net
    }

    fn expand(&self, text: &str) -> String {
        ["NODE", "POD1", "POD2"].iter().fold(text.to_owned(), |text, role| {
            text.replace(role, &format!("{}{}", self.prefix, role.to_lowercase()))
        })
    }

    /// Runs `ip` with each line of arguments, in which NODE, POD1 and POD2 stand for the namespaces.
    fn ip(&self, lines: &[&str]) {
        for line in lines {
            let line = self.expand(line);
            let output = Command::new("ip").args(line.split(' ')).output().expect("iproute2 is installed");
            assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Runs many commands in the node's namespace in one process.
    fn ip_batch(&self, lines: &[String]) {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.expand("NODE"), "-batch", "-"]).stdin(Stdio::piped());
        let mut child = ip.spawn().expect("iproute2 is installed");
        let text = self.expand(&(lines.join("\n") + "\n"));
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "ip -batch: {text}");
    }

    fn mac(&self, namespace: &str, name: &str) -> [u8; 6] {
        let arguments = self.expand(&format!("-n {namespace} -json link show dev {name}"));
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let mac = links[0]["address"].as_str().unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// Runs a future on a thread of its own inside the node's namespace, without some capabilities. Commands that it
    /// runs hold up the watcher, which so meets their notifications all at once.
    fn on_node<F: Future<Output = ()>>(&self, dropped: &[u32], body: impl FnOnce() -> F + Send) {
        let path = self.expand("/var/run/netns/NODE");
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = std::fs::File::open(path).unwrap();
                // SAFETY: changes only the namespace of this thread, which ends with the test.
                let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "setns: {}; run as root", std::io::Error::last_os_error());
                drop_capabilities(dropped);
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
            });
            thread.join()
        });
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    fn left(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir("/var/run/netns") else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&self.prefix)).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.left() {
            let deleted = Command::new("ip").args(["netns", "del", &name]).status();
            eprintln!("ip netns del {name}: {deleted:?}");
        }
        if !std::thread::panicking() {
            assert_eq!(self.left(), Vec::<String>::new(), "namespaces left");
        }
    }
}

fn drop_capabilities(dropped: &[u32]) {
    if dropped.is_empty() {
        return;
    }
    // Version 3 of the interface: a header of version and thread (0: this one), and two sets of three words.
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: both buffers have the layout and size that version 3 of capget and capset takes.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()), 0);
        for capability in dropped {
            sets[0][0] &= !(1 << capability);
        }
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
    }
}

type Snapshots = watch::Receiver<Arc<Snapshot>>;

async fn wait_for<T>(
    snapshots: &mut Snapshots,
    what: &str,
    mut find: impl FnMut(&Snapshot) -> Option<T>,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if let Some(found) = find(&snapshot) {
            return found;
        }
        match tokio::time::timeout_at(deadline.into(), snapshots.changed()).await {
            Ok(changed) => changed.expect("the watcher lives"),
            Err(error) => panic!("{error}: never seen: {what}; last: {snapshot:#?}"),
        }
    }
}

async fn started(options: Options) -> (Watcher, Snapshots) {
    let watcher = Watcher::spawn(options).unwrap();
    let mut snapshots = watcher.snapshots();
    assert!(!snapshots.borrow().complete);
    wait_for(&mut snapshots, "the first dump", |snapshot| snapshot.complete.then_some(())).await;
    (watcher, snapshots)
}

/// Waits until the watcher has taken everything that happened before, by something that happens now.
async fn fence(net: &Net, snapshots: &mut Snapshots) -> Arc<Snapshot> {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let mark = format!("203.0.113.{}", COUNT.fetch_add(1, Ordering::Relaxed));
    net.ip(&[&format!("-n NODE addr add {mark}/32 dev lo")]);
    let mark: IpAddr = mark.parse().unwrap();
    wait_for(snapshots, "the fence", |snapshot| snapshot.host_addresses.contains(&mark).then_some(())).await;
    Arc::clone(&snapshots.borrow())
}

fn named<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Link> {
    snapshot.links.values().find(|link| link.name == name)
}

fn addresses(link: &Link) -> Vec<String> {
    let of_peer = |peer: &PeerLink| peer.addresses.iter().map(ToString::to_string).collect();
    link.peer.as_ref().map(of_peer).unwrap_or_default()
}

/// The link of that name once it has exactly these addresses behind it, IPv6 link-local ones aside.
async fn wait_for_addresses(snapshots: &mut Snapshots, name: &str, expected: &[&str]) -> Link {
    wait_for(snapshots, &format!("{name} with {expected:?}"), |snapshot| {
        let link = named(snapshot, name)?;
        let mut found = addresses(link);
        found.retain(|address| !address.starts_with("fe80:"));
        (found == expected).then(|| link.clone())
    })
    .await
}

fn judge(link: &Link) -> Classification {
    classify(link, |_| false, &["10.7.0.0/16".parse().unwrap(), "fd07::/16".parse().unwrap()])
}

#[test]
fn what_is_there_at_the_start_is_in_the_first_complete_snapshot() {
    let net = Net::new();
    net.ip(&[
        "-n NODE link add br0 type bridge",
        "-n NODE addr add 10.7.0.1/24 dev br0",
        "-n NODE addr add fd07::1/64 dev br0 nodad",
        "-n NODE link add veth1 type veth peer name eth0 netns POD1",
        "-n NODE link set veth1 master br0 up",
        "-n POD1 addr add 10.7.0.5/24 dev eth0",
        "-n POD1 addr add fd07::5/64 dev eth0 nodad",
        "-n POD1 link add bridge0 type bridge",
        "-n POD1 addr add 10.7.0.99/24 dev bridge0",
        "-n NODE link add here1 type veth peer name here2",
    ]);
    net.on_node(&[], || async {
        let (_watcher, snapshots) = started(Options::default()).await;
        let snapshot = snapshots.borrow().clone();
        let names: BTreeSet<&str> = snapshot.links.values().map(|link| link.name.as_str()).collect();
        assert_eq!(names, BTreeSet::from(["br0", "here1", "here2", "lo", "veth1"]));
        let host: Vec<String> = snapshot.host_addresses.iter().map(ToString::to_string).collect();
        for own in ["127.0.0.1", "::1", "10.7.0.1", "fd07::1"] {
            assert!(host.iter().any(|address| address == own), "{own} not in {host:?}");
        }
        assert!(!host.iter().any(|address| address.ends_with(":5") || address.ends_with(".5")), "{host:?}");

        let bridge = named(&snapshot, "br0").unwrap();
        assert_eq!((&bridge.kind, bridge.up, &bridge.peer), (&LinkKind::Bridge, false, &None));
        let veth = named(&snapshot, "veth1").unwrap();
        assert_eq!((&veth.kind, veth.up, veth.master), (&LinkKind::Veth, true, Some(bridge.ifindex)));
        assert_eq!(veth.mac, Some(net.mac("NODE", "veth1")));
        let peer = veth.peer.as_ref().unwrap();
        assert_eq!(peer.mac, Some(net.mac("POD1", "eth0")));
        assert_eq!(addresses(veth), ["10.7.0.5", "fd07::5"], "only those of this interface, IPv4 first");
        assert_eq!(judge(veth), Classification::Endpoint);
        for other in ["lo", "br0", "here1", "here2"] {
            let link = named(&snapshot, other).unwrap();
            assert_eq!(link.peer, None);
            assert!(matches!(judge(link), Classification::Ignored(_)), "{link:?}");
        }
    });
}

#[test]
fn a_pod_is_followed_from_its_link_to_its_address_to_its_end() {
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        net.ip(&["-n NODE link add veth1 type veth peer name eth0 netns POD1"]);
        let link = wait_for(&mut snapshots, "veth1", |snapshot| named(snapshot, "veth1").cloned()).await;
        assert_eq!(judge(&link), Classification::Pending);

        // Both ends up: each gets an IPv6 link-local address, which makes no endpoint.
        net.ip(&["-n NODE link set veth1 up", "-n POD1 link set eth0 up"]);
        let link = wait_for(&mut snapshots, "a link-local address behind veth1", |snapshot| {
            named(snapshot, "veth1").filter(|link| link.up && !addresses(link).is_empty()).cloned()
        })
        .await;
        assert!(addresses(&link).iter().all(|address| address.starts_with("fe80:")), "{link:?}");
        assert_eq!(judge(&link), Classification::Pending);

        net.ip(&["-n POD1 addr add 10.7.0.5/24 dev eth0"]);
        let link = wait_for_addresses(&mut snapshots, "veth1", &["10.7.0.5"]).await;
        assert_eq!(link.peer.as_ref().unwrap().mac, Some(net.mac("POD1", "eth0")));
        assert_eq!(judge(&link), Classification::Endpoint);

        net.ip(&["-n NODE link add br0 type bridge", "-n NODE link set veth1 master br0"]);
        wait_for(&mut snapshots, "veth1 in br0", |snapshot| {
            let bridge = named(snapshot, "br0")?.ifindex;
            named(snapshot, "veth1").filter(|link| link.master == Some(bridge)).map(drop)
        })
        .await;
        // The bridge announces the port's leave as a deleted link of its own family.
        net.ip(&["-n NODE link set veth1 nomaster"]);
        let snapshot = fence(&net, &mut snapshots).await;
        let after = named(&snapshot, "veth1").unwrap();
        assert_eq!((after.master, after.appeared), (None, link.appeared));

        net.ip(&["netns del POD1"]);
        wait_for(&mut snapshots, "the end of veth1", |snapshot| {
            named(snapshot, "veth1").is_none().then_some(())
        })
        .await;
    });
}

#[test]
fn a_bound_link_stays_with_its_pod_whatever_the_pod_does_inside() {
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        net.ip(&[
            "-n NODE link add veth1 type veth peer name eth0 netns POD1",
            "-n NODE link set veth1 up",
            "-n POD1 addr add 10.7.0.5/24 dev eth0",
        ]);
        let bound = wait_for_addresses(&mut snapshots, "veth1", &["10.7.0.5"]).await;
        net.ip(&[
            "-n POD1 addr add 10.7.0.6/24 dev eth0",
            "-n POD1 addr del 10.7.0.5/24 dev eth0",
            "-n POD1 link set eth0 address 02:00:00:00:00:66",
            "-n POD1 link set eth0 up",
            "-n POD1 link set eth0 netns POD2",
            "-n POD2 addr add 10.7.0.7/24 dev eth0",
            "-n POD2 link set eth0 up",
        ]);
        let snapshot = fence(&net, &mut snapshots).await;
        let after = named(&snapshot, "veth1").unwrap();
        assert_eq!((&after.peer, after.appeared), (&bound.peer, bound.appeared));
    });
}

#[test]
fn a_link_made_again_with_the_same_index_and_name_is_a_new_one() {
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        let make = |pod: &str, address: &str| {
            net.ip(&[
                &format!("-n NODE link add veth1 index 77 type veth peer name eth0 index 9 netns {pod}"),
                &format!("-n {pod} addr add {address}/24 dev eth0"),
            ]);
        };
        make("POD1", "10.7.0.5");
        let first = wait_for_addresses(&mut snapshots, "veth1", &["10.7.0.5"]).await;
        assert_eq!((first.ifindex, first.peer.as_ref().unwrap().ifindex), (77, 9));
        // At once: the watcher reads the end of the one together with the beginning of the other.
        net.ip(&["-n NODE link del veth1"]);
        make("POD2", "10.7.0.6");
        let second = wait_for_addresses(&mut snapshots, "veth1", &["10.7.0.6"]).await;
        assert_eq!(second.ifindex, 77);
        assert!(second.appeared > first.appeared);
        // With a pause in which it is seen to be gone, and in the same namespace as before.
        net.ip(&["-n NODE link del veth1"]);
        wait_for(&mut snapshots, "the end of veth1", |snapshot| {
            named(snapshot, "veth1").is_none().then_some(())
        })
        .await;
        make("POD2", "10.7.0.8");
        let third = wait_for_addresses(&mut snapshots, "veth1", &["10.7.0.8"]).await;
        assert!(third.appeared > second.appeared);
    });
}

#[test]
fn an_end_that_moves_into_a_pod_is_found_although_the_kernel_does_not_say_so() {
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        net.ip(&["-n NODE link add veth1 type veth peer name moving"]);
        wait_for(&mut snapshots, "both ends", |snapshot| {
            let (one, other) = (named(snapshot, "veth1")?, named(snapshot, "moving")?);
            assert_eq!((&one.peer, &other.peer), (&None, &None));
            Some(())
        })
        .await;
        net.ip(&["-n NODE link set moving netns POD1", "-n POD1 addr add fd07::5/64 dev moving nodad"]);
        let link = wait_for_addresses(&mut snapshots, "veth1", &["fd07::5"]).await;
        assert_eq!(judge(&link), Classification::Endpoint);
    });
}

#[test]
fn the_nodes_own_addresses_are_followed() {
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        net.ip(&[
            "-n NODE link add br0 type bridge",
            "-n NODE addr add 10.7.0.1/24 dev br0",
            "-n NODE addr add 192.0.2.1 peer 192.0.2.2/32 dev br0",
            "-n NODE addr add fd07::1/64 dev br0 nodad",
        ]);
        let own = ["10.7.0.1", "192.0.2.1", "fd07::1", "10.7.0.255", "fd07::"];
        let own: Vec<IpAddr> = own.iter().map(|address| address.parse().unwrap()).collect();
        let all = |snapshot: &Snapshot| own.iter().all(|address| snapshot.host_addresses.contains(address));
        wait_for(&mut snapshots, "all addresses, and those at which every router listens", |snapshot| {
            all(snapshot).then_some(())
        })
        .await;
        assert!(!snapshots.borrow().host_addresses.contains(&"192.0.2.2".parse::<IpAddr>().unwrap()));
        net.ip(&["-n NODE addr del 10.7.0.1/24 dev br0"]);
        wait_for(&mut snapshots, "one less", |s| (!s.host_addresses.contains(&own[0])).then_some(())).await;
        assert!(!snapshots.borrow().host_addresses.contains(&own[3]), "the broadcast address of no network");
        assert!(snapshots.borrow().host_addresses.contains(&own[2]));
        net.ip(&["-n NODE link del br0"]);
        let none = |s: &Snapshot| !own.iter().any(|address| s.host_addresses.contains(address));
        wait_for(&mut snapshots, "none left", |snapshot| none(snapshot).then_some(())).await;
    });
}

#[test]
fn ports_of_tunnels_are_followed() {
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        assert!(snapshots.borrow().tunnel_ports.is_empty());
        net.ip(&[
            "-n NODE link add vx0 type vxlan id 7 dstport 8472 dev lo",
            "-n NODE link add br0 type bridge",
        ]);
        let one = |s: &Snapshot| (s.tunnel_ports == [8472].into()).then_some(());
        wait_for(&mut snapshots, "the tunnel's port", one).await;
        net.ip(&["-n NODE link add vx1 type vxlan id 8 dstport 4789 dev lo"]);
        let two = |s: &Snapshot| (s.tunnel_ports == [4789, 8472].into()).then_some(());
        wait_for(&mut snapshots, "both", two).await;
        net.ip(&["-n NODE link del vx0"]);
        let other = |s: &Snapshot| (s.tunnel_ports == [4789].into()).then_some(());
        wait_for(&mut snapshots, "the other one", other).await;
    });
}

/// Notifications that found no room at this process's socket for links and addresses in the present namespace.
fn lost_notifications() -> u64 {
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    // Columns: sk, protocol, port, groups, receive and send memory, dump, locks, drops, inode.
    let rows = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = rows.filter(|row| row[1] == "0" && row[3] == "00000111");
    own.map(|row| row[8].parse::<u64>().unwrap()).sum()
}

#[test]
fn after_lost_notifications_nothing_is_missing_and_nothing_is_left_over() {
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options { receive_buffer: 16 * 1024 }).await;
        net.ip(&[
            "-n NODE link add veth1 type veth peer name eth0 netns POD1",
            "-n POD1 addr add 10.7.0.5/24 dev eth0",
            "-n NODE link add gone type veth peer name gone0 netns POD2",
            "-n POD2 addr add 10.7.0.6/24 dev gone0",
        ]);
        let bound = wait_for_addresses(&mut snapshots, "veth1", &["10.7.0.5"]).await;
        wait_for_addresses(&mut snapshots, "gone", &["10.7.0.6"]).await;
        let mut lines = Vec::new();
        for i in 0..100 {
            lines.push(format!("link add passing{i} type bridge"));
            lines.push(format!("addr add 10.8.0.{i}/32 dev passing{i}"));
        }
        lines.extend((0..100).map(|i| format!("link del passing{i}")));
        lines.push("link del gone".to_owned());
        lines.push("link add veth2 type veth peer name eth0 netns POD2".to_owned());
        lines.push("link add br0 type bridge".to_owned());
        lines.push("addr add 10.7.0.1/24 dev br0".to_owned());
        assert_eq!(lost_notifications(), 0);
        net.ip_batch(&lines);
        net.ip(&["-n POD2 addr add 10.7.0.7/24 dev eth0"]);
        assert!(lost_notifications() > 0, "the test did not lose anything");

        wait_for_addresses(&mut snapshots, "veth2", &["10.7.0.7"]).await;
        let snapshot = fence(&net, &mut snapshots).await;
        let names: BTreeSet<&str> = snapshot.links.values().map(|link| link.name.as_str()).collect();
        assert_eq!(names, BTreeSet::from(["br0", "lo", "veth1", "veth2"]));
        let host: Vec<String> = snapshot.host_addresses.iter().map(ToString::to_string).collect();
        assert!(host.iter().any(|address| address == "10.7.0.1"), "{host:?}");
        assert!(!host.iter().any(|address| address.starts_with("10.8.")), "{host:?}");
        let after = named(&snapshot, "veth1").unwrap();
        assert_eq!((&after.peer, after.appeared), (&bound.peer, bound.appeared), "bound as before");
    });
}

#[test]
fn without_the_capability_it_says_which_one() {
    let net = Net::new();
    net.on_node(&[CAP_NET_ADMIN], || async {
        let error = Watcher::spawn(Options::default()).unwrap_err().to_string();
        assert!(error.contains("CAP_NET_ADMIN") && error.contains("NET_ADMIN]"), "{error}");
    });
}

#[test]
fn without_hints_from_the_pods_a_later_address_is_found_too() {
    let net = Net::new();
    net.on_node(&[CAP_NET_BROADCAST], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        net.ip(&["-n NODE link add veth1 type veth peer name eth0 netns POD1"]);
        wait_for(&mut snapshots, "veth1", |snapshot| named(snapshot, "veth1").map(drop)).await;
        net.ip(&["-n POD1 addr add 10.7.0.5/24 dev eth0"]);
        wait_for_addresses(&mut snapshots, "veth1", &["10.7.0.5"]).await;
    });
}

#[test]
fn a_late_address_is_seen_at_once_and_not_at_the_next_look() {
    const LINKS: u32 = 6;
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        net.ip_batch(
            &(0..LINKS)
                .map(|i| format!("link add v{i} type veth peer name e{i} netns POD1"))
                .collect::<Vec<_>>(),
        );
        for i in 0..LINKS {
            wait_for(&mut snapshots, "all links", |snapshot| named(snapshot, &format!("v{i}")).map(drop))
                .await;
        }
        // By now the looks are a second apart, so that by them alone six addresses in a row would each be seen within
        // 300 ms about once in 1,400 runs.
        tokio::time::sleep(Duration::from_millis(2600)).await;
        for i in 0..LINKS {
            net.ip(&[&format!("-n POD1 addr add 10.7.0.{i}/24 dev e{i}")]);
            let set = Instant::now();
            wait_for_addresses(&mut snapshots, &format!("v{i}"), &[&format!("10.7.0.{i}")]).await;
            assert!(set.elapsed() < Duration::from_millis(300), "v{i} after {:?}", set.elapsed());
        }
    });
}

/// Prints how long it takes; the limit is far above what is usual, for the machine may be busy.
#[test]
fn a_new_pod_is_known_within_milliseconds() {
    const RUNS: usize = 40;
    let net = Net::new();
    net.on_node(&[], || async {
        let (_watcher, mut snapshots) = started(Options::default()).await;
        let (mut from_start, mut from_end) = (Vec::new(), Vec::new());
        for i in 0..RUNS {
            let begun = Instant::now();
            // On another thread, so that the watcher runs meanwhile as it does on a real node.
            let link = format!("-n NODE link add v{i} type veth peer name e{i} netns POD1");
            let address = format!("-n POD1 addr add 10.7.0.{i}/24 dev e{i}");
            let commands = [link, address].map(|line| net.expand(&line));
            let finished = tokio::task::spawn_blocking(move || {
                for line in commands {
                    assert!(
                        Command::new("ip").args(line.split(' ')).status().unwrap().success(),
                        "ip {line}"
                    );
                }
                Instant::now()
            });
            let name = format!("v{i}");
            wait_for_addresses(&mut snapshots, &name, &[&format!("10.7.0.{i}")]).await;
            let seen = Instant::now();
            from_start.push(seen - begun);
            from_end.push(seen.saturating_duration_since(finished.await.unwrap()));
        }
        from_start.sort();
        from_end.sort();
        let (middle, last) = (RUNS / 2, RUNS - 1);
        println!(
            "from before `ip link add` to the snapshot: median {:?}, max {:?}",
            from_start[middle], from_start[last]
        );
        println!(
            "from the end of `ip addr add` to the snapshot: median {:?}, max {:?}",
            from_end[middle], from_end[last]
        );
        assert!(from_start[middle] < Duration::from_millis(500), "{from_start:?}");
    });
}
