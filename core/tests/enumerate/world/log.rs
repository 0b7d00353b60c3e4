//! The write-back log: what `client::log` does, one step after the other.
//!
//! Owns: the order of records, syncs, uploads, settling and segments that go; opening a log, and what is in one that a
//! crash has left.
//! Leaves to others: what comes next and what is in the log (`store::log`, of the core), the disk (`disk`), packs
//! (`packs`).

use std::collections::BTreeSet;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::env::TxnSeq;
use kiseki_core::format::block::{object_key, parse_key};
use kiseki_core::format::log::{Kind, Scan, Segment, scan};
use kiseki_core::format::values::LogHome;
use kiseki_core::meta;
use kiseki_core::store::log::{BytesAt, Found, Log, Pace, Place, Upload, claims};
use kiseki_core::types::{BlockId, PackId};

use super::disk::LogDisk;
use super::{Event, Form, Name, VOLUME, World};
use crate::mistakes::Mistake;

/// Nothing here waits for time to pass.
const NOW: Duration = Duration::ZERO;
/// Two groups of records with a sync between them, after the page of the header: the third makes another segment.
const SEGMENT_SIZE: u64 = 3 * 4096;
/// More than any sequence fills.
const LOG_SIZE: u64 = 1 << 30;
/// All blocks are shorter. (a whole one with its head: 88)
const PACK_BELOW: u64 = 100;
/// Four whole blocks: the first file of the beginning, and a part of the other.
const PACK_SIZE: u64 = 360;

/// The log of a mount, and what is known of packs besides the metadata.
#[derive(Clone, Debug)]
pub(super) struct Staging {
    pub(super) log: Log,
    /// Number of the mount; 0: the log is only read.
    pub(super) epoch: u64,
    /// The store has answered what no barrier of its own covers.
    pub(super) direct: bool,
    /// The last transaction that took a block out of a pack.
    pub(super) unpacked: TxnSeq,
    /// Packs that nothing needs.
    pub(super) dead: BTreeSet<PackId>,
    /// Packs of which little is in use.
    pub(super) thin: BTreeSet<PackId>,
    /// Packs that were rewritten.
    pub(super) rewritten: u32,
}

impl Staging {
    fn new(log: Log, epoch: u64) -> Self {
        let unpacked = TxnSeq(0);
        Self { log, epoch, direct: false, unpacked, dead: BTreeSet::new(), thin: BTreeSet::new(), rewritten: 0 }
    }
}

impl World {
    pub(super) fn has_log(&self) -> bool {
        self.form != Form::Through
    }

    pub(super) fn staging(&mut self) -> &mut Staging {
        self.staging.as_mut().expect("called where there is a log")
    }

    fn log_disk(&mut self) -> &mut LogDisk {
        Arc::make_mut(&mut self.disk)
    }

    // --- opening

    /// `Logged::open`: takes the log for this mount, first in the folder, then in the volume.
    pub(super) fn open_log(&mut self) {
        let home = self.read(|read| meta::volume::load(read)).log.map_or(0, |home| home.epoch);
        let owner = self.disk.owner.unwrap_or(0);
        assert!(home <= owner, "the folder is of mount {owner}, the volume's log of {home}");
        let taken = self.txn(Event::Txn("take a number for the log"), |txn, _| meta::session::take_id(txn, 1 + owner));
        self.sync();
        let epoch = taken.expect("numbers do not run out");
        self.log_disk().owner = Some(epoch);
        self.note(Event::Owner);
        let home = LogHome { epoch, place: "/log".into() };
        self.txn(Event::Txn("open the log"), |txn, _| meta::volume::open_log(txn, &home)).expect("there is a volume");
        self.sync();
        let mut log = self.recovered(epoch).expect("it was read before");
        // `know_packed`
        for key in log.waiting() {
            let (slice, index) = parse_key(&key).expect("the key of a block");
            if self.read(|read| meta::packs::find(read, slice, index)).is_some() {
                log.handle_known(&key);
            }
        }
        self.staging = Some(Staging::new(log, epoch));
        self.look_behind();
    }

    /// Reads what a crash has left in the log, and changes nothing.
    pub(crate) fn find_log(&mut self) -> Result<(), String> {
        if self.has_log() {
            self.staging = Some(Staging::new(self.recovered(0)?, 0));
        }
        Ok(())
    }

    /// `open::recover`: the log as the disk has it. Nothing on it is damaged: no disk has failed.
    pub(crate) fn recovered(&self, epoch: u64) -> Result<Log, String> {
        let mut log = Log::new(VOLUME, epoch, SEGMENT_SIZE, LOG_SIZE);
        log.set_pace(Pace::steady(1));
        if self.form == Form::Packed {
            log.set_packs(PACK_BELOW, PACK_SIZE);
        }
        let (mut found, mut without_head) = (Vec::new(), BTreeSet::new());
        for (number, bytes) in self.disk.segments() {
            let len = bytes.len() as u64;
            if let Ok(head) = Segment::decode(&bytes, number) {
                found.push(Found { head, len, scan: self.scan(&head, &bytes) });
            } else {
                let head = Segment { volume: VOLUME, epoch: 0, number, before: 0 };
                found.push(Found { head, len, scan: Scan::default() });
                without_head.insert(number);
            }
        }
        for (found, claimed) in found.iter().zip(claims(&found)) {
            let unreadable = claimed > 0 && without_head.contains(&found.head.number);
            let damage = log.recover(NOW, found, claimed, unreadable);
            if unreadable || !damage.is_empty() {
                return Err(format!("segment {} of the log is damaged: {damage:?}", found.head.number));
            }
        }
        log.check();
        Ok(log)
    }

