//! The policy compiler: from the world to the desired maps, without I/O.

mod desired;

pub use desired::*;
