//! Who did what through the service: rows that are only ever added.
//!
//! A run's journal says what happened to the run, and by whose word. An act says that somebody asked, over which way in, and
//! what they were told; also when they were refused, and when it was about no run.

use farrier_model::time::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::SqliteStore;
use super::writer::Work;
use crate::{StoreError, timestamp};

/// Something that somebody did, or was kept from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Unique; grows with time.
    pub id: Uuid,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: String,
    /// The way in: `socket`, `token`, `login`, `certificate`.
    pub via: String,
    /// The route, as the table of routes names it.
    pub what: String,
    /// What it was about: a run, a runbook; empty for none.
    pub object: String,
    /// What they were told: `ok`, or the code of the error.
    pub outcome: String,
    /// More, in a few words: the address, a reason.
    pub detail: String,
}

/// Which acts to list, newest first. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActFilter {
    /// By them.
    pub who: Option<String>,
    /// About this.
    pub object: Option<String>,
    /// Older than this one.
    pub before: Option<(Timestamp, Uuid)>,
    /// At most so many.
    pub limit: Option<usize>,
}

impl SqliteStore {
    /// Records an act; durable when it returns.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn record_act(&self, act: Act) -> Result<(), StoreError> {
        self.work(Work::Act { act: Box::new(act) }).await.map(|_| ())
    }

    /// The acts that fit `filter`, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn acts(&self, filter: &ActFilter) -> Result<Vec<Act>, StoreError> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "SELECT audit_id, at, who, via, what, object, outcome, detail FROM audit WHERE 1 = 1",
        );
        if let Some(who) = &filter.who {
            query.push(" AND who = ").push_bind(who.clone());
        }
        if let Some(object) = &filter.object {
            query.push(" AND object = ").push_bind(object.clone());
        }
        if let Some((at, id)) = &filter.before {
            let (at, id) = (at.as_millisecond(), id.to_string());
            query.push(" AND (at < ").push_bind(at).push(" OR (at = ").push_bind(at);
            query.push(" AND audit_id < ").push_bind(id).push("))");
        }
        query.push(" ORDER BY at DESC, audit_id DESC LIMIT ");
        query.push_bind(filter.limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(i64::MAX));
        let rows = query.build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        rows.iter().map(act).collect()
    }
}

/// Adds the row, within the writer's transaction.
pub(super) async fn write(connection: &mut SqliteConnection, act: &Act) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO audit (audit_id, at, who, via, what, object, outcome, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT DO NOTHING",
    )
    .bind(act.id.to_string())
    .bind(act.at.as_millisecond())
    .bind(act.who.clone())
    .bind(act.via.clone())
    .bind(act.what.clone())
    .bind(act.object.clone())
    .bind(act.outcome.clone())
    .bind(act.detail.clone())
    .execute(connection)
    .await
    .map(|_| ())
}

fn act(row: &SqliteRow) -> Result<Act, StoreError> {
    let read = || -> Result<Act, sqlx::Error> {
        let id: String = row.try_get(0)?;
        Ok(Act {
            id: Uuid::parse_str(&id).map_err(|error| sqlx::Error::Decode(error.into()))?,
            at: timestamp(row.try_get(1)?),
            who: row.try_get(2)?,
            via: row.try_get(3)?,
            what: row.try_get(4)?,
            object: row.try_get(5)?,
            outcome: row.try_get(6)?,
            detail: row.try_get(7)?,
        })
    };
    read()
        .map_err(|error| StoreError::Corrupt { place: "a row of `audit`".into(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    fn act_of(who: &str, object: &str, second: i64) -> Act {
        Act {
            id: Uuid::now_v7(),
            at: Timestamp::from_second(second).unwrap(),
            who: who.into(),
            via: "token".into(),
            what: "POST /api/v1/runs/{run}/cancel".into(),
            object: object.into(),
            outcome: "ok".into(),
            detail: String::new(),
        }
    }

    #[tokio::test]
    async fn acts_are_listed_newest_first_and_page_by_page() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), OpenOptions::default()).await.unwrap();
        let acts: Vec<Act> = (0..5).map(|n| act_of(["ada", "grace"][n % 2], "run", n as i64 / 2)).collect();
        for act in &acts {
            store.record_act(act.clone()).await.unwrap();
        }
        let mut newest = acts.clone();
        newest.reverse();
        assert_eq!(store.acts(&ActFilter::default()).await.unwrap(), newest);
        let mut paged = Vec::new();
        let mut filter = ActFilter { limit: Some(2), ..ActFilter::default() };
        loop {
            let page = store.acts(&filter).await.unwrap();
            let Some(last) = page.last() else { break };
            filter.before = Some((last.at, last.id));
            paged.extend(page);
        }
        assert_eq!(paged, newest);
        let of_grace = ActFilter { who: Some("grace".into()), ..ActFilter::default() };
        assert_eq!(store.acts(&of_grace).await.unwrap().len(), 2);
        store.close().await;
    }

    /// Guards "the audit is append-only".
    #[tokio::test]
    async fn an_act_is_neither_changed_nor_taken_away() {
        use sqlx::ConnectOptions as _;
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), OpenOptions::default()).await.unwrap();
        store.record_act(act_of("ada", "run", 1)).await.unwrap();
        store.close().await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("farrier.db"));
        let mut connection = options.connect().await.unwrap();
        for sql in ["UPDATE audit SET who = 'eve'", "DELETE FROM audit"] {
            let refused = sqlx::raw_sql(sql).execute(&mut connection).await.unwrap_err();
            assert!(refused.to_string().contains("append-only"), "{refused}");
        }
    }
}
