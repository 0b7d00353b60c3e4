//! What one file may contain after a crash.
//!
//! Owns: the accepted changes of one file since its last successful fsync, and the verdict on bytes read back.
//! Leaves to others: under which name the file is found (`names`).
//!
//! Invariants
//! - `now` is `base` with all `changes` applied, while every one of them was answered.
//! - Only the last change may be unanswered.
//! - A file may be found as `base` with any prefix of `changes` applied, and in no other state. A write may also be cut
//!   at a page's border: the kernel splits it there (after each page that it covers in part), and what the file
//!   system accepts is each part.

use std::time::Duration;

use crate::stamp::{CELL, fill, origin};

const PAGE: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Write { offset: u64, len: u64, number: u64 },
    Truncate { len: u64 },
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Promised bytes are missing, or older ones show where a prefix cannot have them.
    Lost(String),
    /// Bytes that nobody wrote there.
    Invented(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Identity in the stamps, unique in a run.
    file: u64,
    /// Number of the next write.
    next: u64,
    base: Vec<u8>,
    /// When in the run the last fsync was answered.
    synced_at: Duration,
    changes: Vec<Change>,
    now: Vec<u8>,
    /// Permission bits since the last fsync, the latest last; never empty.
    modes: Vec<u32>,
    /// (number of a rename over another name, changes accepted when it was asked for): from that rename on, so many count.
    replaced: Vec<(u64, usize)>,
}

impl Content {
    pub(crate) fn new(file: u64, mode: u32) -> Self {
        let synced_at = Duration::ZERO;
        Self {
            file,
            next: 1,
            base: vec![],
            synced_at,
            changes: vec![],
            now: vec![],
            modes: vec![mode],
            replaced: vec![],
        }
    }

    pub(crate) fn now(&self) -> &[u8] {
        &self.now
    }

    /// Changes that no fsync has covered.
    pub(crate) fn pending(&self) -> usize {
        self.changes.len()
    }

    /// The bytes to write at `offset`. Call `answered` when they were accepted.
    pub(crate) fn begin_write(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        fill(&mut bytes, offset, self.file, self.next);
        self.changes.push(Change::Write { offset, len, number: self.next });
        self.next += 1;
        bytes
    }

    pub(crate) fn begin_truncate(&mut self, len: u64) {
        self.changes.push(Change::Truncate { len });
    }

    pub(crate) fn begin_mode(&mut self, mode: u32) {
        self.modes.push(mode);
    }

    /// The last change begun was accepted.
    pub(crate) fn answered(&mut self) {
        if let Some(change) = self.changes.last() {
            apply(&mut self.now, self.file, change);
        }
    }

    /// A rename of this file over another name is asked for; it is the namespace operation `number`.
    pub(crate) fn begin_replace(&mut self, number: u64) {
        self.replaced.push((number, self.changes.len()));
    }

    /// An fsync that began after the last answer returned 0, at `now` of the run. Returns how many changes it covers.
    pub(crate) fn synced(&mut self, now: Duration) -> u64 {
        self.synced_at = now;
        self.base.clone_from(&self.now);
        self.replaced.clear();
        self.modes.drain(..self.modes.len() - 1);
        self.changes.drain(..).len() as u64
    }

    /// Judges what was found after a crash that kept the namespace operations below `names`, and goes on from there.
    pub(crate) fn settle(&mut self, seen: &[u8], mode: u32, names: u64) -> Result<(), Wrong> {
        let floor = self.replaced.iter().filter(|(number, _)| *number < names).map(|(_, count)| *count).max();
        let floor = floor.unwrap_or(0);
        let mut state = self.base.clone();
        let mut found = (floor == 0 && state == seen).then_some((0, None));
        for (index, change) in self.changes.iter().enumerate() {
            let before = if index >= floor { part_of(&state, self.file, change, seen) } else { None };
            apply(&mut state, self.file, change);
            if index + 1 >= floor && state == seen {
                found = Some((index + 1, None));
            } else if before.is_some() {
                found = Some((index, before));
            }
        }
        let Some((count, part)) = found else { return Err(self.explain(seen, floor)) };
        if !self.modes.contains(&mode) {
            return Err(Wrong::Lost(format!("mode {mode}, not one of {:?}", self.modes)));
        }
        self.changes.truncate(count);
        self.changes.extend(part);
        self.replaced.retain(|(number, _)| *number < names);
        self.modes.push(mode);
        self.now = seen.to_vec();
        Ok(())
    }

