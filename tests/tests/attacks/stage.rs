//! The node that all attacks happen on: the API, its database, and an intruder.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::command::run;
use portcullis_tests::node::NODE;
use portcullis_tests::packets::Packet;
use portcullis_tests::raw::{Raw, Tap};
use portcullis_tests::traffic::{Connection, Echo};
use portcullis_tests::{
    Agent, Manifests, Namespace, Network, Node, Pod, PodObject, eventually, privileged_test,
};

/// For what must work.
pub const SOON: Duration = Duration::from_secs(5);
/// The database's port that only the API may use.
pub const PRIVATE: u16 = 5432;
/// The database's port that everybody may use.
pub const PUBLIC: u16 = 80;

/// The database takes the API on its private port, and everybody on its public one. Nobody else is isolated.
const DB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{namespaceSelector: {}}]
    ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 80}]
";
/// The rest of it.
const PRIVATE_OF_API: &str = "  - from: [{podSelector: {matchLabels: {app: api}}}]
    ports: [{protocol: TCP, port: 5432}, {protocol: UDP, port: 5432}]
";

/// An address of the link layer.
pub type Mac = [u8; 6];

/// That of every listener of a link.
pub const EVERYBODY: Mac = [0xff; 6];
/// That of every IPv6 node of a link (`ff02::1`).
pub const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// The version of IP that an attack uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// A pod's address.
    pub fn of(self, pod: &Pod) -> IpAddr {
        self.pick((pod.v4, pod.v6))
    }

    /// The program for its filters.
    pub const fn tables(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// The node's address.
    pub fn node(self) -> IpAddr {
        self.pick(NODE)
    }

    /// One of two addresses.
    pub fn pick(self, both: (impl Into<IpAddr>, impl Into<IpAddr>)) -> IpAddr {
        match self {
            Self::V4 => both.0.into(),
            Self::V6 => both.1.into(),
        }
    }
}

/// The node with its agent, and what is permitted going on.
pub struct Stage<'a> {
    pub network: Network,
    pub node: &'a Node,
    manifests: &'a Manifests,
    pub agent: Agent<'a>,
    /// Open connections of the API to the database, one each family.
    permitted: Vec<Connection>,
    /// The database's servers at its private port.
    private: Vec<Echo>,
    /// Those at its public port.
    _public: Vec<Echo>,
}

/// What the agent is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    UntilReady,
    /// It does not become ready.
    No,
}

