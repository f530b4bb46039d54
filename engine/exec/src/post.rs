//! [`Post`]: tells people what the outbox holds.
//!
//! A notice is sent with the action `mail.send` through the environment's own way of sending mail, as a step would. It is
//! sent at least once: after a crash between sending and recording that, it is sent again, under the same message id.

use std::sync::Arc;
use std::time::Duration;

use farrier_action::{ActionRegistry, NodeInfo, ReadCx, Targets, WriteCx};
use farrier_model::{NodeName, RunId, Scope, Value};
use farrier_store::{Clock, Delivery, Notice, NoticeFilter, Store, StoreError};
use tokio::sync::watch;

use crate::driver::Halt;

/// How often the outbox is looked into.
const EVERY: Duration = Duration::from_secs(2);
/// Notices of one look.
const AT_ONCE: usize = 50;
/// The wait after the first failure; it doubles up to [`LONGEST`].
const AGAIN: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// How somebody is reached.
#[derive(Clone)]
pub struct Mailing {
    /// The targets of the environment.
    pub targets: Arc<Targets>,
    /// The one that sends mail.
    pub target: String,
    /// Where to.
    pub addresses: Vec<String>,
}

/// Knows where people are.
pub trait Recipients: Send + Sync {
    /// How `to` is reached in `environment`; [`EVERYBODY`] is everyone whom the environment knows.
    ///
    /// # Errors
    /// One sentence: why nobody can be reached, and what to write into which file.
    fn mailing(&self, environment: &str, to: &str) -> Result<Mailing, String>;
}

/// Stands for everyone under `notify:`, when it is not known whom a run belongs to.
pub const EVERYBODY: &str = "*";

/// Sends what is due. See the module's page.
pub struct Post {
    registry: Arc<ActionRegistry>,
    store: Arc<dyn Store>,
    recipients: Arc<dyn Recipients>,
    clock: Clock,
}

impl Post {
    /// A post for the outbox of `store`.
    pub fn new(
        registry: Arc<ActionRegistry>,
        store: Arc<dyn Store>,
        recipients: Arc<dyn Recipients>,
        clock: Clock,
    ) -> Post {
        Post { registry, store, recipients, clock }
    }

    /// Sends what is due, again and again until the process is to end.
    ///
    /// # Errors
    /// The store can be written no more.
    pub async fn run(&self, mut halt: watch::Receiver<Halt>) -> Result<(), StoreError> {
        while *halt.borrow_and_update() == Halt::No {
            match self.send_due().await {
                Ok(_) => {}
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => tracing::warn!(%error, "the outbox cannot be read"),
            }
            tokio::select! {
                _ = halt.changed() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        Ok(())
    }

    /// Sends what is due now, and gives the number of those that were sent.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn send_due(&self) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let filter = NoticeFilter { due: Some(now), limit: Some(AT_ONCE), ..NoticeFilter::default() };
        let mut sent = 0;
        for posted in self.store.notices(filter).await? {
            let notice = &posted.notice;
            let delivery = match self.send(notice, posted.attempts + 1).await {
                Ok(()) => {
                    sent += 1;
                    Delivery::Sent
                }
                Err(trouble) => {
                    tracing::error!(to = %notice.to, environment = %notice.environment, %trouble, "nobody was told: {}", notice.subject);
                    let pause = AGAIN.saturating_mul(1 << posted.attempts.min(10)).min(LONGEST);
                    Delivery::Failed { trouble, again: self.clock.now() + pause }
                }
            };
            self.store.delivered(notice.id, delivery).await?;
        }
        Ok(sent)
    }

    async fn send(&self, notice: &Notice, attempt: u32) -> Result<(), String> {
        let mailing = self.recipients.mailing(&notice.environment, &notice.to)?;
        let addresses = mailing.addresses.into_iter().map(Value::text).collect();
        let inputs = Value::map([
            ("target", Value::text(mailing.target)),
            ("to", Value::list(addresses)),
            ("subject", Value::text(format!("[farrier] {}", one_line(&notice.subject)))),
            ("text", Value::text(notice.body.clone())),
        ]);
        let action = self.registry.bind("mail.send", &inputs).map_err(|failure| failure.to_string())?;
        let node = NodeInfo {
            run: notice.run.unwrap_or(RunId::NONE),
            node: NodeName::step("notice"),
            attempt,
            effect_id: notice.id.simple().to_string(),
        };
        let cx = ReadCx::new(mailing.targets, Scope::default(), node);
        let planned = action.plan(&cx).await.map_err(|failure| failure.to_string())?;
        let sent = action.apply(&WriteCx::after_intent(cx), &planned.changes).await;
        sent.map(|_| ()).map_err(|failure| failure.to_string())
    }
}

/// Titles come from inputs, and a subject is one line.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(200).collect()
}
