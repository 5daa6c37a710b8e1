//! Network namespaces and tools for the privileged tests.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a library of tests: a failure is a panic"
)]

pub mod fixture;
pub mod packets;
