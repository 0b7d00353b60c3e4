//! How long a folder's users wait for names and attributes while something else goes on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sys;

/// Between two rounds: often enough to notice a wait of a few hundred milliseconds, too seldom to be a load.
const PAUSE: Duration = Duration::from_millis(20);

/// The sum of what was seen.
#[derive(Default)]
struct Seen {
    slowest: Duration,
    samples: u64,
}

impl Seen {
    fn time<T>(&mut self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begin = Instant::now();
        let result = call();
        self.slowest = self.slowest.max(begin.elapsed());
        self.samples += 1;
        result
    }

    /// Lists `dir` and asks for the attributes of each entry.
    fn round(&mut self, dir: &Path) -> io::Result<()> {
        let names =
            self.time(|| fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>())?;
        for name in names {
            match self.time(|| sys::fresh_attributes(&name)) {
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }
}

pub(crate) fn run(mut words: impl Iterator<Item = String>) -> Result<bool, String> {
    let (mut dir, mut stop) = (None, None);
    while let Some(word) = words.next() {
        let value = PathBuf::from(words.next().ok_or(format!("{word} needs a value"))?);
        match word.as_str() {
            "--dir" => dir = Some(value),
            "--stop" => stop = Some(value),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    let (Some(dir), Some(stop)) = (dir, stop) else { return Err("--dir and --stop are needed".into()) };
    let mut seen = Seen::default();
    while !stop.exists() {
        seen.round(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        sleep(PAUSE);
    }
    // Rounded up: a limit that is passed by a little is passed.
    println!("slowest_stat_ms={} samples={}", seen.slowest.as_micros().div_ceil(1000), seen.samples);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_call_counts() {
        let mut seen = Seen::default();
        for wait in [1, 30, 1] {
            let call = || {
                sleep(Duration::from_millis(wait));
                Ok(())
            };
            seen.time(call).unwrap();
        }
        assert!(seen.slowest >= Duration::from_millis(30));
        assert_eq!(seen.samples, 3);
    }

    #[test]
    fn every_entry_is_asked_for() {
        let dir = std::env::temp_dir().join(format!("torture-probe-{}", std::process::id()));
        fs::create_dir_all(dir.join("folder")).unwrap();
        fs::write(dir.join("file"), b"").unwrap();
        let mut seen = Seen::default();
        seen.round(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(seen.samples, 3);
        assert!(seen.round(&dir).is_err());
    }
}
