//! SQL text from a runbook: [`Statement`], one statement cut at its `$name` parameters.
//!
//! The text is the author's, so it is not distrusted; but it must be one statement, its parameters must stand where
//! values can, and nothing in it may look like a placeholder that nobody fills. Comments are not sent.

use std::collections::BTreeMap;

use farrier_model::{Failure, FailureKind, Value};

use crate::dialect::{Dialect, Lexicon, Sql};
use crate::value::Param;

/// One statement, cut at its parameters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pieces: Vec<Piece>,
    /// The first word, in capitals.
    pub(crate) word: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Param(String),
}

/// Statements that cannot write begin with one of these. That the server refuses to write is the real barrier; the
/// list keeps out what is not part of a transaction at all, such as `SET GLOBAL` and `PRAGMA`.
const READS: [&str; 9] = ["SELECT", "WITH", "VALUES", "TABLE", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "("];

/// Statements that would end or change the transaction around them, or leave something behind on a shared connection.
const CONTROL: [&str; 22] = [
    "BEGIN",
    "START",
    "COMMIT",
    "ROLLBACK",
    "END",
    "ABORT",
    "SAVEPOINT",
    "RELEASE",
    "SET",
    "RESET",
    "PRAGMA",
    "ATTACH",
    "DETACH",
    "USE",
    "LOCK",
    "UNLOCK",
    "XA",
    "PREPARE",
    "EXECUTE",
    "DEALLOCATE",
    "LISTEN",
    "DISCARD",
];

impl Statement {
    /// Cuts `text`.
    pub(crate) fn parse(text: &str, dialect: &dyn Dialect) -> Result<Statement, Failure> {
        let mut cutter =
            Cutter { rest: text, lexicon: dialect.lexicon(), plain: String::new(), pieces: Vec::new() };
        cutter.cut()?;
        let Cutter { mut pieces, plain, .. } = cutter;
        let plain = plain.trim_end();
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.to_owned()));
        }
        let word = match pieces.first_mut() {
            Some(Piece::Text(first)) => {
                *first = first.trim_start().to_owned();
                let length = first.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(first.len());
                if first.starts_with('(') { "(".to_owned() } else { first[..length].to_ascii_uppercase() }
            }
            _ => String::new(),
        };
        if word.is_empty() {
            return Err(input("the SQL text has no statement"));
        }
        Ok(Statement { pieces, word })
    }

    /// Refuses what is not a question.
    pub(crate) fn must_read(&self) -> Result<(), Failure> {
        if READS.contains(&&*self.word) {
            return Ok(());
        }
        Err(input(format!("`{}` is not a statement that only reads", self.word))
            .help("begin with SELECT, WITH, VALUES, SHOW, DESCRIBE or EXPLAIN; to change something use `sql.execute`"))
    }

    /// Refuses what cannot stand in a transaction of ours.
    pub(crate) fn must_stand_alone(&self) -> Result<(), Failure> {
        if CONTROL.contains(&&*self.word) {
            return Err(input(format!("`{}` cannot be run here", self.word)).help(
                "each step is one transaction by itself, and its connection is shared with other steps",
            ));
        }
        Ok(())
    }

    /// Fills the parameters in. A list becomes one placeholder for each of its items.
    pub(crate) fn bind(
        &self,
        params: &BTreeMap<String, Value>,
        dialect: &'static dyn Dialect,
    ) -> Result<Sql, Failure> {
        let mut sql = Sql::new(dialect, "");
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => sql.push(text),
                Piece::Param(name) => {
                    let value = params.get(name).ok_or_else(|| {
                        input(format!("`${name}` has no value")).help(format!("add `{name}` under `params`"))
                    })?;
                    let of = |value: &Value| {
                        Param::of(value).map_err(|reason| input(format!("parameter `{name}`: {reason}")))
                    };
                    match value {
                        Value::List(items) if items.is_empty() => {
                            return Err(input(format!("the list for `${name}` is empty"))
                                .help("no SQL list may be empty; give the step an `if` that asks for the list's length"));
                        }
                        Value::List(items) => {
                            for (at, item) in items.iter().enumerate() {
                                let placeholder = sql.bind(of(item)?);
                                sql.push(if at == 0 { "" } else { ", " });
                                sql.push(&placeholder);
                            }
                        }
                        value => {
                            let placeholder = sql.bind(of(value)?);
                            sql.push(&placeholder);
                        }
                    }
                }
            }
        }
        if sql.params.len() > dialect.max_params() {
            return Err(input(format!(
                "the statement has {} values; {} at most",
                sql.params.len(),
                dialect.max_params()
            )));
        }
        Ok(sql)
    }
}

