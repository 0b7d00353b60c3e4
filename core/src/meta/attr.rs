//! Attributes: load, set, the rule by which a `SetAttr` changes them, access times, and what chattr(1) forbids.
//!
//! Owns: merging a directory's stripes into its attributes and keeping set times in force over them.
//! Leaves to others: permissions (the kernel), sizes (`data`).

use super::names::{NEVER, add_stripe, merge, sum_stripes};
use super::{Accesses, OpCtx, S_ISGID, S_ISUID, S_IXGRP, SECURITY_CAPABILITY, SetAttr, get, put};
use crate::errno::Errno;
use crate::format::keys;
use crate::format::values::DirStat;
use crate::kv::{OpResult, Read, Txn};
use crate::marks::{Mark, reached};
use crate::planted::{self, Bug};
use crate::types::{AtimeMode, Attr, FileType, Ino, InodeFlags, STRIPES, Timestamp};

/// Age of an access time at which relatime renews it, in seconds.
const ATIME_OLD: i64 = 24 * 60 * 60;

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
        let Self { mode, uid, gid, atime, mtime, ctime, drop_suid_sgid, drop_sgid, touch: _ } = *self;
        if drop_suid_sgid {
            drop_privileges(attr);
        }
        if drop_sgid && attr.kind != FileType::Directory {
            attr.mode &= !S_ISGID;
        }
        attr.mode = mode.map_or(attr.mode, |mode| mode & 0o7777);
        attr.uid = uid.unwrap_or(attr.uid);
        attr.gid = gid.unwrap_or(attr.gid);
        attr.atime = atime.unwrap_or(attr.atime);
        attr.mtime = mtime.unwrap_or(attr.mtime);
        // Members of a commit may be older than a change that went straight to metadata: ctime never goes back.
        attr.ctime = attr.ctime.max(ctime.unwrap_or(now));
    }

    /// EPERM if an inode with these flags does not take this change. (notify_change of Linux)
    pub fn check(&self, flags: InodeFlags) -> Result<(), Errno> {
        let Self { mode, uid, gid, atime, mtime, ctime: _, drop_suid_sgid: _, drop_sgid: _, touch } = *self;
        let chosen = mode.is_some() || uid.is_some() || gid.is_some();
        let times = atime.is_some() || mtime.is_some();
        let forbidden = match (chosen || (times && !touch), times) {
            (true, _) => InodeFlags::IMMUTABLE.with(InodeFlags::APPEND),
            (false, true) => InodeFlags::IMMUTABLE,
            (false, false) => InodeFlags::default(),
        };
        if flags.any(forbidden) { Err(Errno::EPERM) } else { Ok(()) }
    }
}

/// EPERM if the attributes of an inode with these flags stay as they are.
pub(super) fn forbid_change(flags: InodeFlags) -> OpResult<()> {
    let fixed = InodeFlags::IMMUTABLE.with(InodeFlags::APPEND);
    if !flags.any(fixed) || planted::is(Bug::ImmutableIgnored) {
        return Ok(());
    }
    reached(Mark::FlagsForbade);
    Err(Errno::EPERM.into())
}

/// EPERM if opening an inode with these flags like this, or changing its length, is forbidden. (may_open of Linux)
pub fn check_open(flags: InodeFlags, write: bool, append: bool, truncate: bool) -> Result<(), Errno> {
    let fixed = (write || truncate) && flags.any(InodeFlags::IMMUTABLE);
    let growing = (truncate || (write && !append)) && flags.any(InodeFlags::APPEND);
    if fixed || growing { Err(Errno::EPERM) } else { Ok(()) }
}

/// The access time after these reads, if it is another one.
///
/// With relatime it is that of the first read since the last change; only the first and the last are known, so of
/// several changes between reads that are not recorded yet the last read counts.
pub fn atime_after(attr: &Attr, accesses: &Accesses, mode: AtimeMode) -> Option<Timestamp> {
    let Accesses { first, last } = *accesses;
    let changed = attr.mtime.max(attr.ctime);
    let old = attr.atime <= changed || ATIME_OLD <= last.secs.saturating_sub(attr.atime.secs);
    let relative = if changed <= first { first } else { last };
    let after = match mode {
        AtimeMode::Noatime => attr.atime,
        AtimeMode::Relatime if old => relative,
        AtimeMode::Relatime => attr.atime,
        AtimeMode::Strictatime => last,
    };
    (after != attr.atime && !attr.flags.any(InodeFlags::NOATIME)).then_some(after)
}

/// Records reads in the access time; `accesses` is asked after the attributes are read, so that a time which is set
/// meanwhile is either seen or conflicts. An inode that is gone is none of its business.
pub fn record_accesses(
    txn: &mut dyn Txn,
    ino: Ino,
    accesses: impl Fn() -> Option<Accesses>,
    mode: AtimeMode,
) -> OpResult<()> {
    let Some(mut attr) = get::<Attr>(txn, keys::attr(ino))? else { return Ok(()) };
    let mut shown = attr;
    if attr.kind == FileType::Directory {
        merge(&mut shown, &sum_stripes(txn, ino)?);
    }
    if let Some(atime) = accesses().and_then(|accesses| atime_after(&shown, &accesses, mode)) {
        attr.atime = atime;
        put(txn, keys::attr(ino), &attr);
    }
    Ok(())
}

/// Sets the flags and returns the stored attributes. ENOENT.
pub fn set_flags(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, flags: InodeFlags) -> OpResult<Attr> {
    let attr: Attr = get(txn, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    let attr = Attr { flags, ctime: attr.ctime.max(ctx.now), ..attr };
    put(txn, keys::attr(ino), &attr);
    Ok(attr)
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

/// The part of dropping privileges that is not in the attributes: security.capability goes.
pub fn drop_capability(txn: &mut dyn Txn, ino: Ino) -> OpResult<()> {
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

/// Sets attributes and returns them all. ENOENT if there is no such inode, EPERM if its flags forbid it.
pub fn set(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, set: &SetAttr) -> OpResult<Attr> {
    let mut attr: Attr = get(txn, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    if set.is_empty() {
        return load(txn, ino);
    }
    set.check(attr.flags)?;
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
