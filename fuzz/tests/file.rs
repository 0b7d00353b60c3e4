//! The machine of one open file against a plain `Vec<u8>`: any order of completions, failures and crashes.

use std::time::Duration;

use bolero::check;
use bolero::generator::*;
use kiseki_core::file::machine::{Fallocate, Whence};

mod kept;
#[path = "file/world.rs"]
mod world;

use kept::Kept;
use world::{Outcome, World};

#[derive(Clone, Debug, TypeGenerator)]
enum Op {
    Write(#[generator(0..200)] u16, #[generator(1..=90)] u8),
    /// Small ones at one place: they touch, overlap and leave gaps.
    Patches(#[generator(produce::<Vec<Patch>>().with().len(1..=6usize))] Vec<Patch>),
    /// Continues at the end of the file.
    Append(#[generator(1..=40)] u8),
    Truncate(#[generator(0..260)] u16),
    /// Where, how many, what, and whether the length grows.
    Fallocate(#[generator(0..200)] u16, #[generator(1..=90)] u8, #[generator(0..3)] u8, bool),
    Copy(#[generator(0..200)] u16, #[generator(0..200)] u16, #[generator(1..=60)] u8),
    Seek(#[generator(0..260)] u16, bool),
    SetMode(#[generator(0..0o10000)] u16),
    Flush,
    Read(#[generator(0..260)] u16, u8, bool),
    /// Takes every action that there is.
    PollAll,
    /// Takes every action and ends all but a few of what is under way well.
    Work(#[generator(0..4)] u8),
    Poll,
    Complete(u8, End),
    /// Ends so many of what is under way well.
    CompleteSome(#[generator(1..=8)] u8),
    LateCommit(u8),
    OutOfIds,
    /// Milliseconds.
    Advance(u16),
    Sync,
    Sweep,
    Crash(u64),
}

#[derive(Clone, Copy, Debug, TypeGenerator)]
struct Patch {
    #[generator(50..80)]
    offset: u16,
    #[generator(1..=9)]
    len: u8,
}

#[derive(Clone, Copy, Debug, TypeGenerator)]
enum End {
    Done,
    Failed,
    Unknown,
    Late,
    Lasting,
}

impl From<End> for Outcome {
    fn from(end: End) -> Self {
        match end {
            End::Done => Self::Done,
            End::Failed => Self::Failed,
            End::Unknown => Self::Unknown,
            End::Late => Self::Late,
            End::Lasting => Self::Lasting,
        }
    }
}

#[derive(Clone, Copy, Debug, TypeGenerator)]
enum Last {
    Settle,
    GiveUp,
    Reap,
}

fn step(world: &mut World, op: &Op) {
    match *op {
        Op::Write(offset, len) => world.write(u64::from(offset), usize::from(len)),
        Op::Patches(ref patches) => {
            patches.iter().for_each(|patch| world.write(u64::from(patch.offset), usize::from(patch.len)));
        }
        Op::Append(len) => world.append(usize::from(len)),
        Op::Truncate(to) => world.truncate(usize::from(to)),
        Op::Fallocate(offset, len, what, extend) => {
            let what = match what {
                0 => Fallocate::Punch,
                1 => Fallocate::Zero { extend },
                _ => Fallocate::Reserve { extend },
            };
            world.fallocate(u64::from(offset)..u64::from(offset) + u64::from(len), what);
        }
        Op::Copy(from, to, len) => world.copy(from.into(), to.into(), len.into()),
        Op::Seek(offset, data) => world.seek(offset.into(), if data { Whence::Data } else { Whence::Hole }),
        Op::SetMode(mode) => world.set_mode(mode),
        Op::Flush => world.flush(),
        Op::Read(offset, len, delay) => world.read(u64::from(offset)..u64::from(offset) + u64::from(len), delay),
        Op::Work(left) => world.work(usize::from(left)),
        Op::Poll => {
            world.poll();
        }
        Op::PollAll => while world.poll() {},
        Op::Complete(pick, end) => world.complete_one(usize::from(pick), end.into()),
        Op::CompleteSome(count) => (0..count).for_each(|_| world.complete_one(0, Outcome::Done)),
        Op::LateCommit(pick) => world.late_commit(usize::from(pick)),
        Op::OutOfIds => world.out_of_ids(),
        Op::Advance(millis) => world.advance(Duration::from_millis(millis.into())),
        Op::Sync => world.sync(),
        Op::Sweep => world.sweep(),
        Op::Crash(luck) => world.crash(luck),
    }
}

#[test]
fn file_keeps_its_promises() {
    let kept = Kept::of("file_keeps_its_promises");
    let ops = produce::<Vec<Op>>().with().len(0..=120usize);
    let cases = (produce::<bool>(), ops, produce::<Last>());
    check!().with_iterations(4_000).with_max_len(16 << 10).with_generator(cases).for_each(|(filled, ops, last)| {
        kept.seen();
        let mut world = World::new();
        if *filled {
            world.fill();
        }
        ops.iter().for_each(|op| step(&mut world, op));
        match last {
            Last::Settle => world.settle(),
            Last::GiveUp => world.give_up(false),
            Last::Reap => world.give_up(true),
        }
    });
}
