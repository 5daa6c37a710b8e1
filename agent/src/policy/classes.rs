//! Peer classes: which addresses the rules in force cannot tell apart.
//!
//! Invariant: a class is here for exactly as long as an address or a prefix has it, and has one number all that time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use portcullis_common::Kind;
use portcullis_common::abi::NumberSpace;
use portcullis_common::identity::PEER_UNKNOWN;

use super::ir::{NamedPort, protocol_name};
use super::linked::{Linked, PeerView};
use super::rows::Sees;
use super::selector::Word;
use crate::identity::Numbers;

/// What makes a peer class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerClass {
    /// What its addresses belong to.
    pub kind: Kind,
    /// The principal of all of them.
    pub principal: u32,
    /// Indexes of the selectors that match them, ascending.
    pub selectors: Arc<[u32]>,
    /// Indexes of the blocks that contain them, ascending.
    pub blocks: Arc<[u32]>,
    /// Their named ports, of those that rules use.
    pub ports: Arc<[NamedPort]>,
}

impl PeerClass {
    /// That of an address in these blocks that is no pod's: no selector is about it. Neither is a block about the address
    /// of a service.
    pub fn without_pod(kind: Kind, blocks: Arc<[u32]>) -> Self {
        Self {
            kind,
            principal: kind.principal(),
            selectors: Arc::default(),
            blocks: if kind == Kind::Service { Arc::default() } else { blocks },
            ports: Arc::default(),
        }
    }

    /// What rules can see of it.
    pub fn view(&self) -> PeerView<'_> {
        PeerView { kind: self.kind, selectors: &self.selectors, blocks: &self.blocks, ports: &self.ports }
    }
}

/// Index of a class among [`PeerClasses`], while somebody has it.
pub type PeerId = u32;

/// A class that somebody has.
pub struct Peer {
    /// What makes it.
    pub class: Arc<PeerClass>,
    /// Its number.
    pub number: u32,
    /// Addresses and prefixes that have it.
    users: u32,
    /// Pods of this node among them.
    local: u32,
    /// What it was when changes were taken last.
    before: Reach,
}

/// Which subjects of this node's maps can meet a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// None.
    #[default]
    Nobody,
    /// This node's pods: no pod here has it, so what other nodes' pods may send to it is not asked here.
    Local,
    /// Every subject.
    Everybody,
}

impl Peer {
    /// Which subjects can meet it.
    pub fn reach(&self) -> Reach {
        match (self.users, self.local, self.class.kind) {
            (0, ..) => Reach::Nobody,
            (_, 0, Kind::Pod) => Reach::Local,
            _ => Reach::Everybody,
        }
    }
}

/// A class whose reach has changed.
pub struct Reached {
    /// Its index.
    pub id: PeerId,
    /// What it is.
    pub now: Reach,
}

/// Every peer class that somebody has.
#[derive(Default)]
pub struct PeerClasses {
    peers: Vec<Option<Peer>>,
    free: Vec<PeerId>,
    index: HashMap<Arc<PeerClass>, PeerId>,
    /// Those that every subject can meet, as of the last [`Self::take_changed`].
    met_by_everybody: Index,
    /// Those that only this node's pods can meet.
    met_by_local: Index,
    changed: BTreeSet<PeerId>,
    /// What their addresses have in common, in words, since the last look: of classes that came.
    pub names: BTreeMap<u32, String>,
}

impl PeerClasses {
    /// With [`PEER_UNKNOWN`] only; `families` are the blocks that contain every address of a family.
    ///
    /// Masqueraded traffic of both families has this class, because the address is not known: it is in a block only if
    /// every address is, so `0.0.0.0/0` matches it and `::/0` does too.
    pub fn new(linked: &Linked, families: &Arc<[u32]>) -> Self {
        let mut classes = Self::default();
        let unknown = PeerClass::without_pod(Kind::World, families.clone());
        let definition = definition(linked, &unknown, Kind::World.name());
        let id = classes.add(Arc::new(unknown), PEER_UNKNOWN, definition);
        classes.take(id, false);
        classes
    }

    /// The class of one more address or prefix; `principal` is the principal's name. `local`: of a pod of this node.
    pub fn acquire(
        &mut self,
        linked: &Linked,
        class: PeerClass,
        local: bool,
        principal: &str,
        numbers: &mut Numbers,
    ) -> PeerId {
        let id = if let Some(&id) = self.index.get(&class) {
            id
        } else {
            let definition = definition(linked, &class, principal);
            let number = numbers.number(NumberSpace::Peer, &definition);
            self.add(Arc::new(class), number, definition)
        };
        self.take(id, local);
        id
    }

    /// One address or prefix less.
    pub fn release(&mut self, id: PeerId, local: bool) {
        if let Some(Some(peer)) = self.peers.get_mut(id as usize) {
            peer.users = peer.users.saturating_sub(1);
            peer.local = peer.local.saturating_sub(u32::from(local));
            if peer.reach() != peer.before {
                self.changed.insert(id);
            }
        }
    }

