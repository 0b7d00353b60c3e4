//! The course of one seed: lives of clients, the ends of these, and the last life, in which nothing fails any more.
//!
//! Owns: when a life ends and how, what is checked between lives and at the end.
//! Leaves to others: who works in a life (`crowd`), judging (`judge`, `recovery`, `rest`), many seeds (`sweep`).
//!
//! What is checked after each life: the metadata is sound as it lies there; the next mount succeeds; what it shows is
//! explained by the history. What is checked at the end, without faults: everything can be flushed, memory comes back,
//! the store holds exactly the objects that are referred to, and an unmount and a mount change nothing.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::client::{Client, LogError, LogMode, LogOptions, Logged, MountError, Opened, Options};
use kiseki_core::env::{MetaStore, ObjectStore, Point};
use kiseki_core::format::block::{self, VOLUME_OBJECT};
use kiseki_core::format::values::{VOLUME_VERSION, Volume};
use kiseki_core::meta::{self, OpCtx};
use kiseki_core::types::{AtimeMode, Geometry, VolumeId};
use madsim::runtime::{Handle, NodeHandle};
use madsim::time::{self, TimeHandle};

use crate::crowd::{Crowd, Mount, PATIENCE, Work};
use crate::dice::Dice;
use crate::faults::{Counts, Ending, Fault};
use crate::plan::{Knobs, Limits, Plan};
use crate::rest::{Excused, drained, filled, flushed, given_back, leftovers, sound};
use crate::trace::Trace;
use crate::world::{LoggedEnv, Moment, Switches, World};

/// Clients of a volume: the embedded metadata store admits one process.
const CLIENTS: usize = 1;
/// Operations of all applications in one life, at most.
const STEPS_MAX: u64 = 240;
/// The same in a life that ends before anything has settled.
const STEPS_FEW: u64 = 16;

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

/// Whether an unmount ends the write-back log as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// Some do; the others leave it to the next mount.
    Sometimes,
    /// It does, and nothing is left.
    Always,
}

/// One volume and what happens to it.
struct Run {
    world: World,
    plan: Plan,
    dice: Dice,
    options: Options,
    log: Option<LogOptions>,
    /// One for each client.
    crowds: Vec<Crowd>,
    outcome: Outcome,
    lives: u64,
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
    for app in run.crowds.iter().flat_map(|crowd| &crowd.apps) {
        let (completed, succeeded) = app.judge().completed;
        outcome.completed += completed;
        outcome.succeeded += succeeded;
    }
    run.world.trace.add(format!("end: {:?} of {} operations", outcome.violation, outcome.completed));
    run.world.close().await;
    outcome
}

