//! Episodes, and making a difference shorter.
//!
//! Owns: how many calls, what is reported. Leaves to others: one episode's sides (`pair`), drawing (`draw`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::call::{Call, Step};
use crate::draw::{Counts, Dice, Draw};
use crate::judge::{Allowed, Verdict};
use crate::pair::{Difference, Pair, Places, known_kind};
use crate::simulator::Simulator;

/// Calls in one tree: as many as a person wants to wait for when a difference is made shorter.
const EPISODE: u64 = 1000;
/// One in so many episodes is drawn by the simulator's generator.
const SIMULATED: u64 = 5;
/// Attempts to make one difference shorter, and how long they may take.
const ATTEMPTS_MAX: u32 = 500;
const SHRINK_MAX: Duration = Duration::from_secs(60);
/// Least share of each kind among the calls, per mille, and of those that succeed, percent.
const SHARE_PER_MILLE: u64 = 10;
const SUCCESS_PERCENT: u64 = 50;

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) places: Places,
    pub(crate) seed: u64,
    pub(crate) ops: u64,
    /// Kinds that are left out.
    pub(crate) without: Vec<String>,
    /// Different differences after which it ends.
    pub(crate) limit: usize,
    /// Where shortest sequences are written.
    pub(crate) out: PathBuf,
    /// How to call this program for a replay.
    pub(crate) command: String,
}

/// A call by its kind, as it is written down.
type Named = (String, Step);

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pub(crate) ops: u64,
    pub(crate) differences: usize,
    pub(crate) counts: Counts,
}

/// Runs all episodes; prints every different difference with its shortest sequence.
pub(crate) fn run(plan: &Plan, allowed: &mut Allowed) -> Result<Sums, String> {
    let mut sums = Sums::default();
    let mut met: BTreeMap<String, u64> = BTreeMap::new();
    let mut episode = 0;
    while sums.ops < plan.ops && met.len() < plan.limit {
        let most = EPISODE.min(plan.ops - sums.ops);
        let (steps, found) = explore(plan, episode, most, &mut sums.counts, allowed)?;
        sums.ops += steps.len() as u64;
        episode += 1;
        let Some(found) = found else { continue };
        let times = met.entry(found.signature.clone()).or_default();
        *times += 1;
        if *times == 1 {
            let before = allowed.met;
            let (steps, found) = shorten(&plan.places, steps, found, allowed);
            report(plan, met.len(), &steps, &found, allowed)?;
            allowed.met = before;
        }
    }
    for (signature, times) in &met {
        println!("difference in {times} of {episode} episodes: {signature}");
    }
    sums.differences = met.len();
    Ok(sums)
}

/// One episode: what was drawn, and where it ended if the sides differ.
fn explore(
    plan: &Plan,
    episode: u64,
    most: u64,
    counts: &mut Counts,
    allowed: &mut Allowed,
) -> Result<(Vec<Named>, Option<Difference>), String> {
    let mut pair = Pair::begin(&plan.places, &format!("episode-{episode}"))?;
    let mut draw = Draw::new(plan.seed, episode, counts, &plan.without);
    let mut steps = vec![];
    let simulated = episode % SIMULATED == SIMULATED - 1;
    let mut simulator = simulated.then(|| Simulator::new(Dice::of(plan.seed, episode), &plan.without));
    for _ in 0..most {
        draw.tree = pair.tree().to_vec();
        let (kind, step) = match &mut simulator {
            Some(simulator) => {
                let call = simulator.call(|kind| draw.is_careful(kind));
                draw.drawn(call)
            }
            None => draw.step(),
        };
        let stepped = pair.step(kind, &step, allowed);
        steps.push((kind.to_owned(), step.clone()));
        let stepped = match stepped {
            Ok(stepped) => stepped,
            // One side hangs or died: that is a difference, too.
            Err(text) => return Ok((steps, Some(broken(text)))),
        };
        draw.learn(kind, &step, &stepped.reference);
        if let (Verdict::Allowed, Call::Open { slot, .. } | Call::Reopen { slot, .. }) = (stepped.verdict, &step.call) {
            draw.holdings[step.worker].slots[*slot] = None;
        }
        if stepped.difference.is_some() {
            // What is left of it is removed as far as it can be: the next episode has a tree of its own.
            let _ = pair.end();
            return Ok((steps, stepped.difference));
        }
    }
    let found = pair.contents()?;
    match (pair.end(), &found) {
        (Err(text), None) => Ok((steps, Some(broken(text)))),
        _ => Ok((steps, found)),
    }
}

fn broken(text: String) -> Difference {
    Difference { signature: "a side does not go on".into(), reference: String::new(), tested: text }
}

