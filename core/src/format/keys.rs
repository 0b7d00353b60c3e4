//! The key table: every metadata key of a volume.
//!
//! Owns: tags, layouts, order, ranges, and the way back (`decode`).
//! Leaves to others: values (`format::values`), which keys exist together (`meta`).
//!
//! | tag | key                        | value                                   |
//! |-----|----------------------------|-----------------------------------------|
//! | `V` |                            | `Volume`                                |
//! | `C` | counter, stripe            | `i64`, summed over the stripes          |
//! | `N` | which                      | `u64`: the next inode, slice, session   |
//! | `A` | ino                        | `Attr`                                  |
//! | `D` | dir, hash, name            | `Dentry`                                |
//! | `E` | dir, stripe                | `DirStat`, summed over the stripes      |
//! | `L` | ino, dir, name             | `()`: one name of a hard-linked file    |
//! | `Y` | ino                        | `Bytes`: target of a symbolic link      |
//! | `X` | ino, name                  | `Bytes`: an extended attribute          |
//! | `S` | ino, chunk, seq            | `SliceRecord`                           |
//! | `T` | ino, seq                   | `Cut`                                   |
//! | `H` | slice                      | `Home`                                  |
//! | `J` | slice, index               | `Packed`: where the block is in a pack  |
//! | `K` | pack                       | `Pack`                                  |
//! | `P` | session                    | `Session`                               |
//! | `Q` | start                      | `Lease`                                 |
//! | `a` | ino                        | `()`: queue of unlinked inodes in use   |
//! | `b` | ino                        | `()`: queue of deleted files            |
//! | `c` | ino                        | `()`: queue of files with cuts          |
//! | `d` | slice                      | `DelSlice`: queue of dead slices        |
//!
//! Invariants
//! - Keys of one table sort by their fields, in the order of the columns.
//! - Numbers are fixed-width and big-endian, so no key of a table is a prefix of another one but by a name's bytes.
//! - Ranges are half-open: `start <= key < end`.

use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::codec::{DecodeError, Decoder, Encoder, require};
use crate::types::{Ino, NAME_MAX, PackId, STRIPES, SessionId, SliceId};

const VOLUME: u8 = b'V';
const COUNTER: u8 = b'C';
const NEXT: u8 = b'N';
const ATTR: u8 = b'A';
const DENTRY: u8 = b'D';
const DIRSTAT: u8 = b'E';
const LINK: u8 = b'L';
const SYMLINK: u8 = b'Y';
const XATTR: u8 = b'X';
const SLICE: u8 = b'S';
const CUT: u8 = b'T';
const HOME: u8 = b'H';
const PACKED: u8 = b'J';
const PACK: u8 = b'K';
const SESSION: u8 = b'P';
const LEASE: u8 = b'Q';
const ORPHAN: u8 = b'a';
const DELFILE: u8 = b'b';
const CUTFILE: u8 = b'c';
const DELSLICE: u8 = b'd';

const NEXT_INO: u8 = 1;
const NEXT_SLICE: u8 = 2;
const NEXT_SESSION: u8 = 3;

/// A striped counter of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Bytes in slice records.
    Bytes,
    /// Inodes.
    Inodes,
}

impl Counter {
    fn code(self) -> u8 {
        match self {
            Self::Bytes => 1,
            Self::Inodes => 2,
        }
    }
}

