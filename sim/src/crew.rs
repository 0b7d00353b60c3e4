//! A crew: several tasks that change the same few names at once, in short bursts.
//!
//! Owns: promise 2 (prefix) for names that several change at once; that their answers have an order.
//! Leaves to others: finding the orders (`linear`), names of one application each (`apps`).
//!
//! Between two bursts nobody works, and what is found must be what one of the valid orders ends with. A crash leaves
//! what one of them goes through: at or after all that had returned before a sync that succeeded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kiseki_core::client::Client;
use kiseki_core::errno::Errno;
use kiseki_core::meta::RenameMode;
use kiseki_core::testkit::ops::{Op, RenameFlag, split};
use kiseki_core::types::{FileType, Ino};
use madsim::time;

use crate::dice::Dice;
use crate::faults::Fault;
use crate::kernel::CALLER;
use crate::linear::{Act, Answer, Call, Calls, Name, State, orders};
use crate::world::{LoggedEnv, World};

/// The directory of the crew, in which nothing else is.
pub const HOME: &str = "/x";
/// The directories in which names come and go.
const DIRS: [&str; 2] = ["/x/0", "/x/1"];
/// Files that are there for ever, to be given more names.
const FILES: [&str; 2] = ["/x/f", "/x/g"];
/// Names in each of the directories.
const NAMES: u64 = 2;
/// Calls of each task in a burst at most.
const CALLS: u64 = 3;
/// Bursts of one life at most: each is a search.
const BURSTS: usize = 8;
/// Longest pause between two bursts.
const PAUSE: Duration = Duration::from_millis(300);
/// Longest pause between two calls.
const BETWEEN: Duration = Duration::from_millis(3);

/// What the crew knows, over all lives; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Crew(Arc<Mutex<Knowledge>>);

#[derive(Debug, Default)]
struct Knowledge {
    /// Where the last burst began.
    first: State,
    /// The bursts of this life that have ended: all states that a valid order goes through.
    past: Vec<Vec<(Calls, State)>>,
    /// The burst under way.
    calls: Vec<Call>,
    steps: u64,
    /// A crash goes not back before these calls of this burst.
    durable: (usize, Calls),
}

impl Knowledge {
    fn step(&mut self) -> u64 {
        self.steps += 1;
        self.steps
    }

    /// The calls that have returned.
    fn returned(&self) -> Calls {
        (0..self.calls.len()).filter(|&at| self.calls[at].end.is_some()).map(|at| 1 << at).sum()
    }
}

/// Inodes of the directories and of the files.
#[derive(Clone, Copy, Debug)]
struct Places {
    dirs: [Ino; 2],
    files: [Ino; 2],
}

