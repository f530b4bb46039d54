//! The parts of a chore, each with its result and time, and the table at the end.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How a part ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// With one line on what went wrong.
    Failed(String),
    /// With the reason.
    NotRun(String),
}

/// Counted tests, over all parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

#[derive(Debug)]
struct Part {
    name: &'static str,
    outcome: Outcome,
    time: Duration,
}

/// What a chore did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    parts: Vec<Part>,
    counts: Option<Counts>,
}

impl Report {
    /// Runs one part and keeps how it ended; an error fails the part, and the chore goes on.
    pub(crate) fn run(&mut self, name: &'static str, part: impl FnOnce() -> Result<Outcome>) {
        eprintln!("\n──── {name}");
        let begun = Instant::now();
        let outcome = part().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            // The whole story is above; the table has room for its first line.
            Outcome::Failed(format!("{error:#}").lines().next().unwrap_or_default().to_owned())
        });
        self.parts.push(Part { name, outcome, time: begun.elapsed() });
    }

    /// Adds tests to the count.
    pub(crate) fn count(&mut self, counts: Counts) {
        let all = self.counts.get_or_insert_default();
        all.passed += counts.passed;
        all.failed += counts.failed;
        all.skipped += counts.skipped;
    }

    /// Whether any part failed.
    pub(crate) fn failed(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.parts.iter().map(|part| part.name.chars().count()).max().unwrap_or(0);
        writeln!(formatter, "\n{:width$}  {:8}  {:>7}", "part", "result", "time")?;
        for Part { name, outcome, time } in &self.parts {
            let (result, why) = match outcome {
                Outcome::Passed => ("passed", ""),
                Outcome::Failed(why) => ("FAILED", why.as_str()),
                Outcome::NotRun(why) => ("not run", why.as_str()),
            };
            let line = format!("{name:width$}  {result:8}  {:>5.1} s  {why}", time.as_secs_f64());
            writeln!(formatter, "{}", line.trim_end())?;
        }
        if let Some(Counts { passed, failed, skipped }) = self.counts {
            writeln!(formatter, "\n{passed} passed, {failed} failed, {skipped} skipped")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_part_and_ends_with_the_counts() {
        let mut report = Report::default();
        report.run("formatting", || Ok(Outcome::Passed));
        report.run("cargo deny", || Ok(Outcome::NotRun("cargo-deny is not installed".into())));
        assert!(!report.failed());
        report.run("tests", || anyhow::bail!("two tests failed\nwith much detail"));
        report.count(Counts { passed: 7, failed: 2, skipped: 0 });
        report.count(Counts { passed: 1, failed: 0, skipped: 3 });
        assert!(report.failed());
        let text = report.to_string();
        assert_eq!(
            text,
            "\npart        result       time\n\
             formatting  passed      0.0 s\n\
             cargo deny  not run     0.0 s  cargo-deny is not installed\n\
             tests       FAILED      0.0 s  two tests failed\n\
             \n8 passed, 2 failed, 3 skipped\n"
        );
    }
}
