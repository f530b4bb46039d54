//! What a directory can do, whoever answers: [`Directory`] reads, [`WritableDirectory`] writes.
//!
//! A server ([`crate::connection`]) and the embedded stand-in ([`crate::standin`]) implement both, so every action has
//! one code path. A refusal carries the protocol's result code ([`Refusal`]), because drift is told by it.

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Secret, Text};

use crate::dn::Dn;
use crate::filter::Filter;
use crate::schema::same_attribute;

/// The reading half.
#[async_trait]
pub(crate) trait Directory: Send + Sync {
    /// Hands every entry that `query` finds to `each`, in the directory's order. An answer that is not complete is a
    /// refusal, and so is a referral; `each` can end the search with a failure of its own.
    async fn search(&self, query: &Query, each: &mut Each<'_>) -> Result<(), Refusal>;

    /// Whether a password opens an entry, tried apart from everything else; never with an empty one.
    async fn accepts(&self, dn: &Dn, password: &Secret) -> Result<bool, Failure>;
}

/// Takes the entries of a search, one by one.
pub(crate) type Each<'a> = dyn FnMut(Entry) -> Result<(), Failure> + Send + 'a;

/// The writing half.
#[async_trait]
pub(crate) trait WritableDirectory: Directory {
    /// Whether `only_if` works (the Assertion control, RFC 4528).
    fn asserts(&self) -> bool;

    /// Makes all of `edits` or none.
    async fn modify(&self, dn: &Dn, edits: &[Edit], only_if: Option<&Filter>) -> Result<(), Refusal>;

    /// Adds an entry.
    async fn add(&self, dn: &Dn, attributes: &[Attribute]) -> Result<(), Refusal>;

    /// Deletes an entry that has none under it.
    async fn delete(&self, dn: &Dn, only_if: Option<&Filter>) -> Result<(), Refusal>;
}

/// What to search.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    /// Where.
    pub(crate) base: Dn,
    /// How far below.
    pub(crate) scope: Scope,
    /// Which entries.
    pub(crate) filter: Filter,
    /// Which attributes; `*` for all that are not operational.
    pub(crate) attributes: Vec<String>,
    /// More entries than this are a refusal.
    pub(crate) size_limit: Option<usize>,
    /// Entries per request; none to ask once.
    pub(crate) page_size: Option<usize>,
}

impl Query {
    /// One entry.
    pub(crate) fn entry(base: &Dn, attributes: Vec<String>) -> Query {
        Query {
            base: base.clone(),
            scope: Scope::Base,
            filter: Filter::any(),
            attributes,
            size_limit: None,
            page_size: None,
        }
    }
}

/// How far a search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// The base entry alone.
    Base,
    /// The entries directly under the base.
    One,
    /// The base and everything under it.
    #[default]
    Sub,
}

/// An entry as an answer holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name, in the directory's spelling.
    pub(crate) dn: String,
    /// Its attributes.
    pub(crate) attributes: Vec<Attribute>,
}

/// An attribute and its values; values have no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute {
    /// The name.
    pub(crate) name: Text,
    /// The values.
    pub(crate) values: Vec<Vec<u8>>,
}

impl Entry {
    /// The values of an attribute; none when it is absent.
    pub(crate) fn values(&self, name: &str) -> &[Vec<u8>] {
        self.attributes
            .iter()
            .find(|attribute| same_attribute(&attribute.name, name))
            .map_or(&[], |attribute| &attribute.values)
    }

    /// Whether an object class is among its classes.
    pub(crate) fn has_class(&self, class: &str) -> bool {
        self.values("objectClass").iter().any(|value| value.eq_ignore_ascii_case(class.as_bytes()))
    }
}

/// One part of a modify request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Adds values; a value that is there already is a refusal.
    Add(Attribute),
    /// Deletes values; a value that is not there is a refusal.
    Delete(Attribute),
}

/// Result codes of RFC 4511 (and 4528) that actions or tests tell apart.
pub(crate) mod code {
    pub(crate) const TIME_LIMIT_EXCEEDED: u32 = 3;
    pub(crate) const SIZE_LIMIT_EXCEEDED: u32 = 4;
    pub(crate) const NO_SUCH_ATTRIBUTE: u32 = 16;
    pub(crate) const INAPPROPRIATE_MATCHING: u32 = 18;
    pub(crate) const CONSTRAINT_VIOLATION: u32 = 19;
    pub(crate) const VALUE_EXISTS: u32 = 20;
    pub(crate) const INVALID_SYNTAX: u32 = 21;
    pub(crate) const NO_SUCH_OBJECT: u32 = 32;
    pub(crate) const INAPPROPRIATE_AUTHENTICATION: u32 = 48;
    pub(crate) const INVALID_CREDENTIALS: u32 = 49;
    pub(crate) const UNWILLING: u32 = 53;
    pub(crate) const NAMING_VIOLATION: u32 = 64;
    pub(crate) const OBJECT_CLASS_VIOLATION: u32 = 65;
    pub(crate) const NOT_ON_NON_LEAF: u32 = 66;
    pub(crate) const NOT_ON_RDN: u32 = 67;
    pub(crate) const ENTRY_EXISTS: u32 = 68;
    pub(crate) const ASSERTION_FAILED: u32 = 122;
}

