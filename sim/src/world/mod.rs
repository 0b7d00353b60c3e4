//! The outside world of a simulated client.
//!
//! Owns: what outlives a client (metadata, objects, the disk of the write-back log, faults, the record of the run), and
//! `SimEnv`, a client's view of it. Leaves to others: the stores themselves (`meta`, `objects`, `disk`).
//!
//! Invariants
//! - Work that a store has begun runs on the world's own node: no client's death ends it.
//! - At a crash everything under way in a store is decided, one way or the other; nothing takes effect later.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kiseki_core::client::Logged;
use kiseki_core::env::{Edge, Env, Point};
use kiseki_core::planted::Bug;
use kiseki_core::store::log::Damage;
use kiseki_core::types::{STRIPES, Timestamp};
use madsim::runtime::{Handle, NodeHandle};
use madsim::task::NodeId;
use madsim::time::{self, TimeHandle};

use crate::dice::Dice;
use crate::faults::{Ending, Fault, Faults};
use crate::trace::Trace;

pub mod clock;
pub mod disk;
pub mod meta;
pub mod objects;
mod references;

use clock::Clock;
use disk::SimDisk;
use meta::SimMeta;
use objects::SimObjects;
use references::References;

/// Tasks that a client may start in a second. The applications here are slow: it needs some hundred.
const TASKS_MAX: u64 = 20_000;

/// How long others are busy, each third time.
const BUSY: Duration = Duration::from_millis(700);

/// Parts of the world that a test turns off, to see that a judge notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// A barrier makes puts durable.
    pub barrier: bool,
    /// A sync makes transactions durable.
    pub sync: bool,
    /// The world itself objects to a commit of bytes that are not durable, and to a deletion of what is referred to.
    pub oracles: bool,
    /// A bug of the client.
    pub planted: Option<Bug>,
}

impl Default for Switches {
    fn default() -> Self {
        Self { barrier: true, sync: true, oracles: true, planted: None }
    }
}

/// The first violation that anything has seen.
#[derive(Clone, Debug, Default)]
pub struct Alarm(Arc<Mutex<Option<String>>>);

impl Alarm {
    /// Reports a violation.
    pub fn raise(&self, text: impl Into<String>) {
        self.0.lock().unwrap().get_or_insert_with(|| text.into());
    }

    /// What was reported first, as an error.
    pub fn check(&self) -> Result<(), String> {
        self.raised().map_or(Ok(()), Err)
    }

    /// What was reported first.
    pub fn raised(&self) -> Option<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Everything that outlives a client; clones are the same world.
#[derive(Clone)]
pub struct World {
    /// The metadata store.
    pub meta: SimMeta,
    /// The object store.
    pub objects: SimObjects,
    /// The disk of the write-back log.
    pub disk: SimDisk,
    /// What goes wrong.
    pub faults: Faults,
    /// What happened.
    pub trace: Trace,
    /// What must not have happened.
    pub alarm: Alarm,
    dice: Dice,
    trap: Arc<Mutex<Trap>>,
    /// By client: the second that it is, and the tasks that were started in it.
    tasks: Arc<Mutex<BTreeMap<usize, (u64, u64)>>>,
    /// The wall clock.
    pub clock: Clock,
    /// All nodes there ever were.
    nodes: Arc<Mutex<Vec<NodeId>>>,
}

/// When a client dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It passes this point.
    At(Point),
    /// It has promised that something is durable.
    Promise,
}

/// A client that dies at a certain moment.
#[derive(Debug, Default)]
struct Trap {
    /// The kind of moment, and how many of them pass before.
    set: Option<(Moment, u64)>,
    /// It has snapped.
    sprung: Option<Moment>,
}

impl World {
    /// An empty world, in which faults are on.
    pub fn new(dice: Dice, trace: Trace, switches: Switches) -> Self {
        let node = Handle::current().create_node().name("world").build();
        let nodes = Arc::new(Mutex::new(vec![node.id()]));
        let faults = Faults::new(dice.clone());
        let alarm = Alarm::default();
        let parts = Parts {
            node,
            dice: dice.clone(),
            faults: faults.clone(),
            trace: trace.clone(),
            alarm: alarm.clone(),
            switches,
        };
        let references = References::default();
        let objects = SimObjects::new(parts.clone(), references.clone());
        let disk = SimDisk::new(parts.clone(), objects.clone(), references.clone());
        let meta = SimMeta::new(parts, objects.clone(), disk.clone(), references);
        Self {
            meta,
            objects,
            disk,
            faults,
            trace,
            alarm,
            dice,
            trap: Arc::default(),
            tasks: Arc::default(),
            clock: Clock::default(),
            nodes,
        }
    }

    /// Objects to a client that is busy with nothing.
    fn count_task(&self, client: usize) {
        let now = TimeHandle::current().elapsed().as_secs();
        let mut all = self.tasks.lock().unwrap();
        let tasks = all.entry(client).or_default();
        if tasks.0 != now {
            *tasks = (now, 0);
        }
        tasks.1 += 1;
        if tasks.1 > TASKS_MAX {
            self.alarm.raise(format!("a client spins: {TASKS_MAX} tasks in one second"));
        }
    }

    /// What the stores make of the end of a client. Its node is dead already.
    pub fn end(&self, ending: Ending) {
        self.faults.ended(ending);
        self.objects.end(ending);
        self.disk.end(ending);
        self.meta.end(ending);
    }

