//! A node with one pod, as small as can be: a network namespace for this thread, one behind it for the pod, a veth
//! between them, and the real datapath with its own folder in bpffs. Everything goes when it is dropped, also by a panic.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use portcullis::datapath::{self, AttachMode, Datapath, EndpointSpec, Options, Sizes};
use portcullis::policy::{Desired, Function, Names, PodIdentity, RowSet};
use portcullis::state::{EndpointState, FORMAT, PolicyState, ProblemState, SourceState, State};
use portcullis_common::abi::Mode;
use portcullis_common::policy::protocol::TCP;
use portcullis_common::policy::{Decision, PortKey, wildcard_of};
use portcullis_common::{Direction, Identity, Kind, Reason, Verdict};

/// The node's side of the veth.
pub const HOST: &str = "10.77.0.1";
/// The pod's address.
pub const POD: &str = "10.77.0.2";

/// Namespaces, folders and the datapath.
pub struct Node {
    pub bpffs: PathBuf,
    pub run_dir: PathBuf,
    /// `None` once the agent is dead.
    pub datapath: Option<Datapath>,
    pub ifindex: u32,
    namespace: String,
}

/// A process that has just been forked holds a copy of every descriptor, and so of an agent's lock, until it runs its
/// own program. Whoever starts a process or ends an agent holds this, so that an agent's end frees its lock.
static FORKS: Mutex<()> = Mutex::new(());

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = {
        let _alone = FORKS.lock().unwrap_or_else(PoisonError::into_inner);
        command.spawn()
    };
    started.unwrap().wait_with_output().unwrap()
}

/// Ends an agent; what it wrote stays.
pub fn end(datapath: Option<Datapath>) {
    let _alone = FORKS.lock().unwrap_or_else(PoisonError::into_inner);
    drop(datapath);
}

fn run(program: &str, args: &[&str]) {
    let output = finish(Command::new(program).args(args));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", args.join(" "));
}

impl Node {
    /// A node in a new network namespace, which this thread enters.
    pub fn new() -> Self {
        Self::attached_by(AttachMode::Auto)
    }

