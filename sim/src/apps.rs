//! Applications: each does seeded operations in its own part of the tree, and looks at everything after each.
//!
//! Owns: the course of an application's life, calls that go on in the background.
//! Leaves to others: which operations (`kiseki_core::testkit::ops`), whether the answers are right (`judge`).
//!
//! Invariants
//! - What an application knows outlives its node: the judge is told before a call and after it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kiseki_core::client::Client;
use kiseki_core::errno::Errno;
use kiseki_core::testkit::model::Model;
use kiseki_core::testkit::ops::{Generator, Op, SLOTS};
use kiseki_core::types::FileType;
use madsim::task::{JoinHandle, NodeId};
use madsim::time::{self, TimeHandle};

use crate::dice::Dice;
use crate::faults::Fault;
use crate::judge::{Durable, Judge};
use crate::kernel::Kernel;
use crate::observe::{Contents, Seen, Tree, observe, observe_open};
use crate::world::{LoggedEnv, Moment, World};

/// Shortest pause between two operations.
const BETWEEN: Duration = Duration::from_micros(1);
/// Longest pause between two operations.
const THINKING: Duration = Duration::from_millis(30);

/// An application, over all its lives.
pub struct App {
    name: String,
    judge: Mutex<Judge>,
    generator: Mutex<Generator<Dice>>,
    dice: Dice,
    /// After how many of 1000 operations it looks at everything.
    looks: u64,
    /// Operations that returned, over all lives.
    pub steps: AtomicU64,
}

impl App {
    /// An application that finds the tree as its judge says.
    pub fn new(judge: Judge, dice: Dice, first_write: u64, looks: u64) -> Arc<Self> {
        let name = judge.habits.letter.to_uppercase().to_string();
        let generator = Generator::new(judge.habits.clone(), dice.clone(), first_write);
        let (judge, generator) = (Mutex::new(judge), Mutex::new(generator));
        Arc::new(Self { name, judge, generator, dice, looks, steps: AtomicU64::new(0) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its judge.
    pub fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap()
    }

    /// What it sees, without an opinion.
    pub async fn look(&self, kernel: &mut Kernel, contents: &Contents) -> Result<Tree, Errno> {
        let habits = self.judge().habits.clone();
        observe(kernel, &self.dice, &habits, contents).await
    }

    /// A kernel for a life on `client`.
    pub fn kernel(&self, client: Client<LoggedEnv>, world: &World) -> Kernel {
        Kernel::new(client, self.dice.clone(), world.clone())
    }
}

/// One life of an application.
pub struct Life {
    app: Arc<App>,
    others: Vec<Arc<App>>,
    world: World,
    kernel: Kernel,
    node: NodeId,
    /// Set when the application is to close everything and end.
    stop: Arc<AtomicBool>,
    background: Vec<(usize, JoinHandle<()>)>,
}

impl Life {
    /// A life of `app` on `client`.
    pub fn new(
        app: Arc<App>,
        others: Vec<Arc<App>>,
        world: World,
        client: Client<LoggedEnv>,
        node: NodeId,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let kernel = app.kernel(client, &world);
        Self { app, others, world, kernel, node, stop, background: Vec::new() }
    }

    /// Works until it is told to stop or something is wrong.
    pub async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) && !self.over() {
            let (op, hasty) = {
                let judge = self.app.judge();
                let mut generator = self.app.generator.lock().unwrap();
                (generator.draw(&judge.model), generator.is_hasty())
            };
            if let Err(what) = self.step(&op, hasty).await {
                self.world.alarm.raise(format!("application {}: after {op:?}: {what}", self.app.name));
            }
            if hasty {
                continue;
            }
            self.app.steps.fetch_add(1, Ordering::Relaxed);
            let pause = self.app.dice.time_below(THINKING);
            if self.app.dice.chance(400) {
                time::sleep(pause).await;
            }
        }
        if !self.over() {
            self.close().await;
        }
    }

    fn over(&self) -> bool {
        self.world.meta.failed() || self.world.alarm.raised().is_some()
    }

