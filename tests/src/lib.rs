//! The harness of the privileged tests: nodes and pods as network namespaces, traffic between them, the agent as a
//! process, and the check that nothing is left behind.
//!
//! Every object here owns what it makes in the kernel and removes it when dropped, also while a test panics. Names
//! carry the process id of the test ([`owner`]), so that two runs on one machine leave each other alone.

pub mod agent;
pub mod apiserver;
pub mod cluster;
#[cfg(feature = "agent")]
pub mod cluster_probe;
pub mod command;
pub mod deploy;
#[cfg(feature = "agent")]
pub mod examples;
#[cfg(feature = "agent")]
#[allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a library of tests: a failure is a panic")]
pub mod faults;
#[cfg(feature = "agent")]
#[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a library of tests: a failure is a panic")]
pub mod fixture;
#[cfg(feature = "agent")]
#[allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a library of tests: a failure is a panic"
)]
pub mod golden;
pub mod guest;
#[cfg(feature = "agent")]
pub mod host;
#[cfg(feature = "agent")]
pub mod installed;
#[cfg(feature = "agent")]
pub mod lifecycle;
#[cfg(feature = "agent")]
pub mod loaded;
pub mod manifests;
#[cfg(feature = "agent")]
#[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a library of tests: a failure is a panic")]
pub mod meanwhile;
pub mod netns;
pub mod node;
#[cfg(feature = "agent")]
pub mod oracle;
pub mod owner;
#[cfg(feature = "agent")]
#[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a library of tests: a failure is a panic")]
pub mod packets;
#[cfg(feature = "agent")]
pub mod picture;
pub mod poll;
pub mod privileged;
pub mod processors;
#[cfg(feature = "agent")]
#[allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a library of tests: a failure is a panic")]
pub mod random;
pub mod raw;
#[cfg(feature = "agent")]
#[allow(clippy::missing_panics_doc, reason = "a library of tests: a failure is a panic")]
pub mod reference;
pub mod residue;
pub mod shop;
#[cfg(feature = "agent")]
pub mod tables;
pub mod temp;
pub mod traffic;
#[cfg(feature = "agent")]
pub mod untouched;
#[cfg(feature = "agent")]
pub mod witness;
#[cfg(feature = "agent")]
#[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a library of tests: a failure is a panic")]
pub mod worlds;

pub use agent::{Agent, AgentBuilder};
pub use apiserver::ApiServer;
pub use cluster::Cluster;
pub use manifests::{Manifests, PodObject};
pub use netns::Namespace;
pub use node::{Network, Node, NodeBuilder, Pod};
pub use poll::{eventually, eventually_within};
pub use privileged::privileged_test;
pub use temp::TempDir;