    /// A class.
    pub fn get(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id as usize)?.as_ref()
    }

    /// The classes whose reach has changed since the last call. Those that nobody has any more stay until
    /// [`Self::remove`].
    pub fn take_changed(&mut self) -> Vec<Reached> {
        let mut reached = Vec::new();
        for id in std::mem::take(&mut self.changed) {
            let Some(Some(peer)) = self.peers.get_mut(id as usize) else { continue };
            let now = peer.reach();
            let before = std::mem::replace(&mut peer.before, now);
            let class = Arc::clone(&peer.class);
            if before != now {
                self.met_by(before).into_iter().for_each(|index| index.remove(&class, id));
                self.met_by(now).into_iter().for_each(|index| index.add(&class, id));
            }
            // A class that came and went in between was never written; it is reported so that it can be removed.
            if before != now || now == Reach::Nobody {
                reached.push(Reached { id, now });
            }
        }
        reached
    }

    fn met_by(&mut self, reach: Reach) -> Option<&mut Index> {
        match reach {
            Reach::Nobody => None,
            Reach::Local => Some(&mut self.met_by_local),
            Reach::Everybody => Some(&mut self.met_by_everybody),
        }
    }

    /// Forgets a class that nobody has.
    pub fn remove(&mut self, id: PeerId) {
        let Some(slot) = self.peers.get_mut(id as usize) else { return };
        let Some(peer) = slot.take() else { return };
        self.free.push(id);
        self.index.remove(&peer.class);
    }

    fn take(&mut self, id: PeerId, local: bool) {
        if let Some(Some(peer)) = self.peers.get_mut(id as usize) {
            peer.users += 1;
            peer.local += u32::from(local);
            if peer.reach() != peer.before {
                self.changed.insert(id);
            }
        }
    }

    fn add(&mut self, class: Arc<PeerClass>, number: u32, definition: String) -> PeerId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.peers.push(None);
            u32::try_from(self.peers.len() - 1).unwrap_or(u32::MAX)
        });
        self.names.insert(number, definition);
        self.index.insert(Arc::clone(&class), id);
        let peer = Peer { class, number, users: 0, local: 0, before: Reach::Nobody };
        if let Some(slot) = self.peers.get_mut(id as usize) {
            *slot = Some(peer);
        }
        id
    }

    /// The classes that what is seen may tell from "anything of its kind": matched by a selector, in a block, with a port
    /// of that name, or outside a block that has all of a family. `local`: for a pod of this node.
    pub fn candidates(&self, sees: &Sees, families: &[u32], local: bool) -> BTreeSet<PeerId> {
        let mut candidates = BTreeSet::new();
        self.met_by_everybody.candidates(sees, families, &mut candidates);
        if local {
            self.met_by_local.candidates(sees, families, &mut candidates);
        }
        candidates
    }
}

/// Classes by what rules may know them by.
#[derive(Default)]
struct Index {
    all: BTreeSet<PeerId>,
    by_selector: HashMap<u32, BTreeSet<PeerId>>,
    by_block: HashMap<u32, BTreeSet<PeerId>>,
    by_port_name: HashMap<String, BTreeSet<PeerId>>,
}

impl Index {
    fn add(&mut self, class: &PeerClass, id: PeerId) {
        self.all.insert(id);
        for &selector in &*class.selectors {
            self.by_selector.entry(selector).or_default().insert(id);
        }
        for &block in &*class.blocks {
            self.by_block.entry(block).or_default().insert(id);
        }
        for (name, ..) in &*class.ports {
            self.by_port_name.entry(name.clone()).or_default().insert(id);
        }
    }

    fn remove(&mut self, class: &PeerClass, id: PeerId) {
        self.all.remove(&id);
        class.selectors.iter().for_each(|selector| forget(&mut self.by_selector, selector, id));
        class.blocks.iter().for_each(|block| forget(&mut self.by_block, block, id));
        class.ports.iter().for_each(|(name, ..)| forget(&mut self.by_port_name, name, id));
    }

    fn candidates(&self, sees: &Sees, families: &[u32], candidates: &mut BTreeSet<PeerId>) {
        candidates.extend(sees.selectors.iter().filter_map(|id| self.by_selector.get(id)).flatten());
        candidates.extend(sees.names.iter().filter_map(|name| self.by_port_name.get(name)).flatten());
        for id in &sees.blocks {
            let inside = self.by_block.get(id);
            if families.contains(id) {
                candidates.extend(self.all.iter().filter(|at| inside.is_none_or(|ids| !ids.contains(at))));
            } else {
                candidates.extend(inside.into_iter().flatten());
            }
        }
    }
}

fn forget<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<PeerId>>, key: &K, id: PeerId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

/// What the addresses of a class have in common: the same text for the same meaning, whatever the indexes are.
fn definition(linked: &Linked, class: &PeerClass, principal: &str) -> String {
    let mut text = principal.to_owned();
    let mut add = |what: &str, mut items: Vec<String>| {
        if !items.is_empty() {
            items.sort_unstable();
            text.push_str("; ");
            text.push_str(what);
            text.push(' ');
            text.push_str(&items.join(", "));
        }
    };
    add("in", class.selectors.iter().map(|&id| linked.selectors[id as usize].to_string()).collect());
    add("at", class.blocks.iter().map(|&id| linked.blocks[id as usize].to_string()).collect());
    add("ports", class.ports.iter().map(port_text).collect());
    text
}

/// `http=TCP/8080`.
pub fn port_text((name, protocol, port): &NamedPort) -> String {
    format!("{}={}/{port}", Word(name), protocol_name(*protocol))
}

/// The ports of a pod that have one of these names, in one order and each once.
pub fn used_ports(ports: &[NamedPort], used: impl Fn(&str) -> bool) -> BTreeSet<NamedPort> {
    let real = |(name, protocol, _): &&NamedPort| protocol_name(*protocol) != "?" && used(name);
    ports.iter().filter(real).cloned().collect()
}
