//! What happened in a run, in order: for the reader of a failure, and as a hash that proves that a seed repeats.
//!
//! Owns: the lines, and what the core tells of itself: its log, the marks that it reached.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use kiseki_core::marks::{self, Mark};
use kiseki_core::types::Ino;
use madsim::time::TimeHandle;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines kept of a run that nobody has asked to see: what led to its end.
const KEPT: usize = 400;

#[derive(Debug)]
struct Lines {
    hash: u64,
    count: u64,
    /// All lines, and the marks among them, are kept.
    full: bool,
    kept: VecDeque<String>,
    errors: Vec<String>,
    /// How often each mark was reached.
    marks: [u64; Mark::ALL.len()],
    raised: BTreeMap<u64, u64>,
}

/// The record of one run; clones share it.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<Lines>>);

impl Default for Trace {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Trace {
    /// An empty one. `full`: for a reader who wants to see everything.
    pub fn new(full: bool) -> Self {
        let marks = [0; Mark::ALL.len()];
        Self(Arc::new(Mutex::new(Lines {
            hash: 0,
            count: 0,
            full,
            kept: VecDeque::new(),
            errors: Vec::new(),
            raised: BTreeMap::new(),
            marks,
        })))
    }

    /// Adds a line, under the simulated time.
    pub fn add(&self, text: impl AsRef<str>) {
        let line = stamped(text.as_ref());
        let mut lines = self.0.lock().unwrap();
        // FNV-1a.
        for byte in line.bytes() {
            lines.hash = (lines.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        lines.count += 1;
        lines.keep(line);
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

    /// How often each mark was reached, in the order of `Mark::ALL`.
    pub fn marks(&self) -> Vec<u64> {
        self.0.lock().unwrap().marks.to_vec()
    }

    fn reached(&self, index: usize) {
        let mut lines = self.0.lock().unwrap();
        lines.marks[index] += 1;
        if lines.full {
            lines.keep(stamped(&format!("mark {:?}", Mark::ALL[index])));
        }
    }
}

impl Lines {
    fn keep(&mut self, line: String) {
        if !self.full && self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }
}

fn stamped(text: &str) -> String {
    let now = TimeHandle::try_current().map(|time| time.elapsed()).unwrap_or_default();
    format!("{:>5}.{:06} {text}", now.as_secs(), now.subsec_micros())
}

/// Puts what the core logs at DEBUG and above into a trace, and the marks. Spans are ignored.
#[derive(Debug)]
pub struct Logger(pub Trace);

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let logged = *metadata.level() <= Level::DEBUG && metadata.target().starts_with("kiseki_core");
        metadata.is_event() && (logged || metadata.target() == marks::TARGET)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if event.metadata().target() == marks::TARGET {
            event.record(&mut Number(&self.0));
            return;
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

/// The fields of a log line, and the inode that it names.
struct Text(String, u64);

impl Visit for Text {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "ino" {
            self.1 = value;
        }
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        written.expect("memory can be written");
    }
}

/// The one field of a mark.
struct Number<'a>(&'a Trace);

impl Visit for Number<'_> {
    fn record_u64(&mut self, _: &Field, value: u64) {
        self.0.reached(value as usize);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        panic!("a mark is a number, not {field}={value:?}");
    }
}
