//! Metadata values: their bytes and their ranges.
//!
//! Owns: the layout of every value, and records that exist only as values.
//! Leaves to others: keys (`format::keys`), which values exist together (`meta`).
//!
//! Invariants
//! - The first byte is the version of the format.
//! - What was added to a value since is a tail that may be absent, and is where it says the usual.
//! - What decodes is in range: no reader of a decoded value checks it again.

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::codec::{DecodeError, Decoder, Encoder, require};
use crate::types::{
    Attr, FILE_SIZE_MAX, FileType, Geometry, Ino, InodeFlags, PackId, Place, SessionId, SliceId, SliceRecord,
    Timestamp, VolumeId,
};

/// Newest version of the volume format that this code understands: 2 says which features the volume has.
pub const VOLUME_VERSION: u32 = 2;
/// Version of a volume without features.
pub const VOLUME_VERSION_PLAIN: u32 = 1;

/// Feature of a volume: POSIX ACLs.
const FEATURE_ACL: u32 = 1;
/// Feature of a volume: some of its blocks may be in a write-back log only.
const FEATURE_LOG: u32 = 2;

/// Feature of a volume: some of its blocks may be in packs.
const FEATURE_PACKS: u32 = 4;

/// The only place that a shared slice has.
const HOME_BLOCKS: u8 = 1;

/// Most frames in a block: keeps the table of checksums of a block below 512 KiB.
const FRAMES_MAX: u32 = 1 << 16;

/// What can be stored under a metadata key.
pub trait Value: Sized {
    /// The bytes to store.
    fn encode(&self) -> Vec<u8>;
    /// The value again, all of its ranges checked.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// Settings of a volume, fixed at `format` (but for its limits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Version of the volume format. (up to `VOLUME_VERSION`; `VOLUME_VERSION_PLAIN` has no features)
    pub version: u32,
    /// Identity.
    pub id: VolumeId,
    /// Name given by the user.
    pub name: String,
    /// Kind of object store: `file`, `s3`.
    pub storage: String,
    /// Where the object store is: a folder or a URL.
    pub bucket: String,
    /// Sizes.
    pub geometry: Geometry,
    /// Limit of stored bytes; 0 for none.
    pub capacity: u64,
    /// Limit of inodes; 0 for none.
    pub inodes: u64,
    /// When it was made.
    pub created: Timestamp,
    /// It has POSIX ACLs.
    pub acl: bool,
    /// Where blocks may be that are not in the object store.
    pub log: Option<LogHome>,
    /// Blocks may be in packs.
    pub packs: bool,
}

/// The write-back log of a volume: the one folder that may hold blocks which the object store lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHome {
    /// Number of the mount that used it last; the folder says the same, or a higher one. (>= 1)
    pub epoch: u64,
    /// Where the folder is, for a person: machine and path.
    pub place: String,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// What the name leads to.
    pub ino: Ino,
    /// Its type.
    pub kind: FileType,
}

/// One stripe of what a directory knows of its entries. Counts are differences and may be negative;
/// the sum over the stripes is not. Times are the latest of the stripe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirStat {
    /// Entries added less entries removed.
    pub entries: i64,
    /// Subdirectories added less subdirectories removed.
    pub subdirs: i64,
    /// Last change of entries.
    pub mtime: Timestamp,
    /// Last change of entries or attributes.
    pub ctime: Timestamp,
}

/// A mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// When it began.
    pub started: Timestamp,
}

/// A run of slice ids given to a session; its start is in the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Past the last id.
    pub end: u64,
    /// Whose it is.
    pub session: SessionId,
}

/// A truncation or a punched hole: bytes in `offset..end` in slices of a lower seq are holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// In the file.
    pub offset: u64,
    /// `u64::MAX`: a truncation. Else, as `offset`, at the border of a chunk.
    pub end: u64,
}

/// How many slice records refer to a shared slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Slice records that refer to it. (>= 1)
    pub references: u64,
}

