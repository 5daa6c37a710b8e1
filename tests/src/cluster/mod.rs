//! A real cluster on one machine.

pub mod binaries;
