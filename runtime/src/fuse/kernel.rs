//! What we ask of the kernel: the settings of the FUSE connection, of open files, and how long replies may be cached.
//!
//! All of it rests on one fact: the process owns the volume, so nothing changes behind this kernel's back. A volume that
//! several clients mount needs other answers here.

use std::io;
use std::time::Duration;

use fuser::{FopenFlags, InitFlags, KernelConfig, Version};
use kiseki_core::client::OpenFlags;
use kiseki_core::types::AtimeMode;
use tracing::debug;

/// How long the kernel may keep names, names that do not exist, and attributes without asking again.
///
/// The kernel itself invalidates what its own operations change, and there are no others. It is bounded only so that a
/// mistake in that reasoning would heal. With it, of what is done without: stat 3.7 times, rename 4.0, ls -l 11, create 2.3.
pub(super) const TTL: Duration = Duration::from_secs(3600);

/// Largest WRITE, and with MAX_PAGES largest READ: writes 1.13 and reads 1.21 times as fast as with 128 KiB; on a null file
/// system, larger requests gain nothing.
const MAX_WRITE: u32 = 1 << 20;

/// Requests that the kernel keeps in flight by itself (readahead, asynchronous direct I/O, writing out mapped pages).
/// Its default of 12 is too few to hide an object store's latency (on a local folder: writes 1.05, reads 1.03).
const MAX_BACKGROUND: u16 = 64;

/// Above it the kernel holds back readahead; the same fraction of the maximum as its default.
const CONGESTION_THRESHOLD: u16 = 48;

/// Wanted capabilities; an older kernel may lack some, and each works without. Figures are of Linux 6.18: requests with
/// and without one, counted by its tracepoint fuse:fuse_request_send; or speeds, those with one as multiples of those
/// without, medians of three or five alternating pairs on a local folder with two processors. Those without a figure made
/// no difference there.
///
/// Not wanted: WRITEBACK_CACHE (a write is accepted when we answer it, and the promises about the order of writes and
/// renames hold from there on), AUTO_INVAL_DATA (it drops cached pages when mtime moves, and only we move it),
/// SPLICE (fuser copies), POSIX_LOCKS and FLOCK_LOCKS (the kernel's own locks suffice while it is alone).
/// The first, ASYNC_READ: several reads of a file are under way at once, so that what the kernel reads ahead
/// does not hold up what is asked for: reads 1.12.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    // Several pages in one WRITE; recent kernels do that anyhow.
    .union(InitFlags::FUSE_BIG_WRITES)
    // Requests of more than 32 pages.
    .union(InitFlags::FUSE_MAX_PAGES)
    // Lookups and listings of one directory run at once: stat with four threads 3.0.
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    // O_TRUNC comes with OPEN: one request instead of two, for programs that do not look at the file after opening it
    // (a GETATTR then, instead of the SETATTR). `opened` pays for what the kernel checks too late then.
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    // Cached pages stay until the kernel itself changes the file, also when attributes are asked again: what AUTO_INVAL_DATA
    // would do must not happen.
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    // Dropping suid and sgid on write, chown and truncate is ours, so the kernel need not ask for the capability of the
    // file ahead of each write: of 2000 appends one GETXATTR, not 2000.
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    // A listing brings attributes along; the kernel decides when that pays (AUTO): `ls -l` of 1000 files that it does not
    // know is 5 requests, not 1004.
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    // Large direct I/O is split into requests that run at once: reads of 4 MiB 2.1.
    .union(InitFlags::FUSE_ASYNC_DIO)
    // Files that we have opened for direct I/O can be mapped all the same.
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)
    // Targets of symbolic links never change: 100 looks are one READLINK, not 100.
    .union(InitFlags::FUSE_CACHE_SYMLINKS);

/// What a volume with ACLs cannot do without: the kernel checks them, and leaves the umask to us, for a default ACL
/// stands in its place.
const FOR_ACLS: InitFlags = InitFlags::FUSE_POSIX_ACL.union(InitFlags::FUSE_DONT_MASK);

