//! What the kernel programs and the agent share: map layouts, verdicts and reasons with frozen numbers, the packet
//! parser and the verdict procedure.
//!
//! Everything here is `no_std`, allocates nothing and is generic over small traits, so that the same code runs in the
//! kernel, in host tests and in fuzzers. The crate knows nothing of Kubernetes and nothing of BPF.
#![cfg_attr(not(test), no_std)]
#![allow(
    clippy::inline_always,
    reason = "in the kernel a call costs, and only what is inlined is verified in its context"
)]
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "const functions cannot use From, and words of the wire and of maps are taken apart on purpose"
)]
#![allow(
    clippy::single_match_else,
    clippy::option_if_let_else,
    reason = "matches keep the shape of the instructions that the verifier sees"
)]

pub mod abi;
#[cfg(not(target_arch = "bpf"))]
pub mod bytes;
pub mod cache;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod identity;
pub mod judge;
pub mod known;
pub mod packet;
pub mod policy;
pub mod process;
pub mod reason;
pub mod service;
pub mod table;

pub use identity::{Identity, Kind};
pub use reason::{Direction, Reason, Verdict};
