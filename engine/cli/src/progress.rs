//! What is happening, on standard error: a line that changes on a terminal, a line per change elsewhere.
//!
//! Steps say how far they are while they work, and must not wait for whoever reads. So that is only kept, and a thread of its
//! own writes it: at most every tenth of a second on a terminal, and elsewhere one line per step every few seconds.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use farrier_exec::{Observer, ProgressUpdate, RunUpdate};
use farrier_model::{Event, NodeEvent, NodeName, RunId};

use crate::render::style::Style;

/// How often a terminal's line may change.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a step that is still at work gets a line elsewhere.
const LINE: Duration = Duration::from_secs(5);
/// A terminal that does not say how wide it is.
const WIDTH: usize = 80;

/// Watches runs for a person.
pub struct Progress {
    shown: Arc<Shown>,
    /// Wakes the thread that writes how far steps are; there is none before the first word.
    wake: OnceLock<SyncSender<()>>,
}

/// Shared with the thread. Whoever takes both locks takes the screen's first: the state's is never held while something is
/// written.
struct Shown {
    style: Style,
    /// The pause between two drawings on a terminal, or two lines of a step elsewhere.
    every: Duration,
    terminal: bool,
    quiet: bool,
    state: Mutex<State>,
    screen: Mutex<Screen>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<(RunId, NodeName), Instant>,
    told: BTreeMap<(RunId, NodeName), Told>,
    done: u64,
}

/// The latest word of a step.
struct Told {
    depth: usize,
    text: String,
    /// When it got its last line; in the beginning, when it first said something.
    since: Instant,
    /// Whether it was in a line already.
    written: bool,
}

struct Screen {
    out: Box<dyn Write + Send>,
    drawn: bool,
    last_draw: Option<Instant>,
}

impl Progress {
    /// For standard error; `quiet` shows failures only.
    pub fn new(quiet: bool) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let every = if terminal { REDRAW } else { LINE };
        Progress::to(Box::new(std::io::stderr()), Style::stderr(), terminal, quiet, every)
    }

    fn to(
        out: Box<dyn Write + Send>,
        style: Style,
        terminal: bool,
        quiet: bool,
        every: Duration,
    ) -> Progress {
        let screen = Mutex::new(Screen { out, drawn: false, last_draw: None });
        let shown = Shown { style, every, terminal, quiet, state: Mutex::default(), screen };
        Progress { shown: Arc::new(shown), wake: OnceLock::new() }
    }

    /// Removes the changing line, before something else is printed.
    pub fn clear(&self) {
        let mut screen = self.shown.screen();
        self.shown.state().told.clear();
        screen.erase();
        screen.flush();
    }
}

impl Screen {
    /// Prints a line that stays. Whoever closed standard error does not want it.
    fn line(&mut self, text: &str) {
        self.erase();
        let _ = writeln!(self.out, "{text}");
    }

    fn erase(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(self.out, "\r\u{1b}[2K");
        }
    }

    fn flush(&mut self) {
        let _ = self.out.flush();
    }
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line that changes, if it is time for it.
    fn draw(&self, screen: &mut Screen) {
        if !self.terminal || self.quiet || screen.last_draw.is_some_and(|last| last.elapsed() < self.every) {
            return;
        }
        screen.last_draw = Some(Instant::now());
        let (done, busy) = self.state().busy();
        screen.erase();
        if !busy.is_empty() {
            let line = format!("… {done} done, at work: {}", busy.join(", "));
            // A line that wraps could not be taken back.
            let line: String = line.chars().take(width() - 1).collect();
            let _ = write!(screen.out, "{}", self.style.dim(&line));
            screen.drawn = true;
        }
        screen.flush();
    }

    /// A line for each step that has said something new since its last one, and is due.
    fn lines(&self) {
        let mut screen = self.screen();
        for line in self.state().due(self.every) {
            screen.line(&line);
        }
        screen.flush();
    }

    /// Writes how far steps are until nobody watches any more.
    fn keep_writing(&self, woken: &Receiver<()>) {
        loop {
            let wait = if self.terminal {
                None
            } else {
                self.state().told.values().filter(|told| !told.written).map(|told| told.since).min()
            };
            let woken = match wait {
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => woken.recv_timeout((since + self.every).duration_since(Instant::now())),
            };
            if woken == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            if self.terminal {
                self.draw(&mut self.screen());
                // The next word waits for its turn, and is the latest one then.
                std::thread::sleep(self.every);
            } else {
                self.lines();
            }
        }
    }
}

