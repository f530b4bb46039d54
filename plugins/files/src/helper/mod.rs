//! The helper: the same work in a process of its own that may do what Farrier's own process may not, or that runs where
//! the disk is.
//!
//! Who decides what: the environment says how the helper is started (`via`, see `via`); the helper's own file says
//! which folders there are (`roots`), and nothing that it is sent can name another one; the five actions that it knows
//! are the same code, with the same checks, as without it (`serve`). One line of JSON goes in, one comes out (`wire`),
//! and the process ends.
//!
//! Before it reads the request, the process gives up everything but those folders, as far as the kernel can do that
//! (`confine`).
//!
//! A helper whose caller goes away ends at once. Its work stands a death at any moment, and goes on when the step is
//! tried again.

mod confine;
mod roots;
mod serve;
pub(crate) mod through;
pub(crate) mod via;
mod wire;

pub use serve::Helper;
#[cfg(test)]
pub(crate) use serve::answer_line;
pub use via::ViaConfig;