/// Where the object of a block is that travels in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The pack.
    pub pack: PackId,
    /// First byte in the pack.
    pub at: u32,
    /// Length of the object. (>= 1)
    pub len: u32,
}

/// An object of the store that holds the objects of several blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pack {
    /// Its length; 0 until it is in the store.
    pub len: u32,
    /// Bytes of the objects in it that are in use.
    pub live: u32,
    /// It is being deleted: nothing is put into it any more. (live = 0)
    pub condemned: bool,
}

impl Pack {
    /// Most of it is dead: what is in use is to go into another one.
    pub fn is_thin(&self) -> bool {
        0 < self.live && u64::from(self.live) * 2 < u64::from(self.len)
    }
}

/// A slice whose blocks wait for deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelSlice {
    /// Bytes stored, which says how many blocks there are. (>= 1)
    pub stored_len: u32,
}

/// Checks the relations that all arithmetic on sizes relies on; the text names the one that does not hold.
pub fn check_geometry(geometry: &Geometry) -> Result<(), &'static str> {
    let Geometry { chunk_size, block_size, frame_size, inline_max } = *geometry;
    let rules = [
        (frame_size >= 1, "the frame size is 0"),
        (block_size >= 1, "the block size is 0"),
        (
            frame_size >= 1 && block_size.is_multiple_of(frame_size),
            "the block size is not a multiple of the frame size",
        ),
        (block_size / frame_size.max(1) <= FRAMES_MAX, "the frame size is too small for the block size"),
        (chunk_size >= 1, "the chunk size is 0"),
        (
            block_size >= 1 && chunk_size.is_multiple_of(u64::from(block_size)),
            "the chunk size is not a multiple of the block size",
        ),
        (chunk_size < 1 << 32, "the chunk size is 4 GiB or more"),
        (inline_max <= frame_size, "the inline limit is above the frame size"),
    ];
    rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, text)| Err(*text))
}

