//! The requests, one by one.
//!
//! What is not here and why: locks are the kernel's own while it is alone on the volume; access(2) is checked by the
//! kernel (`default_permissions`); FLUSH does not come (`kernel::file_flags`) but is answered.
//! COLLAPSE_RANGE and INSERT_RANGE are refused by the kernel itself, which also copies by pages what we answer EOPNOTSUPP
//! for, and checks the limits of copy_file_range against the lengths that it knows.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use kiseki_core::client::{Caller, Client, Entry, Handle, UNLIMITED_BYTES};
use kiseki_core::env::Env;
use kiseki_core::errno::Errno as CoreErrno;
use kiseki_core::meta::SetAttr;
use kiseki_core::types::{FileType, Ino, InodeFlags, NAME_MAX};

use super::attributes::{Asker, FlagsIoctl};
use super::kernel::TTL;
use super::{Adapter, attributes, convert, dir, kernel};
use crate::waiting;

/// Unit in which statfs counts.
const STATFS_BLOCK: u32 = 4096;
/// Bytes that one request copies at most.
const COPY_MAX: u64 = 1 << 31;
/// How many more inodes statfs says a volume without a limit could hold.
const UNLIMITED_INODES: u64 = 10 << 20;
/// Bits of a mode that give privileges to who runs the file.
const SUID_SGID: u16 = 0o6000;

fn handle(handle: FileHandle) -> Handle {
    Handle(handle.0)
}

