//! The service from outside: the real binary, its sockets and its answers.
//!
//! Read first: `service.rs` (a service in a project of its own, and plain HTTP to it).

#[path = "../common/mod.rs"]
mod common;

mod alertmanager;
mod demo;
mod doubts;
mod edges;
mod exporter;
mod hostile;
mod lives;
mod logins;
mod progress;
mod rights;
mod service;
mod stores;
mod telemetry;
mod terminal;
mod through;
mod tls;
mod units;
mod worker;
