//! The walk of a packet on the host, and what must hold of every packet, whatever is in it.
//!
//! It knows the code that it checks and nothing else, so that fuzzers build it in seconds. It is compiled with
//! optimisation in every profile: millions of packets go through it in a test.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a library of tests: a failure is a panic"
)]

pub mod host;
pub mod model;
pub mod mutate;
pub mod random;
pub mod reading;
pub mod shop;
pub mod tables;
pub mod targets;

pub use host::Host;
pub use tables::Tables;
