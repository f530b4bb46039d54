//! Due times over five years in eight time zones, compared with what `zones/oracle.py` found by walking every minute with
//! another language, another time zone library and another copy of the time zone database.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use farrier_schedule::{Calendar, ClockChange, Due, ScheduleId, Spec};
use sha2::{Digest, Sha256};

const ORACLE: &str = include_str!("zones/oracle.tsv");

fn due_times(zone: &str, pattern: &str, change: Option<ClockChange>, (first, last): (i64, i64)) -> Vec<i64> {
    let due = Due::Cron { pattern: pattern.into(), timezone: zone.into(), clock_change: change };
    let calendar = Calendar::new(&ScheduleId::new("e", "r", 1), &Spec::new(due)).unwrap();
    let mut at = jiff::Timestamp::from_second(first).unwrap();
    let mut times = Vec::new();
    while let Some(next) = calendar.next(at).filter(|next| next.as_second() <= last) {
        times.push(next.as_second());
        at = next;
    }
    times
}

#[test]
fn due_times_are_those_of_another_hand() {
    let mut lines = 0;
    for line in ORACLE.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [zone, pattern, rule, first, last, count, digest, near] = fields[..] else { panic!("{line}") };
        let change = if rule == "once" { ClockChange::Once } else { ClockChange::AsShown };
        let times = due_times(zone, pattern, Some(change), (first.parse().unwrap(), last.parse().unwrap()));
        let what = format!("{zone} `{pattern}` {rule}");
        let near: Vec<i64> =
            near.split(',').filter(|text| !text.is_empty()).map(|text| text.parse().unwrap()).collect();
        for expected in &near {
            let at = jiff::Timestamp::from_second(*expected).unwrap();
            assert!(times.binary_search(expected).is_ok(), "{what}: {at} is missing");
        }
        let (from, to) = (near.first().copied().unwrap_or(0), near.last().copied().unwrap_or(-1));
        if pattern == "*/15 * * * *" {
            // Around the first change all of them are known, so one too many is found by name.
            let window = |times: &[i64]| -> Vec<i64> {
                times
                    .iter()
                    .copied()
                    .filter(|at| (from..=from + 5 * 3600).contains(at) && *at <= to)
                    .collect()
            };
            assert_eq!(window(&times), window(&near), "{what}");
        }
        assert_eq!(times.len().to_string(), count, "{what}");
        let text: String = times.iter().map(|at| format!("{at}\n")).collect();
        let found: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, digest, "{what}");
        lines += 1;
    }
    assert_eq!(lines, 80);
}

/// What the pattern says by itself is one of the two rules, as the manual tells.
#[test]
fn the_rule_follows_from_the_hours_of_the_pattern() {
    let year = (1_735_732_800, 1_767_268_800);
    for (pattern, change) in [
        ("30 2 * * *", ClockChange::Once),
        ("15,45 1-3 * * *", ClockChange::Once),
        ("*/15 * * * *", ClockChange::AsShown),
        ("0 */2 * * *", ClockChange::AsShown),
    ] {
        for zone in ["Europe/Berlin", "Australia/Lord_Howe"] {
            assert_eq!(
                due_times(zone, pattern, None, year),
                due_times(zone, pattern, Some(change), year),
                "{zone} `{pattern}`"
            );
        }
    }
}
