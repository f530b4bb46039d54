//! What durability costs and what it carries: appends, resuming a long run, runbook tests, and a store full of runs that
//! wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use farrier_action::{ActionRegistry, Targets};
use farrier_exec::driver::{ProceedAlways, Start, Unobserved, World};
use farrier_exec::{Driver, Halt, Options};
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{Digest, Event, NodeEvent, NodeName, RunId, RunState, Text, Value, Wait};
use farrier_runbook::{Bundle, compile_bundle};
use farrier_store::{Claim, Clock, NewRun, OpenOptions, RunFilter, SqliteStore, Store, StoreError};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::report::{Report, run, show, write};
use crate::serving::Serving;

/// Callers that append at once.
const CALLERS: usize = 64;
const APPENDS: usize = 20_000;
const STEPS: usize = 10_000;
const CASES: usize = 200;
/// Waiting runs whose moment comes while the measurement looks on.
const DUE: usize = 2_000;

/// Measures appends alone and under group commit, and the resuming of a long run.
pub fn appends(report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let folder = tempfile::tempdir()?;
    runtime.block_on(async {
        let store = SqliteStore::open(folder.path(), OpenOptions::default()).await?;
        let alone = claimed(&store, 0).await?;
        let begun = Instant::now();
        for at in 0..APPENDS / 10 {
            store.append(&alone, vec![succeeded(at)], None).await?;
        }
        let rate = (APPENDS / 10) as f64 / begun.elapsed().as_secs_f64();
        report.row(
            "journal appends of one caller, one event each",
            &format!("{rate:.0}/s"),
            "",
            "one commit each",
        );

        let before = store.counts().commits;
        let mut tasks = JoinSet::new();
        let mut claims = Vec::new();
        for number in 1..=CALLERS {
            claims.push(claimed(&store, number).await?);
        }
        let begun = Instant::now();
        for claim in claims {
            let store = store.clone();
            tasks.spawn(async move {
                for at in 0..APPENDS / CALLERS {
                    store.append(&claim, vec![succeeded(at)], None).await?;
                }
                Ok::<(), StoreError>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        let made = (APPENDS / CALLERS * CALLERS) as f64;
        let rate = made / begun.elapsed().as_secs_f64();
        let commits = store.counts().commits - before;
        report.row(
            &format!("the same by {CALLERS} callers at once (group commit)"),
            &format!("{rate:.0}/s"),
            "",
            &format!("{:.0} appends per commit", made / commits as f64),
        );
        store.close().await;
        Ok::<(), anyhow::Error>(())
    })?;
    let (resume, worst) = report.times(|| runtime.block_on(resume()))?;
    report.row(
        &format!("resuming a run of {STEPS} steps of which one is left, to its end"),
        &show(resume),
        &show(worst),
        "journal read, folded, decided",
    );
    Ok(())
}

/// Measures `farrier test` on small cases.
pub fn cases(report: &mut Report, binary: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    write(&folder.path().join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: []\n")?;
    write(
        &folder.path().join("runbooks/sleeper.yaml"),
        "runbook: sleeper\nsummary: Waits\nowner: bench\nrisk: read_only\nsteps:\n  pause: { uses: flow.wait, with: { for: 40d } }\n  said: { uses: flow.note, needs: [pause], with: { message: done } }\n",
    )?;
    let cases: String = (0..CASES)
        .map(|at| {
            format!(
                "  - {{ name: case {at}, expect: {{ state: succeeded, steps: {{ said: succeeded }} }} }}\n"
            )
        })
        .collect();
    write(&folder.path().join("runbooks/sleeper.test.yaml"), &format!("tests:\n{cases}"))?;
    let (time, worst) = report
        .times(|| run(Command::new(binary).arg("-C").arg(folder.path()).arg("test")).map(|cost| cost.time))?;
    let rate = CASES as f64 / time.as_secs_f64();
    report.row(
        &format!("`farrier test`: {CASES} cases that wait forty days"),
        &format!("{} ({rate:.0} cases/s)", show(time)),
        &show(worst),
        "the program's start included",
    );
    Ok(())
}

/// Measures a store with many runs that wait.
pub fn waiting(report: &mut Report, binary: &Path, sleepers: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let empty = project()?;
    let full = project()?;
    runtime.block_on(async {
        // One run that is due, so that both processes have done the same when they are compared.
        let store = SqliteStore::open(&empty.path().join(".farrier"), OpenOptions::default()).await?;
        sleep(&store, &Arc::new(sleeper()?), 1, |_| Timestamp::now()).await?;
        store.close().await;
        Ok::<(), anyhow::Error>(())
    })?;
    let (_, bare) = served(binary, empty.path(), |serving| {
        std::thread::sleep(Duration::from_secs(5));
        serving.resident()
    })?;

    let begun = Instant::now();
    let dir = full.path().join(".farrier");
    let far = Timestamp::now() + Duration::from_secs(3600 * 24 * 400);
    let made = runtime.block_on(async {
        let store = SqliteStore::open(&dir, OpenOptions::default()).await?;
        let bundle = Arc::new(sleeper()?);
        sleep(&store, &bundle, sleepers, |at| far + Duration::from_secs(at as u64)).await?;
        let made = begun.elapsed();
        // One is due at once, the others within ten seconds from some time after the start.
        sleep(&store, &bundle, 1, |_| Timestamp::now()).await?;
        let soon = Timestamp::now() + Duration::from_secs(20);
        let spread = |at: usize| soon + Duration::from_millis((at * 10_000 / DUE) as u64);
        sleep(&store, &bundle, DUE, spread).await?;
        store.close().await;
        Ok::<Duration, anyhow::Error>(made)
    })?;
    eprintln!("{sleepers} waiting runs made in {}", show(made));
    let size = std::fs::metadata(dir.join("farrier.db"))?.len();

    let (started, laden) = served(binary, full.path(), |serving| {
        std::thread::sleep(Duration::from_secs(5));
        let laden = serving.resident()?;
        let deadline = Instant::now() + Duration::from_secs(120);
        while finished(&runtime, &dir)? < DUE + 1 {
            ensure!(Instant::now() < deadline, "the due runs do not come to an end");
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(laden)
    })?;
    let (first, lateness, disorder) = runtime.block_on(claims(&dir, started))?;
    report.row(
        &format!("{sleepers} waiting runs: from the start of `farrier serve` to its first claim"),
        &show(first),
        "",
        "limit 2 s",
    );
    report.row(
        "the same: memory of the process",
        &format!("{:.1} MB", laden as f64 / 1e6),
        "",
        &format!(
            "{:.2}× of one whose store holds nothing else; database {:.0} MB",
            laden as f64 / bare as f64,
            size as f64 / 1e6
        ),
    );
    report.row(
        &format!("the same: lateness of {DUE} runs that become due within 10 s, median"),
        &show(lateness[lateness.len() / 2]),
        &show(lateness[lateness.len() - 1]),
        &format!(
            "p99 {}; {disorder} taken up before one that was due earlier",
            show(lateness[lateness.len() * 99 / 100])
        ),
    );
    Ok(())
}

fn project() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    write(
        &folder.path().join("farrier.yaml"),
        "runbooks: [runbooks]\nenvironments: [environments/*.yaml]\ndata_dir: .farrier\n",
    )?;
    write(&folder.path().join("environments/bench.yaml"), "environment: bench\ntargets: {}\n")?;
    Ok(folder)
}

const SLEEPER: &str = "runbook: sleeper
summary: Waits
owner: bench
risk: read_only
steps:
  pause: { uses: flow.wait, with: { for: 400d } }
";

fn registry() -> Result<ActionRegistry> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_flow::register(&mut registry)?;
    Ok(registry)
}

fn compiled(name: &str, text: &str) -> Result<Bundle> {
    let sources = BTreeMap::from([(Text::from(name), Text::from(text))]);
    compile_bundle(name, &sources, registry()?.catalog()).map_err(|d| anyhow!("{}", d.render(false)))
}

fn sleeper() -> Result<Bundle> {
    compiled("sleeper", SLEEPER)
}

/// Makes runs as the engine leaves them when they wait, each due at its moment.
async fn sleep(
    store: &SqliteStore,
    bundle: &Arc<Bundle>,
    count: usize,
    due: impl Fn(usize) -> Timestamp,
) -> Result<()> {
    store.put_bundle(bundle.digest, &bundle.root, &bundle.sources).await?;
    let mut tasks = JoinSet::new();
    for at in 0..count {
        if tasks.len() >= 512
            && let Some(ended) = tasks.join_next().await
        {
            ended??;
        }
        let (store, digest, moment) = (store.clone(), bundle.digest, due(at));
        tasks.spawn(async move {
            let id = RunId(uuid::Uuid::now_v7());
            store.create_run(new_run(id, "sleeper", digest)).await?;
            let claim = store.claim(id, "bench").await?;
            let wait = NodeEvent::WaitBegan { wait: Wait::Until { at: moment, signal: None } };
            let events = vec![
                Event::WritesAllowed { creates: 0, updates: 0, deletes: 0 },
                Event::Node { node: NodeName::step("pause"), attempt: 1, event: wait },
                Event::Suspended { until: Some(moment), reason: "step `pause` waits".into() },
            ];
            store.append(&claim, events, Some(RunState::Waiting)).await?;
            Ok::<(), StoreError>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

fn new_run(id: RunId, runbook: &str, bundle: Digest) -> NewRun {
    let created = Event::Created {
        runbook: runbook.into(),
        bundle,
        environment: "bench".into(),
        inputs: Value::map::<&str>([]),
        trigger: Trigger::Manual { by: "bench".into() },
        plan: None,
    };
    NewRun {
        id,
        runbook: runbook.into(),
        bundle,
        environment: "bench".into(),
        title: runbook.into(),
        parent: None,
        live_key: None,
        created,
    }
}

/// Starts `farrier serve`, looks on, and ends it. Gives when it was started.
fn served<T>(
    binary: &Path,
    project: &Path,
    look: impl FnOnce(&Serving) -> Result<T>,
) -> Result<(Timestamp, T)> {
    let started = Timestamp::now();
    let serving = Serving::start(binary, project, &[])?;
    Ok((started, look(&serving)?))
}

fn finished(runtime: &tokio::runtime::Runtime, dir: &Path) -> Result<usize> {
    runtime.block_on(async {
        let store = SqliteStore::open(dir, OpenOptions::read_only()).await?;
        let filter = RunFilter { states: vec![RunState::Succeeded], ..RunFilter::default() };
        Ok(store.runs(filter).await?.len())
    })
}

/// From the process's start to the first claim; how late each due run was taken up, sorted; and how many were taken up
/// before one whose moment was earlier.
async fn claims(dir: &Path, started: Timestamp) -> Result<(Duration, Vec<Duration>, usize)> {
    let store = SqliteStore::open(dir, OpenOptions::read_only()).await?;
    let filter = RunFilter { states: vec![RunState::Succeeded], ..RunFilter::default() };
    let (mut first, mut taken) = (None::<Timestamp>, Vec::new());
    for row in store.runs(filter).await? {
        let journal = store.journal(row.id).await?;
        let due = journal.iter().find_map(|entry| match &entry.event {
            Event::Suspended { until, .. } => *until,
            _ => None,
        });
        let claimed = journal.iter().rfind(|entry| matches!(entry.event, Event::Claimed { .. }));
        let (due, claimed) = (due.context("no moment")?, claimed.context("no claim")?.at);
        first = Some(first.map_or(claimed, |known| known.min(claimed)));
        if due > started {
            taken.push((due, claimed));
        }
    }
    taken.sort();
    let mut latest = Timestamp::MIN;
    let mut disorder = 0;
    for (_, claimed) in &taken {
        // Claims that share a commit have one time.
        disorder += usize::from(*claimed < latest);
        latest = latest.max(*claimed);
    }
    let late = |(due, claimed): &(Timestamp, Timestamp)| {
        Duration::try_from(claimed.duration_since(*due)).unwrap_or_default()
    };
    let mut lateness: Vec<Duration> = taken.iter().map(late).collect();
    lateness.sort();
    ensure!(lateness.len() == DUE, "{} of {DUE} due runs were taken up", lateness.len());
    let first = first.context("nothing was claimed")?.duration_since(started);
    Ok((Duration::try_from(first).unwrap_or_default(), lateness, disorder))
}

async fn claimed(store: &SqliteStore, number: usize) -> Result<Claim> {
    let digest = Digest::of("bench");
    store.put_bundle(digest, "bench", &BTreeMap::new()).await?;
    let id = RunId(uuid::Uuid::from_u128(number as u128 + 1));
    store.create_run(new_run(id, "bench", digest)).await?;
    Ok(store.claim(id, "bench").await?)
}

fn succeeded(at: usize) -> Event {
    let output =
        Value::map([("name", Value::text("a typical small output")), ("number", Value::Int(at as i64))]);
    let event = NodeEvent::Succeeded { output, changed: 0 };
    Event::Node { node: NodeName::item("each", at.to_string()), attempt: 1, event }
}

/// How long the last step of a long run takes after its process has died.
async fn resume() -> Result<Duration> {
    let mut text =
        String::from("runbook: long\nsummary: Many steps\nowner: bench\nrisk: read_only\nsteps:\n");
    for at in 0..STEPS {
        text.push_str(&format!("  s{at}: {{ uses: flow.note, with: {{ message: s{at} }} }}\n"));
    }
    let bundle = Arc::new(compiled("long", &text)?);
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(folder.path(), OpenOptions::default()).await?;
    store.put_bundle(bundle.digest, &bundle.root, &bundle.sources).await?;
    let id = RunId(uuid::Uuid::now_v7());
    store.create_run(new_run(id, "long", bundle.digest)).await?;
    let claim = store.claim(id, "bench").await?;
    let events = (1..STEPS).map(|at| {
        let output = Value::map([("message", Value::text(format!("s{at}")))]);
        let event = NodeEvent::Succeeded { output, changed: 0 };
        Event::Node { node: NodeName::step(format!("s{at}")), attempt: 1, event }
    });
    store.append(&claim, events.collect(), None).await?;
    store.close().await;

    let store = SqliteStore::open(folder.path(), OpenOptions::default()).await?;
    let (_stop, halt) = watch::channel(Halt::No);
    let driver = Driver::new(
        Arc::new(registry()?),
        Arc::new(store.clone()),
        Clock::system(),
        Options::default(),
        Arc::new(Unobserved),
        halt,
    );
    let start = Start {
        bundle,
        world: World::new("bench", Arc::new(Targets::new(PathBuf::from("/"), Vec::new(), BTreeMap::new()))),
        inputs: Value::map::<&str>([]),
        trigger: Trigger::Manual { by: "bench".into() },
        plan: None,
    };
    let begun = Instant::now();
    let ended = driver.resume(id, &start, &ProceedAlways, &[]).await?;
    let time = begun.elapsed();
    ensure!(ended.state == RunState::Succeeded, "the run ended {}", ended.state.name());
    store.close().await;
    Ok(time)
}
