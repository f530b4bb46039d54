//! One database of a test's own, on whichever server: what MariaDB and PostgreSQL have in common.

use anyhow::Result;

use crate::or_panic;
use crate::server_url::ServerUrl;
use crate::statements;

/// What a kind of server does in its own way.
pub(crate) struct Dialect {
    /// Runs SQL as the administrator, outside the statement log.
    pub(crate) run: fn(&ServerUrl, Option<&str>, &str) -> Result<String>,
    /// The statements of a database's users, oldest first.
    pub(crate) statements: fn(&Database) -> Vec<String>,
    /// Takes the database and its users away.
    pub(crate) drop: fn(&Database),
}

impl std::fmt::Debug for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialect")
    }
}

/// One database of a test's own. It goes when this is dropped.
#[derive(Debug)]
pub struct Database {
    pub(crate) server: ServerUrl,
    pub(crate) name: String,
    pub(crate) reader: String,
    pub(crate) dialect: &'static Dialect,
}

impl Database {
    /// `SCHEME://USER:PASSWORD@127.0.0.1:PORT/NAME`, as a user of this database's own who may do everything on the
    /// server. What this user does is what [`Database::statements`] tells.
    pub fn url(&self) -> String {
        self.url_of(&self.name)
    }

    /// The same database as a user who may only read it. [`Database::statements`] tells what this user does, too.
    pub fn reader_url(&self) -> String {
        self.url_of(&self.reader)
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs statements, separated by `;`, as the server's administrator and unseen by [`Database::statements`].
    /// Returns the rows: columns separated by tabs, no headings, NULL as `NULL`; from MariaDB, line ends within values as `\n`.
    #[track_caller]
    pub fn exec(&self, sql: &str) -> String {
        or_panic(self.try_exec(sql), "cannot run SQL")
    }

    /// As [`Database::exec`], for statements that may fail.
    pub fn try_exec(&self, sql: &str) -> Result<String> {
        (self.dialect.run)(&self.server, Some(&self.name), sql)
    }

    /// Every statement that came through [`Database::url`] and [`Database::reader_url`] so far, oldest first; of PostgreSQL, to
    /// this database.
    #[track_caller]
    pub fn statements(&self) -> Vec<String> {
        (self.dialect.statements)(self)
    }

    /// Those of [`Database::statements`] that write, or may.
    #[track_caller]
    pub fn writes(&self) -> Vec<String> {
        statements::writes(&self.statements())
    }

    fn url_of(&self, user: &str) -> String {
        let url = ServerUrl { user: user.to_owned(), password: user.to_owned(), ..self.server.clone() };
        format!("{url}/{}", self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        (self.dialect.drop)(self);
    }
}
