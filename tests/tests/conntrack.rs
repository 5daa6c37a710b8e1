//! Connections that are older than their flows: what the kernel's conntrack knows of them is judged, and nothing is guessed
//! where it knows nothing.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::Pod as Plain;
use aya::maps::{HashMap, Map, MapData};
use portcullis::datapath::Reader;
use portcullis_common::flow::{Flow, FlowKey4, FlowKey6};
use portcullis_tests::command::run;
use portcullis_tests::node::{NODE, OUTSIDE};
use portcullis_tests::packets::flags;
use portcullis_tests::{
    Agent, Manifests, Namespace, Network, Node, Pod, PodObject, eventually, privileged_test,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// For what must work, if need be by a retransmission.
const SOON: Duration = Duration::from_secs(5);
/// For what must work without one: TCP sends again after 200 ms.
const AT_ONCE: Duration = Duration::from_millis(150);
/// For what must not work: long enough for some retransmissions.
const NEVER: Duration = Duration::from_millis(1500);

/// Addresses of a service in front of the database; the second one masquerades.
const VIP: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 96, 0, 1), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1));
const MASQUERADED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);

/// The database takes connections of the API only. The hermit opens none, and takes any.
const POLICIES: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: shop}
spec:
  subject: {serviceAccounts: {names: [db]}}
  ingress:
    rules:
    - name: api
      action: Accept
      from: [{serviceAccounts: {names: [api]}}]
      protocols: [{tcp: {destinationPort: {number: 5432}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: hermit, namespace: elsewhere}
spec: {podSelector: {matchLabels: {app: hermit}}, policyTypes: [Egress]}
";

/// The same, and nobody may use the database.
const DB_CLOSED: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: shop}
spec:
  subject: {serviceAccounts: {names: [db]}}
  ingress: {rules: []}
";

/// A node with the pods api, db, intruder and hermit, and the manifests that say so.
struct Shop {
    node: Node,
    manifests: Manifests,
}

impl Shop {
    fn new(network: Network) -> Result<Self> {
        let node = Node::with(network).pods(4).outside().build()?;
        let manifests = Manifests::new()?;
        let object = |namespace, name, index: usize| PodObject {
            namespace,
            name,
            account: name,
            addresses: (node.pods[index].v4, node.pods[index].v6),
            started: 1,
        };
        manifests.pods(
            "pods.yaml",
            &[
                object("shop", "api", 0),
                object("shop", "db", 1),
                object("elsewhere", "intruder", 2),
                object("elsewhere", "hermit", 3),
            ],
        )?;
        manifests.write("policies.yaml", POLICIES)?;
        Ok(Self { node, manifests })
    }

    /// With conntrack at work in the node's namespace, and the service in front of the database.
    fn tracked(network: Network) -> Result<Self> {
        let shop = Self::new(network)?;
        let db = &shop.node.pods[1];
        track(&shop.node.ns)?;
        let ns = &shop.node.ns;
        firewall(
            ns,
            "iptables",
            &format!(
                "-t nat -A PREROUTING -d {}/31 -p tcp --dport 80 -j DNAT --to-destination {}:5432",
                Ipv4Addr::new(10, 96, 0, 2),
                db.v4
            ),
        )?;
        firewall(
            ns,
            "iptables",
            &format!(
                "-t nat -A PREROUTING -d {} -p tcp --dport 80 -j DNAT --to-destination {}:5432",
                VIP.0, db.v4
            ),
        )?;
        firewall(
            ns,
            "iptables",
            &format!(
                "-t nat -A POSTROUTING -m conntrack --ctorigdst {MASQUERADED} -j SNAT --to-source {}",
                NODE.0
            ),
        )?;
        firewall(
            ns,
            "ip6tables",
            &format!(
                "-t nat -A PREROUTING -d {} -p tcp --dport 80 -j DNAT --to-destination [{}]:5432",
                VIP.1, db.v6
            ),
        )?;
        Ok(shop)
    }

    fn pods(&self) -> [&Pod; 4] {
        [0, 1, 2, 3].map(|index| &self.node.pods[index])
    }

    fn outside(&self) -> Result<&Namespace> {
        self.node.outside.as_ref().context("an outside")
    }

    fn agent<'a>(&'a self, args: &[&str]) -> Result<Agent<'a>> {
        Agent::on(&self.node.ns).manifests(self.manifests.path()).args(args.iter().copied()).start()
    }
}