fn input(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Input, message)
}

struct Cutter<'t> {
    rest: &'t str,
    lexicon: &'static Lexicon,
    plain: String,
    pieces: Vec<Piece>,
}

impl Cutter<'_> {
    fn cut(&mut self) -> Result<(), Failure> {
        while let Some(character) = self.rest.chars().next() {
            if self.comment()? {
                continue;
            }
            match character {
                ';' => {
                    self.take(1, false);
                    self.only_space_follows()?;
                }
                '$' => self.dollar()?,
                '[' if self.lexicon.brackets => self.quoted(']', false)?,
                mark if self.lexicon.quotes.contains(&mark) => {
                    let escaped = self.plain.ends_with(['e', 'E'])
                        && !self.plain.chars().rev().nth(1).is_some_and(is_name_character);
                    let backslash = self.lexicon.backslash.contains(&mark)
                        || mark == '\'' && self.lexicon.e_strings && escaped;
                    self.quoted(mark, backslash)?;
                }
                // PostgreSQL's `a::int` is a cast; in SQLite no colon stands outside a placeholder.
                mark if self.lexicon.raw_placeholders.contains(&mark) => {
                    return Err(input(format!("the SQL text has `{mark}`, which would be a placeholder"))
                        .help("write parameters as `$name` and their values under `params`"));
                }
                other => self.take(other.len_utf8(), true),
            }
        }
        Ok(())
    }

    /// Moves on, keeping the text or not.
    fn take(&mut self, length: usize, keep: bool) {
        if keep {
            self.plain.push_str(&self.rest[..length]);
        }
        self.rest = &self.rest[length..];
    }

    /// A comment becomes one space.
    fn comment(&mut self) -> Result<bool, Failure> {
        let line = self.rest.starts_with("--") || self.lexicon.hash_comments && self.rest.starts_with('#');
        // In MariaDB two hyphens begin a comment only before a space; `5--3` is a subtraction.
        let line = line
            && !(self.lexicon.hash_comments
                && self.rest.starts_with("--")
                && self.rest[2..].chars().next().is_some_and(|next| !next.is_whitespace()));
        if line {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.take(end, false);
        } else if self.rest.starts_with("/*!") || self.rest.starts_with("/*M!") {
            return Err(input("the SQL text has a comment that MariaDB would run (`/*!`)")
                .help("write it as a statement"));
        } else if self.rest.starts_with("/*") {
            let mut depth = 0;
            let mut at = 0;
            loop {
                if self.rest[at..].starts_with("/*") && (depth == 0 || self.lexicon.nested_comments) {
                    depth += 1;
                    at += 2;
                } else if self.rest[at..].starts_with("*/") {
                    depth -= 1;
                    at += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    match self.rest[at..].chars().next() {
                        Some(character) => at += character.len_utf8(),
                        None => return Err(input("a comment is not closed (`*/` is missing)")),
                    }
                }
            }
            self.take(at, false);
        } else {
            return Ok(false);
        }
        self.plain.push(' ');
        Ok(true)
    }

    fn only_space_follows(&mut self) -> Result<(), Failure> {
        while !self.rest.is_empty() {
            if self.comment()? {
                continue;
            }
            if !self.rest.starts_with(char::is_whitespace) {
                return Err(input("the SQL text has several statements")
                    .help("give each statement a step of its own"));
            }
            let length = self.rest.chars().next().map_or(0, char::len_utf8);
            self.take(length, false);
        }
        Ok(())
    }

    fn dollar(&mut self) -> Result<(), Failure> {
        let after = &self.rest[1..];
        let inside_name = self.plain.chars().next_back().is_some_and(is_name_character);
        if after.starts_with('$') {
            self.take(2, false);
            if self.lexicon.dollar_quotes && !inside_name {
                return Err(input("the SQL text has a dollar-quoted string")
                    .help("write the string between single quotes"));
            }
            self.plain.push('$');
            return Ok(());
        }
        let name: String = after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if name.is_empty() && inside_name {
            self.take(1, true);
            return Ok(());
        }
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(input(format!("`${name}` is not the name of a parameter"))
                .help("a name begins with a letter or `_`; write `$$` for a dollar sign"));
        }
        self.take(1 + name.len(), false);
        let text = std::mem::take(&mut self.plain);
        if !text.is_empty() {
            self.pieces.push(Piece::Text(text));
        }
        self.pieces.push(Piece::Param(name));
        Ok(())
    }

    fn quoted(&mut self, close: char, backslash: bool) -> Result<(), Failure> {
        let mut characters = self.rest.char_indices().skip(1).peekable();
        let mut kept = String::from(&self.rest[..1]);
        while let Some((at, character)) = characters.next() {
            kept.push(character);
            if character == '\\' && backslash {
                kept.extend(characters.next().map(|(_, next)| next));
            } else if character == '$' {
                let next = characters.peek().map(|(_, next)| *next);
                if next == Some('$') {
                    characters.next();
                } else if next.is_some_and(|next| next.is_ascii_alphabetic() || next == '_') {
                    let name: String = self.rest[at + 1..]
                        .chars()
                        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                        .collect();
                    return Err(input(format!("`${name}` stands inside a quoted text, where it would not be a value"))
                        .help(format!(
                            "remove the quotes: a parameter is a value already; to put it into a longer text write \
                             `CONCAT('…', ${name})`; a dollar sign is `$$`"
                        )));
                }
            } else if character == close {
                if characters.peek().is_some_and(|(_, next)| *next == close) && close != ']' {
                    kept.extend(characters.next().map(|(_, next)| next));
                    continue;
                }
                let end = at + character.len_utf8();
                self.plain.push_str(&kept);
                self.rest = &self.rest[end..];
                return Ok(());
            }
        }
        Err(input(format!("a quoted text is not closed (`{close}` is missing)")))
    }
}

