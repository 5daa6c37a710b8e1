//! `IdentityPolicy`: who may talk to the pods of a namespace's service accounts, and whom they may talk to.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rules about the traffic of pods by service account.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "IdentityPolicy",
    plural = "identitypolicies",
    shortname = "idp",
    namespaced
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityPolicySpec {
    /// Whether the policy is enforced, only audited, or switched off. Default `Enforce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyMode {
    /// Its verdicts are applied.
    Enforce,
    /// What only this policy denies is passed and counted as audited.
    Audit,
    /// As if the policy were not there.
    Off,
}

/// Whom a policy is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// Service accounts of the policy's namespace; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<SubjectAccounts>,
}

/// Service accounts of the policy's own namespace. Where both fields are set, both must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubjectAccounts {
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// By the labels of the ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// One direction of a policy: what may reach the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressSection {
    /// What no Accept of the tier allows is denied. Default `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate: Option<bool>,
    /// The rules; a Deny wins over an Accept.
    #[serde(default)]
    pub rules: Vec<IngressRule>,
}

/// One direction of a policy: what the subject may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressSection {
    /// What no Accept of the tier allows is denied. Default `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate: Option<bool>,
    /// The rules; a Deny wins over an Accept.
    #[serde(default)]
    pub rules: Vec<EgressRule>,
}

/// A rule about what reaches the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRule {
    /// Shown in verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What happens to what matches.
    pub action: Action,
    /// Who: at least one peer.
    pub from: Vec<Peer>,
    /// Which protocols and destination ports; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ProtocolMatch>>,
}

/// A rule about what the subject reaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// Shown in verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What happens to what matches.
    pub action: Action,
    /// Whom: at least one peer.
    pub to: Vec<Peer>,
    /// Which protocols and destination ports; absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    pub entities: Option<Vec<Entity>>,
}

/// Service accounts. Where several fields are set, all must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAccounts {
    /// Their namespaces, by label; absent: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// By the labels of the ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Pods by label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerPods {
    /// Their namespaces, by label; absent: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// By the labels of the pods; absent or `{}`: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// A range of addresses with holes. The strings are parsed when the policy is compiled, so that one bad `except` voids
/// its block and not the document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpBlock {
    /// The range, `10.0.0.0/8`.
    pub cidr: String,
    /// Ranges within it that do not belong to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationPort {
    /// This port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    /// From `start` to `end`, both included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortRange {
    /// First port.
    pub start: i32,
    /// Last port.
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
