//! HTTP to the places that an environment names, and to no others: what the plugins that speak HTTP share. Their TLS
//! serves the mail plugin too.
//!
//! Read first: [`Endpoint`] (what an environment says of a place), [`Request`] and [`Answer`], then [`Web`], which
//! [`Client`] does with a real server and each plugin's stand-in without one.
//!
//! **Rules.** The address is the environment's; a runbook adds path segments, parameters and a body, each encoded, so
//! no value reaches another place. Every address that a name resolves to is checked against [`Networks`] when a
//! connection is made. Redirects are not followed, proxies of the process's environment are not used, and an answer
//! has a largest size. Credentials are in no error and in no `Debug`.

mod answer;
mod client;
mod endpoint;
mod names;
mod network;
mod record;
mod request;
mod tls;

pub use answer::{Answer, refused};
pub use client::{Client, Web};
pub use endpoint::{Account, Endpoint};
pub use network::{Network, Networks};
pub use record::RecordFile;
pub use request::{Method, Query, Request, segment};
pub use tls::{ClientIdentity, roots, tls_config};
