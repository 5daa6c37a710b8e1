//! The shop as network namespaces: pods at the addresses of their manifests, hosts outside, and servers on all of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use portcullis_tests::traffic::Echo;
use portcullis_tests::{Namespace, Network, Node, node};

use super::expectations::{Expectations, Outside, Port, Protocol};
use super::manifests::{Manifests, PodManifest};
use crate::interrupt;

/// Somebody with addresses who sends and receives.
#[derive(Debug)]
pub struct Place {
    pub name: String,
    /// Service account; empty if it is no pod.
    pub account: String,
    /// How counters call it: `shop/web`, `host`, `world`.
    pub principal: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    host: Host,
}

/// Whose namespace it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    Node,
    Outside,
    /// By its number among the node's pods.
    Pod(usize),
}

impl Place {
    /// The address of a family.
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    /// Whose namespace it is.
    pub const fn host(&self) -> Host {
        self.host
    }
}

/// Everybody, and the servers.
#[derive(Debug)]
pub struct Shop {
    /// First, so that they end before their namespaces go.
    servers: BTreeMap<(Host, Port), Echo>,
    pub places: Vec<Place>,
    pub node: Node,
}

impl Shop {
    /// Makes the namespaces and starts the servers.
    pub fn open(manifests: &Manifests, expectations: &Expectations, network: Network) -> Result<Self> {
        let node = Node::with(network).outside().build()?;
        let mut shop = Self { servers: BTreeMap::new(), places: vec![node_place()], node };
        for outside in &expectations.outside {
            shop.add_outside(outside)?;
        }
        for pod in &manifests.pods {
            interrupt::check()?;
            shop.add_pod(pod)?;
        }
        let hosts: Vec<Host> = shop.places.iter().map(|place| place.host).collect();
        for host in hosts {
            for port in &expectations.serve {
                shop.serve(host, *port)?;
            }
        }
        Ok(shop)
    }

    fn add_outside(&mut self, outside: &Outside) -> Result<()> {
        let Outside { name, addresses: (v4, v6) } = outside;
        if (*v4, *v6) != node::OUTSIDE {
            let ns = self.ns(Host::Outside)?;
            // Deprecated: answers of the first host must not get the second one's address as their source.
            ns.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad preferred_lft 0"))?;
        }
        self.places.push(Place {
            name: name.clone(),
            account: String::new(),
            principal: "world".to_owned(),
            v4: *v4,
            v6: *v6,
            host: Host::Outside,
        });
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodManifest) -> Result<()> {
        let PodManifest { namespace, name, account, addresses } = pod;
        let &[IpAddr::V4(v4), IpAddr::V6(v6)] = addresses.as_slice() else {
            bail!("pod {namespace}/{name} needs an IPv4 and an IPv6 address, in this order");
        };
        let host = Host::Pod(self.node.pods.len());
        self.node.add_pod_with(v4, v6).with_context(|| format!("making pod {namespace}/{name}"))?;
        self.places.push(Place {
            name: name.clone(),
            account: account.clone(),
            principal: format!("{namespace}/{account}"),
            v4,
            v6,
            host,
        });
        Ok(())
    }

    fn serve(&mut self, host: Host, port: Port) -> Result<()> {
        if self.servers.contains_key(&(host, port)) {
            return Ok(());
        }
        // One socket for both families.
        let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port.number);
        let ns = self.ns(host)?;
        let server = match port.protocol {
            Protocol::Tcp => ns.tcp_echo(at),
            Protocol::Udp => ns.udp_echo(at),
            Protocol::Icmp => return Ok(()),
        };
        self.servers
            .insert((host, port), server.with_context(|| format!("serving {port} in {}", ns.label()))?);
        Ok(())
    }

    /// The server of a place.
    pub fn server(&self, place: &Place, port: Port) -> Result<&Echo> {
        self.servers.get(&(place.host, port)).with_context(|| format!("{} does not serve {port}", place.name))
    }

    /// The network namespace of a place.
    pub fn ns(&self, host: Host) -> Result<&Namespace> {
        match host {
            Host::Node => Ok(&self.node.ns),
            Host::Outside => self.node.outside.as_ref().context("the node has no outside"),
            Host::Pod(number) => Ok(&self.node.pods.get(number).context("no such pod")?.ns),
        }
    }

    /// The place of this name, or every pod of the service account of this name.
    pub fn find(&self, name: &str) -> Result<Vec<&Place>> {
        let found: Vec<&Place> =
            self.places.iter().filter(|place| place.name == name || place.account == name).collect();
        if found.is_empty() {
            bail!("the expectations speak of `{name}`, which is neither a pod, an account nor a host");
        }
        Ok(found)
    }

    /// The only place of this name.
    pub fn find_one(&self, name: &str) -> Result<&Place> {
        match self.find(name)?.as_slice() {
            [one] => Ok(one),
            _ => bail!("`{name}` is more than one pod"),
        }
    }
}

fn node_place() -> Place {
    Place {
        name: "node".to_owned(),
        account: String::new(),
        principal: "host".to_owned(),
        v4: node::NODE.0,
        v6: node::NODE.1,
        host: Host::Node,
    }
}