impl Run {
    async fn new(world: World, plan: Plan) -> Self {
        let seed = plan.seed;
        let dice = Dice::new(seed, 2);
        let Knobs { geometry, options, log, looks } = Knobs::draw(&Dice::new(seed, 3));
        world.trace.add(format!("{geometry:?} {options:?} {log:?}"));
        world.faults.set_on(false);
        let limits = Limits::draw(&Dice::new(seed, 5), &world.faults);
        format(&world, geometry, limits).await;
        let node = Handle::current().create_node().name("first").build();
        let (client, _) = mount(&world, 0, &node, &options, None).await.expect("nothing fails yet");
        Crowd::settle(&client, CLIENTS).await;
        client.unmount().await.expect("nothing fails yet");
        world.end(Ending::Unmount);
        let noatime = options.atime == AtimeMode::Noatime;
        let crowd = |index| Crowd::new(&world, &plan, index, geometry, (looks, noatime), dice.clone());
        let crowds = (0..CLIENTS).map(crowd).collect();
        Self { world, plan, dice, options, log, crowds, outcome: Outcome::default(), lives: 0 }
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

    /// Mounts all clients and looks at what is there; again if metadata fails meanwhile. What is found is durable.
    async fn begin(&mut self) -> Check<Vec<Mount>> {
        loop {
            let mut mounts = Vec::new();
            for index in 0..CLIENTS {
                mounts.push(self.mount(index).await?);
            }
            match self.verify(&mounts).await {
                Err(_) if self.world.meta.failed() => self.crash(&nodes(&mounts)).await?,
                verified => return verified.map(|()| mounts),
            }
        }
    }

    async fn verify(&mut self, mounts: &[Mount]) -> Check<()> {
        for (crowd, mount) in self.crowds.iter().zip(mounts) {
            let tried = crowd.verify(mount).await?;
            self.outcome.lost += tried.lost;
            self.outcome.tried += tried.promises;
        }
        Ok(())
    }

    /// Mounts until it succeeds; some mounts are killed half way.
    async fn mount(&mut self, index: usize) -> Check<Mount> {
        for _ in 0..50 {
            let node = self.node();
            let (world, options, home) = (self.world.clone(), self.options.clone(), node.clone());
            let log = self.log_options();
            let task = node.spawn(async move { mount(&world, index, &home, &options, log).await });
            if self.dice.chance(100) {
                time::sleep(self.dice.time_below(Duration::from_millis(60))).await;
                drop(task);
                self.crash(&[node]).await?;
                continue;
            }
            match time::timeout(PATIENCE, task).await {
                Err(_) => return Err("a mount hangs".into()),
                Ok(Ok(Ok((client, env)))) => return Ok(Mount { node, client, env }),
                // A store failed, or gave a damaged answer last; after a while the operator tries again.
                Ok(Ok(Err(error))) if error.passes() && self.world.faults.are_on() => {
                    self.kill(&[node], Ending::Kill).await?;
                }
                Ok(Ok(Err(error))) => return Err(format!("a mount was refused: {error}")),
                Ok(Err(error)) => return Err(format!("a mount ended: {error}")),
            }
        }
        Err("fifty mounts in a row failed".into())
    }

    /// How the next mount has its log, if it has one. What earlier mounts have left must be gone on with.
    fn log_options(&self) -> Option<LogOptions> {
        let log = self.log.clone()?;
        let left = self.world.meta.peek(meta::volume::load).expect("there is a volume").log.is_some();
        match (left, self.dice.below(100)) {
            (false, 0..20) => None,
            (true, 0..15) => Some(LogOptions { mode: LogMode::Drain, ..log }),
            (_, _) => Some(log),
        }
    }

    /// Puts everybody to work.
    fn start(&self, mounts: &[Mount]) -> Vec<Work> {
        self.crowds.iter().zip(mounts).map(|(crowd, mount)| crowd.start(mount, self.lives)).collect()
    }

    /// One life, from mount to end.
    async fn life(&mut self) -> Check<()> {
        let mounts = self.begin().await?;
        let work = self.start(&mounts);
        let most = if self.dice.chance(200) { STEPS_FEW } else { STEPS_MAX };
        let wanted = self.steps() + self.most(1 + self.dice.below(most));
        if self.dice.chance(600) {
            self.set_trap();
        }
        self.wait(wanted).await?;
        if self.dice.chance(200) && !self.world.sprung() {
            self.world.disarm();
            end(work).await?;
            return self.unmount(&mounts, Close::Sometimes).await;
        }
        if !self.world.sprung() {
            time::sleep(self.dice.time_below(Duration::from_millis(100))).await;
        }
        self.crash(&nodes(&mounts)).await
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
            self.world.alarm.check()?;
            let now = TimeHandle::current().elapsed();
            if self.steps() > steps {
                (steps, since) = (self.steps(), now);
            }
            // One step may be a look at many files, each of which takes as long as a wait may.
            if now > since + 5 * PATIENCE {
                return Err("nothing happens any more".into());
            }
        }
        self.world.alarm.check()
    }

    fn steps(&self) -> u64 {
        self.crowds.iter().map(Crowd::steps).sum()
    }

    /// Ends a life suddenly.
    async fn crash(&mut self, nodes: &[NodeHandle]) -> Check<()> {
        let ending = [Ending::Kill, Ending::PowerCut, Ending::PowerCut, Ending::MetaPowerCut];
        let ending = ending[self.dice.below(4) as usize];
        self.outcome.crashes += 1;
        self.kill(nodes, ending).await
    }

