//! The address maps: exact addresses and prefixes.
//!
//! Invariant: an address whose identity could not be written is nobody's in the kernel, and a word says that some are
//! missing, so that it is denied and never taken for somebody else's.

use std::collections::BTreeSet;

use portcullis_common::Kind;
use portcullis_common::abi::{config, names};
use portcullis_common::identity::{FIRST_PRINCIPAL, Identity};

use super::apply::full;
use super::scope::Scope;
use super::{Applied, Datapath, DatapathError};
use crate::policy::Desired;

impl Datapath {
    /// Writes and removes what is in the scope.
    pub(super) fn write_addresses(
        &mut self,
        desired: &Desired,
        scope: &Scope,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        let mut failed_nets = BTreeSet::new();
        for net in &scope.prefixes {
            let Some(identity) = desired.cidrs.get(net) else { continue };
            if self.addresses.prefixes().get(net) == Some(identity) {
                continue;
            }
            match self.maps.put_prefix(*net, identity) {
                Ok(()) => {
                    self.addresses.set_prefix(*net, Some(*identity));
                    applied.writes += 1;
                }
                Err(error) => {
                    failed_nets.insert(*net);
                    let name = if net.addr().is_ipv4() { names::CIDRS4 } else { names::CIDRS6 };
                    applied.errors.push(full(&error, name, "--cidrs-size"));
                }
            }
        }
        // This node and the others first: if room is short, they keep theirs.
        let ordinary = |identity: &Identity| identity.principal == 0 || identity.principal >= FIRST_PRINCIPAL;
        let wanted = scope.addresses.iter().filter_map(|address| desired.ipcache.get_key_value(address));
        let mut changed: Vec<_> =
            wanted.filter(|(a, identity)| self.addresses.exact().get(a) != Some(identity)).collect();
        changed.sort_by_key(|(_, identity)| (identity.kind != Kind::Host as u8, ordinary(identity)));
        let mut failed_addresses = BTreeSet::new();
        for (address, identity) in changed {
            match self.maps.put_address(*address, identity) {
                Ok(()) => {
                    self.addresses.set_exact(*address, Some(*identity));
                    applied.writes += 1;
                }
                Err(error) => {
                    failed_addresses.insert(*address);
                    let name = if address.is_ipv4() { names::IPCACHE4 } else { names::IPCACHE6 };
                    applied.errors.push(full(&error, name, "--ipcache-size"));
                }
            }
        }
        let overflow = !failed_nets.is_empty() || !failed_addresses.is_empty();
        // Before entries go: an address that could not be written must not be taken for somebody else's.
        if self.config(config::OVERFLOW)? != u32::from(overflow) {
            self.set_config(config::OVERFLOW, u32::from(overflow))?;
            applied.writes += 1;
        }
        // What could not be replaced must not keep its old meaning; the flag above denies it.
        for address in &scope.addresses {
            let goes = !desired.ipcache.contains_key(address) || failed_addresses.contains(address);
            if goes && self.addresses.exact().contains_key(address) {
                let _ = self.maps.remove_address(*address);
                self.addresses.set_exact(*address, None);
                applied.writes += 1;
            }
        }
        for net in &scope.prefixes {
            let goes = !desired.cidrs.contains_key(net) || failed_nets.contains(net);
            if goes && self.addresses.prefixes().contains_key(net) {
                let _ = self.maps.remove_prefix(*net);
                self.addresses.set_prefix(*net, None);
                applied.writes += 1;
            }
        }
        Ok(())
    }
}