/// A key, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// The volume's settings.
    Volume,
    /// One stripe of a counter.
    Counter(Counter, u8),
    /// The next inode number to lease.
    NextIno,
    /// The next slice id to lease.
    NextSlice,
    /// The next session id.
    NextSession,
    /// Attributes of an inode.
    Attr(Ino),
    /// A name in a directory; its hash follows from the two.
    Dentry(Ino, &'a [u8]),
    /// One stripe of a directory's statistics.
    DirStat(Ino, u8),
    /// A name of a hard-linked file: file, directory, name.
    Link(Ino, Ino, &'a [u8]),
    /// Target of a symbolic link.
    Symlink(Ino),
    /// An extended attribute.
    Xattr(Ino, &'a [u8]),
    /// A slice of a file: file, chunk, seq.
    Slice(Ino, u32, u64),
    /// A truncation whose records are not swept yet: file, seq.
    Cut(Ino, u64),
    /// The references to a shared slice.
    Home(SliceId),
    /// Where a block is in a pack: slice, index.
    Packed(SliceId, u32),
    /// A pack.
    Pack(PackId),
    /// A mount.
    Session(SessionId),
    /// A lease of slice ids, by its first id.
    Lease(u64),
    /// An unlinked inode in use.
    Orphan(Ino),
    /// A deleted file whose records are not swept yet.
    DelFile(Ino),
    /// A file with cuts.
    CutFile(Ino),
    /// A slice whose blocks wait for deletion.
    DelSlice(SliceId),
}

impl Key<'_> {
    /// The key's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Volume => volume(),
            Self::Counter(which, stripe) => counter(which, stripe),
            Self::NextIno => next_ino(),
            Self::NextSlice => next_slice(),
            Self::NextSession => next_session(),
            Self::Attr(ino) => attr(ino),
            Self::Dentry(dir, name) => dentry(dir, name),
            Self::DirStat(dir, stripe) => dirstat(dir, stripe),
            Self::Link(ino, dir, name) => link(ino, dir, name),
            Self::Symlink(ino) => symlink(ino),
            Self::Xattr(ino, name) => xattr(ino, name),
            Self::Slice(ino, chunk, seq) => slice(ino, chunk, seq),
            Self::Cut(ino, seq) => cut(ino, seq),
            Self::Home(id) => home(id),
            Self::Packed(id, index) => packed(id, index),
            Self::Pack(pack) => self::pack(pack),
            Self::Session(id) => session(id),
            Self::Lease(start) => lease(start),
            Self::Orphan(ino) => orphan(ino),
            Self::DelFile(ino) => delfile(ino),
            Self::CutFile(ino) => cutfile(ino),
            Self::DelSlice(id) => delslice(id),
        }
    }
}

/// Takes a key apart; an error if no function of this table makes it.
pub fn decode(key: &[u8]) -> Result<Key<'_>, DecodeError> {
    let mut d = Decoder::new(key);
    let key = match d.u8()? {
        VOLUME => Key::Volume,
        COUNTER => {
            let which = match d.u8()? {
                1 => Counter::Bytes,
                2 => Counter::Inodes,
                _ => return Err(DecodeError::Invalid("counter")),
            };
            Key::Counter(which, stripe_of(&mut d)?)
        }
        NEXT => match d.u8()? {
            NEXT_INO => Key::NextIno,
            NEXT_SLICE => Key::NextSlice,
            NEXT_SESSION => Key::NextSession,
            _ => return Err(DecodeError::Invalid("allocator")),
        },
        ATTR => Key::Attr(ino_of(&mut d)?),
        DENTRY => {
            let dir = ino_of(&mut d)?;
            let hash = d.u64()?;
            let name = name_of(&mut d)?;
            require(hash == name_hash(dir, name), "hash of a name")?;
            Key::Dentry(dir, name)
        }
        DIRSTAT => Key::DirStat(ino_of(&mut d)?, stripe_of(&mut d)?),
        LINK => Key::Link(ino_of(&mut d)?, ino_of(&mut d)?, name_of(&mut d)?),
        SYMLINK => Key::Symlink(ino_of(&mut d)?),
        XATTR => Key::Xattr(ino_of(&mut d)?, name_of(&mut d)?),
        SLICE => Key::Slice(ino_of(&mut d)?, d.u32()?, d.u64()?),
        CUT => Key::Cut(ino_of(&mut d)?, d.u64()?),
        HOME => Key::Home(slice_of(&mut d)?),
        PACKED => Key::Packed(slice_of(&mut d)?, d.u32()?),
        PACK => Key::Pack(PackId(d.u64()?)),
        SESSION => Key::Session(SessionId(d.u64()?)),
        LEASE => Key::Lease(d.u64()?),
        ORPHAN => Key::Orphan(ino_of(&mut d)?),
        DELFILE => Key::DelFile(ino_of(&mut d)?),
        CUTFILE => Key::CutFile(ino_of(&mut d)?),
        DELSLICE => Key::DelSlice(slice_of(&mut d)?),
        _ => return Err(DecodeError::Invalid("tag of a key")),
    };
    d.finish()?;
    Ok(key)
}