/// Conntrack works in a namespace once a rule asks for its result.
fn track(ns: &Namespace) -> Result<()> {
    for tool in ["iptables", "ip6tables"] {
        firewall(ns, tool, "-A FORWARD -m conntrack --ctstate INVALID -j DROP")?;
        firewall(ns, tool, "-A OUTPUT -m conntrack --ctstate INVALID -j DROP")?;
    }
    Ok(())
}

fn firewall(ns: &Namespace, tool: &str, rule: &str) -> Result<()> {
    run(&mut ns.command(tool, ["-w"].into_iter().chain(rule.split_whitespace()))).map(drop)
}

/// Both ends of a TCP connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    what: String,
}

/// Who speaks.
#[derive(Clone, Copy, Debug)]
enum Speaker {
    Client,
    Server,
}

impl Pair {
    /// Opens a connection to an address that leads to `listen` in the server's namespace.
    fn open(client: &Namespace, to: SocketAddr, server: &Namespace, listen: SocketAddr) -> Result<Self> {
        let what = format!("from {} to {to}", client.label());
        let listener = server.run(|| Ok(TcpListener::bind(listen)?))?;
        let client = client
            .run(|| Ok(TcpStream::connect_timeout(&to, SOON)?))
            .with_context(|| format!("opening a connection {what}"))?;
        let (server, _) = listener.accept()?;
        let mut pair = Self { client, server, what };
        pair.talk(SOON)?;
        Ok(pair)
    }

    /// One byte, by whoever speaks.
    fn say(&mut self, speaker: Speaker, deadline: Duration) -> Result<()> {
        let (from, to) = match speaker {
            Speaker::Client => (&mut self.client, &mut self.server),
            Speaker::Server => (&mut self.server, &mut self.client),
        };
        let said = (|| {
            from.write_all(b"x")?;
            to.set_read_timeout(Some(deadline))?;
            to.read_exact(&mut [0])
        })();
        said.with_context(|| format!("the {speaker:?} of the connection {}", self.what))
    }

    /// One byte each way.
    fn talk(&mut self, deadline: Duration) -> Result<()> {
        self.say(Speaker::Client, deadline)?;
        self.say(Speaker::Server, deadline)
    }

    /// That nothing gets through, whoever speaks.
    fn is_cut(&mut self) -> Result<()> {
        for speaker in [Speaker::Client, Speaker::Server] {
            ensure!(self.say(speaker, NEVER).is_err(), "{speaker:?} got through: {}", self.what);
        }
        Ok(())
    }
}

fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(pod.v4.into(), port), SocketAddr::new(pod.v6.into(), port)]
}

fn outside_at(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(OUTSIDE.0.into(), port), SocketAddr::new(OUTSIDE.1.into(), port)]
}

/// Packets dropped for a reason.
fn dropped(agent: &Agent<'_>, reason: &str) -> Result<u64> {
    let (_, text) = agent.get("/metrics")?;
    let label = format!("reason=\"{reason}\"");
    let lines = text.lines().filter(|l| l.starts_with("portcullis_drops_total{") && l.contains(&label));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// Takes every flow out of the pinned tables, as if newer ones had pushed them out.
fn forget_flows(agent: &Agent<'_>, pod: &Pod) -> Result<()> {
    let local_be = u32::from_ne_bytes(pod.v4.octets());
    let found = Reader::open(agent.bpffs())?.endpoints()?;
    let slot =
        found.iter().find(|(_, endpoint)| endpoint.addr4_be.contains(&local_be)).map(|(slot, _)| *slot);
    let slot = slot.with_context(|| format!("no endpoint has {}", pod.v4))?;
    let folder = agent.bpffs().join(format!("v{}", portcullis_common::abi::ABI)).join("flows");
    let forgotten = forget::<FlowKey4>(&folder.join(format!("{slot}-4")))?
        + forget::<FlowKey6>(&folder.join(format!("{slot}-6")))?;
    ensure!(forgotten > 0, "there was no flow to forget at {}", pod.veth);
    Ok(())
}

fn forget<K: Plain>(pin: &std::path::Path) -> Result<usize> {
    let mut table: HashMap<MapData, K, Flow> = Map::LruHashMap(MapData::from_pin(pin)?).try_into()?;
    let keys: Vec<K> = table.keys().collect::<Result<_, _>>()?;
    for key in &keys {
        table.remove(key)?;
    }
    Ok(keys.len())
}

#[test]
fn permitted_connections_that_were_open_before_the_first_start_live_on_and_forbidden_ones_are_cut()
-> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, intruder, hermit] = shop.pods();
        let (node, outside) = (&shop.node.ns, shop.outside()?);
        let (mut permitted, mut forbidden) = (Vec::new(), Vec::new());
        for (index, at) in both(db, 5432).into_iter().enumerate() {
            let vip = SocketAddr::new([IpAddr::from(VIP.0), IpAddr::from(VIP.1)][index], 80);
            permitted.push(Pair::open(&api.ns, at, &db.ns, at)?);
            permitted.push(Pair::open(&api.ns, vip, &db.ns, at)?);
            permitted.push(Pair::open(node, at, &db.ns, at)?);
            forbidden.push(Pair::open(&intruder.ns, at, &db.ns, at)?);
            forbidden.push(Pair::open(&intruder.ns, vip, &db.ns, at)?);
            forbidden.push(Pair::open(outside, at, &db.ns, at)?);
        }
        let masqueraded = SocketAddr::new(MASQUERADED.into(), 80);
        permitted.push(Pair::open(&api.ns, masqueraded, &db.ns, both(db, 5432)[0])?);
        forbidden.push(Pair::open(&intruder.ns, masqueraded, &db.ns, both(db, 5432)[0])?);
        for at in outside_at(80) {
            permitted.push(Pair::open(&db.ns, at, outside, at)?);
            forbidden.push(Pair::open(&hermit.ns, at, outside, at)?);
        }
        for at in both(hermit, 80) {
            permitted.push(Pair::open(outside, at, &hermit.ns, at)?);
        }

        let agent = shop.agent(&[])?;
        for pair in &mut permitted {
            pair.talk(AT_ONCE)?;
        }
        ensure!(dropped(&agent, "no-flow")? == 0, "a permitted connection had to send again");
        for pair in &mut forbidden {
            pair.is_cut()?;
        }
        for pair in &mut permitted {
            pair.talk(AT_ONCE).context("after the others were cut")?;
        }
        let log = agent.logs();
        ensure!(log.contains("connections that were open before have been judged"), "the log says it");
        Ok(())
    })
}

