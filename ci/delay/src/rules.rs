//! What is done to requests, and the file that changes it while the proxy runs.
//!
//! Owns: the meaning of the options. Leaves to others: carrying them out (`proxy`, `pace`).

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) latency: Duration,
    /// Bytes a second in each direction; none: no limit. (above 0)
    pub(crate) bandwidth: Option<u64>,
    pub(crate) fail: Option<Fail>,
}

/// Every `every`th request is answered with `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fail {
    /// At least 1.
    pub(crate) every: u64,
    pub(crate) status: StatusCode,
}

impl Rules {
    /// Sets one of them from text; `none` switches it off.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let off = value == "none";
        match name {
            "latency" => self.latency = if off { Duration::ZERO } else { duration(value)? },
            "bandwidth" => self.bandwidth = if off { None } else { Some(bytes_per_second(value)?) },
            "fail" => self.fail = if off { None } else { Some(fail(value)?) },
            _ => return Err(format!("latency, bandwidth or fail, not {name}")),
        }
        Ok(())
    }

    /// These rules, changed by a control file's text.
    fn with(mut self, text: &str) -> Result<Self, String> {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(' ').ok_or(format!("{line}: a name and a value are needed"))?;
            self.set(name, value.trim())?;
        }
        Ok(self)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let wrong = || format!("{text} is not a time such as 50ms or 2s");
    let count: u64 = text[..end].parse().map_err(|_| wrong())?;
    match &text[end..] {
        "us" => Ok(Duration::from_micros(count)),
        "ms" => Ok(Duration::from_millis(count)),
        "s" => Ok(Duration::from_secs(count)),
        _ => Err(wrong()),
    }
}

fn bytes_per_second(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let bits = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
    bits.map(|bits| bits / 8)
        .filter(|bytes| *bytes > 0)
        .ok_or(format!("{text} is not bits a second such as 100M or 1G"))
}

fn fail(text: &str) -> Result<Fail, String> {
    let wrong = || format!("{text} is not every:N:STATUS, such as every:2:503");
    let (every, status) = text.strip_prefix("every:").and_then(|rest| rest.split_once(':')).ok_or_else(wrong)?;
    let every = every.parse().ok().filter(|every| *every > 0).ok_or_else(wrong)?;
    let status = status.parse::<StatusCode>().ok().filter(|status| status.as_u16() >= 400).ok_or_else(wrong)?;
    Ok(Fail { every, status })
}

/// The rules of the command line, and what the control file makes of them.
pub(crate) struct Control {
    base: Rules,
    file: Option<PathBuf>,
    /// The text that was read last, and the rules it gave.
    last: Mutex<(String, Rules)>,
}

impl Control {
    pub(crate) fn new(base: Rules, file: Option<PathBuf>) -> Self {
        Self { base, file, last: Mutex::new((String::new(), base)) }
    }

    /// The rules for the next request. A text that cannot be understood changes nothing.
    pub(crate) fn rules(&self) -> Rules {
        let text = self.file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != text {
            let rules = self.base.with(&text).unwrap_or_else(|error| {
                eprintln!("delay: control file: {error}");
                last.1
            });
            *last = (text, rules);
        }
        last.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_understood() {
        let mut rules = Rules::default();
        for (name, value) in [("latency", "250us"), ("bandwidth", "8k"), ("fail", "every:3:429")] {
            rules.set(name, value).unwrap();
        }
        let fail = Some(Fail { every: 3, status: StatusCode::TOO_MANY_REQUESTS });
        assert_eq!(rules, Rules { latency: Duration::from_micros(250), bandwidth: Some(1000), fail });
        let off = rules.with("latency none\n\nfail none\n").unwrap();
        assert_eq!(off, Rules { bandwidth: Some(1000), ..Rules::default() });
    }

    #[test]
    fn texts_that_are_refused() {
        let wrong = [
            ("latency", "5"),
            ("latency", "ms"),
            ("latency", "-1ms"),
            ("bandwidth", "7"),
            ("bandwidth", "G"),
            ("bandwidth", ""),
            ("fail", "every:0:503"),
            ("fail", "every:2:200"),
            ("fail", "every:2"),
            ("speed", "1"),
        ];
        for (name, value) in wrong {
            assert!(Rules::default().set(name, value).is_err(), "{name} {value}");
        }
    }
}