    /// As [`Node::new`], with the programs attached in this way.
    pub fn attached_by(attach: AttachMode) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pccli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // SAFETY: no memory is involved; only this thread changes its network namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "unshare: {} (this test needs root)", std::io::Error::last_os_error());
        let mut node = Self {
            bpffs: PathBuf::from("/sys/fs/bpf").join(&name),
            run_dir: std::env::temp_dir().join(&name),
            datapath: None,
            ifindex: 0,
            namespace: name.clone(),
        };
        std::fs::create_dir_all(&node.run_dir).unwrap();
        run("ip", &["netns", "add", &name]);
        run("ip", &["link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", &name]);
        run("ip", &["addr", "add", &format!("{HOST}/24"), "dev", "pod0"]);
        run("ip", &["link", "set", "pod0", "up"]);
        run("ip", &["-n", &name, "addr", "add", &format!("{POD}/24"), "dev", "eth0"]);
        run("ip", &["-n", &name, "link", "set", "eth0", "up"]);
        let index = finish(Command::new("ip").args(["-o", "link", "show", "pod0"]));
        let index = String::from_utf8(index.stdout).unwrap();
        node.ifindex = index.split(':').next().unwrap().parse().unwrap();
        node.start(attach);
        node.state().write(&node.run_dir).unwrap();
        node
    }

    /// Starts the agent, also after another one on the same maps.
    pub fn start(&mut self, attach: AttachMode) {
        let sizes = Sizes {
            ipcache_size: 16,
            cidrs_size: 16,
            services_size: 16,
            subjects_size: 16,
            rows_size: 64,
            ports_size: 64,
            counters_size: 16,
            flows_size: 64,
        };
        let options =
            Options { bpffs: self.bpffs.clone(), attach, sizes, sample: 0, event_rate: 10, new_flow_rate: 0 };
        let mut datapath = Datapath::open(options).unwrap();
        let endpoint = EndpointSpec {
            ifindex: self.ifindex,
            name: "pod0".into(),
            master: None,
            mac: None,
            pod: Some("uid".into()),
            addresses: vec![address(POD)],
            unknown: Verdict::Deny,
        };
        let applied = datapath.apply(&desired(), &[endpoint], Mode::Enforce, std::iter::empty()).unwrap();
        assert!(applied.errors.is_empty(), "{:?}", applied.errors);
        self.datapath = Some(datapath);
    }

    /// Ends the agent; what it wrote stays.
    pub fn kill(&mut self) {
        end(self.datapath.take());
    }

    /// What the agent would have written.
    pub fn state(&self) -> State {
        let endpoint = EndpointState {
            ifindex: self.ifindex,
            interface: "pod0".into(),
            pod: Some("shop/db-0".into()),
            principal: "shop/db".into(),
            addresses: vec![address(POD)],
            ..EndpointState::default()
        };
        State {
            format: FORMAT,
            version: "0.0.0-test".into(),
            node: "node-1".into(),
            pid: std::process::id(),
            last_success: 1,
            attach: "tcx".into(),
            mode: "enforce".into(),
            source: SourceState { name: "manifests /m".into(), synced: true, ..SourceState::default() },
            principals: BTreeMap::from([(16, "shop/db".into())]),
            peers: BTreeMap::from([(20, "pods of shop/db".into())]),
            subjects: BTreeMap::from([(1, "pods that shop/db selects".into())]),
            rules: BTreeMap::from([(7, "IdentityPolicy shop/db ingress api".into())]),
            pods: BTreeMap::from([(address(POD), "shop/db-0".into())]),
            endpoints: vec![endpoint],
            policies: vec![PolicyState {
                kind: "IdentityPolicy".into(),
                namespace: "shop".into(),
                name: "db".into(),
                mode: "Enforce".into(),
                directions: vec!["ingress".into()],
                pods: 1,
            }],
            problems: vec![ProblemState {
                object: "IdentityPolicy shop/db".into(),
                field: "spec.egress".into(),
                message: "not understood".into(),
            }],
            ..State::default()
        }
    }

    /// What `tc` says of the pod's interface, or does to it: `filter show dev pod0 ingress`.
    pub fn tc(words: &[&str]) -> String {
        let output = finish(Command::new("tc").args(words));
        assert!(output.status.success(), "tc {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Takes every filter off the pod's interface.
    pub fn delete_filters(&self) {
        run("tc", &["qdisc", "del", "dev", "pod0", "clsact"]);
        assert!(self.datapath.is_none(), "a running agent would put them back");
    }

    /// The node sends a packet to the pod.
    pub fn send_to_pod() {
        let socket = std::net::UdpSocket::bind((HOST, 0)).unwrap();
        socket.send_to(b"hello", (POD, 7777)).unwrap();
    }

    /// The pod sends a packet to the node.
    pub fn pod_to_node(&self) {
        let script = format!("echo hello > /dev/udp/{HOST}/9999");
        run("nsenter", &[&format!("--net=/run/netns/{}", self.namespace), "bash", "-c", &script]);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let cleaned = datapath::cleanup(&self.bpffs);
        let _ = std::fs::remove_dir_all(&self.run_dir);
        let deleted = finish(Command::new("ip").args(["netns", "del", &self.namespace]));
        if !std::thread::panicking() {
            cleaned.unwrap();
            assert!(deleted.status.success());
            assert!(!self.bpffs.exists());
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One pod, shop/db: from other pods only TCP port 80 comes in, by rule 7; to the node it may not go.
fn desired() -> Desired {
    let allow = Decision::new(Verdict::Allow, Reason::Default);
    let deny = Decision::new(Verdict::Deny, Reason::Policy);
    let by_rule = Decision { verdict: Verdict::Allow, reason: Reason::Policy, rule: 7 };
    let mut rows = RowSet::new();
    for &direction in Direction::ALL {
        for kind in Kind::ALL {
            rows.insert((direction, wildcard_of(kind)), Arc::new(Function::constant(allow)));
        }
    }
    let port80 = [(PortKey::FIRST, deny), (PortKey::new(TCP, 80), by_rule), (PortKey::new(TCP, 81), deny)];
    rows.insert((Direction::Ingress, wildcard_of(Kind::Pod)), Arc::new(Function::new(port80).unwrap()));
    rows.insert((Direction::Egress, wildcard_of(Kind::Host)), Arc::new(Function::constant(deny)));
    let pod = PodIdentity {
        name: "shop/db-0".into(),
        principal: 16,
        subject: 1,
        addresses: vec![address(POD)],
        routes: false,
    };
    Desired {
        ipcache: BTreeMap::from([
            (address(POD), Identity::new(16, 20, Kind::Pod)),
            (address(HOST), Identity::new(Kind::Host.principal(), 21, Kind::Host)),
        ]),
        cidrs: BTreeMap::from([
            ("0.0.0.0/0".parse().unwrap(), Identity::WORLD),
            ("::/0".parse().unwrap(), Identity::WORLD),
        ]),
        subjects: BTreeMap::from([(1, Arc::new(rows))]),
        pods: BTreeMap::from([("uid".into(), pod)]),
        names: Names::default(),
        ..Desired::default()
    }
}
