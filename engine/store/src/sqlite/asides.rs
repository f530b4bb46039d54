//! What a batch changes besides journal and row, within its transaction: tickets of locks, requests, and the moments at
//! which waiting runs are due.

use farrier_model::{Digest, NodeName, Request, RunId};
use sqlx::{Row as _, SqliteConnection};

use crate::rules::{self, Aside};

fn column(node: Option<&NodeName>) -> String {
    node.map(ToString::to_string).unwrap_or_default()
}

/// Does what `asides` say for `run`, and takes the answered requests away.
pub(super) async fn perform(
    connection: &mut SqliteConnection,
    run: RunId,
    asides: &[Aside],
    taken: &[uuid::Uuid],
    now: i64,
) -> Result<(), sqlx::Error> {
    for request in taken {
        sqlx::query("DELETE FROM request WHERE request_id = ?")
            .bind(request.to_string())
            .execute(&mut *connection)
            .await?;
    }
    for aside in asides {
        match aside {
            Aside::Ask { lock, node, capacity } => {
                ask(connection, run, lock, node.as_ref(), *capacity, now).await?;
            }
            Aside::Told { lock, node } => {
                sqlx::query("UPDATE ticket SET told = 1 WHERE run_id = ? AND lock = ? AND node = ?")
                    .bind(run.to_string())
                    .bind(lock.clone())
                    .bind(column(node.as_ref()))
                    .execute(&mut *connection)
                    .await?;
            }
            Aside::Release { lock, node } => {
                sqlx::query("DELETE FROM ticket WHERE run_id = ? AND lock = ? AND node = ?")
                    .bind(run.to_string())
                    .bind(lock.clone())
                    .bind(column(node.as_ref()))
                    .execute(&mut *connection)
                    .await?;
                grant(connection, lock, now).await?;
            }
            Aside::Over => {
                let held = sqlx::query("DELETE FROM ticket WHERE run_id = ? RETURNING lock")
                    .bind(run.to_string())
                    .fetch_all(&mut *connection)
                    .await?;
                for row in held {
                    grant(connection, row.try_get(0)?, now).await?;
                }
                sqlx::query("DELETE FROM request WHERE run_id = ?")
                    .bind(run.to_string())
                    .execute(&mut *connection)
                    .await?;
                super::intake::run_ended(connection, run, now).await?;
                wake_parent(connection, run, now).await?;
                release(connection, run).await?;
            }
            Aside::Parked => wake_parent(connection, run, now).await?,
            Aside::Waits => wait(connection, run, now).await?,
        }
    }
    Ok(())
}

/// Stands in line once; asking again keeps the place.
async fn ask(
    connection: &mut SqliteConnection,
    run: RunId,
    lock: &str,
    node: Option<&NodeName>,
    capacity: u32,
    now: i64,
) -> Result<(), sqlx::Error> {
    let known = sqlx::query("SELECT 1 FROM ticket WHERE run_id = ? AND lock = ? AND node = ?")
        .bind(run.to_string())
        .bind(lock.to_string())
        .bind(column(node))
        .fetch_optional(&mut *connection)
        .await?;
    if known.is_some() {
        return Ok(());
    }
    let row = sqlx::query(
        "INSERT INTO lock (name, last) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET last = lock.last + 1 \
         RETURNING last",
    )
    .bind(lock.to_string())
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO ticket (lock, number, run_id, node, capacity, asked_at) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(lock.to_string())
    .bind(row.try_get::<i64, _>(0)?)
    .bind(run.to_string())
    .bind(column(node))
    .bind(i64::from(capacity))
    .bind(now)
    .execute(&mut *connection)
    .await?;
    grant(connection, lock, now).await
}

/// Gives a lock to those who are next, and makes them due.
async fn grant(connection: &mut SqliteConnection, lock: &str, now: i64) -> Result<(), sqlx::Error> {
    let line =
        sqlx::query("SELECT number, run_id, capacity, held_at FROM ticket WHERE lock = ? ORDER BY number")
            .bind(lock.to_string())
            .fetch_all(&mut *connection)
            .await?;
    let places = line
        .iter()
        .map(|row| {
            let held = row.try_get::<Option<i64>, _>(3)?.is_some();
            Ok((held, u32::try_from(row.try_get::<i64, _>(2)?).unwrap_or(u32::MAX)))
        })
        .collect::<Result<Vec<_>, sqlx::Error>>()?;
    for at in rules::grants(&places) {
        let row = &line[at];
        sqlx::query("UPDATE ticket SET held_at = ? WHERE lock = ? AND number = ?")
            .bind(now)
            .bind(lock.to_string())
            .bind(row.try_get::<i64, _>(0)?)
            .execute(&mut *connection)
            .await?;
        make_due(connection, row.try_get::<String, _>(1)?, now).await?;
    }
    Ok(())
}

