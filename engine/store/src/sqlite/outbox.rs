//! The outbox's rows.

use async_trait::async_trait;
use farrier_model::Text;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::SqliteStore;
use super::writer::Work;
use crate::notice::{Delivery, Notice, NoticeFilter, Outbox, Posted};
use crate::{StoreError, timestamp};

/// Stores a notice once; for every transaction that has something to tell.
pub(super) async fn put(
    connection: &mut SqliteConnection,
    notice: &Notice,
    now: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO outbox (notice_id, run_id, environment, recipient, occasion, subject, body, at, not_before, attempts) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
    )
    .bind(notice.id.to_string())
    .bind(notice.run.map(|run| run.to_string()))
    .bind(notice.environment.clone())
    .bind(notice.to.clone())
    .bind(notice.occasion.clone())
    .bind(notice.subject.clone())
    .bind(notice.body.clone())
    .bind(now)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Records how an attempt ended.
pub(super) async fn delivered(
    connection: &mut SqliteConnection,
    notice: Uuid,
    delivery: &Delivery,
    now: i64,
) -> Result<(), sqlx::Error> {
    let query = match delivery {
        Delivery::Sent => {
            sqlx::query("UPDATE outbox SET sent_at = ?, trouble = NULL WHERE notice_id = ? AND sent_at IS NULL")
                .bind(now)
        }
        Delivery::Failed { trouble, again } => sqlx::query(
            "UPDATE outbox SET attempts = attempts + 1, trouble = ?, not_before = ? WHERE notice_id = ? AND sent_at IS NULL",
        )
        .bind(trouble.clone())
        .bind(again.as_millisecond()),
    };
    query.bind(notice.to_string()).execute(connection).await?;
    Ok(())
}

fn query(filter: NoticeFilter) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "SELECT notice_id, run_id, environment, recipient, occasion, subject, body, at, not_before, attempts, sent_at, trouble \
         FROM outbox WHERE 1 = 1",
    );
    if filter.pending || filter.due.is_some() {
        query.push(" AND sent_at IS NULL");
    }
    if let Some(due) = filter.due {
        query.push(" AND not_before <= ").push_bind(due.as_millisecond());
    }
    if let Some(run) = filter.run {
        query.push(" AND run_id = ").push_bind(run.to_string());
    }
    query.push(" ORDER BY at, notice_id");
    if let Some(limit) = filter.limit {
        query.push(" LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    }
    query
}

fn posted(row: &SqliteRow) -> Result<Posted, StoreError> {
    let read = || -> Result<Posted, sqlx::Error> {
        let damaged = |message: &str| sqlx::Error::Decode(message.to_owned().into());
        let text = |index: usize| row.try_get::<&str, _>(index).map(Text::from);
        let run = row.try_get::<Option<&str>, _>(1)?;
        Ok(Posted {
            notice: Notice {
                id: row.try_get::<&str, _>(0)?.parse().map_err(|_| damaged("its id is not a UUID"))?,
                run: run
                    .map(|run| run.parse().map_err(|_| damaged("its run has no valid id")))
                    .transpose()?,
                environment: text(2)?,
                to: text(3)?,
                occasion: text(4)?,
                subject: row.try_get(5)?,
                body: row.try_get(6)?,
            },
            at: timestamp(row.try_get(7)?),
            not_before: timestamp(row.try_get(8)?),
            attempts: u32::try_from(row.try_get::<i64, _>(9)?).unwrap_or(u32::MAX),
            sent_at: row.try_get::<Option<i64>, _>(10)?.map(timestamp),
            trouble: row.try_get(11)?,
        })
    };
    read().map_err(|error| StoreError::Corrupt { place: "a notice".into(), message: error.to_string() })
}

#[async_trait]
impl Outbox for SqliteStore {
    async fn notify(&self, notice: Notice) -> Result<(), StoreError> {
        self.work(Work::Notice { notice: Box::new(notice) }).await.map(|_| ())
    }

    async fn notices(&self, filter: NoticeFilter) -> Result<Vec<Posted>, StoreError> {
        let rows =
            query(filter).build().fetch_all(&self.readers).await.map_err(|error| self.unreadable(error))?;
        rows.iter().map(posted).collect()
    }

    async fn delivered(&self, notice: Uuid, delivery: Delivery) -> Result<(), StoreError> {
        self.work(Work::Delivered { notice, delivery }).await.map(|_| ())
    }
}
