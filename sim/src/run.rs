//! The course of one seed: lives of clients, the ends of these, and the last life, in which nothing fails any more.
//!
//! Owns: when a life ends and how, what is checked between lives and at the end.
//! Leaves to others: what happens in a life (`apps`), judging (`judge`, `recovery`), many seeds (`sweep`).
//!
//! What is checked after each life: the metadata is sound as it lies there; the next mount succeeds; what it shows is
//! explained by the history. What is checked at the end, without faults: everything can be flushed, memory comes back,
//! the store holds exactly the objects that are referred to, and an unmount and a mount change nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::client::{Client, MountError, Options};
use kiseki_core::env::{MetaStore, ObjectStore, Point};
use kiseki_core::format::block::{self, VOLUME_OBJECT};
use kiseki_core::format::keys;
use kiseki_core::format::values::{VOLUME_VERSION, Value, Volume};
use kiseki_core::meta::{self, OpCtx};
use kiseki_core::testkit::model::{Model, Stamp};
use kiseki_core::testkit::ops::{Habits, Op};
use kiseki_core::types::{AtimeMode, FileType, Geometry, Ino, Place, SliceRecord, VolumeId};
use madsim::runtime::{Handle, NodeHandle};
use madsim::task::JoinHandle;
use madsim::time::{self, TimeHandle};

use crate::apps::{App, Life};
use crate::dice::Dice;
use crate::faults::{Counts, Ending};
use crate::judge::Judge;
use crate::kernel::{CALLER, Kernel};
use crate::observe::{Contents, Tree};
use crate::plan::{Knobs, Plan};
use crate::recovery;
use crate::rivals::{self, Rivals};
use crate::spy::Spy;
use crate::trace::Trace;
use crate::world::meta::blocks_of;
use crate::world::{Moment, SimEnv, Switches, World};

/// Files end below this: twenty chunks on some volumes, two on others.
const LENGTH_MAX: u64 = 5 * 4096;
/// Operations of both applications in one life, at most.
const STEPS_MAX: u64 = 240;
/// The same in a life that ends before anything has settled.
const STEPS_FEW: u64 = 16;
/// In how many of 1000 seeds two writers share a file.
const RIVALRY: u64 = 400;
/// No wait of a client is longer than its deadlines allow: nothing happening for so long is a hang.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the store may take to be rid of what nothing refers to.
const DRAIN: Duration = Duration::from_secs(600);

/// Syncs that may fail after the faults have stopped: one tells of the past, one may wait for what still hangs.
const SYNCS: u32 = 3;

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Operations that returned.
    pub completed: u64,
    /// Operations that succeeded.
    pub succeeded: u64,
    /// Simulated time.
    pub elapsed: Duration,
    /// Crashes survived.
    pub crashes: u64,
    /// Steps lost in crashes, of all that were not durable.
    pub lost: u64,
    /// Promises of durability that a crash tried.
    pub tried: u64,
    /// How often what happened.
    pub counts: Counts,
    /// How often each mark was reached, in the order of `Mark::ALL`.
    pub marks: Vec<u64>,
    /// What was wrong.
    pub violation: Option<String>,
}

type Check<T> = Result<T, String>;

/// One volume and what happens to it.
struct Run {
    world: World,
    plan: Plan,
    dice: Dice,
    options: Options,
    apps: [Arc<App>; 2],
    /// In some seeds.
    rivals: Option<Rivals>,
    outcome: Outcome,
    lives: u64,
}