impl Crew {
    fn knowledge(&self) -> MutexGuard<'_, Knowledge> {
        self.0.lock().unwrap()
    }

    /// Makes what is there from the beginning.
    pub async fn settle(client: &Client<LoggedEnv>) -> Result<(), Errno> {
        let home = client.mknod(CALLER, Ino::ROOT, &HOME.as_bytes()[1..], FileType::Directory, 0o755, 0).await?;
        let all = DIRS.map(|path| (path, FileType::Directory)).into_iter();
        for (path, kind) in all.chain(FILES.map(|path| (path, FileType::Regular))) {
            client.mknod(CALLER, home.ino, split(path).1.as_bytes(), kind, 0o755, 0).await?;
        }
        Ok(())
    }

    /// Everything done so far is durable.
    pub fn all_durable(&self) {
        let mut known = self.knowledge();
        known.durable = (known.past.len(), known.returned());
    }

    /// A life begins: what is found must be what a valid order of the last one's calls goes through.
    pub async fn verify(&self, client: &Client<LoggedEnv>, world: &World) -> Result<(), String> {
        let found = self.look(client, world).await?;
        let full = world.faults.level(Fault::InodesShort) > 0;
        let mut known = self.knowledge();
        let Knowledge { first, past, calls, durable, .. } = std::mem::take(&mut *known);
        let mut all = past;
        if all.is_empty() && calls.is_empty() && first.is_seen_as(&BTreeMap::new()).is_some() {
            // The first life: what was made before it.
            known.first = made(&found)?;
            return Ok(());
        }
        let last = orders(&first, &calls, full);
        if last.is_empty() {
            return Err(format!("the crew's calls have no order: {calls:?}"));
        }
        all.push(last);
        let held =
            |burst: usize, calls: Calls| durable.0 < burst || burst == durable.0 && calls & durable.1 == durable.1;
        let states = all.iter().enumerate().rev().flat_map(|(burst, states)| states.iter().map(move |s| (burst, s)));
        let allowed = states.filter(|(burst, (calls, _))| held(*burst, *calls));
        let state = allowed.filter_map(|(_, (_, state))| state.is_seen_as(&found)).next();
        known.first = state.ok_or_else(|| {
            format!("the crew's names are as after no order from {durable:?} on: {found:?}, last {calls:?}")
        })?;
        Ok(())
    }

    /// Works in bursts, until it is told to stop or the life ends.
    pub async fn run(self, client: Client<LoggedEnv>, world: World, dice: Dice, stop: Arc<AtomicBool>) {
        let over = || stop.load(Ordering::Relaxed) || world.meta.failed() || world.alarm.raised().is_some();
        let Ok(places) = places(&client).await else { return };
        for _ in 0..BURSTS {
            time::sleep(dice.time_below(PAUSE)).await;
            if over() {
                break;
            }
            self.burst(&client, &world, &dice, places).await;
            if world.meta.failed() {
                break;
            }
            if let Err(what) = self.judge(&client, &world).await {
                world.alarm.raise(what);
            }
        }
    }

    async fn burst(&self, client: &Client<LoggedEnv>, world: &World, dice: &Dice, places: Places) {
        let tasks = 2 + dice.below(3);
        let tasks: Vec<_> = (0..tasks)
            .map(|task| {
                let (this, client, world, dice) = (self.clone(), client.clone(), world.clone(), dice.clone());
                let acts: Vec<Option<Act>> = (0..1 + dice.below(CALLS)).map(|_| draw(&dice)).collect();
                madsim::task::spawn(async move {
                    for act in acts {
                        if dice.chance(500) {
                            time::sleep(dice.time_below(BETWEEN)).await;
                        }
                        match act {
                            Some(act) => this.call(&client, &world, task, act, places).await,
                            None => this.sync(&client, places.dirs[0]).await,
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            let _ = task.await;
        }
    }

    /// Syncs a directory, and with it whatever had returned.
    async fn sync(&self, client: &Client<LoggedEnv>, dir: Ino) {
        let covered = {
            let known = self.knowledge();
            (known.past.len(), known.returned())
        };
        if client.fsyncdir(dir).await.is_ok() {
            let mut known = self.knowledge();
            known.durable = match known.durable {
                (burst, calls) if burst == covered.0 => (burst, calls | covered.1),
                _ => covered,
            };
        }
    }

    async fn call(&self, client: &Client<LoggedEnv>, world: &World, task: u64, act: Act, places: Places) {
        let at = {
            let mut known = self.knowledge();
            let start = known.step();
            known.calls.push(Call { act: act.clone(), start, end: None });
            known.calls.len() - 1
        };
        world.trace.add(format!("crew {task} {act:?}"));
        let answer = carry_out(client, &act, places).await;
        world.trace.add(format!("crew {task} -> {answer:?}"));
        // Nobody knows what a call that failed in the world has done.
        if answer != Answer::Failed(Errno::EIO) {
            if answer == Answer::Failed(Errno::ENOSPC) {
                world.faults.struck_by(Fault::InodesShort);
            }
            let mut known = self.knowledge();
            let end = known.step();
            known.calls[at].end = Some((end, answer));
        }
    }

    /// After a burst: the calls have an order, and what is found is what one of them ends with.
    async fn judge(&self, client: &Client<LoggedEnv>, world: &World) -> Result<(), String> {
        let found = match self.look(client, world).await {
            Err(_) if world.meta.failed() => return Ok(()),
            found => found?,
        };
        let full = world.faults.level(Fault::InodesShort) > 0;
        let mut known = self.knowledge();
        let states = orders(&known.first, &known.calls, full);
        if states.is_empty() {
            return Err(format!("the crew's calls have no order: {:?}", known.calls));
        }
        let returned = known.returned();
        let ends = states.iter().filter(|(calls, _)| calls & returned == returned);
        let Some(state) = ends.filter_map(|(_, state)| state.is_seen_as(&found)).next() else {
            return Err(format!("the crew's names are as after no order: {found:?} after {:?}", known.calls));
        };
        known.first = state;
        known.past.push(states);
        known.calls.clear();
        Ok(())
    }

    /// All names below the home.
    async fn look(&self, client: &Client<LoggedEnv>, world: &World) -> Result<BTreeMap<String, Name>, String> {
        for attempt in 0.. {
            match look(client).await {
                Err(Errno::EIO) if world.faults.may_strike(Fault::ReadFailed) && attempt < 100 => {}
                found => return found.map_err(|errno| format!("looking at the crew's names answered {errno:?}")),
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// The state in which the names are as `found`: with nothing but what the crew begins with.
fn made(found: &BTreeMap<String, Name>) -> Result<State, String> {
    let ops = [HOME].into_iter().chain(DIRS).map(|path| Op::Mkdir { path: path.into(), mode: 0o755 });
    let file = |path: &str| Op::Mknod { path: path.into(), kind: FileType::Regular, mode: 0o755, rdev: 0 };
    let calls: Vec<Call> = ops
        .chain(FILES.map(file))
        .zip(0..)
        .map(|(op, at)| Call { act: Act::Change(op), start: 2 * at, end: Some((2 * at + 1, Answer::Done(None))) })
        .collect();
    let states = orders(&State::new(), &calls, false);
    let seen = states.iter().filter(|(done, _)| done.count_ones() as usize == calls.len());
    let state = seen.filter_map(|(_, state)| state.is_seen_as(found)).next();
    state.ok_or_else(|| format!("the crew begins with {found:?}"))
}

/// A call; none: a sync.
fn draw(dice: &Dice) -> Option<Act> {
    let dir = || DIRS[dice.below(2) as usize].to_string();
    let path = || format!("{}/n{}", dir(), dice.below(NAMES));
    let flag = || [RenameFlag::Replace, RenameFlag::NoReplace, RenameFlag::Exchange][dice.below(3) as usize];
    Some(match dice.below(20) {
        0..=2 => Act::Change(Op::Mknod { path: path(), kind: FileType::Regular, mode: 0o644, rdev: 0 }),
        3..=4 => Act::Change(Op::Mkdir { path: path(), mode: 0o755 }),
        5..=6 => Act::Change(Op::Link { from: FILES[dice.below(2) as usize].into(), to: path() }),
        7..=8 => Act::Change(Op::Unlink { path: path() }),
        9 => Act::Change(Op::Rmdir { path: path() }),
        10..=14 => Act::Change(Op::Rename { from: path(), to: path(), flag: flag() }),
        15..=16 => Act::Lookup(path()),
        17..=18 => Act::List(dir()),
        _ => return None,
    })
}

async fn places(client: &Client<LoggedEnv>) -> Result<Places, Errno> {
    let home = find(client, Ino::ROOT, HOME).await?;
    let mut inos = [Ino(0); 4];
    for (ino, path) in inos.iter_mut().zip(DIRS.into_iter().chain(FILES)) {
        *ino = find(client, home, path).await?;
    }
    Ok(Places { dirs: [inos[0], inos[1]], files: [inos[2], inos[3]] })
}

/// The inode of the last name of `path` in `dir`, which nobody holds.
async fn find(client: &Client<LoggedEnv>, dir: Ino, path: &str) -> Result<Ino, Errno> {
    let entry = client.lookup(dir, split(path).1.as_bytes()).await?;
    client.forget(entry.ino, 1);
    Ok(entry.ino)
}

async fn carry_out(client: &Client<LoggedEnv>, act: &Act, places: Places) -> Answer {
    let dir = |path: &str| if path.starts_with(DIRS[0]) { places.dirs[0] } else { places.dirs[1] };
    let name = |path: &str| split(path).1.as_bytes().to_vec();
    let answer = match act {
        Act::Lookup(path) => client.lookup(dir(path), &name(path)).await.map(|entry| {
            client.forget(entry.ino, 1);
            Answer::Found(entry.ino, entry.attr.kind)
        }),
        Act::List(path) => client.readdir(dir(path), 0, 100).await.map(|page| {
            let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            Answer::Listed(page.iter().map(|entry| (text(&entry.name), entry.ino)).collect())
        }),
        Act::Change(op) => change(client, op, places, &dir, &name).await.map(|ino| {
            // Nobody holds what was made: it goes with its last name.
            ino.iter().for_each(|ino| client.forget(*ino, 1));
            Answer::Done(ino)
        }),
    };
    answer.unwrap_or_else(Answer::Failed)
}

async fn change(
    client: &Client<LoggedEnv>,
    op: &Op,
    places: Places,
    dir: &impl Fn(&str) -> Ino,
    name: &impl Fn(&str) -> Vec<u8>,
) -> Result<Option<Ino>, Errno> {
    let made = if let Op::Mknod { path, kind, mode, .. } = op {
        client.mknod(CALLER, dir(path), &name(path), *kind, *mode, 0).await?
    } else if let Op::Mkdir { path, mode } = op {
        client.mknod(CALLER, dir(path), &name(path), FileType::Directory, *mode, 0).await?
    } else if let Op::Link { from, to } = op {
        let file = if from == FILES[0] { places.files[0] } else { places.files[1] };
        client.link(file, dir(to), &name(to)).await?
    } else if let Op::Unlink { path } = op {
        return client.unlink(dir(path), &name(path)).await.map(|()| None);
    } else if let Op::Rmdir { path } = op {
        return client.rmdir(dir(path), &name(path)).await.map(|()| None);
    } else if let Op::Rename { from, to, flag } = op {
        let mode = match flag {
            RenameFlag::Replace | RenameFlag::Whiteout => RenameMode::Replace,
            RenameFlag::NoReplace => RenameMode::NoReplace,
            RenameFlag::Exchange => RenameMode::Exchange,
        };
        return client.rename(dir(from), &name(from), dir(to), &name(to), mode).await.map(|()| None);
    } else {
        unreachable!("a crew does not draw {op:?}")
    };
    Ok(Some(made.ino))
}

async fn look(client: &Client<LoggedEnv>) -> Result<BTreeMap<String, Name>, Errno> {
    let mut found = BTreeMap::new();
    let home = find(client, Ino::ROOT, HOME).await?;
    let mut todo = vec![(HOME.to_string(), home)];
    while let Some((path, ino)) = todo.pop() {
        let attr = client.getattr(ino).await?;
        if attr.kind == FileType::Directory {
            for entry in client.readdir(ino, 0, 100).await? {
                todo.push((format!("{path}/{}", String::from_utf8_lossy(&entry.name)), entry.ino));
            }
        }
        found.insert(path, Name { ino, kind: attr.kind, nlink: attr.nlink });
    }
    Ok(found)
}