    async fn kill(&mut self, nodes: &[NodeHandle], ending: Ending) -> Check<()> {
        nodes.iter().for_each(|node| Handle::current().kill(node.id()));
        let point = self.world.disarm();
        self.world.trace.add(format!("{ending:?} at {point:?}"));
        self.world.alarm.check()?;
        self.world.end(ending);
        // The tasks of the node are dropped.
        time::sleep(Duration::from_millis(2)).await;
        sound(&self.world)
    }

    /// Unmounts all clients; one that cannot is killed with the others.
    async fn unmount(&mut self, mounts: &[Mount], close: Close) -> Check<()> {
        self.world.alarm.check()?;
        for mount in mounts {
            if !self.unmounted(mount).await? {
                return self.crash(&nodes(mounts)).await;
            }
            if close == Close::Always || self.dice.chance(500) {
                self.close(mount, close).await?;
            }
        }
        self.crowds.iter().for_each(Crowd::all_durable);
        self.kill(&nodes(mounts), Ending::Unmount).await
    }

    async fn unmounted(&self, mount: &Mount) -> Check<bool> {
        self.world.trace.add("unmount");
        for _ in 0..20 {
            let client = mount.client.clone();
            let task = mount.node.spawn(async move { client.unmount().await });
            match time::timeout(PATIENCE, task).await {
                Err(_) => return Err("an unmount hangs".into()),
                Ok(Err(error)) => return Err(format!("an unmount ended: {error}")),
                Ok(Ok(Ok(()))) => return Ok(true),
                Ok(Ok(Err(_))) if self.world.meta.failed() => return Ok(false),
                // The store fails; what is dirty stays so, and the operator tries again.
                Ok(Ok(Err(error))) => self.world.trace.add(format!("unmount: {error}")),
            }
        }
        Ok(false)
    }

    /// Has everything that is in the logs put into the store, where the judges look.
    async fn drain(&self, mounts: &[Mount]) -> Check<()> {
        self.world.mend_barriers();
        for mount in mounts {
            let env = mount.env.clone();
            let task = mount.node.spawn(async move { env.drain().await });
            let ended = time::timeout(PATIENCE * 5, task).await.map_err(|_| "the log does not drain")?;
            ended.map_err(|error| format!("a drain ended: {error}"))?;
        }
        Ok(())
    }

    /// Ends the log of a mount, empty if all goes well.
    async fn close(&self, mount: &Mount, close: Close) -> Check<()> {
        let drains = close == Close::Always || self.dice.chance(700);
        if drains {
            self.world.mend_barriers();
        }
        self.world.trace.add(format!("close, drained: {drains}, {:?}", mount.env.log_status()));
        let env = mount.env.clone();
        let task = mount.node.spawn(async move {
            if drains {
                env.drain().await;
            }
            env.close().await
        });
        let closed = time::timeout(PATIENCE * 5, task).await.map_err(|_| "the end of the log hangs")?;
        match closed.map_err(|error| format!("the end of the log ended: {error}"))? {
            Ok(true) => self.empty(),
            // What is left is for the next mount.
            Ok(false) if !drains => Ok(()),
            Ok(false) | Err(_) if self.world.faults.are_on() => Ok(()),
            other => Err(format!("without faults the log was not closed: {other:?}")),
        }
    }

    /// Nothing says that there is a log.
    fn empty(&self) -> Check<()> {
        let home = self.world.meta.peek(meta::volume::load).expect("there is a volume").log;
        let numbers = self.world.disk.numbers();
        if home.is_none() && numbers.is_empty() {
            return Ok(());
        }
        Err(format!("the log is closed, but the volume says {home:?}, and its folder has segments {numbers:?}"))
    }

