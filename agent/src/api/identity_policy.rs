//! `IdentityPolicy`: who may talk to the pods of a namespace's service accounts, and whom they may talk to.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Rules about the traffic of pods by service account.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "IdentityPolicy",
    plural = "identitypolicies",
    shortname = "idpol",
    category = "portcullis",
    namespaced,
    status = "IdentityPolicyStatus",
    doc = "Who may talk to the pods of a namespace's service accounts, and whom they may talk to.",
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
    "a policy without `ingress` and `egress` does nothing: write the section that it is about; `ingress: {}` denies \
     everything that no other policy accepts"
))]
pub struct IdentityPolicySpec {
    /// Whether the policy is enforced, only audited, or switched off. `Off` is the same as `Disabled`; write it in
    /// quotes, because YAML readers such as kubectl's take the bare word for `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::mode")]
    pub mode: Option<PolicyMode>,
    /// The service accounts of this namespace whose pods the policy is about; `{}`: every one.
    pub subject: Subject,
    /// What may reach the pods. Absent: this direction is not touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressSection>,
    /// What the pods may reach. Absent: this direction is not touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSection>,
}

/// How strictly one policy is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyMode {
    /// Its verdicts are applied.
    Enforce,
    /// What only this policy denies is passed and counted as audited.
    Audit,
    /// As if the policy were not there. Written without quotes the word `Off` is a boolean to YAML 1.1.
    #[serde(rename = "Disabled", alias = "Off")]
    Off,
}

/// What became of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityPolicyStatus {
    /// `Accepted`: whether every part of the policy is understood; the message says what is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Whom a policy is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// Service accounts of the policy's namespace; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<SubjectAccounts>,
}

/// Service accounts by name and by label. Where both fields are set, both must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "!has(self.names) || size(self.names) > 0",
    "the list of names is empty and would match nobody: write names, or leave `names` out for every \
     account"
))]
pub struct SubjectAccounts {
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub names: Option<Vec<String>>,
    /// By the labels of the ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub selector: Option<LabelSelector>,
}

/// One direction of a policy: what may reach the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.isolate) || !has(self.rules) || size(self.rules) == 0 || self.rules.exists(rule, rule.action \
     == 'Accept')",
    "a section that has only Deny rules must say `isolate` itself: `isolate: false` denies only what the \
     rules match, `isolate: true` everything that no other policy accepts"
))]
#[x_kube(validation = (
    "!has(self.isolate) || self.isolate || (has(self.rules) && size(self.rules) > 0)",
    "`isolate: false` without rules does nothing: write rules, or leave `ingress` out"
))]
pub struct IngressSection {
    /// What no Accept of the tier allows is denied. Default `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate: Option<bool>,
    /// The rules; a Deny wins over an Accept.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rules: Vec<IngressRule>,
}

/// One direction of a policy: what the subject may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.isolate) || !has(self.rules) || size(self.rules) == 0 || self.rules.exists(rule, rule.action \
     == 'Accept')",
    "a section that has only Deny rules must say `isolate` itself: `isolate: false` denies only what the \
     rules match, `isolate: true` everything that no other policy accepts"
))]
#[x_kube(validation = (
    "!has(self.isolate) || self.isolate || (has(self.rules) && size(self.rules) > 0)",
    "`isolate: false` without rules does nothing: write rules, or leave `egress` out"
))]
pub struct EgressSection {
    /// What no Accept of the tier allows is denied. Default `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate: Option<bool>,
    /// The rules; a Deny wins over an Accept.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rules: Vec<EgressRule>,
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
pub struct IngressRule {
    /// Shown in verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// What happens to what matches.
    pub action: Action,
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
pub struct EgressRule {
    /// Shown in verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// What happens to what matches.
    pub action: Action,
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
pub enum Action {
    /// Allow it.
    Accept,
    /// Deny it, whatever other rules of the tier accept.
    Deny,
}

/// The other side of a flow. Exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "[has(self.serviceAccounts), has(self.pods), has(self.ipBlock), has(self.entities)].exists_one(set, \
     set)",
    "a peer is exactly one of `serviceAccounts`, `pods`, `ipBlock` and `entities`: write several as \
     several items of the list"
))]
#[x_kube(validation = (
    "!has(self.entities) || size(self.entities) > 0",
    "the list of entities is empty: write host, node, world or unmanaged"
))]
pub struct Peer {
    /// Pods, by their service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<PeerAccounts>,
    /// Pods, by their own labels and those of their namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PeerPods>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
    /// What is not a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4))]
    pub entities: Option<Vec<Entity>>,
}

