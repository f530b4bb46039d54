//! [`Calendar`]: the due times of a schedule.

use std::time::Duration;

use farrier_model::time::Timestamp;

use crate::pattern::{Pattern, PatternError};
use crate::spec::{Due, ScheduleId, Spec};

/// The due times of one schedule. Cheap to make again: parsed patterns are shared.
#[derive(Debug, Clone)]
pub struct Calendar {
    times: Times,
    /// How long after its due time this schedule starts.
    delay: Duration,
}

#[derive(Debug, Clone)]
enum Times {
    /// Milliseconds.
    Every(i64),
    Pattern(Pattern),
}

impl Calendar {
    /// The due times of `id`.
    ///
    /// # Errors
    /// The pattern or its zone is not known to this version. The compiler refuses such a runbook; a ledger may hold an old one.
    pub fn new(id: &ScheduleId, spec: &Spec) -> Result<Calendar, PatternError> {
        let times = match &spec.due {
            Due::Every(every) => Times::Every(i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1)),
            Due::Cron { pattern, timezone, clock_change } => {
                Times::Pattern(Pattern::new(pattern, timezone, *clock_change)?)
            }
        };
        Ok(Calendar { times, delay: id.share_of(spec.jitter) })
    }

    /// How long after its due time this schedule starts: its share of the jitter.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// The first due time after `after`, before jitter; none when there is none any more.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.times {
            Times::Every(every) => {
                let next = after.as_millisecond().div_euclid(*every).checked_add(1)?.checked_mul(*every)?;
                Timestamp::from_millisecond(next).ok()
            }
            Times::Pattern(pattern) => pattern.next(after),
        }
    }

    /// When the first due time after `after` starts, jitter included.
    pub fn next_start(&self, after: Timestamp) -> Option<Timestamp> {
        self.start_of(self.next(after)?)
    }

    /// When a due time starts.
    pub fn start_of(&self, nominal: Timestamp) -> Option<Timestamp> {
        nominal.checked_add(self.delay).ok()
    }

    /// The last due time in (`after`, `until`].
    pub fn last(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        if let Times::Every(every) = &self.times {
            let last = until.as_millisecond().div_euclid(*every).checked_mul(*every)?;
            return Timestamp::from_millisecond(last).ok().filter(|last| *last > after);
        }
        let mut last = self.next(after).filter(|next| *next <= until)?;
        // There is one due time after `low` and none after `high`: they come together at the last one.
        let (mut low, mut high) = (last.as_second(), until.as_second());
        while low < high {
            let middle = low + (high - low + 1) / 2;
            let from = Timestamp::from_second(middle).ok()?.checked_sub(Duration::from_nanos(1)).ok()?;
            match self.next(from).filter(|next| *next <= until) {
                Some(next) => {
                    last = next;
                    low = next.as_second();
                }
                None => high = middle - 1,
            }
        }
        Some(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn calendar(due: Due) -> Calendar {
        Calendar::new(&ScheduleId::new("e", "r", 1), &Spec::new(due)).unwrap()
    }

    fn cron(pattern: &str) -> Calendar {
        let (pattern, timezone) = (pattern.into(), "Europe/Berlin".into());
        calendar(Due::Cron { pattern, timezone, clock_change: None })
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn intervals_do_not_depend_on_when_somebody_began_to_look() {
        let every = calendar(Due::Every(Duration::from_secs(7 * 60)));
        let next = every.next(at("2026-03-29T00:59:59.5Z")).unwrap();
        for second in 0..7 * 60 {
            let from = next.checked_sub(Duration::from_secs(second + 1)).unwrap();
            assert_eq!(every.next(from), Some(next));
        }
        assert_eq!(next.as_second() % (7 * 60), 0);
        assert_ne!(every.next(next), Some(next));
    }

    #[test]
    fn jitter_moves_the_start_and_not_the_due_time() {
        let minutely = Spec::new(Due::Every(Duration::from_secs(60)));
        let spec = Spec { jitter: Duration::from_secs(30), ..minutely };
        let calendar = Calendar::new(&ScheduleId::new("e", "r", 1), &spec).unwrap();
        let nominal = calendar.next(at("2026-01-01T00:00:01Z")).unwrap();
        assert_eq!(nominal, at("2026-01-01T00:01:00Z"));
        let start = calendar.next_start(at("2026-01-01T00:00:01Z")).unwrap();
        assert_eq!(start, nominal.checked_add(calendar.delay()).unwrap());
        assert!(calendar.delay() < Duration::from_secs(30) && !calendar.delay().is_zero());
    }

    proptest! {
        /// `last` is what walking forward with `next` arrives at.
        #[test]
        fn the_last_due_time_is_the_one_after_which_none_comes(
            which in 0..6_usize, start in 1_700_000_000_i64..1_900_000_000, length in 0..400_000_i64,
        ) {
            let calendar = match which {
                0 => calendar(Due::Every(Duration::from_millis(77_777))),
                1 => cron("*/17 * * * *"),
                2 => cron("30 2 * * *"),
                3 => cron("0 0 1 * *"),
                4 => cron("0 0 30 2 *"),
                _ => cron("*/20 1-3 * * SUN"),
            };
            let (after, until) =
                (Timestamp::from_second(start).unwrap(), Timestamp::from_second(start + length).unwrap());
            let mut walked = None;
            let mut from = after;
            while let Some(next) = calendar.next(from).filter(|next| *next <= until) {
                walked = Some(next);
                from = next;
            }
            prop_assert_eq!(calendar.last(after, until), walked);
        }
    }
}
