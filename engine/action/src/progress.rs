//! [`Progress`]: how far a step has come, for whoever watches it. Nothing keeps it, and nothing depends on it.

use std::fmt;

/// Longer words are cut: they share one line of a terminal with others.
const LONGEST: usize = 160;

/// How far a step has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// How many are done.
    pub done: u64,
    /// Of how many; 0 where nobody knows yet.
    pub total: u64,
    /// Of what, and what else is to say. One short line without control characters.
    pub text: String,
}

impl Progress {
    /// `done` of `total`, which is 0 where nobody knows it; of the text, what fits.
    pub fn new(done: usize, total: usize, text: &str) -> Progress {
        let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
        let mut short: String = text.chars().take(LONGEST).map(plain).collect();
        if short.len() < text.len() {
            short.pop();
            short.push('…');
        }
        Progress { done: done as u64, total: total as u64, text: short }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.total {
            0 => write!(f, "{} {}", self.done, self.text),
            total => write!(f, "{} of {total} {}", self.done, self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_short_line() {
        let told = Progress::new(3, 200, "hosts, 1 failed");
        assert_eq!(told.to_string(), "3 of 200 hosts, 1 failed");
        assert_eq!(Progress::new(3, 0, "entries packed").to_string(), "3 entries packed");
        let hostile = Progress::new(0, 1, "a\u{1b}[2J\r\nb");
        assert_eq!(hostile.text, "a [2J  b");
        let long = Progress::new(0, 1, &"ä".repeat(10_000));
        assert_eq!(long.text.chars().count(), LONGEST);
        assert!(long.text.ends_with("ä…"));
    }
}