#[test]
fn a_bridge_whose_traffic_is_not_tracked_is_not_guessed_about_and_what_is_routed_lives_on() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Bridged)?;
        let [api, db, _, hermit] = shop.pods();
        shop.node.ns.run(|| {
            for setting in ["iptables", "ip6tables"] {
                // Where the module is not there, nothing needs to be switched off.
                let path = format!("/proc/sys/net/bridge/bridge-nf-call-{setting}");
                if std::path::Path::new(&path).exists() {
                    std::fs::write(path, "0")?;
                }
            }
            Ok(())
        })?;
        let outside = shop.outside()?;
        let (mut permitted, mut untracked, mut forbidden) = (Vec::new(), Vec::new(), Vec::new());
        for at in both(db, 5432) {
            untracked.push(Pair::open(&api.ns, at, &db.ns, at)?);
        }
        for at in outside_at(80) {
            permitted.push(Pair::open(&db.ns, at, outside, at)?);
            forbidden.push(Pair::open(&hermit.ns, at, outside, at)?);
        }
        let agent = shop.agent(&[])?;
        for pair in &mut permitted {
            pair.talk(AT_ONCE)?;
        }
        for pair in untracked.iter_mut().chain(&mut forbidden) {
            pair.is_cut()?;
        }
        drop(agent);
        Ok(())
    })
}

#[test]
fn without_conntrack_nothing_is_guessed() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::new(Network::Routed)?;
        let [api, db, ..] = shop.pods();
        let mut older = Vec::new();
        for at in both(db, 5432) {
            older.push(Pair::open(&api.ns, at, &db.ns, at)?);
        }
        let agent = shop.agent(&[])?;
        for pair in &mut older {
            pair.is_cut()?;
        }
        for at in both(db, 5432) {
            let mut pair = Pair::open(&api.ns, at, &db.ns, at).context("a new one is let in")?;
            forget_flows(&agent, db)?;
            pair.is_cut()?;
        }
        Ok(())
    })
}