    /// Does `op` and judges it. One that is hasty does not look around.
    async fn step(&mut self, op: &Op, hasty: bool) -> Result<(), String> {
        if let Op::Close { slot } = op {
            self.join(Some(*slot)).await;
        }
        if let Op::Fsync { slot } = op
            && self.app.dice.chance(400)
        {
            self.fsync_in_background(*slot);
            return Ok(());
        }
        // Operations never share an instant: where the bytes cannot be read, times tell whether one had its effect.
        time::sleep(BETWEEN).await;
        // What a success makes durable is what had been done before the call.
        let mut promises = self.promises(op);
        let start = TimeHandle::current().elapsed();
        self.world.trace.add(format!("{} {op:?}", self.app.name));
        self.app.judge().begin(op, start);
        let result = self.kernel.run(op).await;
        let answer = result.as_ref().map(Vec::len);
        self.world.trace.add(format!("{} -> {answer:?}", self.app.name));
        if self.world.meta.failed() {
            // The life is over; what was answered holds.
            if result.is_ok() {
                promises.into_iter().for_each(|(app, durable)| app.judge().durable.push(durable));
            }
            return Ok(());
        }
        if matches!(result, Err(Errno::EIO | Errno::ENOSPC)) && !self.world.faults.struck() {
            return Err(format!("answered {answer:?} though nothing ever failed"));
        }
        self.app.judge().finish(&result, TimeHandle::current().elapsed())?;
        if result.is_ok() {
            promises.extend(self.promise_of_write(op));
            let promised = !promises.is_empty();
            for (app, durable) in promises {
                app.judge().durable.push(durable);
            }
            if promised && self.world.pass(Moment::Promise, self.node) {
                std::future::pending::<()>().await;
            }
        }
        // What is in doubt is settled by the next look, and must be before the next operation.
        let doubtful = self.app.judge().doubt.is_some();
        if doubtful || !hasty && self.app.dice.chance(self.app.looks) {
            self.look(op).await?;
        }
        if self.app.dice.chance(150) {
            self.kernel.shrink(false);
        }
        Ok(())
    }

    fn promises(&self, op: &Op) -> Vec<(Arc<App>, Durable)> {
        if *op == Op::Sync {
            let all = self.others.iter().chain([&self.app]);
            return all.map(|app| (app.clone(), Durable::All(app.judge().now()))).collect();
        }
        let judge = self.app.judge();
        let (model, now) = (&judge.model, judge.now());
        let durable = if let Op::Fsync { slot } = op {
            model.open_at(*slot).map(|node| Durable::File(node, now))
        } else if let Op::FsyncDir { path } = op {
            model.find(path).ok().map(|node| Durable::Directory(node, now))
        } else {
            None
        };
        durable.map(|durable| (self.app.clone(), durable)).into_iter().collect()
    }

    /// A write through an O_SYNC handle makes itself durable.
    fn promise_of_write(&self, op: &Op) -> Option<(Arc<App>, Durable)> {
        let Op::Write { slot, .. } = op else { return None };
        let judge = self.app.judge();
        let node = judge.model.open_at(*slot).filter(|_| self.kernel.is_sync(*slot))?;
        Some((self.app.clone(), Durable::File(node, judge.now())))
    }

    /// An fsync that other operations overtake.
    fn fsync_in_background(&mut self, slot: usize) {
        let (node, now) = {
            let judge = self.app.judge();
            (judge.model.open_at(slot).expect("the slot is open"), judge.now())
        };
        let handle = self.kernel.handle(slot).expect("the slot is open");
        let (app, client, world, home) =
            (self.app.clone(), self.kernel.client().clone(), self.world.clone(), self.node);
        let told = self.kernel.told(slot).expect("the slot is open");
        world.trace.add(format!("{} fsync of slot {slot} in the background, as of step {now}", app.name));
        let task = madsim::task::spawn(async move {
            let result = client.fsync(handle).await;
            world.trace.add(format!("{} fsync of slot {slot} as of step {now} -> {result:?}", app.name));
            let mut judge = app.judge();
            judge.completed.0 += 1;
            if result.is_err() {
                told.failed();
            } else {
                judge.completed.1 += 1;
                judge.durable.push(Durable::File(node, now));
                world.pass(Moment::Promise, home);
            }
        });
        self.background.push((slot, task));
    }

    /// Waits for what goes on in the background, for one slot or for all.
    async fn join(&mut self, slot: Option<usize>) {
        let (now, later) = self.background.drain(..).partition(|(at, _)| slot.is_none_or(|slot| *at == slot));
        self.background = later;
        let now: Vec<(usize, JoinHandle<()>)> = now;
        for (_, task) in now {
            let _ = task.await;
        }
    }

