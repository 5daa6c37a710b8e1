//! The policy compiler: from the world to the desired maps, without I/O.
//!
//! Invariant: what is not understood in a policy never widens access, and the maps answer for every address exactly as
//! the policies do, whatever classes and wildcards lie between.

mod blocks;
mod classes;
mod cluster_config;
mod cluster_identity_policy;
mod compile;
mod compiler;
mod desired;
mod host_maps;
mod identity_policy;
pub mod ir;
mod linked;
mod mentioned;
mod network_policy;
mod port;
mod rows;
mod rules;
mod selector;
mod services;
mod subjects;
mod summary;
#[cfg(test)]
mod tests;
mod tiers;

pub use compile::compile;
pub use compiler::{Compiler, Delta};
pub use desired::*;
pub use host_maps::HostMaps;
pub use ir::{protocol_name, protocol_words};
pub use mentioned::mentioned_ports;
pub use port::{BadPort, Port};
pub use selector::{Accounts, BadSelector, Namespaces, PodSelector, Selector};
pub use services::{frontend_text, is_local, row_of_set, service_address, service_key};
pub use summary::{PolicySummary, summarize};
