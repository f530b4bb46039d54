//! [`Exporting`]: takes ended spans from the queue and posts them, some at once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Instrument as _;
use url::Url;

use super::{Ended, QUEUE, Spans, otlp};
use crate::client::Plain;

/// Spans of one request.
const AT_ONCE: usize = 512;
/// How long the first of them waits for others.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a collector may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the last ones may take when the service stops.
const LAST: Duration = Duration::from_secs(1);

/// Sends spans for as long as it lives.
pub struct Exporting {
    spans: Spans,
    task: JoinHandle<()>,
}

impl Exporting {
    /// Begins to send to `/v1/traces` of a collector.
    pub fn begin(spans: &Spans, url: Url, plain: Plain) -> Exporting {
        let (queue, ended) = mpsc::channel(QUEUE);
        *spans.queue() = Some(queue);
        // Its own log is about no run.
        let task = tokio::spawn(send_all(spans.clone(), ended, url, plain).instrument(tracing::Span::none()));
        Exporting { spans: spans.clone(), task }
    }

    /// Sends what is left.
    pub async fn end(self) {
        self.spans.queue().take();
        let _ = tokio::time::timeout(LAST, self.task).await;
    }
}

async fn send_all(spans: Spans, mut ended: mpsc::Receiver<Ended>, url: Url, plain: Plain) {
    let mut is_well = true;
    while let Some(first) = ended.recv().await {
        let mut batch = vec![first];
        let more = async {
            while batch.len() < AT_ONCE
                && let Some(next) = ended.recv().await
            {
                batch.push(next);
            }
        };
        let _ = tokio::time::timeout(PATIENCE, more).await;
        let body = otlp::body(&batch).to_string();
        let sent = match tokio::time::timeout(ANSWER, plain.post(&url, body.into())).await {
            Err(_) => Err("it did not answer in time".to_owned()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(status)) if status.is_success() => Ok(()),
            Ok(Ok(status)) => Err(format!("it answered {status}")),
        };
        if let Err(why) = &sent {
            let dropped =
                spans.0.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed) + batch.len() as u64;
            if is_well {
                tracing::warn!(%url, why, dropped, "spans cannot be sent; they are dropped until they can");
            }
        } else if !is_well {
            let dropped = spans.0.dropped.load(Ordering::Relaxed);
            tracing::info!(%url, dropped, "spans are sent again");
        }
        is_well = sent.is_ok();
    }
}
