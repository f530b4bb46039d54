//! A database server as a place of accounts and databases: [`Server`], which the adapters implement.
//!
//! Read first: [`AccountName`] and [`struct@Hash`], the only names and passwords that become part of a statement, then
//! [`Grants`], what an account may do. MariaDB's answers are the truth; the stand-in on SQLite does
//! the same over three tables.
//!
//! **Rule:** a password, also as a hash, is in a statement and nowhere else: [`struct@Hash`] can be neither printed nor stored,
//! and [`quietly`] takes it out of what a server says about a statement.

pub(crate) mod grants;
mod mariadb;
mod standin;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Secret, Value};
use sha1::{Digest as _, Sha1};

use crate::database::{Database, Fault, Session};
use grants::Grants;
pub(crate) use mariadb::MariaServer;
pub(crate) use standin::StandInServer;

/// The ways of one kind of server.
#[async_trait]
pub(crate) trait Server: Send + Sync {
    /// The accounts that there are, roles aside: all of them, or those of these names.
    async fn accounts(
        &self,
        session: &mut dyn Session,
        wanted: Option<&[AccountName]>,
    ) -> Result<BTreeMap<AccountName, AccountState>, Failure>;
    /// What an account may do; nothing when there is no such account.
    async fn grants(&self, session: &mut dyn Session, name: &AccountName) -> Result<Option<Grants>, Failure>;
    /// Runs one statement about accounts. It lasts at once, whatever becomes of the session.
    async fn perform(&self, session: &mut dyn Session, order: &Order<'_>) -> Result<(), Fault>;
    /// The names of all databases that are not the server's own.
    async fn databases(&self, session: &mut dyn Session) -> Result<Vec<String>, Failure>;
    /// How many bytes each of these databases takes, with its indexes, as the server estimates it. One without tables takes none.
    async fn sizes(
        &self,
        session: &mut dyn Session,
        names: &[String],
    ) -> Result<BTreeMap<String, u64>, Failure>;
    /// Removes a database with everything in it.
    async fn drop_database(&self, session: &mut dyn Session, name: &str) -> Result<(), Fault>;
}

/// One thing to do about an account.
pub(crate) enum Order<'a> {
    Create { name: &'a AccountName, hash: &'a Hash, max_user_connections: u32 },
    Password { name: &'a AccountName, hash: &'a Hash },
    Limit { name: &'a AccountName, max_user_connections: u32 },
    Lock { name: &'a AccountName, locked: bool },
    Drop { name: &'a AccountName },
    Grant { name: &'a AccountName, on: &'a grants::Scope, what: Vec<&'a str> },
    Revoke { name: &'a AccountName, on: &'a grants::Scope, what: Vec<&'a str> },
}

/// A name and a number of bytes.
fn size(row: &[Value]) -> Option<(String, u64)> {
    let bytes = row[1].as_int().and_then(|bytes| u64::try_from(bytes).ok())?;
    Some((row[0].as_str()?.to_owned(), bytes))
}

/// The server of a target, or why its accounts and databases cannot be managed.
pub(crate) fn of(database: &dyn Database) -> Result<&'static dyn Server, Failure> {
    let dialect = database.dialect();
    dialect.server().ok_or_else(|| {
        Failure::new(
            FailureKind::Refused,
            format!("this version does not manage accounts and databases of {}", dialect.name()),
        )
    })
}

/// `'s52503'@'%'`: a user and the hosts that it may come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AccountName {
    pub(crate) user: String,
    pub(crate) host: String,
}

impl AccountName {
    /// Checks both parts against the characters that names may have.
    pub(crate) fn new(user: &str, host: &str) -> Result<AccountName, Failure> {
        let wrong = |message: String| Err(Failure::new(FailureKind::Input, message));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if user.is_empty() || user.len() > 80 || !user.chars().all(plain) {
            return wrong(format!(
                "`{}` cannot be the name of an account here: up to 80 letters, digits, `_`, `-` and `.`",
                user.escape_debug()
            ));
        }
        if host.is_empty()
            || host.len() > 255
            || !host.chars().all(|c| plain(c) || matches!(c, '%' | ':' | '/'))
        {
            return wrong(format!(
                "`{}` cannot be the hosts of an account here: a name, an address, or `%` for all",
                host.escape_debug()
            ));
        }
        Ok(AccountName { user: user.to_owned(), host: host.to_owned() })
    }

    /// As a statement names it.
    fn quoted(&self) -> String {
        format!("'{}'@'{}'", self.user, self.host)
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.host)
    }
}

/// What a password is compared and set by: `*` and 40 digits, as `PASSWORD()` gives. It shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hash(String);

impl Hash {
    /// The hash of a password.
    pub(crate) fn of(password: &Secret) -> Hash {
        let twice = Sha1::digest(Sha1::digest(password.reveal().as_bytes()));
        Hash(format!("*{}", hex::encode_upper(twice)))
    }

    /// Reads a stored one, in either case of its digits; nothing when it is none.
    pub(crate) fn stored(text: &str) -> Option<Hash> {
        let digits = text.strip_prefix('*')?;
        (digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then(|| Hash(text.to_ascii_uppercase()))
    }

    /// The text, for the statement that sets it and the table that keeps it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// How an account is.
pub(crate) struct AccountState {
    /// Nothing when it logs in by other means than a password of the usual kind.
    pub(crate) hash: Option<Hash>,
    pub(crate) locked: bool,
    /// 0 for no limit of its own.
    pub(crate) max_user_connections: u32,
}

/// What a server said about a statement, without the hash that the statement had.
pub(crate) fn quietly(mut fault: Fault, hash: &Hash) -> Fault {
    if fault.failure.message.to_ascii_uppercase().contains(&hash.0) {
        fault.failure.message = "the server did not accept the statement that sets a password".into();
    }
    fault
}

/// Why text cannot be the name of a database that Farrier dumps or drops, or nothing when it can.
pub(crate) fn database_name_error(name: &str) -> Option<String> {
    let shown = name.escape_debug();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$');
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Some(format!(
            "`{shown}` cannot be the name of a database here: up to 64 letters, digits, `_`, `-` and `$`"
        ));
    }
    let own = ["mysql", "information_schema", "performance_schema", "sys"];
    own.iter().any(|own| name.eq_ignore_ascii_case(own)).then(|| format!("`{name}` is the server's own"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_accounts_need_no_escaping() {
        for (user, host) in [("s52503", "%"), ("tools.wm-lol", "10.0.0.0/255.0.0.0"), ("u_1", "::1")] {
            assert_eq!(AccountName::new(user, host).unwrap().to_string(), format!("{user}@{host}"));
        }
        let long = "a".repeat(81);
        for (user, host) in [
            ("", "%"),
            ("a'b", "%"),
            ("a`b", "%"),
            ("a\\", "%"),
            ("a b", "%"),
            ("a%", "%"),
            ("a@b", "%"),
            ("ä", "%"),
            ("a\0", "%"),
            (&long, "%"),
            ("a", ""),
            ("a", "'"),
            ("a", "a b"),
        ] {
            assert_eq!(
                AccountName::new(user, host).unwrap_err().kind,
                FailureKind::Input,
                "{user:?}@{host:?}"
            );
        }
    }

    #[test]
    fn hashes_are_those_of_the_server_and_stay_hidden() {
        // What `SELECT PASSWORD('password')` says.
        let hash = Hash::of(&Secret::new("password"));
        assert_eq!(hash.reveal(), "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19");
        assert!(Hash::stored("*2470c0c06dee42fd1618bb99005adca2ec9d1e19") == Some(hash.clone()));
        for wrong in [
            "",
            "2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19",
            "*24",
            "*x470C0C06DEE42FD1618BB99005ADCA2EC9D1E19",
        ] {
            assert!(Hash::stored(wrong).is_none(), "{wrong}");
        }
        let said =
            Failure::new(FailureKind::Refused, "near '*2470c0c06dee42fd1618bb99005adca2ec9d1e19' at line 1");
        assert!(!quietly(said.into(), &hash).failure.message.contains("2470"));
    }

    #[test]
    fn databases_are_named_exactly_and_never_the_servers_own() {
        for good in ["s52503__data", "s1__my-db", "u3__p", "a$b"] {
            assert_eq!(database_name_error(good), None);
        }
        for bad in
            ["", "mysql", "Sys", "information_schema", "a`b", "a%", "a.b", "a/b", "a b", "ä", &"a".repeat(65)]
        {
            assert!(database_name_error(bad).is_some(), "{bad}");
        }
    }
}
