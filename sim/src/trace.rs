//! What happened in a run, in order: for the reader of a failure, and as a hash that proves that a seed repeats.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use kiseki_core::types::Ino;
use madsim::time::TimeHandle;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines kept for the reader. A life has a few thousand.
const KEPT: usize = 4000;

#[derive(Debug, Default)]
struct Lines {
    hash: u64,
    count: u64,
    kept: VecDeque<String>,
    errors: Vec<String>,
    raised: BTreeMap<u64, u64>,
}

/// The record of one run; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<Lines>>);

impl Trace {
    /// Adds a line, under the simulated time.
    pub fn add(&self, text: impl Into<String>) {
        let now = TimeHandle::try_current().map(|time| time.elapsed()).unwrap_or_default();
        let line = format!("{:>12.6} {}", now.as_secs_f64(), text.into());
        let mut lines = self.0.lock().unwrap();
        // FNV-1a.
        for byte in line.bytes() {
            lines.hash = (lines.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        lines.count += 1;
        if lines.kept.len() == KEPT {
            lines.kept.pop_front();
        }
        lines.kept.push_back(line);
    }

    /// A hash of all lines so far, and their number.
    pub fn hash(&self) -> (u64, u64) {
        let lines = self.0.lock().unwrap();
        (lines.hash, lines.count)
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines.kept.iter().skip(lines.kept.len().saturating_sub(count)).cloned().collect()
    }

    /// How many errors of a file were raised for those who have it open, in all lives.
    pub fn raised(&self, ino: Ino) -> u64 {
        self.0.lock().unwrap().raised.get(&ino.0).copied().unwrap_or(0)
    }

    /// What was logged at level ERROR: each a broken promise.
    pub fn errors(&self) -> Vec<String> {
        self.0.lock().unwrap().errors.clone()
    }
}

/// Puts what the core logs at INFO and above into a trace. Spans are ignored.
#[derive(Debug)]
pub struct Logger(pub Trace);

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::DEBUG && metadata.target().starts_with("kiseki_core")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Text(String, u64);
        impl Visit for Text {
            fn record_u64(&mut self, field: &Field, value: u64) {
                if field.name() == "ino" {
                    self.1 = value;
                }
                self.record_debug(field, &value);
            }

            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 += &format!(" {value:?}");
                } else {
                    self.0 += &format!(" {}={value:?}", field.name());
                }
            }
        }
        let level = *event.metadata().level();
        let mut text = Text(format!("log {level}"), 0);
        event.record(&mut text);
        if text.0.contains(" an error is raised") {
            *self.0.0.lock().unwrap().raised.entry(text.1).or_default() += 1;
        }
        if level == Level::ERROR {
            self.0.0.lock().unwrap().errors.push(text.0.clone());
        }
        self.0.add(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
