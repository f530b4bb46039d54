//! The helper: the same work in a process of its own that may do what Farrier's own process may not, or that runs where
//! the disk is.
//!
//! Who decides what: the environment says how the helper is started (`via`, see `via`); the helper's own file says
//! which folders there are (`roots`), and nothing that it is sent can name another one; all that it knows to do is the
//! same code, with the same checks, as without it (`serve`, `work`). One request goes in, one answer comes out (`wire`),
//! and the process ends.
//!
//! On Farrier's side, `through` has whole actions done by a helper, and `send` the parts of other actions; both by way of
//! `talk`.
//!
//! Before it reads the request, the process gives up everything but those folders, as far as the kernel can do that
//! (`confine`).
//!
//! A helper whose caller goes away ends at once (`listen`). Its work stands a death at any moment, and goes on when the
//! step is tried again.

mod listen;
pub(crate) mod roots;
mod send;
mod serve;
mod talk;
pub(crate) mod through;
pub(crate) mod via;
pub(crate) mod wire;
mod work;

pub use serve::Helper;
pub(crate) use talk::odd;
pub use via::ViaConfig;
