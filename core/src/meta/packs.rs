//! Packs: which blocks are in which, and how much of each pack is in use.
//!
//! Owns: the packed and pack keys. Leaves to others: putting packs and deleting them (`client::log`), what blocks are for.
//!
//! Invariants
//! - A pack is known here before it is put, and for as long as it may be in the store.
//! - `live` of a pack is the sum of the lengths of the blocks that are said to be in it; with 0, nothing needs the pack.
//! - All of these are done again without harm, as what became of a transaction may be unknown.

use alloc::vec::Vec;

use super::{after, get, put, volume};
use crate::errno::Errno;
use crate::format::keys::{self, Key};
use crate::format::values::{Pack, Packed, VOLUME_VERSION, Value, Volume};
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::planted::{self, Bug};
use crate::types::{PackId, SliceId};

/// A block's object in a pack that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The block's slice.
    pub slice: SliceId,
    /// Which of the slice's blocks it is.
    pub index: u32,
    /// First byte of its object in the pack.
    pub at: u32,
    /// Length of its object.
    pub len: u32,
}

/// What `move_to` asks of where a block was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing: the block comes from elsewhere.
    Anywhere,
    /// It is in this pack; otherwise it has gone meanwhile and stays away.
    Pack(PackId),
}

/// A pack that is about to be put. To be synced before it is.
pub fn begin(txn: &mut dyn Txn, pack: PackId) -> OpResult<()> {
    let volume = volume::load(txn.as_read())?;
    if !volume.packs {
        put(txn, keys::volume(), &Volume { version: VOLUME_VERSION, packs: true, ..volume });
    }
    if get::<Pack>(txn, keys::pack(pack))?.is_none() {
        put(txn, keys::pack(pack), &Pack { len: 0, live: 0, condemned: false });
    }
    Ok(())
}

/// The pack of `len` bytes is in the store for good, and these blocks are in it. Which packs have no block any more.
/// ESTALE if the pack is condemned.
pub fn move_to(txn: &mut dyn Txn, pack: PackId, len: u32, members: &[(Member, Origin)]) -> OpResult<Vec<PackId>> {
    let known: Pack = get(txn, keys::pack(pack))?.ok_or(OpError::Damaged("a pack that was not begun"))?;
    if known.condemned {
        return Err(Errno::ESTALE.into());
    }
    let mut live = known.live;
    let mut emptied = Vec::new();
    for (member, from) in members {
        let key = keys::packed(member.slice, member.index);
        let was: Option<Packed> = get(txn, &key)?;
        let here = was.is_some_and(|was| was.pack == pack);
        match from {
            Origin::Pack(from)
                if !here && was.is_none_or(|was| was.pack != *from) && !planted::is(Bug::PackMoveUnchecked) =>
            {
                continue;
            }
            Origin::Pack(_) | Origin::Anywhere => {}
        }
        if !here {
            if let Some(was) = was {
                let left = take_from(txn, &was)?;
                emptied.extend((left.live == 0).then_some(was.pack));
            }
            live += member.len;
        }
        put(txn, key, &Packed { pack, at: member.at, len: member.len });
    }
    put(txn, keys::pack(pack), &Pack { len, live, condemned: false });
    emptied.extend((live == 0).then_some(pack));
    Ok(emptied)
}

/// Takes the bytes of a block off its pack; what is left of that.
fn take_from(txn: &mut dyn Txn, packed: &Packed) -> OpResult<Pack> {
    let pack: Pack =
        get(txn, keys::pack(packed.pack))?.ok_or(OpError::Damaged("a block in a pack that is not known"))?;
    let live =
        pack.live.checked_sub(packed.len).ok_or(OpError::Damaged("a pack with more blocks than bytes in use"))?;
    let left = Pack { live, ..pack };
    put(txn, keys::pack(packed.pack), &left);
    Ok(left)
}

/// Where a block's object is, if it is in a pack.
pub fn find(read: &mut dyn Read, slice: SliceId, index: u32) -> OpResult<Option<Packed>> {
    get(read, keys::packed(slice, index))
}

/// The same, and the length of the pack.
pub fn find_in(read: &mut dyn Read, slice: SliceId, index: u32) -> OpResult<Option<(Packed, u32)>> {
    let Some(packed) = find(read, slice, index)? else { return Ok(None) };
    Ok(Some((packed, length(read, packed.pack)?)))
}

/// Length of a pack; 0 where there is none.
pub fn length(read: &mut dyn Read, pack: PackId) -> OpResult<u32> {
    Ok(get::<Pack>(read, keys::pack(pack))?.map_or(0, |pack| pack.len))
}

/// The block is in no pack any more. Where it was, and how much of that pack is in use.
pub fn remove(txn: &mut dyn Txn, slice: SliceId, index: u32) -> OpResult<Option<(Packed, Pack)>> {
    let key = keys::packed(slice, index);
    let Some(packed) = get::<Packed>(txn, &key)? else { return Ok(None) };
    txn.delete(&key);
    Ok(Some((packed, take_from(txn, &packed)?)))
}

/// Blocks in packs after `after`, of slices below `end`.
pub fn list(
    read: &mut dyn Read,
    after_key: Option<(SliceId, u32)>,
    end: SliceId,
    limit: usize,
) -> OpResult<Vec<(SliceId, u32)>> {
    let start = after_key.map_or(keys::packed_range().0, |(slice, index)| after(&keys::packed(slice, index)));
    let mut found = Vec::new();
    for (key, _) in read.scan(&start, &keys::packed(end, 0), limit)? {
        let Key::Packed(slice, index) = keys::decode(&key)? else {
            return Err(OpError::Damaged("a key in the range of the blocks in packs"));
        };
        found.push((slice, index));
    }
    Ok(found)
}

/// Packs after `after`.
pub fn all(read: &mut dyn Read, after_pack: Option<PackId>, limit: usize) -> OpResult<Vec<(PackId, Pack)>> {
    let (start, end) = keys::pack_range();
    let start = after_pack.map_or(start, |pack| after(&keys::pack(pack)));
    let mut packs = Vec::new();
    for (key, value) in read.scan(&start, &end, limit)? {
        let Key::Pack(pack) = keys::decode(&key)? else {
            return Err(OpError::Damaged("a key in the range of the packs"));
        };
        packs.push((pack, Pack::decode(&value)?));
    }
    Ok(packs)
}

/// Of these packs, those that nothing needs: they may be deleted once that is durable, as nothing will be in them again.
pub fn condemn(txn: &mut dyn Txn, packs: &[PackId]) -> OpResult<Vec<PackId>> {
    let mut condemned = Vec::new();
    for id in packs {
        match get::<Pack>(txn, keys::pack(*id))? {
            Some(pack) if pack.live == 0 => {
                put(txn, keys::pack(*id), &Pack { condemned: true, ..pack });
                condemned.push(*id);
            }
            Some(_) | None => {}
        }
    }
    Ok(condemned)
}

/// These condemned packs are not in the store any more, for good.
pub fn forget(txn: &mut dyn Txn, packs: &[PackId]) -> OpResult<()> {
    for pack in packs {
        if get::<Pack>(txn, keys::pack(*pack))?.is_some_and(|pack| pack.condemned) {
            txn.delete(&keys::pack(*pack));
        }
    }
    Ok(())
}
