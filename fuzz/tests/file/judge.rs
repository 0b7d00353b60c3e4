//! What must hold of the world after each step.
//!
//! Owns: the judgement, from metadata and store alone. Leaves to others: the steps (`world`).
//!
//! - A commit refers only to blocks that survive a power cut.
//! - What is committed is at any moment the contents after a prefix of the members, whole and readable.
//! - Every block belongs to something that will destroy it one day.

use kiseki_core::meta::{self, Change, Commit, Finding, FindingKind};
use kiseki_core::testkit;
use kiseki_core::types::{Place, SliceId, SliceRecord};

use super::{GEOMETRY, INO, World};

impl World {
    /// A commit may start only if everything that it refers to survives a power cut.
    pub(super) fn judge_commit(&self, commit: &Commit) {
        assert_eq!(commit.ino, INO);
        assert!(commit.number <= self.number(), "a commit of a member that was never accepted");
        if commit.number <= self.attr().commit {
            // An attempt whose answer was lost has applied it; what it covered itself may be destroyed already.
            return;
        }
        for change in &commit.changes {
            let Change::Slice { record, .. } = change else { continue };
            assert_eq!(record.check(), Ok(()));
            match record.place {
                Place::Inline(_) => assert!(record.len <= GEOMETRY.inline_max),
                Place::Hole | Place::Reserved => unreachable!("the machine makes no such slices"),
                Place::Blocks | Place::Home => {
                    for index in 0..GEOMETRY.block_count(record.stored_len) {
                        let stored = self.blocks.get(&(record.slice, index)).expect("a commit without its blocks");
                        assert!(stored.durable, "a commit of blocks that no barrier covers");
                    }
                }
            }
        }
    }

    /// What is committed is the contents after a member, readable from metadata and store alone.
    pub(super) fn judge_committed(&self) {
        let attr = self.attr();
        let wanted = self.history.get(&attr.commit).expect("the number of a member");
        assert_eq!(attr.length, wanted.len() as u64, "length after member {}", attr.commit);
        let mut found = vec![0; wanted.len()];
        for chunk in 0..wanted.len().div_ceil(GEOMETRY.chunk_size as usize) as u32 {
            for record in self.records(chunk) {
                let start = (u64::from(chunk) * GEOMETRY.chunk_size + u64::from(record.pos)) as usize;
                if record.place == Place::Reserved {
                    continue;
                }
                let shown = self.shown(&record);
                let end = (start + shown.len()).min(found.len());
                let past = start + shown.len() > end;
                assert!(!past || record.place == Place::Hole, "bytes past the length");
                let visible = found.get_mut(start..end).unwrap_or_default();
                visible.copy_from_slice(&shown[..visible.len()]);
            }
        }
        assert_eq!(&found, wanted, "committed contents after member {}", attr.commit);
    }

    /// What is counted as taken is taken.
    pub(super) fn judge_space(&self) {
        let checked = testkit::peek(&self.kv, |read| {
            let mut wrong = Vec::new();
            let mut found = |finding: Finding| {
                if matches!(finding.kind, FindingKind::WrongStored | FindingKind::WrongUsage) {
                    wrong.push(finding.text);
                }
            };
            meta::invariant::check(read, &mut |_| {}, &mut found).map(|_| wrong)
        });
        assert_eq!(checked.expect("a check"), Vec::<String>::new());
    }

    fn shown(&self, record: &SliceRecord) -> Vec<u8> {
        let range = record.off as usize..(record.off + record.len) as usize;
        match &record.place {
            Place::Inline(bytes) => bytes[range].to_vec(),
            Place::Hole => vec![0; range.len()],
            Place::Reserved => unreachable!("it shows nothing"),
            Place::Blocks | Place::Home => {
                let blocks = 0..GEOMETRY.block_count(record.stored_len);
                let payloads = blocks.map(|index| {
                    let stored = self.blocks.get(&(record.slice, index));
                    &stored.expect("a committed slice misses a block").payload[..]
                });
                payloads.collect::<Vec<_>>().concat()[range].to_vec()
            }
        }
    }

    /// Every block in the store is referred to, queued for deletion, or of a slice in `owned`.
    pub(super) fn judge_owners(&self, mut owned: Vec<SliceId>) {
        let queued = testkit::peek(&self.kv, |read| meta::sweep::delslices(read, None, usize::MAX)).expect("a queue");
        owned.extend(queued.into_iter().map(|(slice, _)| slice));
        let referred = testkit::peek(&self.kv, |read| {
            let mut found = Vec::new();
            let next = meta::sweep::references(read, None, usize::MAX, &mut |slice| found.push(slice))?;
            assert!(next.is_none());
            Ok(found)
        });
        owned.extend(referred.expect("references"));
        for (slice, index) in self.blocks.keys() {
            assert!(owned.contains(slice), "block {index} of {slice:?} belongs to nobody");
        }
    }
}