/// The run of a schedule that waits for this one and for no other may begin.
async fn release(connection: &mut SqliteConnection, ended: RunId) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE run SET held = NULL WHERE run_id = (SELECT next.run_id FROM run over JOIN run next \
           ON next.schedule_id = over.schedule_id AND next.finished_at IS NULL AND next.held IS NOT NULL \
           WHERE over.run_id = ?1 ORDER BY next.held LIMIT 1) \
         AND NOT EXISTS (SELECT 1 FROM run over JOIN run other ON other.schedule_id = over.schedule_id \
           AND other.finished_at IS NULL AND other.held IS NULL WHERE over.run_id = ?1 AND other.run_id <> ?1)",
    )
    .bind(ended.to_string())
    .execute(connection)
    .await
    .map(|_| ())
}

async fn make_due(connection: &mut SqliteConnection, run: String, now: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE run SET not_before = ? WHERE run_id = ? AND state = 'waiting' \
         AND (not_before IS NULL OR not_before > ?)",
    )
    .bind(now)
    .bind(run)
    .bind(now)
    .execute(connection)
    .await
    .map(|_| ())
}

async fn wake_parent(connection: &mut SqliteConnection, run: RunId, now: i64) -> Result<(), sqlx::Error> {
    let row = sqlx::query("SELECT parent_id FROM run WHERE run_id = ?")
        .bind(run.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    match row.map(|row| row.try_get::<Option<String>, _>(0)).transpose()?.flatten() {
        Some(parent) => make_due(connection, parent, now).await,
        None => Ok(()),
    }
}

/// A run lets go. What came for it after it last looked must not be slept over: a request, a granted lock, or the end of
/// a child. What came later is told by the order in which it was written: within one instant the clock does not tell.
async fn wait(connection: &mut SqliteConnection, run: RunId, now: i64) -> Result<(), sqlx::Error> {
    let run = run.to_string();
    let came = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM request WHERE run_id = ?1) \
         OR EXISTS (SELECT 1 FROM ticket WHERE run_id = ?1 AND held_at IS NOT NULL AND told = 0) \
         OR EXISTS (SELECT 1 FROM run child WHERE child.parent_id = ?1 \
                    AND (child.finished_at IS NOT NULL OR child.state = 'parked') \
                    AND (SELECT rowid FROM journal WHERE run_id = child.run_id ORDER BY seq DESC LIMIT 1) > \
                        (SELECT rowid FROM journal WHERE run_id = ?1 AND kind = 'claimed' ORDER BY seq DESC LIMIT 1))",
    )
    .bind(run.clone())
    .fetch_one(&mut *connection)
    .await?;
    if came.try_get::<bool, _>(0)? { make_due(connection, run, now).await } else { Ok(()) }
}

/// Stores a request and makes a waiting run due.
pub(super) async fn request(
    connection: &mut SqliteConnection,
    run: RunId,
    request: &Request,
    body: &str,
    now: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO request (request_id, run_id, at, body) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(request.id.to_string())
    .bind(run.to_string())
    .bind(request.at.as_millisecond())
    .bind(body.to_string())
    .execute(&mut *connection)
    .await?;
    make_due(connection, run.to_string(), now).await
}

/// Which run carried a saved plan out before, if one did; otherwise `run` is recorded as the one that does.
pub(super) async fn use_plan(
    connection: &mut SqliteConnection,
    digest: Digest,
    run: RunId,
    now: i64,
) -> Result<Option<String>, sqlx::Error> {
    let used = sqlx::query("SELECT run_id FROM plan_use WHERE digest = ?")
        .bind(digest.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    if let Some(row) = used {
        return row.try_get(0).map(Some);
    }
    sqlx::query("INSERT INTO plan_use (digest, run_id, at) VALUES (?, ?, ?)")
        .bind(digest.to_string())
        .bind(run.to_string())
        .bind(now)
        .execute(connection)
        .await?;
    Ok(None)
}
