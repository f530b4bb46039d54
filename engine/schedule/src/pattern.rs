//! [`Pattern`]: a cron pattern in a time zone, and the moments that it names.
//!
//! The pattern is searched on the wall clock alone, as if no clock ever changed; which moments a wall clock time stands for is
//! decided here. One parsed pattern is shared by all schedules that have it.

use std::collections::HashMap;
use std::str::FromStr as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use croner::Cron;
use farrier_model::time::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, ToSpan as _};

use crate::spec::ClockChange;
use crate::zone::{UnknownZone, zone};

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is not a cron pattern: a sentence without a period.
    #[error("{0}")]
    Syntax(String),
    /// Its time zone.
    #[error(transparent)]
    Zone(#[from] UnknownZone),
}

/// A cron pattern in a time zone. Clones share it.
#[derive(Debug, Clone)]
pub struct Pattern(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cron: Cron,
    zone: TimeZone,
    change: ClockChange,
}

/// Patterns that are in use, by text, zone and rule. A parsed one takes some five kilobytes.
type Known = HashMap<(String, String, Option<ClockChange>), Weak<Shared>>;
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
/// When the list of known patterns is this long, those out of use are taken out.
const SWEEP: usize = 1024;

impl Pattern {
    /// Reads a pattern of five fields, or six with seconds first. Without `change` its hours decide, see [`ClockChange`].
    ///
    /// # Errors
    /// It is no pattern, or the zone is unknown.
    pub fn new(pattern: &str, timezone: &str, change: Option<ClockChange>) -> Result<Pattern, PatternError> {
        let key = (pattern.to_owned(), timezone.to_owned(), change);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(Pattern(shared));
        }
        let cron = parse(pattern).map_err(PatternError::Syntax)?;
        let zone = zone(timezone)?;
        let change = change.unwrap_or_else(|| default_change(pattern, &cron));
        let shared = Arc::new(Shared { cron, zone, change });
        if known.len() >= SWEEP && known.len().is_power_of_two() {
            known.retain(|_, shared| shared.strong_count() > 0);
        }
        known.insert(key, Arc::downgrade(&shared));
        Ok(Pattern(shared))
    }

    /// What a change of the clock means for it.
    pub fn clock_change(&self) -> ClockChange {
        self.0.change
    }

    /// The first moment after `after` that the pattern names; none when there is no such moment.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self.0.change {
            ClockChange::Once => self.0.next_once(after),
            ClockChange::AsShown => self.0.next_as_shown(after),
        }
    }
}

impl Shared {
    /// Each wall clock time is one moment, and moments come in the order of wall clock times.
    fn next_once(&self, after: Timestamp) -> Option<Timestamp> {
        let shown = whole_seconds(self.zone.to_datetime(after));
        // In the second half of a repeated hour, what it shows has been; so has everything up to the hour's end.
        let mut from = (shown, false);
        loop {
            let found = self.search(from.0, from.1)?;
            match self.moment(found) {
                Some(moment) if moment > after => return Some(moment),
                Some(_) => from = (found, false),
                // Beyond the calendar.
                None => return None,
            }
        }
    }

    /// The one moment of a wall clock time: the first, when the clock shows it twice; the first one after, when it never does.
    fn moment(&self, shown: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(shown);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(shown).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(shown).ok(),
            AmbiguousOffset::Gap { before, .. } => {
                // By the clock as it was, the time lies behind the change.
                let behind = before.to_timestamp(shown).ok()?;
                let just_behind = behind.checked_add(1.nanosecond()).ok()?;
                self.zone.preceding(just_behind).next().map(|change| change.timestamp())
            }
        }
    }

    /// Between two changes of the clock, wall clock and elapsed time are the same but for an offset.
    fn next_as_shown(&self, after: Timestamp) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (after, false);
        loop {
            let offset = self.zone.to_offset(from);
            let found = self.search(whole_seconds(offset.to_datetime(from)), inclusive)?;
            let moment = offset.to_timestamp(found).ok()?;
            let change = self.zone.following(from).next().map(|change| change.timestamp());
            match change {
                Some(change) if moment >= change => (from, inclusive) = (change, true),
                _ => return Some(moment),
            }
        }
    }

    /// The first wall clock time from `from` on that fits the pattern.
    fn search(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&from, inclusive).ok()
    }
}

fn whole_seconds(shown: DateTime) -> DateTime {
    let nanos = SignedDuration::from_nanos(i64::from(shown.subsec_nanosecond()));
    shown.checked_sub(nanos).unwrap_or(shown)
}

fn parse(pattern: &str) -> Result<Cron, String> {
    let fields = pattern.split_whitespace().count();
    if !matches!(fields, 5 | 6) {
        return Err(format!("it has {fields} field{}", if fields == 1 { "" } else { "s" }));
    }
    Cron::from_str(pattern).map_err(|error| {
        let text = error.to_string();
        let reason = text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason);
        reason.trim_end_matches('.').to_owned()
    })
}