/// Plays on a node, to which something is done before the agent comes.
pub fn on_stage(
    network: Network,
    prepare: impl FnOnce(&Node) -> Result<()>,
    wait: Wait,
    play: impl FnOnce(&mut Stage<'_>) -> Result<()>,
) -> Result<()> {
    privileged_test(|| {
        let node = Node::with(network).pods(3).build()?;
        let manifests = Manifests::new()?;
        let object = |namespace, name, index: usize| PodObject::of(namespace, name, &node.pods[index]);
        let pods = [object("shop", "api", 0), object("shop", "db", 1), object("elsewhere", "intruder", 2)];
        manifests.pods("pods.yaml", &pods)?;
        prepare(&node)?;
        play(&mut Stage::open(network, &node, &manifests, wait)?)
    })
}

impl<'a> Stage<'a> {
    fn open(network: Network, node: &'a Node, manifests: &'a Manifests, wait: Wait) -> Result<Self> {
        manifests.write("db.yaml", &policy(true))?;
        let db = &node.pods[1];
        let agent = Agent::on(&node.ns).manifests(manifests.path());
        let agent = if wait == Wait::UntilReady { agent.start()? } else { agent.spawn()? };
        let (mut private, mut public) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            let at = SocketAddr::new(family.of(db), PRIVATE);
            private.extend([db.ns.tcp_echo(at)?, db.ns.udp_echo(at)?]);
            public.push(db.ns.udp_echo(SocketAddr::new(at.ip(), PUBLIC))?);
        }
        Ok(Self { network, node, manifests, agent, permitted: Vec::new(), private, _public: public })
    }

    /// Begins an attack, with connections of its own, and nothing that pods believe of the link since the one before.
    pub fn begin(&mut self) -> Result<()> {
        let [api, db, intruder] = self.pods();
        for ns in [&api.ns, &db.ns, &intruder.ns, &*self.node.ns] {
            ns.ip("neigh flush all")?;
        }
        api.ns.ip("route flush cache")?;
        run(&mut api.ns.command("ip", ["-6", "route", "flush", "cache"]))?;
        run(&mut api.ns.command("ip", ["-6", "route", "flush", "proto", "ra"]))?;
        let connect = |family: Family| api.ns.tcp_connect(SocketAddr::new(family.of(db), PRIVATE), SOON);
        self.permitted = Family::BOTH.into_iter().map(connect).collect::<Result<_>>()?;
        Ok(())
    }

    /// The API, the database and the intruder.
    pub fn pods(&self) -> [&'a Pod; 3] {
        let pods = &self.node.pods;
        [&pods[0], &pods[1], &pods[2]]
    }

    /// That what is permitted works: the API at the database, over connections that are open and new flows, and the intruder
    /// where it is let in.
    pub fn goes_on(&mut self) -> Result<()> {
        self.api_goes_on()?;
        self.intruder_goes_on()
    }

    /// That the intruder works where it is let in.
    pub fn intruder_goes_on(&self) -> Result<()> {
        let [_, db, intruder] = self.pods();
        for family in Family::BOTH {
            let at = SocketAddr::new(family.of(db), PUBLIC);
            intruder.ns.udp_exchange(at, SOON).with_context(|| format!("the intruder at {at}"))?;
        }
        Ok(())
    }

    /// That the API works.
    pub fn api_goes_on(&mut self) -> Result<()> {
        let [api, db, _] = self.pods();
        for (family, connection) in Family::BOTH.into_iter().zip(&mut self.permitted) {
            let at = SocketAddr::new(family.of(db), PRIVATE);
            connection.exchange(SOON).with_context(|| format!("the connection of the API to {at}"))?;
            api.ns.udp_exchange(at, SOON).with_context(|| format!("the API at {at} over UDP"))?;
        }
        Ok(())
    }

    /// The API's connection of a family to the database.
    pub fn connection(&mut self, family: Family) -> &mut Connection {
        &mut self.permitted[usize::from(family == Family::V6)]
    }

    /// The API's port of that connection.
    pub fn port(&self, family: Family) -> Result<u16> {
        Ok(self.permitted[usize::from(family == Family::V6)].local_addr()?.port())
    }

    /// Resets the API's connections.
    pub fn hang_up(&mut self) -> Result<()> {
        self.permitted.drain(..).try_for_each(|connection| Ok(connection.reset()?))
    }

    /// Opens the database's private port to the API, or closes it.
    pub fn open_private_port(&self, open: bool) -> Result<()> {
        self.changes(|manifests| manifests.write("db.yaml", &policy(open)))
    }

    /// Changes the manifests, and waits until the change is in force.
    pub fn changes(&self, change: impl FnOnce(&Manifests) -> Result<()>) -> Result<()> {
        let written = || -> Result<u64> {
            let (_, text) = self.agent.get("/metrics")?;
            let line =
                text.lines().find_map(|line| line.strip_prefix("portcullis_programming_seconds_count "));
            Ok(line.context("the number of changes")?.trim().parse()?)
        };
        let before = written()?;
        change(self.manifests)?;
        eventually("the change to be programmed", || written().is_ok_and(|now| now > before))
    }

    /// Connections and bytes that the database took at its private port.
    pub fn heard(&self) -> u64 {
        self.private.iter().map(|server| server.connections() + server.received()).sum()
    }

    /// Addresses a packet of a pod on the link, to a neighbour or, without one, to the node. Where pods are routed the way to
    /// all others is by the node.
    pub fn on_link(&self, sender: &Pod, to: Option<&Pod>, packet: Packet) -> Result<Packet> {
        let next = match (self.network, to) {
            (Network::Routed, _) => self.node.ns.mac(&sender.veth)?,
            (Network::Bridged, Some(pod)) => pod.ns.mac("eth0")?,
            (Network::Bridged, None) => self.node.ns.mac("cni0")?,
        };
        Ok(packet.from_mac(sender.ns.mac("eth0")?).to_mac(next).checksummed())
    }

    /// Sends frames, and waits until as many of them as there are in `reasons` were dropped, each for its own. None may come
    /// by the tap, and the database hears nothing at its private port.
    pub fn repelled(
        &self,
        sender: &Pod,
        frames: &[Vec<u8>],
        reasons: &[(&str, u64)],
        tap: &mut Tap,
    ) -> Result<()> {
        let dropped =
            || reasons.iter().map(|(reason, _)| self.agent.dropped(reason)).collect::<Result<Vec<_>>>();
        let (before, heard) = (dropped()?, self.heard());
        send(sender, frames)?;
        let mut since = Vec::new();
        let all = eventually("the drops", || {
            let Ok(now) = dropped() else { return false };
            since = now.iter().zip(&before).map(|(now, before)| now - before).collect();
            since.iter().zip(reasons).all(|(since, (_, wanted))| since >= wanted)
        });
        let exact = since.iter().zip(reasons).all(|(since, (_, wanted))| since == wanted);
        ensure!(all.is_ok() && exact, "dropped were {since:?}, and not {reasons:?}");
        for frame in frames {
            ensure!(!tap.saw(frame)?, "the victim got {frame:02x?}");
        }
        ensure!(self.heard() == heard, "the database heard something");
        Ok(())
    }

    /// That the same frames come by the tap when nothing is enforced.
    pub fn arrives_with_the_switch_off(&self, sender: &Pod, frames: &[Vec<u8>], tap: &mut Tap) -> Result<()> {
        self.with_the_switch_off(|| {
            send(sender, frames)?;
            frames.iter().try_for_each(|frame| {
                eventually(&format!("the frame {frame:02x?}"), || tap.saw(frame).unwrap_or(false))
            })
        })
    }

    /// Does something while nothing is enforced: that an attack then succeeds shows that it is one.
    pub fn with_the_switch_off(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        self.agent.cli(["mode", "off"])?;
        act().context("with the switch off")?;
        self.agent.cli(["mode", "clear"])?;
        Ok(())
    }
}

/// The database's policy, with its private port open to the API or closed.
fn policy(open: bool) -> String {
    format!("{DB}{}", if open { PRIVATE_OF_API } else { "" })
}

/// Sends frames at a pod's interface.
pub fn send(sender: &Pod, frames: &[Vec<u8>]) -> Result<()> {
    sender.ns.run(|| {
        let mut raw = Raw::open("eth0", false)?;
        frames.iter().try_for_each(|frame| raw.send(frame))
    })
}

/// Runs `ip` inside a namespace and returns what it shows.
pub fn shown(ns: &Namespace, command: &str) -> Result<String> {
    run(&mut ns.command("ip", command.split(' ')))
}
