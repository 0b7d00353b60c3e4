//! Blocks: the objects that hold the bytes of slices, and the marker of a volume's prefix.
//!
//! Owns: object names, the layout of a block's object, checksums bound to identity.
//! Leaves to others: when blocks are put, fetched and deleted (`store`, `client`).
//!
//! An object is a header, a table of one checksum per frame, and the payload without gaps:
//!
//! ```text
//! 0   magic "KISEKIBK"
//! 8   version: u8, codec: u8 (0: as is), reserved: u16 (0)
//! 12  volume: 16 bytes, slice: u64, index: u32, len: u32, frame_size: u32
//! 48  checksum of the header before it and of the table: u64
//! 56  table: u64 for each frame
//! ..  payload: len bytes
//! ```
//!
//! Invariants
//! - A checksum holds only for one frame of one block of one volume: a swapped, stale or foreign object is an error.
//! - Any run of whole frames is verified without the rest of the payload.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::codec::{DecodeError, Decoder, Encoder};
use crate::planted::{self, Bug};
use crate::types::{BlockId, SliceId, VolumeId};

/// Slice ids are leased in runs of this many, aligned, and the blocks of one run share a folder: what an ended
/// session left behind is found by listing the folders of its leases.
pub const LEASE_SLICES: u64 = 4096;

/// Key of the object that says which volume a prefix belongs to.
pub const VOLUME_OBJECT: &str = "kiseki.volume";

const MAGIC: [u8; 8] = *b"KISEKIBK";
const VERSION: u8 = 1;
const CODEC_PLAIN: u8 = 0;
const HEADER_LEN: usize = 56;
const CHECKSUM_AT: usize = 48;

/// Why an object is not the block that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// It does not start as a block does.
    #[error("not a block")]
    NotABlock,
    /// Written by another version of the format.
    #[error("block format version {0} is not supported")]
    Version(u8),
    /// Encoded in a way that is not known.
    #[error("block codec {0} is not supported")]
    Codec(u8),
    /// Whole, but another block: of another volume, slice, index, length or frame size.
    #[error("another block is in its place")]
    Identity,
    /// Shorter or longer than the block.
    #[error("the length of the object is wrong")]
    Length,
    /// The header or the table of checksums is damaged.
    #[error("the header is damaged")]
    Head,
    /// The frame of this number is damaged.
    #[error("frame {0} is damaged")]
    Frame(u32),
    /// The part to verify is not a run of whole frames of the block: the fault of the caller or of a short read.
    #[error("not a run of whole frames")]
    Range,
}

/// Key of a block's object.
pub fn object_key(id: BlockId) -> String {
    key_of(id.slice, id.index)
}

fn key_of(slice: SliceId, index: u32) -> String {
    format!("blocks/{:08x}/{:016x}-{:05x}", slice.0 / LEASE_SLICES, slice.0, index)
}

/// What the keys of all blocks of the lease that starts at `start` begin with; ends with `/`.
pub fn lease_prefix(start: u64) -> String {
    format!("blocks/{:08x}/", start / LEASE_SLICES)
}

/// Slice and index of a block from its object's key; `None` for any other key.
pub fn parse_key(key: &str) -> Option<(SliceId, u32)> {
    let (_, name) = key.strip_prefix("blocks/")?.split_once('/')?;
    let (slice, index) = name.split_once('-')?;
    let slice = SliceId(u64::from_str_radix(slice, 16).ok()?);
    let index = u32::from_str_radix(index, 16).ok()?;
    (key_of(slice, index) == key).then_some((slice, index))
}

fn frame_count(frame_size: u32, len: u32) -> u32 {
    len.div_ceil(frame_size)
}

/// Length of header and table: where the payload starts.
pub fn head_len(frame_size: u32, len: u32) -> u32 {
    (object_len(frame_size, len) - u64::from(len)) as u32
}

/// Length of the object of a block of `len` bytes.
pub fn object_len(frame_size: u32, len: u32) -> u64 {
    HEADER_LEN as u64 + 8 * u64::from(frame_count(frame_size, len)) + u64::from(len)
}

/// Header and table for a block; the object is these bytes and then the payload. (payload: `id.len` bytes, >= 1)
pub fn encode_head(volume: VolumeId, id: BlockId, frame_size: u32, payload: &[u8]) -> Bytes {
    assert!(!payload.is_empty() && payload.len() == id.len as usize);
    let identity = Identity { volume, id };
    let sums = payload.chunks(frame_size as usize).zip(0..).map(|(frame, index)| identity.frame_sum(index, frame));
    seal_head(identity, frame_size, sums)
}