fn is_name_character(character: char) -> bool {
    character.is_alphanumeric() || character == '_' || character == '$'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mariadb::MariaDb;
    use crate::postgres::PostgreSql;
    use crate::sqlite::SqliteFile;

    const ALL: [&dyn Dialect; 3] = [&MariaDb, &PostgreSql, &SqliteFile];

    fn bound(text: &str, dialect: &'static dyn Dialect, params: &[(&str, Value)]) -> Result<String, Failure> {
        let params = params.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Statement::parse(text, dialect)?.bind(&params, dialect).map(|sql| sql.text)
    }

    #[test]
    fn parameters_become_placeholders() {
        let name =
            [("a", Value::text("x")), ("b", Value::Int(1)), ("many", Value::list(vec![1.into(), 2.into()]))];
        for (text, mariadb, postgres) in [
            ("SELECT $a, $b", "SELECT ?, ?", "SELECT $1, $2"),
            ("SELECT $a, $a;  -- twice", "SELECT ?, ?", "SELECT $1, $2"),
            ("SELECT 1 WHERE 1 IN ($many)", "SELECT 1 WHERE 1 IN (?, ?)", "SELECT 1 WHERE 1 IN ($1, $2)"),
            ("SELECT 'it''s $$5; -- no', $a", "SELECT 'it''s $5; -- no', ?", "SELECT 'it''s $5; -- no', $1"),
            ("SELECT /* $c ; */ $b", "SELECT   ?", "SELECT   $1"),
            ("SELECT \"a;b\", $b", "SELECT \"a;b\", ?", "SELECT \"a;b\", $1"),
            ("SELECT a$$b, $b", "SELECT a$b, ?", "SELECT a$b, $1"),
        ] {
            assert_eq!(bound(text, &MariaDb, &name).unwrap(), mariadb, "{text}");
            assert_eq!(bound(text, &PostgreSql, &name).unwrap(), postgres, "{text}");
        }
        assert_eq!(bound(r"SELECT 'a\'', $b", &MariaDb, &name).unwrap(), r"SELECT 'a\'', ?");
        assert_eq!(bound(r"SELECT E'a\'', $b", &PostgreSql, &name).unwrap(), r"SELECT E'a\'', $1");
        assert_eq!(bound(r"SELECT 'a\', $b", &PostgreSql, &name).unwrap(), r"SELECT 'a\', $1");
        assert_eq!(bound("SELECT $b::int", &PostgreSql, &name).unwrap(), "SELECT $1::int");
        assert_eq!(bound("SELECT [a'b], $b", &SqliteFile, &name).unwrap(), "SELECT [a'b], ?");
        assert_eq!(bound("SELECT 5--3, $b # x", &MariaDb, &name).unwrap(), "SELECT 5--3, ?");
        assert_eq!(bound("SELECT /* a /* b */ c */ $b", &PostgreSql, &name).unwrap(), "SELECT   $1");
    }

    #[test]
    fn mistakes_are_input_errors_with_help() {
        let many: &[(&str, Value)] =
            &[("empty", Value::list(vec![])), ("map", Value::map([("a", Value::Null)]))];
        for (text, expected) in [
            ("SELECT '$a'", "inside a quoted text"),
            ("SELECT \"$a\"", "inside a quoted text"),
            ("SELECT 'x $a y'", "inside a quoted text"),
            ("SELECT 1; DELETE FROM t", "several statements"),
            ("SELECT 1;; ", "several statements"),
            ("SELECT 'a", "not closed"),
            ("SELECT /* a", "not closed"),
            ("SELECT $1", "not the name"),
            ("SELECT $", "not the name"),
            ("SELECT /*! 1 */ 2", "comment that MariaDB would run"),
            ("", "no statement"),
            (" -- nothing", "no statement"),
            ("$empty", "no statement"),
            ("SELECT $nobody", "has no value"),
            ("SELECT 1 IN ($empty)", "is empty"),
            ("SELECT $map", "map cannot be"),
        ] {
            for dialect in ALL {
                let failure = bound(text, dialect, many).expect_err(text);
                assert_eq!(failure.kind, FailureKind::Input);
                assert!(failure.message.contains(expected), "{}: {text}: {failure}", dialect.name());
            }
        }
        assert!(bound("SELECT ?", &MariaDb, &[]).unwrap_err().message.contains("placeholder"));
        assert!(bound("SELECT :a", &SqliteFile, &[]).unwrap_err().message.contains("placeholder"));
        assert!(bound("SELECT $$$$x$$$$", &PostgreSql, &[]).unwrap_err().message.contains("dollar-quoted"));
        assert!(bound("SELECT '{}' ? 'a'", &PostgreSql, &[]).is_ok());
    }

    #[test]
    fn only_questions_are_questions() {
        for (text, reads) in [
            ("select 1", true),
            ("  (SELECT 1)", true),
            ("/* x */ WITH a AS (SELECT 1) SELECT * FROM a", true),
            ("UPDATE t SET a = 1", false),
            ("PRAGMA query_only = 0", false),
            ("SET GLOBAL read_only = 0", false),
            ("COMMIT", false),
        ] {
            assert_eq!(Statement::parse(text, &SqliteFile).unwrap().must_read().is_ok(), reads, "{text}");
        }
        assert!(Statement::parse("commit", &MariaDb).unwrap().must_stand_alone().is_err());
        assert!(Statement::parse("DELETE FROM t", &MariaDb).unwrap().must_stand_alone().is_ok());
    }
}
