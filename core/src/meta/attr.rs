//! Attributes: load, set, and the rule by which a `SetAttr` changes them.
//!
//! Owns: merging a directory's stripes into its attributes and keeping set times in force over them.
//! Leaves to others: permissions (the kernel), sizes (`data`).

use super::names::{NEVER, add_stripe, merge};
use super::{OpCtx, S_ISGID, S_ISUID, S_IXGRP, SECURITY_CAPABILITY, SetAttr, get, put};
use crate::errno::Errno;
use crate::format::keys;
use crate::format::values::DirStat;
use crate::kv::{OpResult, Read, Txn};
use crate::types::{Attr, FileType, Ino, STRIPES, Timestamp};

impl SetAttr {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes `attr` as the set operation does; `now` is its time.
    pub fn apply(&self, attr: &mut Attr, now: Timestamp) {
        if self.is_empty() {
            return;
        }
        let Self { mode, uid, gid, atime, mtime, ctime, drop_suid_sgid } = *self;
        if drop_suid_sgid {
            drop_privileges(attr);
        }
        attr.mode = mode.map_or(attr.mode, |mode| mode & 0o7777);
        attr.uid = uid.unwrap_or(attr.uid);
        attr.gid = gid.unwrap_or(attr.gid);
        attr.atime = atime.unwrap_or(attr.atime);
        attr.mtime = mtime.unwrap_or(attr.mtime);
        // Members of a commit may be older than a change that went straight to metadata: ctime never goes back.
        attr.ctime = attr.ctime.max(ctime.unwrap_or(now));
    }
}

/// Takes suid, and sgid where it means privileges, from what is not a directory.
pub(super) fn drop_privileges(attr: &mut Attr) {
    if attr.kind != FileType::Directory {
        attr.mode &= !S_ISUID;
        if attr.mode & S_IXGRP != 0 {
            attr.mode &= !S_ISGID;
        }
    }
}

/// The part of dropping privileges that is not in the attributes.
pub(super) fn drop_capability(txn: &mut dyn Txn, ino: Ino) -> OpResult<()> {
    let key = keys::xattr(ino, SECURITY_CAPABILITY);
    if txn.get(&key)?.is_some() {
        txn.delete(&key);
    }
    Ok(())
}

/// The attributes of an inode, a directory's merged with its statistics. ENOENT if there is none.
pub fn load(read: &mut dyn Read, ino: Ino) -> OpResult<Attr> {
    let mut attr: Attr = get(read, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    if attr.kind == FileType::Directory {
        // A few gets cost less than one scan, whose iterator has to be made first.
        let mut sum = DirStat { entries: 0, subdirs: 0, mtime: NEVER, ctime: NEVER };
        for stripe in 0..STRIPES {
            if let Some(stat) = get::<DirStat>(read, keys::dirstat(ino, stripe))? {
                add_stripe(&mut sum, &stat);
            }
        }
        merge(&mut attr, &sum);
    }
    Ok(attr)
}

/// Sets attributes and returns them all. ENOENT if there is no such inode.
pub fn set(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, set: &SetAttr) -> OpResult<Attr> {
    let mut attr: Attr = get(txn, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    if set.is_empty() {
        return load(txn, ino);
    }
    set.apply(&mut attr, ctx.now);
    put(txn, keys::attr(ino), &attr);
    if attr.kind == FileType::Directory {
        let sum = settle_stripes(txn, ino, &attr, set.mtime.is_some())?;
        merge(&mut attr, &sum);
    } else if set.drop_suid_sgid {
        drop_capability(txn, ino)?;
    }
    Ok(attr)
}

/// Takes from the stripes what would hide the times just set in `attr`; returns their sum.
fn settle_stripes(txn: &mut dyn Txn, dir: Ino, attr: &Attr, mtime_set: bool) -> OpResult<DirStat> {
    let mut sum = DirStat { entries: 0, subdirs: 0, mtime: NEVER, ctime: NEVER };
    for stripe in 0..STRIPES {
        let key = keys::dirstat(dir, stripe);
        let Some(mut stat) = get::<DirStat>(txn, &key)? else { continue };
        let old = stat;
        if mtime_set && stat.mtime > attr.mtime {
            stat.mtime = NEVER;
        }
        if stat.ctime > attr.ctime {
            stat.ctime = NEVER;
        }
        if stat != old {
            put(txn, &key, &stat);
        }
        add_stripe(&mut sum, &stat);
    }
    Ok(sum)
}
