//! A POSIX file system in memory, as plain as it can be: what every other implementation here is compared with.
//!
//! Owns: what each operation answers and changes. Leaves to others: comparing (the judges), choosing (`ops`).
//!
//! Invariants
//! - An operation that answers an error changes nothing.
//! - Node numbers are never used twice.
//! - Copies are cheap: nodes and contents are shared until they change.
//!
//! A time that an operation sets is known only as the interval in which the operation ran: see `Stamp`.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::Errno;
use crate::file::machine::Fallocate;
use crate::meta::XattrMode;
use crate::testkit::ops::{AclEntries, Op, RenameFlag, SLOTS, UMASK, split, written_bytes};
use crate::types::{FileType, NAME_MAX, Timestamp};

mod contents;

/// An inode of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// A time between two others, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Earliest.
    pub from: Timestamp,
    /// Latest.
    pub to: Timestamp,
}

impl Stamp {
    /// Exactly `at`.
    pub fn exactly(at: Timestamp) -> Self {
        Self { from: at, to: at }
    }

    /// True if `at` may be the time meant.
    pub fn holds(&self, at: Timestamp) -> bool {
        self.from <= at && at <= self.to
    }
}

/// What a path or a handle leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of stat(2)")]
pub struct Node {
    pub kind: FileType,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Reads are not followed: without `noatime` it is at least the time that was set last.
    pub atime: Stamp,
    pub mtime: Stamp,
    pub ctime: Stamp,
    /// Contents of a regular file, target of a symbolic link.
    pub data: Arc<Vec<u8>>,
    /// Entries of a directory.
    pub entries: BTreeMap<String, NodeId>,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, String>,
    /// Access ACL, with nothing in the entries that the mode stands for: see `with_mode`.
    pub access_acl: Option<AclEntries>,
    /// Default ACL of a directory.
    pub default_acl: Option<AclEntries>,
    /// Immutable 1, append-only 2, nodump 4, noatime 8.
    pub flags: u8,
}

const IMMUTABLE: u8 = 1;
const APPEND: u8 = 2;
/// nodump and noatime: a new inode gets them from its directory.
const INHERITED: u8 = 12;

/// An ACL in which the owner, the mask (or, without one, the group) and others may what `mode` says.
pub fn with_mode(entries: &AclEntries, mode: u16) -> AclEntries {
    let masked = entries.iter().any(|(tag, ..)| *tag == 16);
    let entry = |&(tag, perm, id): &(u16, u16, u32)| match tag {
        1 => (tag, mode >> 6 & 7, id),
        4 if !masked => (tag, mode >> 3 & 7, id),
        16 => (tag, mode >> 3 & 7, id),
        32 => (tag, mode & 7, id),
        _ => (tag, perm, id),
    };
    entries.iter().map(entry).collect()
}

/// The nine bits of a mode that say what an ACL does.
fn mode_of(entries: &AclEntries) -> u16 {
    let perm = |wanted| entries.iter().find(|(tag, ..)| *tag == wanted).map(|(_, perm, _)| *perm);
    let get = |wanted| perm(wanted).expect("a class has an entry");
    get(1) << 6 | perm(16).unwrap_or_else(|| get(4)) << 3 | get(32)
}

/// What is kept of an access ACL: nothing if a mode says it all.
fn kept(entries: &AclEntries) -> Option<AclEntries> {
    entries.iter().any(|(tag, ..)| *tag == 16).then(|| with_mode(entries, 0))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OpenFile {
    node: NodeId,
    append: bool,
}

/// The whole tree, and the files that one application holds open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    nodes: BTreeMap<NodeId, Arc<Node>>,
    next: u64,
    open: [Option<OpenFile>; SLOTS],
    /// Reads change no access time.
    noatime: bool,
}

type Answer<T> = Result<T, Errno>;

impl Model {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(1);

