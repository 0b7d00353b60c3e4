//! All sequences of some length, and every crash of each.
//!
//! Owns: the order of the sequences, sharing the work on common beginnings, which states were judged already.
//! Leaves to others: what a sequence is made of (`choices`), what is right (`testkit::judge`, `recovery`).
//!
//! Sequence number n is n written in digits of base `choices.len()`, the first choice first.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kiseki_core::env::TxnSeq;
use kiseki_core::format::keys;
use kiseki_core::kv::Read;
use kiseki_core::kv::mem::MemKv;
use kiseki_core::testkit::judge::{Claim, Crash, Judge};
use kiseki_core::testkit::ops::{Op, SLOTS};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::choices::{After, Choice, base};
use super::mistakes::Mistake;
use super::recovery::Order;
use super::world::{Event, Form, Left, Moment, Stores, World};

/// When the first choice is made; each takes so many seconds.
const START: i64 = 2000;
const CHOICE_TAKES: i64 = 100;
/// When the mount after a crash is made.
const AFTER_CRASH: i64 = 9000;

/// Which sequences.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) form: Form,
    pub(crate) choices: Vec<Choice>,
    pub(crate) length: u32,
    /// Every so-manieth sequence. (1: all)
    pub(crate) stride: u64,
    /// Whether the mount after a crash is crashed, too.
    pub(crate) crash_recovery: bool,
}

impl Plan {
    /// Number of sequences, were there no stride.
    fn all(&self) -> u64 {
        (self.choices.len() as u64).pow(self.length)
    }

    /// Number of sequences.
    pub(crate) fn count(&self) -> u64 {
        self.all().div_ceil(self.stride)
    }

    /// The choices of a sequence.
    fn digits(&self, number: u64) -> Vec<usize> {
        let base = self.choices.len() as u64;
        (0..self.length).rev().map(|place| (number / base.pow(place) % base) as usize).collect()
    }
}

/// What was gone through so far.
#[derive(Debug, Default)]
pub(crate) struct Explorer {
    mistake: Option<Mistake>,
    sequences: AtomicU64,
    crash_points: AtomicU64,
    /// Hashes of what was judged: the stores, and what may be found in them.
    seen: Mutex<HashSet<u128>>,
    /// Of the lowest sequence that failed.
    failure: Mutex<Option<(u64, String)>>,
    failed: AtomicBool,
}

/// The crashes so far of one course.
#[derive(Clone, Debug)]
struct Trail {
    places: Vec<String>,
    worst: Crash,
    /// Whether the mount after the next one is crashed, too.
    crash_recovery: bool,
}

impl Trail {
    fn new(crash_recovery: bool) -> Self {
        Self { places: Vec::new(), worst: Crash::Kill, crash_recovery }
    }

    /// One more.
    fn and(&self, place: String, crash: Crash) -> Self {
        let places = self.places.iter().cloned().chain([place]).collect();
        Self { places, worst: crash, ..*self }
    }

    /// The mount after it went so far in this order; the next one is not crashed.
    fn recovered(&self, order: Order) -> Self {
        let places = self.places.iter().cloned().chain([format!("then a mount, {order:?}")]).collect();
        Self { places, crash_recovery: false, ..*self }
    }
}

/// A sequence under way.
#[derive(Clone, Debug)]
struct Course {
    world: World,
    judge: Judge,
    /// The choices made.
    names: Vec<String>,
}

impl Explorer {
    pub(crate) fn new(mistake: Option<Mistake>) -> Self {
        Self { mistake, ..Self::default() }
    }

    pub(crate) fn sequences(&self) -> u64 {
        self.sequences.load(Ordering::Relaxed)
    }

    /// Stores that a crash may have left, counted each time that they are met.
    pub(crate) fn crash_points(&self) -> u64 {
        self.crash_points.load(Ordering::Relaxed)
    }

    /// What was done so far. (states: of the crash points, each counted once)
    pub(crate) fn summary(&self) -> String {
        let states = self.seen.lock().expect("no thread panics with it").len();
        format!("sequences={} crash_points={} states={states}", self.sequences(), self.crash_points())
    }

