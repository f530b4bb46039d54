//! The writer when SQLite says that there is no room, without a disk that has none.

use std::path::Path;

use farrier_model::event::Trigger;
use farrier_model::{Effect, NodeEvent, NodeName, Value};
use sqlx::ConnectOptions as _;

use super::*;
use crate::sqlite::{connect_options, directory, schema};

async fn writer(dir: &Path) -> Writer {
    let file = directory::database(dir);
    let lock = directory::own(dir).unwrap();
    let mut connection = connect_options(&file)
        .create_if_missing(true)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
        .connect()
        .await
        .unwrap();
    schema::migrate(&mut connection, 0, 0).await.unwrap();
    let files = Files { _lock: lock, anchors: Anchors::of(dir).unwrap(), ballast: Ballast::keep(dir) };
    let errors = Errors { file: Arc::from(file.as_path()) };
    let clocks = (Clock::system(), Timing::default());
    Writer::new(connection, files, clocks, 1, Arc::default(), errors)
}

/// Lets the database have no page more than it has, or as many as it likes.
async fn limit(writer: &mut Writer, limited: bool) {
    let sql = if limited { "PRAGMA max_page_count = 1" } else { "PRAGMA max_page_count = 1000000" };
    sqlx::query(sql).execute(&mut writer.connection).await.unwrap();
}

fn run() -> RunId {
    RunId::at(1, [0; 10])
}

fn create() -> Work {
    let bundle = Digest::of("");
    let created = Event::Created {
        runbook: "r".into(),
        bundle,
        environment: "e".into(),
        inputs: Value::Null,
        trigger: Trigger::Manual { by: "me".into() },
        plan: None,
    };
    let row = Row::of(&created).unwrap();
    let new = NewRun {
        id: run(),
        runbook: "r".into(),
        bundle,
        environment: "e".into(),
        title: "t".into(),
        parent: None,
        live_key: None,
        created,
    };
    Work::Create { new: Box::new(new), row }
}

fn append(claim: Claim, event: NodeEvent) -> Work {
    let event = Event::Node { node: NodeName::step("a"), attempt: 1, event };
    let rows = vec![Row::of(&event).unwrap()];
    Work::Append { claim, batch: Batch::new(vec![event], None), rows }
}

fn intent(claim: Claim) -> Work {
    let (inputs, changes, effect) = (Value::text("x".repeat(10_000)), Vec::new(), Effect::Once);
    append(claim, NodeEvent::Intent { inputs, changes, effect, effect_id: "k".into() })
}

/// Guards T6: no room is not a failed disk. What is refused did not happen, and goes well once there is room; the writer
/// needs no restart.
#[tokio::test]
async fn no_room_refuses_and_is_not_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path()).await;
    assert!(writer.answers(&[create()]).await.remove(0).is_ok());
    let row = Row::of(&Event::Claimed { owner: "h:1".into() }).unwrap();
    let claimed = writer.answers(&[Work::Claim { run: run(), owner: "h:1".into(), row }]).await.remove(0);
    let Ok(Done::Claimed(claim)) = claimed else { panic!("it is claimed") };

    limit(&mut writer, true).await;
    let full = writer.errors.full();
    let output = Value::text("y".repeat(10_000));
    let outcome = || append(claim, NodeEvent::Succeeded { output: output.clone(), changed: 0 });
    let works = [intent(claim), outcome(), Work::Heartbeat { claims: vec![claim] }];
    let mut answers = writer.answers(&works).await;
    assert_eq!(answers.remove(0).err(), Some(full.clone()), "an intent can wait");
    assert_eq!(answers.remove(0).err(), Some(full.clone()), "not even the ballast helps here");
    assert!(answers.remove(0).is_ok(), "a heartbeat needs no page more");
    assert!(writer.status.fatal.get().is_none());
    assert!(!full.is_fatal());

    limit(&mut writer, false).await;
    assert!(writer.answers(&[intent(claim)]).await.remove(0).is_ok(), "the disk itself has room");
    assert!(!writer.status.full.load(Ordering::Relaxed));
    assert!(writer.answers(&[outcome()]).await.remove(0).is_ok());
}
