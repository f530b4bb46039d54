//! Chaos: the real binary is killed at its commits, between them and at random, loses power, is told to stop, and runs
//! what kills it. What happened outside is held against a ledger that the effects themselves write.
//!
//! The short form runs with all other tests. `cargo xtask chaos --minutes N [--seed S]` runs the long form: it sets
//! `FARRIER_CHAOS_MINUTES` and `FARRIER_CHAOS_SEED`, and every test goes on until it has tried everything, or its time
//! is over. A seed repeats a failure in kind, not in its instant.
//!
//! Read first: `world.rs` (the ledger and what must hold of it), then `form.rs` (how much is tried), `blows.rs` (how
//! the binary is killed).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../common/mod.rs"]
mod common;

mod blows;
mod form;
mod leftovers;
mod mixed;
mod poison;
mod power;
mod secrets;
mod service;
#[path = "../serving/service.rs"]
#[expect(dead_code, reason = "the tests of the service use the rest")]
mod serving;
mod stopping;
mod tattlers;
mod trees;
mod undoing;
mod world;