    fn scan(&self, head: &Segment, bytes: &[u8]) -> Scan {
        let mut scan = scan(head, bytes);
        if self.mistake == Some(Mistake::TornAccepted) {
            scan.records.iter_mut().for_each(|record| record.whole = record.body.end <= bytes.len() as u64);
        }
        scan
    }

    // --- records

    /// `stage`: writes a record, and the segment for it if need be.
    pub(super) fn stage(&mut self, kind: Kind, key: &str, body: &[Bytes]) {
        loop {
            match self.staging().log.reserve(kind, key, body) {
                Place::NeedSegment => self.make_segment(),
                Place::At(slot) => {
                    let bytes = [slice::from_ref(&slot.head), body].concat().concat();
                    self.log_disk().write(slot.segment, slot.at, bytes.into());
                    self.note(Event::Record(slot.segment, kind));
                    let written = self.staging().log.handle_written(NOW, &slot, kind, key, body);
                    assert!(written, "no sync fails");
                    return;
                }
                place @ (Place::Wait | Place::Full) => panic!("{place:?}: no segment is being made, and there is room"),
            }
        }
    }

    fn make_segment(&mut self) {
        let head = self.staging().log.begin_segment().expect("no other one is being made");
        self.log_disk().create(head.number);
        self.note(Event::Segment(head.number));
        self.log_disk().write(head.number, 0, head.encode());
        self.note(Event::Segment(head.number));
        self.staging().log.handle_segment(head, true);
    }

    /// `Inner::sync`.
    pub(super) fn sync_log(&mut self) {
        let Some(plan) = self.staging().log.plan_sync() else { return };
        for segment in &plan.segments {
            if self.mistake != Some(Mistake::BarrierLeavesLog) {
                self.log_disk().sync(*segment);
            }
            self.note(Event::LogSync(*segment));
        }
        self.staging().log.handle_synced(&plan);
    }

    // --- reading

    /// The object of a block, if the log has it.
    pub(super) fn staged_object(&self, id: BlockId) -> Option<Bytes> {
        let (at, _) = self.staging.as_ref()?.log.find(&object_key(id))?;
        match at {
            BytesAt::Memory(body) => Some(body.concat().into()),
            BytesAt::Disk { segment, range, .. } => self.disk.read(segment, &range),
        }
    }

    /// `Inner::staged`: the bytes of an object, as they were staged.
    pub(super) fn staged(&self, upload: &Upload) -> Bytes {
        match &upload.body {
            BytesAt::Memory(body) => body.concat().into(),
            BytesAt::Disk { segment, range, sum } => {
                let bytes = self.disk.read(*segment, range).expect("a segment stays while it is needed");
                assert!(sum.holds(&bytes), "the log cannot give back {}", upload.key);
                bytes
            }
        }
    }

    // --- uploads

    /// `pump`: puts everything that waits into the store.
    pub(super) fn pump(&mut self) {
        loop {
            if let Some(packing) = self.staging().log.next_pack(NOW) {
                self.upload_pack(&packing);
            } else if let Some(upload) = self.staging().log.next_upload(NOW) {
                let (slice, index) = parse_key(&upload.key).expect("the key of a block");
                let bytes = self.staged(&upload);
                self.put_object(Name::Block(slice, index), bytes);
                self.staging().log.handle_upload(NOW, &upload.key, true);
            } else {
                return;
            }
        }
    }

    /// `settle_these`: a barrier of the store covers what was put.
    fn settle(&mut self) {
        let log = &self.staging().log;
        let (put, packs) = (log.plan_settle(), log.plan_packs());
        if put.is_empty() && packs.is_empty() {
            return;
        }
        if self.mistake != Some(Mistake::SegmentBeforeBarrier) {
            self.store_barrier();
        }
        self.staging().log.handle_settled(&put);
        packs.into_iter().for_each(|pack| self.record(pack));
    }

    /// `remove_segments`: those that nobody needs, oldest first; with `all` also the one that takes records.
    pub(crate) fn remove_segments(&mut self, all: bool) {
        while let Some((number, damaged)) = self.staging.as_ref().and_then(|staging| staging.log.removable(all)) {
            assert!(!damaged, "no disk has failed");
            self.log_disk().remove(number);
            self.note(Event::SegmentGone(number));
            self.staging().log.handle_removed(number, false);
        }
    }

    /// `drain`, but for the segments: they go some time after that.
    pub(crate) fn drain(&mut self) {
        if self.has_log() {
            self.pump();
            self.settle();
            let log = &self.staging().log;
            log.check();
            assert!(log.is_drained(), "nothing fails, so everything is in the store");
        }
    }

    /// `finish`: the last segment goes, too.
    pub(crate) fn finish_log(&mut self) {
        self.remove_segments(true);
        assert!(self.disk.is_empty(), "a drained log leaves no segment");
    }

    /// What must hold of the log when nothing is under way: everything is in the store, and what the next mount would find
    /// is wanted.
    pub(crate) fn check_log(&self, wanted: impl Fn(&str) -> bool) -> Result<(), String> {
        let Some(staging) = &self.staging else { return Ok(()) };
        if !staging.log.is_drained() {
            return Err(format!("the log is not drained: {:?}", staging.log.backlog()));
        }
        match self.recovered(0)?.waiting().iter().find(|key| !wanted(key)) {
            Some(key) => Err(format!("the log would put {key} again, and nothing refers to it")),
            None => Ok(()),
        }
    }
}
