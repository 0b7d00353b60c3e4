//! A writer: changes files in a folder of its own, one call after another, and remembers what each call promised.
//!
//! Owns: which operations happen. Leaves to others: what one file may contain (`content`), which names there may be
//! (`names`), when the crash comes (`run`), and the comparison after it (`judge`).
//!
//! Its memory is outside the volume: the process that holds it survives every crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use crate::content::{Content, Wrong};
use crate::names::{NameOp, Names, Node};
use crate::stamp::Rng;
use crate::sys;

/// Bounds that keep the volume small however long a run is.
const FILES_MAX: usize = 12;
const SMALL_FILE_MAX: u64 = 768 << 10;
/// Every tenth file may grow past two blocks.
const LARGE_FILE_MAX: u64 = 10 << 20;
/// Changes that may wait for an fsync. (bounds what the judge must try)
const PENDING_MAX: usize = 300;

/// What all writers of a run share.
pub(crate) struct Shared {
    /// Begin of the run, for messages.
    pub(crate) began: Instant,
    /// Ticks at the begin and end of each namespace operation.
    clock: AtomicU64,
    /// Changes and namespace operations that an fsync has promised.
    pub(crate) acked: AtomicU64,
    /// From here on errors are expected: the mount is going down.
    pub(crate) crashing: AtomicBool,
    /// An error that came before any crash.
    pub(crate) failed: Mutex<Option<String>>,
    /// Index into `PHASES` of what the writers should do more of; above: nothing special.
    pub(crate) bias: AtomicU8,
    next_file: AtomicU64,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            clock: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            crashing: AtomicBool::new(false),
            failed: Mutex::new(None),
            bias: AtomicU8::new(u8::MAX),
            next_file: AtomicU64::new(0),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// The identity in the stamps of the next file.
    pub(crate) fn file_id(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Why a writer stopped.
pub(crate) enum Stop {
    Failed(&'static str, io::Error),
    Wrong(String, Wrong),
}

pub(crate) struct Writer<'a> {
    pub(crate) shared: &'a Shared,
    rng: Rng,
    pub(crate) dir: PathBuf,
    pub(crate) names: Names,
    /// By inode; also files whose removal a crash may undo, and those that only a handle holds.
    pub(crate) files: BTreeMap<u64, Content>,
    pub(crate) open: BTreeMap<u64, Handle>,
    next_name: u64,
}

pub(crate) struct Handle {
    file: File,
    /// O_SYNC: each write is its own fsync.
    sync: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    WriteSmall,
    WriteMedium,
    WriteLarge,
    Truncate,
    Fsync,
    FsyncFolder,
    Create,
    Rename,
    Replace,
    Exchange,
    Unlink,
    Folders,
    Link,
    Chmod,
    Close,
    Read,
    Held,
}

/// Relative weights. Large writes are rare because they are large.
const ACTIONS: [(Action, u64); 17] = [
    (Action::WriteSmall, 30),
    (Action::WriteMedium, 12),
    (Action::WriteLarge, 3),
    (Action::Truncate, 8),
    (Action::Fsync, 16),
    (Action::FsyncFolder, 3),
    (Action::Create, 8),
    (Action::Rename, 4),
    (Action::Replace, 8),
    (Action::Exchange, 2),
    (Action::Unlink, 4),
    (Action::Folders, 3),
    (Action::Link, 2),
    (Action::Chmod, 2),
    (Action::Close, 5),
    (Action::Read, 8),
    (Action::Held, 4),
];

pub(crate) type Step = Result<(), Stop>;

fn at<T>(what: &'static str, result: io::Result<T>) -> Result<T, Stop> {
    result.map_err(|error| Stop::Failed(what, error))
}

impl<'a> Writer<'a> {
    pub(crate) fn new(shared: &'a Shared, mnt: &Path, id: u64, seed: u64) -> Self {
        let dir = mnt.join(format!("writer{id}"));
        let rng = Rng::new(seed ^ (id + 1) << 32);
        let (names, files, open) = (Names::default(), BTreeMap::new(), BTreeMap::new());
        Self { shared, rng, dir, names, files, open, next_name: 0 }
    }

    /// Makes the writer's folder, durably, before any crash.
    pub(crate) fn set_up(&self) -> io::Result<()> {
        fs::create_dir(&self.dir)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Works until the first error; returns what was wrong, if it is not the crash.
    pub(crate) fn run(&mut self) -> Option<(String, Wrong)> {
        loop {
            let text = match self.step() {
                Ok(()) => continue,
                Err(Stop::Failed(..)) if self.shared.crashing.load(Ordering::SeqCst) => return None,
                Err(Stop::Failed(what, error)) => format!("{what} in {} failed: {error}", self.dir.display()),
                Err(Stop::Wrong(path, wrong)) => {
                    *self.shared.failed.lock().expect("no writer panics") = Some(format!("wrong bytes in {path}"));
                    return Some((self.dir.join(path).display().to_string(), wrong));
                }
            };
            *self.shared.failed.lock().expect("no writer panics") = Some(text);
            return None;
        }
    }

    pub(crate) fn step(&mut self) -> Step {
        let sum: u64 = ACTIONS.iter().map(|(_, weight)| weight).sum();
        let mut pick = self.rng.below(sum);
        let mut action = ACTIONS[0].0;
        for (candidate, weight) in ACTIONS {
            if pick < weight {
                action = candidate;
                break;
            }
            pick -= weight;
        }
        // Half of the work goes to the phase that the next crash should hit.
        if self.rng.chance(50) {
            action = match self.shared.bias.load(Ordering::Relaxed) {
                0 => Action::WriteMedium,
                1 => Action::WriteSmall,
                2 => Action::Truncate,
                3 => Action::Replace,
                _ => action,
            };
        }
        self.act(action)
    }

    fn act(&mut self, action: Action) -> Step {
        let small = self.rng.between(1, 6 << 10);
        let medium = self.rng.between(8 << 10, 200 << 10);
        let large = self.rng.between(1 << 20, 5 << 20);
        match action {
            Action::WriteSmall => self.write(small, false),
            Action::WriteMedium => self.write(medium, true),
            Action::WriteLarge => self.write(large, true),
            Action::Truncate => self.truncate(),
            Action::Fsync => match self.pick_file() {
                Some((path, ino)) => self.fsync(&path, ino),
                None => Ok(()),
            },
            Action::FsyncFolder => self.fsync_folder(),
            Action::Create => self.create().map(drop),
            Action::Rename => self.rename(),
            Action::Replace => self.replace(),
            Action::Exchange => self.exchange(),
            Action::Unlink => self.unlink(),
            Action::Folders => self.folders(),
            Action::Link => self.link(),
            Action::Chmod => self.chmod(),
            Action::Close => {
                self.open.pop_first();
                Ok(())
            }
            Action::Read => self.read(),
            Action::Held => self.held(),
        }
    }

    // Files

    fn write(&mut self, len: u64, append: bool) -> Step {
        let Some((path, ino)) = self.pick_file() else { return self.create().map(drop) };
        self.write_to(&path, ino, len, append)
    }

    fn write_to(&mut self, path: &str, ino: u64, len: u64, append: bool) -> Step {
        if self.files[&ino].pending() > PENDING_MAX {
            self.fsync(path, ino)?;
        }
        let end = self.files[&ino].now().len() as u64;
        let max = if ino.is_multiple_of(10) { LARGE_FILE_MAX } else { SMALL_FILE_MAX };
        let len = len.min(max);
        let mut offset = if append || self.rng.chance(30) { end } else { self.rng.below(end + 4096) };
        if offset + len > max {
            offset = self.rng.below(max - len + 1);
        }
        self.handle(path, ino)?;
        self.write_at(ino, offset, len)?;
        if self.open[&ino].sync { self.promised(path, ino) } else { Ok(()) }
    }

    fn write_at(&mut self, ino: u64, offset: u64, len: u64) -> Step {
        let content = self.files.get_mut(&ino).expect("a file of this writer");
        let bytes = content.begin_write(offset, len);
        at("write", self.open[&ino].file.write_all_at(&bytes, offset))?;
        content.answered();
        Ok(())
    }

    fn truncate(&mut self) -> Step {
        let Some((path, ino)) = self.pick_file() else { return Ok(()) };
        let end = self.files[&ino].now().len() as u64;
        // Mostly shorter; sometimes longer, which must read as zeros and never as what was there before.
        let len = if self.rng.chance(75) { self.rng.below(end + 1) } else { end + self.rng.below(20_000) };
        self.handle(&path, ino)?;
        let content = self.files.get_mut(&ino).expect("a file of this writer");
        content.begin_truncate(len);
        at("truncate", self.open[&ino].file.set_len(len))?;
        content.answered();
        if self.rng.chance(30) { self.fsync(&path, ino) } else { Ok(()) }
    }

    fn fsync(&mut self, path: &str, ino: u64) -> Step {
        // Sometimes by another descriptor than the writes': it must cover them all the same.
        if self.rng.chance(25) {
            let file = at("open", File::open(self.dir.join(path)))?;
            at("fsync", file.sync_all())?;
        } else {
            self.handle(path, ino)?;
            at("fsync", self.open[&ino].file.sync_all())?;
        }
        self.promised(path, ino)
    }

    /// An fsync of the file returned 0.
    pub(crate) fn promised(&mut self, path: &str, ino: u64) -> Step {
        let changes = self.files.get_mut(&ino).expect("a file of this writer").synced(self.shared.began.elapsed());
        let names = self.names.synced_path(path);
        self.shared.acked.fetch_add(changes + names, Ordering::Relaxed);
        Ok(())
    }

    fn chmod(&mut self) -> Step {
        let Some((path, ino)) = self.pick_file() else { return Ok(()) };
        let mode = [0o600, 0o640, 0o644, 0o755][self.rng.below(4) as usize];
        self.files.get_mut(&ino).expect("a file of this writer").begin_mode(mode);
        at("chmod", fs::set_permissions(self.dir.join(path), fs::Permissions::from_mode(mode)))
    }

    /// Compares a part of a file with what was accepted.
    fn read(&mut self) -> Step {
        let Some((path, ino)) = self.pick_file() else { return Ok(()) };
        self.handle(&path, ino)?;
        self.compare(&path, ino)
    }

    fn compare(&mut self, path: &str, ino: u64) -> Step {
        let expected = self.files[&ino].now();
        let offset = self.rng.below(expected.len() as u64 + 1);
        let mut bytes = vec![0; self.rng.between(1, 256 << 10) as usize];
        let file = &self.open[&ino].file;
        let mut len = 0;
        // A read may be short before the end of the file.
        while len < bytes.len() {
            match at("read", file.read_at(&mut bytes[len..], offset + len as u64))? {
                0 => break,
                count => len += count,
            }
        }
        let expected = &expected[offset as usize..];
        let expected = &expected[..expected.len().min(bytes.len())];
        if bytes[..len] == *expected {
            return Ok(());
        }
        let differs = bytes[..len].iter().zip(expected).position(|(a, b)| a != b).unwrap_or(len.min(expected.len()));
        let text =
            format!("a live read of {} bytes at {offset} differs {differs} bytes in ({len} came)", expected.len());
        Err(Stop::Wrong(path.into(), Wrong::Invented(text)))
    }

    /// Uses or lets go of a file that has no name left.
    fn held(&mut self) -> Step {
        let named: BTreeSet<u64> = self.names.now().values().map(|node| node.ino).collect();
        let held: Vec<u64> = self.open.keys().copied().filter(|ino| !named.contains(ino)).collect();
        let Some(ino) = held.first().copied() else { return self.unlink() };
        if held.len() > 3 || self.rng.chance(20) {
            self.open.remove(&ino);
            return Ok(());
        }
        let end = self.files[&ino].now().len() as u64;
        let len = self.rng.between(1, 100 << 10);
        self.write_at(ino, end.min(SMALL_FILE_MAX), len)?;
        if self.rng.chance(30) {
            at("fsync of an unlinked file", self.open[&ino].file.sync_all())?;
        }
        self.compare("(unlinked)", ino)
    }

    // Names

    fn create(&mut self) -> Result<(String, u64), Stop> {
        if self.file_paths().len() >= FILES_MAX {
            self.unlink()?;
        }
        let folder = self.pick_folder();
        self.next_name += 1;
        let path = join(&folder, &format!("f{}", self.next_name));
        let sync = self.rng.chance(8);
        let mut options = File::options();
        options.create_new(true).read(true).write(true).mode(0o644);
        if sync {
            options.custom_flags(libc::O_SYNC);
        }
        self.begin(NameOp::Add { path: path.clone(), node: Node { ino: 0, dir: false } });
        let file = at("create", options.open(self.dir.join(&path)))?;
        let answered = self.shared.tick();
        let found = at("fstat", file.metadata())?;
        self.names.answered(Some(found.ino()), answered);
        let content = Content::new(self.shared.file_id(), found.mode() & 0o7777);
        self.files.insert(found.ino(), content);
        self.open.insert(found.ino(), Handle { file, sync });
        Ok((path, found.ino()))
    }

    fn rename(&mut self) -> Step {
        let Some((from, _)) = self.pick_file() else { return Ok(()) };
        self.next_name += 1;
        let to = join(&self.pick_folder(), &format!("r{}", self.next_name));
        self.rename_call(from, to)
    }

    fn rename_call(&mut self, from: String, to: String) -> Step {
        self.begin(NameOp::Rename { from: from.clone(), to: to.clone() });
        at("rename", fs::rename(self.dir.join(from), self.dir.join(to)))?;
        self.end();
        Ok(())
    }

    /// Write a file, rename it over another, with or without fsync.
    fn replace(&mut self) -> Step {
        let Some((target, _)) = self.pick_file() else { return Ok(()) };
        let (path, ino) = self.create()?;
        for _ in 0..self.rng.between(1, 3) {
            let len = if self.rng.chance(70) { self.rng.between(1, 64 << 10) } else { self.rng.between(1, 700 << 10) };
            self.write_to(&path, ino, len, true)?;
        }
        if self.rng.chance(30) {
            self.fsync(&path, ino)?;
        }
        if self.rng.chance(50) {
            self.open.remove(&ino);
        }
        // The creation may have unlinked it, to make room.
        if !self.names.now().contains_key(&target) {
            return Ok(());
        }
        let number = self.names.next();
        self.files.get_mut(&ino).expect("just created").begin_replace(number);
        self.rename_call(path, target)
    }

    fn exchange(&mut self) -> Step {
        let (Some((a, first)), Some((b, second))) = (self.pick_file(), self.pick_file()) else { return Ok(()) };
        if first == second {
            return Ok(());
        }
        let number = self.names.next();
        for ino in [first, second] {
            self.files.get_mut(&ino).expect("a file of this writer").begin_replace(number);
        }
        self.begin(NameOp::Exchange { a: a.clone(), b: b.clone() });
        at("exchange", sys::exchange(&self.dir.join(a), &self.dir.join(b)))?;
        self.end();
        Ok(())
    }

    fn unlink(&mut self) -> Step {
        let Some((path, ino)) = self.pick_file() else { return Ok(()) };
        if self.rng.chance(40) {
            self.handle(&path, ino)?;
        } else {
            self.open.remove(&ino);
        }
        self.begin(NameOp::Remove { path: path.clone() });
        at("unlink", fs::remove_file(self.dir.join(path)))?;
        self.end();
        Ok(())
    }

    fn link(&mut self) -> Step {
        let Some((from, ino)) = self.pick_file() else { return Ok(()) };
        if self.file_paths().len() >= FILES_MAX {
            return Ok(());
        }
        self.next_name += 1;
        let path = join(&self.pick_folder(), &format!("l{}", self.next_name));
        self.begin(NameOp::Add { path: path.clone(), node: Node { ino, dir: false } });
        at("link", fs::hard_link(self.dir.join(from), self.dir.join(path)))?;
        self.end();
        Ok(())
    }

    /// Makes, moves or removes a folder.
    fn folders(&mut self) -> Step {
        let tree = self.names.now();
        let folders: Vec<String> = tree.iter().filter(|(_, node)| node.dir).map(|(path, _)| path.clone()).collect();
        let empty = |path: &String| !tree.keys().any(|name| name.starts_with(&format!("{path}/")));
        if folders.len() < 2 || (folders.len() < 4 && self.rng.chance(40)) {
            self.next_name += 1;
            let path = join(&self.pick_folder(), &format!("d{}", self.next_name));
            self.begin(NameOp::Add { path: path.clone(), node: Node { ino: 0, dir: true } });
            at("mkdir", fs::create_dir(self.dir.join(&path)))?;
            let answered = self.shared.tick();
            let found = at("stat", fs::metadata(self.dir.join(&path)))?;
            self.names.answered(Some(found.ino()), answered);
            return Ok(());
        }
        if let Some(path) = folders.iter().find(|path| empty(path)) {
            self.begin(NameOp::Remove { path: path.clone() });
            at("rmdir", fs::remove_dir(self.dir.join(path)))?;
            self.end();
            return Ok(());
        }
        self.next_name += 1;
        let from = folders[self.rng.below(folders.len() as u64) as usize].clone();
        let to = format!("m{}", self.next_name);
        self.rename_call(from, to)
    }

    fn fsync_folder(&mut self) -> Step {
        let path = self.pick_folder();
        let folder = at("open", File::open(self.dir.join(&path)))?;
        at("fsync of a folder", folder.sync_all())?;
        let names = self.names.synced_folder(&path);
        self.shared.acked.fetch_add(names, Ordering::Relaxed);
        Ok(())
    }

    fn begin(&mut self, op: NameOp) {
        self.names.begin(op, self.shared.tick());
    }

    fn end(&mut self) {
        self.names.answered(None, self.shared.tick());
    }

    // Choices

    pub(crate) fn file_paths(&self) -> Vec<(String, u64)> {
        let files = self.names.now().iter().filter(|(_, node)| !node.dir);
        files.map(|(path, node)| (path.clone(), node.ino)).collect()
    }

    fn pick_file(&mut self) -> Option<(String, u64)> {
        let mut files = self.file_paths();
        let index = self.rng.below(files.len().max(1) as u64) as usize;
        (index < files.len()).then(|| files.swap_remove(index))
    }

    /// The writer's own folder (empty) or one below.
    fn pick_folder(&mut self) -> String {
        let folders: Vec<&String> =
            self.names.now().iter().filter(|(_, node)| node.dir).map(|(path, _)| path).collect();
        match self.rng.below(folders.len() as u64 + 2) as usize {
            index if index < folders.len() => folders[index].clone(),
            _ => String::new(),
        }
    }

    fn handle(&mut self, path: &str, ino: u64) -> Step {
        if !self.open.contains_key(&ino) {
            let sync = self.rng.chance(8);
            let flags = if sync { libc::O_SYNC } else { 0 };
            let file = File::options().read(true).write(true).custom_flags(flags).open(self.dir.join(path));
            self.open.insert(ino, Handle { file: at("open", file)?, sync });
        }
        Ok(())
    }
}

pub(crate) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.into() } else { format!("{folder}/{name}") }
}
