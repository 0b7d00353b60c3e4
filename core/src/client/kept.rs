//! Keys with their values, or that they have none, in a bounded piece of memory.
//!
//! Owns: how they lie in it, which go when it is full. Leaves to others: whether what is kept is still so (`meta_cache`).
//!
//! They lie in one buffer, in the order in which they came: a look touches few lines of the processor's cache, what was
//! written together is found together, and nothing is allocated for one of them. Two generations have half of the memory
//! each: the old one goes when the new one is full, and what is wanted meanwhile moves to the new one.
//!
//! An entry is the length of its key (u16), that of its value and 1, or 0 if there is none (u16), the key, the value,
//! and what is missing to a multiple of `STEP`.

use alloc::vec::Vec;
use core::mem;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::format::keys;

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;

const HEADER: usize = 4;
/// Sizes of entries are multiples of it: the room of one that has gone is for another of the same size.
const STEP: usize = 16;
/// What an entry takes in the index.
const INDEX: usize = 12;
/// Spreads numbers over the upper bits of a product. (the golden ratio: Knuth, The Art of Computer Programming 3, 6.4)
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Ends a list of free rooms.
const NONE: u32 = u32::MAX;

/// The values kept. All `hash` are `hash(key)`.
#[derive(Default)]
pub(super) struct Kept {
    half: usize,
    new: Generation,
    old: Generation,
}

#[derive(Default)]
struct Generation {
    /// Where an entry begins.
    index: HashTable<u32>,
    entries: Vec<u8>,
    /// For each size in steps the first room that is free; each has the next one in its first four bytes.
    free: Vec<u32>,
}

/// Of a key. Attributes of inodes that were made one after the other are next to each other: the low half, which places a key
/// in an index, has the inode's number, and the six bits above it, which choose a shard, are the same for eight.
pub(super) fn hash(key: &[u8]) -> u64 {
    let Some(ino) = keys::attr_ino(key) else { return xxh3_64(key) };
    let (one, eight) = (ino.0.wrapping_mul(SPREAD), (ino.0 / 8).wrapping_mul(SPREAD));
    one & !0 << 48 | eight >> 48 << 32 | ino.0 & 0xffff_ffff
}

impl Kept {
    /// In `bytes` of memory; 0 keeps nothing.
    pub(super) fn new(bytes: usize) -> Self {
        Self { half: (bytes / 2).min(NONE as usize), ..Self::default() }
    }

    /// What `look` makes of the value of `key`, if it is here.
    pub(super) fn look<T>(&mut self, hash: u64, key: &[u8], look: impl FnOnce(Option<&[u8]>) -> T) -> Option<T> {
        if let Some(value) = self.new.get(hash, key) {
            return Some(look(value));
        }
        let value = self.old.get(hash, key)?.map(<[u8]>::to_vec);
        self.old.remove(hash, key);
        self.insert(hash, key, value.as_deref());
        Some(look(value.as_deref()))
    }

    /// Whether it is here.
    pub(super) fn has(&self, hash: u64, key: &[u8]) -> bool {
        self.new.get(hash, key).is_some() || self.old.get(hash, key).is_some()
    }

    /// Keeps a key that is not here.
    pub(super) fn insert(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>) {
        let takes = room(key.len(), value) + INDEX;
        if self.half < takes {
            return;
        }
        if self.half < self.new.bytes() + takes {
            self.old = mem::take(&mut self.new);
        }
        self.new.insert(hash, key, value, self.half);
    }

    pub(super) fn remove(&mut self, hash: u64, key: &[u8]) {
        if !self.new.remove(hash, key) {
            self.old.remove(hash, key);
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.new.bytes() + self.old.bytes()
    }
}

impl Generation {
    fn bytes(&self) -> usize {
        self.entries.len() + self.index.len() * INDEX
    }

    fn get(&self, hash: u64, key: &[u8]) -> Option<Option<&[u8]>> {
        let at = *self.index.find(hash, |at| key_at(&self.entries, *at) == key)?;
        let value = at as usize + HEADER + key.len();
        Some(value_len(&self.entries, at).map(|len| &self.entries[value..value + len]))
    }

    fn insert(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>, most: usize) {
        let room = room(key.len(), value);
        let Self { index, entries, free } = self;
        let at = match free.get_mut(room / STEP) {
            Some(first) if *first != NONE => {
                let next = u32::from_le_bytes(array(entries, *first as usize));
                mem::replace(first, next) as usize
            }
            _ => {
                if entries.capacity() < entries.len() + room {
                    entries.reserve_exact(entries.len().max(room).min(most - entries.len()));
                }
                entries.resize(entries.len() + room, 0);
                entries.len() - room
            }
        };
        debug_assert!(
            key.len() <= usize::from(u16::MAX) && value.is_none_or(|value| value.len() < usize::from(u16::MAX))
        );
        let entry = &mut entries[at..at + room];
        entry[..2].copy_from_slice(&(key.len() as u16).to_le_bytes());
        entry[2..HEADER].copy_from_slice(&value.map_or(0, |value| value.len() as u16 + 1).to_le_bytes());
        entry[HEADER..HEADER + key.len()].copy_from_slice(key);
        if let Some(value) = value {
            entry[HEADER + key.len()..][..value.len()].copy_from_slice(value);
        }
        index.insert_unique(hash, at as u32, |at| self::hash(key_at(entries, *at)));
    }

    fn remove(&mut self, hash: u64, key: &[u8]) -> bool {
        let Ok(entry) = self.index.find_entry(hash, |at| key_at(&self.entries, *at) == key) else { return false };
        let (at, _) = entry.remove();
        let steps = size(key.len(), value_len(&self.entries, at).unwrap_or(0)) / STEP;
        if self.free.len() <= steps {
            self.free.resize(steps + 1, NONE);
        }
        let next = mem::replace(&mut self.free[steps], at);
        self.entries[at as usize..][..4].copy_from_slice(&next.to_le_bytes());
        true
    }
}

fn room(key: usize, value: Option<&[u8]>) -> usize {
    size(key, value.map_or(0, <[u8]>::len))
}

fn size(key: usize, value: usize) -> usize {
    (HEADER + key + value).next_multiple_of(STEP)
}

fn key_at(entries: &[u8], at: u32) -> &[u8] {
    let at = at as usize;
    let len = usize::from(u16::from_le_bytes(array(entries, at)));
    &entries[at + HEADER..at + HEADER + len]
}

fn value_len(entries: &[u8], at: u32) -> Option<usize> {
    usize::from(u16::from_le_bytes(array(entries, at as usize + 2))).checked_sub(1)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("as long")
}
