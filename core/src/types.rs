//! Plain data that every module speaks: identifiers, times, attributes, slice records, geometry.
//!
//! Owns: the shapes. Leaves to others: their bytes on disk (`format`), their meaning (`meta`, `file`).

use bytes::Bytes;

/// An inode number. 1 is the root; 0 is never an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// A slice's identity, unique on its volume for ever. 0 stands for "no blocks" (inline slices).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId(pub u64);

/// A pack's identity, unique on its volume for ever: the mount that puts it, and a number of that mount's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u64);

impl PackId {
    /// Pack `number` of a mount.
    pub fn new(mount: u64, number: u32) -> Self {
        debug_assert!(mount < 1 << 32);
        Self(mount << 32 | u64::from(number))
    }

    /// The mount.
    pub fn mount(self) -> u64 {
        self.0 >> 32
    }
}

/// A mount's identity, unique on its volume for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The identity of a volume (a random UUID, made by `format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

/// A point in wall-clock time since 1970-01-01 UTC; `secs` may be negative, `nanos` is in 0..1_000_000_000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, floored.
    pub secs: i64,
    /// Nanoseconds above `secs`.
    pub nanos: u32,
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Unix-domain socket.
    Socket,
}

/// Flags of an inode (chattr(1)): what is stored of them, and means something here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct InodeFlags(u8);

impl InodeFlags {
    /// Neither the inode nor its name changes.
    pub const IMMUTABLE: Self = Self(1);
    /// A file takes appending writes alone, a directory new names alone.
    pub const APPEND: Self = Self(2);
    /// Backups leave it out.
    pub const NODUMP: Self = Self(4);
    /// Reading leaves no trace.
    pub const NOATIME: Self = Self(8);
    /// What new inodes get from their directory (ext4).
    pub const INHERITED: Self = Self(Self::NODUMP.0 | Self::NOATIME.0);

    /// The flags of these bits, unless there are others among them.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits < 16 { Some(Self(bits)) } else { None }
    }

    /// One bit for each flag.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether one of `flags` is set.
    pub const fn any(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// The flags that are in both.
    pub const fn both(self, flags: Self) -> Self {
        Self(self.0 & flags.0)
    }

    /// The flags that are in one of the two.
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// When reading changes the access time (mount(8)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtimeMode {
    /// When it is not later than the last change, or a day old.
    #[default]
    Relatime,
    /// Never.
    Noatime,
    /// Always.
    Strictatime,
}

/// The attributes of an inode (inode(7)).
///
/// As stored, a directory's `nlink`, `mtime` and `ctime` leave out what its `dirstat` stripes carry;
/// `meta::attr::load` returns them merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// File type.
    pub kind: FileType,
    /// Permission bits with suid, sgid and sticky: `mode & 0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Number of names; 0 once unlinked. As stored, 2 for every linked directory (subdirectories are in `dirstat`).
    pub nlink: u32,
    /// Length of a regular file, of a symlink's target; 4096 for a directory.
    pub length: u64,
    /// Bytes of the file that hold data or are reserved, each counted once however many slices lie over each other:
    /// what st_blocks and the volume's usage count.
    pub stored: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of contents or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Number of the last commit member applied. (regular files)
    pub commit: u64,
    /// `seq` of the next slice record or cut of this inode. (regular files)
    pub next_seq: u64,
    /// No slice record reaches past this offset, also none that a cut hides or that is reserved past the end.
    /// (>= length; regular files, else the length)
    pub reach: u64,
    /// `stored` counts each byte once. False for files of volumes made before it did, until they are cut to nothing:
    /// there bytes of slices that lie over each other may count more than once.
    pub exact: bool,
    /// It never had an extended attribute. False also for inodes of volumes made before this was said.
    pub bare: bool,
    /// The directory that holds a directory, or the one name of a file that has no `link` key; `Ino(0)` if every
    /// name of the file has one.
    pub parent: Ino,
    /// What chattr(1) has set.
    pub flags: InodeFlags,
}

/// One slice as a file refers to it: `[pos, pos + len)` of the chunk shows `[off, off + len)` of the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceRecord {
    /// Identity; `SliceId(0)` where there are no blocks: `Inline`, `Hole`, `Reserved`.
    pub slice: SliceId,
    /// Bytes stored under the identity. (off + len <= stored_len)
    pub stored_len: u32,
    /// First byte of the slice that shows.
    pub off: u32,
    /// Where it shows in the chunk.
    pub pos: u32,
    /// How much shows. (>= 1)
    pub len: u32,
    /// Where the bytes are.
    pub place: Place,
}

/// Where a slice's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In blocks of its own, and this record is the only reference.
    Blocks,
    /// Under `home(slice)`: staged, packed or shared.
    Home,
    /// In the record itself; `stored_len` bytes.
    Inline(Bytes),
    /// Nowhere: zeros that hide what is older and take no space.
    Hole,
    /// Nowhere: takes space and shows nothing, so what is older still shows; zeros where nothing is.
    Reserved,
}

/// The sizes that shape a volume; fixed at `format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a file that share one list of slices: 64 MiB outside tests. (a multiple of `block_size`, < 4 GiB)
    pub chunk_size: u64,
    /// Largest unit of storage. (a multiple of `frame_size`)
    pub block_size: u32,
    /// Bytes under one checksum: the unit of verified partial reads.
    pub frame_size: u32,
    /// Slices up to this length travel in their metadata record. (0: none; <= frame_size)
    pub inline_max: u32,
}

impl Geometry {
    /// What `format` uses unless told otherwise.
    pub const DEFAULT: Self =
        Self { chunk_size: 64 << 20, block_size: 4 << 20, frame_size: 16 << 10, inline_max: 4 << 10 };

    /// Number of blocks that `len` bytes of a slice take.
    pub fn block_count(&self, len: u32) -> u32 {
        len.div_ceil(self.block_size)
    }
}

/// One block of one slice: the identity that its key and its checksums are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId {
    /// The slice.
    pub slice: SliceId,
    /// Position in the slice, in blocks.
    pub index: u32,
    /// Payload bytes of the block. (1..=block_size; less only in the last block)
    pub len: u32,
}

/// Longest name of a directory entry (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link (PATH_MAX - 1).
pub const SYMLINK_MAX: usize = 4095;
/// Largest file: what the kernel's signed 64-bit offsets and our u32 chunk index both carry.
pub const FILE_SIZE_MAX: u64 = 1 << 57;
/// Number of stripes of counters and of directory statistics.
pub const STRIPES: u8 = 4;
