//! What people are to hear, until they have heard it: the outbox.

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_model::{RunId, Text};
use uuid::Uuid;

use crate::StoreError;

/// Something that people are to hear. It is stored in the transaction that makes it true, and told at least once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Unique. The same when it is stored again, so that it is one notice.
    pub id: Uuid,
    /// The run it is about.
    pub run: Option<RunId>,
    /// The environment, which says where people are.
    pub environment: Text,
    /// A name under `notify:` there.
    pub to: Text,
    /// What happened, in one word such as `failed` or `parked`.
    pub occasion: Text,
    /// One line.
    pub subject: String,
    /// The text.
    pub body: String,
}

impl Notice {
    /// The id of the notice that `about` stands for: the same words give the same id.
    pub fn id_of(about: &str) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("farrier:notice:{about}").as_bytes())
    }
}

/// A notice, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// What is to be told.
    pub notice: Notice,
    /// Since when.
    pub at: Timestamp,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// When it is tried next; in the past when it is due.
    pub not_before: Timestamp,
    /// When it was told.
    pub sent_at: Option<Timestamp>,
    /// Why the last attempt failed.
    pub trouble: Option<String>,
}

/// How an attempt to tell a notice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It was taken over by whoever carries it.
    Sent,
    /// It was not, or nobody knows.
    Failed {
        /// Why.
        trouble: String,
        /// When it is tried again.
        again: Timestamp,
    },
}

/// Which notices to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoticeFilter {
    /// Only those that were not told yet.
    pub pending: bool,
    /// Only those that are to be tried by this moment.
    pub due: Option<Timestamp>,
    /// About this run.
    pub run: Option<RunId>,
    /// At most so many; none means all.
    pub limit: Option<usize>,
}

/// Keeps what people are to hear. [`Batch::notices`](crate::Batch::notices) adds to it together with the events that are
/// the reason.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Stores a notice durably. Storing one with the same id again changes nothing.
    async fn notify(&self, notice: Notice) -> Result<(), StoreError>;

    /// The notices that fit, those first that were stored first.
    async fn notices(&self, filter: NoticeFilter) -> Result<Vec<Posted>, StoreError>;

    /// Records how an attempt ended. A notice that is not there any more is passed over.
    async fn delivered(&self, notice: Uuid, delivery: Delivery) -> Result<(), StoreError>;
}