/// The tasks of a life.
struct Work {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Work {
    /// Lets everybody close their files and go.
    async fn end(self) -> Check<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let ended = time::timeout(PATIENCE, task).await;
            ended.map_err(|_| "an application hangs")?.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// Carries out `plan`.
pub async fn run(plan: Plan, switches: Switches, trace: Trace) -> Outcome {
    let world = World::new(Dice::new(plan.seed, 1), trace, switches);
    world.faults.exclude(&plan.off);
    let mut run = Run::new(world, plan).await;
    if let Err(what) = run.course().await {
        run.world.alarm.raise(what);
    }
    let mut outcome = run.outcome;
    outcome.violation = run.world.alarm.raised();
    let errors = run.world.trace.errors();
    if let Some(error) = errors.first() {
        outcome.violation.get_or_insert_with(|| format!("a broken promise was logged: {error}"));
    }
    outcome.counts = run.world.faults.counts();
    outcome.elapsed = TimeHandle::current().elapsed();
    for app in &run.apps {
        let (completed, succeeded) = app.judge().completed;
        outcome.completed += completed;
        outcome.succeeded += succeeded;
    }
    run.world.trace.add(format!("end: {:?} of {} operations", outcome.violation, outcome.completed));
    outcome
}

impl Run {
    async fn new(world: World, plan: Plan) -> Self {
        let seed = plan.seed;
        let dice = Dice::new(seed, 2);
        let Knobs { geometry, options, looks } = Knobs::draw(&Dice::new(seed, 3));
        world.trace.add(format!("{geometry:?} {options:?}"));
        world.faults.set_on(false);
        format(&world, geometry).await;
        let client = mount(&world, &Handle::current().create_node().name("first").build(), &options).await;
        let client = client.expect("nothing fails yet");
        for name in ["a", "b", "s"] {
            let made = client.mknod(CALLER, Ino::ROOT, name.as_bytes(), FileType::Directory, 0o755, 0).await;
            made.expect("nothing fails yet");
        }
        let made = client.mknod(CALLER, Ino::ROOT, rivals::NAME.as_bytes(), FileType::Regular, 0o644, 0).await;
        made.expect("nothing fails yet");
        client.unmount().await.expect("nothing fails yet");
        world.end(Ending::Unmount);
        let app = |name, home: &str, letter, number: u64| {
            let stamp = Stamp::exactly(World::wall());
            let homes = vec![home.to_string(), "/s".to_string()];
            let mut model = Model::new(stamp);
            if options.atime == AtimeMode::Noatime {
                model.set_noatime();
            }
            for path in &homes {
                let made = model.apply(&Op::Mkdir { path: path.clone(), mode: 0o755 }, stamp);
                made.expect("the model is empty");
            }
            let borders = vec![geometry.frame_size.into(), geometry.block_size.into(), geometry.chunk_size];
            let habits = Habits { letter, homes, length_max: LENGTH_MAX, borders };
            App::new(name, Judge::new(habits, model), Dice::new(seed, 10 + number), number << 24, looks)
        };
        let apps = [app("A", "/a", 'a', 0), app("B", "/b", 'b', 1)];
        let rivals = (plan.alone.is_none() && Dice::new(seed, 4).chance(RIVALRY)).then(Rivals::default);
        Self { world, plan, dice, options, apps, rivals, outcome: Outcome::default(), lives: 0 }
    }

    async fn course(&mut self) -> Check<()> {
        let lives = (2 + self.dice.below(3)).min(self.plan.lives.unwrap_or(u64::MAX));
        for _ in 0..lives {
            self.world.faults.set_on(true);
            self.life().await?;
        }
        self.last_life().await
    }

    /// So many steps, or as many as the plan allows.
    fn most(&self, steps: u64) -> u64 {
        steps.min(self.plan.steps.unwrap_or(u64::MAX))
    }

    fn node(&mut self) -> NodeHandle {
        self.lives += 1;
        self.world.trace.add(format!("life {}", self.lives));
        Handle::current().create_node().name(format!("client {}", self.lives)).build()
    }

