//! What is happening, on standard error: a line that changes on a terminal, a line per change elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use farrier_exec::Observer;
use farrier_exec::RunUpdate;
use farrier_model::{Event, NodeEvent, NodeName, RunId};

use crate::render::style::Style;

/// Watches runs for a person.
pub struct Progress {
    style: Style,
    terminal: bool,
    quiet: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<(RunId, NodeName), Instant>,
    done: u64,
    drawn: bool,
    last_draw: Option<Instant>,
}

impl Progress {
    /// For standard error; `quiet` shows failures only.
    pub fn new(quiet: bool) -> Progress {
        Progress {
            style: Style::stderr(),
            terminal: std::io::stderr().is_terminal(),
            quiet,
            state: Mutex::new(State::default()),
        }
    }

    /// Removes the changing line, before something else is printed.
    pub fn clear(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        erase(&mut state);
    }
}

/// Prints a line that stays.
fn line(state: &mut State, text: &str) {
    erase(state);
    eprintln!("{text}");
}

fn erase(state: &mut State) {
    if std::mem::take(&mut state.drawn) {
        eprint!("\r\u{1b}[2K");
    }
}

impl Observer for Progress {
    fn update(&self, update: RunUpdate<'_>) {
        let style = self.style;
        let indent = "  ".repeat(update.depth + 1);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for event in update.events {
            let Event::Node { node, attempt, event } = event else { continue };
            let key = (update.run, node.clone());
            match event {
                NodeEvent::Intent { changes, .. } => {
                    state.running.insert(key, Instant::now());
                    if !self.quiet && !self.terminal {
                        let many = if changes.len() == 1 { "change" } else { "changes" };
                        line(&mut state, &format!("{indent}{node}: making {} {many}", changes.len()));
                    }
                }
                NodeEvent::Succeeded { changed, .. } => {
                    state.done += 1;
                    let took = state.running.remove(&key).map(|since| since.elapsed());
                    if *changed > 0 && !self.quiet {
                        let took = took.map_or_else(String::new, |took| format!(" in {}", short(took)));
                        line(
                            &mut state,
                            &format!("{indent}{} {node}: {changed} changed{took}", style.good("✓")),
                        );
                    }
                }
                NodeEvent::Failed { failure, retry_at, .. } => {
                    state.running.remove(&key);
                    let again =
                        retry_at.map_or_else(String::new, |at| format!("; attempt {} at {at}", attempt + 1));
                    line(&mut state, &format!("{indent}{} {node}: {failure}{again}", style.bad("✗")));
                }
                NodeEvent::InDoubt { reason } => {
                    line(&mut state, &format!("{indent}{} {node}: in doubt: {reason}", style.warn("?")));
                }
                NodeEvent::UndoDone => {
                    line(&mut state, &format!("{indent}{} {node}: undone", style.warn("↩")));
                }
                NodeEvent::UndoFailed { failure } => {
                    line(&mut state, &format!("{indent}{} {node}: undo failed: {failure}", style.bad("✗")));
                }
                NodeEvent::Skipped { .. }
                | NodeEvent::Blocked { .. }
                | NodeEvent::Expanded { .. }
                | NodeEvent::Applied { .. }
                | NodeEvent::WaitBegan { .. }
                | NodeEvent::NotApplied { .. }
                | NodeEvent::UndoIntent { .. } => {}
            }
        }
        let due = state.last_draw.is_none_or(|last| last.elapsed() > Duration::from_millis(100));
        if self.terminal && !self.quiet && due {
            state.last_draw = Some(Instant::now());
            let busy: Vec<String> = state.running.keys().take(4).map(|(_, node)| node.to_string()).collect();
            erase(&mut state);
            if !busy.is_empty() {
                eprint!("{} {} done, at work: {}", style.dim("…"), state.done, busy.join(", "));
                let _ = std::io::stderr().flush();
                state.drawn = true;
            }
        }
    }
}

fn short(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
