//! Endpoints of services that no manifest lists: in a cluster a controller finds them by the service's selector, so in a
//! folder without `EndpointSlice`s the source does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::folder::Objects;
use crate::model::{EndpointPort, EndpointSlice, Object, Pod, Service, TargetPort};

/// The slices of every service that has a selector and no slice. No name of theirs can be that of a real one.
pub(super) fn slices(objects: &Objects) -> Vec<EndpointSlice> {
    let mut listed: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut pods: HashMap<&str, Vec<&Pod>> = HashMap::new();
    let mut services = Vec::new();
    for object in objects.values().map(Arc::as_ref) {
        match object {
            Object::EndpointSlice(slice) => drop(listed.insert((&slice.namespace, &slice.service))),
            Object::Pod(pod) if !pod.finished => pods.entry(&pod.namespace).or_default().push(pod),
            Object::Service(service) if !service.selector.is_empty() => services.push(service),
            _ => {}
        }
    }
    services.retain(|service| !listed.contains(&(service.namespace.as_str(), service.name.as_str())));
    let none = Vec::new();
    let of = |service: &&Service| of_service(service, pods.get(service.namespace.as_str()).unwrap_or(&none));
    services.iter().flat_map(of).collect()
}

/// IP version 6, and the ports: name, protocol and number.
type Alike = (bool, Vec<(String, u8, u16)>);

/// One slice for each IP version and set of ports: pods may give the same name to different ports.
fn of_service(service: &Service, pods: &[&Pod]) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<Alike, Vec<IpAddr>> = BTreeMap::new();
    let selected =
        |pod: &&&Pod| service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    for pod in pods.iter().filter(selected) {
        let ports: Vec<_> = service
            .ports
            .iter()
            .filter_map(|port| {
                let number = match &port.target {
                    TargetPort::Number(number) => *number,
                    TargetPort::Name(name) => {
                        let named = |(n, p, _): &&(String, u8, u16)| n == name && *p == port.protocol;
                        pod.named_ports.iter().find(named)?.2
                    }
                };
                Some((port.name.clone(), port.protocol, number))
            })
            .collect();
        for address in &pod.addresses {
            groups.entry((address.is_ipv6(), ports.clone())).or_default().push(*address);
        }
    }
    let slice = |(number, ((_, ports), addresses)): (usize, (Alike, Vec<IpAddr>))| EndpointSlice {
        namespace: service.namespace.clone(),
        name: format!("{}/{number}", service.name),
        service: service.name.clone(),
        ports: ports
            .into_iter()
            .map(|(name, protocol, port)| EndpointPort { name, protocol, port })
            .collect(),
        addresses,
    };
    groups.into_iter().enumerate().map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::*;

    fn slices_of(text: &str) -> Vec<(String, Vec<u16>, Vec<String>)> {
        let objects = decode(text, false).unwrap().objects;
        let objects: Objects = objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect();
        slices(&objects)
            .into_iter()
            .map(|slice| {
                let ports = slice.ports.iter().map(|port| port.port).collect();
                (slice.service, ports, slice.addresses.iter().map(ToString::to_string).collect())
            })
            .collect()
    }

    const SHOP: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1,
  selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81}]}}
---
{apiVersion: v1, kind: PodList, items: [
  {metadata: {name: a, namespace: shop, labels: {app: web}}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]},
    spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}},
  {metadata: {name: b, namespace: shop, labels: {app: web, x: y}}, status: {podIP: 10.0.0.2},
    spec: {containers: [{name: c, ports: [{name: http, containerPort: 8081}]}]}},
  {metadata: {name: c, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.3, phase: Running}},
  {metadata: {name: d, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.4, phase: Failed}},
  {metadata: {name: e, namespace: shop, labels: {app: db}}, status: {podIP: 10.0.0.5}},
  {metadata: {name: f, namespace: ops, labels: {app: web}}, status: {podIP: 10.0.0.6}}]}
";

    #[test]
    fn a_service_selects_its_endpoints_and_each_pod_names_its_own_port() {
        let wanted = [
            (vec![8080, 81], vec!["10.0.0.1"]),
            (vec![8081, 81], vec!["10.0.0.2"]),
            (vec![8080, 81], vec!["fd00::1"]),
            (vec![81], vec!["10.0.0.3"]),
        ];
        let mut found = slices_of(SHOP);
        assert!(found.iter().all(|(service, ..)| service == "web"));
        for (ports, addresses) in wanted {
            let at = found.iter().position(|(_, p, a)| *p == ports && *a == addresses);
            found.remove(at.unwrap_or_else(|| panic!("{ports:?} {addresses:?} in {found:?}")));
        }
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_service_with_a_slice_or_without_a_selector_selects_nothing() {
        let slice = "
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, endpoints: [],
  metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}}
";
        assert!(slices_of(&format!("{SHOP}{slice}")).is_empty());
        assert!(slices_of(&SHOP.replace("selector: {app: web}, ", "")).is_empty());
    }
}
