//! What is told of the cases: lines for people, data, and JUnit's XML for machines that build.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::super::Problem;

/// What came of one case.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) runbook: String,
    pub(super) test: String,
    /// The file and the line of the case.
    pub(super) place: String,
    pub(super) passed: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) crashes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) failures: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) differences: Vec<String>,
    #[serde(skip)]
    pub(super) took: Duration,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Outcome {
    /// `(37 crashes, 24 failures)`, when anything was swept over.
    pub(super) fn swept(&self) -> String {
        let mut parts = Vec::new();
        if self.crashes > 0 {
            parts.push(crate::render::many_of(self.crashes, "crash", "crashes"));
        }
        if self.failures > 0 {
            parts.push(crate::render::many(self.failures, "failure"));
        }
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
    }
}

/// Writes the outcomes as JUnit's XML.
pub(super) fn junit(path: &Path, outcomes: &[Outcome]) -> Result<(), Problem> {
    std::fs::write(path, xml(outcomes))
        .map_err(|source| Problem::Unwritable { path: path.to_path_buf(), source })
}

fn xml(outcomes: &[Outcome]) -> String {
    let failed = |outcomes: &[&Outcome]| outcomes.iter().filter(|outcome| !outcome.passed).count();
    let seconds =
        |outcomes: &[&Outcome]| outcomes.iter().map(|outcome| outcome.took).sum::<Duration>().as_secs_f64();
    let all: Vec<&Outcome> = outcomes.iter().collect();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuites tests=\"{}\" failures=\"{}\" time=\"{:.3}\">",
        all.len(),
        failed(&all),
        seconds(&all)
    );
    let mut runbooks: Vec<&str> = outcomes.iter().map(|outcome| outcome.runbook.as_str()).collect();
    runbooks.dedup();
    for runbook in runbooks {
        let of: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.runbook == runbook).collect();
        let _ = writeln!(
            text,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" time=\"{:.3}\">",
            escaped(runbook),
            of.len(),
            failed(&of),
            seconds(&of)
        );
        for outcome in of {
            let (file, line) = outcome.place.rsplit_once(':').unwrap_or((&outcome.place, "1"));
            let _ = write!(
                text,
                "    <testcase classname=\"{}\" name=\"{}\" file=\"{}\" line=\"{}\" time=\"{:.3}\"",
                escaped(runbook),
                escaped(&outcome.test),
                escaped(file),
                escaped(line),
                outcome.took.as_secs_f64()
            );
            if outcome.passed {
                text.push_str("/>\n");
                continue;
            }
            let first = outcome.differences.first().and_then(|text| text.lines().next()).unwrap_or_default();
            let _ = writeln!(
                text,
                ">\n      <failure message=\"{}\">{}</failure>\n    </testcase>",
                escaped(first),
                escaped(&outcome.differences.join("\n"))
            );
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

/// Text as it stands in XML, in an element or between double quotes. What XML cannot say at all is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(letter),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text_in_xml() {
        let outcome = |passed, differences| Outcome {
            runbook: "a<b".into(),
            test: "says \"]]>&\u{1}\"".into(),
            place: "runbooks/a.test.yaml:12".into(),
            passed,
            crashes: 0,
            failures: 0,
            differences,
            took: Duration::from_millis(20),
        };
        let text = xml(&[outcome(true, vec![]), outcome(false, vec!["</failure>\nnext".into()])]);
        assert!(text.contains(
            "name=\"says &quot;]]&gt;&amp;\u{fffd}&quot;\" file=\"runbooks/a.test.yaml\" line=\"12\""
        ));
        assert!(text.contains("<failure message=\"&lt;/failure&gt;\">&lt;/failure&gt;\nnext</failure>"));
        assert_eq!(text.matches("<testcase ").count(), 2);
        assert_eq!(text.matches("</testcase>").count(), 1);
        assert!(text.contains("tests=\"2\" failures=\"1\""));
    }
}