fn asker(request: &Request) -> Asker {
    Asker { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn owned(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn reply_entry(reply: ReplyEntry, entry: Entry) {
    reply.entry(&TTL, &attributes::shown(entry.ino, &entry.attr), Generation(0));
}

fn reply_empty(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// Replies with an extended attribute's value, or with its length if that was asked.
fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        Ok(_) | Err(_) => reply.error(Errno::ERANGE),
    }
}

/// Opening with O_TRUNC drops suid and sgid unless root does it (open(2) of inode(7)'s rules); the request's own flag
/// for it does not reach us.
async fn drop_privileges<E: Env>(client: &Client<E>, asker: Asker, ino: Ino) -> Result<(), CoreErrno> {
    if client.getattr(ino).await?.mode & SUID_SGID != 0 {
        let drop_sgid = attributes::takes_sgid(client, asker, ino).await?;
        client.setattr(ino, SetAttr { drop_suid_sgid: true, drop_sgid, ..SetAttr::default() }, None).await?;
    }
    Ok(())
}

impl<E: Env> Adapter<E> {
    /// Who makes something. The kernel has applied the umask, unless ACLs decide.
    fn caller(&self, request: &Request, umask: u32) -> Caller {
        let umask = self.client.volume().acl.then(|| convert::permissions(umask));
        Caller { uid: request.uid(), gid: request.gid(), umask }
    }

    /// What the kernel is told of a file that was opened with these flags, when it is.
    fn way(&self, flags: i32) -> impl FnOnce(Ino) -> FopenFlags + Send + 'static {
        let past_cache = self.write_past_cache && kernel::only_writes(convert::open_flags(flags));
        let (opened, atime) = (Arc::clone(&self.opened), self.atime);
        move |ino| kernel::file_flags(atime, opened.opened(ino.0, flags, past_cache))
    }

    fn reply_attr(&self, inode: Ino, reply: ReplyAttr) {
        self.serve(
            reply,
            |client| async move { client.getattr(inode).await },
            move |reply, attr| reply.attr(&TTL, &attributes::shown(inode, &attr)),
        );
    }
}

impl<E: Env> Filesystem for Adapter<E> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        kernel::configure(config, self.client.volume().acl, self.atime, self.root == Ino::ROOT)?;
        self.skip_opendir = kernel::can_skip_opendir(config, self.atime);
        self.write_past_cache = kernel::can_write_past_cache(config);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = self.ino(parent);
        let name = owned(name);
        let client = self.client.clone();
        self.run(async move {
            let found = match &name[..] {
                // Of a file handle: the kernel has forgotten the inode.
                b"." => client.lookup_ino(parent).await,
                b".." => client.lookup_parent(parent).await,
                name => client.lookup(parent, name).await,
            };
            match found {
                Ok(entry) => reply_entry(reply, entry),
                Err(CoreErrno::ENOENT) => reply.entry(&TTL, &convert::negative_entry(), Generation(0)),
                Err(errno) => reply.error(convert::errno(errno)),
            }
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, count: u64) {
        let _turn = self.turns.begin_part();
        self.client.forget(self.ino(inode), count);
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attr(self.ino(inode), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let inode = self.ino(inode);
        let now = |time| matches!(time, Some(TimeOrNow::Now));
        let chown = uid.is_some() || gid.is_some();
        let mut set = SetAttr {
            mode: mode.map(convert::permissions),
            uid,
            gid,
            atime: atime.map(convert::time_or_now),
            mtime: mtime.map(convert::time_or_now),
            ctime: ctime.map(convert::kernel_time),
            // chown(2) drops them whoever calls it (of what is not a directory: the core's part), truncate(2) unless
            // root does. The request's own flag for it does not reach us.
            touch: now(atime) && now(mtime),
            drop_suid_sgid: chown || (size.is_some() && request.uid() != 0),
            drop_sgid: false,
        };
        // A change of nothing is chown(2) with both ids -1, or the kernel leaves dropping suid and sgid to a WRITE that
        // follows. The owner's chown drops them; nobody else's may, and a WRITE says so itself.
        let nothing = size.is_none() && set == SetAttr::default();
        let asker = asker(request);
        self.serve(
            reply,
            |client| async move {
                let takes_sgid =
                    (nothing || set.drop_suid_sgid) && attributes::takes_sgid(&client, asker, inode).await?;
                if nothing {
                    let attr = client.getattr(inode).await?;
                    let drops = takes_sgid || attributes::has_privileges(&attr);
                    // Of an append-only file the times may change, the mode not. (ext4_setattr of Linux)
                    let fixed = attr.flags.any(InodeFlags::IMMUTABLE) || (drops && attr.flags.any(InodeFlags::APPEND));
                    if fixed {
                        return Err(CoreErrno::EPERM);
                    }
                    set.drop_suid_sgid = asker.uid == 0 || asker.uid == attr.uid;
                    if drops && !set.drop_suid_sgid {
                        return Ok(attr);
                    }
                    set.ctime = Some(convert::now());
                }
                set.drop_sgid = set.drop_suid_sgid && takes_sgid;
                client.setattr(inode, set, size).await
            },
            move |reply, attr| reply.attr(&TTL, &attributes::shown(inode, &attr)),
        );
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        let inode = self.ino(inode);
        self.serve(
            reply,
            |client| async move { client.readlink(inode).await },
            |reply, target: Bytes| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let parent = self.ino(parent);
        let Some(kind) = convert::node_kind(mode) else { return reply.error(Errno::EINVAL) };
        let (caller, name, mode) = (self.caller(request, umask), owned(name), convert::permissions(mode));
        self.serve(
            reply,
            |client| async move { client.mknod(caller, parent, &name, kind, mode, rdev).await },
            reply_entry,
        );
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let parent = self.ino(parent);
        let (caller, name, mode) = (self.caller(request, umask), owned(name), convert::permissions(mode));
        self.serve(
            reply,
            |client| async move { client.mknod(caller, parent, &name, FileType::Directory, mode, 0).await },
            reply_entry,
        );
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = self.ino(parent);
        let name = owned(name);
        self.serve(reply, |client| async move { client.unlink(parent, &name).await }, reply_empty);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = self.ino(parent);
        let name = owned(name);
        self.serve(reply, |client| async move { client.rmdir(parent, &name).await }, reply_empty);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let parent = self.ino(parent);
        let (caller, name, target) = (self.caller(request, 0), owned(name), owned(target.as_os_str()));
        self.serve(reply, |client| async move { client.symlink(caller, parent, &name, &target).await }, reply_entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (parent, new_parent) = (self.ino(parent), self.ino(new_parent));
        let (mode, whiteout) = match convert::rename_mode(flags.bits()) {
            Ok(known) => known,
            Err(errno) => return reply.error(errno),
        };
        let (name, new_name) = (owned(name), owned(new_name));
        let whiteout = whiteout.then(|| self.caller(request, 0));
        self.serve(
            reply,
            |client| async move {
                client.rename_leaving([(parent, &name), (new_parent, &new_name)], mode, whiteout).await
            },
            reply_empty,
        );
    }

    fn link(&self, _request: &Request, inode: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let (inode, new_parent) = (self.ino(inode), self.ino(new_parent));
        let name = owned(new_name);
        self.serve(reply, |client| async move { client.link(inode, new_parent, &name).await }, reply_entry);
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (asked, inode) = (inode, self.ino(inode));
        let (raw_flags, flags) = (flags.0, convert::open_flags(flags.0));
        let (asker, drop) = (asker(request), flags.truncate && request.uid() != 0);
        if flags.truncate && !flags.write && self.opened.runs(inode.0) {
            return reply.error(Errno::ETXTBSY);
        }
        let (stale, way) = (self.stale.clone(), self.way(raw_flags));
        self.serve(
            reply,
            |client| async move {
                let (handle, accessed) = client.open_telling(inode, flags).await?;
                if drop && let Err(errno) = drop_privileges(&client, asker, inode).await {
                    client.release(handle).await?;
                    return Err(errno);
                }
                Ok((handle, accessed))
            },
            move |reply, (handle, accessed)| {
                if accessed {
                    stale.attributes(asked);
                }
                reply.opened(FileHandle(handle.0), way(inode));
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let parent = self.ino(parent);
        let (caller, name, mode) = (self.caller(request, umask), owned(name), convert::permissions(mode));
        let (way, flags) = (self.way(flags), convert::open_flags(flags));
        self.serve(
            reply,
            |client| async move { client.create(caller, parent, &name, mode, flags).await },
            move |reply, (entry, handle)| {
                let attr = attributes::shown(entry.ino, &entry.attr);
                reply.created(&TTL, &attr, Generation(0), FileHandle(handle.0), way(entry.ino));
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(
            reply,
            |client| async move { client.read(handle(file), offset, size).await },
            |reply, data| reply.data(&data.into_contiguous()),
        );
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = handle(file);
        let drop = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // A request is at most `MAX_WRITE` long.
        let len = data.len() as u32;
        let asker = asker(request);
        if drop && attributes::may_lose_privileges(&self.client, self.ino(inode)) {
            let (asked, ino, stale) = (inode, self.ino(inode), self.stale.clone());
            let data = Bytes::copy_from_slice(data);
            return self.serve(
                reply,
                |client| async move {
                    client.write(file, offset, data, drop).await?;
                    attributes::take_sgid(&client, asker, (asked, ino), &stale).await?;
                    // It left the dropping to us, and does not ask again for a mode that it knows.
                    stale.attributes(asked);
                    Ok(())
                },
                move |reply, ()| reply.written(len),
            );
        }
        let _turn = self.turns.begin();
        self.load.note();
        waiting::later(&self.executor, || match self.client.write_now(file, offset, data, drop) {
            Ok(true) => reply.written(len),
            Ok(false) => {
                let data = Bytes::copy_from_slice(data);
                self.serve(
                    reply,
                    |client| async move { client.write(file, offset, data, drop).await },
                    move |reply, ()| reply.written(len),
                );
            }
            Err(errno) => reply.error(convert::errno(errno)),
        });
    }

    fn flush(&self, _request: &Request, _inode: INodeNo, file: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.serve(reply, |client| async move { client.flush(handle(file)).await }, reply_empty);
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        file: FileHandle,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.opened.released(self.ino(inode).0, flags.0);
        self.serve(reply, |client| async move { client.release(handle(file)).await }, reply_empty);
    }

    fn fsync(&self, _request: &Request, _inode: INodeNo, file: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.serve(reply, |client| async move { client.fsync(handle(file)).await }, reply_empty);
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.skip_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), kernel::directory_flags(self.atime));
        }
    }

    fn readdir(&self, _request: &Request, inode: INodeNo, _file: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (inode, root) = (self.ino(inode), self.root);
        let client = self.client.clone();
        self.run(async move {
            match dir::list(&client, (inode, root), offset, &mut reply).await {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(convert::errno(errno)),
            }
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _file: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (inode, root) = (self.ino(inode), self.root);
        let (client, fitted) = (self.client.clone(), Arc::clone(&self.fitted));
        self.run(async move {
            match dir::list_plus(&client, (inode, root), offset, &fitted, &mut reply).await {
                Ok(next) => {
                    reply.ok();
                    if let Some(next) = next {
                        dir::read_ahead(&client, inode, next, &fitted).await;
                    }
                }
                Err(errno) => reply.error(convert::errno(errno)),
            }
        });
    }

    fn releasedir(&self, _request: &Request, _inode: INodeNo, _file: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, inode: INodeNo, _file: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let inode = self.ino(inode);
        self.serve(reply, |client| async move { client.fsyncdir(inode).await }, reply_empty);
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        self.serve(
            reply,
            |client| async move { client.statfs().await },
            |reply, stat| {
                let block = u64::from(STATFS_BLOCK);
                let used = stat.used_bytes.div_ceil(block);
                let total = match stat.capacity_bytes {
                    0 => used.max(UNLIMITED_BYTES / block),
                    limit => limit / block,
                };
                let free = total.saturating_sub(used);
                let files = match stat.capacity_inodes {
                    0 => stat.used_inodes + UNLIMITED_INODES,
                    limit => limit,
                };
                let files_free = files.saturating_sub(stat.used_inodes);
                reply.statfs(total, free, free, files, files_free, STATFS_BLOCK, NAME_MAX as u32, STATFS_BLOCK);
            },
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match convert::xattr_mode(flags) {
            Ok(mode) => mode,
            Err(errno) => return reply.error(errno),
        };
        let (asker, inode) = (asker(request), self.ino(inode));
        let (name, value) = (owned(name), Bytes::copy_from_slice(value));
        self.serve(
            reply,
            |client| async move { attributes::set(&client, asker, inode, &name, value, mode).await },
            reply_empty,
        );
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (inode, name) = (self.ino(inode), owned(name));
        self.serve(
            reply,
            |client| async move { attributes::get(&client, inode, &name).await },
            move |reply, value: Bytes| reply_xattr(reply, size, &value),
        );
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let (asker, inode) = (asker(request), self.ino(inode));
        self.serve(
            reply,
            |client| async move { client.listxattr(inode).await },
            move |reply, names: Vec<Bytes>| reply_xattr(reply, size, &attributes::list(asker, &names)),
        );
    }

    fn removexattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (inode, name) = (self.ino(inode), owned(name));
        self.serve(reply, |client| async move { client.removexattr(inode, &name).await }, reply_empty);
    }

    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        inode: INodeNo,
        _file: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let ioctl = match FlagsIoctl::parse(command, data) {
            Ok(ioctl) => ioctl,
            Err(errno) => return reply.error(errno),
        };
        let (asked, inode, stale) = (inode, self.ino(inode), self.stale.clone());
        self.serve(
            reply,
            move |client| async move {
                match ioctl {
                    FlagsIoctl::Get { fsxattr } => {
                        client.getattr(inode).await.map(|attr| attributes::flags_data(attr.flags, fsxattr))
                    }
                    FlagsIoctl::Set(flags) => {
                        client.set_flags(inode, flags).await?;
                        // The time of this change.
                        stale.attributes(asked);
                        Ok(Vec::new())
                    }
                }
            },
            |reply, data| reply.ioctl(0, &data),
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        inode: INodeNo,
        file: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(what) = convert::fallocate(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        // As local file systems do it: unless root asks. The kernel leaves it to us (HANDLE_KILLPRIV_V2).
        let (asker, drop) = (asker(request), request.uid() != 0);
        let (inode, stale) = ((inode, self.ino(inode)), self.stale.clone());
        self.serve(
            reply,
            |client| async move {
                client.fallocate(handle(file), offset, length, what, drop).await?;
                attributes::take_sgid(&client, asker, inode, &stale).await
            },
            reply_empty,
        );
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        file: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(whence) = convert::whence(whence) else { return reply.error(Errno::EINVAL) };
        // lseek(2): before the file is as bad as past its end.
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.serve(
            reply,
            |client| async move { client.seek(handle(file), offset, whence).await },
            // No file is longer than what fits.
            |reply, offset| reply.offset(offset as i64),
        );
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _inode_in: INodeNo,
        file_in: FileHandle,
        offset_in: u64,
        inode_out: INodeNo,
        file_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (asker, drop) = (asker(request), request.uid() != 0);
        let (inode, stale) = ((inode_out, self.ino(inode_out)), self.stale.clone());
        let (from, to) = ((handle(file_in), offset_in), (handle(file_out), offset_out));
        // The reply has 32 bits for the count.
        let len = len.min(COPY_MAX);
        self.serve(
            reply,
            |client| async move {
                let copied = client.copy_range(from, to, len, drop).await?;
                attributes::take_sgid(&client, asker, inode, &stale).await?;
                Ok(copied)
            },
            |reply, copied| reply.written(copied as u32),
        );
    }
}