#[test]
fn a_permitted_connection_survives_the_loss_of_its_flow_whoever_speaks_first() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, _, hermit] = shop.pods();
        let outside = shop.outside()?;
        let agent = shop.agent(&["--log-level", "info,portcullis::controller=debug"])?;
        let masqueraded = SocketAddr::new(MASQUERADED.into(), 80);
        let [db4, db6] = both(db, 5432);
        let vips = [SocketAddr::new(VIP.0.into(), 80), SocketAddr::new(VIP.1.into(), 80)];
        let [hermit4, _] = both(hermit, 80);
        let [_, outside6] = outside_at(80);
        let mut pairs = [
            (Pair::open(&api.ns, masqueraded, &db.ns, db4)?, vec![api, db]),
            (Pair::open(&api.ns, vips[0], &db.ns, db4)?, vec![api, db]),
            (Pair::open(&api.ns, vips[1], &db.ns, db6)?, vec![api, db]),
            (Pair::open(&api.ns, db6, &db.ns, db6)?, vec![api, db]),
            (Pair::open(outside, hermit4, &hermit.ns, hermit4)?, vec![hermit]),
            (Pair::open(&db.ns, outside6, outside, outside6)?, vec![db]),
        ];
        for (pair, pods) in &mut pairs {
            for speaker in [Speaker::Client, Speaker::Server] {
                // At either end, and at both.
                for lost in pods.chunks(1).chain(pods.windows(2)) {
                    for pod in lost {
                        forget_flows(&agent, pod)?;
                    }
                    let before = dropped(&agent, "no-flow")?;
                    pair.say(speaker, SOON).with_context(|| agent.logs())?;
                    ensure!(dropped(&agent, "no-flow")? > before, "it was not lost: {}", pair.what);
                    pair.talk(AT_ONCE).context("once its flow is there again")?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_connection_that_lost_its_flow_is_judged_under_the_policy_of_now() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, ..] = shop.pods();
        let agent = shop.agent(&[])?;
        for at in both(db, 5432) {
            let mut pair = Pair::open(&api.ns, at, &db.ns, at)?;
            shop.manifests.write("policies.yaml", DB_CLOSED)?;
            eventually("the database to be closed", || pair.say(Speaker::Client, AT_ONCE).is_err())?;
            forget_flows(&agent, db)?;
            pair.is_cut()?;
            shop.manifests.write("policies.yaml", POLICIES)?;
            // What waited is sent again.
            eventually("the connection to go on", || {
                let _ = pair.server.set_read_timeout(Some(SOON));
                pair.server.read(&mut [0; 16]).is_ok_and(|length| length > 0)
            })?;
        }
        Ok(())
    })
}

