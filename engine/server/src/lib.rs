//! The service: API, metrics, live updates, intake of alerts and the clock, around one store.
//!
//! Read first: [`Service`] (what runs, and how it stops), [`routes`] (the one table of what there is and what it needs), the
//! guard around all routes in `guard.rs`, then the file of a resource under `api/`. [`wire`] holds what is read and written.
//!
//! **Rule:** nothing is answered that the table of routes does not name, and nothing that the guard has not let pass.

mod api;
mod app;
pub mod clock;
mod error;
mod guard;
pub mod intake;
mod launcher;
mod listen;
mod live;
mod login;
mod metrics;
mod notify;
pub mod openapi;
mod people;
mod reloading;
pub mod rights;
pub mod routes;
mod service;
mod tls;
pub mod wire;

pub use app::{App, Webhook};
pub use error::{ApiError, ErrorBody, ErrorCode, ErrorDetail};
pub use guard::USER_HEADER;
pub use listen::{Listeners, SOCKET, open_socket, through};
pub use live::{Live, Note};
pub use login::{Answer, Directory};
pub use metrics::{Metrics, States};
pub use notify::Notify;
pub use service::{AtStart, Policy, ReadPolicy, Service, Settings};
pub use tls::{Certificates, configure as configure_tls};