    /// Looks at everything, and at the contents of what `op` touched; one time in four at all contents.
    async fn look(&mut self, op: &Op) -> Result<(), String> {
        let all = self.app.dice.chance(250);
        let touched = touched(&self.app.judge().model, op);
        let contents = if all { Contents::All } else { Contents::Of(touched.clone()) };
        // A clock that was set may show a time twice: then the bytes must tell what times cannot.
        let mut doubtful = self.app.judge().doubt.is_some() && self.world.faults.may_strike(Fault::ClockJump);
        let mut tries = 0..10;
        let seen = loop {
            let seen = match self.app.look(&mut self.kernel, &contents).await {
                Ok(tree) => self.look_at_unlinked().await.map(|unlinked| (tree, unlinked)),
                Err(errno) => Err(errno),
            };
            // Metadata that could not be read for once is there the next time.
            let again = matches!(seen, Err(Errno::EIO)) && self.world.faults.may_strike(Fault::ReadFailed);
            let unread = doubtful && seen.as_ref().is_ok_and(|(tree, unlinked)| is_unread(&touched, tree, unlinked));
            if !(again || unread) || self.world.meta.failed() {
                break seen;
            }
            if unread {
                match tries.next() {
                    Some(5) => {
                        self.world.faults.set_on(false);
                        self.world.calm();
                    }
                    Some(_) => {}
                    None => doubtful = false,
                }
            }
        };
        match seen {
            // The store has failed: this life is over, and what is found in the next one counts. What was not read here must
            // not settle a doubt.
            _ if self.world.meta.failed() => Ok(()),
            Ok((tree, unlinked)) => {
                let now = TimeHandle::current().elapsed();
                self.app.judge().look(&tree, &unlinked, now)
            }
            Err(errno) => Err(format!("looking at the tree answered {errno:?}")),
        }
    }

    /// Files without a name that are still open, by slot.
    async fn look_at_unlinked(&mut self) -> Result<Vec<(usize, Seen)>, Errno> {
        let mut found = Vec::new();
        for slot in 0..SLOTS {
            let unlinked = {
                let judge = self.app.judge();
                judge.model.open_at(slot).is_some_and(|node| judge.model.names_of(node).is_empty())
            };
            if let (true, Some(handle), Some(ino)) = (unlinked, self.kernel.handle(slot), self.kernel.open_ino(slot)) {
                found.push((slot, observe_open(&mut self.kernel, handle, ino).await?));
            }
        }
        Ok(found)
    }

    /// Closes everything and lets go of every inode.
    async fn close(&mut self) {
        self.join(None).await;
        for slot in 0..SLOTS {
            if !self.over()
                && self.kernel.handle(slot).is_some()
                && let Err(what) = self.step(&Op::Close { slot }, false).await
            {
                self.world.alarm.raise(format!("application {}: closing: {what}", self.app.name));
            }
        }
        self.kernel.shrink(true);
    }
}

/// Something that may have been changed, and whose contents could not be read.
fn is_unread(touched: &BTreeSet<String>, tree: &Tree, unlinked: &[(usize, Seen)]) -> bool {
    let named = touched.iter().filter_map(|path| tree.get(path));
    let mut seen = named.chain(unlinked.iter().map(|(_, seen)| seen));
    seen.any(|seen| seen.attr.kind == FileType::Regular && seen.data.is_none())
}

/// The paths whose contents `op` may have changed.
fn touched(model: &Model, op: &Op) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    if let Op::Write { slot, .. }
    | Op::Ftruncate { slot, .. }
    | Op::Fallocate { slot, .. }
    | Op::CopyRange { to: slot, .. }
    | Op::Open { slot, .. }
    | Op::Fsync { slot } = op
        && let Some(node) = model.open_at(*slot)
    {
        paths.extend(model.names_of(node));
    } else if let Op::Rename { from, to, .. } | Op::Link { from, to } = op {
        paths.extend([from.clone(), to.clone()]);
    } else if let Op::Truncate { path, .. } | Op::Chmod { path, .. } = op {
        paths.insert(path.clone());
    }
    paths
}
