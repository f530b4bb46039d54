//! Spans of runs and steps for a collector of OpenTelemetry: `telemetry:` in the service file.
//!
//! Read first: [`Spans`] (hears of spans as the log does), then `otlp.rs` (what is sent) and `send.rs` (how). A trace is a run with the
//! runs that it starts. A run that waits is let go, so it has a span for each time it was taken up.
//!
//! **Rule:** no run waits for a collector. What cannot be sent is counted and dropped, and a queue is never longer than [`QUEUE`].

mod otlp;
mod send;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

pub use send::Exporting;

/// Spans that wait to be sent.
const QUEUE: usize = 4_096;

/// A span that is over.
#[derive(Debug, Clone, PartialEq)]
struct Ended {
    trace: [u8; 16],
    id: [u8; 8],
    parent: Option<[u8; 8]>,
    name: String,
    began: SystemTime,
    ended: SystemTime,
    fields: Vec<(&'static str, String)>,
    failure: Option<String>,
}

/// Hears of the spans of runs and steps. Cloning shares it; without [`Exporting`], it does nothing.
#[derive(Clone, Default)]
pub struct Spans(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Where they go, while somebody sends them.
    queue: Mutex<Option<mpsc::Sender<Ended>>>,
    dropped: AtomicU64,
}

/// A span's place in its trace.
#[derive(Debug, Clone, Copy)]
struct Place {
    trace: [u8; 16],
    id: [u8; 8],
}

/// What is kept of a span while it is open.
struct Open {
    place: Place,
    parent: Option<[u8; 8]>,
    began: SystemTime,
    said: Said,
}

/// The fields of a span or an event.
#[derive(Default)]
struct Said(Vec<(&'static str, String)>);

impl Said {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }
}

impl Spans {
    fn queue(&self) -> MutexGuard<'_, Option<mpsc::Sender<Ended>>> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, span: Ended) {
        let sent = self.queue().as_ref().is_none_or(|queue| queue.try_send(span).is_ok());
        if !sent {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if self.queue().is_none() {
            return;
        }
        let Some(span) = context.span(id) else { return };
        let mut said = Said::default();
        attributes.record(&mut said);
        let Some(run) = said.get("run_id").and_then(|run| run.parse::<uuid::Uuid>().ok()) else { return };
        let around =
            span.parent().and_then(|parent| parent.extensions().get::<Open>().map(|open| open.place));
        let trace = match around {
            Some(place) => place.trace,
            // A plan that is no run's has no id.
            None if run.is_nil() => uuid::Uuid::new_v4().into_bytes(),
            None => run.into_bytes(),
        };
        let mut own = [0; 8];
        own.copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[..8]);
        let place = Place { trace, id: own };
        let open = Open { place, parent: around.map(|place| place.id), began: SystemTime::now(), said };
        span.extensions_mut().insert(open);
    }

    /// What is said of a failure belongs to the attempt that failed.
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event) else { return };
        if event.metadata().target().starts_with("farrier_exec")
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            let mut said = Said::default();
            event.record(&mut said);
            if let Some(failure) = said.get("failure") {
                open.said.0.push(("failure", failure.to_owned()));
            }
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(Open { place, parent, began, said }) = span.extensions_mut().remove::<Open>() else {
            return;
        };
        let failure = said.get("failure").map(ToOwned::to_owned);
        let of = |name| said.get(name).unwrap_or_default();
        let name = match span.name() {
            "step" => format!("{} {}", of("doing"), of("node")),
            _ => of("runbook").to_owned(),
        };
        let fields = said.0.into_iter().filter(|(field, _)| *field != "failure").collect();
        let ended = SystemTime::now();
        self.put(Ended { trace: place.trace, id: place.id, parent, name, began, ended, fields, failure });
    }
}
