//! How the object store does: counters, the trouble it is in, and what is logged of it.
//!
//! Owns: what `status` shows, and how often a failure is logged. Leaves to others: what a failure means (`failure`).
//!
//! Invariant: a store that fails at every request costs a line per second and kind, not one per request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiseki_core::env::StoreError;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, Kind};

/// A failure of one kind is logged again after this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Requests made of the store since it was opened, each attempt counted. `status --json` and `bench --json` show them under
/// these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Objects written.
    pub puts: u64,
    /// Bytes of them, heads included.
    pub put_bytes: u64,
    /// Reads of objects or of parts.
    pub gets: u64,
    /// Bytes of them.
    pub got_bytes: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Pages listed.
    pub lists: u64,
    /// Of all these, those that failed (an absent object is no failure).
    pub failures: u64,
    /// Of these, those that the store refused because it was asked too much.
    pub throttled: u64,
}

impl Counts {
    /// Those made after `earlier`, which was taken before this.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            puts: self.puts.saturating_sub(earlier.puts),
            put_bytes: self.put_bytes.saturating_sub(earlier.put_bytes),
            gets: self.gets.saturating_sub(earlier.gets),
            got_bytes: self.got_bytes.saturating_sub(earlier.got_bytes),
            deletes: self.deletes.saturating_sub(earlier.deletes),
            lists: self.lists.saturating_sub(earlier.lists),
            failures: self.failures.saturating_sub(earlier.failures),
            throttled: self.throttled.saturating_sub(earlier.throttled),
        }
    }
}

/// The store fails: every request since `since` ago has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The last error, for a person.
    pub text: String,
    /// How long ago the first failure was after the last success.
    pub since: Duration,
}

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Put,
    Get,
    Delete,
    List,
    /// Of a folder.
    Barrier,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Barrier => "barrier",
        }
    }
}

/// Shared by all requests of one store.
#[derive(Default)]
pub(super) struct Health {
    puts: AtomicU64,
    put_bytes: AtomicU64,
    gets: AtomicU64,
    got_bytes: AtomicU64,
    deletes: AtomicU64,
    lists: AtomicU64,
    failures: AtomicU64,
    throttled: AtomicU64,
    /// Whether `trouble` is more than `None`: a success looks no further.
    troubled: AtomicBool,
    trouble: Mutex<Option<Troubled>>,
    reports: Mutex<[Report; Kind::COUNT]>,
}

struct Troubled {
    text: String,
    start: Instant,
    failures: u64,
}

/// What was logged of one kind of failure.
#[derive(Clone, Copy, Default)]
struct Report {
    last: Option<Instant>,
    suppressed: u64,
}

impl Health {
    /// Notes how a request ended, with the bytes that it moved, and says what that means to the client.
    pub(super) fn note<T>(
        &self,
        verb: Verb,
        key: &str,
        bytes: u64,
        result: Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        match verb {
            Verb::Put => add(&self.puts, 1),
            Verb::Get => add(&self.gets, 1),
            Verb::Delete => add(&self.deletes, 1),
            Verb::List => add(&self.lists, 1),
            Verb::Barrier => 0,
        };
        match (&result, verb) {
            (Ok(_), Verb::Put) => add(&self.put_bytes, bytes),
            (Ok(_), Verb::Get) => add(&self.got_bytes, bytes),
            (_, _) => 0,
        };
        let Err(failure) = result else {
            self.recovered();
            return result.map_err(|_| StoreError::Retry);
        };
        if failure.kind != Kind::NotFound {
            add(&self.failures, 1);
        }
        if failure.kind == Kind::Throttled {
            add(&self.throttled, 1);
        }
        self.failed(verb, key, &failure);
        Err(failure.kind.store_error())
    }