    /// Goes through a plan with `threads` threads; ends early with what is wrong.
    pub(crate) fn run(&self, plan: &Plan, threads: usize) -> Result<(), String> {
        let start = Course::start(plan.form, self.mistake);
        // Work is handed out by the first choice, so that no beginning is gone through twice.
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let first = next.fetch_add(1, Ordering::Relaxed);
                        if first >= plan.choices.len() as u64 || self.failed.load(Ordering::Relaxed) {
                            return;
                        }
                        self.run_from(plan, first, &start);
                    }
                });
            }
        });
        match self.failure.lock().expect("no thread panics with it").take() {
            Some((_, failure)) => Err(failure),
            None => Ok(()),
        }
    }

    /// One sequence.
    pub(crate) fn run_one(&self, form: Form, choices: &[Choice]) -> Result<(), String> {
        let mut course = Course::start(form, self.mistake);
        for choice in choices {
            course = self.choose(&course, choice, choices.len() == 1)?;
        }
        Ok(())
    }

    /// All sequences of the plan that start with this choice.
    fn run_from(&self, plan: &Plan, first: u64, start: &Course) {
        let share = plan.all() / plan.choices.len() as u64;
        let mut number = (first * share).next_multiple_of(plan.stride);
        // What the choices made so far have led to; the number of each.
        let mut path: Vec<(usize, Course)> = Vec::new();
        while number < (first + 1) * share {
            let digits = plan.digits(number);
            let common = path.iter().zip(&digits).take_while(|((made, _), digit)| made == *digit).count();
            path.truncate(common);
            for &digit in &digits[common..] {
                let before = path.last().map_or(start, |(_, course)| course);
                match self.choose(before, &plan.choices[digit], plan.crash_recovery) {
                    Ok(course) => path.push((digit, course)),
                    Err(failure) => {
                        self.failed.store(true, Ordering::Relaxed);
                        let mut lowest = self.failure.lock().expect("no thread panics with it");
                        if lowest.as_ref().is_none_or(|(other, _)| number < *other) {
                            *lowest = Some((number, failure));
                        }
                        return;
                    }
                }
            }
            self.sequences.fetch_add(1, Ordering::Relaxed);
            number += plan.stride;
        }
    }

    /// Makes a choice after `before` and judges every crash meanwhile.
    fn choose(&self, before: &Course, choice: &Choice, crash_recovery: bool) -> Result<Course, String> {
        let mut course = before.clone();
        course.names.push(choice.name());
        let (mut moments, mut lived) = (Vec::new(), Ok(()));
        let result = catch_unwind(AssertUnwindSafe(|| {
            lived = course.choose(choice, before.names.len(), &mut moments);
        }));
        result
            .map_err(|panic| format!("panicked: {}", text_of(&*panic)))
            .and(lived)
            .map_err(|what| format!("{}\n  without a crash: {what}\n{}", course.title(), course.command()))?;
        let mut hashes = Hashes::new(&course.world.kv);
        for (moment, claim) in &moments {
            self.crash_at(&course, moment, claim, &mut hashes, &Trail::new(crash_recovery))?;
        }
        Ok(course)
    }

    /// Judges everything that a crash at `moment` may leave.
    fn crash_at(
        &self,
        course: &Course,
        moment: &Moment,
        claim: &Claim,
        hashes: &mut Hashes<'_>,
        trail: &Trail,
    ) -> Result<(), String> {
        let claim_hash = course.judge.hash(claim);
        for (which, Stores { hash, objects, disk }) in moment.survivors().into_iter().enumerate() {
            for seq in moment.synced.0..=moment.last.0 {
                self.crash_points.fetch_add(1, Ordering::Relaxed);
                let complete = which == 0 && seq == moment.last.0;
                let crash = if complete && trail.worst == Crash::Kill { Crash::Kill } else { Crash::PowerCut };
                let more = u64::from(trail.crash_recovery);
                let words = [hashes.at(seq), hash, claim_hash, crash as u64, more];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                if !self.seen.lock().expect("no thread panics with it").insert(xxh3_128(&bytes)) {
                    continue;
                }
                let mut kv = hashes.kv.clone();
                kv.rollback_to(TxnSeq(seq));
                kv.forget_before(TxnSeq(seq));
                let left = Left { kv, objects: objects.clone(), disk: disk.clone() };
                let place = format!(
                    "{crash} after {}: transactions up to {seq} of {} to {} survive, {}",
                    moment.event,
                    moment.synced.0,
                    moment.last.0,
                    left.describe()
                );
                self.recover(course, left, claim, &trail.and(place, crash))?;
            }
        }
        Ok(())
    }

    /// Judges what a crash left, mounts it, and judges it again.
    fn recover(&self, course: &Course, left: Left, claim: &Claim, trail: &Trail) -> Result<(), String> {
        let crash = trail.worst;
        let mut found = World::unmounted(course.world.form, left, AFTER_CRASH, self.mistake);
        let mut mounted = Vec::new();
        let judged = catch_unwind(AssertUnwindSafe(|| {
            found.find_log()?;
            found.check()?;
            let tree = found.clone().look()?;
            course.judge.explain(claim, crash, &tree)?;
            for order in Order::all(found.form) {
                let mut world = found.clone();
                world.mount();
                world.settle_down(*order);
                world.check_tidy()?;
                world.finish_log();
                if trail.crash_recovery {
                    mounted.push((*order, world.take_moments(), world.kv.clone()));
                }
                if world.look()? != tree {
                    return Err("the mount after the crash changed it".into());
                }
            }
            Ok(())
        }));
        let judged: Result<(), String> = judged.unwrap_or_else(|panic| Err(format!("panicked: {}", text_of(&*panic))));
        judged.map_err(|found| {
            let (title, places, command) = (course.title(), trail.places.join("\n  "), course.command());
            let allowed = course.judge.describe(claim, crash);
            format!("{title}\n  {places}\n  found:\n    {found}\n  allowed:\n{allowed}\n{command}")
        })?;
        if trail.crash_recovery {
            for (order, moments, kv) in mounted {
                let mut hashes = Hashes::new(&kv);
                let trail = trail.recovered(order);
                for moment in &moments {
                    self.crash_at(course, moment, claim, &mut hashes, &trail)?;
                }
            }
        }
        Ok(())
    }
}

