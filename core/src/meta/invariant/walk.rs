//! The first pass: from the root along every name, with the path at hand.
//!
//! Owns: what holds between a directory, its entries, its statistics and the inodes that they lead to.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::{Check, why};
use crate::format::keys::{self, Key};
use crate::format::values::{Dentry, DirStat, Value};
use crate::kv::{OpResult, Pairs};
use crate::meta::{FindingKind, PAGE, after};
use crate::types::{Attr, FileType, Ino, STRIPES};

/// A directory on the way down.
struct Frame {
    dir: Ino,
    /// Length of the path up to and with this directory's name.
    path_len: usize,
    page: VecDeque<(Bytes, Bytes)>,
    /// Where the next page starts; `None` after the last one.
    next: Option<Vec<u8>>,
    entries: i64,
    subdirs: i64,
}

impl Frame {
    fn new(dir: Ino, path_len: usize) -> Self {
        let next = Some(keys::dentry_range(dir).0);
        Self { dir, path_len, page: VecDeque::new(), next, entries: 0, subdirs: 0 }
    }
}

impl Check<'_> {
    pub(super) fn walk(&mut self) -> OpResult<()> {
        let mut path = String::new();
        let mut stack = Vec::new();
        self.visited.insert(Ino::ROOT.0);
        match self.read.get(&keys::attr(Ino::ROOT))?.map(|value| Attr::decode(&value)) {
            None => self.report(FindingKind::DentryWithoutInode, Some(Ino::ROOT), "/".into(), "no root inode".into()),
            Some(Err(error)) => self.report(FindingKind::Undecodable, Some(Ino::ROOT), "/".into(), why(error)),
            Some(Ok(attr)) => {
                if self.directory(Ino::ROOT, &attr, Ino::ROOT, "/") {
                    stack.push(Frame::new(Ino::ROOT, 0));
                }
            }
        }
        while let Some(frame) = stack.last_mut() {
            path.truncate(frame.path_len);
            let Some((key, value)) = self.next_entry(frame)? else {
                let Frame { dir, entries, subdirs, .. } = *frame;
                self.statistics(dir, entries, subdirs, if path.is_empty() { "/" } else { &path })?;
                stack.pop();
                continue;
            };
            // A key that does not decode is reported by the pass over the table.
            let Ok(Key::Dentry(dir, name)) = keys::decode(&key) else { continue };
            path.push('/');
            path.push_str(&String::from_utf8_lossy(name));
            frame.entries += 1;
            let dentry = match Dentry::decode(&value) {
                Ok(dentry) => dentry,
                Err(error) => {
                    self.report(FindingKind::Undecodable, Some(dir), path.clone(), why(error));
                    continue;
                }
            };
            frame.subdirs += i64::from(dentry.kind == FileType::Directory);
            if self.entry(dir, name, dentry, &path)? {
                stack.push(Frame::new(dentry.ino, path.len()));
            }
        }
        self.names()
    }

    fn next_entry(&mut self, frame: &mut Frame) -> OpResult<Option<(Bytes, Bytes)>> {
        if frame.page.is_empty()
            && let Some(start) = frame.next.take()
        {
            let (_, end) = keys::dentry_range(frame.dir);
            let page: Pairs = self.read.scan(&start, &end, PAGE)?;
            if page.len() == PAGE {
                frame.next = page.last().map(|(key, _)| after(key));
            }
            frame.page = page.into();
        }
        Ok(frame.page.pop_front())
    }

    /// Checks one entry; true: a directory to go down into.
    fn entry(&mut self, dir: Ino, name: &[u8], dentry: Dentry, path: &str) -> OpResult<bool> {
        let ino = dentry.ino;
        let Some(value) = self.read.get(&keys::attr(ino))? else {
            let text = format!("the name leads to inode {}, which does not exist", ino.0);
            self.report(FindingKind::DentryWithoutInode, Some(ino), path.into(), text);
            return Ok(false);
        };
        let attr = match Attr::decode(&value) {
            Ok(attr) => attr,
            Err(error) => {
                self.visited.insert(ino.0);
                self.report(FindingKind::Undecodable, Some(ino), path.into(), why(error));
                return Ok(false);
            }
        };
        if attr.kind != dentry.kind {
            let text = format!("the name says {:?}, the inode {:?}", dentry.kind, attr.kind);
            self.report(FindingKind::WrongKind, Some(ino), path.into(), text);
        }
        let fresh = self.visited.insert(ino.0);
        if attr.kind == FileType::Directory {
            if !fresh {
                let text = "a further name of a directory".into();
                self.report(FindingKind::WrongLinkCount, Some(ino), path.into(), text);
            }
            return Ok(fresh && self.directory(ino, &attr, dir, path));
        }
        // The common case leaves no record: one name, in the parent.
        if fresh && attr.nlink == 1 && attr.parent == dir {
            return Ok(false);
        }
        let keyed = self.exists(keys::link(ino, dir, name))?;
        let names = self.named.entry(ino).or_default();
        if names.count == 0 && !fresh {
            (names.count, names.unkeyed) = (1, 1);
        }
        names.count += 1;
        names.unkeyed += u64::from(!keyed);
        if !keyed && attr.parent != dir {
            let text = format!("the name has no link key, and the inode's parent is {}", attr.parent.0);
            self.report(FindingKind::WrongParent, Some(ino), path.into(), text);
        }
        Ok(false)
    }

    /// Checks a directory's own attributes; true: it is one.
    fn directory(&mut self, ino: Ino, attr: &Attr, parent: Ino, path: &str) -> bool {
        if attr.kind != FileType::Directory {
            self.report(FindingKind::WrongKind, Some(ino), path.into(), "not a directory".into());
            return false;
        }
        if attr.nlink != 2 {
            let text = format!("a linked directory stores nlink 2, found {}", attr.nlink);
            self.report(FindingKind::WrongLinkCount, Some(ino), path.into(), text);
        }
        if attr.parent != parent {
            let text = format!("the parent is inode {}, recorded is {}", parent.0, attr.parent.0);
            self.report(FindingKind::WrongParent, Some(ino), path.into(), text);
        }
        true
    }

    fn statistics(&mut self, dir: Ino, entries: i64, subdirs: i64, path: &str) -> OpResult<()> {
        let mut sum = (0_i64, 0_i64);
        for stripe in 0..STRIPES {
            let Some(value) = self.read.get(&keys::dirstat(dir, stripe))? else { continue };
            // One that does not decode is reported by the pass over the table.
            let Ok(stat) = DirStat::decode(&value) else { return Ok(()) };
            sum = (sum.0.saturating_add(stat.entries), sum.1.saturating_add(stat.subdirs));
        }
        if sum != (entries, subdirs) {
            let text = format!("{entries} entries and {subdirs} subdirectories, recorded are {} and {}", sum.0, sum.1);
            self.report(FindingKind::WrongDirStat, Some(dir), path.into(), text);
        }
        Ok(())
    }

    /// Compares the names found of each inode with what it records.
    fn names(&mut self) -> OpResult<()> {
        for (ino, names) in core::mem::take(&mut self.named) {
            let Some(attr) = self.peek::<Attr>(keys::attr(ino))? else { continue };
            if u64::from(attr.nlink) != names.count {
                let text = format!("{} names, recorded are {}", names.count, attr.nlink);
                self.report_ino(FindingKind::WrongLinkCount, ino, text)?;
            } else if names.unkeyed != u64::from(attr.parent != Ino(0)) {
                let text = format!("{} names without a link key, parent {}", names.unkeyed, attr.parent.0);
                self.report_ino(FindingKind::WrongLinkCount, ino, text)?;
            }
        }
        Ok(())
    }
}