impl Value for Volume {
    fn encode(&self) -> Vec<u8> {
        let Self { version, id, name, storage, bucket, geometry, capacity, inodes, created, acl, log, packs } = self;
        debug_assert!(VOLUME_VERSION_PLAIN < *version || !(*acl || *packs || log.is_some()));
        let head = Encoder::value(128)
            .u32(*version)
            .raw(&id.0)
            .text(name)
            .text(storage)
            .text(bucket)
            .u64(geometry.chunk_size)
            .u32(geometry.block_size)
            .u32(geometry.frame_size)
            .u32(geometry.inline_max)
            .u64(*capacity)
            .u64(*inodes)
            .time(*created);
        if *version == VOLUME_VERSION_PLAIN {
            return head.finish();
        }
        let features = [(*acl, FEATURE_ACL), (log.is_some(), FEATURE_LOG), (*packs, FEATURE_PACKS)];
        let head = head.u32(features.iter().filter(|(has, _)| *has).map(|(_, feature)| feature).sum());
        match log {
            None => head.finish(),
            Some(LogHome { epoch, place }) => head.u64(*epoch).text(place).finish(),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let version = d.u32()?;
        if version == 0 || VOLUME_VERSION < version {
            // Whatever follows may have another shape.
            return Err(DecodeError::Version(version));
        }
        let mut volume = Self {
            version,
            id: VolumeId(d.bytes16()?),
            name: d.text()?,
            storage: d.text()?,
            bucket: d.text()?,
            geometry: Geometry {
                chunk_size: d.u64()?,
                block_size: d.u32()?,
                frame_size: d.u32()?,
                inline_max: d.u32()?,
            },
            capacity: d.u64()?,
            inodes: d.u64()?,
            created: d.time()?,
            acl: false,
            log: None,
            packs: false,
        };
        let features = if version == VOLUME_VERSION_PLAIN { 0 } else { d.u32()? };
        require(features & !(FEATURE_ACL | FEATURE_LOG | FEATURE_PACKS) == 0, "feature of a volume")?;
        volume.acl = features & FEATURE_ACL != 0;
        volume.packs = features & FEATURE_PACKS != 0;
        if features & FEATURE_LOG != 0 {
            let home = LogHome { epoch: d.u64()?, place: d.text()? };
            require(home.epoch >= 1, "epoch of a write-back log")?;
            volume.log = Some(home);
        }
        d.finish()?;
        check_geometry(&volume.geometry).map_err(DecodeError::Invalid)?;
        Ok(volume)
    }
}

/// Tails of `Attr`, each there only if it says something, in this order: what holds `reach`, what holds `flags`, what
/// says that `stored` is exact (as it is anyway where there never was a slice), what says that it is bare.
const TAIL_REACH: u8 = 1;
const TAIL_FLAGS: u8 = 2;
const TAIL_EXACT: u8 = 3;
const TAIL_BARE: u8 = 4;

fn kind_code(kind: FileType) -> u8 {
    match kind {
        FileType::Regular => 1,
        FileType::Directory => 2,
        FileType::Symlink => 3,
        FileType::Fifo => 4,
        FileType::CharDevice => 5,
        FileType::BlockDevice => 6,
        FileType::Socket => 7,
    }
}

fn kind_of(d: &mut Decoder<'_>) -> Result<FileType, DecodeError> {
    Ok(match d.u8()? {
        1 => FileType::Regular,
        2 => FileType::Directory,
        3 => FileType::Symlink,
        4 => FileType::Fifo,
        5 => FileType::CharDevice,
        6 => FileType::BlockDevice,
        7 => FileType::Socket,
        _ => return Err(DecodeError::Invalid("file type")),
    })
}

impl Value for Attr {
    fn encode(&self) -> Vec<u8> {
        let Self { kind, mode, uid, gid, rdev, nlink, length, stored, .. } = *self;
        debug_assert!(mode <= 0o7777 && length <= FILE_SIZE_MAX);
        let value = Encoder::value(120)
            .u8(kind_code(kind))
            .u16(mode)
            .u32(uid)
            .u32(gid)
            .u32(rdev)
            .u32(nlink)
            .u64(length)
            .u64(stored)
            .time(self.atime)
            .time(self.mtime)
            .time(self.ctime)
            .time(self.btime)
            .u64(self.commit)
            .u64(self.next_seq)
            .u64(self.parent.0);
        let value = if self.reach == length { value } else { value.u8(TAIL_REACH).u64(self.reach) };
        let plain = self.flags == InodeFlags::default();
        let value = if plain { value } else { value.u8(TAIL_FLAGS).u8(self.flags.bits()) };
        let value = if self.exact && self.next_seq > 0 { value.u8(TAIL_EXACT) } else { value };
        let value = if self.bare { value.u8(TAIL_BARE) } else { value };
        value.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let mut attr = Self {
            kind: kind_of(&mut d)?,
            mode: d.u16()?,
            uid: d.u32()?,
            gid: d.u32()?,
            rdev: d.u32()?,
            nlink: d.u32()?,
            length: d.u64()?,
            stored: d.u64()?,
            atime: d.time()?,
            mtime: d.time()?,
            ctime: d.time()?,
            btime: d.time()?,
            commit: d.u64()?,
            next_seq: d.u64()?,
            parent: Ino(d.u64()?),
            flags: InodeFlags::default(),
            reach: 0,
            exact: false,
            bare: false,
        };
        (attr.reach, attr.exact) = (attr.length, attr.next_seq == 0);
        let mut last = 0;
        while !d.is_empty() {
            let tail = d.u8()?;
            if tail <= last {
                return Err(DecodeError::Trailing);
            }
            last = tail;
            match tail {
                TAIL_REACH => {
                    attr.reach = d.u64()?;
                    require(attr.length < attr.reach && attr.reach <= FILE_SIZE_MAX, "reach of a file")?;
                }
                TAIL_FLAGS => {
                    attr.flags = InodeFlags::from_bits(d.u8()?).ok_or(DecodeError::Invalid("flags of an inode"))?;
                    require(attr.flags != InodeFlags::default(), "flags of an inode")?;
                }
                TAIL_EXACT => {
                    // Where nothing was ever written that needs no saying: one value, one encoding.
                    require(attr.next_seq > 0, "exactness of a file")?;
                    attr.exact = true;
                }
                TAIL_BARE => attr.bare = true,
                _ => return Err(DecodeError::Trailing),
            }
        }
        d.finish()?;
        require(attr.mode <= 0o7777, "mode")?;
        require(attr.length <= FILE_SIZE_MAX, "length of a file")?;
        Ok(attr)
    }
}

impl Value for Dentry {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(10).u64(self.ino.0).u8(kind_code(self.kind)).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let dentry = Self { ino: Ino(d.u64()?), kind: kind_of(&mut d)? };
        d.finish()?;
        require(dentry.ino.0 != 0, "inode 0")?;
        Ok(dentry)
    }
}

