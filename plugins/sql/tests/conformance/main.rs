//! One suite for all databases: each case runs on SQLite, on a real MariaDB and on a real PostgreSQL.

mod execute;
mod faults;
mod query;
mod sync;
mod world;
