//! One suite for all databases: each case runs on SQLite, on a real MariaDB and on a real PostgreSQL.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a case that cannot go on has failed")]

mod execute;
mod faults;
mod query;
mod server;
mod sync;
mod world;
