//! Where the hashes of many passwords are kept: a table of another database.

use std::collections::BTreeMap;
use std::fmt;

use farrier_action::{ReadCx, Target};
use farrier_model::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::Deserialize;
use std::ops::ControlFlow;

use crate::dialect::Sql as Statement;
use crate::server::Hash;
use crate::table::{TableName, name_error};
use crate::target::Sql;
use crate::value::{Cell, Param};

/// How many accounts one question names.
const AT_ONCE: usize = 1_000;

/// A table that keeps the hash of each account's password, as MariaDB's `PASSWORD()` makes it. The hashes are read when
/// they are needed, and are shown nowhere.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredHashes {
    /// The database with the table.
    target: Target<Sql>,
    /// The table.
    table: TableName,
    /// The column with the account's name.
    account: String,
    /// The column with the hash.
    hash: String,
}

impl fmt::Display for StoredHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} of {}", self.table, self.hash, self.target.alias())
    }
}

impl StoredHashes {
    /// The hashes of these accounts. One whose hash is no hash is an error that names it; one that the table does not
    /// have is left out.
    pub(crate) async fn read(&self, cx: &ReadCx, users: &[&str]) -> Result<BTreeMap<String, Hash>, Failure> {
        for column in [&self.account, &self.hash] {
            if let Some(error) = name_error(column) {
                return Err(Failure::new(FailureKind::Input, format!("`password_hashes`: {error}")));
            }
        }
        let reader = cx.reader(&self.target).await?;
        let dialect = reader.0.dialect();
        let mut session = reader.0.read().await.map_err(|failure| failure.at(self.target.alias()))?;
        let mut found = BTreeMap::new();
        for users in users.chunks(AT_ONCE) {
            let mut sql = Statement::new(
                dialect,
                format!(
                    "SELECT {account}, {} FROM {} WHERE {account} IN (",
                    dialect.quoted(&self.hash),
                    dialect.quoted_table(&self.table),
                    account = dialect.quoted(&self.account),
                ),
            );
            for (at, user) in users.iter().enumerate() {
                let placeholder = sql.bind(Param::Text((*user).into()));
                sql.push(if at == 0 { "" } else { ", " });
                sql.push(&placeholder);
            }
            sql.push(")");
            let read = session
                .fetch(&sql.text, &sql.params, &mut |row| {
                    let user = row.cell(0)?.to_value().to_string();
                    let Some(hash) = of_cell(&row.cell(1)?) else {
                        let message = format!("`{user}` has no hash of a password in {self}");
                        return Err(Failure::new(FailureKind::Refused, message));
                    };
                    found.insert(user, hash);
                    Ok(ControlFlow::Continue(()))
                })
                .await;
            if let Err(fault) = read {
                session.rollback().await;
                return Err(fault.failure.at(self.target.alias()));
            }
        }
        session.rollback().await;
        Ok(found)
    }
}

/// The hash that a column holds, as text or as bytes.
pub(crate) fn of_cell(cell: &Cell<'_>) -> Option<Hash> {
    let text = match cell {
        Cell::Text(text) => text.as_ref(),
        Cell::Bytes(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
        _ => "",
    };
    Hash::stored(text.trim_end_matches(['\0', ' ']))
}
