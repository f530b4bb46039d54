//! What came of a command, host by host, and whether that is enough.

use std::time::Duration;

use farrier_action::duration::Length;
use farrier_model::time::format_duration;
use farrier_model::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::Serialize;

use crate::fan_out::Pace;
use crate::hosts::fold;
use crate::transport::{Ended, Finished};
use crate::words::{last_of, shortened};

pub(crate) fn default_ok_codes() -> Vec<u8> {
    vec![0]
}

pub(crate) fn default_max_output() -> u32 {
    64 << 10
}

pub(crate) fn default_time_limit() -> Length {
    Length(Duration::from_secs(3600))
}

pub(crate) fn shown_time_limit() -> String {
    format_duration(default_time_limit().0)
}

/// What the command said.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ran {
    /// Its standard output; with several hosts, the outputs of all of them, each under the names of the hosts that said
    /// the same. Bytes that are not UTF-8 become `�`.
    pub stdout: String,
    /// Its standard error, in the same way.
    pub stderr: String,
    /// Its exit code; with several hosts, the highest.
    pub code: i32,
    /// The middle of an output was left out because it was longer than `max_output` allows.
    pub cut: bool,
    /// The names of the hosts where it did not succeed or was not begun.
    pub failed: Vec<String>,
    /// What came of it, host by host.
    pub results: Vec<HostResult>,
    /// Hosts with the same result, the largest group first.
    pub groups: Vec<Group>,
}

/// One host.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HostResult {
    /// Its name.
    pub host: String,
    /// How it went.
    pub state: State,
    /// The exit code, if there is one.
    pub code: Option<i32>,
    /// Its group: a number in `groups`.
    pub group: usize,
}

/// Hosts with the same result.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Group {
    /// Their names.
    pub hosts: Vec<String>,
    /// Their names in short, such as `worker-[1-80]`.
    pub folded: String,
    /// How it went.
    pub state: State,
    /// The exit code, if there is one.
    pub code: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
    /// Why it failed; empty when it did not.
    pub reason: String,
}

/// How it went on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It ended with one of `ok_codes`.
    Succeeded,
    /// `unless` said that it was done already.
    Unchanged,
    /// It ended in another way, or could not be started.
    Failed,
    /// It took longer than `time_limit`.
    Late,
    /// The host cannot be reached.
    Unreachable,
    /// The connection was cut, and nobody knows how far it came.
    InDoubt,
    /// Too many hosts before it had failed.
    NotBegun,
}

/// What came of it on one host.
#[derive(Debug)]
pub(crate) struct Done {
    state: State,
    code: Option<i32>,
    stdout: String,
    stderr: String,
    cut: bool,
    failure: Option<Failure>,
}

impl Done {
    pub(crate) fn nothing_to_do() -> Done {
        Done {
            state: State::Unchanged,
            code: None,
            stdout: String::new(),
            stderr: String::new(),
            cut: false,
            failure: None,
        }
    }

    pub(crate) fn failed(failure: Failure) -> Done {
        let state = match failure.kind {
            _ if failure.in_doubt => State::InDoubt,
            FailureKind::Unreachable => State::Unreachable,
            _ => State::Failed,
        };
        Done { state, failure: Some(failure), ..Done::nothing_to_do() }
    }

