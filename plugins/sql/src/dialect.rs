//! What differs between the databases: quoting, placeholders, comparisons, the catalog.

use async_trait::async_trait;
use farrier_model::Failure;

use crate::column::Column;
use crate::database::Session;
use crate::dump::Contents;
use crate::server::Server;
use crate::table::{Table, TableName};
use crate::value::Param;

/// The ways of a database. Adapters implement it; nothing else knows which database it talks to.
#[async_trait]
pub(crate) trait Dialect: Send + Sync {
    /// As messages call it.
    fn name(&self) -> &'static str;
    /// How its SQL text is cut into quoted parts, comments and the rest.
    fn lexicon(&self) -> &'static Lexicon;
    /// Around names.
    fn quote_mark(&self) -> char;
    /// The placeholder of the parameter with this number, from 1.
    fn placeholder(&self, number: usize) -> String;
    /// Opens a transaction that the server keeps from writing, with one view of the data for all its statements.
    fn begin_read(&self) -> &'static str;
    /// Opens a transaction that may write.
    fn begin_write(&self) -> &'static str;
    /// How many parameters one statement may have.
    fn max_params(&self) -> usize;
    /// How many rows one statement may name in its `WHERE`.
    fn max_rows(&self) -> usize;
    /// Stands between the columns and `VALUES` of an insert.
    fn insert_clause(&self) -> &'static str {
        ""
    }
    /// A column in a select list, in a form that [`Column::value`] understands.
    fn selected(&self, column: &Column) -> String {
        self.quoted(&column.name)
    }
    /// A placeholder as a value of a column's type.
    fn typed(&self, _column: &Column, placeholder: String) -> String {
        placeholder
    }
    /// True when the column holds exactly this value; null equals null.
    fn same(&self, column: &Column, placeholder: String) -> String;
    /// The value of a column's type, as [`Column::value`] gives it, as a parameter.
    fn param(&self, column: &Column, value: &farrier_model::Value) -> Result<Param, Failure>;
    /// The database's clock.
    fn clock(&self, clock: Clock) -> &'static str;
    /// Whether a statement that begins with this word commits by itself.
    fn commits_by_itself(&self, word: &str) -> bool;
    /// Whether equality of texts beyond ASCII is known only to the server.
    fn sort_key(&self, _column: &Column, _placeholder: String) -> Option<String> {
        None
    }
    /// The statement that takes the server's own limit of time from a session, where it has one.
    fn without_limit(&self) -> Option<&'static str> {
        None
    }
    /// Accounts, grants and databases, where this version can manage them.
    fn server(&self) -> Option<&'static dyn Server> {
        None
    }
    /// The databases of the server as text that makes them again, where this version can write it.
    fn contents(&self) -> Option<&'static dyn Contents> {
        None
    }
    /// Reads the catalog.
    async fn describe(&self, session: &mut dyn Session, name: &TableName) -> Result<Table, Failure>;
    /// The name of some foreign key that points at the table.
    async fn referenced_by(
        &self,
        session: &mut dyn Session,
        table: &Table,
    ) -> Result<Option<String>, Failure>;

    /// A name, quoted. It passed the allow-list, so it has no quote in it.
    fn quoted(&self, name: &str) -> String {
        let mark = self.quote_mark();
        format!("{mark}{}{mark}", name.replace(mark, ""))
    }

    /// A table's name, quoted.
    fn quoted_table(&self, name: &TableName) -> String {
        match &name.schema {
            Some(schema) => format!("{}.{}", self.quoted(schema), self.quoted(&name.table)),
            None => self.quoted(&name.table),
        }
    }
}

/// How a database's SQL is cut into parts.
#[derive(Debug)]
pub(crate) struct Lexicon {
    /// Marks that open and close a quoted part; the mark doubled stands for itself.
    pub(crate) quotes: &'static [char],
    /// The quotes in which a backslash takes the next character along; with `e_strings` only after an `E`.
    pub(crate) backslash: &'static [char],
    /// `E'…'` knows backslashes.
    pub(crate) e_strings: bool,
    /// `[…]` is a quoted name.
    pub(crate) brackets: bool,
    /// `#` begins a comment.
    pub(crate) hash_comments: bool,
    /// `/* /* */ */` is one comment.
    pub(crate) nested_comments: bool,
    /// `$$` outside quotes would open a quoted part.
    pub(crate) dollar_quotes: bool,
    /// Characters that would be placeholders of the driver's own.
    pub(crate) raw_placeholders: &'static [char],
}

/// A clock of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Date and time, UTC.
    Now,
    /// Seconds since 1970.
    UnixTime,
}

/// A statement under construction: its text and its parameters, in step.
pub(crate) struct Sql {
    pub(crate) dialect: &'static dyn Dialect,
    pub(crate) text: String,
    pub(crate) params: Vec<Param>,
}

impl Sql {
    pub(crate) fn new(dialect: &'static dyn Dialect, text: impl Into<String>) -> Sql {
        Sql { dialect, text: text.into(), params: Vec::new() }
    }

    /// Adds a parameter; its placeholder is for the caller to place.
    pub(crate) fn bind(&mut self, param: Param) -> String {
        self.params.push(param);
        self.dialect.placeholder(self.params.len())
    }

    /// Adds `column = value` by the column's own idea of equality, which an index serves.
    pub(crate) fn push_equal(
        &mut self,
        column: &Column,
        value: &farrier_model::Value,
    ) -> Result<(), Failure> {
        let placeholder = self.bind(self.dialect.param(column, value)?);
        let typed = self.dialect.typed(column, placeholder);
        let name = self.dialect.quoted(&column.name);
        self.text.extend([&*name, " = ", &*typed]);
        Ok(())
    }

    /// Adds "the column holds exactly this value".
    pub(crate) fn push_same(&mut self, column: &Column, value: &farrier_model::Value) -> Result<(), Failure> {
        if value.is_null() {
            let name = self.dialect.quoted(&column.name);
            self.text.extend([&*name, " IS NULL"]);
            return Ok(());
        }
        let placeholder = self.bind(self.dialect.param(column, value)?);
        let condition = self.dialect.same(column, placeholder);
        self.text.push_str(&condition);
        Ok(())
    }

    /// Adds a value of the column's type.
    pub(crate) fn push_value(
        &mut self,
        column: &Column,
        value: &farrier_model::Value,
    ) -> Result<(), Failure> {
        let placeholder = self.bind(self.dialect.param(column, value)?);
        let typed = self.dialect.typed(column, placeholder);
        self.text.push_str(&typed);
        Ok(())
    }

    pub(crate) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }
}
