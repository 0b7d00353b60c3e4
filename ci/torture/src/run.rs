//! The two runs: kill -9 in chosen moments, and power cuts. Rounds of mount, judge, fsck, work, crash.
//!
//! Owns: when to crash, and the sums. Leaves to others: how (`world`), what is right (`writer`).

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::content::Wrong;
use crate::names::Kept;
use crate::stamp::Rng;
use crate::world::{Disk, Mount, PHASES, Phases, Setup};
use crate::writer::{Shared, Writer};

/// Promises that each round must hold before its crash.
const ACKED_PER_ROUND: u64 = 50;
/// How long the writers may take for them. (a cold machine under load takes seconds)
const WORK_MAX: Duration = Duration::from_secs(120);
/// How long a crash waits for the phase that it aims at.
const AIM_MAX: Duration = Duration::from_secs(10);
/// How long the blocks of deleted files may stay.
const SWEEP_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Plan {
    pub(crate) setup: Setup,
    /// Cut their power instead of killing only the mount; none: kill.
    pub(crate) disks: Vec<Disk>,
    pub(crate) rounds: u64,
    pub(crate) seed: u64,
    pub(crate) writers: u64,
}

#[derive(Default)]
pub(crate) struct Sums {
    pub(crate) rounds: u64,
    pub(crate) acked: u64,
    pub(crate) lost: u64,
    pub(crate) invented: u64,
    /// Crashes inside each phase.
    pub(crate) phases: [u64; 4],
    /// What else is wrong; the run stops at the first.
    pub(crate) failure: Option<String>,
}

pub(crate) fn run(plan: &Plan) -> Sums {
    let mut sums = Sums::default();
    let shared = Shared::new();
    let mut writers: Vec<Writer<'_>> =
        (0..plan.writers).map(|id| Writer::new(&shared, &plan.setup.mnt, id, plan.seed)).collect();
    if let Err(text) = rounds(plan, &shared, &mut writers, &mut sums) {
        sums.failure = Some(text);
    }
    sums.acked = shared.acked.load(Ordering::Relaxed);
    sums
}

fn rounds(plan: &Plan, shared: &Shared, writers: &mut [Writer<'_>], sums: &mut Sums) -> Result<(), String> {
    let mut rng = Rng::new(plan.seed);
    plan.disks.iter().try_for_each(Disk::mount)?;
    plan.setup.store.create()?;
    plan.setup.format()?;
    for round in 0..plan.rounds {
        let mut mount = recover(plan, shared, writers, sums, round > 0)?;
        if round == 0 {
            set_up(plan, writers).map_err(|error| format!("cannot set up the writers: {error}"))?;
        }
        shared.crashing.store(false, Ordering::SeqCst);
        let aim = (plan.disks.is_empty() && !rng.chance(10)).then_some((round % 4) as usize);
        shared.bias.store(aim.map_or(u8::MAX, |phase| phase as u8), Ordering::Relaxed);
        let began = shared.acked.load(Ordering::Relaxed);
        let (crashed, stops) = thread::scope(|scope| {
            let threads: Vec<_> = writers.iter_mut().map(|writer| scope.spawn(move || writer.run())).collect();
            let crashed = crash(plan, shared, &mut mount, &mut rng, aim, began);
            let stops: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("a writer")).collect();
            (crashed, stops)
        });
        for (path, wrong) in stops.into_iter().flatten() {
            record(sums, &path, wrong);
        }
        let phases = crashed?;
        for (count, value) in sums.phases.iter_mut().zip(phases.0) {
            *count += u64::from(value > 0);
        }
        sums.rounds += 1;
        drop(mount);
        let waiting: usize = writers.iter().map(Writer::pending).sum();
        let acked = shared.acked.load(Ordering::Relaxed) - began;
        let inside: Vec<&str> =
            PHASES.iter().zip(phases.0).filter(|(_, value)| *value > 0).map(|(name, _)| *name).collect();
        eprintln!("round {}: {acked} acked, {waiting} not yet, inside {inside:?}", round + 1);
        writers.iter_mut().for_each(Writer::crashed);
        if !plan.disks.is_empty() {
            plan.disks.iter().try_for_each(Disk::unmount)?;
            plan.disks.iter().try_for_each(Disk::mount)?;
            plan.setup.store.start()?;
        }
    }
    let mount = recover(plan, shared, writers, sums, true)?;
    clean_up(plan, writers, mount)
}

fn set_up(plan: &Plan, writers: &[Writer<'_>]) -> io::Result<()> {
    writers.iter().try_for_each(Writer::set_up)?;
    File::open(&plan.setup.mnt)?.sync_all()
}

/// Mounts after a crash, and judges what is there.
fn recover<'a>(
    plan: &'a Plan,
    shared: &Shared,
    writers: &mut [Writer<'_>],
    sums: &mut Sums,
    judge: bool,
) -> Result<Mount<'a>, String> {
    let mount = plan.setup.mount().inspect_err(|_| {
        // Nothing of what was promised can be reached.
        if judge {
            sums.lost += shared.acked.load(Ordering::Relaxed).max(1);
        }
    })?;
    if judge {
        let mut kept = Vec::new();
        for writer in writers {
            let (names, wrongs) = writer.judge();
            kept.extend(names);
            for (path, wrong) in wrongs {
                record(sums, &path, wrong);
            }
        }
        if let Some(text) = out_of_order(&kept) {
            record(sums, "namespace", Wrong::Lost(text));
        }
        if sums.lost + sums.invented > 0 {
            return Err("the crash contract is broken".into());
        }
        plan.setup.fsck()?;
    }
    Ok(mount)
}