/// As `encode_head`, for a payload in segments.
pub fn encode_head_segments(volume: VolumeId, id: BlockId, frame_size: u32, payload: &[Bytes]) -> Bytes {
    if let [whole] = payload {
        return encode_head(volume, id, frame_size, whole);
    }
    assert!(id.len >= 1 && payload.iter().map(Bytes::len).sum::<usize>() == id.len as usize);
    let identity = Identity { volume, id };
    let mut sums = Vec::with_capacity(frame_count(frame_size, id.len) as usize);
    let mut state = Xxh3::with_seed(identity.frame_seed(0));
    let mut filled = 0;
    for segment in payload {
        let mut rest = &segment[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min((frame_size - filled) as usize));
            state.update(part);
            filled += part.len() as u32;
            rest = after;
            if filled == frame_size {
                sums.push(state.digest());
                state = Xxh3::with_seed(identity.frame_seed(sums.len() as u32));
                filled = 0;
            }
        }
    }
    if filled > 0 {
        sums.push(state.digest());
    }
    seal_head(identity, frame_size, sums.into_iter())
}

fn seal_head(identity: Identity, frame_size: u32, sums: impl Iterator<Item = u64>) -> Bytes {
    let Identity { volume, id } = identity;
    let mut head = Encoder::new(head_len(frame_size, id.len) as usize)
        .raw(&MAGIC)
        .u8(VERSION)
        .u8(CODEC_PLAIN)
        .u16(0)
        .raw(&volume.0)
        .u64(id.slice.0)
        .u32(id.index)
        .u32(id.len)
        .u32(frame_size)
        .u64(0)
        .finish();
    sums.for_each(|sum| head.extend_from_slice(&sum.to_be_bytes()));
    let checksum = head_sum(&head);
    head[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&checksum.to_be_bytes());
    debug_assert_eq!(head.len(), head_len(frame_size, id.len) as usize);
    head.into()
}

/// Covers all bytes of the head but the checksum itself.
fn head_sum(head: &[u8]) -> u64 {
    xxh3_64_with_seed(&head[HEADER_LEN..], xxh3_64(&head[..CHECKSUM_AT]))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    volume: VolumeId,
    id: BlockId,
}

impl Identity {
    fn frame_seed(&self, frame: u32) -> u64 {
        let mut bytes = [0; 36];
        if planted::is(Bug::ChecksumUnbound) {
            return 0;
        }
        bytes[..16].copy_from_slice(&self.volume.0);
        bytes[16..24].copy_from_slice(&self.id.slice.0.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.id.index.to_be_bytes());
        bytes[28..32].copy_from_slice(&self.id.len.to_be_bytes());
        bytes[32..36].copy_from_slice(&frame.to_be_bytes());
        xxh3_64(&bytes)
    }

    fn frame_sum(&self, frame: u32, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.frame_seed(frame))
    }
}

/// The verified head of a block: what any part of its payload is verified against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    identity: Identity,
    frame_size: u32,
    sums: Vec<u64>,
}

/// Reads the head of the block `id`, which starts `bytes`; what follows the head is ignored.
/// Frame size and block length are those of a geometry that holds.
pub fn decode_head(volume: VolumeId, id: BlockId, frame_size: u32, bytes: &[u8]) -> Result<Head, BlockError> {
    let header = Header::of(bytes)?;
    // The head's own length comes from the identity asked for: a length field is compared, never trusted.
    let head = bytes.get(..head_len(frame_size, id.len) as usize);
    let identity = Identity { volume, id };
    let known = header.identity == identity || planted::is(Bug::ChecksumUnbound);
    let wanted = known && header.frame_size == frame_size;
    let Some(head) = head else {
        return Err(if wanted { BlockError::Length } else { BlockError::Identity });
    };
    if !wanted {
        return Err(BlockError::Identity);
    }
    if head_sum(head) != header.checksum {
        return Err(BlockError::Head);
    }
    if header.codec != CODEC_PLAIN {
        return Err(BlockError::Codec(header.codec));
    }
    if header.reserved != 0 {
        return Err(BlockError::Head);
    }
    let (sums, _) = head[HEADER_LEN..].as_chunks::<8>();
    Ok(Head { identity, frame_size, sums: sums.iter().map(|sum| u64::from_be_bytes(*sum)).collect() })
}

/// The block that an object says it is; nothing of it is verified.
pub(super) fn read_id(bytes: &[u8]) -> Result<BlockId, BlockError> {
    Ok(Header::of(bytes)?.identity.id)
}

/// The head of an object of `len` bytes that begins so, if it says that it is a block of that length; nothing of it is
/// verified.
pub(super) fn head_of(start: &[u8], len: u64) -> Option<&[u8]> {
    let Header { identity, frame_size, .. } = Header::of(start).ok()?;
    let id = identity.id;
    let is_block = id.len > 0 && frame_size > 0 && object_len(frame_size, id.len) == len;
    is_block.then(|| start.get(..usize::try_from(len - u64::from(id.len)).ok()?)).flatten()
}

