//! Extended attributes, ACLs, flags: what Linux's own file systems decide and the kernel leaves to us on FUSE.
//!
//! The kernel checks before a request comes: owners and modes for every name; CAP_SYS_ADMIN for trusted.*; user.* on
//! regular files and directories alone, in sticky directories by the owner alone; the lengths of names, values and
//! lists; CAP_LINUX_IMMUTABLE for the flags. Ours are: which names there are, whom a listing shows trusted.* to, and
//! whether an ACL, or a change of a file without group execution, takes the sgid bit.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use fuser::{Errno, FileAttr, INodeNo};
use futures_util::FutureExt;
use kiseki_core::client::Client;
use kiseki_core::env::Env;
use kiseki_core::errno::Errno as CoreErrno;
use kiseki_core::meta::acl::AclKind;
use kiseki_core::meta::{SetAttr, XattrMode};
use kiseki_core::types::{Attr, FileType, Ino, InodeFlags};

use super::{Stale, convert};

/// Get flags as lsattr(1) does, set them, and the same of `struct fsxattr`. (ioctl_iflags(2), linux/fs.h)
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// Length of `struct fsxattr`; its first word holds the flags.
const FSXATTR_LEN: usize = 28;

/// Each flag with FS_*_FL of the first pair of commands and FS_XFLAG_* of the second.
const FLAGS: [(InodeFlags, u32, u32); 4] = [
    (InodeFlags::IMMUTABLE, 0x10, 0x08),
    (InodeFlags::APPEND, 0x20, 0x10),
    (InodeFlags::NODUMP, 0x40, 0x80),
    (InodeFlags::NOATIME, 0x80, 0x40),
];

/// An ioctl about flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagsIoctl {
    /// Answer with them, `fsxattr` or not.
    Get { fsxattr: bool },
    /// Set them.
    Set(InodeFlags),
}

impl FlagsIoctl {
    /// The command with its data. ENOTTY: none of these; EOPNOTSUPP: flags that we do not have.
    pub(super) fn parse(command: u32, data: &[u8]) -> Result<Self, Errno> {
        let fsxattr = matches!(command, FS_IOC_FSGETXATTR | FS_IOC_FSSETXATTR);
        match command {
            FS_IOC_GETFLAGS | FS_IOC_FSGETXATTR => return Ok(Self::Get { fsxattr }),
            FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR => {}
            _ => return Err(Errno::ENOTTY),
        }
        let (word, rest) = data.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if fsxattr && rest.iter().any(|byte| *byte != 0) {
            // Extent sizes and project quotas.
            return Err(Errno::EOPNOTSUPP);
        }
        let mut bits = u32::from_ne_bytes(*word);
        let mut flags = InodeFlags::default();
        for (flag, fl, xflag) in FLAGS {
            let bit = if fsxattr { xflag } else { fl };
            if bits & bit != 0 {
                bits &= !bit;
                flags = flags.with(flag);
            }
        }
        if bits == 0 { Ok(Self::Set(flags)) } else { Err(Errno::EOPNOTSUPP) }
    }
}

/// The data of an answer to `FlagsIoctl::Get`.
pub(super) fn flags_data(flags: InodeFlags, fsxattr: bool) -> Vec<u8> {
    let set = FLAGS.iter().filter(|(flag, ..)| flags.any(*flag));
    let bits: u32 = set.map(|(_, fl, xflag)| if fsxattr { xflag } else { fl }).sum();
    let mut data = bits.to_ne_bytes().to_vec();
    if fsxattr {
        data.resize(FSXATTR_LEN, 0);
    }
    data
}

/// Who asks, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
}

impl Asker {
    /// The kernel does not tell capabilities: root is who has CAP_FSETID and CAP_SYS_ADMIN.
    fn is_privileged(self) -> bool {
        self.uid == 0
    }

    /// Whether `gid` is a group of the asker. The request names one of its groups; the kernel lists the others.
    fn is_in_group(self, gid: u32) -> bool {
        self.gid == gid || std::fs::read_to_string(format!("/proc/{}/status", self.pid)).is_ok_and(|s| lists(&s, gid))
    }
}

/// Whether the text of /proc/PID/status has `gid` among the supplementary groups.
fn lists(status: &str, gid: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| groups.split_ascii_whitespace().any(|group| group.parse() == Ok(gid)))
}

/// S_ISUID. (inode(7))
const SUID: u16 = 0o4000;
/// S_ISGID, and what gives it privileges to pass on: S_IXGRP. (inode(7))
const SGID: u16 = 0o2000;
const SGID_AND_GROUP_EXECUTION: u16 = 0o2010;

/// Whether the kernel was shown a file with sgid and without group execution. Such files are rare, and only for them a
/// write has to look at the groups of its caller.
static SGID_ALONE: AtomicBool = AtomicBool::new(false);
/// Whether the kernel was shown a file with suid or sgid.
static PRIVILEGED: AtomicBool = AtomicBool::new(false);

/// Whether a change by somebody outside of its group takes sgid from this inode that others leave it.
fn has_sgid_alone(attr: &Attr) -> bool {
    attr.kind != FileType::Directory && attr.mode & SGID_AND_GROUP_EXECUTION == SGID
}

/// Whether dropping suid and sgid changes the mode, whoever asks. (setattr_should_drop_suidgid of Linux)
pub(super) fn has_privileges(attr: &Attr) -> bool {
    let sgid = attr.mode & SGID_AND_GROUP_EXECUTION == SGID_AND_GROUP_EXECUTION;
    attr.kind != FileType::Directory && (attr.mode & SUID != 0 || sgid)
}

