//! A pod that tells its neighbours about routes and paths what only routers may say.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use anyhow::{Context, Result, ensure};
use portcullis_tests::packets::Packet;
use portcullis_tests::raw::Tap;
use portcullis_tests::{Namespace, Network, Pod, eventually};

use super::stage::{ALL_NODES, Family, PRIVATE, PUBLIC, Stage, send, shown};

/// Addresses that the API has a router for.
const FAR: (&str, &str) = ("198.51.100.1", "2001:db8:f::1");

/// The link-local address of an interface.
fn link_local(ns: &Namespace, interface: &str) -> Result<Ipv6Addr> {
    let text = shown(ns, &format!("-6 -o addr show dev {interface} scope link"))?;
    let address = text.split_whitespace().skip_while(|word| *word != "inet6").nth(1);
    let address = address.and_then(|address| address.split('/').next());
    Ok(address.with_context(|| format!("a link-local address in: {text}"))?.parse()?)
}

/// The router of the pods, as IPv4 and IPv6 know it.
fn router(stage: &Stage<'_>) -> Result<(&'static str, Ipv6Addr)> {
    match stage.network {
        Network::Routed => Ok(("169.254.1.1", "fe80::1".parse()?)),
        Network::Bridged => Ok(("10.77.0.1", link_local(&stage.node.ns, "cni0")?)),
    }
}

/// Redirects that lead the API's packets to the intruder, from the router and from the intruder itself.
fn redirects(stage: &Stage<'_>) -> Result<Vec<Packet>> {
    let [api, _, intruder] = stage.pods();
    let (router4, router6) = router(stage)?;
    let own = link_local(&intruder.ns, "eth0")?;
    let [api4, api6] = [api.v4.to_string(), api.v6.to_string()];
    // Of an answer to an echo the kernel believes it without a socket.
    let about = Packet::echo(&api4, FAR.0, false, 7).ip();
    let mut body = own.octets().to_vec();
    body.extend(FAR.1.parse::<Ipv6Addr>()?.octets());
    body.extend([2, 1]);
    body.extend(intruder.ns.mac("eth0")?);
    let v4 = |from: &str| Packet::icmp(from, &api4, 5, 1, intruder.v4.octets(), &about);
    let v6 = |from: Ipv6Addr| Packet::icmp(&from.to_string(), &api6, 137, 0, [0; 4], &body);
    let packets = [v4(router4), v4(&intruder.v4.to_string()), v6(router6), v6(own)];
    packets.into_iter().map(|packet| stage.on_link(intruder, Some(api), packet)).collect()
}

/// Advertisements that make the intruder a router, to the API and to everybody.
fn advertisements(stage: &Stage<'_>) -> Result<Vec<Packet>> {
    let [api, _, intruder] = stage.pods();
    let own = link_local(&intruder.ns, "eth0")?.to_string();
    // For half an hour; the two timers are not said.
    let mut body = vec![0; 8];
    body.extend([1, 1]);
    body.extend(intruder.ns.mac("eth0")?);
    let v6 = |to: &str| Packet::icmp(&own, to, 134, 0, [64, 0, 0x07, 0x08], &body);
    let v4 = Packet::icmp(&intruder.v4.to_string(), "224.0.0.1", 9, 0, [1, 2, 0x07, 0x08], &[0; 8]);
    Ok(vec![
        stage.on_link(intruder, Some(api), v6(&api.v6.to_string()))?,
        stage.on_link(intruder, Some(api), v6("ff02::1"))?.to_mac(ALL_NODES),
        stage.on_link(intruder, Some(api), v4)?.to_mac([1, 0, 0x5e, 0, 0, 1]),
    ])
}

/// What a pod knows of ways.
fn routes(pod: &Pod) -> Result<String> {
    let asked = ["route show", "-6 route show"].map(str::to_owned);
    let asked = asked.into_iter().chain([FAR.0, FAR.1].map(|far| format!("route get {far}")));
    asked.map(|command| shown(&pod.ns, &command)).collect()
}

