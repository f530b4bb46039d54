//! Durations and timestamps as authors write them.

use std::fmt::Write;
use std::time::Duration;

pub use jiff::Timestamp;

/// Units of an authored duration, largest first, in milliseconds.
const UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `90s`, `5m`, `1h30m`, `40d`, `250ms`. A day is 24 hours. Returns nothing when `text` is something else.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total: u64 = 0;
    let mut rest = text;
    let mut smallest = u64::MAX;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..letters])?;
        if *unit >= smallest {
            return None;
        }
        smallest = *unit;
        total = total.checked_add(number.checked_mul(*unit)?)?;
        rest = &rest[letters..];
    }
    Some(Duration::from_millis(total))
}

/// Writes a duration the way [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis() as u64;
    if rest == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (name, unit) in UNITS {
        if name != "w" && rest >= unit {
            let _ = write!(text, "{}{name}", rest / unit);
            rest %= unit;
        }
    }
    text
}

/// Reads an RFC 3339 timestamp or an LDAP generalized time (RFC 4517 §3.3.13: `20261122101530Z`, with a fraction, or
/// with an offset). The all-but-zero `000001010000Z` that marks "delete now" in a directory reads as year 0.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    if let Ok(timestamp) = text.parse() {
        return Some(timestamp);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (stamp, rest) = text.split_at(digits);
    let number = |range: std::ops::Range<usize>| stamp.get(range).and_then(|part| part.parse::<i8>().ok());
    if !matches!(stamp.len(), 10 | 12 | 14) {
        return None;
    }
    let (fraction, zone) = match rest.strip_prefix(['.', ',']) {
        Some(after) => {
            let end = after.find(|c: char| !c.is_ascii_digit())?;
            after.split_at(end)
        }
        None => ("", rest),
    };
    let nanos: i32 =
        if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").get(..9)?.parse().ok()? };
    let offset_seconds = if zone == "Z" {
        0
    } else {
        let sign = match zone.get(..1)? {
            "+" => 1,
            "-" => -1,
            _ => return None,
        };
        let hours: i32 = zone.get(1..3)?.parse().ok()?;
        let minutes: i32 = zone.get(3..5).map_or(Some(0), |m| m.parse().ok())?;
        sign * (hours * 3600 + minutes * 60)
    };
    let civil = jiff::civil::DateTime::new(
        stamp.get(..4)?.parse().ok()?,
        number(4..6)?,
        number(6..8)?,
        number(8..10)?,
        if stamp.len() >= 12 { number(10..12)? } else { 0 },
        if stamp.len() >= 14 { number(12..14)? } else { 0 },
        nanos,
    )
    .ok()?;
    let offset = jiff::tz::Offset::from_seconds(offset_seconds).ok()?;
    offset.to_timestamp(civil).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, ms) in
            [("90s", 90_000), ("1h30m", 5_400_000), ("40d", 3_456_000_000), ("250ms", 250), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(format_duration(Duration::from_secs(90)), "1m30s");
        assert_eq!(format_duration(Duration::from_secs(40 * 86_400)), "40d");
        for bad in ["", "5", "m", "5 m", "-5m", "5m1h", "5y", "99999999999999999d"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn generalized_time_reads() {
        let read = |text| parse_timestamp(text).map(|t| t.to_string());
        assert_eq!(read("20261122101530Z").as_deref(), Some("2026-11-22T10:15:30Z"));
        assert_eq!(read("20261122101530.25Z").as_deref(), Some("2026-11-22T10:15:30.25Z"));
        assert_eq!(read("202611221015+0100").as_deref(), Some("2026-11-22T09:15:00Z"));
        assert_eq!(read("000001010000Z").as_deref(), Some("0000-01-01T00:00:00Z"));
        assert_eq!(read("20261322101530Z"), None);
        assert_eq!(read("yesterday"), None);
    }
}
