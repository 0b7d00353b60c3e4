//! Packs: objects of the store in which the objects of small blocks travel together.
//!
//! Owns: their names, what is in them. Leaves to others: where a block is (`meta::packs`), the blocks (`format::block`).
//!
//! A pack is the objects of its blocks, one after the other and nothing else: each says itself what it is.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use bytes::Bytes;

use super::block::{BlockError, object_len, read_id, verify_object};
use crate::types::{BlockId, PackId, VolumeId};

/// What the keys of all packs begin with.
pub const PACKS: &str = "packs/";

/// Key of a pack.
pub fn pack_key(pack: PackId) -> String {
    format!("{PACKS}{:08x}/{:016x}", pack.mount(), pack.0)
}

/// The pack of a key; `None` for any other key.
pub fn parse_pack_key(key: &str) -> Option<PackId> {
    let (_, number) = key.strip_prefix(PACKS)?.split_once('/')?;
    let pack = PackId(u64::from_str_radix(number, 16).ok()?);
    (pack_key(pack) == key).then_some(pack)
}

/// The blocks in a pack and where their objects are, all of it verified.
pub fn blocks(volume: VolumeId, frame_size: u32, pack: &Bytes) -> Result<Vec<(BlockId, Range<usize>)>, BlockError> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < pack.len() {
        let id = read_id(&pack[at..])?;
        let len = object_len(frame_size, id.len) as usize;
        if pack.len() - at < len {
            return Err(BlockError::Length);
        }
        verify_object(volume, id, frame_size, &pack.slice(at..at + len))?;
        found.push((id, at..at + len));
        at += len;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::block::encode_head;
    use crate::types::SliceId;

    const VOLUME: VolumeId = VolumeId([7; 16]);
    const FRAME: u32 = 8;

    fn object(slice: u64, len: u32) -> (BlockId, Vec<u8>) {
        let id = BlockId { slice: SliceId(slice), index: 0, len };
        let payload = alloc::vec![slice as u8; len as usize];
        (id, [&encode_head(VOLUME, id, FRAME, &payload)[..], &payload].concat())
    }

    #[test]
    fn keys_lead_to_packs_and_back() {
        let pack = PackId::new(0x2a, 7);
        assert_eq!(pack_key(pack), "packs/0000002a/0000002a00000007");
        assert_eq!(parse_pack_key(&pack_key(pack)), Some(pack));
        for other in ["packs/0000002b/0000002a00000007", "packs/0000002a/2a00000007", "packs/", "blocks/0/1", ""] {
            assert_eq!(parse_pack_key(other), None, "{other}");
        }
    }

    #[test]
    fn a_pack_says_what_is_in_it() {
        let objects = [object(5, 20), object(9, 1), object(4096, 8)];
        let whole: Vec<u8> = objects.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let found = blocks(VOLUME, FRAME, &whole.clone().into()).expect("it is whole");
        assert_eq!(found.len(), 3);
        for ((id, bytes), (found, range)) in objects.iter().zip(found) {
            assert_eq!((*id, &bytes[..]), (found, &whole[range]));
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(blocks(VOLUME, FRAME, &damaged.into()).is_err(), "byte {at}");
        }
        for len in 1..whole.len() {
            let part = blocks(VOLUME, FRAME, &whole[..len].to_vec().into());
            // At a border of objects, what is left is a pack.
            assert!(
                part.is_err()
                    || part.is_ok_and(|found| found.iter().map(|(_, range)| range.len()).sum::<usize>() == len)
            );
        }
    }
}
