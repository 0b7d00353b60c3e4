//! Between the core's words and fuser's: attributes, times, error numbers, open flags, file types.
//!
//! Owns: the one place where an error number of the core becomes fuser's. Everything here is a pure function.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, INodeNo, TimeOrNow};
use kiseki_core::client::OpenFlags;
use kiseki_core::file::machine::{Fallocate, Whence};
use kiseki_core::meta::RenameMode;
use kiseki_core::types::{Attr, FileType, Ino, Timestamp};
use rustix::fs::{FallocateFlags, OFlags, RenameFlags, XattrFlags};

/// What stat(2) reports as the preferred size of reads and writes.
///
/// Each request crosses into this process, so programs that size their buffer by it (cp, cat, Python) should send few.
/// 128 KiB is also the least that coreutils use. More would make programs that read a little at many places fetch too
/// much: Python reads this much at each seek.
const PREFERRED_IO_SIZE: u32 = 128 << 10;

/// Values of lseek(2) on Linux.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Unit of st_blocks.
const SECTOR: u64 = 512;

/// An error of the core as fuser's.
pub(super) fn errno(errno: kiseki_core::errno::Errno) -> Errno {
    Errno::from_i32(errno.0)
}

/// An inode's attributes as the kernel wants them.
pub(super) fn attr(ino: Ino, attr: &Attr) -> FileAttr {
    let stored = match attr.kind {
        FileType::Directory => attr.length,
        FileType::Regular
        | FileType::Symlink
        | FileType::Fifo
        | FileType::CharDevice
        | FileType::BlockDevice
        | FileType::Socket => attr.stored,
    };
    FileAttr {
        ino: INodeNo(ino.0),
        size: attr.length,
        blocks: stored.div_ceil(SECTOR),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: kind(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: PREFERRED_IO_SIZE,
        flags: 0,
    }
}

/// A reply that says "no such name" and may be cached: inode 0.
pub(super) fn negative_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A file type as fuser's.
pub(super) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// The file type in a mode that mknod(2) takes; mknod makes neither directories nor symbolic links.
pub(super) fn node_kind(mode: u32) -> Option<FileType> {
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::RegularFile => Some(FileType::Regular),
        rustix::fs::FileType::Fifo => Some(FileType::Fifo),
        rustix::fs::FileType::CharacterDevice => Some(FileType::CharDevice),
        rustix::fs::FileType::BlockDevice => Some(FileType::BlockDevice),
        rustix::fs::FileType::Socket => Some(FileType::Socket),
        rustix::fs::FileType::Directory | rustix::fs::FileType::Symlink | rustix::fs::FileType::Unknown => None,
    }
}

/// The permission bits of a mode, with suid, sgid and sticky.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// The flags of open(2) that matter to us. Access mode 3 (ioctl only) is taken for read and write.
pub(super) fn open_flags(flags: i32) -> OpenFlags {
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    let access = flags & OFlags::RWMODE;
    OpenFlags {
        read: access != OFlags::WRONLY,
        write: access != OFlags::RDONLY,
        append: flags.contains(OFlags::APPEND),
        positioned: true,
        truncate: flags.contains(OFlags::TRUNC),
        exclusive: flags.contains(OFlags::EXCL),
        // O_SYNC contains the bit of O_DSYNC.
        sync: flags.contains(OFlags::DSYNC),
        noatime: flags.contains(OFlags::NOATIME),
    }
}

/// The flags of renameat2(2): how it treats the target, and whether it leaves a whiteout.
pub(super) fn rename_mode(flags: u32) -> Result<(RenameMode, bool), Errno> {
    let flags = RenameFlags::from_bits_retain(flags);
    let whiteout = flags.contains(RenameFlags::WHITEOUT);
    let how = flags - RenameFlags::WHITEOUT;
    if how.is_empty() {
        Ok((RenameMode::Replace, whiteout))
    } else if how == RenameFlags::NOREPLACE {
        Ok((RenameMode::NoReplace, whiteout))
    } else if how == RenameFlags::EXCHANGE && !whiteout {
        Ok((RenameMode::Exchange, false))
    } else {
        Err(Errno::EINVAL)
    }
}

/// The mode of fallocate(2); `None`: EOPNOTSUPP.
pub(super) fn fallocate(mode: i32) -> Option<Fallocate> {
    let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
    let keep_size = mode.contains(FallocateFlags::KEEP_SIZE);
    let rest = mode - FallocateFlags::KEEP_SIZE;
    if rest.is_empty() {
        Some(Fallocate::Reserve { extend: !keep_size })
    } else if rest == FallocateFlags::PUNCH_HOLE && keep_size {
        Some(Fallocate::Punch)
    } else if rest == FallocateFlags::ZERO_RANGE {
        Some(Fallocate::Zero { extend: !keep_size })
    } else {
        None
    }
}