/// Makes the calls of a list; `None` if the sides agree.
fn replay(
    places: &Places,
    name: &str,
    steps: &[Named],
    allowed: &mut Allowed,
    mut trace: Option<&mut String>,
) -> Option<Difference> {
    let mut pair = match Pair::begin(places, name) {
        Ok(pair) => pair,
        Err(text) => return Some(broken(text)),
    };
    let mut found = None;
    for (kind, step) in steps {
        let stepped = match pair.step(known_kind(kind).unwrap_or("stat"), step, allowed) {
            Ok(stepped) => stepped,
            Err(text) => return Some(broken(text)),
        };
        if let Some(trace) = trace.as_deref_mut() {
            let _ = writeln!(trace, "  user {} {:?}", step.worker, step.call);
            let _ = writeln!(trace, "      reference {}", stepped.reference);
            if stepped.reference != stepped.tested {
                let _ = writeln!(trace, "      tested    {}", stepped.tested);
            }
        }
        found = stepped.difference;
        if found.is_some() {
            break;
        }
    }
    if found.is_none() {
        found = pair.contents().unwrap_or_else(|text| Some(broken(text)));
    }
    let _ = pair.end();
    found
}

/// Leaves out halves, quarters, ... and single calls, as long as the same difference stays.
fn shorten(
    places: &Places,
    mut steps: Vec<Named>,
    mut found: Difference,
    allowed: &mut Allowed,
) -> (Vec<Named>, Difference) {
    let begin = Instant::now();
    let mut attempts = 0;
    let mut size = steps.len().div_ceil(2);
    while 0 < size && attempts < ATTEMPTS_MAX && begin.elapsed() < SHRINK_MAX {
        let mut at = steps.len();
        let before = steps.len();
        while 0 < at && attempts < ATTEMPTS_MAX && begin.elapsed() < SHRINK_MAX {
            let from = at.saturating_sub(size);
            let without: Vec<Named> = steps[..from].iter().chain(&steps[at..]).cloned().collect();
            attempts += 1;
            let name = format!("attempt-{attempts}");
            if let Some(again) =
                replay(places, &name, &without, allowed, None).filter(|again| again.signature == found.signature)
            {
                (steps, found) = (without, again);
            }
            at = from.min(steps.len());
        }
        if size == 1 && before == steps.len() {
            break;
        }
        size = (size / 2).max(1);
    }
    (steps, found)
}

fn report(plan: &Plan, index: usize, steps: &[Named], found: &Difference, allowed: &mut Allowed) -> Result<(), String> {
    let file = plan.out.join(format!("difference-{index}.jsonl"));
    let mut text = String::new();
    for step in steps {
        text += &serde_json::to_string(step).map_err(|error| error.to_string())?;
        text.push('\n');
    }
    std::fs::write(&file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    println!("difference {index}: {}", found.signature);
    show(&plan.places, steps, found, allowed);
    println!("  replay: {} --replay {}", plan.command, file.display());
    Ok(())
}

/// Prints a sequence with the answers of both sides.
fn show(places: &Places, steps: &[Named], found: &Difference, allowed: &mut Allowed) {
    let mut trace = String::new();
    let again = replay(places, "shown", steps, allowed, Some(&mut trace));
    print!("{trace}");
    println!("  reference: {}", found.reference);
    println!("  tested:    {}", found.tested);
    if again.is_none_or(|again| again.signature != found.signature) {
        println!("  (not every time)");
    }
}

/// Replays a file; whether the sides agree.
pub(crate) fn replay_file(places: &Places, file: &Path, allowed: &mut Allowed) -> Result<bool, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let steps: Result<Vec<Named>, _> = text.lines().map(serde_json::from_str).collect();
    let steps = steps.map_err(|error| format!("{}: {error}", file.display()))?;
    match replay(places, "replayed", &steps, allowed, None) {
        Some(found) => {
            println!("{}", found.signature);
            show(places, &steps, &found, allowed);
            Ok(false)
        }
        None => Ok(true),
    }
}

/// Every kind with its share and its successes; whether there was enough of each.
pub(crate) fn is_enough(sums: &Sums, without: &[String]) -> bool {
    let mut enough = true;
    for kind in crate::kinds::KINDS.iter().filter(|kind| !without.iter().any(|without| without == *kind)) {
        let count = sums.counts.get(kind).copied().unwrap_or_default();
        let rare = count.drawn * 1000 < sums.ops * SHARE_PER_MILLE;
        let failing = count.succeeded * 100 < count.drawn * SUCCESS_PERCENT;
        let note = if rare {
            " TOO RARE"
        } else if failing {
            " TOO OFTEN FAILING"
        } else {
            ""
        };
        println!("{kind:15} {:6} calls {:3}% succeed{note}", count.drawn, count.succeeded * 100 / count.drawn.max(1));
        enough &= !rare && !failing;
    }
    enough
}