    /// Mounts until it succeeds; some mounts are killed half way.
    async fn mount(&mut self) -> Check<(NodeHandle, Client<SimEnv>)> {
        for _ in 0..50 {
            let node = self.node();
            let (world, options, home) = (self.world.clone(), self.options.clone(), node.clone());
            let task = node.spawn(async move { mount(&world, &home, &options).await });
            if self.dice.chance(100) {
                time::sleep(self.dice.time_below(Duration::from_millis(60))).await;
                drop(task);
                self.crash(&node).await?;
                continue;
            }
            match time::timeout(PATIENCE, task).await {
                Err(_) => return Err("a mount hangs".into()),
                Ok(Ok(Ok(client))) => return Ok((node, client)),
                // The store failed, or gave a damaged answer last; after a while the operator tries again.
                Ok(Ok(Err(MountError::Meta(_) | MountError::Store(_) | MountError::WrongBucket { .. })))
                    if self.world.faults.are_on() =>
                {
                    self.kill(&node, Ending::Kill).await?;
                }
                Ok(Ok(Err(error))) => return Err(format!("a mount was refused: {error}")),
                Ok(Err(error)) => return Err(format!("a mount ended: {error}")),
            }
        }
        Err("fifty mounts in a row failed".into())
    }

    /// Puts the applications and the bystander to work on `client`.
    fn start(&self, node: &NodeHandle, client: &Client<SimEnv>) -> Work {
        let stop = Arc::new(AtomicBool::new(false));
        let life = |index: usize| {
            let others = vec![self.apps[1 - index].clone()];
            let (app, world) = (self.apps[index].clone(), self.world.clone());
            node.spawn(Life::new(app, others, world, client.clone(), node.id(), stop.clone()).run())
        };
        let mut tasks: Vec<JoinHandle<()>> =
            [0, 1].into_iter().filter(|index| self.plan.alone.is_none_or(|alone| alone == *index)).map(life).collect();
        for appends in [false, true] {
            if let Some(rivals) = self.rivals.clone() {
                let (world, dice) =
                    (self.world.clone(), Dice::new(self.plan.seed, 2 * self.lives + u64::from(appends) + 100));
                tasks.push(node.spawn(rivals.run(client.clone(), world, dice, appends, stop.clone())));
            }
        }
        let spy = Spy::new(self.apps.clone(), self.world.clone(), client.clone(), self.dice.clone());
        let spy = node.spawn(spy.run(stop.clone()));
        Work { stop, tasks: tasks.into_iter().chain([spy]).collect() }
    }

    /// One life, from mount to end.
    async fn life(&mut self) -> Check<()> {
        let (node, client) = self.mount().await?;
        self.verify(&node, &client).await?;
        let work = self.start(&node, &client);
        let most = if self.dice.chance(200) { STEPS_FEW } else { STEPS_MAX };
        let wanted = self.steps() + self.most(1 + self.dice.below(most));
        if self.dice.chance(600) {
            self.set_trap();
        }
        self.wait(wanted).await?;
        if self.dice.chance(200) && !self.world.sprung() {
            self.world.disarm();
            work.end().await?;
            return self.unmount(&node, &client).await;
        }
        if !self.world.sprung() {
            time::sleep(self.dice.time_below(Duration::from_millis(100))).await;
        }
        self.crash(&node).await
    }

    /// Ends the life at a moment at which a crash is instructive.
    fn set_trap(&self) {
        let (moment, scale) = match self.dice.below(6) {
            0 => (Moment::At(Point::Put), 40),
            1 => (Moment::At(Point::Commit), 40),
            2 => (Moment::At(Point::Truncate), 8),
            3 => (Moment::At(Point::RenameOver), 8),
            _ => (Moment::Promise, 8),
        };
        self.world.kill_at(moment, self.dice.below(scale));
    }

    /// Waits until the applications have done so much, or something is wrong.
    async fn wait(&self, wanted: u64) -> Check<()> {
        let (mut steps, mut since) = (self.steps(), TimeHandle::current().elapsed());
        while self.steps() < wanted && !self.world.sprung() && !self.world.meta.failed() {
            time::sleep(Duration::from_millis(5)).await;
            self.alarm()?;
            let now = TimeHandle::current().elapsed();
            if self.steps() > steps {
                (steps, since) = (self.steps(), now);
            }
            // One step may be a look at many files, each of which takes as long as a wait may.
            if now > since + 5 * PATIENCE {
                return Err("nothing happens any more".into());
            }
        }
        self.alarm()
    }