/// Why a directory did not do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The result code, when the directory answered.
    pub(crate) code: Option<u32>,
    /// The failure to show.
    pub(crate) failure: Failure,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal { code: None, failure }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        refusal.failure
    }
}

impl Refusal {
    /// What a result code other than success means. `doing` says what was asked (``search under `dc=x` ``), `text` is
    /// the directory's own remark.
    pub(crate) fn of_code(code: u32, doing: &str, text: &str, matched: &str) -> Refusal {
        use FailureKind::{Conflict, Denied, Drift, Limit, Refused, Timeout, Unreachable};
        let (kind, what, help) = match code {
            1 => (Refused, "operations error", None),
            2 => (Refused, "protocol error", None),
            code::TIME_LIMIT_EXCEEDED => (Timeout, "the directory's time limit is exceeded", None),
            code::SIZE_LIMIT_EXCEEDED => (
                Limit,
                "there are more entries than the size limit allows",
                Some("narrow the base or the filter, or raise `size_limit`; the answer was not used"),
            ),
            7 => (Denied, "the authentication method is not supported", None),
            8 => (Denied, "stronger authentication is required", None),
            11 => {
                (Limit, "an administrative limit is exceeded", Some("ask for smaller pages with `page_size`"))
            }
            12 => (Refused, "the directory does not know a control that is needed", None),
            13 => (Denied, "confidentiality is required", Some("use `ldaps://` or StartTLS")),
            code::NO_SUCH_ATTRIBUTE => (Drift, "a value that should go is not there", None),
            17 => (Refused, "the attribute is not defined in the directory's schema", None),
            code::INAPPROPRIATE_MATCHING => (Refused, "the attribute cannot be compared this way", None),
            code::CONSTRAINT_VIOLATION => (Refused, "a constraint would be violated", None),
            code::VALUE_EXISTS => (Drift, "a value that should be added is there already", None),
            code::INVALID_SYNTAX => (Refused, "a value does not fit the attribute's syntax", None),
            code::NO_SUCH_OBJECT => (Refused, "there is no such entry", None),
            34 => (Refused, "the name is not valid", None),
            48 | 49 => (
                Denied,
                "the credentials are not accepted",
                Some("check `dn` and `password` in the environment"),
            ),
            50 => (Denied, "access is not sufficient", None),
            51 => (Conflict, "the directory is busy", None),
            52 => (Unreachable, "the directory is unavailable", None),
            53 => (Refused, "the directory is unwilling", None),
            code::NAMING_VIOLATION => (Refused, "the name does not fit the entry", None),
            code::OBJECT_CLASS_VIOLATION => (Refused, "the object classes do not allow it", None),
            code::NOT_ON_NON_LEAF => (Refused, "there are entries under it", None),
            code::NOT_ON_RDN => (Refused, "the attribute is part of the entry's name", None),
            code::ENTRY_EXISTS => (Drift, "the entry exists already", None),
            71 => (Refused, "several servers would be affected", None),
            code::ASSERTION_FAILED => (Drift, "the entry is not as the plan saw it", None),
            _ => (Refused, "the directory refused it", None),
        };
        let mut message = format!("cannot {doing}: {what} (LDAP result {code}");
        let text = text.trim().trim_end_matches('.');
        if !text.is_empty() {
            message.push_str(": ");
            message.push_str(text);
        }
        message.push(')');
        let mut failure = Failure::new(kind, message);
        if let Some(help) = help {
            failure = failure.help(help);
        } else if code == code::NO_SUCH_OBJECT && !matched.is_empty() {
            failure = failure.help(format!("the nearest entry that exists is `{matched}`"));
        }
        Refusal { code: Some(code), failure }
    }

    /// A referral, which is never followed: credentials must not travel to a server that the environment does not name.
    pub(crate) fn referral(doing: &str, to: &[String]) -> Refusal {
        let failure = Failure::new(
            FailureKind::Refused,
            format!(
                "cannot {doing}: the directory refers to `{}`, and referrals are not followed",
                to.join("`, `")
            ),
        )
        .help("bind the target to a server that holds these entries itself");
        Refusal { code: Some(10), failure }
    }
}

/// One entry, or nothing when there is none of that name.
pub(crate) async fn fetch(
    directory: &(impl Directory + ?Sized),
    dn: &Dn,
    attributes: Vec<String>,
) -> Result<Option<Entry>, Failure> {
    let mut found = None;
    let answer = directory
        .search(&Query::entry(dn, attributes), &mut |entry| {
            found = Some(entry);
            Ok(())
        })
        .await;
    match answer {
        Ok(()) => Ok(found),
        Err(Refusal { code: Some(code::NO_SUCH_OBJECT), .. }) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}
