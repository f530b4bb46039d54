//! Database accounts on real servers: MariaDB servers with the list of accounts, with ToolsDB and with replicas, one of which is
//! down; for those who get accounts, OpenLDAP and the service that keeps files and variables. As the superuser, since files
//! belong to other accounts.
//!
//! Read first: `site.rs` (the servers), then `populate.rs` (accounts are made), `delete.rs` (and removed), `variables.rs`
//! (what is in the files of tools is in their variables), `harvest.rs` (what is on each server).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../common/mod.rs"]
mod common;

mod api;
mod delete;
mod harvest;
mod populate;
mod site;
mod variables;
