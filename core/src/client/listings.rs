//! Directories of which all names are known, in a bounded piece of memory.
//!
//! Owns: their names in the order of their keys, and which go when there are too many.
//! Leaves to others: whether a single name is being written, and what a snapshot shows (`meta_cache`).
//!
//! A directory is known whole from its beginning, if it was made here, or once a listing has shown it from the first
//! name to the last and nothing has begun to change it meanwhile.
//!
//! Invariants
//! - If none of a directory's names is being written, its names here are those that the newest transactions left.
//! - A listing that is not whole goes as soon as a name of its directory begins to be written.
//!
//! A single name is found here too, or that there is none; whoever asks for it knows that it is not being written.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;
use core::hash::BuildHasherDefault;
use core::mem;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering as Memory};

use super::files::{InoHasher, SHARDS};
use super::std::collections::HashMap;
use super::std::sync::Mutex;
use super::wait::lock;
use crate::format::keys::{self, DentryPlace};
use crate::kv::Each;
use crate::marks::{Mark, reached_if};
use crate::planted::{self, Bug};
use crate::types::Ino;

/// What a name takes besides its bytes and its value's, about: its place in the order, and what the allocator needs.
const NAME_BYTES: usize = 48;
/// What a directory takes besides.
const DIR_BYTES: usize = 128;

/// The directories known.
pub(super) struct Listings {
    shards: Vec<Shard>,
    /// Of all names kept.
    bytes: AtomicUsize,
    max: usize,
    /// The shard that has to give next.
    hand: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    /// Raised when a name begins to be written.
    begun: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    dirs: HashMap<Ino, Dir, BuildHasherDefault<InoHasher>>,
    /// The number of the transaction that ended last of those that wrote a name of these directories.
    ended: u64,
}

/// A directory that has names here, or some that are being written.
#[derive(Default)]
struct Dir {
    /// Names times transactions that write them.
    writing: usize,
    names: Option<Names>,
}

struct Names {
    /// By the hash of the name.
    known: BTreeMap<u64, Name>,
    /// Those of hashes up to this are known; `None`: all.
    upto: Option<u64>,
    /// Since the hand was here.
    used: bool,
    bytes: usize,
}

/// The length of a name, the name, its value.
struct Name(Box<[u8]>);

/// What a snapshot shows of a directory from a place on.
pub(super) struct Page<'a> {
    from: DentryPlace<'a>,
    /// The transactions that had ended before it was taken.
    before: u64,
    names: Vec<(u64, Name)>,
    /// Something in it has no place among names.
    odd: bool,
}

/// How often names of some directories began to be written when they were shown, and where that is counted.
pub(super) type Shown<'a> = (&'a AtomicU64, u64);

impl Listings {
    /// In `bytes` of memory; 0 keeps nothing.
    pub(super) fn new(bytes: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self { shards, bytes: AtomicUsize::new(0), max: bytes, hand: AtomicUsize::new(0) }
    }

    fn shard(&self, dir: Ino) -> &Shard {
        &self.shards[dir.0 as usize % SHARDS]
    }

    /// `dir` is about to be made: it has no names.
    pub(super) fn makes(&self, dir: Ino) {
        if self.max == 0 {
            return;
        }
        let whole = Dir { writing: 0, names: Some(self.names(None)) };
        lock(&self.shard(dir).state).dirs.insert(dir, whole);
        self.make_room();
    }

    /// What `look` makes of the value of a name that is not being written, if its directory is known whole.
    pub(super) fn look<T>(&self, at: &DentryPlace<'_>, look: impl FnOnce(Option<&[u8]>) -> T) -> Option<T> {
        let mut state = lock(&self.shard(at.dir).state);
        let names = state.dirs.get_mut(&at.dir)?.names.as_mut().filter(|names| names.upto.is_none())?;
        names.used = true;
        Some(look(names.get(at).map(Name::value)))
    }

