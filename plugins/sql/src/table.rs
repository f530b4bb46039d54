//! What the catalog says of a table: [`Table`], its columns and its unique keys; and [`TableName`], the only names
//! that ever become part of a statement.

use std::borrow::Cow;
use std::fmt;

use farrier_model::{Failure, FailureKind};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::column::Column;

/// Longer names are not names in MariaDB, and PostgreSQL would cut them.
const NAME_LENGTH: usize = 64;

/// Why text cannot be used as a name, or nothing when it can.
pub(crate) fn name_error(name: &str) -> Option<String> {
    let mut characters = name.chars();
    let first_fits = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first_fits || !characters.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$') {
        return Some(format!(
            "`{name}` cannot be a name here: letters, digits, `_` and `$`, and not a digit first"
        ));
    }
    (name.len() > NAME_LENGTH).then(|| format!("`{name}` is longer than {NAME_LENGTH} characters"))
}

/// The name of a table, perhaps with its schema or database: `tools`, `toollabs_p.tools`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableName {
    pub(crate) schema: Option<String>,
    pub(crate) table: String,
}

impl TableName {
    fn parse(text: &str) -> Result<TableName, String> {
        let (schema, table) = match text.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, text),
        };
        match schema.into_iter().chain([table]).find_map(name_error) {
            Some(reason) => Err(reason),
            None => Ok(TableName { schema: schema.map(str::to_owned), table: table.to_owned() }),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.table)
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TableName, D::Error> {
        TableName::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl JsonSchema for TableName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "table_name".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([A-Za-z_][A-Za-z0-9_$]*\\.)?[A-Za-z_][A-Za-z0-9_$]*$"
        })
    }
}

/// A table as the catalog describes it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: TableName,
    pub(crate) columns: Vec<Column>,
    /// The primary key and the other unique keys that hold for all rows.
    pub(crate) unique: Vec<UniqueKey>,
}

/// A unique key.
#[derive(Debug, Clone)]
pub(crate) struct UniqueKey {
    pub(crate) name: String,
    /// Positions in [`Table::columns`].
    pub(crate) columns: Vec<usize>,
}

impl Table {
    /// The place of a column; the error names the columns that there are.
    pub(crate) fn position(&self, column: &str) -> Result<usize, Failure> {
        self.columns.iter().position(|known| known.name == column).ok_or_else(|| {
            let known: Vec<&str> = self.columns.iter().map(|column| &*column.name).collect();
            Failure::new(FailureKind::Input, format!("table `{}` has no column `{column}`", self.name))
                .help(format!("its columns are: {}", known.join(", ")))
        })
    }

    /// No such table.
    pub(crate) fn missing(name: &TableName) -> Failure {
        Failure::new(FailureKind::Refused, format!("there is no table `{name}` that this account may read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_pass_an_allow_list() {
        for good in ["tools", "toollabs_p.tools", "_a$1", "T"] {
            assert_eq!(TableName::parse(good).map(|name| name.to_string()).as_deref(), Ok(good));
        }
        let long = "a".repeat(65);
        for bad in ["", ".", "a.", ".a", "a.b.c", "1a", "a b", "a`b", "a\"b", "a;b", "a-b", "é", "a\0", &long]
        {
            assert!(TableName::parse(bad).is_err(), "{bad}");
        }
    }
}
