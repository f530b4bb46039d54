//! `flow.wait`.

use farrier_action::text::{SignalName, Span};
use farrier_action::{Action, Planned, ReadCx, WaitFor};
use farrier_model::spec::Risk;
use farrier_model::time::parse_timestamp;
use farrier_model::{Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Waits for a time or a signal. The run sleeps on disk meanwhile: forty days cost nothing.
///
/// `for` counts from when the step is reached, `until` names a moment. With `signal`, the signal ends the wait early;
/// alone, it is waited for without end.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// How long.
    #[serde(default, rename = "for")]
    length: Option<Span>,
    /// Until when, such as `2026-11-22T10:15:30Z`.
    #[serde(default)]
    until: Option<String>,
    /// A signal of the runbook.
    #[serde(default)]
    signal: Option<SignalName>,
}

/// What ended the wait.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Waited {
    /// `time` or `signal`.
    pub by: String,
    /// Who sent the signal.
    pub sent_by: Option<String>,
    /// What they said.
    pub reason: Option<String>,
}

impl Action for Wait {
    const NAME: &'static str = "flow.wait";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
grace:
  uses: flow.wait
  with: { for: 40d }
";
    type Output = Waited;

    async fn plan(&self, _: &ReadCx) -> Result<Planned<Waited>, Failure> {
        let signal = self.signal.as_ref().map(|signal| signal.0.as_str().into());
        let wait = match (self.length, &self.until, signal) {
            (Some(length), None, signal) => WaitFor::Length { length: length.0, signal },
            (None, Some(until), signal) => {
                let at = parse_timestamp(until).ok_or_else(|| {
                    Failure::new(FailureKind::Input, format!("`until`: `{until}` is not a time"))
                        .help("write it as `2026-11-22T10:15:30Z`")
                })?;
                WaitFor::Until { at, signal }
            }
            (None, None, Some(name)) => WaitFor::Signal { name },
            _ => {
                return Err(Failure::new(
                    FailureKind::Input,
                    "a wait has either `for` or `until`, or only a `signal`",
                ));
            }
        };
        Ok(Planned::waiting(wait))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use farrier_action::WaitFor;
    use farrier_model::FailureKind;

    use crate::testing::plan;

    #[tokio::test]
    async fn it_says_what_it_waits_for() {
        let day = Duration::from_secs(86_400);
        for (input, wait, words) in [
            ("{'for': '40d'}", WaitFor::Length { length: 40 * day, signal: None }, "for 40d"),
            (
                "{'for': '1d', 'signal': 'go'}",
                WaitFor::Length { length: day, signal: Some("go".into()) },
                "for 1d, or until signal `go`",
            ),
            (
                "{'until': '2026-11-22T10:15:30Z'}",
                WaitFor::Until { at: "2026-11-22T10:15:30Z".parse().unwrap(), signal: None },
                "until 2026-11-22T10:15:30Z",
            ),
            ("{'signal': 'go'}", WaitFor::Signal { name: "go".into() }, "for signal `go`"),
        ] {
            let planned = plan("flow.wait", input).await.unwrap();
            assert!(planned.changes.is_empty() && planned.output.is_none());
            assert_eq!(planned.wait.as_ref().unwrap().describe(), words);
            assert_eq!(planned.wait, Some(wait), "{input}");
        }
    }

    #[tokio::test]
    async fn what_is_no_wait_is_told() {
        for input in [
            "{}",
            "{'for': 'soon'}",
            "{'for': 3}",
            "{'until': 'tomorrow'}",
            "{'for': '1d', 'until': '2026-11-22T10:15:30Z'}",
            "{'for': '1d', 'more': 1}",
        ] {
            assert_eq!(plan("flow.wait", input).await.unwrap_err().kind, FailureKind::Input, "{input}");
        }
    }
}