/// Service accounts. Where several fields are set, all must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "!has(self.names) || size(self.names) > 0",
    "the list of names is empty and would match nobody: write names, or leave `names` out for every \
     account"
))]
pub struct PeerAccounts {
    /// Their namespaces, by label; absent: the policy's own, which a ClusterIdentityPolicy has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub namespaces: Option<LabelSelector>,
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub names: Option<Vec<String>>,
    /// By the labels of the ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub selector: Option<LabelSelector>,
}

/// Pods by label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerPods {
    /// Their namespaces, by label; absent: the policy's own, which a ClusterIdentityPolicy has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub namespaces: Option<LabelSelector>,
    /// By the labels of the pods; absent or `{}`: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub selector: Option<LabelSelector>,
}

/// A range of addresses with holes. The strings are parsed when the policy is compiled, so that one bad `except` voids
/// its block and not the document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "isCIDR(self.cidr)",
    "`cidr` is no range of addresses: write one such as 10.0.0.0/8 or 2001:db8::/32; one address is \
     10.1.2.3/32"
))]
#[x_kube(validation = (
    "!has(self.except) || self.except.all(range, isCIDR(range))",
    "`except` has something that is no range of addresses: write ranges such as 10.9.0.0/16; one address \
     is 10.1.2.3/32"
))]
#[x_kube(validation = (
    "!has(self.except) || !isCIDR(self.cidr) || self.except.all(range, !isCIDR(range) || \
     (range != self.cidr && cidr(self.cidr).containsCIDR(range)))",
    "each range of `except` must be a smaller part of `cidr`: what is not in it needs no exception"
))]
pub struct IpBlock {
    /// The range, `10.0.0.0/8`.
    #[schemars(length(max = 43))]
    pub cidr: String,
    /// Ranges within it that do not belong to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 25), inner(length(max = 43)))]
    pub except: Option<Vec<String>>,
}

/// What is not a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Entity {
    /// The node that the pod runs on.
    Host,
    /// The other nodes of the cluster.
    Node,
    /// Everything outside the cluster.
    World,
    /// Addresses of the pod range that no known pod claims.
    Unmanaged,
}

/// Protocols and destination ports. Exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "[has(self.tcp), has(self.udp), has(self.sctp), has(self.destinationNamedPort)].exists_one(set, set)",
    "exactly one of `tcp`, `udp`, `sctp` and `destinationNamedPort`: write several as several items of the \
     list; `tcp: {}` is every TCP port"
))]
pub struct ProtocolMatch {
    /// TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<PortMatch>,
    /// UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<PortMatch>,
    /// SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sctp: Option<PortMatch>,
    /// The port with this name (and its protocol) of the pod that is the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z0-9]+(-[a-z0-9]+)*$"))]
    pub destination_named_port: Option<String>,
}

/// Destination ports of a protocol; `{}`: every one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMatch {
    /// One port or a range; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<DestinationPort>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.number) != has(self.range)",
    "exactly one of `number` and `range`: one port is {number: 53}, several are {range: {start: 8000, end: \
     8080}}"
))]
pub struct DestinationPort {
    /// This port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub number: Option<i32>,
    /// From `start` to `end`, both included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "self.start <= self.end",
    "the range is empty: `start` must not be greater than `end`"
))]
pub struct PortRange {
    /// First port.
    #[schemars(range(min = 1, max = 65535))]
    pub start: i32,
    /// Last port.
    #[schemars(range(min = 1, max = 65535))]
    pub end: i32,
}

impl IpBlock {
    /// The block and its holes.
    ///
    /// # Errors
    /// The first text that is not a CIDR.
    pub fn parse(&self) -> Result<(IpNet, Vec<IpNet>), String> {
        let parse = |text: &String| text.parse::<IpNet>().map_err(|_| text.clone());
        let holes = self.except.iter().flatten().map(parse).collect::<Result<_, _>>()?;
        Ok((parse(&self.cidr)?, holes))
    }
}
