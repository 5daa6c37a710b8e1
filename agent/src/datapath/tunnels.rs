//! The UDP ports that tunnels of the node take encapsulated packets at: pods may not send there, or they could put packets of
//! anybody's address inside. Other nodes have tunnels of the same kind, so the ports hold for all of them.

use std::collections::BTreeSet;

use portcullis_common::abi::config;

use super::{Datapath, DatapathError};

/// The words for these ports. Where there are more than fit every port may be one.
fn words(ports: &BTreeSet<u16>) -> [u32; config::TUNNEL_WORDS as usize] {
    let mut words = [0; config::TUNNEL_WORDS as usize];
    if ports.len() > 2 * words.len() {
        words[0] = u32::from(config::TUNNEL_ANY);
        return words;
    }
    for (i, port) in ports.iter().enumerate() {
        words[i / 2] |= u32::from(*port) << (16 * (i % 2));
    }
    words
}

impl Datapath {
    /// Says which ports tunnels have; the next [`Self::apply`] writes them.
    pub fn set_tunnels(&mut self, ports: &BTreeSet<u16>) {
        self.tunnels.clone_from(ports);
    }

    /// Writes the ports. Returns whether they are others than before: then flows are to be judged again.
    pub(super) fn write_tunnels(&mut self) -> Result<bool, DatapathError> {
        let mut changed = false;
        for (word, wanted) in (config::TUNNELS..).zip(words(&self.tunnels)) {
            if self.config(word)? != wanted {
                self.set_config(word, wanted)?;
                changed = true;
            }
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_fill_words_and_too_many_stand_for_all() {
        assert_eq!(words(&BTreeSet::new()), [0; 4]);
        assert_eq!(words(&[8472, 4789, 6081].into()), [0x17c1_12b5, 0x2118, 0, 0]);
        assert_eq!(words(&(1..=8).collect())[3], 0x0008_0007);
        assert_eq!(words(&(1..=9).collect()), [u32::from(config::TUNNEL_ANY), 0, 0, 0]);
    }
}