/// Across writers too, what was kept of the namespace is a prefix: nothing that ended before a kept one began is gone.
fn out_of_order(kept: &[Kept]) -> Option<String> {
    let lost = kept.iter().filter_map(|one| one.first_lost_end).min()?;
    let latest = kept.iter().map(|one| one.last_start).max()?;
    (lost < latest)
        .then(|| format!("an operation that ended at tick {lost} is gone, one that began at {latest} is there"))
}

fn record(sums: &mut Sums, path: &str, wrong: Wrong) {
    let (word, text, count) = match wrong {
        Wrong::Lost(text) => ("LOST", text, &mut sums.lost),
        Wrong::Invented(text) => ("INVENTED", text, &mut sums.invented),
    };
    *count += 1;
    eprintln!("{word} {path}: {text}");
}

/// Waits for enough promises, then for the moment, then ends the mount in it. Returns what it was in the middle of.
fn crash(
    plan: &Plan,
    shared: &Shared,
    mount: &mut Mount<'_>,
    rng: &mut Rng,
    aim: Option<usize>,
    began: u64,
) -> Result<Phases, String> {
    let start = Instant::now();
    let least = start + Duration::from_millis(rng.between(50, 400));
    let mut failed = None;
    while shared.acked.load(Ordering::Relaxed) - began < ACKED_PER_ROUND || Instant::now() < least {
        if let Some(text) = shared.failed.lock().expect("no writer panics").take() {
            failed = Some(text);
        } else if let Some(status) = mount.has_ended() {
            failed = Some(format!("the mount ended by itself with {status}"));
        } else if let Some(text) = plan.setup.store.trouble() {
            failed = Some(text);
        } else if start.elapsed() > WORK_MAX {
            failed = Some(format!("fewer than {ACKED_PER_ROUND} promises in {WORK_MAX:?}"));
        }
        if failed.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    let logged = plan.setup.logged_errors();
    if let (Some(line), true) = (logged.first(), plan.disks.is_empty()) {
        failed.get_or_insert_with(|| format!("the mount logged an error: {line}"));
    }
    let mut phases = Phases::default();
    match failed {
        Some(_) => {}
        None if plan.disks.is_empty() => phases = hit(plan, mount, rng, aim),
        None => failed = cut_power(plan, shared, mount, rng).err(),
    }
    shared.crashing.store(true, Ordering::SeqCst);
    if !plan.disks.is_empty() {
        plan.setup.store.kill();
    }
    mount.kill();
    failed.map_or(Ok(phases), Err)
}

/// The machine stops with its disks: ext4 may answer 0 to an fsync that is under way when it is shut down, and a sync
/// cannot fail.
fn cut_power(plan: &Plan, shared: &Shared, mount: &Mount<'_>, rng: &mut Rng) -> Result<(), String> {
    plan.setup.store.pause();
    mount.pause();
    let quiet = mount.is_quiet();
    shared.crashing.store(true, Ordering::SeqCst);
    plan.disks.iter().try_for_each(Disk::cut_power)?;
    eprintln!("power cut at {:?}", shared.began.elapsed());
    if quiet {
        // Nothing was under way: the mount goes on for a moment on a disk that is gone, and may not lie about it.
        mount.resume();
        thread::sleep(Duration::from_millis(rng.below(80)));
    }
    Ok(())
}

/// Stops the mount in the middle of `aim`; it never goes on.
fn hit(plan: &Plan, mount: &Mount<'_>, rng: &mut Rng, aim: Option<usize>) -> Phases {
    let end = Instant::now() + AIM_MAX;
    let Some(aim) = aim else { return mount.pause() };
    loop {
        if plan.setup.read_phases().0[aim] > 0 {
            let phases = mount.pause();
            if phases.0[aim] > 0 || Instant::now() > end {
                return phases;
            }
            mount.resume();
            // Elsewhere next time, not in step with the writers.
            thread::sleep(Duration::from_micros(rng.below(3000)));
        } else if Instant::now() > end {
            return mount.pause();
        }
        thread::yield_now();
    }
}

/// Deletes all: no block may stay behind, neither of what was committed nor of what the crashes left.
fn clean_up(plan: &Plan, writers: &mut [Writer<'_>], mount: Mount<'_>) -> Result<(), String> {
    let text = |error: io::Error| format!("cannot clear the volume: {error}");
    writers.iter_mut().try_for_each(Writer::clear).map_err(text)?;
    let end = Instant::now() + SWEEP_MAX;
    loop {
        let blocks = plan.setup.store.blocks().map_err(text)?;
        if blocks == 0 {
            break;
        }
        if Instant::now() > end {
            return Err(format!("{blocks} blocks are left in the store {SWEEP_MAX:?} after everything was deleted"));
        }
        thread::sleep(Duration::from_millis(50));
    }
    plan.setup.fsck()?;
    mount.unmount()?;
    plan.setup.fsck()
}