    /// Shows up to `limit` names from `from` on to `each`, if the directory is known whole and none of its names is being
    /// written; with `before` also if no transaction has ended since that wrote one: so as a snapshot shows them.
    pub(super) fn visit(
        &self,
        from: &DentryPlace<'_>,
        limit: usize,
        before: Option<u64>,
        each: Each<'_>,
    ) -> Option<Shown<'_>> {
        let shard = self.shard(from.dir);
        let mut state = lock(&shard.state);
        let ended = state.ended;
        let dir = state.dirs.get_mut(&from.dir).filter(|dir| dir.writing == 0)?;
        let names = dir.names.as_mut().filter(|names| names.upto.is_none())?;
        if before.is_some_and(|before| before < ended) {
            return None;
        }
        names.used = true;
        let mut key = keys::dentry_from(from.dir, 0);
        let below = |(hash, name): &(&u64, &Name)| **hash == from.hash && name.name() < from.name;
        for (hash, name) in names.known.range(from.hash..).skip_while(below).take(limit) {
            keys::set_dentry(&mut key, *hash, name.name());
            each(&key, name.value());
        }
        Some((&shard.begun, shard.begun.load(Memory::Acquire)))
    }

    /// A page for what a snapshot shows from `from` on, which was taken after `before` transactions had ended; `None`:
    /// `fill` has no use for it.
    pub(super) fn page<'a>(&self, from: DentryPlace<'a>, before: u64) -> Option<Page<'a>> {
        let state = lock(&self.shard(from.dir).state);
        let names = state.dirs.get(&from.dir).and_then(|dir| dir.names.as_ref());
        let goes_on = names.map_or(from.is_first(), |names| names.goes_on_at(&from));
        (self.max > 0 && goes_on).then(|| Page { from, before, names: Vec::new(), odd: false })
    }

    /// Keeps what a page shows, if it goes on from what is here; `all`: there are no more names.
    pub(super) fn fill(&self, page: Page<'_>, all: bool) {
        let Page { from, before, names: shown, odd } = page;
        let mut state = lock(&self.shard(from.dir).state);
        let is_old = before < state.ended && !planted::is(Bug::OldNamesKept);
        reached_if(Mark::OldListingNotKept, || is_old);
        if is_old || odd {
            return;
        }
        let upto = match shown.last() {
            _ if all => None,
            Some((hash, _)) => Some(*hash),
            None => return,
        };
        if from.is_first() {
            let dir = state.dirs.entry(from.dir).or_default();
            if dir.names.is_none() && dir.writing == 0 {
                dir.names = Some(self.names(Some(0)));
            }
        }
        let Some(dir) = state.dirs.get_mut(&from.dir) else { return };
        let Some(names) = dir.names.as_mut().filter(|names| names.goes_on_at(&from)) else { return };
        let old = names.bytes;
        let fits = shown.into_iter().all(|(hash, name)| names.put(hash, name));
        self.bytes.fetch_add(names.bytes - old, Memory::Relaxed);
        names.upto = upto;
        if !fits {
            self.drop_names(dir);
        }
        drop(state);
        reached_if(Mark::ListingKept, || fits && all);
        self.make_room();
    }

    /// A name begins to be written.
    pub(super) fn begin(&self, at: &DentryPlace<'_>) {
        let shard = self.shard(at.dir);
        let mut state = lock(&shard.state);
        shard.begun.fetch_add(1, Memory::AcqRel);
        let dir = state.dirs.entry(at.dir).or_default();
        dir.writing += 1;
        if dir.names.as_ref().is_some_and(|names| names.upto.is_some()) {
            self.drop_names(dir);
        }
    }

    /// A name is no longer being written by one of the transactions that did, as the one that is number `ended` to end.
    pub(super) fn end(&self, at: &DentryPlace<'_>, ended: u64, left: Left<'_>) {
        let mut state = lock(&self.shard(at.dir).state);
        state.ended = state.ended.max(ended);
        let Some(dir) = state.dirs.get_mut(&at.dir) else { return };
        dir.writing -= 1;
        if let Some(names) = &mut dir.names {
            let old = names.bytes;
            let fits = match left {
                Left::AsItWas => true,
                Left::Value(Some(value)) => names.put(at.hash, Name::new(at.name, value)),
                Left::Value(None) => {
                    names.remove(at);
                    true
                }
                Left::Unsure => false,
            };
            self.bytes.fetch_add(names.bytes.wrapping_sub(old), Memory::Relaxed);
            if !fits {
                self.drop_names(dir);
            }
        }
        if dir.writing == 0 && dir.names.is_none() {
            state.dirs.remove(&at.dir);
        }
    }

    fn names(&self, upto: Option<u64>) -> Names {
        self.bytes.fetch_add(DIR_BYTES, Memory::Relaxed);
        Names { known: BTreeMap::new(), upto, used: false, bytes: DIR_BYTES }
    }

    fn drop_names(&self, dir: &mut Dir) {
        if let Some(names) = dir.names.take() {
            self.bytes.fetch_sub(names.bytes, Memory::Relaxed);
        }
    }

    /// Lets go of directories that were not used for long while there are too many names.
    pub(super) fn make_room(&self) {
        // In the first turn all may have been used.
        for _ in 0..2 * SHARDS {
            if self.bytes.load(Memory::Relaxed) <= self.max {
                return;
            }
            let hand = self.hand.fetch_add(1, Memory::Relaxed);
            let mut state = lock(&self.shards[hand % SHARDS].state);
            let mut gone = Vec::new();
            state.dirs.retain(|_, dir| {
                if let Some(names) = &mut dir.names
                    && !mem::take(&mut names.used)
                {
                    gone.extend(dir.names.take());
                }
                dir.writing > 0 || dir.names.is_some()
            });
            self.bytes.fetch_sub(gone.iter().map(|names| names.bytes).sum(), Memory::Relaxed);
            // Their memory goes without the lock.
            drop(state);
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Memory::Relaxed)
    }
}

