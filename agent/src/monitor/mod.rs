//! Verdict events for people: with names, one a line, to any number of `portcullis monitor`.
//!
//! The agent reads the ring buffer and hands each event on through a socket in its run directory ([`socket`]). It never
//! waits for a monitor: what a monitor does not take in time is counted and told to it ([`queue`]).

mod clock;
mod filter;
mod line;
mod queue;
mod record;
mod server;
pub mod socket;

pub use clock::Clock;
pub use filter::{BadPort, BadPrincipal, Filter, PortFilter, Principal};
pub use line::{event_line, missed_line};
pub use record::{EventRecord, FORMAT, Hello, Lost, Names, Party, Record};
pub use server::{Monitors, serve};