/// Attributes for the kernel; all that it is told go through here.
pub(super) fn shown(ino: Ino, attr: &Attr) -> FileAttr {
    if has_sgid_alone(attr) {
        SGID_ALONE.store(true, Ordering::Relaxed);
    }
    if loses_by_write(attr) {
        PRIVILEGED.store(true, Ordering::Relaxed);
    }
    convert::attr(ino, attr)
}

/// Whether a write may take suid or sgid from the file.
fn loses_by_write(attr: &Attr) -> bool {
    has_privileges(attr) || has_sgid_alone(attr)
}

/// Whether a write that drops privileges may change the mode that the kernel knows of `ino`.
pub(super) fn may_lose_privileges<E: Env>(client: &Client<E>, ino: Ino) -> bool {
    if !PRIVILEGED.load(Ordering::Relaxed) {
        return false;
    }
    match client.getattr(ino).now_or_never() {
        Some(Ok(attr)) => loses_by_write(&attr),
        // Unknown as yet.
        Some(Err(_)) | None => true,
    }
}

/// Whether a change of contents or owner by `asker` takes sgid from a file without group execution.
/// (setattr_should_drop_sgid of Linux)
pub(super) async fn takes_sgid<E: Env>(client: &Client<E>, asker: Asker, ino: Ino) -> Result<bool, CoreErrno> {
    if asker.is_privileged() || !SGID_ALONE.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let attr = client.getattr(ino).await?;
    Ok(has_sgid_alone(&attr) && !asker.is_in_group(attr.gid))
}

/// Takes sgid as `takes_sgid` says, after a change that has dropped all else, and tells the kernel, which calls the inode
/// `asked`.
pub(super) async fn take_sgid<E: Env>(
    client: &Client<E>,
    asker: Asker,
    (asked, ino): (INodeNo, Ino),
    stale: &Stale,
) -> Result<(), CoreErrno> {
    if takes_sgid(client, asker, ino).await? {
        client.setattr(ino, SetAttr { drop_sgid: true, ..SetAttr::default() }, None).await?;
        stale.attributes(asked);
    }
    Ok(())
}

/// Sets an extended attribute or an ACL.
pub(super) async fn set<E: Env>(
    client: &Client<E>,
    asker: Asker,
    ino: Ino,
    name: &[u8],
    value: Bytes,
    mode: XattrMode,
) -> Result<(), CoreErrno> {
    let Some(kind) = AclKind::of(name) else { return client.setxattr(ino, name, value, mode).await };
    let outside = match kind {
        AclKind::Access if !asker.is_privileged() => !asker.is_in_group(client.getattr(ino).await?.gid),
        AclKind::Access | AclKind::Default => false,
    };
    client.set_acl(ino, kind, &value, outside).await?;
    // The mask of an ACL is the group's execution.
    if kind == AclKind::Access {
        shown(ino, &client.getattr(ino).await?);
    }
    Ok(())
}

/// The value of an extended attribute.
pub(super) async fn get<E: Env>(client: &Client<E>, ino: Ino, name: &[u8]) -> Result<Bytes, CoreErrno> {
    match client.getxattr(ino, name).await {
        // `ls -l` then stops asking for it once for each file.
        Err(CoreErrno::ENODATA) if name == b"security.selinux" => Err(CoreErrno::EOPNOTSUPP),
        other => other,
    }
}

/// The list that `asker` gets of `names`: each with a zero after it.
pub(super) fn list(asker: Asker, names: &[Bytes]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names {
        if asker.is_privileged() || !name.starts_with(b"trusted.") {
            list.extend_from_slice(name);
            list.push(0);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_survive_both_ioctls() {
        for bits in 0..16 {
            let flags = InodeFlags::from_bits(bits).expect("four flags");
            for (command, fsxattr) in [(FS_IOC_SETFLAGS, false), (FS_IOC_FSSETXATTR, true)] {
                let data = flags_data(flags, fsxattr);
                assert_eq!(data.len(), if fsxattr { FSXATTR_LEN } else { 4 });
                assert_eq!(FlagsIoctl::parse(command, &data), Ok(FlagsIoctl::Set(flags)));
            }
        }
        assert_eq!(FlagsIoctl::parse(FS_IOC_FSGETXATTR, &[]), Ok(FlagsIoctl::Get { fsxattr: true }));
    }

    #[test]
    fn what_we_do_not_have_is_refused() {
        let project = [[0_u8; 12].as_slice(), &[1; 16]].concat();
        for (command, data, errno) in [
            (0x5401, vec![], Errno::ENOTTY),
            (FS_IOC_SETFLAGS, vec![], Errno::EINVAL),
            // Compressed.
            (FS_IOC_SETFLAGS, 4_u32.to_ne_bytes().to_vec(), Errno::EOPNOTSUPP),
            (FS_IOC_FSSETXATTR, project, Errno::EOPNOTSUPP),
        ] {
            assert_eq!(FlagsIoctl::parse(command, &data), Err(errno));
        }
    }

    #[test]
    fn groups_are_read_from_status() {
        let status = "Name:\tsh\nGid:\t5\t5\t5\t5\nGroups:\t4 24 27 \nNStgid:\t9\n";
        assert!([4, 24, 27].iter().all(|gid| lists(status, *gid)));
        assert!([5, 2, 9].iter().all(|gid| !lists(status, *gid)));
        assert!(!lists("", 4));
    }

    #[test]
    fn trusted_names_are_roots() {
        let names = [Bytes::from_static(b"trusted.a"), Bytes::from_static(b"user.b")];
        let asker = |uid| Asker { uid, gid: 0, pid: 1 };
        assert_eq!(list(asker(0), &names), b"trusted.a\0user.b\0");
        assert_eq!(list(asker(1), &names), b"user.b\0");
    }
}