/// What lseek(2) asks us for; the rest is the kernel's.
pub(super) fn whence(whence: i32) -> Option<Whence> {
    match whence {
        SEEK_DATA => Some(Whence::Data),
        SEEK_HOLE => Some(Whence::Hole),
        _ => None,
    }
}

/// The flags of setxattr(2).
pub(super) fn xattr_mode(flags: i32) -> Result<kiseki_core::meta::XattrMode, Errno> {
    use kiseki_core::meta::XattrMode;
    let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
    if flags.is_empty() {
        Ok(XattrMode::Either)
    } else if flags == XattrFlags::CREATE {
        Ok(XattrMode::Create)
    } else if flags == XattrFlags::REPLACE {
        Ok(XattrMode::Replace)
    } else if flags == XattrFlags::CREATE | XattrFlags::REPLACE {
        Ok(XattrMode::Neither)
    } else {
        Err(Errno::EINVAL)
    }
}

/// A time that utimensat(2) sets.
pub(super) fn time_or_now(time: TimeOrNow) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => kernel_time(time),
        TimeOrNow::Now => now(),
    }
}

/// A time from a request.
///
/// fuser makes `UNIX_EPOCH - (|secs| + nanos)` of the kernel's `secs + nanos` when `secs` is negative, which is another
/// time. The two parts come out of the difference as they went in.
pub(super) fn kernel_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { secs: clamp_secs(after.as_secs()), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Timestamp { secs: 0_i64.saturating_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

pub(super) fn now() -> Timestamp {
    // A clock before 1970 is a clock that was never set.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { secs: clamp_secs(since.as_secs()), nanos: since.subsec_nanos() }
}

fn clamp_secs(secs: u64) -> i64 {
    i64::try_from(secs).unwrap_or(i64::MAX)
}

fn system_time(time: Timestamp) -> SystemTime {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(secs) } else { UNIX_EPOCH.checked_add(secs) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser hands us for the kernel's (secs, nanos).
    fn from_fuser(secs: i64, nanos: u32) -> SystemTime {
        let part = Duration::new(secs.unsigned_abs(), nanos);
        if secs < 0 { UNIX_EPOCH - part } else { UNIX_EPOCH + part }
    }

    #[test]
    fn times_before_1970_survive_fuser() {
        for (secs, nanos) in [(0, 0), (0, 1), (1, 999_999_999), (-1, 0), (-1, 500_000_000), (-2, 1), (i64::MIN, 0)] {
            assert_eq!(kernel_time(from_fuser(secs, nanos)), Timestamp { secs, nanos }, "{secs} {nanos}");
        }
    }

    #[test]
    fn stored_times_are_replied_exactly() {
        for (secs, nanos) in [(0_i64, 0_u32), (1_700_000_000, 123_456_789), (-1, 500_000_000), (-86_400, 0)] {
            let whole = Duration::from_secs(secs.unsigned_abs());
            let whole = if secs < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
            assert_eq!(
                system_time(Timestamp { secs, nanos }),
                whole + Duration::from_nanos(nanos.into()),
                "{secs} {nanos}"
            );
        }
    }

    #[test]
    fn open_flags_follow_open_2() {
        let open = |flags: OFlags| open_flags(flags.bits().cast_signed());
        let none = OpenFlags { positioned: true, ..OpenFlags::default() };
        assert_eq!(open(OFlags::RDONLY), OpenFlags { read: true, ..none });
        assert_eq!(open(OFlags::WRONLY | OFlags::APPEND), OpenFlags { write: true, append: true, ..none });
        assert_eq!(
            open(OFlags::RDWR | OFlags::TRUNC | OFlags::SYNC),
            OpenFlags { read: true, write: true, truncate: true, sync: true, ..none }
        );
        assert_eq!(open(OFlags::WRONLY | OFlags::DSYNC), OpenFlags { write: true, sync: true, ..none });
    }

    #[test]
    fn rename_flags_that_make_no_sense_together_are_refused() {
        for (flags, expected) in [
            (RenameFlags::empty(), Ok((RenameMode::Replace, false))),
            (RenameFlags::NOREPLACE, Ok((RenameMode::NoReplace, false))),
            (RenameFlags::EXCHANGE, Ok((RenameMode::Exchange, false))),
            (RenameFlags::WHITEOUT, Ok((RenameMode::Replace, true))),
            (RenameFlags::WHITEOUT | RenameFlags::NOREPLACE, Ok((RenameMode::NoReplace, true))),
            (RenameFlags::WHITEOUT | RenameFlags::EXCHANGE, Err(Errno::EINVAL)),
            (RenameFlags::from_bits_retain(8), Err(Errno::EINVAL)),
            (RenameFlags::NOREPLACE | RenameFlags::EXCHANGE, Err(Errno::EINVAL)),
        ] {
            assert_eq!(rename_mode(flags.bits()), expected, "{flags:?}");
        }
    }
}
