//! People who log in: a name and a password held against a directory.
//!
//! Read first: [`Login`] and [`Outcome`]. The side that reads finds the person and the groups with an account of its own; the
//! password is tried over a connection that is opened for it, under the same rules as every other, and closed again.
//!
//! **Rule:** what somebody typed is a value of a filter and never part of its syntax, the name that binds is the directory's own,
//! and an empty password is refused before anything is asked, because a directory takes it for a visitor without a name.

use std::collections::BTreeMap;

use farrier_model::{Failure, FailureKind, Secret, Value};

use crate::directory::{Entry, Query, Scope, code};
use crate::dn::{Dn, Rdn};
use crate::filter::Filter;
use crate::schema::same_attribute;
use crate::target::LdapReader;

/// The longest name and the longest password that are tried.
const LONGEST_NAME: usize = 256;
const LONGEST_PASSWORD: usize = 1024;
/// Groups of one person, beyond which the answer is a failure.
const MOST_GROUPS: usize = 10_000;

/// Where people and their groups are.
#[derive(Debug, Clone)]
pub struct Login {
    people: Dn,
    person: String,
    name: String,
    groups: Dn,
    member: String,
}

/// What the directory says of a name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody has that name.
    Unknown,
    /// That is not their password, or they may not use it.
    Refused {
        /// Their name, as the directory spells it.
        name: String,
    },
    /// It is theirs.
    Member {
        /// Their name, as the directory spells it.
        name: String,
        /// The names of their groups.
        groups: Vec<String>,
    },
}

impl Login {
    /// Reads what a service file says: where people are, the filter that finds one by `$name`, the attribute with their name,
    /// where groups are, and the attribute of a group with its members.
    ///
    /// # Errors
    /// What is no name, no filter, or no attribute.
    pub fn new(people: &str, person: &str, name: &str, groups: &str, member: &str) -> Result<Login, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let dn = |text: &str| Dn::parse(text).map_err(|error| input(error.to_string()));
        for attribute in [name, member] {
            if !crate::schema::is_attribute_name(attribute) {
                return Err(input(format!("`{attribute}` is not the name of an attribute")));
            }
        }
        let login = Login {
            people: dn(people)?,
            person: person.to_owned(),
            name: name.to_owned(),
            groups: dn(groups)?,
            member: member.to_owned(),
        };
        if login.find("one")? == login.find("other")? {
            return Err(input(format!("the filter `{person}` finds everybody, since it has no `$name`")));
        }
        Ok(login)
    }

    fn find(&self, name: &str) -> Result<Filter, Failure> {
        Filter::parse(&self.person, &BTreeMap::from([("name".to_owned(), Value::text(name))]))
    }

    /// Holds a name and a password against a directory.
    ///
    /// # Errors
    /// The directory cannot say.
    pub async fn check(
        &self,
        reader: &LdapReader,
        name: &str,
        password: &Secret,
    ) -> Result<Outcome, Failure> {
        let is_name = !name.is_empty()
            && name.len() <= LONGEST_NAME
            && name.trim() == name
            && !name.chars().any(char::is_control);
        let length = password.reveal().len();
        if !is_name || length == 0 || length > LONGEST_PASSWORD {
            return Ok(Outcome::Unknown);
        }
        let Some((dn, name)) = self.person(reader, name).await? else {
            // As much is asked as for somebody who exists, so that the time it takes does not tell who does.
            let nobody = Rdn::new("cn", "nobody-who-logs-in").map(|rdn| self.people.child(rdn));
            if let Ok(nobody) = nobody {
                reader.directory.accepts(&nobody, password).await?;
            }
            return Ok(Outcome::Unknown);
        };
        if !reader.directory.accepts(&dn, password).await? {
            return Ok(Outcome::Refused { name });
        }
        let groups = self.groups(reader, &dn, &name).await?;
        Ok(Outcome::Member { name, groups })
    }

    /// The one entry that the filter finds, and the name in it.
    async fn person(&self, reader: &LdapReader, name: &str) -> Result<Option<(Dn, String)>, Failure> {
        let found = search(reader, &self.people, Scope::Sub, self.find(name)?, &self.name, 1).await;
        let entry = match found {
            Ok(mut entries) => entries.pop(),
            Err(failure) if failure.kind == FailureKind::Limit => {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("several entries are called `{name}`"),
                )
                .help("narrow the filter `person` under `login:` until it finds one entry for a name"));
            }
            Err(failure) => return Err(failure),
        };
        let Some(entry) = entry else { return Ok(None) };
        let dn = Dn::parse(&entry.dn).map_err(|error| {
            Failure::new(FailureKind::Refused, format!("the directory's answer: {error}"))
        })?;
        let [value] = entry.values(&self.name) else {
            return Err(Failure::new(
                FailureKind::Refused,
                format!("`{dn}` has {} values of `{}`, not one", entry.values(&self.name).len(), self.name),
            ));
        };
        match String::from_utf8(value.clone()) {
            Ok(name) if !name.is_empty() => Ok(Some((dn, name))),
            _ => {
                Err(Failure::new(FailureKind::Refused, format!("the `{}` of `{dn}` is not text", self.name)))
            }
        }
    }

    /// The groups directly under the place of groups. Their name is the one in their place: a further `cn` that somebody gave a
    /// group of their own makes it no other group.
    async fn groups(&self, reader: &LdapReader, dn: &Dn, name: &str) -> Result<Vec<String>, Failure> {
        let by_name = same_attribute(&self.member, "memberUid");
        let member = if by_name { name.to_owned() } else { dn.to_string() };
        let filter = Filter::equal(&self.member, member);
        let found = search(reader, &self.groups, Scope::One, filter, "cn", MOST_GROUPS).await?;
        let mut names: Vec<String> = found
            .iter()
            .filter_map(|entry| {
                let group = Dn::parse(&entry.dn).ok()?;
                let mut parts = group.rdn()?.parts();
                match (parts.next(), parts.next()) {
                    (Some((attribute, value)), None) if same_attribute(attribute, "cn") => {
                        Some(value.to_owned())
                    }
                    _ => None,
                }
            })
            .collect();
        names.sort();
        Ok(names)
    }
}

/// All that is found; nothing where the base is missing.
async fn search(
    reader: &LdapReader,
    base: &Dn,
    scope: Scope,
    filter: Filter,
    attribute: &str,
    most: usize,
) -> Result<Vec<Entry>, Failure> {
    let query = Query {
        base: base.clone(),
        scope,
        filter,
        attributes: vec![attribute.to_owned()],
        size_limit: Some(most),
        page_size: Some(most.min(500)),
    };
    let mut found = Vec::new();
    let answer = reader
        .directory
        .search(&query, &mut |entry| {
            found.push(entry);
            Ok(())
        })
        .await;
    match answer {
        Ok(()) => Ok(found),
        Err(refusal) if refusal.code == Some(code::NO_SUCH_OBJECT) => Err(Failure::new(
            FailureKind::Refused,
            format!("there is no entry `{base}`, where people or groups should be"),
        )),
        Err(refusal) => Err(refusal.into()),
    }
}