    /// Objects to a log that was opened before it is durable that the volume has one, or that has lost something.
    pub fn opened(&self, damage: &[Damage]) {
        if self.meta.log_is_unsynced() {
            self.alarm.raise("the log is open, and it is not durable that the volume has one");
        }
        if !damage.is_empty() {
            self.alarm.raise(format!("the log has lost what was durable: {damage:?}"));
        }
    }

    /// Kills the node of a client at the `after`-th moment of that kind from here on.
    pub fn kill_at(&self, moment: Moment, after: u64) {
        *self.trap.lock().unwrap() = Trap { set: Some((moment, after)), sprung: None };
    }

    /// Ends what goes on after the faults have stopped: an outage, a sync that is held up.
    pub fn calm(&self) {
        self.objects.calm();
        self.meta.calm();
    }

    /// Barriers succeed from here on: somebody waits for the end of a log, as long as that takes.
    pub fn mend_barriers(&self) {
        self.faults.exclude(&[Fault::BarriersFail]);
        self.objects.mend_barriers();
    }

    /// Lets `node` know of a moment; true if that was its last.
    pub fn pass(&self, moment: Moment, node: NodeId) -> bool {
        let mut trap = self.trap.lock().unwrap();
        match &mut trap.set {
            Some((wanted, after)) if *wanted == moment && *after > 0 => *after -= 1,
            Some((wanted, _)) if *wanted == moment => {
                *trap = Trap { set: None, sprung: Some(moment) };
                Handle::current().kill(node);
                return true;
            }
            Some(_) | None => {}
        }
        false
    }

    /// When a client was killed, if one was; and no other will be.
    pub fn disarm(&self) -> Option<Moment> {
        std::mem::take(&mut *self.trap.lock().unwrap()).sprung
    }

    /// Whether a client was killed.
    pub fn sprung(&self) -> bool {
        self.trap.lock().unwrap().sprung.is_some()
    }

    /// Ends whatever still runs: a task that waits holds the world that it waits in, and would do so for ever.
    pub async fn close(&self) {
        let nodes = std::mem::take(&mut *self.nodes.lock().unwrap());
        nodes.into_iter().for_each(|node| Handle::current().kill(node));
        // What was killed goes when its turn comes.
        time::sleep(Duration::from_millis(1)).await;
    }

    /// The view of client `index`, which runs on `node`.
    pub fn env(&self, index: usize, node: NodeHandle) -> SimEnv {
        self.nodes.lock().unwrap().push(node.id());
        SimEnv { world: self.clone(), index, node }
    }
}

/// What the stores are made of.
#[derive(Clone)]
struct Parts {
    node: NodeHandle,
    dice: Dice,
    faults: Faults,
    trace: Trace,
    alarm: Alarm,
    switches: Switches,
}

impl Parts {
    /// Lets some time pass; often none.
    async fn delay(&self, usual: Duration) {
        let latency = self.dice.latency(usual);
        if latency > Duration::from_millis(1) {
            time::sleep(latency).await;
        } else {
            madsim::task::yield_now().await;
        }
    }
}

/// A sleep that sets one timer. That of madsim sets another at each poll, and the client polls many deadlines at once.
struct Sleep {
    inner: Pin<Box<time::Sleep>>,
    /// Who is woken by the timer that is set.
    waker: Option<Waker>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.inner.is_elapsed() {
            return Poll::Ready(());
        }
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.inner.as_mut().poll(cx)
    }
}

/// What a client is mounted on: a view of a world, behind a write-back log or without one.
pub type LoggedEnv = Logged<SimEnv, SimDisk>;

/// One client's view of a world.
#[derive(Clone)]
pub struct SimEnv {
    world: World,
    index: usize,
    node: NodeHandle,
}

impl SimEnv {
    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }
}

impl Env for SimEnv {
    type Meta = SimMeta;
    type Objects = SimObjects;

    fn meta(&self) -> &SimMeta {
        &self.world.meta
    }

    fn objects(&self) -> &SimObjects {
        &self.world.objects
    }

    fn now(&self) -> Duration {
        TimeHandle::current().elapsed()
    }

    fn wall(&self) -> Timestamp {
        if let Some(to) = self.world.clock.jump(&self.world.faults, &self.world.dice) {
            self.world.trace.add(format!("the clock is set to {to:?}"));
        }
        self.world.clock.now()
    }

    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send {
        Sleep { inner: Box::pin(time::sleep(at.saturating_sub(self.now()))), waker: None }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.world.count_task(self.index);
        drop(self.node.spawn(task));
    }

    fn stripe(&self) -> u8 {
        self.world.dice.below(u64::from(STRIPES)) as u8
    }

    /// For a while each, now and then.
    fn is_busy(&self) -> bool {
        self.now().as_millis() / BUSY.as_millis() % 3 == self.index as u128 % 3
    }

    async fn pause(&self) {
        if Handle::current().is_exit(self.node.id()) {
            // A dead client gets no further; its task is dropped here.
            std::future::pending::<()>().await;
        }
        if self.world.dice.chance(200) {
            madsim::task::yield_now().await;
        }
    }

    fn at(&self, point: Point, _edge: Edge) {
        self.world.faults.called(match point {
            Point::Put => "passed put",
            Point::Commit => "passed commit",
            Point::Truncate => "passed truncate",
            Point::RenameOver => "passed rename over",
        });
        self.world.pass(Moment::At(point), self.node.id());
    }
}
