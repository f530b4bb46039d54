//! How much is tried: the short form that runs with all other tests, or the long one for an evening.

use std::time::{Duration, Instant};

/// The length of this test.
pub(crate) struct Form {
    end: Option<Instant>,
    random: u64,
}

impl Form {
    /// What the environment asks for; `salt` lets tests with one seed differ.
    pub(crate) fn of(salt: u64) -> Form {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let end = number("FARRIER_CHAOS_MINUTES").map(|m| Instant::now() + Duration::from_secs(60 * m));
        let seed = number("FARRIER_CHAOS_SEED").unwrap_or(0x5eed_2026);
        // A generator of this kind stays at zero for ever, and small seeds need a while to differ.
        let mut form = Form { end, random: (seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1) };
        for _ in 0..8 {
            form.random(1);
        }
        form
    }

    pub(crate) fn is_long(&self) -> bool {
        self.end.is_some()
    }

    /// How many of something: `short` of them, or `long` of them when there is time.
    pub(crate) fn count(&self, short: usize, long: usize) -> usize {
        if self.is_long() { long } else { short }
    }

    /// Whether the time of the long form is over. The short form is bounded by its counts alone.
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() > end)
    }

    /// Below `bound`.
    pub(crate) fn random(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }

    /// Points from 1 to `last`: so many of them spread evenly, or all.
    pub(crate) fn points(&self, short: usize, last: usize) -> Vec<usize> {
        if self.is_long() || last <= short {
            return (1..=last).collect();
        }
        (0..short).map(|at| 1 + at * (last - 1) / (short - 1).max(1)).collect()
    }
}