    pub(crate) fn finished(finished: Finished, ok_codes: &[u8]) -> Done {
        let cut = finished.stdout.is_cut() || finished.stderr.is_cut();
        let (stdout, stderr) = (finished.stdout.text(), finished.stderr.text());
        let (state, code) = match finished.ended {
            Ended::Code(code) if u8::try_from(code).is_ok_and(|code| ok_codes.contains(&code)) => {
                (State::Succeeded, Some(code))
            }
            Ended::Code(code) => (State::Failed, Some(code)),
            Ended::Signal(_) => (State::Failed, None),
            Ended::Late => (State::Late, None),
        };
        let failure = (state != State::Succeeded).then(|| {
            let said = if stderr.trim().is_empty() { last_of(&stdout) } else { last_of(&stderr) };
            let colon = if said.is_empty() { "" } else { ": " };
            let kind = if state == State::Late { FailureKind::Timeout } else { FailureKind::Exit };
            Failure::new(kind, format!("{}{colon}{said}", finished.ended.text()))
        });
        Done { state, code, stdout, stderr, cut, failure }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    fn reason(&self) -> &str {
        self.failure.as_ref().map_or("", |failure| &failure.message)
    }
}

/// The output, or the failure when fewer hosts succeeded than must.
pub(crate) fn judge(
    hosts: &[String],
    results: Vec<Option<Done>>,
    pace: Pace,
    command: &str,
) -> Result<Ran, Failure> {
    let results: Vec<(&String, Done)> = hosts
        .iter()
        .zip(results)
        .map(|(host, done)| {
            (host, done.unwrap_or_else(|| Done { state: State::NotBegun, ..Done::nothing_to_do() }))
        })
        .collect();
    let failed: Vec<&(&String, Done)> = results.iter().filter(|(_, done)| done.has_failed()).collect();
    if !pace.allows(failed.len()) {
        return Err(failure(&results, &failed, command));
    }
    let failed = failed.iter().map(|(host, _)| (*host).clone()).collect();
    let code = results.iter().filter_map(|(_, done)| done.code).max().unwrap_or(0);
    let cut = results.iter().any(|(_, done)| done.cut);
    let mut groups: Vec<(Vec<String>, &Done)> = Vec::new();
    for (host, done) in &results {
        let same = |other: &Done| {
            (other.state, other.code, &other.stdout, &other.stderr, other.reason())
                == (done.state, done.code, &done.stdout, &done.stderr, done.reason())
        };
        match groups.iter_mut().find(|(_, other)| same(other)) {
            Some((members, _)) => members.push((*host).clone()),
            None => groups.push((vec![(*host).clone()], done)),
        }
    }
    groups.sort_by_key(|(members, _)| std::cmp::Reverse(members.len()));
    let number =
        |host: &String| groups.iter().position(|(members, _)| members.contains(host)).unwrap_or_default();
    let host_results = results
        .iter()
        .map(|(host, done)| HostResult {
            host: (*host).clone(),
            state: done.state,
            code: done.code,
            group: number(host),
        })
        .collect();
    let groups: Vec<Group> = groups
        .into_iter()
        .map(|(members, done)| Group {
            folded: fold(&members),
            hosts: members,
            state: done.state,
            code: done.code,
            stdout: done.stdout.clone(),
            stderr: done.stderr.clone(),
            reason: done.reason().to_owned(),
        })
        .collect();
    let together = |output: fn(&Group) -> &String| match (hosts, groups.as_slice()) {
        ([_], [group]) => output(group).clone(),
        _ => {
            let said = groups.iter().filter(|group| !output(group).is_empty());
            said.map(|group| {
                let end = if output(group).ends_with('\n') { "" } else { "\n" };
                format!("== {} ({})\n{}{end}", group.folded, group.hosts.len(), output(group))
            })
            .collect()
        }
    };
    let (stdout, stderr) = (together(|group| &group.stdout), together(|group| &group.stderr));
    Ok(Ran { stdout, stderr, code, cut, failed, results: host_results, groups })
}

/// One failure for all: that of the host, or what happened to how many.
fn failure(results: &[(&String, Done)], failed: &[&(&String, Done)], command: &str) -> Failure {
    const SHOWN: usize = 4;
    let of = |done: &Done| match &done.failure {
        // Failures of the command itself speak of "it".
        Some(failure)
            if matches!(done.state, State::Failed | State::Late)
                && matches!(failure.kind, FailureKind::Exit | FailureKind::Timeout) =>
        {
            Failure { message: format!("`{command}` {}", failure.message), ..failure.clone() }
        }
        Some(failure) => failure.clone(),
        None => Failure::new(FailureKind::Internal, "it did not fail"),
    };
    let in_doubt = failed.iter().any(|(_, done)| done.state == State::InDoubt);
    if let ([_], [(_, done)]) = (results, failed) {
        return of(done);
    }
    let mut reasons: Vec<(Vec<&String>, Failure)> = Vec::new();
    for (host, done) in failed {
        let failure = of(done);
        match reasons.iter_mut().find(|(_, known)| known.message == failure.message) {
            Some((hosts, _)) => hosts.push(host),
            None => reasons.push((vec![host], failure)),
        }
    }
    reasons.sort_by_key(|(hosts, _)| std::cmp::Reverse(hosts.len()));
    let shown: Vec<String> = reasons
        .iter()
        .take(SHOWN)
        .map(|(hosts, failure)| format!("{}: {}", fold(hosts), shortened(&failure.message, 300)))
        .collect();
    let more = if reasons.len() > SHOWN {
        format!("; and {} other reasons", reasons.len() - SHOWN)
    } else {
        String::new()
    };
    let not_begun = results.iter().filter(|(_, done)| done.state == State::NotBegun).count();
    let not_begun = if not_begun > 0 { format!(", and {not_begun} were not begun") } else { String::new() };
    let kind = reasons.first().map_or(FailureKind::Exit, |(_, failure)| failure.kind);
    let message =
        format!("{} of {} hosts failed{not_begun}; {}{more}", failed.len(), results.len(), shown.join("; "));
    let failure = Failure::new(kind, message);
    if in_doubt { failure.in_doubt() } else { failure }
}
