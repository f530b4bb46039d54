//! Alerts, from Alertmanager's webhook to what they do. Pure: "now" is an argument.
//!
//! Read first: [`Message`] (what Alertmanager sends), [`Matcher`] (its own syntax), [`Route`] (from alerts to a runbook),
//! [`Arrival`] (one alert under one route, ready to be stored), then [`decide()`]: what an arrival does, given what is
//! stored. The store calls it within the transaction that writes the outcome, so two requests cannot decide on the same
//! facts.
//!
//! **Rule:** labels and annotations are data. They are compared, bounded, and handed on as values; nothing here reads one
//! as a template, a pattern or a name.

mod arrival;
mod decide;
mod matcher;
mod payload;
mod route;

pub use arrival::{Arrival, Ignored, Routed, Rule, dedup_key, incident_key, scope};
pub use decide::{Counted, Decision, Facts, Held, LATE, Open, Resolution, decide, release};
pub use matcher::{BadMatcher, Matcher, Operation, matches_all, read_classic_matchers, read_matchers};
pub use payload::{Alert, BadMessage, MAX_ALERTS, MAX_BODY, MAX_DEPTH, Message, Status};
pub use route::{Fuse, Mode, OnResolved, Policy, Rate, Route};
