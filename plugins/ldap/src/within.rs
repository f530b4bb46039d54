//! A directory of which only a part may be reached: [`Within`].
//!
//! The environment names the entry at the head of that part. It is held against every name that is searched under, read or
//! written, on its way to the directory, so no action and no input comes past it.

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Secret};

use crate::directory::{Attribute, Directory, Each, Edit, Query, Refusal, WritableDirectory};
use crate::dn::Dn;
use crate::filter::Filter;

/// A directory, as far as it lies at or under an entry.
pub(crate) struct Within<D> {
    pub(crate) directory: D,
    pub(crate) base: Dn,
}

impl<D> Within<D> {
    fn admits(&self, dn: &Dn) -> Result<(), Failure> {
        // A part of a key has an end, so no entry is taken for one with a longer name.
        if dn.key().starts_with(&self.base.key()) {
            return Ok(());
        }
        Err(Failure::new(
            FailureKind::Denied,
            format!("`{dn}` is not at or under `{}`, beyond which the target does not reach", self.base),
        )
        .help("if this is the right entry, widen `base` of the target"))
    }
}

#[async_trait]
impl<D: Directory> Directory for Within<D> {
    async fn search(&self, query: &Query, each: &mut Each<'_>) -> Result<(), Refusal> {
        self.admits(&query.base)?;
        self.directory.search(query, each).await
    }

    async fn accepts(&self, dn: &Dn, password: &Secret) -> Result<bool, Failure> {
        self.admits(dn)?;
        self.directory.accepts(dn, password).await
    }
}

#[async_trait]
impl<D: WritableDirectory> WritableDirectory for Within<D> {
    fn asserts(&self) -> bool {
        self.directory.asserts()
    }

    async fn modify(&self, dn: &Dn, edits: &[Edit], only_if: Option<&Filter>) -> Result<(), Refusal> {
        self.admits(dn)?;
        self.directory.modify(dn, edits, only_if).await
    }

    async fn add(&self, dn: &Dn, attributes: &[Attribute]) -> Result<(), Refusal> {
        self.admits(dn)?;
        self.directory.add(dn, attributes).await
    }

    async fn delete(&self, dn: &Dn, only_if: Option<&Filter>) -> Result<(), Refusal> {
        self.admits(dn)?;
        self.directory.delete(dn, only_if).await
    }
}