    /// A root directory without entries, made at `when`.
    pub fn new(when: Stamp) -> Self {
        let root = new_node(FileType::Directory, 0o755, when);
        Self { nodes: BTreeMap::from([(Self::ROOT, Arc::new(root))]), next: 2, open: [None; SLOTS], noatime: false }
    }

    /// From here on reads change no access time.
    pub fn set_noatime(&mut self) {
        self.noatime = true;
    }

    /// Does `op`, some time in `when`. The bytes are those that a read returns.
    pub fn apply(&mut self, op: &Op, when: Stamp) -> Answer<Vec<u8>> {
        match op {
            Op::Mkdir { path, mode } => self.make(path, new_node(FileType::Directory, *mode, when), when)?,
            Op::Mknod { path, kind, mode, rdev } => {
                self.make(path, Node { rdev: *rdev, ..new_node(*kind, *mode, when) }, when)?
            }
            Op::Symlink { path, target } => {
                let data = Arc::new(target.as_bytes().to_vec());
                self.make(path, Node { data, ..new_node(FileType::Symlink, 0o777, when) }, when)?
            }
            Op::Link { from, to } => self.link(from, to, when)?,
            Op::Unlink { path } => self.unlink(path, when)?,
            Op::Rmdir { path } => self.rmdir(path, when)?,
            Op::Rename { from, to, flag } => self.rename(from, to, *flag, when)?,
            Op::Open { path, slot, create, exclusive, append, sync: _, truncate } => {
                if *exclusive && self.find(path).is_ok() {
                    return Err(Errno::EEXIST);
                }
                let node = self.open_node(path, *create, *append, *truncate, when)?;
                self.open[*slot] = Some(OpenFile { node, append: *append });
            }
            Op::Close { slot } => {
                self.slot(*slot)?;
                self.open[*slot] = None;
            }
            Op::Write { slot, offset, len, number, drop_privileges } => {
                let file = self.slot(*slot)?;
                self.allow(file.node, IMMUTABLE)?;
                let at = if file.append { self.node(file.node).data.len() as u64 } else { *offset };
                self.write(file.node, at as usize, &written_bytes(*number, at, *len), *drop_privileges, when);
            }
            Op::Read { slot, offset, len } => {
                let data = &self.node(self.slot(*slot)?.node).data;
                let from = data.len().min(*offset as usize);
                return Ok(data[from..data.len().min(from + *len as usize)].to_vec());
            }
            Op::Fsync { slot } => drop(self.slot(*slot)?),
            Op::FsyncDir { path } => drop(self.directory(path)?),
            Op::Sync => {}
            Op::Truncate { path, length } => {
                let node = self.regular(path)?;
                self.allow(node, IMMUTABLE | APPEND)?;
                self.truncate(node, *length, when);
            }
            Op::Ftruncate { slot, length } => {
                let node = self.slot(*slot)?.node;
                self.allow(node, IMMUTABLE | APPEND)?;
                self.truncate(node, *length, when);
            }
            Op::Fallocate { slot, what, offset, len } => {
                let file = self.slot(*slot)?;
                let keeps = matches!(what, Fallocate::Reserve { .. });
                self.allow(file.node, if keeps { IMMUTABLE } else { IMMUTABLE | APPEND })?;
                self.fallocate(file.node, *what, *offset as usize..(offset + len) as usize, when);
            }
            Op::Seek { slot, whence, offset } => {
                let data = &self.node(self.slot(*slot)?.node).data;
                return contents::seek(data, *whence, *offset as usize).map(|at| (at as u64).to_le_bytes().to_vec());
            }
            Op::CopyRange { from, to, from_offset, to_offset, len } => {
                let copied = self.copy(*from, *to, *from_offset as usize, *to_offset as usize, *len as usize, when)?;
                return Ok((copied as u64).to_le_bytes().to_vec());
            }
            Op::Chmod { path, mode } => self.change(path, when, |node| node.mode = *mode)?,
            Op::Chown { path, uid, gid } => self.change(path, when, |node| (node.uid, node.gid) = (*uid, *gid))?,
            Op::Utimes { path, secs } => {
                let mtime = Stamp::exactly(Timestamp { secs: *secs, nanos: 0 });
                let atime = self.shown_atime(mtime);
                self.change(path, when, |node| (node.atime, node.mtime) = (atime, mtime))?;
            }
            Op::SetXattr { path, name, value, mode } => {
                let id = self.find(path)?;
                self.allow(id, IMMUTABLE | APPEND)?;
                match (mode, self.node(id).xattrs.contains_key(name)) {
                    (XattrMode::Create | XattrMode::Neither, true) => return Err(Errno::EEXIST),
                    (XattrMode::Replace | XattrMode::Neither, false) => return Err(Errno::ENODATA),
                    (XattrMode::Either, _) | (XattrMode::Create, false) | (XattrMode::Replace, true) => {}
                }
                let node = self.node_mut(id);
                if node.xattrs.insert(name.clone(), value.clone()).as_ref() != Some(value) {
                    node.ctime = when;
                }
            }
            Op::RemoveXattr { path, name } => {
                let id = self.find(path)?;
                self.allow(id, IMMUTABLE | APPEND)?;
                if !self.node(id).xattrs.contains_key(name) {
                    return Err(Errno::ENODATA);
                }
                self.change(path, when, |node| drop(node.xattrs.remove(name)))?;
            }
            Op::SetAcl { path, default, entries } => self.set_acl(path, *default, entries, when)?,
            Op::SetFlags { path, flags } => {
                let node = self.find(path)?;
                let node = self.node_mut(node);
                if !matches!(node.kind, FileType::Regular | FileType::Directory) {
                    return Err(Errno::EOPNOTSUPP);
                }
                (node.flags, node.ctime) = (*flags, when);
            }
        }
        Ok(Vec::new())
    }

