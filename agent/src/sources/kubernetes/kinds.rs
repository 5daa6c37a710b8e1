//! The kinds that are read from the API: one table. A kind more is a line more.

use std::fmt::Debug;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;

use super::watch::{self, Task};
use crate::api;
use crate::model::{self, ClusterConfig, ConvertError, Object, ObjectKind};
use crate::sources::narrow::{self, Narrow};
use crate::sources::typed::Strictness::{self, Lenient, Strict};

/// What there is to know about a kind.
#[derive(Debug)]
pub(super) struct About {
    /// The kind in our model.
    pub object: ObjectKind,
    /// Its name in the API.
    pub kind: &'static str,
    /// Its API group; empty for the core.
    pub group: &'static str,
    /// The version that we read.
    pub version: &'static str,
    /// Its name in paths and in RBAC rules.
    pub plural: &'static str,
    /// Whether a server without it is as good as one with no object of it.
    pub optional: bool,
    /// Only the object of this name in our own namespace is read.
    pub own: Option<&'static str>,
    /// What becomes of fields that are not known.
    pub strictness: Strictness,
    /// Makes a part that is not understood into one that the compiler knows not to understand, and so narrows.
    pub narrow: Option<Narrow>,
}

/// A kind: how its objects are written and what is kept of them.
pub(super) trait Kind: Clone + Debug + Send + Sync + 'static {
    /// As the API has it.
    type Api: DeserializeOwned;
    /// What is kept.
    type Trimmed: TryFrom<Self::Api, Error = ConvertError> + Into<Object>;
    /// The rest.
    const ABOUT: About;
}

/// A kind and the function that follows it.
pub(super) struct Entry {
    /// What there is to know about it.
    pub about: About,
    /// Follows it, in a task of its own.
    pub follow: fn(Task),
}

macro_rules! kinds {
    ($($marker:ident: $api:ty => $trimmed:ty, $about:expr;)*) => {
        $(
            #[derive(Clone, Debug)]
            pub(super) struct $marker;

            impl Kind for $marker {
                type Api = $api;
                type Trimmed = $trimmed;
                const ABOUT: About = $about;
            }
        )*
        /// Every kind that is read.
        pub(super) static KINDS: &[Entry] = &[
            $(Entry { about: $marker::ABOUT, follow: |task| drop(tokio::spawn(watch::follow::<$marker>(task))) },)*
        ];
    };
}

const fn required(
    object: ObjectKind,
    kind: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
) -> About {
    About {
        object,
        kind,
        group,
        version,
        plural,
        optional: false,
        own: None,
        strictness: Lenient,
        narrow: None,
    }
}

const fn core(object: ObjectKind, kind: &'static str, plural: &'static str) -> About {
    required(object, kind, "", "v1", plural)
}

kinds! {
    Namespaces: core::Namespace => model::Namespace, core(ObjectKind::Namespace, "Namespace", "namespaces");
    Accounts: core::ServiceAccount => model::ServiceAccount,
        core(ObjectKind::ServiceAccount, "ServiceAccount", "serviceaccounts");
    Nodes: core::Node => model::Node, core(ObjectKind::Node, "Node", "nodes");
    Pods: core::Pod => model::Pod, core(ObjectKind::Pod, "Pod", "pods");
    Services: core::Service => model::Service, core(ObjectKind::Service, "Service", "services");
    EndpointSlices: discovery::EndpointSlice => model::EndpointSlice,
        required(ObjectKind::EndpointSlice, "EndpointSlice", "discovery.k8s.io", "v1", "endpointslices");
    // Stable since Kubernetes 1.33; before, `--service-cidr` says the ranges.
    ServiceCidrs: networking::ServiceCIDR => model::ServiceCidr, About {
        optional: true,
        ..required(ObjectKind::ServiceCidr, "ServiceCIDR", "networking.k8s.io", "v1", "servicecidrs")
    };
    Config: core::ConfigMap => ClusterConfig, About {
        own: Some(ClusterConfig::NAME),
        ..core(ObjectKind::ClusterConfig, "ConfigMap", "configmaps")
    };
    NetworkPolicies: networking::NetworkPolicy => model::NetworkPolicy, About {
        strictness: Strict,
        narrow: Some(narrow::network_policy),
        ..required(ObjectKind::NetworkPolicy, "NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies")
    };
    IdentityPolicies: api::IdentityPolicy => model::IdentityPolicy, About {
        optional: true,
        strictness: Strict,
        narrow: Some(narrow::identity_policy),
        ..required(ObjectKind::IdentityPolicy, "IdentityPolicy", api::GROUP, "v1alpha1", "identitypolicies")
    };
    ClusterIdentityPolicies: api::ClusterIdentityPolicy => model::ClusterIdentityPolicy, About {
        optional: true,
        strictness: Strict,
        narrow: Some(narrow::cluster_identity_policy),
        ..required(
            ObjectKind::ClusterIdentityPolicy,
            "ClusterIdentityPolicy",
            api::GROUP,
            "v1alpha1",
            "clusteridentitypolicies",
        )
    };
}

impl About {
    /// `networking.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The rule that a role of ours needs.
    pub fn rbac_rule(&self) -> String {
        let (group, plural) = (self.group, self.plural);
        format!(
            "{{apiGroups: [\"{group}\"], resources: [\"{plural}\"], verbs: [\"get\", \"list\", \"watch\"]}}"
        )
    }
}
