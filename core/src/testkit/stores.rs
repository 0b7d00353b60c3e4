//! What must hold of metadata and objects as they lie there, at every moment and after every crash.
//!
//! Owns: the invariants of the metadata (`meta::invariant`) together with those of the objects that it refers to.
//! Leaves to others: what the files and names must be (`judge`), what may be left that nothing refers to.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::format::block::verify_object;
use crate::format::keys;
use crate::format::values::Value;
use crate::kv::mem::MemKv;
use crate::kv::{Read, Txn};
use crate::meta::invariant;
use crate::types::{BlockId, Geometry, Place, SliceId, SliceRecord, VolumeId};

/// The blocks of a slice.
pub fn blocks(geometry: Geometry, slice: SliceId, stored_len: u32) -> impl Iterator<Item = BlockId> {
    (0..geometry.block_count(stored_len)).map(move |index| {
        let len = (stored_len - index * geometry.block_size).min(geometry.block_size);
        BlockId { slice, index, len }
    })
}

/// The blocks that slices refer to, if all of them are there, whole (`object` gives the object of a block) and the
/// metadata is whole; or what is wrong.
pub fn check(
    kv: &MemKv,
    volume: VolumeId,
    geometry: Geometry,
    object: impl Fn(BlockId) -> Option<Bytes>,
) -> Result<Vec<BlockId>, String> {
    let mut findings = Vec::new();
    let checked = invariant::check(kv.begin().as_read(), &mut |_| {}, &mut |finding| findings.push(finding));
    checked.map_err(|error| format!("the metadata cannot be checked: {error}"))?;
    if let Some(finding) = findings.first() {
        return Err(format!("the metadata is not whole: {finding:?}"));
    }
    let (start, end) = keys::all_slices();
    let records = kv.begin().scan(&start, &end, usize::MAX).map_err(|error| format!("slices: {error}"))?;
    let mut referenced = Vec::new();
    for (_, value) in records {
        let record = SliceRecord::decode(&value).map_err(|error| format!("a slice: {error}"))?;
        if matches!(record.place, Place::Blocks | Place::Home) {
            referenced.extend(blocks(geometry, record.slice, record.stored_len));
        }
    }
    for id in &referenced {
        let Some(object) = object(*id) else { return Err(format!("{id:?} is referred to and is not in the store")) };
        verify_object(volume, *id, geometry.frame_size, &object)
            .map_err(|error| format!("{id:?} is referred to and damaged: {error}"))?;
    }
    Ok(referenced)
}