    /// The life in which the faults stop while there is still work under way, and everything must come to rest.
    async fn last_life(&mut self) -> Check<()> {
        let mut mounts = self.begin().await?;
        let work = self.start(&mounts);
        self.wait(self.steps() + self.most(20 + self.dice.below(40))).await?;
        self.world.faults.set_on(false);
        self.world.calm();
        if self.world.meta.failed() {
            self.crash(&nodes(&mounts)).await?;
            mounts = self.begin().await?;
        } else {
            // Errors of the past are told once, then there are none.
            end(work).await?;
        }
        for Mount { node, client, .. } in &mounts {
            flushed(&self.world, node, client).await?;
            filled(&self.world, client).await?;
        }
        // What a put left that took effect after its object was deleted, the next mount collects; and an inode of which
        // metadata could not be read when it was to be removed.
        let orphans = self.world.faults.level(Fault::ReadFailed) > 0;
        self.drain(&mounts).await?;
        drained(&self.world, &Excused { objects: self.world.objects.late(), orphans, packs: false }).await?;
        for Mount { env, .. } in &mounts {
            given_back(env).await?;
        }
        self.unmount(&mounts, Close::Sometimes).await?;
        let mounts = self.begin().await?;
        self.drain(&mounts).await?;
        drained(&self.world, &Excused::default()).await?;
        self.unmount(&mounts, Close::Always).await?;
        // What was being rewritten is left for the next mount to remove.
        match leftovers(&self.world, &Excused { packs: true, ..Excused::default() }).first() {
            Some(left) => Err(format!("after the last unmount: {left}")),
            None => Ok(()),
        }
    }
}

fn nodes(mounts: &[Mount]) -> Vec<NodeHandle> {
    mounts.iter().map(|mount| mount.node.clone()).collect()
}

async fn end(work: Vec<Work>) -> Check<()> {
    for work in work {
        work.end().await?;
    }
    Ok(())
}

/// Makes the volume of `world`, in which nothing fails yet.
pub async fn format(world: &World, geometry: Geometry, limits: Limits) {
    let id = VolumeId(*b"simulated volume");
    let volume = Volume {
        version: VOLUME_VERSION,
        id,
        name: "sim".into(),
        storage: "sim".into(),
        bucket: "sim".into(),
        geometry,
        capacity: limits.capacity,
        inodes: limits.inodes,
        created: world.clock.now(),
        acl: true,
        log: None,
        packs: false,
    };
    let ctx = OpCtx { now: world.clock.now(), stripe: 0, geometry };
    let formatted = world.meta.write(|txn| meta::volume::format(txn, &ctx, &volume, 0, 0)).await;
    world.meta.sync(formatted.expect("nothing fails yet").seq).await.expect("nothing fails yet");
    let marker: Bytes = block::encode_marker(id);
    world.objects.put(VOLUME_OBJECT, vec![marker]).await.expect("nothing fails yet");
    world.objects.barrier().await.expect("nothing fails yet");
}

/// Why a mount failed.
#[derive(Debug)]
enum Refused {
    Log(LogError),
    Volume(MountError),
}

impl Refused {
    /// Another attempt may succeed.
    fn passes(&self) -> bool {
        match self {
            Self::Log(LogError::Disk(_) | LogError::Meta(_)) => true,
            Self::Volume(error) | Self::Log(LogError::Volume(error)) => {
                matches!(error, MountError::Meta(_) | MountError::Store(_) | MountError::WrongBucket { .. })
            }
            Self::Log(LogError::Missing(_) | LogError::Foreign | LogError::Older { .. } | LogError::Unreadable) => {
                false
            }
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(error) => write!(f, "{error}"),
            Self::Volume(error) => write!(f, "{error}"),
        }
    }
}

async fn mount(
    world: &World,
    index: usize,
    node: &NodeHandle,
    options: &Options,
    log: Option<LogOptions>,
) -> Result<(Client<LoggedEnv>, LoggedEnv), Refused> {
    let env = world.env(index, node.clone());
    let env = match log {
        None => {
            let env = Logged::through(env);
            env.tend().await.map_err(Refused::Log)?;
            env
        }
        Some(log) => {
            world.trace.add(format!("the log is opened: {:?}", log.mode));
            let Opened { env, damage } = Logged::open(env, world.disk.clone(), log).await.map_err(Refused::Log)?;
            world.opened(&damage);
            env
        }
    };
    let client = Client::mount(env.clone(), options.clone()).await.map_err(Refused::Volume)?;
    Ok((client, env))
}