fn ino_of(d: &mut Decoder<'_>) -> Result<Ino, DecodeError> {
    let ino = d.u64()?;
    require(ino != 0, "inode 0")?;
    Ok(Ino(ino))
}

fn slice_of(d: &mut Decoder<'_>) -> Result<SliceId, DecodeError> {
    let id = d.u64()?;
    require(id != 0, "slice 0")?;
    Ok(SliceId(id))
}

fn stripe_of(d: &mut Decoder<'_>) -> Result<u8, DecodeError> {
    let stripe = d.u8()?;
    require(stripe < STRIPES, "stripe")?;
    Ok(stripe)
}

fn name_of<'a>(d: &mut Decoder<'a>) -> Result<&'a [u8], DecodeError> {
    let name = d.rest();
    require(!name.is_empty() && name.len() <= NAME_MAX, "length of a name")?;
    Ok(name)
}

fn tag(tag: u8) -> Encoder {
    // Longest fixed part: 25 bytes; names make the buffer grow once.
    Encoder::new(32).u8(tag)
}

/// All keys with this prefix, which must not be all 0xff.
fn range(prefix: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.clone();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    debug_assert!(!end.is_empty());
    (prefix, end)
}

/// Every key of a volume.
pub fn everything() -> (Vec<u8>, Vec<u8>) {
    (Vec::new(), alloc::vec![u8::MAX])
}

/// The volume's settings.
pub fn volume() -> Vec<u8> {
    tag(VOLUME).finish()
}

/// One stripe of a counter. (stripe < `STRIPES`)
pub fn counter(which: Counter, stripe: u8) -> Vec<u8> {
    debug_assert!(stripe < STRIPES);
    tag(COUNTER).u8(which.code()).u8(stripe).finish()
}

/// The next inode number to lease.
pub fn next_ino() -> Vec<u8> {
    tag(NEXT).u8(NEXT_INO).finish()
}

/// The next slice id to lease.
pub fn next_slice() -> Vec<u8> {
    tag(NEXT).u8(NEXT_SLICE).finish()
}

/// The next session id.
pub fn next_session() -> Vec<u8> {
    tag(NEXT).u8(NEXT_SESSION).finish()
}

/// Attributes of an inode.
pub fn attr(ino: Ino) -> Vec<u8> {
    tag(ATTR).u64(ino.0).finish()
}

/// Attributes of all inodes.
pub fn attr_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(ATTR).finish())
}

/// Whether the key's values are read one at a time, and again and again: attributes, what is known of directories, names,
/// links' targets, extended attributes.
pub fn is_cached(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(ATTR | DIRSTAT | DENTRY | SYMLINK | XATTR)))
}

/// The inode whose attributes a key leads to, if it is such a key.
pub fn attr_ino(key: &[u8]) -> Option<Ino> {
    let (tag, ino) = key.split_first()?;
    Some(Ino(u64::from_be_bytes(ino.try_into().ok().filter(|_| *tag == ATTR)?)))
}

/// Hash of a name in a directory: what orders its entries. (1..1 << 55)
///
/// 55 bits leave eight for an ordinal among equal hashes in a readdir cookie, which must stay positive as `off_t`.
/// The seed keeps one set of colliding names from colliding in every directory.
pub fn name_hash(dir: Ino, name: &[u8]) -> u64 {
    (xxh3_64_with_seed(name, dir.0) >> 9).max(1)
}