#[test]
fn what_was_open_before_the_audit_is_judged_when_the_mode_becomes_enforce() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, intruder, _] = shop.pods();
        let (mut permitted, mut forbidden) = (Vec::new(), Vec::new());
        for at in both(db, 5432) {
            permitted.push(Pair::open(&api.ns, at, &db.ns, at)?);
            forbidden.push(Pair::open(&intruder.ns, at, &db.ns, at)?);
        }
        let config = |mode: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\n\
                 metadata: {{name: portcullis, namespace: portcullis-system}}\ndata: {{mode: {mode}}}\n"
            )
        };
        shop.manifests.write("config.yaml", &config("Audit"))?;
        let agent = shop.agent(&[])?;
        for pair in permitted.iter_mut().chain(&mut forbidden) {
            pair.talk(AT_ONCE)?;
        }
        // In audit they pass without a flow, too.
        forget_flows(&agent, db)?;
        shop.manifests.write("config.yaml", &config("Enforce"))?;
        let enforced = "portcullis_mode{mode=\"enforce\"} 1";
        eventually("the mode to be enforced", || {
            agent.get("/metrics").is_ok_and(|(_, text)| text.lines().any(|line| line == enforced))
        })?;
        for pair in &mut permitted {
            pair.talk(SOON)?;
        }
        for pair in &mut forbidden {
            pair.is_cut()?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_came_while_the_agent_was_dead_keeps_its_permitted_connections() -> Result<()> {
    privileged_test(|| {
        let mut shop = Shop::tracked(Network::Routed)?;
        let ns = Arc::clone(&shop.node.ns);
        let mut agent = Agent::on(&ns).manifests(shop.manifests.path()).start()?;
        agent.kill()?;
        let (v4, v6) = {
            let late = shop.node.add_pod()?;
            (late.v4, late.v6)
        };
        let object =
            PodObject { namespace: "shop", name: "late", account: "api", addresses: (v4, v6), started: 2 };
        shop.manifests.pods("late.yaml", &[object])?;
        let (late, outside) = (&shop.node.pods[4], shop.outside()?);
        let mut pairs = Vec::new();
        for at in outside_at(80) {
            pairs.push(Pair::open(&late.ns, at, outside, at)?);
        }
        for at in both(late, 80) {
            pairs.push(Pair::open(outside, at, &late.ns, at)?);
        }
        agent.restart()?;
        for pair in &mut pairs {
            pair.talk(AT_ONCE)?;
        }
        Ok(())
    })
}

/// Sends segments as they are told to be, and sees those that come from a port.
struct Raw {
    socket: Socket,
    local: Ipv4Addr,
}

impl Raw {
    fn new(ns: &Namespace, local: Ipv4Addr) -> Result<Self> {
        // The kernel knows nothing of these connections, and would end them.
        firewall(ns, "iptables", "-A OUTPUT -p tcp --tcp-flags RST RST -j DROP")?;
        let socket = ns.run(|| Ok(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?))?;
        Ok(Self { socket, local })
    }

    fn send(&self, from: u16, to: (Ipv4Addr, u16), flags: u8) -> Result<()> {
        let mut segment = [0_u8; 20];
        segment[0..2].copy_from_slice(&from.to_be_bytes());
        segment[2..4].copy_from_slice(&to.1.to_be_bytes());
        segment[4..8].copy_from_slice(&1000_u32.to_be_bytes());
        segment[8..12].copy_from_slice(&2000_u32.to_be_bytes());
        segment[12..16].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
        // Conntrack takes no segment with a wrong checksum.
        let pseudo = [&self.local.octets()[..], &to.0.octets(), &[0, 6, 0, 20], &segment].concat();
        let words = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.socket.send_to(&segment, &SockAddr::from(SocketAddr::new(to.0.into(), 0)))?;
        Ok(())
    }

    /// Whether a segment between these ports comes in time.
    fn sees(&self, from: u16, to: u16, deadline: Duration) -> Result<bool> {
        let until = Instant::now() + deadline;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left))?;
            let mut packet = [0; 2048];
            let Ok(length) = (&self.socket).read(&mut packet) else { continue };
            let segment = packet[..length].get(usize::from(packet[0] & 0x0f) * 4..).unwrap_or_default();
            if segment.len() >= 4 && segment[..2] == from.to_be_bytes() && segment[2..4] == to.to_be_bytes() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[test]
fn acknowledgements_alone_get_an_egress_denied_pod_nowhere_with_conntrack_at_work() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [.., hermit] = shop.pods();
        let agent = shop.agent(&[])?;
        let inside = Raw::new(&hermit.ns, hermit.v4)?;
        let outside = Raw::new(shop.outside()?, OUTSIDE.0)?;
        let before = dropped(&agent, "no-flow")?;
        for round in 0..3 {
            for _ in 0..5 {
                inside.send(7000, (OUTSIDE.0, 80), flags::ACK)?;
                // A friend outside helps: it is let in by a SYN, but these are none.
                outside.send(80, (hermit.v4, 7000), flags::ACK)?;
                inside.send(7001, (OUTSIDE.0, 80), flags::ACK | flags::FIN)?;
            }
            ensure!(!outside.sees(7000, 80, NEVER)?, "an ACK got out in round {round}");
            ensure!(!inside.sees(80, 7000, Duration::from_millis(1))?, "an ACK got in in round {round}");
        }
        ensure!(dropped(&agent, "no-flow")? >= before + 45, "all of them were seen and dropped");

        // With the switch off they pass, and conntrack takes them for connections, which it has not seen begin.
        agent.cli(["mode", "off"])?;
        inside.send(7000, (OUTSIDE.0, 80), flags::ACK)?;
        ensure!(outside.sees(7000, 80, SOON)?, "the switch lets everything pass");
        outside.send(80, (hermit.v4, 7000), flags::ACK)?;
        outside.send(80, (hermit.v4, 7002), flags::ACK)?;
        ensure!(inside.sees(80, 7002, SOON)?, "the switch lets everything pass");
        inside.send(7002, (OUTSIDE.0, 80), flags::ACK)?;
        ensure!(outside.sees(7002, 80, SOON)?, "the switch lets everything pass");
        let tracked = run(&mut shop.node.ns.command("cat", ["/proc/net/nf_conntrack"]))?;
        for port in [7000, 7002] {
            let known =
                tracked.lines().any(|l| l.contains("ESTABLISHED") && l.contains(&format!("={port} ")));
            ensure!(known, "conntrack took no segment of port {port} for a connection:\n{tracked}");
        }
        agent.cli(["mode", "clear"])?;
        for _ in 0..5 {
            for port in [7000, 7002] {
                inside.send(port, (OUTSIDE.0, 80), flags::ACK)?;
                outside.send(80, (hermit.v4, port), flags::ACK)?;
            }
        }
        ensure!(!outside.sees(7000, 80, NEVER)?, "conntrack's guess was believed");
        for _ in 0..5 {
            inside.send(7002, (OUTSIDE.0, 80), flags::ACK)?;
        }
        ensure!(!outside.sees(7002, 80, NEVER)?, "conntrack's guess about the opener was believed");
        Ok(())
    })
}