    fn steps(&self) -> u64 {
        self.apps.iter().map(|app| app.steps.load(Ordering::Relaxed)).sum()
    }

    fn alarm(&self) -> Check<()> {
        self.world.alarm.raised().map_or(Ok(()), Err)
    }

    /// Ends a life suddenly.
    async fn crash(&mut self, node: &NodeHandle) -> Check<()> {
        let ending = [Ending::Kill, Ending::PowerCut, Ending::PowerCut, Ending::MetaPowerCut];
        let ending = ending[self.dice.below(4) as usize];
        self.outcome.crashes += 1;
        self.kill(node, ending).await
    }

    async fn kill(&mut self, node: &NodeHandle, ending: Ending) -> Check<()> {
        Handle::current().kill(node.id());
        let point = self.world.disarm();
        self.world.trace.add(format!("{ending:?} at {point:?}"));
        self.alarm()?;
        self.world.end(ending);
        // The tasks of the node are dropped.
        time::sleep(Duration::from_millis(2)).await;
        sound(&self.world)
    }

    async fn unmount(&mut self, node: &NodeHandle, client: &Client<SimEnv>) -> Check<()> {
        self.alarm()?;
        self.world.trace.add("unmount");
        for _ in 0..20 {
            let client = client.clone();
            let task = node.spawn(async move { client.unmount().await });
            match time::timeout(PATIENCE, task).await {
                Err(_) => return Err("an unmount hangs".into()),
                Ok(Err(error)) => return Err(format!("an unmount ended: {error}")),
                Ok(Ok(Ok(()))) => {
                    for app in &self.apps {
                        let mut judge = app.judge();
                        let now = judge.now();
                        judge.durable.push(crate::judge::Durable::All(now));
                    }
                    self.rivals.iter().for_each(Rivals::all_durable);
                    return self.kill(node, Ending::Unmount).await;
                }
                Ok(Ok(Err(_))) if self.world.meta.failed() => return self.crash(node).await,
                // The store fails; what is dirty stays so, and the operator tries again.
                Ok(Ok(Err(error))) => self.world.trace.add(format!("unmount: {error}")),
            }
        }
        self.crash(node).await
    }

    /// Looks at everything after a mount, and finds the states of the last life that explain it.
    async fn verify(&mut self, node: &NodeHandle, client: &Client<SimEnv>) -> Check<()> {
        let mut trees = Vec::new();
        for app in self.apps.clone() {
            let (client, world) = (client.clone(), self.world.clone());
            let look = node.spawn(async move { look(&app, &world, client).await });
            let tree = time::timeout(PATIENCE * 5, look).await.map_err(|_| "looking around hangs")?;
            trees.push(tree.map_err(|error| error.to_string())??);
        }
        if let Some(rivals) = self.rivals.clone() {
            let kernel = Kernel::new(client.clone(), self.dice.clone(), self.world.clone());
            let world = self.world.clone();
            let look = node.spawn(async move { rivals.verify(kernel, &world).await });
            let looked = time::timeout(PATIENCE * 5, look).await.map_err(|_| "looking around hangs")?;
            looked.map_err(|error| error.to_string())??;
        }
        let mut verdicts = Vec::new();
        let now = (TimeHandle::current().elapsed(), Stamp::exactly(World::wall()));
        for (app, tree) in self.apps.iter().zip(&trees) {
            let judge = app.judge();
            self.outcome.tried += judge.durable.len() as u64;
            let found = recovery::explain(&judge, tree, now.0, now.1);
            verdicts.push(found.map_err(|what| format!("application {}: {what}", judge.habits.letter))?);
        }
        let chosen = {
            let judges = [&*self.apps[0].judge(), &*self.apps[1].judge()];
            recovery::agree(judges, [&verdicts[0], &verdicts[1]])?
        };
        for (index, choice) in [(0, chosen.0), (1, chosen.1)] {
            let verdict = &verdicts[index][choice];
            self.outcome.lost += verdict.lost as u64;
            let text = format!("found {} as after step {}, {} lost", index, verdict.step, verdict.lost);
            self.world.trace.add(text);
            let mut judge = self.apps[index].judge();
            judge.restart(verdict.model.clone());
            judge.adopt(&trees[index])?;
        }
        Ok(())
    }

