//! Collecting figures and printing them as Markdown.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Rows of one report.
pub struct Report {
    /// How often each measurement is repeated.
    pub rounds: usize,
    rows: Vec<[String; 4]>,
}

/// What one process took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From start to end.
    pub time: Duration,
    /// The most memory it held, in bytes; zero when it ended before a look.
    pub peak: u64,
}

impl Report {
    /// An empty report.
    pub fn new(rounds: usize) -> Report {
        Report { rounds, rows: Vec::new() }
    }

    /// Adds a figure: what was measured, the median, the worst, and what it is held against.
    pub fn row(&mut self, what: &str, median: &str, worst: &str, against: &str) {
        eprintln!("{what}: {median} (worst {worst}) {against}");
        self.rows.push([what.into(), median.into(), worst.into(), against.into()]);
    }

    /// Measures `once` as often as asked; median and worst.
    pub fn times(&self, mut once: impl FnMut() -> Result<Duration>) -> Result<(Duration, Duration)> {
        let mut times = (0..self.rounds).map(|_| once()).collect::<Result<Vec<_>>>()?;
        times.sort();
        Ok((times[times.len() / 2], times[times.len() - 1]))
    }

    /// The whole report.
    pub fn finish(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "Machine: {}.\n", machine());
        let _ =
            writeln!(text, "| what | median | worst of {} | held against |\n|---|---|---|---|", self.rounds);
        for [what, median, worst, against] in &self.rows {
            let _ = writeln!(text, "| {what} | {median} | {worst} | {against} |");
        }
        text
    }
}

/// Milliseconds or seconds, whichever reads better.
pub fn show(time: Duration) -> String {
    if time < Duration::from_millis(10) {
        format!("{:.2} ms", time.as_secs_f64() * 1000.0)
    } else if time < Duration::from_secs(2) {
        format!("{:.0} ms", time.as_secs_f64() * 1000.0)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// How many times `other` goes into `time`.
pub fn ratio(time: Duration, other: Duration) -> String {
    format!("{:.2}×", time.as_secs_f64() / other.as_secs_f64())
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let memory = read("/proc/meminfo");
    let memory = memory.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cores} cores of {}, {memory} GiB, Linux {}",
        model.unwrap_or("an unknown processor"),
        kernel.trim()
    )
}

/// Runs a command to its end, watching its memory. Fails when it fails.
pub fn run(command: &mut Command) -> Result<Cost> {
    let shown = format!("{command:?}");
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let status_file = format!("/proc/{}/status", child.id());
    let stderr = child.stderr.take();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        }
        text
    });
    let mut peak = 0;
    let status = loop {
        if let Ok(text) = std::fs::read_to_string(&status_file) {
            let high = text
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))
                .and_then(|rest| rest.split_whitespace().next());
            peak = high.and_then(|kb| kb.parse::<u64>().ok()).map_or(peak, |kb| peak.max(kb * 1024));
        }
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {shown}"))? {
            break status;
        }
        std::thread::sleep(Duration::from_micros(500));
    };
    let time = begun.elapsed();
    let errors = errors.join().unwrap_or_default();
    ensure!(status.success(), "{shown} ended with {status}:\n{errors}");
    Ok(Cost { time, peak })
}

/// Writes a file and the folders above it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