/// A name in a directory.
pub fn dentry(dir: Ino, name: &[u8]) -> Vec<u8> {
    debug_assert!(!name.is_empty() && name.len() <= NAME_MAX);
    Encoder::new(17 + name.len()).u8(DENTRY).u64(dir.0).u64(name_hash(dir, name)).raw(name).finish()
}

/// All names of a directory.
pub fn dentry_range(dir: Ino) -> (Vec<u8>, Vec<u8>) {
    range(tag(DENTRY).u64(dir.0).finish())
}

/// Below every name of the directory whose hash is `hash` or more, above all others.
pub fn dentry_from(dir: Ino, hash: u64) -> Vec<u8> {
    tag(DENTRY).u64(dir.0).u64(hash).finish()
}

/// A place among the names of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DentryPlace<'a> {
    /// The directory.
    pub dir: Ino,
    /// The hash of the name; 0 is below all.
    pub hash: u64,
    /// The name, or nothing: below all names of this hash.
    pub name: &'a [u8],
}

impl<'a> DentryPlace<'a> {
    /// Where the key of a name is, be it that the name has another hash.
    pub fn of(key: &'a [u8]) -> Option<Self> {
        Self::from(key).filter(|place| !place.name.is_empty())
    }

    /// Where a range of names begins that ends with its directory.
    pub fn of_range(start: &'a [u8], end: &[u8]) -> Option<Self> {
        Self::from(start).filter(|from| end == dentry_range(from.dir).1)
    }

    fn from(key: &'a [u8]) -> Option<Self> {
        let (tag, key) = key.split_first()?;
        let (dir, key) = key.split_first_chunk()?;
        let (hash, name) = if key.is_empty() { (&[0; 8], key) } else { key.split_first_chunk()? };
        let place = Self { dir: Ino(u64::from_be_bytes(*dir)), hash: u64::from_be_bytes(*hash), name };
        Some(place).filter(|place| *tag == DENTRY && place.name.len() <= NAME_MAX)
    }

    /// Whether no name of the directory is below.
    pub fn is_first(&self) -> bool {
        self.hash == 0 && self.name.is_empty()
    }
}

/// Makes a key of a directory's name the one of another name of it.
pub fn set_dentry(key: &mut Vec<u8>, hash: u64, name: &[u8]) {
    key.truncate(9);
    key.extend_from_slice(&hash.to_be_bytes());
    key.extend_from_slice(name);
}

/// Below every name of the directory whose hash is more than `hash`, above all others. (hash < `u64::MAX`)
pub fn dentry_after(dir: Ino, hash: u64) -> Vec<u8> {
    dentry_from(dir, hash + 1)
}

/// All names of all directories.
pub fn all_dentries() -> (Vec<u8>, Vec<u8>) {
    range(tag(DENTRY).finish())
}

/// One stripe of a directory's statistics. (stripe < `STRIPES`)
pub fn dirstat(dir: Ino, stripe: u8) -> Vec<u8> {
    debug_assert!(stripe < STRIPES);
    tag(DIRSTAT).u64(dir.0).u8(stripe).finish()
}

/// All stripes of a directory's statistics.
pub fn dirstat_range(dir: Ino) -> (Vec<u8>, Vec<u8>) {
    range(tag(DIRSTAT).u64(dir.0).finish())
}

/// A name of a hard-linked file.
pub fn link(ino: Ino, dir: Ino, name: &[u8]) -> Vec<u8> {
    debug_assert!(!name.is_empty() && name.len() <= NAME_MAX);
    Encoder::new(17 + name.len()).u8(LINK).u64(ino.0).u64(dir.0).raw(name).finish()
}

/// All names of a hard-linked file.
pub fn link_range(ino: Ino) -> (Vec<u8>, Vec<u8>) {
    range(tag(LINK).u64(ino.0).finish())
}

