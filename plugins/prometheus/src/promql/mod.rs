//! PromQL as text with parameters, and as far as it must be understood to leave old samples out.
//!
//! Read first: [`render()`] (values enter as strings and numbers, never as syntax), then [`fresh`].

mod fresh;
mod lexer;
mod render;

pub(crate) use fresh::not_older_than;
pub(crate) use lexer::squeezed;
pub(crate) use render::{Params, render};