    /// A failure that is no request's, or a request's whose end is not known.
    pub(super) fn failed(&self, verb: Verb, key: &str, failure: &Failure) {
        let verb = verb.name();
        match failure.kind {
            // An answer about the object, not about the store.
            Kind::NotFound | Kind::Short => {
                self.recovered();
                tracing::debug!(verb, key, error = %failure, "{}", failure.kind);
                return;
            }
            Kind::NoBucket
            | Kind::Keys
            | Kind::Denied
            | Kind::ClockSkew
            | Kind::Full
            | Kind::Throttled
            | Kind::TimedOut
            | Kind::Unreachable
            | Kind::Broken
            | Kind::Refused => {}
        }
        {
            let mut trouble = self.trouble();
            let text = format!("{}: {failure}", failure.kind);
            match &mut *trouble {
                Some(troubled) => (troubled.text, troubled.failures) = (text, troubled.failures + 1),
                None => *trouble = Some(Troubled { text, start: Instant::now(), failures: 1 }),
            }
            self.troubled.store(true, Ordering::Release);
        }
        if let Some(suppressed) = self.due(failure.kind, Instant::now()) {
            tracing::warn!(verb, key, error = %failure, suppressed, "{}", failure.kind);
        } else {
            tracing::debug!(verb, key, error = %failure, "{}", failure.kind);
        }
    }

    fn recovered(&self) {
        if !self.troubled.load(Ordering::Acquire) {
            return;
        }
        let ended = {
            let mut trouble = self.trouble();
            self.troubled.store(false, Ordering::Release);
            trouble.take()
        };
        if let Some(troubled) = ended
            && troubled.start.elapsed() >= REPORT_INTERVAL
        {
            let (after, failures) = (troubled.start.elapsed(), troubled.failures);
            tracing::info!(?after, failures, "the object store works again");
        }
    }

    /// Whether a failure of this kind is to be logged, with the number of those that were not.
    fn due(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let report = &mut reports[kind as usize];
        if report.last.is_some_and(|last| now.saturating_duration_since(last) < REPORT_INTERVAL) {
            report.suppressed += 1;
            return None;
        }
        let suppressed = report.suppressed;
        *report = Report { last: Some(now), suppressed: 0 };
        Some(suppressed)
    }

    pub(super) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            puts: read(&self.puts),
            put_bytes: read(&self.put_bytes),
            gets: read(&self.gets),
            got_bytes: read(&self.got_bytes),
            deletes: read(&self.deletes),
            lists: read(&self.lists),
            failures: read(&self.failures),
            throttled: read(&self.throttled),
        }
    }

    pub(super) fn now_troubled(&self) -> Option<Trouble> {
        let trouble = self.trouble();
        trouble.as_ref().map(|troubled| Trouble { text: troubled.text.clone(), since: troubled.start.elapsed() })
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Troubled>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_logged_once_a_second_with_what_was_left_out() {
        let health = Health::default();
        let start = Instant::now();
        let due = |kind, ms| health.due(kind, start + Duration::from_millis(ms));
        assert_eq!(due(Kind::Throttled, 0), Some(0));
        assert_eq!(due(Kind::Throttled, 10), None);
        assert_eq!(due(Kind::Full, 10), Some(0));
        assert_eq!(due(Kind::Throttled, 999), None);
        assert_eq!(due(Kind::Throttled, 1000), Some(2));
        assert_eq!(due(Kind::Throttled, 2500), Some(0));
    }

    #[test]
    fn trouble_lasts_from_the_first_failure_to_the_next_success() {
        let health = Health::default();
        let fail = |kind| health.note::<()>(Verb::Put, "o", 1, Err(Failure::new(kind, "text")));
        assert_eq!(health.now_troubled(), None);
        assert_eq!(fail(Kind::NotFound), Err(StoreError::NotFound));
        assert_eq!(health.now_troubled(), None, "an absent object is no trouble");
        assert_eq!(fail(Kind::Throttled), Err(StoreError::Retry));
        assert_eq!(fail(Kind::Full), Err(StoreError::Full));
        let trouble = health.now_troubled().expect("trouble");
        assert!(trouble.text == "no space left in the object store: text", "{trouble:?}");
        assert_eq!(health.note(Verb::Get, "o", 7, Ok(())), Ok(()));
        assert_eq!(health.now_troubled(), None);
        let expected = Counts { puts: 3, gets: 1, got_bytes: 7, failures: 2, throttled: 1, ..Counts::default() };
        assert_eq!(health.counts(), expected);
    }
}
