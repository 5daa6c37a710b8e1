//! The connection to the Kubernetes API: how it is found, how requests travel, and when it last answered.
//!
//! Whoever talks to the API server takes its client from here.

mod client;
mod contact;

pub use client::{ConfigError, client, config};
pub use contact::Contacts;
