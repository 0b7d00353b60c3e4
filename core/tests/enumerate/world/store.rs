//! The object store as the client sees it: by itself, or with the write-back log in front.
//!
//! Owns: where a put goes, where a block is read, what a delete and a barrier are (`client::log`).
//! Leaves to others: what is durable of the store (`objects`), records and uploads (`log`), packs (`packs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use kiseki_core::format::block::{encode_head, object_key, parse_key};
use kiseki_core::format::log::Kind;
use kiseki_core::meta;
use kiseki_core::types::{BlockId, SliceId};

use super::{Event, Form, GEOMETRY, Name, VOLUME, World};
use crate::mistakes::Mistake;

/// Objects of this length and more go past the log, where it says so: those of whole blocks.
const DIRECT_FROM: usize = 88;

impl World {
    /// The put of a block: into the log, where there is one that takes it.
    pub(super) fn put(&mut self, id: BlockId, payload: &[u8]) {
        let mut bytes = encode_head(VOLUME, id, GEOMETRY.frame_size, payload).to_vec();
        bytes.extend_from_slice(payload);
        assert!(self.object(id).is_none(), "{id:?} was put twice");
        let staged = match self.form {
            Form::Through => false,
            Form::Logged => bytes.len() < DIRECT_FROM,
            Form::Packed => true,
        };
        if staged {
            self.stage(Kind::Put, &object_key(id), &[bytes.into()]);
            return;
        }
        self.put_object(Name::Block(id.slice, id.index), bytes.into());
        if let Some(staging) = &mut self.staging {
            staging.direct = true;
        }
    }

    /// A put into the store itself.
    pub(super) fn put_object(&mut self, name: Name, bytes: Bytes) {
        Arc::make_mut(&mut self.objects).put(name, bytes);
        self.note(Event::Put(name));
    }

    /// `covered`: the log is synced; the store has a barrier of its own where something went past the log; and what went
    /// out of packs is durable.
    pub(crate) fn barrier(&mut self) {
        if !self.has_log() {
            return self.store_barrier();
        }
        let unpacked = self.staging().unpacked;
        self.sync_log();
        if std::mem::take(&mut self.staging().direct) && self.mistake != Some(Mistake::DirectUncovered) {
            self.store_barrier();
        }
        if self.synced < unpacked {
            self.sync();
        }
    }

    /// A barrier of the store itself.
    pub(super) fn store_barrier(&mut self) {
        if self.mistake != Some(Mistake::SkipBarrier) {
            Arc::make_mut(&mut self.objects).barrier();
        }
        self.note(Event::Barrier);
    }

    /// A barrier after deletes: what was deleted stays away.
    pub(crate) fn delete_barrier(&mut self) {
        if self.mistake != Some(Mistake::DeleteWithoutBarrier) {
            self.barrier();
        }
    }

    /// `delete_now`: deletes a block, which may be gone.
    pub(crate) fn delete(&mut self, slice: SliceId, index: u32) {
        if self.has_log() {
            let key = object_key(BlockId { slice, index, len: 1 });
            if self.staging().log.begin_delete(&key) && self.mistake != Some(Mistake::DeleteUnrecorded) {
                self.stage(Kind::Delete, &key, &[]);
            }
            self.staging().log.end_delete(&key);
            self.unpack(slice, index);
            self.staging().direct = true;
        }
        self.delete_object(Name::Block(slice, index));
    }

    pub(super) fn delete_object(&mut self, name: Name) {
        if Arc::make_mut(&mut self.objects).delete(name) {
            self.note(Event::Delete(name));
        }
    }

    /// The object of a block: from the log, from a pack or by itself.
    pub(crate) fn object(&self, id: BlockId) -> Option<Bytes> {
        if let Some(staged) = self.staged_object(id) {
            return Some(staged);
        }
        if self.has_log()
            && let Some((packed, _)) = self.read(|read| meta::packs::find_in(read, id.slice, id.index))
        {
            let pack = self.objects.get(Name::Pack(packed.pack))?;
            let (start, end) = (packed.at as usize, (packed.at + packed.len) as usize);
            return (end <= pack.len()).then(|| pack.slice(start..end));
        }
        self.objects.get(Name::Block(id.slice, id.index)).cloned()
    }

    /// The blocks that a listing shows: in the log, in packs and by themselves.
    pub(crate) fn listing(&self) -> BTreeSet<(SliceId, u32)> {
        let alone = self.objects.names().filter_map(|name| match name {
            Name::Block(slice, index) => Some((slice, index)),
            Name::Pack(_) => None,
        });
        let mut listing: BTreeSet<_> = alone.collect();
        if let Some(staging) = &self.staging {
            if self.mistake != Some(Mistake::LogUnlisted) {
                listing.extend(staging.log.list("blocks/", None).iter().filter_map(|key| parse_key(key)));
            }
            listing.extend(self.read(|read| meta::packs::list(read, None, SliceId(u64::MAX), usize::MAX)));
        }
        listing
    }
}
