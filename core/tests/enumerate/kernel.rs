//! System calls: path walks, type checks, open files; and looking at everything there is.
//!
//! Owns: what Linux does between a system call and the file system, as far as the operations need it.
//! Leaves to others: what the client does (`world`), comparing (`testkit::judge`).

use bytes::Bytes;
use kiseki_core::errno::Errno;
use kiseki_core::file::Segment;
use kiseki_core::format::block::verify_object;
use kiseki_core::meta::acl::{Acl, AclKind};
use kiseki_core::meta::{self, New, RenameMode, SetAttr};
use kiseki_core::testkit::judge::{Seen, Tree};
use kiseki_core::testkit::ops::{Op, RenameFlag, UMASK, acl_bytes, acl_entries, split, written_bytes};
use kiseki_core::types::{FileType, Ino, InodeFlags, Timestamp};

use super::mistakes::Mistake;
use super::world::{Event, GEOMETRY, OpenFile, VOLUME, World};

impl World {
    /// Does `op`.
    pub(crate) fn call(&mut self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Mkdir { path, mode } => self.make(path, FileType::Directory, *mode, 0, None).map(drop),
            Op::Mknod { path, kind, mode, rdev } => self.make(path, *kind, *mode, *rdev, None).map(drop),
            Op::Symlink { path, target } => {
                let target = Some(Bytes::copy_from_slice(target.as_bytes()));
                self.make(path, FileType::Symlink, 0o777, 0, target).map(drop)
            }
            Op::Link { from, to } => {
                let (ino, kind) = self.walk(from)?;
                let (dir, name) = self.vacancy(to)?;
                if kind == FileType::Directory {
                    return Err(Errno::EPERM);
                }
                self.txn(Event::Txn("link"), |txn, ctx| meta::create::link(txn, ctx, ino, dir, name)).map(drop)
            }
            Op::Unlink { path } => {
                let (dir, name) = self.parent(path)?;
                let removed = self.txn(Event::Txn("unlink"), |txn, ctx| meta::remove::unlink(txn, ctx, dir, name))?;
                self.removed(removed);
                Ok(())
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.parent(path)?;
                let removed = self.txn(Event::Txn("rmdir"), |txn, ctx| meta::remove::rmdir(txn, ctx, dir, name))?;
                self.removed(removed);
                Ok(())
            }
            Op::Rename { from, to, flag } => self.rename_at(from, to, *flag),
            Op::Open { path, slot, create, exclusive, append, sync, truncate } => {
                if *exclusive && self.walk(path).is_ok() {
                    return Err(Errno::EEXIST);
                }
                let ino = self.open_at(path, *create, *append, *truncate)?;
                self.open[*slot] = Some(OpenFile { ino, append: *append, sync: *sync });
                Ok(())
            }
            Op::Close { slot } => {
                let file = self.open[*slot].take().ok_or(Errno::EBADF)?;
                self.unpin(file.ino);
                Ok(())
            }
            Op::Write { slot, offset, len, number, drop_privileges } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                self.allow(file.ino, true, true, false)?;
                let end = self.machine(file.ino).expect("it is open").length();
                let offset = if file.append { end } else { *offset };
                self.write(file, offset, &written_bytes(*number, offset, *len), *drop_privileges);
                Ok(())
            }
            // Everything is looked at anyhow.
            Op::Read { .. } | Op::Seek { .. } => Ok(()),
            Op::Fsync { slot } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                self.fsync(file.ino);
                Ok(())
            }
            Op::FsyncDir { path } => {
                self.directory(path)?;
                if self.mistake != Some(Mistake::SkipSync) {
                    self.sync();
                }
                Ok(())
            }
            Op::Sync => {
                self.sync_all();
                Ok(())
            }
            Op::Truncate { path, length } => match self.walk(path)? {
                (ino, FileType::Regular) => self.truncate(ino, *length),
                (_, FileType::Directory) => Err(Errno::EISDIR),
                (
                    _,
                    FileType::Symlink
                    | FileType::Fifo
                    | FileType::CharDevice
                    | FileType::BlockDevice
                    | FileType::Socket,
                ) => Err(Errno::EINVAL),
            },
            Op::Ftruncate { slot, length } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                self.truncate(file.ino, *length)
            }
            Op::Fallocate { slot, what, offset, len } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                self.fallocate(file, *offset..offset + len, *what);
                Ok(())
            }
            Op::CopyRange { from, to, from_offset, to_offset, len } => {
                let (from, to) = (self.open[*from].ok_or(Errno::EBADF)?, self.open[*to].ok_or(Errno::EBADF)?);
                self.copy((from, *from_offset), (to, *to_offset), *len)
            }
            Op::Chmod { path, mode } => self.change(path, &SetAttr { mode: Some(*mode), ..SetAttr::default() }),
            Op::Chown { path, uid, gid } => {
                self.change(path, &SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() })
            }
            Op::Utimes { path, secs } => {
                let mtime = Some(Timestamp { secs: *secs, nanos: 0 });
                self.change(path, &SetAttr { atime: mtime, mtime, ..SetAttr::default() })
            }
            Op::SetXattr { path, name, value, mode } => {
                let (ino, _) = self.walk(path)?;
                let value = Bytes::copy_from_slice(value.as_bytes());
                self.txn(Event::Txn("setxattr"), |txn, ctx| {
                    meta::xattr::set(txn, ctx, ino, name.as_bytes(), &value, *mode)
                })
            }
            Op::RemoveXattr { path, name } => {
                let (ino, _) = self.walk(path)?;
                self.txn(Event::Txn("removexattr"), |txn, ctx| meta::xattr::remove(txn, ctx, ino, name.as_bytes()))
            }
            Op::SetAcl { path, default, entries } => {
                let (ino, _) = self.walk(path)?;
                let kind = if *default { AclKind::Default } else { AclKind::Access };
                self.set_acl(ino, kind, Acl::decode(&acl_bytes(entries))?.as_ref())
            }
            Op::SetFlags { path, flags } => {
                let (ino, kind) = self.walk(path)?;
                if !matches!(kind, FileType::Regular | FileType::Directory) {
                    return Err(Errno::EOPNOTSUPP);
                }
                let flags = InodeFlags::from_bits(*flags).expect("four flags");
                self.txn(Event::Txn("set flags"), |txn, ctx| meta::attr::set_flags(txn, ctx, ino, flags)).map(drop)
            }
        }
    }

    fn walk(&self, path: &str) -> Result<(Ino, FileType), Errno> {
        let mut at = (Ino::ROOT, FileType::Directory);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if at.1 != FileType::Directory {
                return Err(Errno::ENOTDIR);
            }
            let (ino, attr) = self.try_read(|read| meta::lookup::lookup(read, at.0, name.as_bytes()))?;
            at = (ino, attr.kind);
        }
        Ok(at)
    }

    fn directory(&self, path: &str) -> Result<Ino, Errno> {
        let (ino, kind) = self.walk(path)?;
        if kind == FileType::Directory { Ok(ino) } else { Err(Errno::ENOTDIR) }
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8]), Errno> {
        let (parent, name) = split(path);
        Ok((self.directory(parent)?, name.as_bytes()))
    }

    fn vacancy<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8]), Errno> {
        let vacancy = self.parent(path)?;
        if self.walk(path).is_ok() { Err(Errno::EEXIST) } else { Ok(vacancy) }
    }

    fn new_inode(&mut self, kind: FileType, mode: u16, rdev: u32, target: Option<Bytes>) -> New {
        let (ino, umask) = (self.next_ino(), Some(UMASK));
        New { ino, kind, mode, uid: 0, gid: 0, rdev, target, umask, inodes_max: None }
    }

    fn make(&mut self, path: &str, kind: FileType, mode: u16, rdev: u32, target: Option<Bytes>) -> Result<Ino, Errno> {
        let (dir, name) = self.vacancy(path)?;
        let new = self.new_inode(kind, mode, rdev, target);
        self.txn(Event::Txn("create"), |txn, ctx| meta::create::create(txn, ctx, dir, name, &new))?;
        Ok(new.ino)
    }

    fn open_at(&mut self, path: &str, create: Option<u16>, append: bool, truncate: bool) -> Result<Ino, Errno> {
        let ino = match (self.walk(path), create) {
            (Err(Errno::ENOENT), Some(mode)) => self.make(path, FileType::Regular, mode, 0, None)?,
            (Err(errno), _) => return Err(errno),
            (Ok((ino, FileType::Regular)), _) => {
                self.allow(ino, true, append, truncate)?;
                if truncate {
                    self.truncate(ino, 0)?;
                }
                ino
            }
            (Ok((_, FileType::Directory)), _) => return Err(Errno::EISDIR),
            (Ok((_, FileType::Symlink)), _) => return Err(Errno::ELOOP),
            (Ok((_, FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket)), _) => {
                return Err(Errno::ENXIO);
            }
        };
        self.pin(ino)?;
        Ok(ino)
    }

    fn rename_at(&mut self, from: &str, to: &str, flag: RenameFlag) -> Result<(), Errno> {
        let (dir, name) = self.parent(from)?;
        let (new_dir, new_name) = self.parent(to)?;
        // do_renameat2() looks both names up, and refuses a rename over its own ancestors.
        self.walk(from)?;
        let target = match self.walk(to) {
            Ok(_) => true,
            Err(Errno::ENOENT) => false,
            Err(errno) => return Err(errno),
        };
        let mode = match flag {
            RenameFlag::NoReplace if target => return Err(Errno::EEXIST),
            RenameFlag::Exchange if !target => return Err(Errno::ENOENT),
            RenameFlag::Replace | RenameFlag::Whiteout => RenameMode::Replace,
            RenameFlag::NoReplace => RenameMode::NoReplace,
            RenameFlag::Exchange => RenameMode::Exchange,
        };
        if from.strip_prefix(to).is_some_and(|rest| rest.starts_with('/')) {
            return Err(if flag == RenameFlag::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        let whiteout = (flag == RenameFlag::Whiteout).then(|| self.new_inode(FileType::CharDevice, 0, 0, None));
        self.rename([(dir, name), (new_dir, new_name)], mode, whiteout.as_ref())
    }

    fn change(&mut self, path: &str, set: &SetAttr) -> Result<(), Errno> {
        let (ino, _) = self.walk(path)?;
        self.set_attr(ino, set)
    }

    // --- looking

    /// Everything that has a name, as an application finds it. What is looked at is loaded, so this world is to be
    /// thrown away.
    pub(crate) fn look(mut self) -> Result<Tree, String> {
        let mut tree = Tree::new();
        let mut directories = vec![(String::new(), Ino::ROOT)];
        while let Some((prefix, dir)) = directories.pop() {
            for entry in self.read(|read| meta::lookup::readdir(read, dir, 0, usize::MAX)) {
                let path = format!("{prefix}/{}", String::from_utf8_lossy(&entry.name));
                let seen = self.see(entry.ino).map_err(|error| format!("{path}: {error}"))?;
                if seen.attr.kind == FileType::Directory {
                    directories.push((path.clone(), entry.ino));
                }
                tree.insert(path, seen);
            }
        }
        Ok(tree)
    }

    /// What is open in `slot`, under its name or without one.
    pub(crate) fn look_open(&self, slot: usize) -> Option<Result<Seen, String>> {
        self.open[slot].map(|file| self.clone().see(file.ino))
    }

    fn see(&mut self, ino: Ino) -> Result<Seen, String> {
        let mut attr = self.read(|read| meta::attr::load(read, ino));
        let mut data = Vec::new();
        match attr.kind {
            FileType::Symlink => data = self.read(|read| meta::lookup::readlink(read, ino)).to_vec(),
            FileType::Regular => {
                attr = self.machine(ino).map_or(attr, |file| file.overlay_attr(attr));
                data = self.contents(ino, attr.length)?;
            }
            FileType::Directory | FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => {}
        }
        let names = self.read(|read| meta::xattr::list(read, ino));
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let value = |name: &Bytes| text(&self.read(|read| meta::xattr::get(read, ino, name)));
        let plain = names.iter().filter(|name| AclKind::of(name).is_none());
        let xattrs = plain.map(|name| (text(name), value(name))).collect();
        let acls = [AclKind::Access, AclKind::Default].map(|kind| {
            let stored = self.try_read(|read| meta::xattr::get(read, ino, kind.name())).ok()?;
            let shown = meta::acl::shown(&stored, kind, attr.mode).expect("it is an ACL");
            Some(acl_entries(&shown).expect("it is an ACL"))
        });
        Ok(Seen { ino, attr, data, xattrs, acls })
    }

    /// The bytes of a file, through its machine, each block read and verified.
    fn contents(&mut self, ino: Ino, length: u64) -> Result<Vec<u8>, String> {
        self.pin(ino).map_err(|errno| format!("{errno:?}"))?;
        let segments = loop {
            // One byte more shows whether the file ends where its attributes say.
            match self.machine(ino).expect("it is pinned").read(0, length + 1) {
                Ok(segments) => break segments,
                Err((missing, version)) => {
                    for chunk in missing {
                        let slices = self.read(|read| meta::data::chunk(read, &GEOMETRY, ino, chunk));
                        let records = slices.iter().map(|(_, record)| record);
                        self.machine(ino).expect("it is pinned").install(version, chunk, records);
                    }
                }
            }
        };
        let mut bytes = Vec::new();
        for segment in segments {
            match segment {
                Segment::Bytes(piece) => bytes.extend_from_slice(&piece),
                Segment::Zeros(len) => bytes.resize(bytes.len() + len as usize, 0),
                Segment::Block { id, off, len } => {
                    let object = self.object(id).ok_or(format!("{id:?} is missing"))?;
                    let payload = verify_object(VOLUME, id, GEOMETRY.frame_size, &object)
                        .map_err(|error| format!("{id:?} cannot be read: {error}"))?;
                    bytes.extend_from_slice(&payload[off as usize..(off + len) as usize]);
                }
            }
        }
        Ok(bytes)
    }
}
