//! [`Health`]: the dead-man's switch of periodic tasks. It rings when no run has succeeded for `success_every`, whatever the reason: they
//! fail, they hang, or nothing starts them.

use std::collections::HashMap;
use std::time::Duration;

use farrier_model::time::{Timestamp, format_duration};
use farrier_store::{Alarm, AlarmKind, Ledger, Notice, StoreError};
use uuid::Uuid;

use super::{ClockObserver, Jobs, Watch};

/// How often a task that is overdue is looked at again.
const AGAIN: Duration = Duration::from_secs(15);

/// When each task that is watched has to be looked at. Before that it cannot be overdue.
#[derive(Default)]
pub(super) struct Health {
    next: Option<HashMap<String, (Watch, Timestamp)>>,
}

impl Health {
    /// Looks at those whose moment has come, and says when the next has.
    pub(super) async fn check(
        &mut self,
        ledger: &dyn Ledger,
        jobs: &dyn Jobs,
        observer: &dyn ClockObserver,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        if self.next.is_none() {
            let watched: HashMap<String, (Watch, Timestamp)> = jobs
                .watched()
                .into_iter()
                .map(|watch| (format!("{}/{}", watch.environment, watch.runbook), (watch, now)))
                .collect();
            // What nobody watches any more is not overdue.
            for alarm in ledger.alarms().await? {
                if alarm.kind == AlarmKind::Overdue && !watched.contains_key(&alarm.subject) {
                    clear(ledger, observer, AlarmKind::Overdue, &alarm.subject).await?;
                }
            }
            self.next = Some(watched);
        }
        let Some(watched) = &mut self.next else { return Ok(None) };
        for (subject, (watch, next)) in watched.iter_mut().filter(|(_, (_, next))| *next <= now) {
            *next = look(ledger, observer, subject, watch, now).await?;
        }
        Ok(watched.values().map(|(_, next)| *next).min())
    }
}

/// Looks at one task, and says when to look again.
async fn look(
    ledger: &dyn Ledger,
    observer: &dyn ClockObserver,
    subject: &str,
    watch: &Watch,
    now: Timestamp,
) -> Result<Timestamp, StoreError> {
    let again = now.checked_add(AGAIN).unwrap_or(now);
    let schedule = ledger
        .schedule(&watch.schedule)
        .await?
        .filter(|row| row.retired_at.is_none() && row.paused.is_none());
    let Some(schedule) = schedule else {
        // A person knows that it does not run.
        clear(ledger, observer, AlarmKind::Overdue, subject).await?;
        return Ok(again);
    };
    let success = ledger.last_success(&watch.environment, &watch.runbook).await?;
    let since = success.map_or(schedule.awake_since, |success| success.max(schedule.awake_since));
    let due = since.checked_add(watch.success_every).unwrap_or(since);
    if now <= due {
        clear(ledger, observer, AlarmKind::Overdue, subject).await?;
        return Ok(due.checked_add(Duration::from_secs(1)).unwrap_or(due));
    }
    let every = format_duration(watch.success_every);
    let last = success
        .map_or("none has succeeded yet".to_owned(), |success| format!("the last one ended at {success}"));
    let message =
        format!("no run of {} in {} has succeeded for {every}; {last}", watch.runbook, watch.environment);
    let tell = Notice {
        id: Uuid::now_v7(),
        run: None,
        environment: watch.environment.clone(),
        to: watch.owner.clone(),
        occasion: "overdue".into(),
        subject: format!("{} in {} is overdue", watch.runbook, watch.environment),
        body: format!("{message}.\n\nLook: farrier schedules {}\n", watch.schedule),
    };
    raise(ledger, observer, AlarmKind::Overdue, subject, message, vec![tell], now).await?;
    Ok(again)
}

/// Raises an alarm, and tells of it once.
pub(super) async fn raise(
    ledger: &dyn Ledger,
    observer: &dyn ClockObserver,
    kind: AlarmKind,
    subject: &str,
    message: String,
    tell: Vec<Notice>,
    now: Timestamp,
) -> Result<(), StoreError> {
    if ledger.raise(kind, subject, &message, tell).await? {
        tracing::error!(kind = kind.name(), subject, message, "an alarm is raised");
        observer.raised(&Alarm { kind, subject: subject.to_owned(), message, since: now });
    }
    Ok(())
}

/// Takes an alarm back, and tells of it.
pub(super) async fn clear(
    ledger: &dyn Ledger,
    observer: &dyn ClockObserver,
    kind: AlarmKind,
    subject: &str,
) -> Result<(), StoreError> {
    if ledger.clear(kind, subject).await? {
        tracing::info!(kind = kind.name(), subject, "an alarm is taken back");
        observer.cleared(kind, subject);
    }
    Ok(())
}
