//! `farrier files-helper`: the work with files in a process of its own, on this machine and behind a real sshd, on the real
//! binary. As the superuser, since homes belong to other accounts.
//!
//! Read first: `far.rs` (how files are put behind a helper), then `steps.rs` (steps that a helper does as a whole),
//! `snapshots.rs` (the same where the disk has some), `reading.rs` (`updatetools`, whose homes are on another host), `credentials.rs` (files of database accounts there) and
//! `laws.rs` (what all actions keep).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../common/mod.rs"]
mod common;

mod credentials;
mod far;
mod hostile;
mod laws;
mod reading;
mod snapshots;
mod steps;
