//! The second pass: every key in order, and what it belongs to.
//!
//! Owns: what holds between an inode and its contents, queues, counters, and keys that nothing refers to.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::{Check, PROGRESS_STEP, why};
use crate::format::codec::DecodeError;
use crate::format::keys::{self, Counter, Key};
use crate::format::values::{Cut, DelSlice, Dentry, DirStat, Home, Lease, Pack, Packed, Session, Value, Volume};
use crate::kv::OpResult;
use crate::meta::FindingKind;
use crate::meta::acl::{self, AclKind};
use crate::meta::chunk::{Stored, allocated};
use crate::meta::cover::Cuts;
use crate::types::{Attr, FileType, Ino, Place, SliceId, SliceRecord};

/// Totals to compare with the counters.
#[derive(Default)]
pub(super) struct Sums {
    bytes: u64,
    inodes: u64,
    counted_bytes: i64,
    counted_inodes: i64,
}

/// Where a record ends in the file; 0 without the geometry.
fn chunk_end(volume: Option<&Volume>, chunk: u32, record: &SliceRecord) -> u64 {
    let start = volume.map(|volume| u64::from(chunk).saturating_mul(volume.geometry.chunk_size));
    start.map_or(0, |start| start.saturating_add(u64::from(record.pos) + u64::from(record.len)))
}

