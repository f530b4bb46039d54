//! When a schedule is due, and what becomes of each due time. Pure: "now" is an argument.
//!
//! Read first: [`Spec`] (what a runbook says), [`Calendar`] (its due times), then [`verdicts`] (which of the pending due times
//! start a run) and [`settle`] (what a run that is still going makes of them).
//!
//! ```text
//! Spec ─▶ Calendar ─next, last─▶ due times ─verdicts─▶ start / skipped / coalesced ─settle─▶ one decision each
//! ```
//!
//! **A due time is nominal.** It is what the pattern says; the start follows after the schedule's share of the jitter, which is a
//! function of its id alone. Runs are named by nominal times, so neither jitter nor a restart moves them.
//!
//! **Intervals follow elapsed time.** `every: 2m` is due at each whole multiple of two minutes since 1970 in UTC, wherever and
//! whenever the service began.
//!
//! **Patterns follow the wall clock** of their zone, by the time zone database that is part of the program. What a change of
//! the clock means is [`ClockChange`].

mod calendar;
mod decide;
mod pattern;
mod spec;
mod zone;

pub use calendar::Calendar;
pub use decide::{
    Decision, Jump, Live, ON_TIME, Pending, Skip, TURN, Turn, Verdict, WINDOW, What, is_jump, settle,
    verdicts,
};
pub use pattern::{Pattern, PatternError};
pub use spec::{CatchUp, ClockChange, Due, Overlap, ScheduleId, Spec};
pub use zone::{UnknownZone, tzdb_version, zone, zones};