impl State {
    /// How much is done, and what is at work, with how far it is.
    fn busy(&self) -> (u64, Vec<String>) {
        let named = |key: &(RunId, NodeName)| match self.told.get(key) {
            Some(told) => format!("{} ({})", key.1, told.text),
            None => key.1.to_string(),
        };
        // Those that say how far they are come first, also when they only read.
        let silent = self.running.keys().filter(|key| !self.told.contains_key(key));
        (self.done, self.told.keys().chain(silent).take(4).map(named).collect())
    }

    fn due(&mut self, every: Duration) -> Vec<String> {
        let due = self.told.iter_mut().filter(|(_, told)| !told.written && told.since.elapsed() >= every);
        due.map(|((_, node), told)| {
            (told.written, told.since) = (true, Instant::now());
            format!("{}{node}: {}", "  ".repeat(told.depth + 1), told.text)
        })
        .collect()
    }

    /// What stays to be read of an event.
    fn line(&mut self, update: &RunUpdate<'_>, event: &Event, shown: &Shown) -> Option<String> {
        let Event::Node { node, attempt, event } = event else { return None };
        let style = shown.style;
        let indent = "  ".repeat(update.depth + 1);
        let key = (update.run, node.clone());
        match event {
            NodeEvent::Intent { changes, .. } => {
                self.running.insert(key, Instant::now());
                let many = if changes.len() == 1 { "change" } else { "changes" };
                (!shown.quiet && !shown.terminal)
                    .then(|| format!("{indent}{node}: making {} {many}", changes.len()))
            }
            NodeEvent::Succeeded { changed, .. } => {
                self.done += 1;
                self.told.remove(&key);
                let took = self.running.remove(&key).map(|since| since.elapsed());
                let took = took.map_or_else(String::new, |took| format!(" in {}", short(took)));
                (*changed > 0 && !shown.quiet)
                    .then(|| format!("{indent}{} {node}: {changed} changed{took}", style.good("✓")))
            }
            NodeEvent::Failed { failure, retry_at, .. } => {
                self.told.remove(&key);
                self.running.remove(&key);
                let again =
                    retry_at.map_or_else(String::new, |at| format!("; attempt {} at {at}", attempt + 1));
                Some(format!("{indent}{} {node}: {failure}{again}", style.bad("✗")))
            }
            NodeEvent::InDoubt { reason } => {
                Some(format!("{indent}{} {node}: in doubt: {reason}", style.warn("?")))
            }
            NodeEvent::UndoDone => Some(format!("{indent}{} {node}: undone", style.warn("↩"))),
            NodeEvent::UndoFailed { failure } => {
                Some(format!("{indent}{} {node}: undo failed: {failure}", style.bad("✗")))
            }
            NodeEvent::Skipped { .. }
            | NodeEvent::Blocked { .. }
            | NodeEvent::Expanded { .. }
            | NodeEvent::Applied { .. }
            | NodeEvent::WaitBegan { .. }
            | NodeEvent::NotApplied { .. }
            | NodeEvent::UndoIntent { .. } => None,
        }
    }
}

impl Observer for Progress {
    fn update(&self, update: RunUpdate<'_>) {
        let lines: Vec<String> = {
            let mut state = self.shown.state();
            update.events.iter().filter_map(|event| state.line(&update, event, &self.shown)).collect()
        };
        let mut screen = self.shown.screen();
        for line in lines {
            screen.line(&line);
        }
        self.shown.draw(&mut screen);
    }