/// Sets up the connection. `whole`: all of the volume is mounted, not a directory of it.
pub(super) fn configure(config: &mut KernelConfig, acl: bool, atime: AtimeMode, whole: bool) -> io::Result<()> {
    let offered = config.capabilities();
    let mut wanted = WANTED;
    if acl {
        if !offered.contains(FOR_ACLS) {
            return Err(io::Error::other("the volume has POSIX ACLs, which the FUSE of this kernel does not know"));
        }
        wanted |= FOR_ACLS;
    }
    if whole {
        // Handles of files outlive the kernel's memory of them, for open_by_handle_at(2), NFS and overlayfs: numbers of
        // inodes are never used again. They know nothing of a directory that they must not leave.
        wanted |= InitFlags::FUSE_EXPORT_SUPPORT;
    }
    if every_read_comes(atime) {
        wanted -= InitFlags::FUSE_CACHE_SYMLINKS;
    }
    let missing = wanted - offered;
    if !missing.is_empty() {
        debug!(?missing, "the kernel lacks some FUSE capabilities");
    }
    let added = config.add_capabilities(wanted & offered);
    debug_assert_eq!(added, Ok(()), "only what is offered is asked for");
    // The setters refuse only 0 and what exceeds their maximum, and name it: both are constants below it,
    // except readahead, whose maximum is the kernel's offer.
    let set = [
        config.set_max_write(MAX_WRITE).is_ok(),
        config.set_max_background(MAX_BACKGROUND).is_ok(),
        config.set_congestion_threshold(CONGESTION_THRESHOLD).is_ok(),
    ];
    debug_assert_eq!(set, [true; 3]);
    if let Err(most) = config.set_max_readahead(MAX_WRITE) {
        // `mount::point::raise_readahead` goes above the offer.
        let taken = config.set_max_readahead(most);
        debug_assert!(taken.is_ok());
    }
    Ok(())
}

/// Only a read that comes to us can change an access time: strictatime does without the kernel's caches of contents.
fn every_read_comes(atime: AtimeMode) -> bool {
    atime == AtimeMode::Strictatime
}

/// Whether the kernel may skip OPENDIR: it then keeps listings until a name changes, and asks nothing for a cached one.
pub(super) fn can_skip_opendir(config: &KernelConfig, atime: AtimeMode) -> bool {
    !every_read_comes(atime) && config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
}

/// Whether writes may go past the page cache: since Linux 6.18 pages are dropped also after a direct write, so that none
/// stays as it was that a map has read meanwhile. (b359af8275a9, "fuse: Invalidate the page cache after FOPEN_DIRECT_IO
/// write")
pub(super) fn can_write_past_cache(config: &KernelConfig) -> bool {
    config.capabilities().contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP) && config.kernel_abi() >= Version(7, 45)
}

/// Flags of an open file.
pub(super) fn file_flags(atime: AtimeMode, past_cache: bool) -> FopenFlags {
    // close(2) costs no round trip (the others of a small file: LOOKUP, CREATE, WRITE, and RELEASE, for which nobody
    // waits): nothing waits for it on an exclusive volume. An error that happened since the last write is reported by the
    // next write or fsync of a handle, which POSIX allows.
    let always = FopenFlags::FOPEN_NOFLUSH
        // Direct writes inside the file need no lock of the whole inode: with a store that is slow they do not wait for one
        // another. (On a local folder, four writers: 0.97 to 1.0.)
        | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    if every_read_comes(atime) {
        return always | FopenFlags::FOPEN_DIRECT_IO;
    }
    // The page cache of the last opener is good: a file that was read is read again without a READ.
    let kept = always | FopenFlags::FOPEN_KEEP_CACHE;
    if past_cache { kept | FopenFlags::FOPEN_DIRECT_IO } else { kept }
}

/// Whether who opens a file with these flags has no use for its pages: to write alone, or to write anew, as
/// fopen(3) with "w+" and Go's os.Create do. Databases, which go on reading what they have written, do neither.
///
/// Past the page cache there is nothing to copy into it, and no GETXATTR that asks for the capabilities of each file:
/// with one thread large files are written 1.7 times as fast, files of 128 KiB 1.5, untar 1.15, git clone 1.1. The first
/// to read such a file again asks us: 256 MiB in 88 ms instead of 28, having been written in 93 instead of 167.
pub(super) fn only_writes(flags: OpenFlags) -> bool {
    flags.write && (!flags.read || flags.truncate)
}

/// Flags of an open directory, on kernels that insist on opening it.
pub(super) fn directory_flags(atime: AtimeMode) -> FopenFlags {
    if every_read_comes(atime) {
        return FopenFlags::empty();
    }
    // The listing stays cached until a name in the directory changes.
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR
}

#[cfg(test)]
mod tests {
    use rustix::fs::OFlags;

    use super::super::convert::open_flags;
    use super::*;

    #[test]
    fn only_writers_and_those_who_truncate_have_no_use_for_pages() {
        let only = |flags: OFlags| only_writes(open_flags(flags.bits().cast_signed()));
        for flags in [OFlags::WRONLY, OFlags::WRONLY | OFlags::APPEND, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC] {
            assert!(only(flags), "{flags:?}");
        }
        for flags in [OFlags::RDONLY, OFlags::RDONLY | OFlags::TRUNC, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL] {
            assert!(!only(flags), "{flags:?}");
        }
    }
}
