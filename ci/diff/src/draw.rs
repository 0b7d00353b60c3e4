//! Choosing the next call: what is known of the tree, and the pieces that calls are made of.
//!
//! Owns: what the reference side told (`Known`), chance, paths, offsets, lengths, modes. Leaves to others: the calls
//! (`kinds`), making them (`worker`).
//!
//! Invariants
//! - A draw depends on the seed and on the answers of the reference side alone: the same seed draws the same calls.
//! - A kind that has failed too often is drawn with care: on what is there, by root.

use std::collections::BTreeMap;

use kiseki_core::testkit::ops::Source;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::call::{Answer, At, Base, Call, SLOTS, Step, Target};
use crate::kinds::KINDS;
use crate::side::USERS;
use crate::walk::Entry;

/// Names in the tree above which removing is preferred.
const CROWDED: usize = 90;
/// Directories below directories.
const DEPTH_MAX: usize = 4;
/// Calls of one kind that succeed, in percent, below which it is drawn with care.
const CAREFUL_PERCENT: u64 = 66;
/// Writes end below this.
pub(crate) const LENGTH_MAX: u64 = 6 << 20;
/// Sizes at whose borders things happen: pages, frames, requests, blocks.
const BORDERS: [u64; 5] = [4096, 65536, 131_072, 1 << 20, 4 << 20];
/// A page.
pub(crate) const PAGE: u64 = 4096;

/// Seeded chance.
#[derive(Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// For episode `episode` of `seed`.
    pub(crate) fn of(seed: u64, episode: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(episode);
        Self(rng)
    }
}

impl Source for Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }
}

/// What a worker has open, on the reference side.
#[derive(Clone, Debug)]
pub(crate) struct OpenFile {
    /// Where it was when it was opened.
    pub(crate) path: String,
    pub(crate) ino: u64,
    /// Bits of S_IFMT.
    pub(crate) kind: u32,
    pub(crate) flags: i32,
}

impl OpenFile {
    pub(crate) fn is_regular(&self) -> bool {
        self.kind == libc::S_IFREG && !self.is_path_only()
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == libc::S_IFDIR && !self.is_path_only()
    }

    pub(crate) fn is_path_only(&self) -> bool {
        self.flags & libc::O_PATH != 0
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.flags & libc::O_DIRECT != 0
    }

    pub(crate) fn is_appending(&self) -> bool {
        self.flags & libc::O_APPEND != 0
    }

    pub(crate) fn can_read(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    pub(crate) fn can_write(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

/// What a worker holds, on the reference side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holding {
    pub(crate) slots: [Option<OpenFile>; SLOTS],
    /// Its working directory below the root; `None` if that was removed.
    pub(crate) cwd: Option<String>,
    pub(crate) runs: bool,
}

/// How often a kind was drawn, and how often it succeeded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) drawn: u64,
    pub(crate) succeeded: u64,
}

/// Counts by kind, over all episodes.
pub(crate) type Counts = BTreeMap<&'static str, Count>;

/// Draws calls for one episode.
#[derive(Debug)]
pub(crate) struct Draw<'a> {
    pub(crate) dice: Dice,
    pub(crate) tree: Vec<Entry>,
    pub(crate) holdings: Vec<Holding>,
    /// Who makes the call that is being drawn.
    pub(crate) worker: usize,
    pub(crate) careful: bool,
    pub(crate) writes: u64,
    counts: &'a mut Counts,
    without: &'a [String],
    recent: [u64; 6],
    /// Extended attributes that were set: on what, and their names.
    attributes: Vec<(Target, String)>,
    /// Programs that were made: where, and their lengths.
    pub(crate) programs: Vec<(String, u64)>,
    /// ACLs that were set: on what, and whether as a default.
    pub(crate) acls: Vec<(String, bool)>,
}