    fn progress(&self, update: ProgressUpdate<'_>) {
        if self.shown.quiet {
            return;
        }
        let key = (update.run, update.node.clone());
        match update.progress {
            None => drop(self.shown.state().told.remove(&key)),
            Some(progress) => {
                let mut state = self.shown.state();
                let new =
                    Told { depth: update.depth, text: String::new(), since: Instant::now(), written: true };
                let told = state.told.entry(key).or_insert(new);
                (told.text, told.written) = (progress.to_string(), false);
            }
        }
        let wake = self.wake.get_or_init(|| {
            let (wake, woken) = sync_channel(1);
            let shown = self.shown.clone();
            std::thread::spawn(move || shown.keep_writing(&woken));
            wake
        });
        // Full: it will wake up anyway, and find this.
        let _ = wake.try_send(());
    }
}

fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.map_or(WIDTH, |size| usize::from(size.ws_col)).max(20)
}

fn short(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use farrier_testkit::wait_until;

    use super::*;

    /// A reader that takes what it is given, or nothing at all while `shut` is held.
    #[derive(Clone, Default)]
    struct Reader {
        read: Arc<Mutex<Vec<u8>>>,
        shut: Arc<Mutex<()>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _open = self.shut.lock().unwrap();
            self.read.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Reader {
        fn shows(&self) -> String {
            String::from_utf8(self.read.lock().unwrap().clone()).unwrap()
        }
    }

    fn watching(terminal: bool, quiet: bool, every: Duration) -> (Progress, Reader) {
        let reader = Reader::default();
        (Progress::to(Box::new(reader.clone()), Style::plain(), terminal, quiet, every), reader)
    }

    fn says(progress: &Progress, done: usize) {
        let told = farrier_action::Progress::new(done, 200, "hosts, 1 failed");
        hear(progress, Some(&told));
    }

    fn hear(progress: &Progress, told: Option<&farrier_action::Progress>) {
        let node = NodeName::step("disks");
        let run = RunId::at(0, [1; 10]);
        progress.progress(ProgressUpdate { run, runbook: "r", depth: 0, node: &node, progress: told });
    }

    #[test]
    fn a_terminal_has_one_line_that_is_rewritten() {
        let (progress, reader) = watching(true, false, Duration::from_millis(1));
        says(&progress, 7);
        wait_until("the first word", || reader.shows().contains("at work: disks (7 of 200 hosts, 1 failed)"));
        says(&progress, 8);
        wait_until("the second word", || {
            reader.shows().contains("\r\u{1b}[2K… 0 done, at work: disks (8 of")
        });
        progress.clear();
        assert!(reader.shows().ends_with("\r\u{1b}[2K"));
        assert!(!reader.shows().contains('\n'));
    }

    #[test]
    fn elsewhere_it_is_a_line_now_and_then() {
        let (progress, reader) = watching(false, false, Duration::from_millis(50));
        says(&progress, 7);
        wait_until("a line", || reader.shows() == "  disks: 7 of 200 hosts, 1 failed\n");
        let (rare, unread) = watching(false, false, Duration::from_secs(3600));
        for done in 0..200 {
            says(&rare, done);
            says(&progress, done);
        }
        wait_until("the latest word", || reader.shows().ends_with("  disks: 199 of 200 hosts, 1 failed\n"));
        assert!(unread.shows().is_empty(), "none before its time: {}", unread.shows());
        hear(&rare, None);
        assert!(rare.shown.state().told.is_empty());
    }

    /// Guards "a slow reader never slows a step".
    #[test]
    fn who_reads_nothing_holds_no_step_up() {
        let (progress, reader) = watching(true, false, Duration::from_millis(1));
        let shut = reader.shut.lock().unwrap();
        says(&progress, 0);
        wait_until("the thread hangs in its drawing", || progress.shown.screen.try_lock().is_err());
        for done in 1..=1000 {
            says(&progress, done);
        }
        assert!(reader.read.lock().unwrap().is_empty());
        drop(shut);
        wait_until("the latest word", || reader.shows().contains("disks (1000 of 200"));
    }

    #[test]
    fn quiet_is_quiet() {
        let (progress, reader) = watching(true, true, Duration::ZERO);
        says(&progress, 7);
        assert!(progress.wake.get().is_none() && reader.shows().is_empty());
    }
}