/// Target of a symbolic link.
pub fn symlink(ino: Ino) -> Vec<u8> {
    tag(SYMLINK).u64(ino.0).finish()
}

/// An extended attribute.
pub fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    debug_assert!(!name.is_empty() && name.len() <= NAME_MAX);
    Encoder::new(9 + name.len()).u8(XATTR).u64(ino.0).raw(name).finish()
}

/// All extended attributes of an inode.
pub fn xattr_range(ino: Ino) -> (Vec<u8>, Vec<u8>) {
    range(tag(XATTR).u64(ino.0).finish())
}

/// A slice of a file.
pub fn slice(ino: Ino, chunk: u32, seq: u64) -> Vec<u8> {
    tag(SLICE).u64(ino.0).u32(chunk).u64(seq).finish()
}

/// All slices of a file, or of one of its chunks.
pub fn slice_range(ino: Ino, chunk: Option<u32>) -> (Vec<u8>, Vec<u8>) {
    let prefix = tag(SLICE).u64(ino.0);
    range(match chunk {
        Some(chunk) => prefix.u32(chunk).finish(),
        None => prefix.finish(),
    })
}

/// All slices of all files.
pub fn all_slices() -> (Vec<u8>, Vec<u8>) {
    range(tag(SLICE).finish())
}

/// A truncation whose records are not swept yet.
pub fn cut(ino: Ino, seq: u64) -> Vec<u8> {
    tag(CUT).u64(ino.0).u64(seq).finish()
}

/// All cuts of a file.
pub fn cut_range(ino: Ino) -> (Vec<u8>, Vec<u8>) {
    range(tag(CUT).u64(ino.0).finish())
}

/// The references to a shared slice.
pub fn home(id: SliceId) -> Vec<u8> {
    tag(HOME).u64(id.0).finish()
}

/// Where a block is in a pack.
pub fn packed(id: SliceId, index: u32) -> Vec<u8> {
    tag(PACKED).u64(id.0).u32(index).finish()
}

/// All blocks in packs.
pub fn packed_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(PACKED).finish())
}

/// A pack.
pub fn pack(pack: PackId) -> Vec<u8> {
    tag(PACK).u64(pack.0).finish()
}

/// All packs.
pub fn pack_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(PACK).finish())
}

/// A mount.
pub fn session(id: SessionId) -> Vec<u8> {
    tag(SESSION).u64(id.0).finish()
}

/// All mounts.
pub fn session_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(SESSION).finish())
}

/// A lease of slice ids, by its first id.
pub fn lease(start: u64) -> Vec<u8> {
    tag(LEASE).u64(start).finish()
}

/// All leases of slice ids.
pub fn lease_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(LEASE).finish())
}

/// An unlinked inode in use.
pub fn orphan(ino: Ino) -> Vec<u8> {
    tag(ORPHAN).u64(ino.0).finish()
}

/// All unlinked inodes in use.
pub fn orphan_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(ORPHAN).finish())
}

/// A deleted file whose records are not swept yet.
pub fn delfile(ino: Ino) -> Vec<u8> {
    tag(DELFILE).u64(ino.0).finish()
}

/// All deleted files whose records are not swept yet.
pub fn delfile_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(DELFILE).finish())
}

/// A file with cuts.
pub fn cutfile(ino: Ino) -> Vec<u8> {
    tag(CUTFILE).u64(ino.0).finish()
}

/// All files with cuts.
pub fn cutfile_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(CUTFILE).finish())
}

/// A slice whose blocks wait for deletion.
pub fn delslice(id: SliceId) -> Vec<u8> {
    tag(DELSLICE).u64(id.0).finish()
}

/// All slices whose blocks wait for deletion.
pub fn delslice_range() -> (Vec<u8>, Vec<u8>) {
    range(tag(DELSLICE).finish())
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
