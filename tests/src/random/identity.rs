//! Identity policies and modes for the random worlds.

use portcullis::api::{
    Action, DestinationPort, EgressRule, EgressSection, Entity, IdentityPolicySpec, IngressRule,
    IngressSection, IpBlock, Peer, PeerAccounts, PeerPods, PolicyMode, PortMatch, PortRange, ProtocolMatch,
    Subject, SubjectAccounts,
};
use portcullis::model::{IdentityPolicy, Object, World};
use portcullis_common::Verdict;

use super::{CIDRS, Rng};

impl Rng {
    /// With policies of both kinds, in every mode, and either default verdict.
    pub fn world_with_identities(&mut self) -> World {
        let mut world = self.world();
        if self.chance(30) {
            world.settings.default_verdict = Verdict::Deny;
        }
        for namespace in world.namespaces.values_mut() {
            if let Some(mode) = self.maybe(40, Self::mode) {
                namespace.labels.insert("portcullis.dev/mode".into(), mode);
            }
        }
        for policy in world.network_policies.values_mut() {
            policy.mode = self.maybe(40, Self::mode);
        }
        for i in 0..=self.below(4) {
            let namespace = self.pick(&["x", "y", "z"]).to_string();
            let spec = self.identity_spec();
            world.apply(Object::IdentityPolicy(IdentityPolicy {
                namespace,
                name: format!("identity{i}"),
                generation: 1,
                spec,
            }));
        }
        world
    }

    fn mode(&mut self) -> String {
        self.pick(&["audit", "Audit", "off", "enforce", "auditt"]).to_string()
    }

    pub(super) fn names(&mut self) -> Vec<String> {
        self.list(2, |rng| rng.pick(&["default", "api", "web", "ghost"]).to_string())
    }

    fn identity_spec(&mut self) -> IdentityPolicySpec {
        IdentityPolicySpec {
            mode: self.maybe(40, |rng| *rng.pick(&[PolicyMode::Enforce, PolicyMode::Audit, PolicyMode::Off])),
            subject: Subject {
                service_accounts: self.maybe(50, |rng| SubjectAccounts {
                    names: rng.maybe(50, Self::names),
                    selector: rng.maybe(30, Self::selector),
                }),
            },
            ingress: self.maybe(70, |rng| IngressSection {
                isolate: rng.maybe(60, |rng| rng.chance(40)),
                rules: rng.list(3, |rng| IngressRule {
                    name: None,
                    action: rng.action(),
                    from: rng.identity_peers(),
                    protocols: rng.maybe(50, |rng| rng.list(2, Self::protocol)),
                }),
            }),
            egress: self.maybe(70, |rng| EgressSection {
                isolate: rng.maybe(60, |rng| rng.chance(40)),
                rules: rng.list(3, |rng| EgressRule {
                    name: None,
                    action: rng.action(),
                    to: rng.identity_peers(),
                    protocols: rng.maybe(50, |rng| rng.list(2, Self::protocol)),
                }),
            }),
        }
    }

    fn action(&mut self) -> Action {
        if self.chance(60) { Action::Accept } else { Action::Deny }
    }

    pub(super) fn identity_peers(&mut self) -> Vec<Peer> {
        let mut peers = self.list(2, Self::identity_peer);
        if self.chance(90) {
            peers.push(self.identity_peer());
        }
        peers
    }

    fn identity_peer(&mut self) -> Peer {
        let mut peer = Peer::default();
        // Mostly one field, as it must be.
        let fields = if self.chance(92) { 1 } else { self.below(3) };
        for _ in 0..fields {
            match self.below(4) {
                0 => {
                    peer.service_accounts = Some(PeerAccounts {
                        namespaces: self.maybe(40, Self::selector),
                        names: self.maybe(40, Self::names),
                        selector: self.maybe(30, Self::selector),
                    });
                }
                1 => {
                    peer.pods = Some(PeerPods {
                        namespaces: self.maybe(40, Self::selector),
                        selector: self.maybe(60, Self::selector),
                    });
                }
                2 => {
                    let except = self.maybe(30, |rng| rng.list(1, |rng| rng.pick(&CIDRS).to_string()));
                    peer.ip_block = Some(IpBlock { cidr: self.pick(&CIDRS).to_string(), except });
                }
                _ => {
                    let all = [Entity::Host, Entity::Node, Entity::World, Entity::Unmanaged];
                    let mut entities = self.list(1, |rng| *rng.pick(&all));
                    if self.chance(90) {
                        entities.push(*self.pick(&all));
                    }
                    peer.entities = Some(entities);
                }
            }
        }
        peer
    }

    pub(super) fn protocol(&mut self) -> ProtocolMatch {
        let mut protocol = ProtocolMatch::default();
        let fields = if self.chance(92) { 1 } else { self.below(3) };
        for _ in 0..fields {
            match self.below(5) {
                0 | 1 => protocol.tcp = Some(self.port_match()),
                2 => protocol.udp = Some(self.port_match()),
                3 => protocol.sctp = Some(self.port_match()),
                _ => {
                    protocol.destination_named_port =
                        Some(self.pick(&["http", "dns", "admin", "http", ""]).to_string());
                }
            }
        }
        protocol
    }

    fn port_match(&mut self) -> PortMatch {
        const PORTS: [i32; 10] = [53, 80, 80, 81, 443, 79, 8080, 65535, 0, 65536];
        let destination_port = self.maybe(70, |rng| DestinationPort {
            number: rng.maybe(50, |rng| *rng.pick(&PORTS)),
            range: rng.maybe(50, |rng| {
                let (start, end) = (*rng.pick(&PORTS), *rng.pick(&PORTS));
                if rng.chance(80) {
                    PortRange { start: start.min(end), end: start.max(end) }
                } else {
                    PortRange { start, end }
                }
            }),
        });
        PortMatch { destination_port }
    }
}