impl<'a> Draw<'a> {
    /// For episode `episode` of `seed`. `without`: kinds that are left out.
    pub(crate) fn new(seed: u64, episode: u64, counts: &'a mut Counts, without: &'a [String]) -> Self {
        let home = Holding { cwd: Some(String::new()), ..Holding::default() };
        Self {
            dice: Dice::of(seed, episode),
            tree: vec![],
            holdings: vec![home; USERS.len()],
            worker: 0,
            careful: false,
            writes: 0,
            counts,
            without,
            recent: [0; 6],
            attributes: vec![],
            programs: vec![],
            acls: vec![],
        }
    }

    /// The next call, and its kind.
    pub(crate) fn step(&mut self) -> (&'static str, Step) {
        loop {
            let kind = self.kind();
            self.careful = self.is_careful(kind);
            self.worker = if self.careful && self.dice.chance(60) { 0 } else { self.below(USERS.len()) };
            if let Some(call) = self.call(kind) {
                self.counts.entry(kind).or_default().drawn += 1;
                return (kind, Step { worker: self.worker, call });
            }
        }
    }

    fn kind(&mut self) -> &'static str {
        let drawable = |kind: &&&str| !self.without.iter().any(|without| without == *kind);
        let kinds: Vec<&'static str> = KINDS.iter().filter(drawable).copied().collect();
        if CROWDED < self.tree.len() && self.dice.chance(25) {
            return if self.dice.chance(70) { "unlink" } else { "rmdir" };
        }
        // Some were just not possible: they catch up.
        if self.dice.chance(30) {
            let drawn = |kind: &&str| self.counts.get(kind).map_or(0, |count| count.drawn);
            return kinds.iter().copied().min_by_key(drawn).unwrap_or("stat");
        }
        kinds[self.below(kinds.len())]
    }

    /// A kind that has failed too often.
    pub(crate) fn is_careful(&self, kind: &str) -> bool {
        let count = self.counts.get(kind).copied().unwrap_or_default();
        count.succeeded * 100 <= count.drawn * CAREFUL_PERCENT
    }

    /// A call that was drawn elsewhere, by root.
    pub(crate) fn drawn(&mut self, (kind, call): (&'static str, Call)) -> (&'static str, Step) {
        self.counts.entry(kind).or_default().drawn += 1;
        (kind, Step { worker: 0, call })
    }

    /// Learns from an answer of the reference side.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most calls tell nothing that later ones need")]
    pub(crate) fn learn(&mut self, kind: &'static str, step: &Step, answer: &Answer) {
        if !answer.is_success() {
            return;
        }
        self.counts.entry(kind).or_default().succeeded += 1;
        let opened = |path: String, flags: i32| {
            let mode = answer.text.strip_prefix("mode ").and_then(|rest| rest.split(' ').next());
            let mode = mode.and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0);
            Some(OpenFile { path, ino: answer.ino, kind: mode & libc::S_IFMT, flags })
        };
        let path = match &step.call {
            Call::Open { at, .. } => self.resolve(step.worker, at),
            _ => String::new(),
        };
        match &step.call {
            Call::SetXattr { on, name, .. } => {
                let on = self.rooted(step.worker, on);
                self.attributes.push((on, name.clone()));
            }
            Call::SetAcl { at, default, .. } => {
                let path = self.resolve(step.worker, at);
                self.acls.push((path, *default));
            }
            Call::Program { at } => {
                let path = self.resolve(step.worker, at);
                self.programs.push((path, answer.value as u64));
            }
            Call::RemoveXattr { on, name } => {
                let gone = (self.rooted(step.worker, on), name.clone());
                self.attributes.retain(|set| *set != gone);
            }
            _ => {}
        }
        let holding = &mut self.holdings[step.worker];
        match &step.call {
            Call::Open { flags, slot, .. } => holding.slots[*slot] = opened(path, *flags),
            Call::Reopen { from, flags, slot } => {
                let path = holding.slots[*from].as_ref().map(|open| open.path.clone()).unwrap_or_default();
                holding.slots[*slot] = opened(path, *flags);
            }
            Call::Close { slot } => holding.slots[*slot] = None,
            Call::SetStatus { slot, flags } => {
                if let Some(open) = &mut holding.slots[*slot] {
                    let settable = libc::O_APPEND | libc::O_NOATIME | libc::O_NONBLOCK;
                    open.flags = (open.flags & !settable) | (flags & settable);
                }
            }
            Call::Chdir { .. } | Call::Fchdir { .. } => {
                holding.cwd =
                    (!answer.text.starts_with('/') && !answer.text.starts_with('(')).then(|| answer.text.clone());
            }
            Call::Start { .. } => holding.runs = true,
            Call::Stop => holding.runs = false,
            _ => {}
        }
    }

    /// Where a path leads, if no link is on the way.
    fn resolve(&self, worker: usize, at: &At) -> String {
        let holding = &self.holdings[worker];
        let begin = match at.base {
            Base::Root => String::new(),
            Base::Cwd => holding.cwd.clone().unwrap_or_default(),
            Base::Slot(slot) => holding.slots[slot].as_ref().map(|open| open.path.clone()).unwrap_or_default(),
        };
        let mut parts: Vec<&str> = begin.split('/').filter(|part| !part.is_empty()).collect();
        for part in at.path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                name => parts.push(name),
            }
        }
        parts.join("/")
    }

    /// The same file by its path from the root.
    fn rooted(&self, worker: usize, on: &Target) -> Target {
        let root = |path: String| At { base: Base::Root, path };
        match on {
            Target::Path(at) => Target::Path(root(self.resolve(worker, at))),
            Target::Link(at) => Target::Link(root(self.resolve(worker, at))),
            Target::Slot(slot) => {
                let open = self.holdings[worker].slots[*slot].as_ref();
                Target::Path(root(open.map(|open| open.path.clone()).unwrap_or_default()))
            }
        }
    }

    /// An extended attribute that was set, mostly a recent one.
    pub(crate) fn attribute(&mut self) -> Option<(Target, String)> {
        let tree = &self.tree;
        let path = |on: &Target| match on {
            Target::Path(at) | Target::Link(at) => at.path.clone(),
            Target::Slot(_) => String::new(),
        };
        self.attributes.retain(|(on, _)| tree.iter().any(|entry| entry.path == path(on)));
        let recent = self.attributes.len().saturating_sub(12);
        if self.attributes.is_empty() {
            return None;
        }
        let index = recent + self.below(self.attributes.len() - recent);
        Some(self.attributes[index].clone())
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.dice.below(bound as u64) as usize
    }

    pub(crate) fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A path of something that `wanted` likes.
    pub(crate) fn existing(&mut self, wanted: impl Fn(&Entry) -> bool) -> Option<String> {
        let found: Vec<usize> = (0..self.tree.len())
            .filter(|&index| !self.tree[index].path.is_empty() && wanted(&self.tree[index]))
            .collect();
        if !self.careful && self.dice.chance(8) {
            return Some(self.fresh_path());
        }
        if found.is_empty() {
            return None;
        }
        let index = found[self.below(found.len())];
        Some(self.tree[index].path.clone())
    }

    pub(crate) fn anything(&mut self) -> Option<At> {
        let path = self.existing(|_| true)?;
        Some(self.at(&path))
    }

    pub(crate) fn regular(&mut self) -> Option<At> {
        let path = self.existing(|entry| entry.kind() == libc::S_IFREG)?;
        Some(self.at(&path))
    }

    pub(crate) fn directory(&mut self) -> Option<At> {
        if self.dice.chance(10) {
            return Some(self.at(""));
        }
        let path = self.existing(Entry::is_directory)?;
        Some(self.at(&path))
    }

    /// A path that is likely not there yet.
    pub(crate) fn fresh(&mut self) -> At {
        let path = self.fresh_path();
        self.at(&path)
    }

    pub(crate) fn fresh_path(&mut self) -> String {
        let deep = |entry: &&Entry| entry.is_directory() && entry.path.split('/').count() < DEPTH_MAX;
        let directories: Vec<String> = self.tree.iter().filter(deep).map(|entry| entry.path.clone()).collect();
        for _ in 0..20 {
            let directory = if directories.is_empty() { "" } else { &directories[self.below(directories.len())] };
            let directory = directory.to_owned();
            let name = self.name();
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            if !self.careful && self.dice.chance(15) || !self.tree.iter().any(|entry| entry.path == path) {
                return path;
            }
        }
        format!("late{}", self.dice.below(1000))
    }

    /// Mostly one of a few, so that names meet.
    fn name(&mut self) -> String {
        if self.dice.chance(92) || self.careful {
            return format!("n{}", self.dice.below(9));
        }
        match self.dice.below(9) {
            0 => "x".repeat(255),
            1 => "y".repeat(256),
            2 => "\u{ff}\u{fe}\u{80}".into(),
            3 => "a\nb\t\\".into(),
            4 => " ".into(),
            5 => "-rf".into(),
            6 => "...".into(),
            7 => "\u{e3}\u{81}\u{8d}\u{e5}".into(),
            _ => "\u{1}*?\"'".into(),
        }
    }

    /// A way to a path: from the root, from the working directory, from an open directory.
    pub(crate) fn at(&mut self, path: &str) -> At {
        let holding = &self.holdings[self.worker];
        let choice = self.dice.below(100);
        let mut at = match (choice, &holding.cwd) {
            (0..=34, Some(cwd)) => At { base: Base::Cwd, path: relative(cwd, path) },
            (35..=49, _) => {
                let leads = |slot: &usize| {
                    let open = holding.slots[*slot].as_ref();
                    open.is_some_and(|open| open.kind == libc::S_IFDIR && !open.path.is_empty())
                };
                match (0..SLOTS).find(leads) {
                    Some(slot) => {
                        let from = holding.slots[slot].as_ref().map(|open| open.path.clone()).unwrap_or_default();
                        At { base: Base::Slot(slot), path: relative(&from, path) }
                    }
                    None => At { base: Base::Root, path: path.to_owned() },
                }
            }
            _ => At { base: Base::Root, path: path.to_owned() },
        };
        if at.path.is_empty() {
            at.path = ".".into();
        }
        if !self.careful && self.dice.chance(7) {
            at.path = self.decorate(at.path);
        }
        at
    }

    /// The same path in another spelling, or one with a mistake in it.
    fn decorate(&mut self, path: String) -> String {
        match self.dice.below(9) {
            0 => path + "/",
            1 => path + "/.",
            2 => path + "/..",
            3 => format!("./{path}"),
            4 => path.replace('/', "//"),
            5 => format!("n0/../{path}"),
            6 => path + "/n1",
            // As long as a path may be, or one byte longer.
            7 => "./".repeat((4096 - path.len()) / 2) + &path,
            _ => String::new(),
        }
    }

    /// A worker's open file that `wanted` likes; that worker makes the call.
    pub(crate) fn slot(&mut self, wanted: impl Fn(&OpenFile) -> bool) -> Option<usize> {
        let careless = !self.careful && self.dice.chance(8);
        let mut found = vec![];
        for (worker, holding) in self.holdings.iter().enumerate() {
            for (slot, open) in holding.slots.iter().enumerate() {
                if open.as_ref().is_some_and(|open| careless && !open.is_direct() || wanted(open)) {
                    found.push((worker, slot));
                }
            }
        }
        if !self.careful && self.dice.chance(1) {
            return Some(self.below(SLOTS)).filter(|&slot| self.holdings[self.worker].slots[slot].is_none());
        }
        if found.is_empty() {
            return None;
        }
        let (worker, slot) = self.one_of(&found);
        self.worker = worker;
        Some(slot)
    }

    /// What a slot of the worker that makes the call holds.
    pub(crate) fn open_file(&self, slot: usize) -> Option<&OpenFile> {
        self.holdings[self.worker].slots[slot].as_ref()
    }

    /// The file behind a slot, if it has a name.
    pub(crate) fn named(&self, slot: usize) -> Option<&Entry> {
        let open = self.open_file(slot)?;
        self.tree.iter().find(|entry| entry.ino == open.ino)
    }

    /// Length of the file behind a slot, if it has a name.
    pub(crate) fn length(&self, slot: usize) -> u64 {
        self.named(slot).map_or(0, |entry| entry.size)
    }

    /// Whether the kernel of a local file system would refuse what FUSE's cannot know: a flag was set on an open file.
    /// (README.md, "Flags")
    pub(crate) fn is_fixed(&self, slot: usize) -> bool {
        self.named(slot).is_some_and(|entry| entry.fixed)
    }

    /// A slot for what is to be opened.
    pub(crate) fn free_slot(&mut self) -> usize {
        let free = (0..SLOTS).find(|&slot| self.holdings[self.worker].slots[slot].is_none());
        free.unwrap_or_else(|| self.below(SLOTS))
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// Where a read or a write begins: near the last ones, near the file's end, near borders.
    pub(crate) fn offset(&mut self, slot: usize) -> u64 {
        let length = self.length(slot);
        let offset = match self.dice.below(100) {
            0..=29 => self.one_of(&self.recent.clone()),
            30..=49 => length,
            50..=69 => length.saturating_sub(1 + self.dice.below(9000)),
            70..=79 => {
                let border = self.one_of(&BORDERS) * (1 + self.dice.below(2));
                border.saturating_sub(1) + self.dice.below(3)
            }
            80..=96 => self.dice.below(200_000),
            _ => self.dice.below(LENGTH_MAX),
        };
        let offset = offset.min(LENGTH_MAX);
        if self.open_file(slot).is_some_and(OpenFile::is_direct) { offset / PAGE * PAGE } else { offset }
    }

    pub(crate) fn len(&mut self, slot: usize) -> u32 {
        let len = match self.dice.below(100) {
            0..=49 => 1 + self.dice.below(5000),
            50..=79 => 1 + self.dice.below(70_000),
            80..=89 => self.one_of(&BORDERS[..3]),
            90 => 0,
            _ => 1 + self.dice.below(300_000),
        };
        let direct = self.open_file(slot).is_some_and(OpenFile::is_direct);
        if direct { (len.div_ceil(PAGE) * PAGE) as u32 } else { len as u32 }
    }

    /// Remembers where bytes were written.
    pub(crate) fn wrote(&mut self, offset: u64, len: u64) {
        self.recent.rotate_right(2);
        (self.recent[0], self.recent[1]) = (offset, offset + len);
    }

    /// Permissions: mostly such that others can go on with them.
    pub(crate) fn mode(&mut self) -> u32 {
        match self.dice.below(10) {
            0..=4 => self.one_of(&[0o644, 0o666, 0o755, 0o777, 0o700, 0o600]),
            5..=7 => 0o700 | self.dice.below(0o100) as u32,
            8 => 0o700 | self.dice.below(0o10000) as u32,
            _ => self.dice.below(0o10000) as u32,
        }
    }

    pub(crate) fn owner(&mut self) -> u32 {
        match self.dice.below(10) {
            0..=1 => u32::MAX,
            2 => 0,
            3 => 4_000_000_000,
            _ => {
                let user = self.below(USERS.len());
                USERS[user].0
            }
        }
    }

    pub(crate) fn group(&mut self) -> u32 {
        match self.dice.below(10) {
            0..=1 => u32::MAX,
            2 => 0,
            3 => 65_534,
            4..=6 => crate::side::COMMON_GROUP,
            _ => {
                let user = self.below(USERS.len());
                USERS[user].1
            }
        }
    }
}

/// `to` as seen from the directory `from`, both below the root, through parents where it must be.
fn relative(from: &str, to: &str) -> String {
    let parts = |path: &'_ str| path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let (from, to) = (parts(from), parts(to));
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let ups = std::iter::repeat_n("..".to_owned(), from.len() - common);
    ups.chain(to[common..].iter().cloned()).collect::<Vec<_>>().join("/")
}