/// What a transaction left of a key.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    AsItWas,
    Value(Option<&'a [u8]>),
    /// Nobody here knows.
    Unsure,
}

impl Page<'_> {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        match DentryPlace::of(key) {
            Some(at) => self.names.push((at.hash, Name::new(at.name, value))),
            None => self.odd = true,
        }
    }
}

impl Names {
    /// Whether there is more to know, and nothing before `at` is left out.
    fn goes_on_at(&self, at: &DentryPlace<'_>) -> bool {
        self.upto.is_some_and(|upto| at.hash <= upto)
    }

    fn get(&self, at: &DentryPlace<'_>) -> Option<&Name> {
        self.known.get(&at.hash).filter(|name| name.name() == at.name)
    }

    /// False if there is another name of the same hash: then the directory cannot be kept.
    fn put(&mut self, hash: u64, name: Name) -> bool {
        let mut fits = true;
        self.bytes += name.bytes();
        match self.known.entry(hash) {
            Entry::Vacant(entry) => _ = entry.insert(name),
            Entry::Occupied(mut entry) => {
                fits = entry.get().name() == name.name();
                self.bytes -= entry.insert(name).bytes();
            }
        }
        fits
    }

    fn remove(&mut self, at: &DentryPlace<'_>) {
        if self.get(at).is_some() {
            self.bytes -= self.known.remove(&at.hash).map_or(0, |name| name.bytes());
        }
    }
}

impl Name {
    fn new(name: &[u8], value: &[u8]) -> Self {
        let len = u8::try_from(name.len()).expect("NAME_MAX fits");
        Self([&[len], name, value].concat().into())
    }

    fn name(&self) -> &[u8] {
        &self.0[1..][..usize::from(self.0[0])]
    }

    fn value(&self) -> &[u8] {
        &self.0[1 + usize::from(self.0[0])..]
    }

    fn bytes(&self) -> usize {
        NAME_BYTES + self.0.len()
    }
}
