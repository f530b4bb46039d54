//! How fast the journal is, in a directory of your choice: `cargo run --release -p farrier-store --example append_rate -- DIR`.
//!
//! Durable rates are those of the disk as much as ours: the program prints how long an fdatasync of 4 KiB takes there. A disk
//! that answers in hundredths of a millisecond answers from a cache.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use farrier_model::event::Trigger;
use farrier_model::{Digest, Event, NodeEvent, NodeName, RunId, Value};
use farrier_store::{Claim, NewRun, OpenOptions, SqliteStore, Store, StoreError};

const CHAIN: usize = 1_000;
const RUNS: u8 = 64;
const BATCHES: usize = 40;
const ROWS: usize = 100;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("farrier-append-rate-{}", std::process::id()));
    let store = SqliteStore::open(&dir, OpenOptions::default()).await?;
    println!("fdatasync of 4 KiB          {:>10.3} ms", sync_ms(&dir.join("probe"))?);

    let claim = claim(&store, 0).await?;
    let began = Instant::now();
    for step in 0..CHAIN {
        store.append(&claim, vec![succeeded(0, step)], None).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "one caller, one row each    {:>10.0} commits/s ({CHAIN} in {seconds:.3} s)",
        CHAIN as f64 / seconds
    );

    let began = Instant::now();
    for batch in 0..BATCHES * 4 {
        let rows = (0..ROWS).map(|row| succeeded(1 + batch, row)).collect();
        store.append(&claim, rows, None).await?;
    }
    let rows = (BATCHES * 4 * ROWS) as f64;
    println!("one caller, {ROWS} rows each   {:>10.0} rows/s", rows / began.elapsed().as_secs_f64());

    let before = store.counts();
    let mut claims = Vec::new();
    for number in 1..=RUNS {
        claims.push(self::claim(&store, number).await?);
    }
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for claim in claims {
        let store = store.clone();
        tasks.spawn(async move {
            for batch in 0..BATCHES {
                let rows = (0..ROWS).map(|row| succeeded(batch, row)).collect();
                store.append(&claim, rows, None).await?;
            }
            Ok::<(), StoreError>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let seconds = began.elapsed().as_secs_f64();
    let rows = usize::from(RUNS) * BATCHES * ROWS;
    let commits = store.counts().commits - before.commits;
    println!("{RUNS} callers, {ROWS} rows each  {:>10.0} rows/s ({commits} commits)", rows as f64 / seconds);
    store.close().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn sync_ms(path: &std::path::Path) -> std::io::Result<f64> {
    let mut file = File::create(path)?;
    let began = Instant::now();
    for _ in 0..100 {
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
    }
    Ok(began.elapsed().as_secs_f64() * 10.0)
}

async fn claim(store: &SqliteStore, number: u8) -> Result<Claim, StoreError> {
    let bundle = Digest::of("");
    let created = Event::Created {
        runbook: "rate".into(),
        bundle,
        environment: "lab".into(),
        inputs: Value::Null,
        trigger: Trigger::Manual { by: "me".into() },
        plan: None,
    };
    let id = RunId::at(0, [number; 10]);
    let (runbook, environment, title) = ("rate".into(), "lab".into(), "rate".into());
    store
        .create_run(NewRun { id, runbook, bundle, environment, title, parent: None, live_key: None, created })
        .await?;
    store.claim(id, "example").await
}

fn succeeded(batch: usize, row: usize) -> Event {
    let output =
        Value::map([("name", Value::text("a typical small output")), ("number", Value::Int(row as i64))]);
    let event = NodeEvent::Succeeded { output, changed: 1 };
    Event::Node { node: NodeName::item(format!("step{batch}"), row.to_string()), attempt: 1, event }
}
