//! What the kernel programs and the agent share: map layouts, verdicts and reasons with frozen numbers, the packet
//! parser and the verdict procedure.
//!
//! Everything here is `no_std`, allocates nothing and is generic over small traits, so that the same code runs in the
//! kernel, in host tests and in fuzzers. The crate knows nothing of Kubernetes and nothing of BPF.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod event;
pub mod flow;
pub mod identity;
pub mod judge;
pub mod packet;
pub mod policy;
pub mod process;
pub mod reason;

pub use identity::{Identity, Kind};
pub use reason::{Direction, Reason, Verdict};