impl Value for DirStat {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(41).i64(self.entries).i64(self.subdirs).time(self.mtime).time(self.ctime).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let stat = Self { entries: d.i64()?, subdirs: d.i64()?, mtime: d.time()?, ctime: d.time()? };
        d.finish()?;
        Ok(stat)
    }
}

impl Value for SliceRecord {
    fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.check(), Ok(()));
        let Self { slice, stored_len, off, pos, len, ref place } = *self;
        let (code, inline): (u8, &[u8]) = match place {
            Place::Blocks => (1, &[]),
            Place::Home => (2, &[]),
            Place::Inline(bytes) => (3, bytes),
            Place::Hole => (4, &[]),
            Place::Reserved => (5, &[]),
        };
        Encoder::value(26 + inline.len())
            .u64(slice.0)
            .u32(stored_len)
            .u32(off)
            .u32(pos)
            .u32(len)
            .u8(code)
            .raw(inline)
            .finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (head, inline) = Self::decode_head(bytes)?;
        let place =
            if let Place::Inline(_) = head.place { Place::Inline(Bytes::copy_from_slice(inline)) } else { head.place };
        Ok(Self { place, ..head })
    }
}

impl SliceRecord {
    /// The record without its bytes, if it is inline, and these. Not to be encoded without them.
    pub fn decode_head(bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let (slice, stored_len, off, pos, len) = (SliceId(d.u64()?), d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        let (place, inline) = match d.u8()? {
            1 => (Place::Blocks, &[][..]),
            2 => (Place::Home, &[][..]),
            3 => (Place::Inline(Bytes::new()), d.rest()),
            4 => (Place::Hole, &[][..]),
            5 => (Place::Reserved, &[][..]),
            _ => return Err(DecodeError::Invalid("place of a slice")),
        };
        d.finish()?;
        let head = Self { slice, stored_len, off, pos, len, place };
        head.check_with(inline.len()).map_err(DecodeError::Invalid)?;
        Ok((head, inline))
    }

    /// Checks the ranges of the fields; the text names the one that does not hold.
    pub fn check(&self) -> Result<(), &'static str> {
        self.check_with(if let Place::Inline(bytes) = &self.place { bytes.len() } else { 0 })
    }

    /// The same, of a record with so many bytes inline.
    fn check_with(&self, inline: usize) -> Result<(), &'static str> {
        let Self { slice, stored_len, off, pos, len, ref place } = *self;
        let place_holds = match place {
            Place::Blocks | Place::Home => slice.0 != 0,
            Place::Inline(_) => slice.0 == 0 && inline == stored_len as usize,
            Place::Hole | Place::Reserved => slice.0 == 0,
        };
        let rules = [
            (len >= 1, "a slice record that shows nothing"),
            (u64::from(off) + u64::from(len) <= u64::from(stored_len), "a slice record that shows more than is stored"),
            (pos.checked_add(len).is_some(), "a slice record past the end of its chunk"),
            (place_holds, "a slice record at odds with its place"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, text)| Err(*text))
    }
}

