//! Trimmed objects: of each Kubernetes object only what decides about identity and policy, and the world that they make
//! up. Sources produce these; identity and policy read them. Nothing here does I/O.

mod changes;
mod cluster_config;
mod convert;
mod objects;
mod tunnels;
mod world;

pub use changes::*;
pub use cluster_config::*;
pub use convert::*;
pub use objects::*;
pub use world::*;
