//! The language: YAML text → runbook → [`Graph`], with every mistake found at once and shown at its place.
//!
//! Read first: [`Node`] (text with places), [`read()`] (a tree becomes a Rust type, or a list of mistakes),
//! [`Graph`] (what the compiler makes).
//!
//! One mechanism serves every authored file. The Rust type is the single source: its JSON Schema checks the tree and
//! is what editors use, so editor, checker and type cannot disagree.
//!
//! **Rule:** nothing here does I/O or reads a clock, and no text makes it panic.

pub mod alerts;
pub mod at;
pub mod authored;
pub mod codes;
pub mod compile;
mod de;
pub mod diagnostic;
pub mod environment;
pub mod graph;
pub mod inputs;
pub mod project;
pub mod read;
pub mod render_graph;
pub mod routing;
pub mod said;
pub mod schema;
pub mod service;
pub mod testfile;
pub mod yaml;

pub use alerts::{Alerts, compile_alerts};
pub use at::{At, Keyed};
pub use codes::{Code, explain};
pub use compile::{Compiled, compile, compile_bundle};
pub use diagnostic::{Diagnostic, Diagnostics, FileId, Severity, Source, Span, nearest, quoted};
pub use environment::{Environment, TargetBindings, read_environment};
pub use graph::{Bundle, Graph, Step, StepIndex};
pub use inputs::{Given, InputProblem, check_inputs};
pub use project::{Project, read_project};
pub use read::{NoHooks, Place, SchemaHooks, check_entry, check_schema, read};
pub use routing::route_alert;
pub use testfile::{Tests, check_tests, read_tests};
pub use yaml::{Key, Node, NodeKind, Scalar, parse};