    /// Does what may be left of an `op` that failed: an ACL without the mode that it brings, which a file with
    /// uncommitted bytes gets in its turn. False: it is done as a whole or not at all.
    pub fn apply_half(&mut self, op: &Op, when: Stamp) -> bool {
        let Op::SetAcl { path, default: false, entries } = op else { return false };
        let Ok(id) = self.find(path) else { return false };
        let mode = self.node(id).mode;
        let done = self.set_acl(path, false, entries, when).is_ok();
        self.node_mut(id).mode = mode;
        done
    }

    // --- what the judges ask ---

    /// The node that `path` leads to.
    pub fn find(&self, path: &str) -> Answer<NodeId> {
        let mut at = Self::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let node = self.node(at);
            if node.kind != FileType::Directory {
                return Err(Errno::ENOTDIR);
            }
            if name.len() > NAME_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            at = *node.entries.get(name).ok_or(Errno::ENOENT)?;
        }
        Ok(at)
    }

    /// A node that exists: one that has a name or is open.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// As `node`, to correct what only the real thing can know.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&id).expect("the node exists"))
    }

    /// The node, if it exists.
    pub fn try_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|node| &**node)
    }

    /// All names, parents first, with what they are.
    pub fn paths(&self) -> Vec<(String, FileType)> {
        let mut found = Vec::new();
        self.walk(Self::ROOT, "", &mut |path, _, node| found.push((path.to_string(), node.kind)));
        found
    }

    /// The names of what is immutable or append-only.
    pub fn flagged(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.walk(Self::ROOT, "", &mut |path, _, node| {
            if node.flags & (IMMUTABLE | APPEND) != 0 {
                found.push(path.to_string());
            }
        });
        found
    }

    /// Calls `visit` for each name below the root, parents first.
    pub fn for_each(&self, mut visit: impl FnMut(&str, NodeId, &Node)) {
        self.walk(Self::ROOT, "", &mut visit);
    }

    /// The names that lead to `id`.
    pub fn names_of(&self, id: NodeId) -> Vec<String> {
        let mut found = Vec::new();
        self.walk(Self::ROOT, "", &mut |path, node, _| {
            if node == id {
                found.push(path.to_string());
            }
        });
        found
    }

    /// st_nlink.
    pub fn nlink(&self, id: NodeId) -> u32 {
        let is_directory = |id: &NodeId| self.node(*id).kind == FileType::Directory;
        let node = self.node(id);
        if node.kind == FileType::Directory {
            return 2 + node.entries.values().filter(|child| is_directory(child)).count() as u32;
        }
        self.nodes.values().flat_map(|dir| dir.entries.values()).filter(|child| **child == id).count() as u32
    }

    /// True if the application holds a file open there.
    pub fn is_open(&self, slot: usize) -> bool {
        self.open[slot].is_some()
    }

    /// The node that is open there.
    pub fn open_at(&self, slot: usize) -> Option<NodeId> {
        self.open[slot].map(|file| file.node)
    }

    /// Length of the file that is open there.
    pub fn open_length(&self, slot: usize) -> Option<u64> {
        self.open[slot].map(|file| self.node(file.node).data.len() as u64)
    }

    /// Numbers new nodes above all of `other`, which this model does not go on from.
    pub fn number_above(&mut self, other: &Self) {
        self.next = self.next.max(other.next);
    }

    /// What a crash does to the application: it holds nothing open any more.
    pub fn close_all(&mut self) {
        self.open = [None; SLOTS];
        self.drop_unreachable();
    }

    // --- operations ---

    fn make(&mut self, path: &str, mut node: Node, when: Stamp) -> Answer<()> {
        let (parent, name) = self.vacancy(path)?;
        self.allow(parent, IMMUTABLE)?;
        self.beget(parent, &mut node);
        let id = NodeId(self.next);
        self.next += 1;
        self.nodes.insert(id, Arc::new(node));
        self.enter(parent, &name, id, when);
        Ok(())
    }

    /// Gives a new node what it has from its directory, or from the umask.
    fn beget(&self, parent: NodeId, node: &mut Node) {
        let directory = self.node(parent);
        node.flags = directory.flags & INHERITED;
        node.atime = self.shown_atime(node.mtime);
        if directory.mode & 0o2000 != 0 {
            node.gid = directory.gid;
            if node.kind == FileType::Directory {
                node.mode |= 0o2000;
            }
        }
        if node.kind == FileType::Symlink {
            return;
        }
        let Some(default) = &directory.default_acl else {
            node.mode &= !UMASK;
            return;
        };
        node.mode &= 0o7000 | mode_of(default);
        node.access_acl = kept(default);
        if node.kind == FileType::Directory {
            node.default_acl = Some(default.clone());
        }
    }

    /// An access time that was set at that moment, as it may be found later.
    fn shown_atime(&self, set: Stamp) -> Stamp {
        let forever = Timestamp { secs: i64::MAX, nanos: 0 };
        if self.noatime { set } else { Stamp { from: set.from, to: forever } }
    }

    fn set_acl(&mut self, path: &str, default: bool, entries: &AclEntries, when: Stamp) -> Answer<()> {
        let id = self.find(path)?;
        self.allow(id, IMMUTABLE | APPEND)?;
        let node = self.node_mut(id);
        let before = (node.mode, node.access_acl.clone(), node.default_acl.clone());
        let given = !entries.is_empty();
        match (node.kind, default) {
            (FileType::Symlink, _) => return Err(Errno::EOPNOTSUPP),
            (FileType::Directory, true) => node.default_acl = given.then(|| entries.clone()),
            (_, true) if given => return Err(Errno::EACCES),
            (_, true) => {}
            (_, false) => {
                node.access_acl = kept(entries);
                if given {
                    node.mode = node.mode & 0o7000 | mode_of(entries);
                }
            }
        }
        if before != (node.mode, node.access_acl.clone(), node.default_acl.clone()) {
            node.ctime = when;
        }
        Ok(())
    }

    fn link(&mut self, from: &str, to: &str, when: Stamp) -> Answer<()> {
        let id = self.find(from)?;
        if self.node(id).kind == FileType::Directory {
            // link(2): EPERM, though EEXIST comes first.
            self.vacancy(to)?;
            return Err(Errno::EPERM);
        }
        let (parent, name) = self.vacancy(to)?;
        self.allow(parent, IMMUTABLE)?;
        self.allow(id, IMMUTABLE | APPEND)?;
        self.enter(parent, &name, id, when);
        self.node_mut(id).ctime = when;
        Ok(())
    }

    fn unlink(&mut self, path: &str, when: Stamp) -> Answer<()> {
        let id = self.find(path)?;
        if self.node(id).kind == FileType::Directory {
            return Err(Errno::EISDIR);
        }
        self.may_take(self.parent(path)?.0, id)?;
        self.node_mut(id).ctime = when;
        self.leave(path, when);
        Ok(())
    }

    fn rmdir(&mut self, path: &str, when: Stamp) -> Answer<()> {
        let id = self.find(path)?;
        if self.node(id).kind != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        self.may_take(self.parent(path)?.0, id)?;
        if !self.node(id).entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.leave(path, when);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, flag: RenameFlag, when: Stamp) -> Answer<()> {
        let (old_parent, old_name) = self.parent(from)?;
        let (new_parent, new_name) = self.parent(to)?;
        let moved = self.find(from)?;
        if new_name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let target = self.find(to).ok();
        if flag == RenameFlag::NoReplace && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if flag == RenameFlag::Exchange && target.is_none() {
            return Err(Errno::ENOENT);
        }
        if below(to, from) {
            return Err(Errno::EINVAL);
        }
        if below(from, to) {
            return Err(if flag == RenameFlag::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(moved) {
            return Ok(());
        }
        let replaced = target.filter(|_| flag != RenameFlag::Exchange);
        let directory = |id| self.node(id).kind == FileType::Directory;
        match replaced.map(|target| (directory(moved), directory(target))) {
            Some((true, false)) => return Err(Errno::ENOTDIR),
            Some((false, true)) => return Err(Errno::EISDIR),
            Some((true, true) | (false, false)) | None => {}
        }
        self.may_take(old_parent, moved)?;
        match target {
            Some(target) => self.may_take(new_parent, target)?,
            None => self.allow(new_parent, IMMUTABLE)?,
        }
        if let Some(target) = replaced {
            if !self.node(target).entries.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            self.node_mut(target).ctime = when;
        }
        self.node_mut(moved).ctime = when;
        match target {
            Some(target) if flag == RenameFlag::Exchange => {
                self.node_mut(target).ctime = when;
                self.enter(old_parent, &old_name, target, when);
                self.enter(new_parent, &new_name, moved, when);
            }
            Some(_) | None => {
                self.enter(new_parent, &new_name, moved, when);
                let directory = self.node_mut(old_parent);
                directory.entries.remove(&old_name);
                (directory.mtime, directory.ctime) = (when, when);
                self.drop_unreachable();
                if flag == RenameFlag::Whiteout {
                    self.make(from, new_node(FileType::CharDevice, 0, when), when)?;
                }
            }
        }
        Ok(())
    }

    fn open_node(
        &mut self,
        path: &str,
        create: Option<u16>,
        append: bool,
        truncate: bool,
        when: Stamp,
    ) -> Answer<NodeId> {
        match (self.find(path), create) {
            (Err(Errno::ENOENT), Some(mode)) => {
                self.make(path, new_node(FileType::Regular, mode, when), when)?;
                self.find(path)
            }
            (Err(errno), _) => Err(errno),
            (Ok(node), _) => match self.node(node).kind {
                FileType::Directory => Err(Errno::EISDIR),
                FileType::Symlink => Err(Errno::ELOOP),
                FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => Err(Errno::ENXIO),
                FileType::Regular => {
                    self.allow(node, if append && !truncate { IMMUTABLE } else { IMMUTABLE | APPEND })?;
                    if truncate {
                        self.truncate(node, 0, when);
                    }
                    Ok(node)
                }
            },
        }
    }

    fn change(&mut self, path: &str, when: Stamp, with: impl FnOnce(&mut Node)) -> Answer<()> {
        let id = self.find(path)?;
        self.allow(id, IMMUTABLE | APPEND)?;
        let node = self.node_mut(id);
        with(node);
        node.ctime = when;
        Ok(())
    }

    // --- helpers ---

    /// EPERM if the node has one of `flags`.
    fn allow(&self, id: NodeId, flags: u8) -> Answer<()> {
        if self.node(id).flags & flags == 0 { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// EPERM if a flag keeps `child` in `parent`.
    fn may_take(&self, parent: NodeId, child: NodeId) -> Answer<()> {
        self.allow(parent, IMMUTABLE | APPEND)?;
        self.allow(child, IMMUTABLE | APPEND)
    }

    fn slot(&self, slot: usize) -> Answer<OpenFile> {
        self.open[slot].ok_or(Errno::EBADF)
    }

    fn directory(&self, path: &str) -> Answer<NodeId> {
        let id = self.find(path)?;
        if self.node(id).kind == FileType::Directory { Ok(id) } else { Err(Errno::ENOTDIR) }
    }

    fn regular(&self, path: &str) -> Answer<NodeId> {
        let id = self.find(path)?;
        match self.node(id).kind {
            FileType::Regular => Ok(id),
            FileType::Directory => Err(Errno::EISDIR),
            FileType::Symlink | FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => {
                Err(Errno::EINVAL)
            }
        }
    }

    /// The directory that holds or would hold `path`, and the name there.
    fn parent(&self, path: &str) -> Answer<(NodeId, String)> {
        let (parent, name) = split(path);
        Ok((self.directory(parent)?, name.to_string()))
    }

    /// As `parent`, for a name that must be free.
    fn vacancy(&self, path: &str) -> Answer<(NodeId, String)> {
        let (parent, name) = self.parent(path)?;
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if self.node(parent).entries.contains_key(&name) { Err(Errno::EEXIST) } else { Ok((parent, name)) }
    }

    fn enter(&mut self, parent: NodeId, name: &str, id: NodeId, when: Stamp) {
        let directory = self.node_mut(parent);
        directory.entries.insert(name.to_string(), id);
        (directory.mtime, directory.ctime) = (when, when);
    }

    fn leave(&mut self, path: &str, when: Stamp) {
        let (parent, name) = self.parent(path).expect("the name exists");
        let directory = self.node_mut(parent);
        directory.entries.remove(&name);
        (directory.mtime, directory.ctime) = (when, when);
        self.drop_unreachable();
    }

    /// Forgets nodes that have no name and are not open.
    fn drop_unreachable(&mut self) {
        let mut kept: Vec<NodeId> = self.open.iter().flatten().map(|file| file.node).collect();
        kept.push(Self::ROOT);
        self.for_each(|_, id, _| kept.push(id));
        self.nodes.retain(|id, _| kept.contains(id));
    }

    fn walk(&self, at: NodeId, prefix: &str, visit: &mut dyn FnMut(&str, NodeId, &Node)) {
        for (name, id) in &self.node(at).entries {
            let path = format!("{prefix}/{name}");
            visit(&path, *id, self.node(*id));
            self.walk(*id, &path, visit);
        }
    }
}

fn new_node(kind: FileType, mode: u16, when: Stamp) -> Node {
    Node {
        kind,
        mode,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: when,
        mtime: when,
        ctime: when,
        data: Arc::default(),
        entries: BTreeMap::new(),
        xattrs: BTreeMap::new(),
        access_acl: None,
        default_acl: None,
        flags: 0,
    }
}

/// True if `path` is strictly below `above`.
fn below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}