/// The head of an object that is the block that it says it is, all of it.
pub(super) fn verified_head(object: &[u8]) -> Option<&[u8]> {
    let Header { identity: Identity { volume, id }, frame_size, .. } = Header::of(object).ok()?;
    let (head, payload) = object.split_at(head_of(object, object.len() as u64)?.len());
    decode_head(volume, id, frame_size, head).ok()?.verify(0, payload).ok()?;
    Some(head)
}

/// The fields after magic and version.
struct Header {
    codec: u8,
    reserved: u16,
    identity: Identity,
    frame_size: u32,
    checksum: u64,
}

impl Header {
    fn of(bytes: &[u8]) -> Result<Self, BlockError> {
        let mut d = Decoder::new(bytes);
        if d.raw(MAGIC.len()).map_err(|_| BlockError::Length)? != MAGIC {
            return Err(BlockError::NotABlock);
        }
        match d.u8().map_err(|_| BlockError::Length)? {
            VERSION => {}
            other => return Err(BlockError::Version(other)),
        }
        Self::read(d).map_err(|_| BlockError::Length)
    }

    fn read(mut d: Decoder<'_>) -> Result<Self, DecodeError> {
        let (codec, reserved) = (d.u8()?, d.u16()?);
        let volume = VolumeId(d.bytes16()?);
        let id = BlockId { slice: SliceId(d.u64()?), index: d.u32()?, len: d.u32()? };
        let identity = Identity { volume, id };
        Ok(Self { codec, reserved, identity, frame_size: d.u32()?, checksum: d.u64()? })
    }
}

impl Head {
    /// Verifies `part` of the payload, which starts with frame `first_frame` and ends on a frame's border or at the
    /// block's end; at least one byte.
    pub fn verify(&self, first_frame: u32, part: &[u8]) -> Result<(), BlockError> {
        let len = u64::from(self.identity.id.len);
        let end = u64::from(first_frame) * u64::from(self.frame_size) + part.len() as u64;
        let ends_well = end == len || (end < len && end.is_multiple_of(u64::from(self.frame_size)));
        if part.is_empty() || !ends_well {
            return Err(BlockError::Range);
        }
        for (bytes, frame) in part.chunks(self.frame_size as usize).zip(first_frame..) {
            let wrong = self.sums[frame as usize] != self.identity.frame_sum(frame, bytes);
            if wrong && !planted::is(Bug::ChecksumSkipped) {
                return Err(BlockError::Frame(frame));
            }
        }
        Ok(())
    }

    /// Bytes before the payload.
    pub fn head_len(&self) -> u32 {
        head_len(self.frame_size, self.identity.id.len)
    }

    /// The block.
    pub fn id(&self) -> BlockId {
        self.identity.id
    }
}

/// Verifies a whole object and returns its payload, a part of the same memory.
pub fn verify_object(volume: VolumeId, id: BlockId, frame_size: u32, object: &Bytes) -> Result<Bytes, BlockError> {
    split_object(volume, id, frame_size, object).map(|(_, payload)| payload)
}

/// As `verify_object`; also its head.
pub fn split_object(
    volume: VolumeId,
    id: BlockId,
    frame_size: u32,
    object: &Bytes,
) -> Result<(Head, Bytes), BlockError> {
    let head = decode_head(volume, id, frame_size, object)?;
    if object.len() as u64 != object_len(frame_size, id.len) {
        return Err(BlockError::Length);
    }
    let payload = object.slice(head.head_len() as usize..);
    head.verify(0, &payload)?;
    Ok((head, payload))
}

/// Contents of the marker object: one line of text that a person can read.
pub fn encode_marker(volume: VolumeId) -> Bytes {
    let line = format!("kiseki volume 1 {}", uuid(volume));
    format!("{line} {:016x}\n", xxh3_64(line.as_bytes())).into()
}

/// The volume that a marker object names.
pub fn decode_marker(bytes: &[u8]) -> Result<VolumeId, DecodeError> {
    let text = core::str::from_utf8(bytes).map_err(|_| DecodeError::Invalid("volume marker"))?;
    let rest = text.strip_prefix("kiseki volume ").ok_or(DecodeError::Invalid("volume marker"))?;
    let (version, rest) = rest.split_once(' ').ok_or(DecodeError::Short)?;
    match version.parse() {
        Ok(1) => {}
        Ok(other) => return Err(DecodeError::Version(other)),
        Err(_) => return Err(DecodeError::Invalid("volume marker")),
    }
    let (id, _) = rest.split_once(' ').ok_or(DecodeError::Short)?;
    let digits: String = id.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).map_err(|_| DecodeError::Invalid("volume marker"))?;
    let volume = VolumeId(number.to_be_bytes());
    // Checks the checksum, the hyphens and the end at once.
    if encode_marker(volume) == bytes { Ok(volume) } else { Err(DecodeError::Invalid("volume marker")) }
}

/// The identity of a volume in the usual form of a UUID.
pub fn uuid(volume: VolumeId) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(volume.0));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
