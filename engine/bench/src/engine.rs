//! What the engine costs per step: no-op steps, every outcome durable on SQLite with synchronous=FULL.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use farrier_action::{ActionRegistry, Targets};
use farrier_exec::driver::{ProceedAlways, Start, World};
use farrier_exec::{Driver, Halt, Options};
use farrier_model::event::Trigger;
use farrier_model::{RunState, Text, Value};
use farrier_runbook::compile_bundle;
use farrier_store::{Clock, OpenOptions, SqliteStore, Store};
use tokio::sync::watch;

use crate::report::{Report, show};

/// Measures chains and fans.
pub fn measure(report: &mut Report) -> Result<()> {
    let fsync = commit_time()?;
    report.row(
        "one commit of one event (SQLite, WAL, synchronous=FULL)",
        &show(fsync),
        "",
        "this disk's own speed",
    );
    for (name, steps, chain) in
        [("chain of 1,000", 1_000, true), ("chain of 10,000", 10_000, true), ("fan of 10,000", 10_000, false)]
    {
        let mut gaps = Vec::new();
        let (median, worst) = report.times(|| {
            let (time, between) = run_noops(steps, chain)?;
            gaps = between;
            Ok(time)
        })?;
        let rate = steps as f64 / median.as_secs_f64();
        let mut against = format!("{rate:.0} steps/s");
        if chain {
            gaps.sort();
            let p50 = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
            let p99 = gaps.get(gaps.len() * 99 / 100).copied().unwrap_or_default();
            let _ = write!(against, "; per step p50 {}, p99 {}", show(p50), show(p99));
        }
        report.row(&format!("{name} no-op steps, each durable"), &show(median), &show(worst), &against);
    }
    Ok(())
}

fn text(steps: usize, chain: bool) -> String {
    let mut text = String::from("runbook: noops\nsummary: nothing\nowner: nobody\nrisk: read_only\nsteps:\n");
    for at in 0..steps {
        let needs = if chain && at > 0 { format!("needs: [s{}], ", at - 1) } else { String::new() };
        let _ = writeln!(text, "  s{at}: {{ uses: flow.note, {needs}with: {{ message: x }} }}");
    }
    text
}

/// One run; its time, and the times between the outcomes of its steps.
fn run_noops(steps: usize, chain: bool) -> Result<(Duration, Vec<Duration>)> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_flow::register(&mut registry)?;
    let sources = BTreeMap::from([(Text::from("noops"), Text::from(text(steps, chain)))]);
    let bundle =
        compile_bundle("noops", &sources, registry.catalog()).map_err(|d| anyhow!("{}", d.render(false)))?;
    let start = Start {
        bundle: Arc::new(bundle),
        world: World::new("bench", Arc::new(Targets::new(PathBuf::from("/"), Vec::new(), BTreeMap::new()))),
        inputs: Value::map::<&str>([]),
        trigger: Trigger::Manual { by: "bench".into() },
        plan: None,
    };
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = SqliteStore::open(folder.path(), OpenOptions::default()).await?;
        let (_stop, cancel) = watch::channel(Halt::No);
        let times = Arc::new(Mutex::new(Vec::with_capacity(steps)));
        let driver = Driver::new(
            Arc::new(registry),
            Arc::new(store.clone()),
            Clock::system(),
            Options::default(),
            Arc::new(Outcomes(times.clone())),
            cancel,
        );
        let begun = Instant::now();
        let ended = driver.start(&start, &ProceedAlways, |_| {}).await?;
        let time = begun.elapsed();
        ensure!(ended.state == RunState::Succeeded, "the run ended {}", ended.state.name());
        let journal = store.journal(ended.run).await?;
        ensure!(journal.len() == steps + 3, "{} events instead of {}", journal.len(), steps + 3);
        store.close().await;
        let times = times.lock().map_err(|_| anyhow!("an observer panicked"))?;
        Ok((time, times.windows(2).map(|pair| pair[1] - pair[0]).collect()))
    })
}

/// Notes when each batch of outcomes became durable.
struct Outcomes(Arc<Mutex<Vec<Instant>>>);

impl farrier_exec::Observer for Outcomes {
    fn update(&self, _: farrier_exec::RunUpdate<'_>) {
        if let Ok(mut times) = self.0.lock() {
            times.push(Instant::now());
        }
    }
}

/// The median time of one commit with one event.
fn commit_time() -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = SqliteStore::open(folder.path(), OpenOptions::default()).await?;
        let id = farrier_model::RunId::at(1, [1; 10]);
        let digest = farrier_model::Digest::of("bench");
        let created = farrier_model::Event::Created {
            runbook: "bench".into(),
            bundle: digest,
            environment: "bench".into(),
            inputs: Value::Null,
            trigger: Trigger::Manual { by: "bench".into() },
            plan: None,
        };
        store.put_bundle(digest, "bench", &BTreeMap::new()).await?;
        store
            .create_run(farrier_store::NewRun {
                id,
                runbook: "bench".into(),
                bundle: digest,
                environment: "bench".into(),
                title: "bench".into(),
                parent: None,
                live_key: None,
                created,
            })
            .await?;
        let claim = store.claim(id, "bench").await?;
        let mut times = Vec::new();
        for _ in 0..1_000 {
            let begun = Instant::now();
            let event =
                farrier_model::Event::CancelRequested { by: "bench".into(), undo: false, reason: None };
            store.append(&claim, vec![event], None).await.context("append")?;
            times.push(begun.elapsed());
        }
        store.close().await;
        times.sort();
        Ok(times[times.len() / 2])
    })
}
