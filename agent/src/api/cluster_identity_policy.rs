//! `ClusterIdentityPolicy`: the guardrail. What holds for pods of many namespaces before (Admin) or after (Baseline) the
//! policies of the namespaces have their say. It never isolates: it decides only what its rules match.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::identity_policy::{IdentityPolicyStatus, Peer, PolicyMode, ProtocolMatch, SubjectAccounts};
use super::schema;

/// Rules about the traffic of pods by service account, for many namespaces at once.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "ClusterIdentityPolicy",
    plural = "clusteridentitypolicies",
    shortname = "cidpol",
    category = "portcullis",
    status = "IdentityPolicyStatus",
    doc = "What holds for pods of many namespaces, before (Admin) or after (Baseline) the policies of the namespaces.",
    printcolumn = r#"{"name": "Tier", "type": "string", "jsonPath": ".spec.tier"}"#,
    printcolumn = r#"{"name": "Priority", "type": "integer", "jsonPath": ".spec.priority"}"#,
    printcolumn = r#"{"name": "Mode", "type": "string", "jsonPath": ".spec.mode"}"#,
    printcolumn = r#"{"name": "Accepted", "type": "string",
        "description": "Whether every part of the policy is understood.",
        "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "priority": 1,
        "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].reason"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.ingress) || has(self.egress)",
    "a policy without `ingress` and `egress` does nothing: write the section that it is about, with rules"
))]
pub struct ClusterIdentityPolicySpec {
    /// Whether the policy is enforced, only audited, or switched off. `Off` is the same as `Disabled`; write it in
    /// quotes, because YAML readers such as kubectl's take the bare word for `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::mode")]
    pub mode: Option<PolicyMode>,
    /// When the policy has its say: `Admin` before the policies of the namespaces, which cannot override it, `Baseline`
    /// after them, where none of them isolates the pod.
    // Absent only in what no API server has checked, and then nobody knows where the policy belongs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(required)]
    pub tier: Option<PolicyTier>,
    /// The order within the tier: the lower number first. Policies with the same number act in the order of their names.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(required, range(min = 0, max = 1000))]
    pub priority: Option<i32>,
    /// The pods that the policy is about.
    pub subject: ClusterSubject,
    /// What may reach the pods. Absent: this direction is not touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<ClusterIngressSection>,
    /// What the pods may reach. Absent: this direction is not touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<ClusterEgressSection>,
}

/// When a policy has its say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyTier {
    /// Before the policies of the namespaces.
    Admin,
    /// After the policies of the namespaces, where none of them isolates the pod.
    Baseline,
}

/// Whom a policy is about. Where both fields are set, both must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.namespaces)",
    "a policy of the whole cluster has no namespace of its own: write `subject: {namespaces: ..}`; \
     `namespaces: {}` is every one"
))]
pub struct ClusterSubject {
    /// Their namespaces, by label; `{}`: every one. Every namespace has the label `kubernetes.io/metadata.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub namespaces: Option<LabelSelector>,
    /// Service accounts of these namespaces; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<SubjectAccounts>,
}

/// One direction of a policy: what may reach the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.rules) && size(self.rules) > 0",
    "without rules it does nothing, for a ClusterIdentityPolicy never isolates: write rules, or leave `ingress` out"
))]
pub struct ClusterIngressSection {
    /// The rules: the first one that matches decides.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rules: Vec<ClusterIngressRule>,
}

/// One direction of a policy: what the subject may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.rules) && size(self.rules) > 0",
    "without rules it does nothing, for a ClusterIdentityPolicy never isolates: write rules, or leave `egress` out"
))]
pub struct ClusterEgressSection {
    /// The rules: the first one that matches decides.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rules: Vec<ClusterEgressRule>,
}

/// A rule about what reaches the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "size(self.from) > 0",
    "a rule needs at least one peer in `from`: `pods: {namespaces: {}}` is every pod, `ipBlock: {cidr: \
     0.0.0.0/0}` every IPv4 address"
))]
#[x_kube(validation = (
    "!has(self.protocols) || size(self.protocols) > 0",
    "the list of protocols is empty and would match nothing: leave `protocols` out for every protocol"
))]
#[x_kube(validation = (
    "self.action != 'Deny' || !self.from.exists(peer, has(peer.entities) && peer.entities.exists(entity, \
     entity == 'host'))",
    "what the node sends to its own pods is always allowed, so a Deny of `host` has no effect here: remove \
     `host`; other nodes are `node`"
))]
#[x_kube(validation = (
    "self.from.all(peer, (!has(peer.serviceAccounts) || has(peer.serviceAccounts.namespaces)) && \
     (!has(peer.pods) || has(peer.pods.namespaces)))",
    "a policy of the whole cluster has no namespace of its own: write `namespaces` in each `serviceAccounts` and \
     `pods` of `from`; `namespaces: {}` is every one"
))]
pub struct ClusterIngressRule {
    /// Shown in verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// What happens to what matches.
    pub action: ClusterAction,
    /// Who: at least one peer.
    #[schemars(length(max = 64))]
    pub from: Vec<Peer>,
    /// Which protocols and destination ports; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub protocols: Option<Vec<ProtocolMatch>>,
}

/// A rule about what the subject reaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "size(self.to) > 0",
    "a rule needs at least one peer in `to`: `pods: {namespaces: {}}` is every pod, `ipBlock: {cidr: \
     0.0.0.0/0}` every IPv4 address"
))]
#[x_kube(validation = (
    "!has(self.protocols) || size(self.protocols) > 0",
    "the list of protocols is empty and would match nothing: leave `protocols` out for every protocol"
))]
#[x_kube(validation = (
    "!has(self.protocols) || !self.protocols.exists(protocol, has(protocol.destinationNamedPort)) || \
     self.to.exists(peer, !has(peer.entities))",
    "only pods name their ports, and `to` has none: write the port's number"
))]
#[x_kube(validation = (
    "self.to.all(peer, (!has(peer.serviceAccounts) || has(peer.serviceAccounts.namespaces)) && \
     (!has(peer.pods) || has(peer.pods.namespaces)))",
    "a policy of the whole cluster has no namespace of its own: write `namespaces` in each `serviceAccounts` and \
     `pods` of `to`; `namespaces: {}` is every one"
))]
pub struct ClusterEgressRule {
    /// Shown in verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// What happens to what matches.
    pub action: ClusterAction,
    /// Whom: at least one peer.
    #[schemars(length(max = 64))]
    pub to: Vec<Peer>,
    /// Which protocols and destination ports; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub protocols: Option<Vec<ProtocolMatch>>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClusterAction {
    /// Allow it, whatever comes after.
    Accept,
    /// Deny it, whatever comes after.
    Deny,
    /// Pass over the rest of the tier: the next one decides.
    Pass,
}
