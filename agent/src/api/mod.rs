//! The policy kinds of `portcullis.dev/v1alpha1`, as people write them.

mod cluster_identity_policy;
mod identity_policy;
mod schema;

pub use cluster_identity_policy::*;
pub use identity_policy::*;
pub use schema::definitions;

/// API group of our kinds.
pub const GROUP: &str = "portcullis.dev";
/// Label of a Namespace, and annotation of a NetworkPolicy, that sets the mode: `enforce`, `audit` or `off`.
pub const MODE_KEY: &str = "portcullis.dev/mode";
/// Annotation of a Pod that forwards packets of others, `true`: it may send from, and is sent to at, addresses outside of the
/// cluster that are not its own. It has an effect only in a namespace with [`ROUTING_LABEL`].
pub const ROUTES_KEY: &str = "portcullis.dev/routes";
/// Annotation of a Node: addresses that it has in an overlay network, with commas between them, where its network plugin writes
/// them nowhere.
pub const TUNNEL_ADDRESSES_KEY: &str = "portcullis.dev/tunnel-addresses";
/// Label of a Namespace, `allowed`: its pods may have [`ROUTES_KEY`]. Who may make pods there sets annotations, so that alone
/// proves nothing.
pub const ROUTING_LABEL: &str = "portcullis.dev/routing-pods";
