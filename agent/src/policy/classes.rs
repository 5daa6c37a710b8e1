//! Peer classes: which addresses the rules in force cannot tell apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use portcullis_common::Kind;
use portcullis_common::abi::NumberSpace;
use portcullis_common::identity::PEER_UNKNOWN;

use super::ir::{NamedPort, protocol_name};
use super::linked::{Linked, PeerView};
use super::selector::{Word, list};
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
    /// What rules can see of it.
    pub fn view(&self) -> PeerView<'_> {
        PeerView { kind: self.kind, selectors: &self.selectors, blocks: &self.blocks, ports: &self.ports }
    }
}

/// Every peer class that some address has, and which of them a rule could mean.
pub struct PeerClasses<'l> {
    linked: &'l Linked,
    /// The classes, with their numbers.
    pub classes: Vec<(PeerClass, u32)>,
    /// What their addresses have in common, in words.
    pub names: BTreeMap<u32, String>,
    index: HashMap<PeerClass, u32>,
    by_selector: HashMap<u32, Vec<usize>>,
    by_block: HashMap<u32, Vec<usize>>,
    by_port_name: HashMap<String, Vec<usize>>,
    /// Blocks that contain every address of a family, ascending. What tells peers apart is not to be in one.
    pub families: Arc<[u32]>,
}

impl<'l> PeerClasses<'l> {
    /// With [`PEER_UNKNOWN`] only.
    ///
    /// Masqueraded traffic of both families has this class, because the address is not known: it is in a block only if
    /// every address is, so `0.0.0.0/0` matches it and `::/0` does too.
    pub fn new(linked: &'l Linked) -> Self {
        let families =
            (0..).zip(&linked.blocks).filter(|(_, block)| block.is_family()).map(|(id, _)| id).collect();
        let mut classes = Self {
            linked,
            classes: Vec::new(),
            names: BTreeMap::new(),
            index: HashMap::new(),
            by_selector: HashMap::new(),
            by_block: HashMap::new(),
            by_port_name: HashMap::new(),
            families,
        };
        let unknown = PeerClass {
            kind: Kind::World,
            principal: Kind::World.principal(),
            selectors: Arc::default(),
            blocks: classes.families.clone(),
            ports: Arc::default(),
        };
        let definition = classes.definition(&unknown, Kind::World.name());
        classes.add(unknown, PEER_UNKNOWN, definition);
        classes
    }

    /// The number of a class; `principal` is the principal's name.
    pub fn number(&mut self, class: PeerClass, principal: &str, numbers: &mut Numbers) -> u32 {
        if let Some(&number) = self.index.get(&class) {
            return number;
        }
        let definition = self.definition(&class, principal);
        let number = numbers.number(NumberSpace::Peer, &definition);
        self.add(class, number, definition);
        number
    }

    fn add(&mut self, class: PeerClass, number: u32, definition: String) {
        let at = self.classes.len();
        for &selector in &*class.selectors {
            self.by_selector.entry(selector).or_default().push(at);
        }
        for &block in &*class.blocks {
            self.by_block.entry(block).or_default().push(at);
        }
        let names: BTreeSet<&String> = class.ports.iter().map(|(name, ..)| name).collect();
        for name in names {
            self.by_port_name.entry(name.clone()).or_default().push(at);
        }
        self.names.insert(number, definition);
        self.index.insert(class.clone(), number);
        self.classes.push((class, number));
    }

    /// What the addresses of a class have in common: the same text for the same meaning, whatever the indexes are.
    fn definition(&self, class: &PeerClass, principal: &str) -> String {
        let mut text = principal.to_owned();
        let mut add = |what: &str, mut items: Vec<String>| {
            if !items.is_empty() {
                items.sort_unstable();
                text = format!("{text}; {what} {}", list(items));
            }
        };
        add("in", class.selectors.iter().map(|&id| self.linked.selectors[id as usize].to_string()).collect());
        add("at", class.blocks.iter().map(|&id| self.linked.blocks[id as usize].to_string()).collect());
        add("ports", class.ports.iter().map(port_text).collect());
        text
    }

    /// The classes that one of these selectors, blocks and names of ports may tell from "anything of its kind": matched
    /// by a selector, in a block, with a port of that name, or outside a block that has all of a family.
    pub fn candidates(
        &self,
        selectors: &BTreeSet<u32>,
        blocks: &BTreeSet<u32>,
        port_names: &BTreeSet<&str>,
    ) -> BTreeSet<usize> {
        let mut candidates = BTreeSet::new();
        candidates.extend(selectors.iter().filter_map(|id| self.by_selector.get(id)).flatten());
        candidates.extend(port_names.iter().filter_map(|name| self.by_port_name.get(*name)).flatten());
        for id in blocks {
            if self.families.contains(id) {
                let outside = |(class, _): &(PeerClass, u32)| class.blocks.binary_search(id).is_err();
                let classes = self.classes.iter().enumerate();
                candidates.extend(classes.filter(|(_, class)| outside(class)).map(|(at, _)| at));
            } else {
                candidates.extend(self.by_block.get(id).into_iter().flatten());
            }
        }
        candidates
    }
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
