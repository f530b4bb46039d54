//! How the texts of many folders are read, as plain data: `files.read_many` without its expressions.

use std::time::Duration;

use farrier_model::Failure;
use serde::{Deserialize, Serialize};

use crate::beneath::Beneath;
use crate::pool::{Found, Item, Limits, read_all};
use crate::target::Files;

/// The same here and in a helper.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reading {
    pub(crate) root: String,
    pub(crate) parallel: u16,
    /// How long one file may take to answer.
    pub(crate) timeout: Duration,
    pub(crate) max_bytes: u64,
    pub(crate) max_total_bytes: u64,
}

impl Reading {
    /// Reads the items from folders of this machine.
    pub(crate) async fn here(&self, files: &Files, items: Vec<Item>) -> Result<Vec<Found>, Failure> {
        let root = files.root(&self.root, self.timeout).await?;
        let limits = Limits {
            parallel: usize::from(self.parallel.clamp(1, 256)),
            timeout: self.timeout,
            max_total: self.max_total_bytes,
        };
        read_all(Beneath::new(root, self.max_bytes), items, &limits, files.hanging()).await
    }
}
