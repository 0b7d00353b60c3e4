//! What can go wrong, by name: how often, and how often it did.
//!
//! Owns: the kinds, their rates, the counts. Leaves to others: doing it (`world`, `run`).
//!
//! Each kind has teeth: a bug of the client that it takes to notice, or that it alone is enough to notice (`TEETH`).
//!
//! Invariants
//! - Each seed draws its own mixture (some kinds off, some frequent), so that rare combinations come up.
//! - Nothing strikes while faults are off.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kiseki_core::planted::Bug;

use crate::dice::Dice;

macro_rules! faults {
    ($($name:ident, $rate:literal, $text:literal;)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $(#[doc = $text] $name,)*
        }

        impl Fault {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Usual rate, in 1000 occasions.
            fn rate(self) -> u64 {
                match self { $(Self::$name => $rate,)* }
            }

            /// What it is, in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

faults! {
    PutFailed, 40, "a put fails before it has any effect";
    PutAnswerLost, 30, "a put takes effect and its answer is lost";
    PutLate, 10, "a put takes effect after its error was answered";
    PutHangs, 3, "a put hangs far beyond its deadline and then fails";
    PutFull, 5, "the store has no space for a moment";
    GetFailed, 30, "a get fails";
    GetTorn, 10, "a get answers with a damaged byte";
    GetForeign, 8, "a get answers with another object's bytes";
    GetSlow, 25, "a get takes seconds to find its object";
    GetHangs, 2, "a get hangs";
    DeleteFailed, 40, "a delete fails before it has any effect";
    DeleteAnswerLost, 20, "a delete takes effect and its answer is lost";
    BarrierFailed, 30, "a barrier fails and covers nothing";
    BarrierAnswerLost, 20, "a barrier covers everything and its answer is lost";
    BarriersFail, 1, "every barrier fails from here on, and nothing else does";
    ListFailed, 50, "a page of a listing fails";
    StoreOutage, 2, "every call to the store fails for a while";
    CommitRefused, 40, "a data commit is not taken";
    CommitAnswerLost, 30, "a data commit is applied and its answer is lost";
    CommitUnknown, 20, "a data commit is not applied and no answer says so";
    Conflict, 30, "a transaction meets a conflict and is run again";
    Miss, 30, "the reads of a transaction are fetched one batch at a time";
    SlowSync, 30, "a sync of metadata takes long, and all others wait for it";
    SyncFailed, 1, "a sync of metadata fails: the store takes no more writes";
    WriteFailed, 1, "a write of metadata fails, as on a full disk: the store takes no more writes";
    ReadFailed, 1, "metadata cannot be read for once";
    ListOmits, 150, "a listing omits objects that were put lately";
    ListShowsDeleted, 100, "a listing shows objects that were deleted lately";
    SpaceShort, 1, "the volume has little capacity, and a write does not fit";
    InodesShort, 1, "the volume may have few inodes, and has them";
    ClockJump, 4, "the wall clock is set, ahead or back";
    LogWriteFull, 8, "the disk of the write-back log has no space for a moment";
    LogWriteFailed, 10, "a write to the disk of the write-back log fails, or a removal, and may be done in part";
    LogSyncFailed, 15, "a sync of the write-back log fails, and its pages count as clean";
    LogReadFailed, 20, "the disk of the write-back log cannot be read for once";
    LogReadTorn, 15, "a read of the write-back log answers with a damaged byte";
    LogSlow, 8, "the disk of the write-back log takes long";
}

/// How a kind shows that it matters.
#[derive(Clone, Copy, Debug)]
pub enum Teeth {
    /// Where this kind alone is off, this bug goes unnoticed.
    Needed(Bug),
    /// Where no other kind strikes, this bug is noticed; where none does, it is not.
    Enough(Bug),
    /// What it does is done by others as well.
    Shared(&'static str),
}

/// The teeth of each kind; `tests/planted.rs` tries them.
pub const TEETH: &[(Fault, Teeth)] = &[
    (Fault::PutFailed, Teeth::Enough(Bug::FailedPutDropped)),
    (Fault::PutAnswerLost, Teeth::Enough(Bug::FailedPutDropped)),
    (Fault::PutLate, Teeth::Needed(Bug::UnsureForgotten)),
    (Fault::PutHangs, Teeth::Enough(Bug::FlushDeadlineAccepted)),
    (Fault::PutFull, Teeth::Needed(Bug::FullIsDone)),
    (Fault::GetFailed, Teeth::Enough(Bug::FailedGetIsHole)),
    (Fault::GetTorn, Teeth::Enough(Bug::ChecksumSkipped)),
    (Fault::GetForeign, Teeth::Needed(Bug::ChecksumUnbound)),
    (Fault::GetSlow, Teeth::Enough(Bug::DeleteWithoutGrace)),
    (Fault::GetHangs, Teeth::Enough(Bug::GetWithoutDeadline)),
    (Fault::DeleteFailed, Teeth::Enough(Bug::FailedDeleteDropped)),
    (Fault::DeleteAnswerLost, Teeth::Shared("it alone shows QueueDroppedFirst, as a kill between the two does")),
    (Fault::BarrierFailed, Teeth::Enough(Bug::FailedBarrierAccepted)),
    (Fault::BarrierAnswerLost, Teeth::Enough(Bug::BarrierNotRetried)),
    (Fault::BarriersFail, Teeth::Enough(Bug::EndlessPatience)),
    (Fault::ListFailed, Teeth::Enough(Bug::ListCutShort)),
    (Fault::StoreOutage, Teeth::Enough(Bug::FlushDeadlineAccepted)),
    (Fault::CommitRefused, Teeth::Needed(Bug::RefusedIsApplied)),
    (Fault::CommitAnswerLost, Teeth::Needed(Bug::PresenceForNumber)),
    (Fault::CommitUnknown, Teeth::Enough(Bug::UnknownIsApplied)),
    (Fault::Conflict, Teeth::Shared("every transaction is run twice, and some do conflict")),
    (Fault::Miss, Teeth::Needed(Bug::MissSwallowed)),
    (Fault::SlowSync, Teeth::Needed(Bug::SyncDeadlineAccepted)),
    (Fault::SyncFailed, Teeth::Enough(Bug::FailedSyncAccepted)),
    (Fault::WriteFailed, Teeth::Enough(Bug::UnknownIsApplied)),
    (Fault::ReadFailed, Teeth::Needed(Bug::FailedReadIsAbsence)),
    (Fault::ListOmits, Teeth::Enough(Bug::ListedOnce)),
    (Fault::ListShowsDeleted, Teeth::Shared("deleting twice is harmless, as it is after DeleteAnswerLost")),
    (Fault::SpaceShort, Teeth::Enough(Bug::CapacityLate)),
    (Fault::InodesShort, Teeth::Enough(Bug::InodeLimitIgnored)),
    (Fault::ClockJump, Teeth::Enough(Bug::TimesOnlyGrow)),
    (Fault::LogWriteFull, Teeth::Shared("a log that has its size refuses what a full disk refuses")),
    (Fault::LogWriteFailed, Teeth::Shared("a power cut tears records as well, and a full log sends them to the store")),
    (Fault::LogSyncFailed, Teeth::Needed(Bug::LogSyncFailedAccepted)),
    (Fault::LogReadFailed, Teeth::Shared("what cannot be read is read again, as what is damaged is")),
    (Fault::LogReadTorn, Teeth::Needed(Bug::LogReadUnverified)),
    (Fault::LogSlow, Teeth::Shared("it widens the races that other latency makes")),
];

/// Multiples of the usual rate: what a seed makes of a kind.
const OFF: u64 = 0;
const MILD: u64 = 1;
const FIERCE: u64 = 4;
/// What does not strike by itself: how a life of the client ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The process is killed: what it had handed to the store and the log stays; of metadata not all that is not synced.
    Kill,
    /// The machine with metadata and store loses power.
    PowerCut,
    /// The machine with metadata loses power; the store is elsewhere and keeps all.
    MetaPowerCut,
    /// Everything is flushed and closed.
    Unmount,
}

/// The faults of one run; clones share them.
#[derive(Clone, Debug)]
pub struct Faults {
    dice: Dice,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    on: bool,
    rates: BTreeMap<Fault, u64>,
    counts: Counts,
}

/// How often things happened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Strikes of each kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Ends of lives.
    pub endings: BTreeMap<Ending, u64>,
    /// Calls of each kind, by name.
    pub calls: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Adds what another run counted.
    pub fn merge(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (ending, count) in &other.endings {
            *self.endings.entry(*ending).or_default() += count;
        }
        for (call, count) in &other.calls {
            *self.calls.entry(call).or_default() += count;
        }
    }

    /// Strikes of one kind.
    pub fn of(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    /// Calls of one kind.
    pub fn called(&self, call: &str) -> u64 {
        self.calls.get(call).copied().unwrap_or(0)
    }
}

impl Faults {
    /// A mixture drawn from `dice`; faults are on.
    pub fn new(dice: Dice) -> Self {
        // How many kinds of ten are off: a few faults among many, or a few alone, or none at all.
        let off = [1, 3, 3, 7, 7, 1, 3, 10][dice.below(8) as usize];
        let rates = Fault::ALL.iter().map(|&fault| {
            let drawn = dice.below(10);
            let factor = match drawn < off {
                true => OFF,
                false if drawn.is_multiple_of(3) => FIERCE,
                false => MILD,
            };
            (fault, fault.rate() * factor)
        });
        let rates = rates.collect();
        let state = State { on: true, rates, counts: Counts::default() };
        Self { dice, state: Arc::new(Mutex::new(state)) }
    }

    /// Makes sure that these never strike; what they would have done is drawn all the same.
    pub fn exclude<'a>(&self, kinds: impl IntoIterator<Item = &'a Fault>) {
        let mut state = self.state.lock().unwrap();
        for kind in kinds {
            state.rates.insert(*kind, 0);
        }
    }

    /// Turns all faults on or off.
    pub fn set_on(&self, on: bool) {
        self.state.lock().unwrap().on = on;
    }

    /// Whether anything may strike.
    pub fn are_on(&self) -> bool {
        self.state.lock().unwrap().on
    }

    /// Whether `fault` strikes at this occasion.
    pub fn strikes(&self, fault: Fault) -> bool {
        let mut state = self.state.lock().unwrap();
        let strikes = state.on && self.dice.chance(state.rates[&fault]);
        if strikes {
            *state.counts.faults.entry(fault).or_default() += 1;
        }
        strikes
    }

    /// How often `fault` strikes, as a multiple of the usual: 0 where it is off, whether faults are on or not.
    pub fn level(&self, fault: Fault) -> u64 {
        self.state.lock().unwrap().rates[&fault] / fault.rate()
    }

    /// Counts a strike of what strikes by itself.
    pub fn struck_by(&self, fault: Fault) {
        *self.state.lock().unwrap().counts.faults.entry(fault).or_default() += 1;
    }

    /// Whether `fault` may strike now.
    pub fn may_strike(&self, fault: Fault) -> bool {
        self.are_on() && self.level(fault) > 0
    }

    /// Counts a call.
    pub fn called(&self, call: &'static str) {
        *self.state.lock().unwrap().counts.calls.entry(call).or_default() += 1;
    }

    /// Counts the end of a life.
    pub fn ended(&self, ending: Ending) {
        *self.state.lock().unwrap().counts.endings.entry(ending).or_default() += 1;
    }

    /// Whether anything has struck so far.
    pub fn struck(&self) -> bool {
        !self.state.lock().unwrap().counts.faults.is_empty()
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.state.lock().unwrap().counts.clone()
    }
}
