//! A Toolforge made to measure: the same number of tools and the same seed always give the same directory, the same
//! tool homes and the same tables, byte for byte.
//!
//! Read first: [`World`] (what there is), then [`oracle`] (what the tables must contain, worked out without any of
//! Farrier's own code), then [`Tables::drifted`] (a table that has fallen behind, with the list of differences).
//!
//! The worlds are friendly in bulk and nasty in detail: nested tools, members that are gone, names with `_` and of 1
//! and 32 characters, 4-byte characters, texts that look like SQL and LDAP filters, broken JSON, files that are not
//! UTF-8, not readable, not files at all, or links to somewhere else. Small worlds get the same nasty details as large ones.
//!
//! Only tests and benchmarks use this crate.

mod homes;
mod ldif;
mod names;
pub mod oracle;
mod random;
mod tables;
mod world;

pub use tables::{Dialect, Differences, DriftCounts, Drifted, Tables, ToolRow, UserRow};
pub use world::{File, Home, Member, Person, Tool, World};