impl Value for Session {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(13).time(self.started).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let session = Self { started: d.time()? };
        d.finish()?;
        Ok(session)
    }
}

impl Value for Lease {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(17).u64(self.end).u64(self.session.0).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let lease = Self { end: d.u64()?, session: SessionId(d.u64()?) };
        d.finish()?;
        Ok(lease)
    }
}

impl Value for Cut {
    fn encode(&self) -> Vec<u8> {
        let value = Encoder::value(17).u64(self.offset);
        if self.end == u64::MAX { value.finish() } else { value.u64(self.end).finish() }
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let offset = d.u64()?;
        let end = if d.is_empty() { u64::MAX } else { d.u64()? };
        let cut = Self { offset, end };
        d.finish()?;
        require(end < u64::MAX || bytes.len() == 9, "end of a cut")?;
        require(cut.offset <= FILE_SIZE_MAX && cut.offset < cut.end, "range of a cut")?;
        Ok(cut)
    }
}

impl Value for Home {
    fn encode(&self) -> Vec<u8> {
        debug_assert!(self.references >= 1);
        Encoder::value(10).u64(self.references).u8(HOME_BLOCKS).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let references = d.u64()?;
        require(d.u8()? == HOME_BLOCKS, "location of a slice")?;
        d.finish()?;
        require(references >= 1, "references of a slice")?;
        Ok(Self { references })
    }
}

impl Value for Packed {
    fn encode(&self) -> Vec<u8> {
        debug_assert!(self.len >= 1);
        Encoder::value(17).u64(self.pack.0).u32(self.at).u32(self.len).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let (pack, at, len) = (PackId(d.u64()?), d.u32()?, d.u32()?);
        d.finish()?;
        require(len >= 1 && at.checked_add(len).is_some(), "range of an object in a pack")?;
        Ok(Self { pack, at, len })
    }
}

impl Value for Pack {
    fn encode(&self) -> Vec<u8> {
        debug_assert!(self.live <= self.len);
        Encoder::value(10).u32(self.len).u32(self.live).u8(self.condemned.into()).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let (len, live, condemned) = (d.u32()?, d.u32()?, d.u8()?);
        d.finish()?;
        require(live <= len, "bytes of a pack that are in use")?;
        require(condemned == 0 || condemned == 1 && live == 0, "end of a pack")?;
        Ok(Self { len, live, condemned: condemned == 1 })
    }
}

impl Value for DelSlice {
    fn encode(&self) -> Vec<u8> {
        debug_assert!(self.stored_len >= 1);
        Encoder::value(5).u32(self.stored_len).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let slice = Self { stored_len: d.u32()? };
        d.finish()?;
        require(slice.stored_len >= 1, "length of a slice")?;
        Ok(slice)
    }
}

/// A counter, or one stripe of it.
impl Value for i64 {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(9).i64(*self).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let value = d.i64()?;
        d.finish()?;
        Ok(value)
    }
}

/// The next identifier to give out.
impl Value for u64 {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(9).u64(*self).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::value(bytes)?;
        let value = d.u64()?;
        d.finish()?;
        Ok(value)
    }
}

/// Keys that say all by being there.
impl Value for () {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(1).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Decoder::value(bytes)?.finish()
    }
}

/// Target of a symbolic link; value of an extended attribute.
impl Value for Bytes {
    fn encode(&self) -> Vec<u8> {
        Encoder::value(1 + self.len()).raw(self).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self::copy_from_slice(Decoder::value(bytes)?.rest()))
    }
}

#[cfg(test)]
#[path = "values_tests.rs"]
mod tests;
