//! Many schedules: what idle ones cost, and how late those are that are due together. The service's own loop over its own store.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use farrier_action::{ActionRegistry, Targets};
use farrier_exec::driver::{Start, Unobserved, World};
use farrier_exec::{Driver, Halt, Options};
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{Text, Value};
use farrier_runbook::{Bundle, compile_bundle};
use farrier_schedule::{Decision, Due, Overlap, ScheduleId, Spec};
use farrier_server::clock::{ClockObserver, Clockwork, Job, Jobs, Watch};
use farrier_store::{Clock, Ledger, NewSchedule, OpenOptions, ScheduleRow, SqliteStore};
use tokio::sync::watch;

use crate::report::{Report, show};

/// How many schedules there are.
const ALL: usize = 100_000;
/// How many of them are due together.
const TOGETHER: usize = 2_000;
/// How long idle ones are watched.
const IDLE: Duration = Duration::from_secs(30);
/// How often the others are due.
const EVERY: Duration = Duration::from_secs(10);

const TEXT: &str = "runbook: tick\nsummary: x\nowner: x\nrisk: read_only\nsteps:\n  a: { uses: flow.note, with: { message: x } }\n";

struct Many {
    start: Start,
    /// Of those that are due together.
    jitter: Duration,
    together: usize,
}

impl Jobs for Many {
    fn schedules(&self) -> Vec<NewSchedule> {
        let schedule = |number: usize| {
            let every = if number < self.together { EVERY } else { Duration::from_secs(400 * 86_400) };
            let spec = Spec { jitter: self.jitter, overlap: Overlap::Allow, ..Spec::new(Due::Every(every)) };
            let id = ScheduleId::new("bench", &format!("tick-{number}"), 1);
            NewSchedule { id, environment: "bench".into(), runbook: "tick".into(), spec }
        };
        (0..ALL).map(schedule).collect()
    }

    fn job(&self, _: &ScheduleRow) -> Option<Job> {
        Some(Job { start: Ok(self.start.clone()), destructive: false, frozen: false })
    }

    fn watched(&self) -> Vec<Watch> {
        Vec::new()
    }

    fn told(&self) -> Vec<Text> {
        Vec::new()
    }
}

#[derive(Default)]
struct Late(Mutex<Vec<Duration>>);

impl ClockObserver for Late {
    fn decided(&self, _: &ScheduleId, _: Timestamp, _: &Decision, late: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(late);
    }
}

/// Measures idle schedules, then those that are due together.
pub fn measure(report: &mut Report) -> Result<()> {
    let (idle, memory, _) = watch_for(0, Duration::ZERO, IDLE)?;
    report.row(
        &format!("{ALL} idle schedules: CPU over {} s", IDLE.as_secs()),
        &format!("{idle:.2} %"),
        "",
        "goal: below 1 %",
    );
    report.row(&format!("{ALL} idle schedules: memory held"), &format!("{memory:.0} MB"), "", "");
    for (jitter, how) in
        [(Duration::from_secs(1), "spread over one second"), (Duration::ZERO, "at one instant")]
    {
        let (_, _, mut late) = watch_for(TOGETHER, jitter, EVERY * (report.rounds as u32 + 1))?;
        // The first time the loop has just begun.
        late.drain(..TOGETHER.min(late.len()));
        late.sort();
        ensure!(late.len() >= TOGETHER, "only {} of {TOGETHER} were decided", late.len());
        let at = |share: usize| show(late[(late.len() - 1) * share / 100]);
        report.row(
            &format!("{TOGETHER} of {ALL} schedules due {how}: from due to durable, p99"),
            &at(99),
            &at(100),
            &format!("p50 {}; goal: p99 below 50 ms", at(50)),
        );
    }
    Ok(())
}

/// Runs the loop for a while: CPU in percent, memory in MB, lateness in the order of decisions.
fn watch_for(together: usize, jitter: Duration, time: Duration) -> Result<(f64, f64, Vec<Duration>)> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_flow::register(&mut registry)?;
    let sources = BTreeMap::from([(Text::from("tick"), Text::from(TEXT))]);
    let bundle: Bundle =
        compile_bundle("tick", &sources, registry.catalog()).map_err(|d| anyhow!("{}", d.render(false)))?;
    let targets = Arc::new(Targets::new(PathBuf::from("/"), Vec::new(), BTreeMap::new()));
    let start = Start {
        bundle: Arc::new(bundle),
        world: World::new("bench", targets),
        inputs: Value::map::<&str>([]),
        trigger: Trigger::Manual { by: "bench".into() },
        plan: None,
    };
    let folder = tempfile::tempdir()?;
    let before = resident()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = SqliteStore::open(folder.path(), OpenOptions::default()).await?;
        let (stop, halt) = watch::channel(Halt::No);
        let driver = Driver::new(
            Arc::new(registry),
            Arc::new(store.clone()),
            Clock::system(),
            Options::default(),
            Arc::new(Unobserved),
            halt.clone(),
        );
        let late = Arc::new(Late::default());
        let jobs: Arc<dyn Jobs> = Arc::new(Many { start, jitter, together });
        let (_jobs, known) = watch::channel(jobs);
        let ledger = Arc::new(store.clone());
        let clockwork = Clockwork::new(ledger, driver, Clock::system(), known, late.clone(), halt);
        let work = tokio::spawn(clockwork.run(false));
        // Its first step stores all of them.
        while store.seen_at().await?.is_none() && late.0.lock().is_ok_and(|late| late.is_empty()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (used, begun) = (cpu()?, Instant::now());
        tokio::time::sleep(time).await;
        let share = (cpu()? - used) / begun.elapsed().as_secs_f64() * 100.0;
        let memory = resident()? - before;
        stop.send(Halt::LetGo)?;
        work.await??;
        store.close().await;
        let late = std::mem::take(&mut *late.0.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((share, memory, late))
    })
}

/// Seconds of CPU that this process has used.
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit_once(')').context("/proc/self/stat has no name")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // The kernel counts in hundredths.
    Ok(ticks as f64 / 100.0)
}

/// Megabytes that this process holds.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes / 1024.0)
}
