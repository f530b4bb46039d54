//! Intake of alerts: a storm, and what it carries for as long as it comes, all of it durable when it is answered.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farrier_action::ActionRegistry;
use farrier_project::Set;
use farrier_server::intake::{Intake, Outcome};
use farrier_store::{Clock, IncidentFilter, Intake as _, OpenOptions, RunFilter, SqliteStore, Store as _};
use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Report, show, write};
use crate::serving::{Memory, memory};

/// Requests that are sent at once.
const SENDERS: usize = 16;
pub const GROUPS: usize = 200;
pub const PER_GROUP: usize = 50;
/// Requests of the sustained measurement, and the alerts in each.
const REQUESTS: usize = 1_000;
const ALERTS: usize = 20;

const RUNBOOK: &str = r#"runbook: clean
summary: Cleans a disk
owner: admins
risk: read_only
run_title: "clean ${ inputs.node }"
inputs: { node: { type: host, pattern: "node-[0-9]+" } }
triggers:
  - alert:
      match: ['alertname="DiskFull"', 'severity=~"warning|critical"']
      per: alert.labels.instance | host
      inputs: { node: "${ alert.labels.instance | host }" }
      limit: { burst: 1000000, every: 1ms }
      max_active: 1000000
steps:
  tell: { uses: flow.note, with: { message: "${ inputs.node }" } }
"#;

/// A project whose runbook answers these alerts.
pub fn project(root: &Path) -> Result<Set> {
    for folder in ["runbooks", "environments"] {
        std::fs::create_dir(root.join(folder))?;
    }
    write(&root.join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: [environments]\n")?;
    write(&root.join("environments/tools.yaml"), "environment: tools\nreceivers: [tools]\n")?;
    write(&root.join("runbooks/clean.yaml"), RUNBOOK)?;
    let mut registry = ActionRegistry::default();
    farrier_plugin_flow::register(&mut registry)?;
    Set::load(root, &registry, &[], 1).context("the project of the measurement")
}

/// What Alertmanager sends about a group of disks on nodes.
pub fn message(group: usize, disks: impl Iterator<Item = (usize, usize)>) -> Vec<u8> {
    let alerts: Vec<_> = disks
        .map(|(node, disk)| {
            json!({ "status": "firing", "startsAt": "2026-08-20T10:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
                    "labels": { "alertname": "DiskFull", "instance": format!("node-{node}:9100"), "severity": "warning",
                                "disk": format!("sd{disk}"), "project": "tools", "team": "admins" },
                    "annotations": { "summary": "the disk is full", "runbook": "https://example.org/DiskFull" },
                    "generatorURL": "https://prometheus.example.org/graph?g0.expr=up" })
        })
        .collect();
    json!({ "version": "4", "groupKey": format!("g{group}"), "status": "firing", "receiver": "tools", "alerts": alerts })
        .to_string()
        .into_bytes()
}

/// Sends all messages, and gives the time of each answer, sorted, and of all together.
async fn send(
    intake: &Arc<Intake<SqliteStore>>,
    set: &Arc<Set>,
    messages: Vec<Vec<u8>>,
) -> Result<(Vec<Duration>, Duration)> {
    let messages = Arc::new(messages);
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let begun = Instant::now();
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (intake, set, messages, next) = (intake.clone(), set.clone(), messages.clone(), next.clone());
        senders.spawn(async move {
            let mut times = Vec::new();
            loop {
                let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(message) = messages.get(at) else { return Ok(times) };
                let asked = Instant::now();
                let outcome = intake.handle("tools", message, &set).await;
                ensure!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
                times.push(asked.elapsed());
            }
        });
    }
    let mut times = Vec::new();
    while let Some(sender) = senders.join_next().await {
        times.extend(sender??);
    }
    let all = begun.elapsed();
    times.sort_unstable();
    Ok((times, all))
}

/// Measures a storm and sustained intake, at the intake itself: without HTTP.
pub fn measure(report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let folder = tempfile::tempdir()?;
    let set = Arc::new(project(folder.path())?);
    runtime.block_on(async {
        let store = SqliteStore::open(&folder.path().join("storm"), OpenOptions::default()).await?;
        let intake = Arc::new(Intake::new(Arc::new(store.clone()), Clock::system()));
        // Two Alertmanagers send every group.
        let storm =
            (0..GROUPS * 2).map(|at| message(at / 2, (0..PER_GROUP).map(|disk| (at / 2, disk)))).collect();
        let (times, all) = send(&intake, &set, storm).await?;
        let runs = store.runs(RunFilter::default()).await?.len();
        let incidents = store.incidents(IncidentFilter::default()).await?.len();
        ensure!((runs, incidents) == (GROUPS, GROUPS), "{runs} runs for {incidents} incidents");
        report.row(
            "storm of 10,000 alerts in 200 groups, everything twice: answer, p99",
            &show(times[times.len() * 99 / 100]),
            &show(times.last().copied().unwrap_or_default()),
            &format!("{GROUPS} incidents, {GROUPS} runs, all in {}", show(all)),
        );
        report.row(
            "the same: alerts per second, durable",
            &format!("{:.0}/s", (GROUPS * PER_GROUP * 2) as f64 / all.as_secs_f64()),
            "",
            &format!("{} MB at most", memory(std::process::id(), Memory::Most)? / 1_000_000),
        );
        store.close().await;

        let store = SqliteStore::open(&folder.path().join("sustained"), OpenOptions::default()).await?;
        let intake = Arc::new(Intake::new(Arc::new(store.clone()), Clock::system()));
        for (what, fresh) in
            [("each opens an incident with a run", true), ("repeats of open incidents", false)]
        {
            let messages = (0..REQUESTS)
                .map(|request| message(request, (0..ALERTS).map(|at| (request * ALERTS + at, 0))))
                .collect();
            let (times, all) = send(&intake, &set, messages).await?;
            report.row(
                &format!("alerts per second, durable, {ALERTS} in a request: {what}"),
                &format!("{:.0}/s", (REQUESTS * ALERTS) as f64 / all.as_secs_f64()),
                "",
                &format!("answer p99 {}", show(times[times.len() * 99 / 100])),
            );
            let runs = store.runs(RunFilter { limit: Some(1), ..RunFilter::default() }).await?.len();
            ensure!(runs == 1, "{fresh}");
        }
        store.close().await;
        anyhow::Ok(())
    })
}
