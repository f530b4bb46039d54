//! The language: YAML text → runbook → [`Graph`], with every mistake found at once and shown at its place.
pub mod graph;
pub use graph::{Bundle, Graph, Step, StepIndex};