    /// Says which promise broke; only called when one did.
    fn explain(&self, seen: &[u8], floor: usize) -> Wrong {
        let mut lengths = vec![self.base.len()];
        let mut state = self.base.clone();
        let mut open: Vec<usize> = (0..seen.len() / CELL as usize).collect();
        let bytes = |of: &[u8], cell: usize| -> Option<[u8; CELL as usize]> {
            of.get(cell * CELL as usize..(cell + 1) * CELL as usize)?.try_into().ok()
        };
        open.retain(|cell| bytes(&state, *cell) != bytes(seen, *cell));
        for change in &self.changes {
            apply(&mut state, self.file, change);
            lengths.push(state.len());
            open.retain(|cell| bytes(&state, *cell) != bytes(seen, *cell));
        }
        let text = format!(
            "{} bytes found; {} synced at {:?}, then {} changes to {} bytes (at least {floor} of them must show); last: {:?}",
            seen.len(),
            self.base.len(),
            self.synced_at,
            self.changes.len(),
            state.len(),
            &self.changes[self.changes.len().saturating_sub(4)..],
        );
        let invented = open.iter().find(|cell| {
            let offset = **cell as u64 * CELL;
            origin(&seen[offset as usize..(offset + CELL) as usize], offset, self.file).is_none()
        });
        if let Some(cell) = invented {
            let offset = cell * CELL as usize;
            let found = &seen[offset..offset + CELL as usize];
            let what = if found.iter().all(|byte| *byte == 0) { "zeros" } else { "foreign bytes" };
            return Wrong::Invented(format!("{what} at {offset} ({} cells wrong): {text}", open.len()));
        }
        if lengths.iter().all(|len| *len < seen.len()) {
            return Wrong::Invented(format!("longer than it ever was: {text}"));
        }
        Wrong::Lost(match open.first() {
            Some(cell) => format!("older bytes at {}: {text}", cell * CELL as usize),
            None => format!("not a prefix of its changes: {text}"),
        })
    }
}

fn apply(state: &mut Vec<u8>, file: u64, change: &Change) {
    match *change {
        Change::Write { offset, len, number } => {
            let end = (offset + len) as usize;
            if state.len() < end {
                state.resize(end, 0);
            }
            fill(&mut state[offset as usize..end], offset, file, number);
        }
        Change::Truncate { len } => state.resize(len as usize, 0),
    }
}

/// The first part of a write with which `state` is what was seen, if there is one.
fn part_of(state: &[u8], file: u64, change: &Change, seen: &[u8]) -> Option<Change> {
    let Change::Write { offset, len, number } = *change else { return None };
    if offset / PAGE == (offset + len - 1) / PAGE {
        return None;
    }
    let mut whole = state.to_vec();
    apply(&mut whole, file, change);
    let end = (offset + len).min(seen.len() as u64);
    let differs = (offset..end).find(|at| whole[*at as usize] != seen[*at as usize]).unwrap_or(end);
    let cut = differs / PAGE * PAGE;
    let part = Change::Write { offset, len: cut.checked_sub(offset).filter(|len| *len > 0)?, number };
    let mut state = state.to_vec();
    apply(&mut state, file, &part);
    (state == seen).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of three accepted writes, the first of them synced.
    fn three() -> Content {
        let mut content = Content::new(5, 0o644);
        for (offset, len) in [(0, 100), (100, 50), (40, 300)] {
            content.begin_write(offset, len);
            content.answered();
            if offset == 0 {
                content.synced(Duration::ZERO);
            }
        }
        content
    }

    fn prefix(count: usize) -> Vec<u8> {
        let content = three();
        let mut state = content.base.clone();
        content.changes[..count].iter().for_each(|change| apply(&mut state, 5, change));
        state
    }

    #[test]
    fn any_prefix_from_the_last_fsync_on_is_right() {
        for count in 0..=2 {
            let mut content = three();
            content.settle(&prefix(count), 0o644, 0).unwrap();
            assert_eq!(content.pending(), count);
            assert_eq!(content.now(), prefix(count));
        }
    }

    #[test]
    fn less_than_synced_is_lost() {
        assert!(matches!(three().settle(&[], 0o644, 0), Err(Wrong::Lost(_))));
        assert!(matches!(three().settle(&prefix(0)[..99], 0o644, 0), Err(Wrong::Lost(_))));
        assert!(matches!(three().settle(&prefix(0), 0o600, 0), Err(Wrong::Lost(_))));
    }

    #[test]
    fn a_later_write_without_an_earlier_one_is_lost() {
        let mut content = Content::new(5, 0o644);
        content.begin_write(0, 512);
        content.answered();
        content.synced(Duration::ZERO);
        for offset in [128, 256] {
            content.begin_write(offset, 64);
            content.answered();
        }
        let mut state = content.base.clone();
        apply(&mut state, 5, &content.changes[1]);
        assert!(matches!(content.settle(&state, 0o644, 0), Err(Wrong::Lost(_))));
    }

    #[test]
    fn zeros_in_place_of_data_are_invented() {
        let mut state = prefix(2);
        state[64..128].fill(0);
        assert!(matches!(three().settle(&state, 0o644, 0), Err(Wrong::Invented(_))));
        let mut long = prefix(2);
        long.extend([0; 100]);
        assert!(matches!(three().settle(&long, 0o644, 0), Err(Wrong::Invented(_))));
    }

    #[test]
    fn a_rename_over_a_name_keeps_the_whole_file() {
        let mut content = three();
        content.begin_replace(7);
        assert!(content.clone().settle(&prefix(1), 0o644, 7).is_ok());
        assert!(matches!(content.clone().settle(&prefix(1), 0o644, 8), Err(Wrong::Lost(_))));
        assert!(content.settle(&prefix(2), 0o644, 8).is_ok());
    }

    #[test]
    fn a_long_write_may_be_cut_at_a_page() {
        let mut content = Content::new(1, 0o644);
        let bytes = content.begin_write(100, 200_000);
        let mut state = vec![0; 100];
        state.extend(&bytes[..PAGE as usize * 3 - 100]);
        assert!(content.clone().settle(&state, 0o644, 0).is_ok());
        state.push(bytes[PAGE as usize * 3 - 100]);
        assert!(matches!(content.settle(&state, 0o644, 0), Err(Wrong::Lost(_))));
    }
}
