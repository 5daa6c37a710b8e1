//! What is different in the desired state since it was taken last.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_common::service::ServiceKey;

/// What is to be compared with what the kernel holds; everything else is as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a part of the desired state")]
pub struct Delta {
    /// All of it: nothing is known of what was there before.
    pub everything: bool,
    /// Exact addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Prefixes, all of them.
    pub prefixes: bool,
    /// Frontends.
    pub services: BTreeSet<ServiceKey>,
    /// Endpoint sets, all of them.
    pub sets: bool,
    /// Subject classes.
    pub subjects: BTreeSet<u32>,
    /// Names, problems or pods of this node.
    pub names: bool,
}

impl Delta {
    /// Everything.
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Whether the maps are wanted as they were.
    pub fn is_empty(&self) -> bool {
        let Self { everything, addresses, prefixes, services, sets, subjects, names: _ } = self;
        let listed = addresses.is_empty() && services.is_empty() && subjects.is_empty();
        listed && !(*everything || *prefixes || *sets)
    }

    /// What changed in either.
    pub fn join(&mut self, other: Self) {
        let Self { everything, addresses, prefixes, services, sets, subjects, names } = other;
        self.everything |= everything;
        self.addresses.extend(addresses);
        self.prefixes |= prefixes;
        self.services.extend(services);
        self.sets |= sets;
        self.subjects.extend(subjects);
        self.names |= names;
    }
}
