//! Runs the same random system calls on two file systems, and compares what comes of them.
//!
//!   diff run --reference DIR --tested DIR --allowed FILE --docs DIR --out DIR [--seed S] [--ops N] [--acl]
//!            [--without KIND,...] [--limit N] [--replay FILE] [--command TEXT]
//!
//! Calls are drawn from the seed and from what the reference side (a local file system) answered to earlier ones, and
//! made by four processes of three users on each side, one call at a time; in every fifth tree they are drawn by the
//! simulator's generator, and made by root. After each, results, errno and all
//! attributes in the tree are compared; every 150 calls and at the end of a tree, which is after 1,000, all contents. A
//! difference is made as short as it can be, printed with both answers, and written to `--out`; `--replay` repeats it.
//!
//! Needs root. Last line: diff: ops=N differences=N allowed=N. Fails unless differences are 0, every kind of call is at
//! least a hundredth of them, and half of each kind succeed.

mod call;
mod draw;
mod judge;
mod kinds;
mod pair;
mod program;
mod run;
mod side;
mod simulator;
mod sys;
mod walk;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use judge::Allowed;
use pair::Places;
use run::Plan;

struct Args {
    plan: Plan,
    allowed: PathBuf,
    docs: PathBuf,
    replay: Option<PathBuf>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let places = Places { reference: PathBuf::new(), tested: PathBuf::new() };
    let (out, command) = (PathBuf::from("."), "diff run".to_owned());
    let mut plan = Plan { places, seed: 1, ops: 10_000, without: vec![], limit: 10, out, command };
    let (mut allowed, mut docs, mut replay, mut acl) = (PathBuf::new(), PathBuf::new(), None, false);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is not a number"));
        match word.as_str() {
            "--reference" => plan.places.reference = value()?.into(),
            "--tested" => plan.places.tested = value()?.into(),
            "--allowed" => allowed = value()?.into(),
            "--docs" => docs = value()?.into(),
            "--out" => plan.out = value()?.into(),
            "--command" => plan.command = value()?,
            "--seed" => plan.seed = number(value()?)?,
            "--ops" => plan.ops = number(value()?)?,
            "--limit" => plan.limit = number(value()?)? as usize,
            "--without" => plan.without.extend(value()?.split(',').map(str::to_owned)),
            "--replay" => replay = Some(value()?.into()),
            "--acl" => acl = true,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    if let Some(unknown) = plan.without.iter().find(|kind| pair::known_kind(kind).is_none()) {
        return Err(format!("no kind of call is named {unknown}"));
    }
    if !acl {
        plan.without.extend(kinds::ACL_KINDS.map(str::to_owned));
    }
    if !plan.places.reference.is_absolute() || !plan.places.tested.is_absolute() {
        return Err("--reference and --tested are needed, as absolute paths".into());
    }
    Ok(Args { plan, allowed, docs, replay })
}

fn compare(words: impl Iterator<Item = String>) -> Result<bool, String> {
    let Args { plan, allowed, docs, replay } = parse(words)?;
    let mut allowed = Allowed::read(&allowed, &docs)?;
    if let Some(file) = replay {
        return run::replay_file(&plan.places, &file, &mut allowed);
    }
    let sums = run::run(&plan, &mut allowed)?;
    let enough = run::is_enough(&sums, &plan.without);
    println!("diff: ops={} differences={} allowed={}", sums.ops, sums.differences, allowed.met);
    Ok(sums.differences == 0 && enough)
}

fn work(words: &[String]) -> Result<bool, String> {
    let [root, uid, gid, groups] = words else { return Err("a worker needs root, uid, gid, groups".into()) };
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text} is not a number"));
    let groups: Result<Vec<u32>, _> = groups.split(',').filter(|group| !group.is_empty()).map(number).collect();
    worker::serve(root, number(uid)?, number(gid)?, &groups?).map(|()| true)
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match words.next().as_deref() {
        Some("run") => compare(words),
        Some("worker") => work(&words.collect::<Vec<_>>()),
        other => Err(format!("run, not {other:?}")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("diff: {text}");
            ExitCode::from(2)
        }
    }
}
