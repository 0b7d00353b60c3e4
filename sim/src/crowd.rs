//! Everybody who works on one client's mount, over all its lives: applications, a bystander, rivals, a crew.
//!
//! Owns: who they are, putting them to work, what each of them must find after a mount.
//! Leaves to others: when a life begins and ends (`run`), what each of them does and is judged by.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiseki_core::client::Client;
use kiseki_core::errno::Errno;
use kiseki_core::testkit::model::{Model, Stamp};
use kiseki_core::testkit::ops::{Habits, Op};
use kiseki_core::types::{FileType, Geometry, Ino};
use madsim::runtime::NodeHandle;
use madsim::task::JoinHandle;
use madsim::time;

use crate::apps::{App, Life};
use crate::crew::Crew;
use crate::dice::Dice;
use crate::faults::Fault;
use crate::judge::{Durable, Judge};
use crate::kernel::{CALLER, Kernel};
use crate::observe::{Contents, Tree};
use crate::plan::Plan;
use crate::recovery;
use crate::rivals::{self, Rivals};
use crate::spy::Spy;
use crate::world::{LoggedEnv, World};

/// Files end below this: twenty chunks on some volumes, two on others.
const LENGTH_MAX: u64 = 5 * 4096;
/// In how many of 1000 seeds two writers share a file.
const RIVALRY: u64 = 400;
/// In how many of 1000 seeds several tasks change the same names.
const CREWED: u64 = 400;
/// No wait of a client is longer than its deadlines allow: nothing happening for so long is a hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Applications of each client.
const APPS: usize = 2;
/// The directory in which all applications work.
const SHARED: &str = "/s";

/// A client that has mounted, and the node that it runs on.
#[derive(Clone)]
pub struct Mount {
    /// Its machine.
    pub node: NodeHandle,
    /// The mount.
    pub client: Client<LoggedEnv>,
    /// What it is mounted on.
    pub env: LoggedEnv,
}

/// The crowd of one client.
pub struct Crowd {
    world: World,
    plan: Plan,
    dice: Dice,
    /// The applications.
    pub apps: [Arc<App>; APPS],
    /// In some seeds.
    rivals: Option<Rivals>,
    /// In some seeds.
    crew: Option<Crew>,
}

/// The tasks of a life.
pub struct Work {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Work {
    /// Lets everybody close their files and go.
    pub async fn end(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            // The last look of an application asks a store that hangs for many blocks, and again.
            let ended = time::timeout(PATIENCE * 5, task).await;
            ended.map_err(|_| "an application hangs")?.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// What the judges had to do with a life that has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    /// Steps lost, of all that were not durable.
    pub lost: u64,
    /// Promises of durability.
    pub promises: u64,
}

impl Crowd {
    /// The crowd of client `index`; `settle` makes what it starts from. Applications look after `looks` of 1000
    /// operations, and may be mounted without access times.
    pub fn new(
        world: &World,
        plan: &Plan,
        index: usize,
        geometry: Geometry,
        (looks, noatime): (u64, bool),
        dice: Dice,
    ) -> Self {
        let seed = plan.seed;
        let app = |number: usize| {
            let (letter, number) = (letter(index, number), (APPS * index + number) as u64);
            let stamp = Stamp::exactly(world.clock.now());
            let homes = vec![format!("/{letter}"), SHARED.to_string()];
            let mut model = Model::new(stamp);
            if noatime {
                model.set_noatime();
            }
            for path in &homes {
                let made = model.apply(&Op::Mkdir { path: path.clone(), mode: 0o755 }, stamp);
                made.expect("the model is empty");
            }
            let borders = vec![geometry.frame_size.into(), geometry.block_size.into(), geometry.chunk_size];
            let habits = Habits { letter, homes, length_max: LENGTH_MAX, borders };
            App::new(Judge::new(habits, model, world.clock.clone()), Dice::new(seed, 10 + number), number << 24, looks)
        };
        let apps = [app(0), app(1)];
        // They share one file of the volume; one crowd has them.
        let rivalry = index == 0 && plan.alone.is_none() && Dice::new(seed, 4).chance(RIVALRY);
        let rivals = rivalry.then(Rivals::default);
        let crew = (index == 0 && plan.alone.is_none() && Dice::new(seed, 6).chance(CREWED)).then(Crew::default);
        Self { world: world.clone(), plan: plan.clone(), dice, apps, rivals, crew }
    }

    /// Makes what all crowds of a volume of so many clients start from.
    pub async fn settle(client: &Client<LoggedEnv>, clients: usize) {
        let homes = (0..clients).flat_map(|index| (0..APPS).map(move |app| format!("/{}", letter(index, app))));
        for path in homes.chain([SHARED.to_string()]) {
            let made = client.mknod(CALLER, Ino::ROOT, &path.as_bytes()[1..], FileType::Directory, 0o755, 0).await;
            made.expect("nothing fails yet");
        }
        let made = client.mknod(CALLER, Ino::ROOT, rivals::NAME.as_bytes(), FileType::Regular, 0o644, 0).await;
        made.expect("nothing fails yet");
        Crew::settle(client).await.expect("nothing fails yet");
    }

