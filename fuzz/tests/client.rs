//! The whole core: operation sequences on the client against the model, with kills, power cuts and remounts between
//! and in the middle of operations.
//!
//! The bytes of an input are a seed and the knobs, then what is done. The seed decides what no application chooses:
//! the order of the client's tasks, failures of the store, what a power cut leaves.
//! A failure shows what its input does, `KISEKI_FUZZ_LOG=1` what each does.

use std::sync::Once;
use std::time::Duration;

use bolero::check;
use kiseki_core::client::{Client, Options};
use kiseki_core::env::Env;
use kiseki_core::testkit::judge::{Claim, Crash, Judge};
use kiseki_core::testkit::ops::{Generator, Habits, Op, SLOTS, Source};
use kiseki_core::types::{AtimeMode, Geometry, Timestamp};

mod kept;
#[path = "client/kernel.rs"]
mod kernel;
#[path = "client/log.rs"]
mod log;
#[path = "client/world.rs"]
mod world;

use kept::Kept;
use kernel::Kernel;
use world::World;

/// Steps of one input at most.
const STEPS_MAX: usize = 300;
/// Files end below this: more than a burst of the generator is wide, and several chunks.
const LENGTH_MAX: u64 = 2048;
/// Polls of the executor after which a crash in the middle of an operation comes at the latest.
const POLLS_MAX: u64 = 64;
/// Time in which upkeep must have come to its end, and the steps in which it is waited for.
const DRAIN: Duration = Duration::from_secs(600);
const DRAIN_STEP: Duration = Duration::from_secs(5);

/// The bytes of an input as choices; zeros where there are none left.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u64 {
        self.0.split_off_first().map_or(0, |byte| u64::from(*byte))
    }
}

impl Source for Choices<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        let (mut number, mut known) = (self.byte(), 1u128 << 8);
        while known < u128::from(bound) {
            (number, known) = (number << 8 | self.byte(), known << 8);
        }
        number % bound
    }
}

/// What happens beside operations.
#[derive(Clone, Copy, Debug)]
enum Event {
    Crash(Crash),
    /// In the middle of the next operation.
    CrashWithin(Crash, u64),
    Remount,
    /// The kernel forgets what is not open.
    Shrink,
    /// Nothing is done for so long.
    Wait(Duration),
}

impl Event {
    fn draw(source: &mut impl Source) -> Self {
        let crash = if source.below(2) == 0 { Crash::Kill } else { Crash::PowerCut };
        match source.below(8) {
            0 => Self::Crash(crash),
            1..=3 => Self::CrashWithin(crash, 1 + source.below(POLLS_MAX)),
            4 => Self::Remount,
            5 => Self::Shrink,
            _ => Self::Wait(Duration::from_millis(1 << source.below(14))),
        }
    }
}

/// One input under way.
struct Game<'a> {
    world: World,
    options: Options,
    failures: u64,
    kernel: Kernel,
    judge: Judge,
    generator: Generator<Choices<'a>>,
    /// One in so many operations is followed by a look at everything.
    looks: u64,
    log: bool,
}

type Check<T> = Result<T, String>;

impl<'a> Game<'a> {
    fn new(bytes: &'a [u8]) -> Check<Self> {
        let mut source = Choices(bytes);
        let seed = source.below(1 << 16);
        let sizes = [(512, 128, 32, 16), (256, 64, 16, 0), (1024, 256, 64, 40)];
        let (chunk_size, block_size, frame_size, inline_max) = sizes[source.below(3) as usize];
        let geometry = Geometry { chunk_size, block_size, frame_size, inline_max };
        let mut one_of = |choices: [u64; 4]| choices[source.below(4) as usize];
        let options = Options {
            // Room for the largest write, and for not much more.
            buffer_size: one_of([2, 3, 8, 64]) * LENGTH_MAX,
            commit_interval: Duration::from_millis(one_of([8, 80, 800, 8000])),
            max_uploads: one_of([1, 2, 4, 16]) as usize,
            inode_lease: one_of([1, 2, 8, 1 << 16]),
            slice_lease: one_of([1, 3, 20, 4096]),
            // What the judge knows of access times is what was set.
            atime: AtimeMode::Noatime,
            whole_max: 2 * frame_size,
            ..Options::default()
        };
        let (failures, looks) = (one_of([0, 0, 30, 200]), one_of([1, 1, 4, 16]));
        let world = World::new(geometry, seed);
        let borders = vec![frame_size.into(), block_size.into(), chunk_size];
        let home = "/a".to_string();
        let habits = Habits { letter: 'a', homes: vec![home.clone()], length_max: LENGTH_MAX, borders };
        let client = world.run(None, Client::mount(world.clone(), options.clone())).expect("nothing ends it");
        let mut game = Self {
            kernel: Kernel::new(client.map_err(|error| error.to_string())?, world.clone()),
            world,
            options,
            failures,
            judge: Judge::new(Timestamp::default()),
            generator: Generator::new(habits, source, 0),
            looks,
            log: kept::is_shown(),
        };
        game.operation(&Op::Mkdir { path: home, mode: 0o755 }, None)?;
        // A home is there whatever is lost.
        game.operation(&Op::Sync, None)?;
        Ok(game)
    }

    fn note(&self, what: impl std::fmt::Debug) {
        if self.log {
            eprintln!("{what:?}");
        }
    }

