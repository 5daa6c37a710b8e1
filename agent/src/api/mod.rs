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
