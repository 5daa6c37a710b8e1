//! Random series of changes: objects that come, change and go in any order, and lists that are read anew.

use std::fmt;

use portcullis::model::{Object, ObjectKey, World};

use super::manifests::manifest;
use super::{Rng, objects};

/// One change.
#[derive(Clone, Debug)]
pub enum Change {
    /// An object is there, or is otherwise than before.
    Apply(Object),
    /// An object is gone; of a pod the one with the UID, if one is given.
    Delete(ObjectKey, Option<String>),
    /// A kind was listed: what is not in the list is gone, and the rest comes in the list's order.
    Relist(Vec<Object>),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply(object) => write!(f, "apply {}", manifest(object)),
            Self::Delete(key, uid) => {
                let ObjectKey { kind, namespace, name } = key;
                write!(f, "delete {kind:?} {namespace}/{name} {}", uid.as_deref().unwrap_or_default())
            }
            Self::Relist(list) => {
                write!(f, "list")?;
                list.iter().try_for_each(|object| write!(f, "\n  {}", manifest(object)))
            }
        }
    }
}

impl Change {
    /// Brings the change to a world, as the owner of the agent's world does it with what a source delivers.
    pub fn bring_to(self, world: &mut World) {
        match self {
            Self::Apply(object) => world.apply(object),
            Self::Delete(key, uid) => world.delete(&key, uid.as_deref()),
            Self::Relist(list) => {
                let Some(kind) = list.first().map(|object| object.key().kind) else { return };
                let listed: Vec<_> = list.iter().map(|object| (object.key(), uid(object))).collect();
                for object in objects::of(world) {
                    let (key, uid) = (object.key(), uid(&object));
                    if key.kind == kind && !listed.contains(&(key.clone(), uid.clone())) {
                        world.delete(&key, uid.as_deref());
                    }
                }
                for object in list {
                    world.apply(object);
                }
            }
        }
    }
}

fn uid(object: &Object) -> Option<String> {
    match object {
        Object::Pod(pod) => Some(pod.uid.clone()),
        _ => None,
    }
}

impl Rng {
    /// Changes with objects of three random worlds that share their names, so that most come to replace others.
    pub fn changes(&mut self, count: usize) -> Vec<Change> {
        let worlds: Vec<World> = (0..3)
            .map(|_| {
                let mut world = self.world_with_identities();
                self.add_services(&mut world);
                self.add_guardrails(&mut world);
                world
            })
            .collect();
        let pools: Vec<Vec<Object>> = worlds.iter().map(objects::of).collect();
        (0..count).map(|_| self.change(&pools)).collect()
    }

    fn change(&mut self, pools: &[Vec<Object>]) -> Change {
        let pool = self.pick(pools).clone();
        let object = self.pick(&pool).clone();
        match self.below(100) {
            0..70 => Change::Apply(object),
            70..90 => {
                let uid = if self.chance(80) { uid(&object) } else { None };
                Change::Delete(object.key(), uid)
            }
            _ => {
                let kind = object.key().kind;
                let mut list: Vec<Object> =
                    pool.into_iter().filter(|object| object.key().kind == kind).collect();
                self.shuffle(&mut list);
                let length = 1 + self.below(list.len());
                list.truncate(length);
                Change::Relist(list)
            }
        }
    }

    /// Brings a list into any order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}
