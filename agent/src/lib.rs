//! Portcullis: a Kubernetes node agent that judges every packet of a pod by the service accounts at both ends.
//!
//! Data flows one way: `sources` -> `model` -> `identity` -> `policy` -> `datapath`. One task owns the world and is its
//! single writer; the compiler is a pure function; nothing but `datapath` touches the kernel's maps and programs.

pub mod api;
pub mod cli;
pub mod cni;
pub mod conntrack;
pub mod controller;
pub mod datapath;
pub mod endpoints;
pub mod identity;
pub mod kubernetes;
pub mod matrix;
pub mod metrics;
pub mod model;
pub mod monitor;
mod netlink;
pub mod policy;
pub mod sources;
pub mod state;
pub mod status_writer;
