//! A bystander: reads the applications' files and directories while they work on them.
//!
//! Owns: promise 3 (no invented bytes) for a reader that races with writers, truncates, commits and deletions.
//! Leaves to others: what the applications do (`apps`), what they had done when (`judge`).
//!
//! What it sees must be explained, byte by byte and name by name, by some state between the start and the end of its
//! call: the last one complete at the start, all that were completed meanwhile, and the one under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiseki_core::client::{Client, OpenFlags};
use kiseki_core::errno::Errno;
use kiseki_core::testkit::model::{Model, NodeId};
use kiseki_core::types::FileType;
use madsim::time;

use crate::apps::App;
use crate::dice::Dice;
use crate::judge::Judge;
use crate::kernel::Kernel;
use crate::observe::unexplained;
use crate::world::{LoggedEnv, World};

/// Longest pause between two looks.
const PAUSE: Duration = Duration::from_millis(40);

/// The bystander of one life.
pub struct Spy {
    apps: [Arc<App>; 2],
    world: World,
    kernel: Kernel,
    dice: Dice,
}

impl Spy {
    /// A bystander on `client`.
    pub fn new(apps: [Arc<App>; 2], world: World, client: Client<LoggedEnv>, dice: Dice) -> Self {
        let kernel = Kernel::new(client, dice.clone(), world.clone());
        Self { apps, world, kernel, dice }
    }

    /// Looks until it is told to stop or the life ends.
    pub async fn run(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) && !self.world.meta.failed() && self.world.alarm.raised().is_none() {
            let app = self.apps[self.dice.below(2) as usize].clone();
            let seen = if self.dice.chance(700) { self.file(&app).await } else { self.directory(&app).await };
            match seen {
                Ok(None) => {}
                // What it looked for is gone meanwhile, the store could not be read, or its metadata failed.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EISDIR | Errno::EINVAL | Errno::EIO) => {}
                Ok(Some(what)) => self.world.alarm.raise(format!("the bystander of {}: {what}", app.name())),
                Err(errno) => self.world.alarm.raise(format!("the bystander was answered {errno:?}")),
            }
            self.kernel.shrink(false);
            time::sleep(self.dice.time_below(PAUSE)).await;
        }
        self.kernel.shrink(true);
    }

    /// A name of `app` that leads to what is wanted, and the first state to judge by.
    fn pick(&self, app: &App, wanted: impl Fn(FileType) -> bool) -> Option<(String, NodeId, usize)> {
        let judge = app.judge();
        let mut paths = judge.model.paths();
        paths.retain(|(_, kind)| wanted(*kind));
        if paths.is_empty() {
            return None;
        }
        let (path, _) = paths.swap_remove(self.dice.below(paths.len() as u64) as usize);
        let id = judge.model.find(&path).expect("it was listed");
        Some((path, id, judge.now()))
    }

    async fn file(&mut self, app: &App) -> Result<Option<String>, Errno> {
        let Some((path, id, _)) = self.pick(app, |kind| kind == FileType::Regular) else { return Ok(None) };
        let ino = self.kernel.walk(&path).await?;
        if app.judge().inos.get(&id) != Some(&ino) {
            return Ok(None);
        }
        let flags = OpenFlags { read: true, ..OpenFlags::default() };
        let handle = self.kernel.client().open(ino, flags).await?;
        let mut wrong = Ok(None);
        for _ in 0..1 + self.dice.below(4) {
            let from = app.judge().now();
            let attr = self.kernel.client().getattr(ino).await;
            let possible = self.contents(app, from, id);
            if let Ok(attr) = attr
                && !possible.is_empty()
                && !possible.iter().any(|data| data.len() as u64 == attr.length)
            {
                wrong = Ok(Some(format!("{path} has length {}", attr.length)));
                break;
            }
            let from = app.judge().now();
            let (offset, len) = (self.dice.below(8192), 1 + self.dice.below(8192) as u32);
            let data = match self.kernel.read_once(handle, offset, len).await {
                Ok(data) => data,
                // It was removed for good after it was looked up and before that was counted.
                Err(Errno::ESTALE) if app.judge().model.try_node(id).is_none() => break,
                Err(errno) => {
                    wrong = Err(errno);
                    break;
                }
            };
            let possible = self.contents(app, from, id);
            // Nothing is said of a file that no state knows.
            if !possible.is_empty()
                && let Some(what) = unexplained(&possible, offset, len, &data)
            {
                wrong = Ok(Some(format!("{path} {what}")));
                break;
            }
            time::sleep(self.dice.time_below(PAUSE / 4)).await;
        }
        self.kernel.client().release(handle).await?;
        wrong
    }

    /// The contents of a file in the states from number `from` to this moment.
    fn contents(&self, app: &App, from: usize, id: NodeId) -> Vec<Arc<Vec<u8>>> {
        let judge = app.judge();
        let under_way = under_way(&judge);
        let mut contents: Vec<Arc<Vec<u8>>> = Vec::new();
        for node in states(&judge, from, under_way.as_ref()).into_iter().filter_map(|model| model.try_node(id)) {
            if !contents.last().is_some_and(|last| Arc::ptr_eq(last, &node.data)) {
                contents.push(node.data.clone());
            }
        }
        contents
    }

    async fn directory(&mut self, app: &App) -> Result<Option<String>, Errno> {
        let Some((path, id, from)) = self.pick(app, |kind| kind == FileType::Directory) else { return Ok(None) };
        let ino = self.kernel.walk(&path).await?;
        if app.judge().inos.get(&id).is_none_or(|known| *known != ino) {
            return Ok(None);
        }
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let page = self.kernel.client().readdir(ino, cookie, 1 + self.dice.below(4) as usize).await?;
            let Some(last) = page.last() else { break };
            cookie = last.cookie;
            names.extend(page.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
            madsim::task::yield_now().await;
        }
        let judge = app.judge();
        let under_way = under_way(&judge);
        let states = states(&judge, from, under_way.as_ref());
        let holds =
            |model: &Model, name: &String| model.try_node(id).is_some_and(|node| node.entries.contains_key(name));
        let known = states.iter().filter_map(|model| model.try_node(id)).flat_map(|node| node.entries.keys());
        for name in known {
            if states.iter().all(|model| holds(model, name)) && names.iter().filter(|seen| *seen == name).count() != 1 {
                return Ok(Some(format!("{path} does not list {name} once, though it was there all the time")));
            }
        }
        let own = names.iter().filter(|name| name.starts_with(judge.habits.letter));
        let never = own.clone().find(|name| !states.iter().any(|model| holds(model, name)));
        Ok(never.map(|name| format!("{path} lists {name}, which was never there")))
    }
}

/// The states from number `from` to this moment; the last is that of the operation `under_way`.
fn states<'a>(judge: &'a Judge, from: usize, under_way: Option<&'a Model>) -> Vec<&'a Model> {
    judge.history[from..].iter().map(|step| &step.model).chain(under_way).collect()
}

/// The state after the operation under way.
fn under_way(judge: &Judge) -> Option<Model> {
    let doubt = judge.doubt.as_ref()?;
    let mut after = judge.model.clone();
    after.apply(&doubt.op, judge.clock.span(doubt.start)).is_ok().then_some(after)
}
