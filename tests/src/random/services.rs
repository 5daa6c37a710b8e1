//! Random services with endpoints of every sort.

use std::net::IpAddr;

use portcullis::model::{
    EndpointPort, EndpointSlice, Labels, Object, Service, ServicePort, TargetPort, World,
};

use super::{OTHERS, Rng};

/// The port of every service of these worlds.
pub const PORT: u16 = 1000;
/// The first node port; that of each further service is one more.
pub const NODE_PORT: u16 = 30000;

impl Rng {
    /// Adds some services, some of them with more distinct endpoints than a frontend can list.
    pub fn add_services(&mut self, world: &mut World) {
        let pods = world.pods.values().flat_map(|pod| pod.addresses.clone());
        let others = OTHERS.iter().map(|text| text.parse::<IpAddr>().unwrap());
        let addresses: Vec<IpAddr> = pods.chain(others.filter(|address| !address.is_unspecified())).collect();
        for i in 0..4u8 {
            let name = format!("s{i}");
            let namespace: String = self.pick(&["x", "y", "z"]).to_string();
            let mut cluster_addresses = vec![IpAddr::from([10, 96, 0, i + 1])];
            if self.chance(40) {
                cluster_addresses.push(format!("fd96::{}", i + 1).parse().unwrap());
            }
            let external = self.chance(40).then(|| IpAddr::from([198, 51, 100, i + 1]));
            let protocol = *self.pick(&[6, 6, 17, 132]);
            world.apply(Object::Service(Service {
                namespace: namespace.clone(),
                name: name.clone(),
                cluster_addresses,
                external_addresses: external.into_iter().collect(),
                external_local: false,
                ports: vec![ServicePort {
                    name: "p".into(),
                    protocol,
                    port: PORT,
                    node_port: self.chance(50).then_some(NODE_PORT + u16::from(i)),
                    target: TargetPort::Number(1),
                }],
                selector: Labels::new(),
            }));
            let most = if self.chance(20) { 40 } else { 3 };
            for slice in 0..3 {
                let port = EndpointPort {
                    name: if self.chance(90) { "p".into() } else { "q".into() },
                    protocol: if self.chance(90) { protocol } else { 17 },
                    port: *self.pick(&[53, 80, 81, 443]),
                };
                world.apply(Object::EndpointSlice(EndpointSlice {
                    namespace: namespace.clone(),
                    name: format!("{name}-{slice}"),
                    service: if self.chance(90) { name.clone() } else { String::new() },
                    ports: vec![port],
                    addresses: self.list(most, |rng| *rng.pick(&addresses)),
                }));
            }
        }
    }
}
