//! The object store, and what a crash leaves of it.
//!
//! Owns: which objects are there, and which puts and deletes a barrier has covered.
//! Leaves to others: who puts and deletes what (`store`), what else a crash leaves (`disk`, `explore`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kiseki_core::types::{PackId, SliceId};
use xxhash_rust::xxh3::Xxh3;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Block(SliceId, u32),
    Pack(PackId),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(slice, index) => write!(f, "block {}-{index}", slice.0),
            Self::Pack(pack) => write!(f, "pack {:x}", pack.0),
        }
    }
}

#[derive(Clone, Debug)]
struct Object {
    bytes: Bytes,
    /// A barrier that began after its put has returned.
    durable: bool,
}

/// The object store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    there: BTreeMap<Name, Object>,
    /// Deleted, and no barrier that began after that has returned.
    deleted: BTreeMap<Name, Object>,
}

impl Objects {
    pub(crate) fn get(&self, name: Name) -> Option<&Bytes> {
        self.there.get(&name).map(|object| &object.bytes)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = Name> {
        self.there.keys().copied()
    }

    /// Puts an object: where there is one of that name, only with the same bytes.
    pub(super) fn put(&mut self, name: Name, bytes: Bytes) {
        let object = self.there.entry(name).or_insert(Object { bytes: bytes.clone(), durable: false });
        assert_eq!(object.bytes, bytes, "{name} was put with other bytes");
    }

    /// Whether there was one.
    pub(super) fn delete(&mut self, name: Name) -> bool {
        let object = self.there.remove(&name);
        let found = object.is_some();
        self.deleted.extend(object.map(|object| (name, object)));
        found
    }

    pub(super) fn barrier(&mut self) {
        self.there.values_mut().for_each(|object| object.durable = true);
        self.deleted.clear();
    }

    /// Whether a crash leaves just what is there.
    pub(super) fn is_durable(&self) -> bool {
        self.there.values().all(|object| object.durable) && self.deleted.is_empty()
    }

    /// What a crash may leave: all that is there; or, of what was put or deleted since a barrier, none of the puts, one
    /// of them, all and each of the deleted.
    pub(crate) fn survivors(&self) -> Vec<Arc<Self>> {
        let mut left = vec![self.left_with(|_| true, |_| false)];
        let volatile: Vec<Name> =
            self.there.iter().filter(|(_, object)| !object.durable).map(|(name, _)| *name).collect();
        if !volatile.is_empty() {
            left.push(self.left_with(|_| false, |_| false));
        }
        if volatile.len() > 1 {
            left.extend(volatile.iter().map(|one| self.left_with(|name| name == *one, |_| false)));
        }
        if !self.deleted.is_empty() {
            left.push(self.left_with(|_| true, |_| true));
        }
        if self.deleted.len() > 1 {
            left.extend(self.deleted.keys().map(|one| self.left_with(|_| true, |name| name == *one)));
        }
        left
    }

    /// What is durable, of the others those that `kept` names, and what is `back` of those that were deleted.
    fn left_with(&self, kept: impl Fn(Name) -> bool, back: impl Fn(Name) -> bool) -> Arc<Self> {
        let there = self.there.iter().filter(|(name, object)| object.durable || kept(**name));
        let deleted = self.deleted.iter().filter(|(name, _)| back(**name));
        let durable = |(name, object): (&Name, &Object)| (*name, Object { durable: true, ..object.clone() });
        Arc::new(Self { there: there.chain(deleted).map(durable).collect(), deleted: BTreeMap::new() })
    }

    /// What tells the states of the store apart.
    pub(crate) fn hash_into(&self, hash: &mut Xxh3) {
        hash.update(&self.there.len().to_le_bytes());
        for (name, object) in &self.there {
            let words = match name {
                Name::Block(slice, index) => [slice.0, u64::from(*index)],
                Name::Pack(pack) => [pack.0, u64::MAX],
            };
            words.iter().for_each(|word| hash.update(&word.to_le_bytes()));
            hash.update(&object.bytes);
        }
    }
}