impl Course {
    /// What every sequence starts from.
    fn start(form: Form, mistake: Option<Mistake>) -> Self {
        let mut world = World::new(form);
        let mut judge = Judge::new(world.wall());
        for op in base() {
            world.clock += 1;
            let (expected, after) = judge.after(&op, world.wall());
            assert_eq!(world.call(&op), Ok(()));
            assert_eq!(expected, Ok(vec![]));
            judge = after;
        }
        judge.promise_all();
        let world = world.mounted_again(mistake);
        let mut course = Self { world, judge, names: Vec::new() };
        course.look().expect("the beginning is right");
        course
    }

    /// Makes a choice; every moment at which a crash finds something else goes to `moments`.
    fn choose(&mut self, choice: &Choice, position: usize, moments: &mut Vec<(Moment, Claim)>) -> Result<(), String> {
        self.world.clock = START + position as i64 * CHOICE_TAKES;
        for op in choice.ops(position) {
            self.world.clock += 1;
            self.call(&op, moments)?;
        }
        // Before what follows settles anything.
        self.look()?;
        for op in choice.calls_after() {
            self.call(&op, moments)?;
        }
        match choice.after {
            After::Nothing => return Ok(()),
            After::Fsync | After::FsyncDir | After::Sync => {}
            After::WriteBack => self.world.write_back(),
            After::Background => {
                self.world.background();
                self.world.check_tidy()?;
            }
        }
        let claim = self.judge.claim(None);
        moments.extend(self.world.take_moments().into_iter().map(|moment| (moment, claim.clone())));
        self.look()
    }

    fn call(&mut self, op: &Op, moments: &mut Vec<(Moment, Claim)>) -> Result<(), String> {
        let (expected, mut after) = self.judge.after(op, self.world.wall());
        let expected = expected.map(drop);
        let answer = self.world.call(op);
        if answer != expected {
            return Err(format!("{op:?} answered {answer:?}, should have been {expected:?}"));
        }
        let claim = self.judge.claim(Some(&after));
        moments.extend(self.world.take_moments().into_iter().map(|moment| (moment, claim.clone())));
        if answer.is_ok() {
            let is_sync = |slot: usize| self.world.open[slot].is_some_and(|file| file.sync);
            after.promise(op, matches!(op, Op::Write { slot, .. } if is_sync(*slot)));
        }
        if self.judge.differs(&after) {
            self.world.note(Event::Return);
            moments.extend(self.world.take_moments().into_iter().map(|moment| (moment, after.claim(None))));
        }
        self.judge = after;
        Ok(())
    }

    /// Compares what an application sees with the model.
    fn look(&mut self) -> Result<(), String> {
        let tree = self.world.clone().look()?;
        let open = (0..SLOTS).map(|slot| self.world.look_open(slot).transpose());
        let open: Vec<_> = open.collect::<Result<_, String>>()?;
        self.judge.look(&tree, &open)
    }

    fn title(&self) -> String {
        format!("sequence: {}: {}", self.world.form.name(), self.names.join("; "))
    }

    fn command(&self) -> String {
        format!(
            "  again: KISEKI_ENUMERATE='{}: {}' cargo test -p kiseki-core --test enumerate every_crash",
            self.world.form.name(),
            self.names.join("; ")
        )
    }
}

/// Hashes of a metadata store at positions of its log, each made once.
struct Hashes<'a> {
    kv: &'a MemKv,
    of: BTreeMap<u64, u64>,
}

impl<'a> Hashes<'a> {
    fn new(kv: &'a MemKv) -> Self {
        Self { kv, of: BTreeMap::new() }
    }

    fn at(&mut self, seq: u64) -> u64 {
        let kv = self.kv;
        *self.of.entry(seq).or_insert_with(|| {
            let (start, end) = keys::everything();
            let pairs = kv.begin_at(TxnSeq(seq)).scan(&start, &end, usize::MAX).expect("it is in memory");
            let mut hash = Xxh3::new();
            for bytes in pairs.iter().flat_map(|(key, value)| [key, value]) {
                hash.update(&(bytes.len() as u32).to_le_bytes());
                hash.update(bytes);
            }
            hash.digest()
        })
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for no reason").to_string()
}
