//! The service from outside: the real binary, its sockets and its answers.

#[path = "../common/mod.rs"]
mod common;

mod stores;