    /// Operations of its applications, over all lives.
    pub fn steps(&self) -> u64 {
        self.apps.iter().map(|app| app.steps.load(Ordering::Relaxed)).sum()
    }

    /// Puts everybody to work in life number `life`.
    pub fn start(&self, mount: &Mount, life: u64) -> Work {
        let Mount { node, client, .. } = mount;
        let stop = Arc::new(AtomicBool::new(false));
        let alone = |index: &usize| self.plan.alone.is_none_or(|alone| alone == *index);
        let app = |index: usize| {
            let others = vec![self.apps[1 - index].clone()];
            let (app, world) = (self.apps[index].clone(), self.world.clone());
            node.spawn(Life::new(app, others, world, client.clone(), node.id(), stop.clone()).run())
        };
        let mut tasks: Vec<JoinHandle<()>> = [0, 1].into_iter().filter(alone).map(app).collect();
        for appends in [false, true] {
            if let Some(rivals) = self.rivals.clone() {
                let dice = Dice::new(self.plan.seed, 2 * life + u64::from(appends) + 100);
                tasks.push(node.spawn(rivals.run(client.clone(), self.world.clone(), dice, appends, stop.clone())));
            }
        }
        let spy = Spy::new(self.apps.clone(), self.world.clone(), client.clone(), self.dice.clone());
        tasks.push(node.spawn(spy.run(stop.clone())));
        if let Some(crew) = self.crew.clone() {
            let dice = Dice::new(self.plan.seed, life + 1000);
            tasks.push(node.spawn(crew.run(client.clone(), self.world.clone(), dice, stop.clone())));
        }
        Work { stop, tasks }
    }

    /// Everything that was done so far is durable.
    pub fn all_durable(&self) {
        for app in &self.apps {
            let mut judge = app.judge();
            let now = judge.now();
            judge.durable.push(Durable::All(now));
        }
        self.rivals.iter().for_each(Rivals::all_durable);
        self.crew.iter().for_each(Crew::all_durable);
    }

    /// Looks at everything after a mount, and finds the states of the last life that explain it.
    pub async fn verify(&self, mount: &Mount) -> Result<Tried, String> {
        let Mount { node, client, .. } = mount;
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
        if let Some(crew) = self.crew.clone() {
            let (client, world) = (client.clone(), self.world.clone());
            let look = node.spawn(async move { crew.verify(&client, &world).await });
            let looked = time::timeout(PATIENCE * 5, look).await.map_err(|_| "looking around hangs")?;
            looked.map_err(|error| error.to_string())??;
        }
        let mut tried = Tried::default();
        let mut verdicts = Vec::new();
        for (app, tree) in self.apps.iter().zip(&trees) {
            let judge = app.judge();
            tried.promises += judge.durable.len() as u64;
            let found = recovery::explain(&judge, tree);
            verdicts.push(found.map_err(|what| format!("application {}: {what}", judge.habits.letter))?);
        }
        let chosen = {
            let judges = [&*self.apps[0].judge(), &*self.apps[1].judge()];
            recovery::agree(judges, [&verdicts[0], &verdicts[1]])?
        };
        for (index, choice) in [(0, chosen.0), (1, chosen.1)] {
            let verdict = &verdicts[index][choice];
            tried.lost += verdict.lost as u64;
            let text = format!("found {} as after step {}, {} lost", index, verdict.step, verdict.lost);
            self.world.trace.add(text);
            let mut judge = self.apps[index].judge();
            judge.restart(verdict.model.clone());
            judge.adopt(&trees[index])?;
        }
        Ok(tried)
    }
}

/// First letter of the names of application `app` of client `index`, and the name of its home. (`r`, `s` and `x` are
/// taken)
fn letter(index: usize, app: usize) -> char {
    char::from(b'a' + (APPS * index + app) as u8)
}

/// What an application sees after a mount: all contents, however often the store must be asked.
async fn look(app: &App, world: &World, client: Client<LoggedEnv>) -> Result<Tree, String> {
    for attempt in 0..20 {
        let mut kernel = app.kernel(client.clone(), world);
        let tree = app.look(&mut kernel, &Contents::All).await;
        kernel.shrink(true);
        let tree = match tree {
            Ok(tree) => tree,
            Err(Errno::EIO) if world.faults.may_strike(Fault::ReadFailed) && !world.meta.failed() => {
                if attempt >= 5 {
                    world.faults.set_on(false);
                }
                continue;
            }
            // Only a failed store excuses this, and then the faults go on hold.
            Err(errno) if world.meta.failed() => return Err(format!("the store failed while looking: {errno:?}")),
            Err(errno) => return Err(format!("looking at the tree answered {errno:?}")),
        };
        let unread = tree.iter().find(|(_, seen)| seen.attr.kind == FileType::Regular && seen.data.is_none());
        let Some((path, _)) = unread else { return Ok(tree) };
        if attempt >= 5 {
            world.faults.set_on(false);
            world.calm();
        }
        if attempt > 15 {
            return Err(format!("{path} cannot be read, though the store is well"));
        }
    }
    unreachable!("the last attempts return")
}