pub fn redirects_and_router_advertisements_of_a_pod_change_nobodys_routes(
    stage: &mut Stage<'_>,
) -> Result<()> {
    let [api, _, intruder] = stage.pods();
    if stage.network == Network::Bridged {
        // By the router's link-local address, as routers say it: only such a route can be redirected.
        let via = router(stage)?.1;
        api.ns.ip(&format!("route add 2001:db8:f::/64 via {via} dev eth0"))?;
    }
    let mut tap = Tap::at(&api.ns, "eth0")?;
    let packets = [redirects(stage)?, advertisements(stage)?].concat();
    let frames: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    let before = routes(api)?;
    stage.repelled(intruder, &frames, &[("forbidden-icmp", frames.len() as u64)], &mut tap)?;
    ensure!(routes(api)? == before, "the routes were\n{before}and are\n{}", routes(api)?);
    stage.goes_on()?;
    if stage.network == Network::Routed {
        // The node is no host to be redirected, and forwards nothing of a link.
        return Ok(());
    }
    let (own4, own6) = (intruder.v4.to_string(), link_local(&intruder.ns, "eth0")?.to_string());
    stage.with_the_switch_off(|| {
        for (far, by) in [(FAR.0, &own4), (FAR.1, &own6)] {
            eventually(&format!("the API's packets to {far} to be led to the intruder"), || {
                // The first redirect makes the API ask where the intruder is.
                send(intruder, &frames).is_ok()
                    && shown(&api.ns, &format!("route get {far}"))
                        .is_ok_and(|way| way.contains(&format!("via {by} ")))
            })?;
        }
        eventually("the intruder to be a router", || {
            shown(&api.ns, "-6 route show default").is_ok_and(|routes| routes.contains(&own6))
        })
    })
}

/// What the intruder says is too big a packet: one of a pod to an address, from and to these ports.
fn too_big(
    stage: &Stage<'_>,
    family: Family,
    from: IpAddr,
    pod: (&Pod, u16),
    to: (IpAddr, u16),
) -> Result<Vec<u8>> {
    let [.., intruder] = stage.pods();
    let address = family.of(pod.0).to_string();
    let about = Packet::udp(&address, pod.1, &to.0.to_string(), to.1).checksummed().ip();
    let mtu = narrow(family).to_be_bytes();
    let (kind, code) = if family == Family::V4 { (3, 4) } else { (2, 0) };
    let packet = Packet::icmp(&from.to_string(), &address, kind, code, mtu, &about);
    Ok(stage.on_link(intruder, Some(pod.0), packet)?.bytes())
}

/// An MTU that a path can have.
fn narrow(family: Family) -> u32 {
    if family == Family::V4 { 1000 } else { 1280 }
}

/// A pod's socket that talks with an address.
fn talking(pod: &Pod, family: Family, to: (IpAddr, u16)) -> Result<UdpSocket> {
    pod.ns.run(|| {
        let socket = UdpSocket::bind((family.of(pod), 0))?;
        socket.connect(to)?;
        socket.send(b"portcullis")?;
        Ok(socket)
    })
}

/// Whether a pod believes that the way to an address is narrow.
fn is_narrow(pod: &Pod, family: Family, to: IpAddr) -> Result<bool> {
    Ok(shown(&pod.ns, &format!("route get {to}"))?.contains(&format!("mtu {}", narrow(family))))
}

pub fn a_pod_narrows_no_path_of_others(stage: &mut Stage<'_>) -> Result<()> {
    let [api, db, intruder] = stage.pods();
    let mut tap = Tap::at(&api.ns, "eth0")?;
    for family in Family::BOTH {
        let (database, own) = ((family.of(db), PRIVATE), (family.of(intruder), PUBLIC));
        let socket = talking(api, family, database)?;
        let port = socket.local_addr()?.port();
        let by_itself = too_big(stage, family, own.0, (api, port), database)?;
        let as_the_database = too_big(stage, family, database.0, (api, port), database)?;
        // A flow that there is not, but could be.
        let unknown = too_big(stage, family, own.0, (api, port), own)?;
        let frames = [by_itself.clone(), as_the_database, unknown];
        let reasons = [("forbidden-icmp", 2), ("spoofed-source", 1)];
        stage.repelled(intruder, &frames, &reasons, &mut tap)?;
        for to in [database.0, own.0] {
            ensure!(!is_narrow(api, family, to)?, "the way to {to} became narrow");
        }

        // Of its own conversations it may say so.
        let _server = intruder.ns.udp_echo(own.into())?;
        let own_socket = talking(api, family, own)?;
        let related = too_big(stage, family, own.0, (api, own_socket.local_addr()?.port()), own)?;
        send(intruder, &[related])?;
        eventually("the way to the intruder to be narrow", || {
            is_narrow(api, family, own.0).unwrap_or(false)
        })?;
        stage.goes_on()?;

        stage.arrives_with_the_switch_off(intruder, &[by_itself], &mut tap)?;
        eventually("the way to the database to be narrow", || {
            is_narrow(api, family, database.0).unwrap_or(false)
        })?;
    }
    Ok(())
}
