//! What the consumer has been told of a kind, so that it is told of changes only, also by a new list.
//!
//! A record holds no object, only what tells an object from another: the name, the UID, and a hash of what was kept of
//! it. What changes in an object and is not kept (the heartbeat of a node) is no change.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasher as _, Hasher, RandomState};
use std::num::NonZero;

use super::item::Id;
use super::uid::Uid;
use crate::model::{Object, ObjectKey, ObjectKind};
use crate::sources::SourceEvent;

/// The records of a kind.
#[derive(Debug)]
pub(super) struct Index {
    kind: ObjectKind,
    /// By `namespace/name`.
    records: HashMap<Box<str>, Record>,
    /// How many of them the consumer knows.
    sent: usize,
    /// Which list is being read, or was read last.
    list: u32,
    /// Whether it is being read.
    listing: bool,
    /// With random keys, so that nobody can make two objects with one hash.
    hashes: RandomState,
}

#[derive(Debug)]
struct Record {
    uid: Uid,
    /// Of the object that the consumer knows; `None` if it was never told of one.
    sent: Option<NonZero<u64>>,
    /// The list in which it was seen last.
    list: u32,
    /// Its version, as far as that is known.
    version: Option<u64>,
}

impl Index {
    /// Without records.
    pub fn new(kind: ObjectKind) -> Self {
        Self { kind, records: HashMap::new(), sent: 0, list: 0, listing: false, hashes: RandomState::new() }
    }

    /// How many objects the consumer knows.
    pub const fn len(&self) -> usize {
        self.sent
    }

    /// Whether there is an object of a name, understood or not.
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.records.contains_key(show(namespace, name).as_str())
    }

    /// A list begins: what it does not have is gone when it ends.
    pub fn begin(&mut self) {
        self.list = self.list.wrapping_add(1);
        self.listing = true;
    }

    /// An object is there. One that is not understood leaves what was understood of it before.
    ///
    /// News that is older than what is known is no news: a watch that begins again may repeat how things were. A list is
    /// believed whatever versions it has, since those of a server that was restored from a backup begin again.
    pub fn see(&mut self, id: &Id, object: Option<Object>, events: &mut Vec<SourceEvent>) {
        let hash = object.as_ref().map(|object| hash(&self.hashes, object));
        let key = show(&id.namespace, &id.name);
        let list = self.list;
        let uid = Uid::from(id.uid.as_str());
        let version = id.version;
        let record = self.records.entry(key.into()).or_insert_with(|| Record {
            uid: uid.clone(),
            sent: None,
            list,
            version,
        });
        if !self.listing && version.is_some() && version < record.version {
            return;
        }
        (record.list, record.version) = (list, version);
        if record.uid != uid {
            // Another object of the same name. The end of the old one was missed, or comes later.
            let old = std::mem::replace(&mut record.uid, uid);
            let told = record.sent.take().is_some();
            self.sent -= usize::from(told);
            if told && (self.kind == ObjectKind::Pod || object.is_none()) {
                events.push(delete(self.kind, &id.namespace, &id.name, &old));
            }
        }
        if let (Some(object), Some(hash)) = (object, hash)
            && record.sent != Some(hash)
        {
            self.sent += usize::from(record.sent.replace(hash).is_none());
            events.push(SourceEvent::Apply(object));
        }
    }

    /// An object is gone, if it is still the one that is known.
    pub fn remove(&mut self, id: &Id, events: &mut Vec<SourceEvent>) {
        let key = show(&id.namespace, &id.name);
        if self.records.get(key.as_str()).is_some_and(|record| record.uid == id.uid.as_str().into())
            && let Some(record) = self.records.remove(key.as_str())
            && record.sent.is_some()
        {
            self.sent -= 1;
            events.push(delete(self.kind, &id.namespace, &id.name, &record.uid));
        }
    }

    /// The list is complete: what it did not have is gone.
    pub fn sweep(&mut self, events: &mut Vec<SourceEvent>) {
        let (kind, list, sent) = (self.kind, self.list, &mut self.sent);
        self.records.retain(|key, record| {
            let stays = record.list == list;
            if !stays && record.sent.is_some() {
                *sent -= 1;
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                events.push(delete(kind, namespace, name, &record.uid));
            }
            stays
        });
        self.listing = false;
        self.records.shrink_to_fit();
    }

    /// Everything is gone.
    pub fn clear(&mut self, events: &mut Vec<SourceEvent>) {
        self.begin();
        self.sweep(events);
    }
}

fn delete(kind: ObjectKind, namespace: &str, name: &str, uid: &Uid) -> SourceEvent {
    SourceEvent::Delete {
        key: ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() },
        uid: (kind == ObjectKind::Pod).then(|| uid.to_string()),
    }
}

/// `shop/db`, or the name alone.
pub(super) fn show(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// A hash of everything in an object. The types of the API cannot be hashed, but all of them can be written.
fn hash(hashes: &RandomState, object: &Object) -> NonZero<u64> {
    struct Writer<H>(H);
    impl<H: Hasher> fmt::Write for Writer<H> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut writer = Writer(hashes.build_hasher());
    // Our writer does not fail.
    let _ = write!(writer, "{object:?}");
    NonZero::new(writer.0.finish()).unwrap_or(NonZero::<u64>::MIN)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
