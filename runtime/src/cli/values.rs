//! Values on the command line: sizes, durations, names; and how they are shown.

use std::time::Duration;

/// A size in bytes: a whole number with an optional suffix K, M, G, T or P (powers of 1024; `KiB`, `KB`, `k` are the same).
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let power = match suffix.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        _ => return Err("expected a size such as 512K, 4M, 1G or a number of bytes".into()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a size such as 512K, 4M, 1G or a number of bytes")?;
    number.checked_mul(1 << (10 * power)).ok_or_else(|| "too large".into())
}

/// A duration: a whole number with a suffix ms, s, m or h; without one, seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "expected a duration such as 500ms, 5s, 5m or a number of seconds")?;
    let ms = match suffix {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected a duration such as 500ms, 5s, 5m or a number of seconds".into()),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(|| "too long".into())
}

/// A volume's name: it becomes a folder, a mount source and, on S3, a key prefix.
pub(crate) fn volume_name(text: &str) -> Result<String, String> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if !(3..=63).contains(&text.len()) {
        return Err("a name has 3 to 63 characters".into());
    }
    if !text.bytes().all(allowed) || text.starts_with('-') || text.ends_with('-') {
        return Err("a name has lower-case letters, digits and inner dashes only".into());
    }
    Ok(text.into())
}

/// A block size: a power of two, at least a frame and at most 16 MiB.
pub(crate) fn block_size(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    if !bytes.is_power_of_two() || !((64 << 10)..=(16 << 20)).contains(&bytes) {
        return Err("a block size is a power of two from 64K to 16M".into());
    }
    Ok(bytes as u32)
}

/// `bytes` for a person: `0 B`, `4.0 KiB`, `1.5 GiB`.
pub(crate) fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A limit for a person; 0 is none.
pub(crate) fn show_limit(limit: u64, show: impl Fn(u64) -> String) -> String {
    if limit == 0 { "no limit".into() } else { show(limit) }
}

/// `secs` for a person: `12s`, `3m 5s`, `2d 3h`.
pub(crate) fn show_secs(secs: u64) -> String {
    let (d, h, m, s) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60, secs % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, _, _) => format!("{h}h {m}m"),
        (_, _, _) => format!("{d}d {h}h"),
    }
}

/// Seconds since 1970 as `YYYY-MM-DD HH:MM:SS UTC`.
pub(crate) fn show_time(secs: i64) -> String {
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Days to a civil date, by eras of 400 years that begin on 1 March (Howard Hinnant, "chrono-compatible
    // low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, expected) in [
            ("0", 0),
            ("17", 17),
            ("4K", 4096),
            ("4k", 4096),
            ("1M", 1 << 20),
            ("1MiB", 1 << 20),
            ("2GB", 2 << 30),
            ("7B", 7),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in ["", "K", "-1", "1.5G", "4X", "99999999999P", "1 G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_default_to_seconds() {
        for (text, ms) in [("5", 5000), ("5s", 5000), ("500ms", 500), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5d", "1.5s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_safe_everywhere() {
        for text in ["abc", "my-volume", "1-2"] {
            assert!(volume_name(text).is_ok(), "{text}");
        }
        for text in ["", "ab", "-ab", "ab-", "Abc", "a_c", "a/c", "..."] {
            assert!(volume_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(4096), "4.0 KiB");
        assert_eq!(show_size(3 << 29), "1.5 GiB");
        assert_eq!(show_secs(59), "59s");
        assert_eq!(show_secs(3725), "1h 2m");
        assert_eq!(show_time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(show_time(1_709_210_096), "2024-02-29 12:34:56 UTC");
        assert_eq!(show_time(-1), "1969-12-31 23:59:59 UTC");
    }
}
