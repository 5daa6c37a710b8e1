//! Trimmed objects: of each Kubernetes object only what decides about identity and policy, and the world that they make
//! up. Sources produce these; identity and policy read them. Nothing here does I/O.

mod objects;
mod world;

pub use objects::*;
pub use world::*;
