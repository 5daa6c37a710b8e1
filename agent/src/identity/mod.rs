//! Numbers for principals, classes and rules, and who owns an address.
//!
//! Invariants: a definition keeps its number for as long as anybody may hold it, and an address has one owner, which
//! depends on the pods that claim it and never on the order in which they became known.

mod cached;
mod numbers;
mod owners;

pub use cached::cached_addresses;
pub use numbers::{DEFAULT_SUBJECTS, Numbers};
pub use owners::{claims, is_known, owners, started};
