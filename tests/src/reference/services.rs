//! What follows from a service's endpoints, each policy state asked for itself.

use std::net::IpAddr;

use portcullis::model::{Pod, Service, ServicePort, World};
use portcullis_common::{Direction, Verdict};

use super::{End, Owner, Question, identity};

/// The verdict about a flow of `subject` to a port of a service, by an address of this IP version. `keeps_source`: the
/// proxy leaves the pod's own address on what goes there.
pub fn verdict<'a>(
    world: &'a World,
    subject: &'a Pod,
    (service, port): (&Service, &ServicePort),
    is_ipv4: bool,
    keeps_source: bool,
    owner: impl Fn(IpAddr) -> Owner<'a>,
) -> Verdict {
    let mut final_say = Vec::new();
    let mut judged_again = Vec::new();
    for slice in world.endpoint_slices.values() {
        if slice.namespace != service.namespace || slice.service != service.name {
            continue;
        }
        for target in &slice.ports {
            if target.name != port.name || target.protocol != port.protocol {
                continue;
            }
            for &address in slice.addresses.iter().filter(|address| address.is_ipv4() == is_ipv4) {
                let peer = End { address, owner: owner(address) };
                let question = Question {
                    world,
                    direction: Direction::Egress,
                    subject,
                    peer,
                    protocol: target.protocol,
                    port: target.port,
                };
                let here = peer.pod().is_some_and(|pod| pod.node == "here");
                let list = if here && keeps_source { &mut judged_again } else { &mut final_say };
                list.push(identity::verdict(&question));
            }
        }
    }
    let permitted = |permits: &dyn Fn(Verdict) -> bool| {
        final_say.iter().all(|verdict| permits(*verdict))
            && (judged_again.is_empty() || judged_again.iter().any(|verdict| permits(*verdict)))
    };
    if !permitted(&|verdict| verdict != Verdict::Deny) {
        Verdict::Deny
    } else if permitted(&|verdict| verdict == Verdict::Allow) {
        Verdict::Allow
    } else {
        Verdict::Audit
    }
}

/// A flow of a pod to a frontend of a service.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// Who opens it.
    pub subject: &'a Pod,
    /// The address that it is opened to.
    pub frontend: IpAddr,
    /// The protocol of the service.
    pub protocol: u8,
    /// The port of the frontend.
    pub port: u16,
    /// What must come of it.
    pub wanted: Verdict,
}

/// Every flow of a pod to a frontend of a service whose only port is `port`, with the verdict. `node` is an address of the
/// node.
pub fn flows<'a>(
    world: &'a World,
    port: u16,
    node: IpAddr,
    owner: impl Fn(IpAddr) -> Owner<'a> + Copy,
) -> Vec<Flow<'a>> {
    let mut flows = Vec::new();
    for subject in world.pods.values().filter(|pod| !pod.host_network && !pod.finished) {
        for service in world.services.values() {
            let Some(first) = service.ports.first() else { continue };
            let cluster = service.cluster_addresses.iter().map(|address| (*address, port, true));
            let external = service.external_addresses.iter().map(|address| (*address, port, false));
            let node_port = first.node_port.map(|port| (node, port, false));
            for (frontend, port, keeps_source) in cluster.chain(external).chain(node_port) {
                let asked = (service, first);
                let wanted = verdict(world, subject, asked, frontend.is_ipv4(), keeps_source, owner);
                flows.push(Flow { subject, frontend, protocol: first.protocol, port, wanted });
            }
        }
    }
    flows
}
