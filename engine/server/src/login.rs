//! Logging in with a name and a password: the [`Directory`] that knows them, and how often somebody may be wrong.
//!
//! A wrong password is counted under the name and under the address it came from. Too many of them, and no more are tried for a
//! while, whether they would be right or not: so a guess costs the guesser time, and what is guessed is not told.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use farrier_model::Secret;

/// How long a wrong password counts.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// Wrong passwords for one name in that time.
const FOR_A_NAME: u32 = 5;
/// Wrong names and passwords from one address in that time: behind a proxy, everybody's.
const FROM_AN_ADDRESS: u32 = 50;
/// Names and addresses that are remembered at once; the oldest are forgotten first.
const MOST: usize = 10_000;

/// What a directory says of a name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody has that name.
    Unknown,
    /// That is not their password, or they may not use it.
    Refused {
        /// Their name, as the directory spells it.
        name: String,
    },
    /// It is theirs.
    Member {
        /// Their name, as the directory spells it: however it was typed, somebody is one person here.
        name: String,
        /// The names of their groups.
        groups: Vec<String>,
    },
}

/// Holds a name and a password against a directory.
#[async_trait]
pub trait Directory: Send + Sync {
    /// Whether they fit.
    ///
    /// # Errors
    /// One sentence for the log: the directory cannot say.
    async fn check(&self, name: &str, password: &Secret) -> Result<Answer, String>;
}

/// Wrong names and passwords of the last minutes.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<Counted>);

/// How many, and when the last was.
type Counted = HashMap<Key, (u32, Instant)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Name(String),
    Address(String),
}

/// A directory does not look at case and repeated spaces, so a count that did would be got round by them.
fn keys(name: &str, address: &str) -> [(Key, u32); 2] {
    let words: Vec<String> = name.split_whitespace().map(str::to_lowercase).collect();
    [(Key::Name(words.join(" ")), FOR_A_NAME), (Key::Address(address.to_owned()), FROM_AN_ADDRESS)]
}

impl Attempts {
    /// Whether another one may be tried now. It counts as wrong until somebody says otherwise.
    pub(crate) fn try_one(&self, name: &str, address: &str, now: Instant) -> bool {
        let mut counted = self.counted();
        let may = keys(name, address).iter().all(|(key, most)| {
            counted
                .get(key)
                .is_none_or(|(count, last)| now.duration_since(*last) >= REMEMBERED || count < most)
        });
        if may {
            count(&mut counted, name, address, now);
        }
        may
    }

    /// It was right: what was mistyped before does not count any more.
    pub(crate) fn right(&self, name: &str, address: &str) {
        self.give_back(name, address);
        let [(name, _), _] = keys(name, address);
        self.counted().remove(&name);
    }

    /// It was not decided.
    pub(crate) fn give_back(&self, name: &str, address: &str) {
        let mut counted = self.counted();
        for (key, _) in keys(name, address) {
            if let Some((count, _)) = counted.get_mut(&key) {
                *count = count.saturating_sub(1);
            }
        }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(counted: &mut Counted, name: &str, address: &str, now: Instant) {
    if counted.len() + 2 > MOST {
        counted.retain(|_, (_, last)| now.duration_since(*last) < REMEMBERED);
    }
    for (key, _) in keys(name, address) {
        if counted.len() >= MOST
            && let Some(oldest) =
                counted.iter().min_by_key(|(_, (_, last))| *last).map(|(key, _)| key.clone())
        {
            counted.remove(&oldest);
        }
        let (count, last) = counted.entry(key).or_insert((0, now));
        *count = if now.duration_since(*last) < REMEMBERED { *count + 1 } else { 1 };
        *last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_tried_a_few_times_and_later_again() {
        let (attempts, begun) = (Attempts::default(), Instant::now());
        for _ in 0..FOR_A_NAME {
            assert!(attempts.try_one("ada", "a", begun));
        }
        for spelling in ["ada", "ADA", " ada "] {
            assert!(!attempts.try_one(spelling, "b", begun), "{spelling}");
        }
        assert!(attempts.try_one("grace", "a", begun), "others are not kept out");
        // What is refused unheard does not lengthen the wait.
        let later = begun + REMEMBERED;
        for _ in 0..FOR_A_NAME {
            assert!(attempts.try_one("ada", "a", later));
        }
        attempts.give_back("ada", "a");
        assert!(attempts.try_one("ada", "a", later));
        assert!(!attempts.try_one("ada", "a", later));
        attempts.right("Ada", "a");
        assert!(attempts.try_one("ada", "a", later));
    }

    #[test]
    fn an_address_tries_a_bounded_number_of_names_and_memory_is_bounded() {
        let (attempts, begun) = (Attempts::default(), Instant::now());
        for number in 0..FROM_AN_ADDRESS {
            assert!(attempts.try_one(&format!("n{number}"), "a", begun));
        }
        assert!(!attempts.try_one("fresh", "a", begun));
        assert!(attempts.try_one("fresh", "b", begun));
        for number in 0..MOST {
            attempts.try_one(&format!("m{number}"), &format!("{number}"), begun);
        }
        assert!(attempts.counted().len() <= MOST);
    }
}
