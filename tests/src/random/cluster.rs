//! Policies of the whole cluster for the random worlds.

use portcullis::api::{
    ClusterAction, ClusterEgressRule, ClusterEgressSection, ClusterIdentityPolicySpec, ClusterIngressRule,
    ClusterIngressSection, ClusterSubject, Peer, PolicyMode, PolicyTier, SubjectAccounts,
};
use portcullis::model::{ClusterIdentityPolicy, Object, World};

use super::Rng;

impl Rng {
    /// Adds policies of both tiers, in every mode; equal priorities are frequent.
    pub fn add_guardrails(&mut self, world: &mut World) {
        for _ in 0..=self.below(4) {
            // Two of the same name are one.
            let name = self.pick(&["a", "b", "c", "d", "e"]).to_string();
            let spec = self.cluster_spec();
            world.apply(Object::ClusterIdentityPolicy(ClusterIdentityPolicy { name, generation: 1, spec }));
        }
    }

    fn cluster_spec(&mut self) -> ClusterIdentityPolicySpec {
        const PRIORITIES: [i32; 12] = [0, 0, 1, 1, 1, 5, 5, 5, 1000, 1000, 1001, -1];
        ClusterIdentityPolicySpec {
            mode: self.maybe(40, |rng| *rng.pick(&[PolicyMode::Enforce, PolicyMode::Audit, PolicyMode::Off])),
            tier: self.maybe(97, |rng| *rng.pick(&[PolicyTier::Admin, PolicyTier::Baseline])),
            priority: self.maybe(97, |rng| *rng.pick(&PRIORITIES)),
            subject: ClusterSubject {
                namespaces: self
                    .maybe(97, |rng| if rng.chance(40) { Self::everything() } else { rng.selector() }),
                service_accounts: self.maybe(40, |rng| SubjectAccounts {
                    names: rng.maybe(50, Self::names),
                    selector: rng.maybe(30, Self::selector),
                }),
            },
            ingress: self.maybe(70, |rng| ClusterIngressSection {
                rules: rng.list(4, |rng| ClusterIngressRule {
                    name: None,
                    action: rng.cluster_action(),
                    from: rng.cluster_peers(),
                    protocols: rng.maybe(50, |rng| rng.list(2, Self::protocol)),
                }),
            }),
            egress: self.maybe(70, |rng| ClusterEgressSection {
                rules: rng.list(4, |rng| ClusterEgressRule {
                    name: None,
                    action: rng.cluster_action(),
                    to: rng.cluster_peers(),
                    protocols: rng.maybe(50, |rng| rng.list(2, Self::protocol)),
                }),
            }),
        }
    }

    fn cluster_action(&mut self) -> ClusterAction {
        *self.pick(&[ClusterAction::Accept, ClusterAction::Deny, ClusterAction::Pass])
    }

    /// Peers that mostly say of which namespaces they are, as they must.
    fn cluster_peers(&mut self) -> Vec<Peer> {
        let mut peers = self.identity_peers();
        for peer in &mut peers {
            let accounts = peer.service_accounts.as_mut().map(|accounts| &mut accounts.namespaces);
            let pods = peer.pods.as_mut().map(|pods| &mut pods.namespaces);
            for namespaces in [accounts, pods].into_iter().flatten() {
                if namespaces.is_none() && self.chance(92) {
                    *namespaces = Some(Self::everything());
                }
            }
        }
        peers
    }
}
