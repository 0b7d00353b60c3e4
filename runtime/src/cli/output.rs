//! What commands say: results on standard output, progress on standard error, and how they end.

use std::fmt::{self, Display, Write as _};
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// How a command ends well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Exit code 0.
    Clean,
    /// It found something wrong: exit code 3.
    Findings,
}

/// How a command ends badly.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for makes no sense: exit code 2.
    Usage(String),
    /// It did not work: exit code 1. What failed and on what; and what to do, if anything helps.
    Failed { what: String, hint: Option<String> },
}

/// What a command returns.
pub(crate) type Outcome<T = Done> = Result<T, Failure>;

impl Failure {
    /// Without advice.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), hint: None }
    }

    /// With advice.
    pub(crate) fn with_hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), hint: Some(hint.into()) }
    }

    /// Writes the error to standard error and returns the exit code.
    pub(crate) fn report(&self) -> u8 {
        say_aside(format!("kiseki: {self}"));
        match self {
            Self::Usage(_) => 2,
            Self::Failed { .. } => 1,
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(what) => write!(f, "{what}\n  Try 'kiseki help'."),
            Self::Failed { what, hint: None } => write!(f, "{what}"),
            Self::Failed { what, hint: Some(hint) } => write!(f, "{what}\n  {hint}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Names what was being done when an error came.
pub(crate) trait Context<T> {
    /// The failure reads "cannot {doing}: {error}".
    fn context<D: Display>(self, doing: impl FnOnce() -> D) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> Context<T> for Result<T, E> {
    fn context<D: Display>(self, doing: impl FnOnce() -> D) -> Outcome<T> {
        self.map_err(|e| Failure::new(format!("cannot {}: {:#}", doing(), e.into())))
    }
}

/// A line on standard output. A reader that went away (`kiseki status | head -1`) is no error.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A line on standard error.
pub(crate) fn say_aside(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A document on standard output, for `--json`.
pub(crate) fn say_json(document: &impl Serialize) {
    match serde_json::to_string_pretty(document) {
        Ok(text) => say(text),
        Err(e) => say_aside(format!("kiseki: cannot write JSON: {e}")),
    }
}

/// Lines of `name: value`, aligned.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (index, (name, value)) in rows.iter().enumerate() {
        let newline = if index == 0 { "" } else { "\n" };
        let _ = write!(text, "{newline}{:width$} {value}", format!("{name}:"));
    }
    text
}

/// A spinner or a bar on standard error; nothing when that is no terminal.
pub(crate) struct Meter {
    bar: ProgressBar,
}

impl Meter {
    /// Appears once there is something to say.
    pub(crate) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    /// Something whose end is not known.
    pub(crate) fn spin(&self, text: impl Into<String>) {
        self.bar.unset_length();
        self.style("{spinner} {msg}");
        self.bar.set_message(text.into());
    }

    /// `done` of `total`.
    pub(crate) fn advance(&self, text: impl Into<String>, done: u64, total: u64) {
        self.style("{spinner} {msg} [{wide_bar}] {pos}/{len} {eta}");
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(text.into());
    }

    /// A line on standard output that does not tear the bar.
    pub(crate) fn say(&self, text: impl Display) {
        self.bar.suspend(|| say(text));
    }

    /// Goes away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }
}