    fn play(&mut self) -> Check<()> {
        let mut within = None;
        for _ in 0..STEPS_MAX {
            let source = self.generator.source();
            if source.0.is_empty() {
                break;
            }
            if source.below(12) == 0 {
                let event = Event::draw(source);
                self.note(event);
                match event {
                    Event::Crash(crash) => self.crash(&self.judge.claim(None), crash)?,
                    Event::CrashWithin(crash, polls) => within = Some((crash, polls)),
                    Event::Remount => self.remount()?,
                    Event::Shrink => self.kernel.shrink(),
                    Event::Wait(time) => self.wait(time),
                }
            } else {
                let op = self.generator.draw(self.judge.model());
                self.note(&op);
                self.operation(&op, within.take())?;
                if self.generator.source().below(self.looks) == 0 {
                    self.look()?;
                }
            }
        }
        self.end()
    }

    /// Does `op`; `within`: the crash that comes after so many polls, unless it has returned by then.
    fn operation(&mut self, op: &Op, within: Option<(Crash, u64)>) -> Check<()> {
        let (expected, mut after) = self.judge.after(op, self.world.tick());
        let (world, kernel) = (self.world.clone(), &mut self.kernel);
        match world.run(within.map(|(_, polls)| polls), kernel.call(op)) {
            Some(answer) if answer == expected => {
                if answer.is_ok() {
                    after.promise(op, matches!(op, Op::Write { slot, .. } if self.kernel.is_sync(*slot)));
                }
                self.judge = after;
                Ok(())
            }
            Some(answer) => Err(format!("{op:?} answered {answer:?}, should have been {expected:?}")),
            None => {
                let (crash, _) = within.expect("a call that nothing ends returns");
                self.crash(&self.judge.claim(Some(&after)), crash)
            }
        }
    }

    /// Compares everything with what an application sees.
    fn look(&mut self) -> Check<()> {
        let (world, kernel) = (self.world.clone(), &mut self.kernel);
        let looking = async {
            let tree = kernel.look().await?;
            Ok::<_, String>((tree, kernel.look_open().await?))
        };
        let (tree, open) = world.run(None, looking).expect("nothing ends it")?;
        self.judge.look(&tree, &open)
    }

    fn wait(&self, time: Duration) {
        self.world.run(None, self.world.sleep_until(self.world.now() + time)).expect("nothing ends it");
    }

    /// A crash, and what is found at the next mount. What is right then is `claim`.
    fn crash(&mut self, claim: &Claim, mut crash: Crash) -> Check<()> {
        let mut world = self.world.end(crash);
        world.fail(0);
        let client = loop {
            world.check(false).map_err(|what| format!("{crash}: {what}"))?;
            // Mounts are cut short, too, now and then.
            let polls = (world.below(4) == 0).then(|| 1 + world.below(POLLS_MAX));
            match world.run(polls, Client::mount(world.clone(), self.options.clone())) {
                Some(client) => break client.map_err(|error| format!("after the crash: {error}"))?,
                None => {
                    let again = if world.below(2) == 0 { Crash::Kill } else { Crash::PowerCut };
                    world = world.end(again);
                    if again == Crash::PowerCut {
                        crash = again;
                    }
                }
            }
        };
        let mut kernel = Kernel::new(client, world.clone());
        let tree = world.run(None, kernel.look()).expect("nothing ends it")?;
        let model = self.judge.explain(claim, crash, &tree).map_err(|what| {
            format!("{crash}; found:\n    {what}\n  allowed:\n{}", self.judge.describe(claim, crash))
        })?;
        world.fail(self.failures);
        self.judge = Judge::of(model);
        (self.world, self.kernel) = (world, kernel);
        self.look()
    }

    fn remount(&mut self) -> Check<()> {
        self.unmount()?;
        let mounted = self.world.run(None, Client::mount(self.world.clone(), self.options.clone()));
        let client = mounted.expect("nothing ends it").map_err(|error| format!("a mount: {error}"))?;
        self.kernel = Kernel::new(client, self.world.clone());
        self.world.fail(self.failures);
        self.look()
    }

    fn unmount(&mut self) -> Check<()> {
        for slot in (0..SLOTS).filter(|slot| self.judge.model().is_open(*slot)).collect::<Vec<_>>() {
            self.operation(&Op::Close { slot }, None)?;
        }
        self.world.fail(0);
        self.kernel.shrink();
        self.world
            .run(None, self.kernel.client.unmount())
            .expect("nothing ends it")
            .map_err(|left| left.to_string())?;
        self.judge.promise_all();
        // What is left of the mount has nothing more to do: it ends as its process does.
        self.world = self.world.end(Crash::Kill);
        self.world.check(false)
    }

    /// All is well in the end: everything is as it should be, and nothing is left that nobody needs.
    fn end(&mut self) -> Check<()> {
        self.look()?;
        self.remount()?;
        self.world.fail(0);
        let until = self.world.now() + DRAIN;
        while let Err(what) = self.world.check(true) {
            if self.world.now() > until {
                return Err(format!("at the end, {what}"));
            }
            self.wait(DRAIN_STEP);
        }
        self.look()?;
        self.unmount()?;
        self.world.check(true)
    }
}

#[test]
fn client_does_what_the_model_does() {
    static LOGGER: Once = Once::new();
    LOGGER.call_once(|| tracing::subscriber::set_global_default(log::ErrorsPanic).expect("there is no other"));
    let kept = Kept::of("client_does_what_the_model_does");
    check!().with_iterations(300).with_max_len(3000).for_each(|bytes: &[u8]| {
        kept.seen();
        let played = Game::new(bytes).and_then(|mut game| {
            let played = game.play();
            // Its tasks hold the world, and it holds them.
            drop(game.world.end(Crash::Kill));
            played
        });
        played.unwrap_or_else(|what| panic!("{what}"));
    });
}