impl Check<'_> {
    pub(super) fn table(&mut self) -> OpResult<()> {
        let (start, end) = keys::everything();
        self.each(start, &end, &mut |check, key, value| {
            check.summary.keys += 1;
            if check.summary.keys.is_multiple_of(PROGRESS_STEP) {
                (check.progress)(check.summary.keys);
            }
            check.pair(key, value)
        })?;
        self.totals();
        self.homes()
    }

    fn pair(&mut self, key: &Bytes, value: &Bytes) -> OpResult<()> {
        let key = match keys::decode(key) {
            Ok(key) => key,
            Err(error) => {
                let text = format!("key {key:02x?}: {}", why(error));
                self.report(FindingKind::Undecodable, None, String::new(), text);
                return Ok(());
            }
        };
        match key {
            Key::Attr(ino) => self.inode(ino, value),
            Key::Dentry(dir, name) => self.dentry(dir, name, value),
            Key::DirStat(dir, _) => {
                let live = self.peek::<Attr>(keys::attr(dir))?;
                let live = live.is_some_and(|attr| attr.kind == FileType::Directory && attr.nlink > 0);
                self.belongs(live, Some(dir), "statistics of what is not a directory")?;
                self.decodes::<DirStat>(value, Some(dir), "statistics of a directory")
            }
            Key::Link(ino, dir, name) => self.link(ino, dir, name),
            Key::Symlink(ino) => {
                let attr = self.peek::<Attr>(keys::attr(ino))?;
                let live = attr.is_some_and(|attr| attr.kind == FileType::Symlink);
                self.belongs(live, Some(ino), "a target of what is not a symbolic link")
            }
            Key::Xattr(ino, name) => {
                let live = self.exists(keys::attr(ino))? || self.exists(keys::delfile(ino))?;
                self.belongs(live, Some(ino), "an extended attribute of no inode")?;
                let bare = self.peek::<Attr>(keys::attr(ino))?.is_some_and(|attr| attr.bare);
                self.belongs(!bare, Some(ino), "an extended attribute of an inode that says it never had one")?;
                self.decodes::<Bytes>(value, Some(ino), "an extended attribute")?;
                self.acl(ino, name, value)
            }
            Key::Slice(ino, chunk, seq) => {
                let text = || format!("slice record {seq} of chunk {chunk} of inode {}, which does not exist", ino.0);
                self.contents(ino, text)?;
                // What a deleted file still refers to; that of files that exist is counted with them.
                if let Ok(record) = SliceRecord::decode(value)
                    && record.place == Place::Home
                    && !self.exists(keys::attr(ino))?
                {
                    *self.homes.entry(record.slice.0).or_default() += 1;
                }
                Ok(())
            }
            Key::Cut(ino, seq) => {
                self.contents(ino, || format!("cut {seq} of inode {}, which does not exist", ino.0))?;
                let queued = self.exists(keys::cutfile(ino))? || self.exists(keys::delfile(ino))?;
                self.belongs(queued, Some(ino), "a cut that no sweeper will find")
            }
            Key::Orphan(ino) => {
                let attr = self.peek::<Attr>(keys::attr(ino))?;
                if attr.is_none_or(|attr| attr.nlink > 0) {
                    let text = "queued as an orphan, but linked or gone".into();
                    self.report_ino(FindingKind::WrongOrphan, ino, text)?;
                }
                Ok(())
            }
            Key::DelFile(ino) => {
                if self.exists(keys::attr(ino))? {
                    let text = "queued as a deleted file, but its inode exists".into();
                    self.report_ino(FindingKind::WrongOrphan, ino, text)?;
                }
                Ok(())
            }
            Key::CutFile(ino) => {
                let live = self.exists(keys::attr(ino))?;
                self.belongs(live, Some(ino), "cuts of no inode")
            }
            Key::Counter(counter, _) => match i64::decode(value) {
                Ok(count) => {
                    let sum = match counter {
                        Counter::Bytes => &mut self.sums.counted_bytes,
                        Counter::Inodes => &mut self.sums.counted_inodes,
                    };
                    *sum = sum.saturating_add(count);
                    Ok(())
                }
                Err(error) => self.undecodable(None, "a counter", error),
            },
            Key::NextIno | Key::NextSlice | Key::NextSession => self.decodes::<u64>(value, None, "an allocator"),
            Key::Volume => self.decodes::<Volume>(value, None, "the volume's settings"),
            Key::Home(slice) => self.home(slice, value),
            Key::Packed(..) => match Packed::decode(value) {
                Ok(packed) => {
                    let pack = self.peek::<Pack>(keys::pack(packed.pack))?;
                    let there = pack.is_some_and(|pack| packed.at + packed.len <= pack.len);
                    *self.packs.entry(packed.pack).or_default() += u64::from(packed.len);
                    self.belongs(there, None, "a block in a pack that does not exist or is shorter")
                }
                Err(error) => self.undecodable(None, "a block in a pack", error),
            },
            Key::Pack(number) => match Pack::decode(value) {
                Ok(pack) => {
                    self.given_out(number.mount(), self.limits.session, "mount of a pack");
                    // The blocks in packs come before the packs.
                    let live = self.packs.remove(&number).unwrap_or(0);
                    self.belongs(live == u64::from(pack.live), None, "a pack that counts other bytes than are in use")
                }
                Err(error) => self.undecodable(None, "a pack", error),
            },
            Key::Session(id) => {
                self.given_out(id.0, self.limits.session, "session");
                self.decodes::<Session>(value, None, "a session")
            }
            Key::Lease(start) => match Lease::decode(value) {
                Ok(lease) => {
                    self.given_out(lease.end.saturating_sub(1).max(start), self.limits.slice, "lease up to slice");
                    self.belongs(start < lease.end, None, "an empty lease of slice ids")
                }
                Err(error) => self.undecodable(None, "a lease", error),
            },
            Key::DelSlice(slice) => {
                self.given_out(slice.0, self.limits.slice, "queued slice");
                self.decodes::<DelSlice>(value, None, "a queued slice")
            }
        }
    }

    /// An ACL among the extended attributes.
    fn acl(&mut self, ino: Ino, name: &[u8], value: &Bytes) -> OpResult<()> {
        let (Some(kind), Ok(stored)) = (AclKind::of(name), Bytes::decode(value)) else { return Ok(()) };
        let Some(attr) = self.peek::<Attr>(keys::attr(ino))? else { return Ok(()) };
        match acl::fault(&stored, kind, attr.kind) {
            Some(text) => self.report_ino(FindingKind::WrongKind, ino, text.into()),
            None => Ok(()),
        }
    }

    /// An inode with all that is stored under its number.
    fn inode(&mut self, ino: Ino, value: &Bytes) -> OpResult<()> {
        self.sums.inodes += 1;
        self.summary.inodes += 1;
        self.given_out(ino.0, self.limits.ino, "inode");
        let attr = match Attr::decode(value) {
            Ok(attr) => attr,
            // The walk has reported what a path leads to.
            Err(_) if self.visited.contains(ino.0) => return Ok(()),
            Err(error) => return self.undecodable(Some(ino), "an inode", error),
        };
        self.sums.bytes = self.sums.bytes.saturating_add(attr.stored);
        if attr.nlink == 0 {
            self.summary.orphans += 1;
            if !self.exists(keys::orphan(ino))? {
                let text = "no links, and not queued as an orphan".into();
                self.report_ino(FindingKind::WrongOrphan, ino, text)?;
            }
        } else if !self.visited.contains(ino.0) {
            let text = format!("{:?} with {} links that no path leads to", attr.kind, attr.nlink);
            self.report_ino(FindingKind::InodeWithoutDentry, ino, text)?;
        }
        match attr.kind {
            FileType::Regular => self.slices(ino, &attr),
            FileType::Symlink => self.target(ino, &attr),
            FileType::Directory => {
                self.summary.directories += 1;
                Ok(())
            }
            FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => Ok(()),
        }
    }

    fn target(&mut self, ino: Ino, attr: &Attr) -> OpResult<()> {
        let text = match self.read.get(&keys::symlink(ino))?.map(|value| Bytes::decode(&value)) {
            Some(Ok(target)) if target.len() as u64 == attr.length => return Ok(()),
            Some(Ok(target)) => format!("a target of {} bytes, recorded are {}", target.len(), attr.length),
            Some(Err(error)) => return self.undecodable(Some(ino), "a target", error),
            None => "no target".into(),
        };
        self.report_ino(FindingKind::MissingTarget, ino, text)
    }

    fn slices(&mut self, ino: Ino, attr: &Attr) -> OpResult<()> {
        let cuts = self.cuts(ino, attr)?;
        let (mut taken, mut complete) = (0_u64, true);
        // Of the chunk at hand.
        let mut records: Vec<Stored> = Vec::new();
        let (start, end) = keys::slice_range(ino, None);
        self.each(start, &end, &mut |check, key, value| {
            let Ok(Key::Slice(_, chunk, seq)) = keys::decode(key) else { return Ok(()) };
            if records.last().is_some_and(|last| last.chunk != chunk) {
                taken += allocated(&records).count();
                records.clear();
            }
            let record = match SliceRecord::decode(value) {
                Ok(record) => record,
                Err(error) => {
                    complete = false;
                    return check.undecodable(Some(ino), "a slice record", error);
                }
            };
            check.summary.slices += 1;
            check.record(ino, attr, (chunk, seq), &record, &cuts)?;
            records.push(Stored { key: key.clone(), chunk, seq, record, fresh: false });
            Ok(())
        })?;
        taken += allocated(&records).count();
        self.summary.bytes = self.summary.bytes.saturating_add(taken);
        let wrong = if attr.exact { taken != attr.stored } else { attr.stored < taken };
        if complete && wrong {
            let text = format!("{taken} bytes take space, recorded are {}", attr.stored);
            self.report_ino(FindingKind::WrongStored, ino, text)?;
        }
        Ok(())
    }

    fn cuts(&mut self, ino: Ino, attr: &Attr) -> OpResult<Cuts> {
        let mut cuts = Vec::new();
        let (start, end) = keys::cut_range(ino);
        self.each(start, &end, &mut |check, key, value| {
            let Ok(Key::Cut(_, seq)) = keys::decode(key) else { return Ok(()) };
            if attr.next_seq <= seq {
                check.report_ino(FindingKind::BadSlice, ino, format!("cut {seq} was not given out"))?;
            }
            match Cut::decode(value) {
                Ok(cut) => cuts.push((seq, cut.offset..cut.end)),
                Err(error) => check.undecodable(Some(ino), "a cut", error)?,
            }
            Ok(())
        })?;
        Ok(Cuts(cuts))
    }

    /// One slice record of an existing file.
    fn record(
        &mut self,
        ino: Ino,
        attr: &Attr,
        (chunk, seq): (u32, u64),
        record: &SliceRecord,
        cuts: &Cuts,
    ) -> OpResult<()> {
        let mut bad = Vec::new();
        if let Some(volume) = &self.volume {
            let chunk_size = volume.geometry.chunk_size;
            let chunk_start = u64::from(chunk).saturating_mul(chunk_size);
            let left = cuts.left(seq, chunk_start, record);
            let end = chunk_start.saturating_add(u64::from(record.pos) + u64::from(left));
            if chunk_size < u64::from(record.pos) + u64::from(record.len) {
                bad.push(format!("reaches past its chunk of {chunk_size} bytes"));
            }
            let data = !matches!(record.place, Place::Hole | Place::Reserved);
            if data && left > 0 && attr.length < end {
                bad.push(format!("shows up to {end} of a file of {} bytes", attr.length));
            }
        }
        let end = chunk_end(self.volume.as_ref(), chunk, record);
        if attr.reach < end && bad.is_empty() {
            bad.push(format!("reaches to {end}, and nothing should past {}", attr.reach));
        }
        if attr.next_seq <= seq {
            bad.push(format!("was not given out, the next one is {}", attr.next_seq));
        }
        let slice = record.slice.0;
        match record.place {
            Place::Inline(_) | Place::Hole | Place::Reserved => {}
            Place::Blocks if !self.referenced.insert(slice) => {
                bad.push(format!("refers to slice {slice}, as another record does"));
            }
            Place::Blocks => {}
            Place::Home => *self.homes.entry(slice).or_default() += 1,
        }
        if self.limits.slice <= slice {
            bad.push(format!("refers to slice {slice}, which was not given out"));
        }
        for text in bad {
            let text = format!("slice record {seq} of chunk {chunk} {text}");
            self.report_ino(FindingKind::BadSlice, ino, text)?;
        }
        if slice != 0 && self.queued.contains(slice) {
            let text = format!("slice {slice} is queued for deletion, and record {seq} of chunk {chunk} refers to it");
            self.report_ino(FindingKind::QueuedButLive, ino, text)?;
        }
        Ok(())
    }

    /// An entry of a directory that the walk did not reach.
    fn dentry(&mut self, dir: Ino, name: &[u8], value: &Bytes) -> OpResult<()> {
        let attr = self.peek::<Attr>(keys::attr(dir))?;
        let live = attr.is_some_and(|attr| attr.kind == FileType::Directory && attr.nlink > 0);
        if live && self.visited.contains(dir.0) {
            return Ok(());
        }
        // An unreachable directory is reported itself, one that does not decode too.
        if !live && !self.exists(keys::attr(dir))? {
            let text = format!("the name {:?} in inode {}, which does not exist", String::from_utf8_lossy(name), dir.0);
            self.report(FindingKind::DanglingKey, Some(dir), format!("(inode {})", dir.0), text);
        } else if attr.is_some() && !live {
            self.report_ino(FindingKind::DanglingKey, dir, "a name in what is not a linked directory".into())?;
        }
        match Dentry::decode(value) {
            Err(error) => self.undecodable(Some(dir), "a name", error),
            Ok(dentry) if self.exists(keys::attr(dentry.ino))? => Ok(()),
            Ok(dentry) => {
                let path = format!("{}/{}", self.path_of(dir)?, String::from_utf8_lossy(name));
                let text = format!("the name leads to inode {}, which does not exist", dentry.ino.0);
                self.report(FindingKind::DentryWithoutInode, Some(dentry.ino), path, text);
                Ok(())
            }
        }
    }

    fn link(&mut self, ino: Ino, dir: Ino, name: &[u8]) -> OpResult<()> {
        let dentry = self.peek::<Dentry>(keys::dentry(dir, name))?;
        if dentry.is_none_or(|dentry| dentry.ino != ino) {
            let name = String::from_utf8_lossy(name);
            let text = format!("a link key for {name:?} in inode {}, where no such name leads to it", dir.0);
            // The key itself would lead to a wrong path.
            self.report(FindingKind::WrongLinkCount, Some(ino), format!("(inode {})", ino.0), text);
        }
        Ok(())
    }

    fn home(&mut self, slice: SliceId, value: &Bytes) -> OpResult<()> {
        if let Err(error) = Home::decode(value) {
            return self.undecodable(None, "a slice's home", error);
        }
        self.homes.entry(slice.0).or_default();
        Ok(())
    }

    /// Compares the references found with those recorded. (After the pass: homes and slices come in any order.)
    fn homes(&mut self) -> OpResult<()> {
        for (slice, found) in core::mem::take(&mut self.homes) {
            let home = self.peek::<Home>(keys::home(SliceId(slice)))?;
            let recorded = home.map_or(0, |home| home.references);
            if recorded != found {
                let text = format!("slice {slice} with {found} references, recorded are {recorded}");
                self.report(FindingKind::BadSlice, None, String::new(), text);
            }
        }
        Ok(())
    }

    fn totals(&mut self) {
        let Sums { bytes, inodes, counted_bytes, counted_inodes } = self.sums;
        let counters = [("bytes", bytes, counted_bytes), ("inodes", inodes, counted_inodes)];
        for (what, found, counted) in counters {
            if i64::try_from(found) != Ok(counted) {
                let text = format!("{found} {what}, counted are {counted}");
                self.report(FindingKind::WrongUsage, None, String::new(), text);
            }
        }
    }

    /// Contents belong to an inode or to a deleted file.
    fn contents(&mut self, ino: Ino, text: impl FnOnce() -> String) -> OpResult<()> {
        if !self.exists(keys::attr(ino))? && !self.exists(keys::delfile(ino))? {
            self.report(FindingKind::DanglingSlice, Some(ino), format!("(inode {})", ino.0), text());
        }
        Ok(())
    }

    fn belongs(&mut self, holds: bool, ino: Option<Ino>, text: &str) -> OpResult<()> {
        match ino {
            _ if holds => Ok(()),
            Some(ino) => self.report_ino(FindingKind::DanglingKey, ino, text.into()),
            None => {
                self.report(FindingKind::DanglingKey, None, String::new(), text.into());
                Ok(())
            }
        }
    }

    fn given_out(&mut self, id: u64, limit: u64, what: &str) {
        if limit <= id {
            let text = format!("{what} {id} exists, the next one to give out is {limit}");
            self.report(FindingKind::WrongAllocator, None, String::new(), text);
        }
    }

    fn decodes<V: Value>(&mut self, value: &Bytes, ino: Option<Ino>, what: &str) -> OpResult<()> {
        match V::decode(value) {
            Ok(_) => Ok(()),
            Err(error) => self.undecodable(ino, what, error),
        }
    }

    fn undecodable(&mut self, ino: Option<Ino>, what: &str, error: DecodeError) -> OpResult<()> {
        let text = format!("{what}: {}", why(error));
        match ino {
            Some(ino) => self.report_ino(FindingKind::Undecodable, ino, text),
            None => {
                self.report(FindingKind::Undecodable, None, String::new(), text);
                Ok(())
            }
        }
    }
}