    /// The life in which the faults stop while there is still work under way, and everything must come to rest.
    async fn last_life(&mut self) -> Check<()> {
        let (mut node, mut client) = self.mount().await?;
        self.verify(&node, &client).await?;
        let work = self.start(&node, &client);
        self.wait(self.steps() + self.most(20 + self.dice.below(40))).await?;
        self.world.faults.set_on(false);
        self.world.objects.calm();
        if self.world.meta.failed() {
            self.crash(&node).await?;
            (node, client) = self.mount().await?;
            self.verify(&node, &client).await?;
        } else {
            // Errors of the past are told once, then there are none.
            work.end().await?;
        }
        self.at_rest(&node, &client).await?;
        // What a put left that took effect after its object was deleted, the next mount collects.
        self.drained(&self.world.objects.late()).await?;
        self.unmount(&node, &client).await?;
        let (node, client) = self.mount().await?;
        self.verify(&node, &client).await?;
        self.drained(&BTreeSet::new()).await?;
        self.unmount(&node, &client).await?;
        match leftovers(&self.world, &BTreeSet::new()).first() {
            Some(left) => Err(format!("after the last unmount: {left}")),
            None => Ok(()),
        }
    }

    /// Flushes everything, which must succeed, and looks whether all memory is free again.
    async fn at_rest(&self, node: &NodeHandle, client: &Client<SimEnv>) -> Check<()> {
        let mut synced = Err(String::new());
        for _ in 0..SYNCS {
            let client = client.clone();
            let task = node.spawn(async move { client.sync().await });
            let answer = time::timeout(PATIENCE, task).await.map_err(|_| "a sync hangs")?;
            synced = answer.map_err(|error| error.to_string())?.map_err(|errno| format!("a sync: {errno:?}"));
            if synced.is_ok() {
                break;
            }
            // What hung when the faults stopped may have used up this wait.
            time::sleep(Duration::from_secs(20)).await;
        }
        synced.map_err(|what| format!("without faults, {what}"))?;
        // What was given up lets go of its memory when its last put has ended.
        let until = TimeHandle::current().elapsed() + Duration::from_secs(60);
        loop {
            let status = client.status().await.map_err(|errno| format!("status: {errno:?}"))?;
            let left =
                (status.dirty_bytes, status.dirty_files, status.waiting_bytes, status.uploads, status.open_files);
            if left == (0, 0, 0, 0, 0) {
                return self.alarm();
            }
            if TimeHandle::current().elapsed() > until {
                return Err(format!(
                    "after a sync there are still dirty bytes, dirty files, waiting bytes, puts, handles: {left:?}"
                ));
            }
            time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until the store holds exactly what is referred to, but for the objects of `excused`.
    async fn drained(&self, excused: &BTreeSet<String>) -> Check<()> {
        let until = TimeHandle::current().elapsed() + DRAIN;
        loop {
            let left = leftovers(&self.world, excused);
            let Some(first) = left.first() else { return Ok(()) };
            if TimeHandle::current().elapsed() > until {
                return Err(format!("{} things are left, such as: {first}", left.len()));
            }
            time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn format(world: &World, geometry: Geometry) {
    let id = VolumeId(*b"simulated volume");
    let volume = Volume {
        version: VOLUME_VERSION,
        id,
        name: "sim".into(),
        storage: "sim".into(),
        bucket: "sim".into(),
        geometry,
        capacity: 0,
        inodes: 0,
        created: World::wall(),
        acl: true,
    };
    let ctx = OpCtx { now: World::wall(), stripe: 0, geometry };
    let formatted = world.meta.write(|txn| meta::volume::format(txn, &ctx, &volume, 0, 0)).await;
    world.meta.sync(formatted.expect("nothing fails yet").seq).await.expect("nothing fails yet");
    let marker: Bytes = block::encode_marker(id);
    world.objects.put(VOLUME_OBJECT, vec![marker]).await.expect("nothing fails yet");
    world.objects.barrier().await.expect("nothing fails yet");
}

async fn mount(world: &World, node: &NodeHandle, options: &Options) -> Result<Client<SimEnv>, MountError> {
    Client::mount(world.env(node.clone()), options.clone()).await
}

/// What an application sees after a mount: all contents, however often the store must be asked.
async fn look(app: &App, world: &World, client: Client<SimEnv>) -> Check<Tree> {
    for attempt in 0..20 {
        let mut kernel = app.kernel(client.clone(), world);
        let tree = app.look(&mut kernel, &Contents::All).await;
        kernel.shrink(true);
        let tree = match tree {
            Ok(tree) => tree,
            // Only a failed store excuses this, and then the faults go on hold.
            Err(errno) if world.meta.failed() => return Err(format!("the store failed while looking: {errno:?}")),
            Err(errno) => return Err(format!("looking at the tree answered {errno:?}")),
        };
        let unread = tree.iter().find(|(_, seen)| seen.attr.kind == FileType::Regular && seen.data.is_none());
        let Some((path, _)) = unread else { return Ok(tree) };
        if attempt == 5 {
            world.faults.set_on(false);
            world.objects.calm();
        }
        if attempt > 15 {
            return Err(format!("{path} cannot be read, though the store is well"));
        }
    }
    unreachable!("the last attempts return")
}

/// The metadata as it lies there: structurally whole.
fn sound(world: &World) -> Check<()> {
    let findings = std::cell::RefCell::new(Vec::new());
    let checked = world.meta.peek(|read| {
        findings.borrow_mut().clear();
        meta::invariant::check(read, &mut |_| {}, &mut |finding| findings.borrow_mut().push(finding))
    });
    checked.map_err(|error| format!("the metadata cannot be checked: {error}"))?;
    let findings = findings.into_inner();
    findings.first().map_or(Ok(()), |finding| Err(format!("{} findings, such as {finding:?}", findings.len())))
}

/// What is in the store or in a queue though nothing refers to it, and what is referred to and not there.
fn leftovers(world: &World, excused: &BTreeSet<String>) -> Vec<String> {
    let read = |range: (Vec<u8>, Vec<u8>)| {
        let pairs = world.meta.peek(|read| Ok(read.scan(&range.0, &range.1, usize::MAX)?));
        pairs.expect("memory can be read")
    };
    let volume = world.meta.peek(meta::volume::load).expect("there is a volume");
    let mut wanted = BTreeSet::from([VOLUME_OBJECT.to_string()]);
    for (_, value) in read(keys::all_slices()) {
        let record = SliceRecord::decode(&value).expect("the metadata is sound");
        if record.place == Place::Blocks {
            wanted.extend(blocks_of(&volume, &record).into_iter().map(block::object_key));
        }
    }
    let found: BTreeSet<String> = world.objects.keys().into_iter().collect();
    let mut left: Vec<String> = wanted.difference(&found).map(|key| format!("object {key} is missing")).collect();
    let surplus = found.difference(&wanted).filter(|key| !excused.contains(*key));
    left.extend(surplus.map(|key| format!("nothing refers to object {key}")));
    let queues = [keys::orphan_range(), keys::delfile_range(), keys::cutfile_range(), keys::delslice_range()];
    for queue in queues {
        left.extend(read(queue).iter().map(|(key, _)| format!("{:?} is still queued", keys::decode(key))));
    }
    left
}
