//! The life of tools on real servers: OpenLDAP, MariaDB, homes on disk that belong to their accounts; Kubernetes is the
//! embedded one. Farrier goes by a clock that the tests move. As the superuser, since homes belong to other accounts.
//!
//! Read first: `site.rs` (the servers, and tools on them), then `whole.rs` (a life from its beginning to its end), `kills.rs`
//! (T39: deaths while a tool is archived and deleted), `remote.rs` (the same with every folder on another host).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../chaos/blows.rs"]
mod blows;
#[path = "../common/mod.rs"]
mod common;
#[path = "../helper/far.rs"]
mod far;

mod kills;
mod remote;
mod rounds;
mod site;
mod trouble;
mod whole;
