//! The whole structure of a volume's metadata, checked: fsck.
//!
//! Owns: what must hold between keys. Leaves to others: whether blocks exist and are whole (client).
//!
//! Two passes over one snapshot. `walk` follows names from the root with a stack of its own and knows paths; `table`
//! reads every key once in key order and asks what each belongs to. Memory: a bit per inode and slice id, a small
//! record per inode with several names, and a page of entries per level of the tree.
//!
//! Invariants
//! - Damage ends no pass: what does not decode is reported, and what depends on it is left unsaid.
//! - On a volume where `check` finds nothing, every operation of `meta` leaves it so.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use bytes::Bytes;

use self::ids::IdSet;
use super::lookup::climb;
use super::{Finding, FindingKind, PAGE, Summary, after, get, volume};
use crate::format::codec::DecodeError;
use crate::format::keys::{self, Key};
use crate::format::values::{Value, Volume};
use crate::kv::{OpError, OpResult, Read};
use crate::types::{Ino, PackId};

mod ids;
mod table;
mod walk;

/// Keys between two calls of `progress`.
const PROGRESS_STEP: u64 = 1024;

/// Checks everything, reporting each violation to `found` and, now and then, the number of keys read to `progress`.
/// The findings of an attempt that ends in an error stand for nothing. ENOENT if there is no volume.
pub fn check(read: &mut dyn Read, progress: &mut dyn FnMut(u64), found: &mut dyn FnMut(Finding)) -> OpResult<Summary> {
    let mut check = Check {
        read,
        progress,
        found,
        summary: Summary::default(),
        volume: None,
        limits: Limits::default(),
        queued: IdSet::default(),
        visited: IdSet::default(),
        named: BTreeMap::new(),
        referenced: IdSet::default(),
        homes: BTreeMap::new(),
        packs: BTreeMap::new(),
        sums: table::Sums::default(),
    };
    match volume::load(check.read) {
        Ok(volume) => check.volume = Some(volume),
        // Reported by the pass over the table.
        Err(OpError::Damaged(_)) => {}
        Err(error @ (OpError::Errno(_) | OpError::Kv(_))) => return Err(error),
    }
    check.load_limits()?;
    check.load_queued()?;
    check.walk()?;
    check.table()?;
    (check.progress)(check.summary.keys);
    Ok(check.summary)
}

struct Check<'a> {
    read: &'a mut dyn Read,
    progress: &'a mut dyn FnMut(u64),
    found: &'a mut dyn FnMut(Finding),
    summary: Summary,
    volume: Option<Volume>,
    limits: Limits,
    /// Slices that are queued for deletion.
    queued: IdSet,
    /// Inodes that a path from the root leads to.
    visited: IdSet,
    /// Of inodes that are not directories: names found, where there is more to say than "one, in its parent".
    named: BTreeMap<Ino, Names>,
    /// Slices that own their blocks and were referred to.
    referenced: IdSet,
    /// Slices with a home: records that refer to them.
    homes: BTreeMap<u64, u64>,
    /// Bytes of blocks in each pack, as far as found.
    packs: BTreeMap<PackId, u64>,
    sums: table::Sums,
}

/// The first ids that were not given out.
#[derive(Default)]
struct Limits {
    ino: u64,
    slice: u64,
    session: u64,
}

/// Names of one inode, as found.
#[derive(Default)]
struct Names {
    /// All of them.
    count: u64,
    /// Those without a `link` key.
    unkeyed: u64,
}

impl Check<'_> {
    fn report(&mut self, kind: FindingKind, ino: Option<Ino>, path: String, text: String) {
        self.summary.findings += 1;
        (self.found)(Finding { kind, ino, path, text });
    }

    /// Reports about an inode whose path is not at hand.
    fn report_ino(&mut self, kind: FindingKind, ino: Ino, text: String) -> OpResult<()> {
        let path = self.path_of(ino)?;
        self.report(kind, Some(ino), path, text);
        Ok(())
    }

    /// A path of `ino`, or of the nearest thing above it that is cut off.
    fn path_of(&mut self, ino: Ino) -> OpResult<String> {
        let (names, top) = climb(self.read, ino)?;
        let mut path = if top == Ino::ROOT { String::new() } else { format!("(inode {})", top.0) };
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(&String::from_utf8_lossy(name));
        }
        if path.is_empty() {
            path.push('/');
        }
        Ok(path)
    }

    /// The value of `key` if it is there and decodes; one that does not is reported by the pass over the table.
    fn peek<V: Value>(&mut self, key: impl AsRef<[u8]>) -> OpResult<Option<V>> {
        match get(self.read, key) {
            Err(OpError::Damaged(_)) => Ok(None),
            other => other,
        }
    }

    fn exists(&mut self, key: impl AsRef<[u8]>) -> OpResult<bool> {
        Ok(self.read.get(key.as_ref())?.is_some())
    }

    fn load_limits(&mut self) -> OpResult<()> {
        self.limits = Limits {
            ino: self.peek(keys::next_ino())?.unwrap_or(Ino::ROOT.0 + 1),
            slice: self.peek(keys::next_slice())?.unwrap_or(crate::format::block::LEASE_SLICES),
            session: self.peek(keys::next_session())?.unwrap_or(1),
        };
        Ok(())
    }

    fn load_queued(&mut self) -> OpResult<()> {
        let (start, end) = keys::delslice_range();
        self.each(start, &end, &mut |check, key, _| {
            if let Ok(Key::DelSlice(slice)) = keys::decode(key) {
                check.queued.insert(slice.0);
                check.summary.queued += 1;
            }
            Ok(())
        })
    }

    /// Calls `visit` with every pair of a range, page by page.
    fn each(
        &mut self,
        mut start: alloc::vec::Vec<u8>,
        end: &[u8],
        visit: &mut dyn FnMut(&mut Self, &Bytes, &Bytes) -> OpResult<()>,
    ) -> OpResult<()> {
        loop {
            let page = self.read.scan(&start, end, PAGE)?;
            for (key, value) in &page {
                visit(self, key, value)?;
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => start = after(key),
                _ => return Ok(()),
            }
        }
    }
}

/// Why a value does not decode, in words.
fn why(error: DecodeError) -> String {
    format!("{error}")
}
