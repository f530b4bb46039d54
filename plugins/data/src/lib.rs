//! The `data` plugin: reshaping what other steps have read. Nothing here touches the world, and every action is linear
//! in its input: what a runbook would otherwise do with nested loops is one pass to build an index and one to use it.
//!
//! Read first: [`Rows`] (one row per item, with joins), then [`Index`] and [`Diff`]. [`Let`] names a value.
//!
//! **Rule:** outputs share memory with inputs. A cell that an expression only passes on is a reference count, and the
//! rows of a table share one set of column names.

mod diff;
mod index;
mod keyed;
mod let_;
mod rows;

pub use diff::{Changed, Diff, Differences};
pub use index::{Index, Indexed};
pub use keyed::{Duplicates, ItemName};
pub use let_::{Let, Named};
pub use rows::{LookupInput, Row, Rows, Table};

use farrier_action::{ActionRegistry, Planned, RegistryError};
use farrier_model::Fidelity;

/// Adds the plugin's actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.action::<Diff>()?;
    registry.action::<Index>()?;
    registry.action::<Let>()?;
    registry.action::<Rows>()
}

/// The plan of an output, or of none when it depends on something known only later.
fn planned<O>(output: Option<O>) -> Planned<O> {
    match output {
        Some(output) => Planned::known(output),
        None => Planned { fidelity: Fidelity::Deferred, ..Planned::described(Vec::new()) },
    }
}

#[cfg(test)]
mod testing;