/// Hours that are named are times of the day; any other hour field means "again and again".
fn default_change(pattern: &str, cron: &Cron) -> ClockChange {
    let fields: Vec<&str> = pattern.split_whitespace().collect();
    let hours = fields.get(fields.len() - 4).copied().unwrap_or_default();
    if hours.contains(['*', '/', '?']) || cron.pattern.hours.values().len() == 24 {
        ClockChange::AsShown
    } else {
        ClockChange::Once
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn times(
        pattern: &str,
        zone: &str,
        change: Option<ClockChange>,
        from: &str,
        count: usize,
    ) -> Vec<String> {
        let pattern = Pattern::new(pattern, zone, change).unwrap();
        let mut times = Vec::new();
        let mut last = at(from);
        while times.len() < count {
            last = pattern.next(last).unwrap();
            times.push(last.to_string());
        }
        times
    }

    #[test]
    fn named_hours_are_times_of_the_day_and_other_hours_are_not() {
        for (pattern, change) in [
            ("30 2 * * *", ClockChange::Once),
            ("0 2,14 * * MON", ClockChange::Once),
            ("*/15 2 * * *", ClockChange::Once),
            ("*/15 * * * *", ClockChange::AsShown),
            ("0 */2 * * *", ClockChange::AsShown),
            ("0 0-23/2 * * *", ClockChange::AsShown),
            ("0 0-23 * * *", ClockChange::AsShown),
            ("0 17 3 * * *", ClockChange::Once),
            ("30 0 * * * *", ClockChange::AsShown),
        ] {
            assert_eq!(Pattern::new(pattern, "Etc/UTC", None).unwrap().clock_change(), change, "{pattern}");
        }
    }

    #[test]
    fn a_local_time_that_never_comes_is_due_at_the_change_and_one_that_comes_twice_the_first_time() {
        // 02:00 to 03:00 does not exist on 2026-03-29; it comes twice on 2026-10-25.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", None, "2026-03-28T00:00:00Z", 3),
            ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", None, "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        // All that falls into the gap is one moment.
        assert_eq!(
            times("*/15 2,3 * * *", "Europe/Berlin", None, "2026-03-28T23:00:00Z", 3),
            ["2026-03-29T01:00:00Z", "2026-03-29T01:15:00Z", "2026-03-29T01:30:00Z"]
        );
    }

    #[test]
    fn what_is_due_again_and_again_follows_elapsed_time() {
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", None, "2026-10-25T00:00:00Z", 4),
            ["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"]
        );
        // Whoever says so gets a named hour twice, or not at all.
        let shown = Some(ClockChange::AsShown);
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", shown, "2026-10-24T12:00:00Z", 3),
            ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]
        );
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", shown, "2026-03-28T12:00:00Z", 1),
            ["2026-03-30T00:30:00Z"]
        );
    }

    #[test]
    fn sub_seconds_and_the_second_half_of_a_repeated_hour_are_no_trap() {
        let daily = Pattern::new("30 2 * * *", "Europe/Berlin", None).unwrap();
        assert_eq!(daily.next(at("2026-10-25T00:29:59.999Z")), Some(at("2026-10-25T00:30:00Z")));
        assert_eq!(daily.next(at("2026-10-25T00:30:00.001Z")), Some(at("2026-10-26T01:30:00Z")));
        // 02:10 for the second time: 02:30 has been.
        assert_eq!(daily.next(at("2026-10-25T01:10:00Z")), Some(at("2026-10-26T01:30:00Z")));
    }

    #[test]
    fn a_day_that_a_country_skipped_is_no_trap() {
        // Samoa went from the evening of the 29th to the morning of the 31st.
        assert_eq!(
            times("0 12 30 12 *", "Pacific/Apia", None, "2011-12-01T00:00:00Z", 1),
            ["2011-12-30T10:00:00Z"]
        );
    }

    #[test]
    fn the_extended_fields_work() {
        for (pattern, first) in [
            ("0 12 L * *", "2026-02-28T12:00:00Z"),
            ("0 12 15W * *", "2026-02-16T12:00:00Z"),
            ("0 12 * * MON#2", "2026-02-09T12:00:00Z"),
            ("0 12 * * FRIL", "2026-02-27T12:00:00Z"),
            ("0 12 * MAR *", "2026-03-01T12:00:00Z"),
            ("15 30 8 * * *", "2026-02-01T08:30:15Z"),
        ] {
            assert_eq!(times(pattern, "Etc/UTC", None, "2026-02-01T00:00:00Z", 1), [first], "{pattern}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_pattern_is_said() {
        let wrong = |pattern: &str| Pattern::new(pattern, "Etc/UTC", None).unwrap_err().to_string();
        assert_eq!(wrong("3 * *"), "it has 3 fields");
        assert!(!wrong("61 3 * * *").ends_with('.'));
        assert!(Pattern::new("0 0 * * *", "Nowhere", None).is_err());
        // A date that never comes is a pattern without moments.
        assert_eq!(
            Pattern::new("0 0 30 2 *", "Etc/UTC", None).unwrap().next(at("2026-01-01T00:00:00Z")),
            None
        );
    }

    #[test]
    fn one_parsed_pattern_serves_all_who_have_it() {
        let one = Pattern::new("7 7 7 7 *", "Europe/Paris", None).unwrap();
        let two = Pattern::new("7 7 7 7 *", "Europe/Paris", None).unwrap();
        assert!(Arc::ptr_eq(&one.0, &two.0));
    }
}
