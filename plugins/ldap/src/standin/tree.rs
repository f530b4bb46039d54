//! What a directory holds in memory: searches, and writes that follow a directory's rules.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::time::SystemTime;

use farrier_model::Text;
use farrier_model::time::Timestamp;

use super::ldif::Record;
use super::rules::{self, UNIQUE, is_class};
use super::{no_such_object, refuse};
use crate::connection::describe;
use crate::directory::{Attribute, Each, Edit, Entry, Query, Refusal, Scope, code};
use crate::dn::{Dn, Rdn};
use crate::filter::{Comparison, Extensible, Filter, Substrings};
use crate::schema::{Syntax, is_operational, same_attribute, syntax};

/// Every entry, parents before what is under them.
#[derive(Default, Clone)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Stored>,
    /// The groups that a name is a member of; found on first use.
    groups_of: OnceLock<HashMap<String, Vec<Text>>>,
}

#[derive(Clone)]
struct Stored {
    dn: Dn,
    attributes: Vec<Attribute>,
    file: usize,
    modified: Option<SystemTime>,
}

/// What a write did, for the file that holds the entry.
pub(crate) struct Written {
    pub(crate) file: usize,
    pub(crate) dn: Dn,
    /// The entry's attributes now; nothing when it is deleted.
    pub(crate) attributes: Option<Vec<Attribute>>,
}

impl Stored {
    fn values(&self, name: &str) -> &[Vec<u8>] {
        self.attributes
            .iter()
            .find(|attribute| same_attribute(&attribute.name, name))
            .map_or(&[], |a| &a.values)
    }

    fn is_class(&self, class: &str) -> bool {
        self.values("objectClass")
            .iter()
            .filter_map(|value| std::str::from_utf8(value).ok())
            .any(|own| is_class(own, class))
    }
}

impl Tree {
    /// Takes in a record of a file.
    pub(crate) fn load(
        &mut self,
        record: Record,
        file: usize,
        modified: Option<SystemTime>,
    ) -> Result<(), String> {
        let key = record.dn.key();
        if let Some(known) = self.entries.get(&key) {
            return Err(format!("`{}` is there twice", known.dn));
        }
        self.entries.insert(key, Stored { dn: record.dn, attributes: record.attributes, file, modified });
        Ok(())
    }

    /// See [`crate::directory::Directory::search`].
    pub(crate) fn search(&self, query: &Query, each: &mut Each<'_>) -> Result<(), Refusal> {
        let doing = describe(query);
        if query.base.depth() == 0 && query.scope == Scope::Base {
            let controls =
                Attribute { name: "supportedControl".into(), values: vec![b"1.3.6.1.1.12".to_vec()] };
            return Ok(each(Entry { dn: String::new(), attributes: vec![controls] })?);
        }
        let base = query.base.key();
        if query.base.depth() > 0 && !self.entries.contains_key(&base) {
            return Err(no_such_object(&doing, &self.nearest(&query.base)));
        }
        let depth = query.base.depth();
        let mut found = 0;
        for (_, stored) in self.entries.range(base.clone()..).take_while(|(key, _)| key.starts_with(&base)) {
            let in_scope = match query.scope {
                Scope::Base => stored.dn.depth() == depth,
                Scope::One => stored.dn.depth() == depth + 1,
                Scope::Sub => true,
            };
            if !in_scope || self.matches(&query.filter, stored, &doing)? != Some(true) {
                continue;
            }
            found += 1;
            if query.size_limit.is_some_and(|limit| found > limit) {
                return Err(refuse(code::SIZE_LIMIT_EXCEEDED, &doing, ""));
            }
            each(self.answer(stored, &query.attributes))?;
        }
        Ok(())
    }

    /// The name of the nearest entry above `dn` that exists.
    fn nearest(&self, dn: &Dn) -> String {
        let above = std::iter::successors(dn.parent(), Dn::parent);
        above
            .filter_map(|dn| self.entries.get(&dn.key()))
            .map(|stored| stored.dn.to_string())
            .next()
            .unwrap_or_default()
    }

    /// The entry with the attributes that were asked for.
    fn answer(&self, stored: &Stored, wanted: &[String]) -> Entry {
        let all = wanted.is_empty() || wanted.iter().any(|name| name == "*");
        let mut attributes: Vec<Attribute> = Vec::new();
        for attribute in &stored.attributes {
            let named = wanted.iter().any(|name| same_attribute(name, &attribute.name));
            if !is_computed(&attribute.name) && (named || (all && !is_operational(&attribute.name))) {
                attributes.push(attribute.clone());
            }
        }
        for name in wanted {
            let values = self.computed(stored, name);
            if !values.is_empty() {
                attributes.push(Attribute { name: name.as_str().into(), values });
            }
        }
        Entry { dn: stored.dn.to_string(), attributes }
    }

    /// The values of an attribute that the directory keeps by itself.
    fn computed(&self, stored: &Stored, name: &str) -> Vec<Vec<u8>> {
        let one = |text: String| vec![text.into_bytes()];
        match &*name.to_ascii_lowercase() {
            "memberof" => {
                let groups = self.groups_of().get(&stored.dn.key());
                groups.into_iter().flatten().map(|group| group.as_bytes().to_vec()).collect()
            }
            "entrydn" => one(stored.dn.to_string()),
            // Equal content gives an equal version: that is all a comparison before a write needs.
            "entrycsn" => one(format!("20000101000000.000000Z#{:016x}#000#000000", content_hash(stored))),
            "entryuuid" if stored.values(name).is_empty() => {
                one(uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, stored.dn.key().as_bytes()).to_string())
            }
            "modifytimestamp" if stored.values(name).is_empty() => {
                stored.modified.map_or(Vec::new(), |time| one(generalized(time)))
            }
            "hassubordinates" => one((if self.has_children(&stored.dn) { "TRUE" } else { "FALSE" }).into()),
            _ => Vec::new(),
        }
    }

    fn groups_of(&self) -> &HashMap<String, Vec<Text>> {
        self.groups_of.get_or_init(|| {
            let mut groups_of: HashMap<String, Vec<Text>> = HashMap::new();
            for group in self.entries.values().filter(|stored| stored.is_class("groupOfNames")) {
                let name = Text::from(group.dn.to_string());
                for member in group.values("member") {
                    let key = Syntax::Name.key(member).and_then(|key| String::from_utf8(key).ok());
                    if let Some(key) = key {
                        groups_of.entry(key).or_default().push(name.clone());
                    }
                }
            }
            groups_of
        })
    }

    fn has_children(&self, dn: &Dn) -> bool {
        let key = dn.key();
        self.entries.range(key.clone()..).nth(1).is_some_and(|(next, _)| next.starts_with(&key))
    }

    /// Whether an entry matches: RFC 4511 section 4.5.1.7, with nothing for "undefined".
    fn matches(&self, filter: &Filter, stored: &Stored, doing: &str) -> Result<Option<bool>, Refusal> {
        Ok(match filter {
            Filter::And(filters) => {
                let mut all = Some(true);
                for filter in filters {
                    match self.matches(filter, stored, doing)? {
                        Some(false) => return Ok(Some(false)),
                        None => all = None,
                        Some(true) => {}
                    }
                }
                all
            }
            Filter::Or(filters) => {
                let mut any = Some(false);
                for filter in filters {
                    match self.matches(filter, stored, doing)? {
                        Some(true) => return Ok(Some(true)),
                        None => any = None,
                        Some(false) => {}
                    }
                }
                any
            }
            Filter::Not(filter) => self.matches(filter, stored, doing)?.map(|matched| !matched),
            Filter::Present(attribute) => Some(self.any_value(stored, attribute, |_| true)),
            Filter::Compare(attribute, comparison, value) => {
                self.compare(stored, attribute, *comparison, value)
            }
            Filter::Substrings(attribute, parts) => self.substrings(stored, attribute, parts),
            Filter::Extensible(extensible) => self.extensible(stored, extensible, doing)?,
        })
    }

    fn any_value(&self, stored: &Stored, attribute: &str, test: impl Fn(&[u8]) -> bool) -> bool {
        if !is_computed(attribute) && stored.values(attribute).iter().any(|value| test(value)) {
            return true;
        }
        is_operational(attribute) && self.computed(stored, attribute).iter().any(|value| test(value))
    }

    fn compare(
        &self,
        stored: &Stored,
        attribute: &str,
        comparison: Comparison,
        wanted: &[u8],
    ) -> Option<bool> {
        if same_attribute(attribute, "objectClass")
            && matches!(comparison, Comparison::Equal | Comparison::Approximate)
        {
            return Some(std::str::from_utf8(wanted).is_ok_and(|wanted| stored.is_class(wanted)));
        }
        let syntax = syntax(attribute);
        let wanted = syntax.key(wanted)?;
        match comparison {
            Comparison::Equal | Comparison::Approximate => {
                Some(self.any_value(stored, attribute, |value| syntax.has_key(value, &wanted)))
            }
            Comparison::AtLeast | Comparison::AtMost => {
                let wanted = ordinal(syntax, &wanted)?;
                Some(self.any_value(stored, attribute, |value| {
                    let value = syntax.key(value).and_then(|key| ordinal(syntax, &key));
                    value.is_some_and(|value| {
                        if comparison == Comparison::AtLeast { value >= wanted } else { value <= wanted }
                    })
                }))
            }
        }
    }

    fn substrings(&self, stored: &Stored, attribute: &str, parts: &Substrings) -> Option<bool> {
        let folded = |bytes: &[u8]| -> Option<String> {
            let text = std::str::from_utf8(bytes).ok()?;
            match syntax(attribute) {
                Syntax::CaseIgnore => Some(text.to_lowercase()),
                Syntax::CaseExact => Some(text.to_owned()),
                // These have no substring matching.
                _ => None,
            }
        };
        let initial = folded(parts.initial.as_deref().unwrap_or_default())?;
        let last = folded(parts.last.as_deref().unwrap_or_default())?;
        let any = parts.any.iter().map(|part| folded(part)).collect::<Option<Vec<String>>>()?;
        Some(self.any_value(stored, attribute, |value| {
            let Some(value) = folded(value) else { return false };
            let Some(mut rest) = value.strip_prefix(&*initial) else { return false };
            for part in &any {
                match rest.find(&**part) {
                    Some(at) => rest = &rest[at + part.len()..],
                    None => return false,
                }
            }
            rest.ends_with(&*last)
        }))
    }

    fn extensible(&self, stored: &Stored, wanted: &Extensible, doing: &str) -> Result<Option<bool>, Refusal> {
        let unknown = |what: &str| {
            refuse(
                code::INAPPROPRIATE_MATCHING,
                doing,
                &format!("the embedded directory does not know {what}"),
            )
        };
        let Some(attribute) = &wanted.attribute else {
            return Err(unknown("a matching rule without an attribute"));
        };
        let syntax = match wanted.rule.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None => syntax(attribute),
            Some("caseexactmatch" | "caseexactia5match" | "2.5.13.5") => Syntax::CaseExact,
            Some("caseignorematch" | "caseignoreia5match" | "2.5.13.2") => Syntax::CaseIgnore,
            Some("integermatch" | "2.5.13.14") => Syntax::Integer,
            Some("distinguishednamematch" | "2.5.13.1") => Syntax::Name,
            Some(rule) => return Err(unknown(&format!("the matching rule `{rule}`"))),
        };
        let Some(key) = syntax.key(&wanted.value) else { return Ok(None) };
        let same = |value: &[u8]| syntax.key(value).as_ref() == Some(&key);
        let in_name = || {
            std::iter::successors(Some(stored.dn.clone()), Dn::parent).any(|dn| {
                dn.rdn().is_some_and(|rdn| {
                    rdn.parts().any(|(name, value)| same_attribute(name, attribute) && same(value.as_bytes()))
                })
            })
        };
        Ok(Some(self.any_value(stored, attribute, same) || (wanted.of_name && in_name())))
    }

    /// The entry, if it is there and `only_if` holds.
    fn writable(&self, dn: &Dn, only_if: Option<&Filter>, doing: &str) -> Result<&Stored, Refusal> {
        let stored = self.entries.get(&dn.key()).ok_or_else(|| no_such_object(doing, &self.nearest(dn)))?;
        if let Some(filter) = only_if
            && self.matches(filter, stored, doing)? != Some(true)
        {
            return Err(refuse(code::ASSERTION_FAILED, doing, ""));
        }
        Ok(stored)
    }

    /// See [`crate::directory::WritableDirectory::modify`].
    pub(crate) fn modify(
        &mut self,
        dn: &Dn,
        edits: &[Edit],
        only_if: Option<&Filter>,
    ) -> Result<Written, Refusal> {
        let doing = format!("modify `{dn}`");
        let fail = |(code, text): (u32, String)| refuse(code, &doing, &text);
        let mut stored = self.writable(dn, only_if, &doing)?.clone();
        for edit in edits {
            let (Edit::Add(change) | Edit::Delete(change)) = edit;
            rules::check_settable(&change.name).map_err(fail)?;
            let syntax = syntax(&change.name);
            let index =
                stored.attributes.iter().position(|attribute| same_attribute(&attribute.name, &change.name));
            for value in &change.values {
                let key = syntax.key(value).ok_or_else(|| {
                    fail((code::INVALID_SYNTAX, format!("{}: value #0 invalid per syntax", change.name)))
                })?;
                let at = index.and_then(|index| {
                    stored.attributes[index]
                        .values
                        .iter()
                        .position(|own| syntax.key(own).as_ref() == Some(&key))
                });
                match (edit, index, at) {
                    (Edit::Delete(_), Some(index), Some(at)) => {
                        stored.attributes[index].values.remove(at);
                    }
                    (Edit::Delete(_), ..) => {
                        return Err(fail((
                            code::NO_SUCH_ATTRIBUTE,
                            format!("{}: no such value", change.name),
                        )));
                    }
                    (Edit::Add(_), _, Some(_)) => {
                        return Err(fail((
                            code::VALUE_EXISTS,
                            format!("{}: value #0 already exists", change.name),
                        )));
                    }
                    (Edit::Add(_), Some(index), None) => stored.attributes[index].values.push(value.clone()),
                    (Edit::Add(_), None, None) => {}
                }
            }
            if let (Edit::Add(_), None) = (edit, index) {
                stored.attributes.push(change.clone());
            }
            stored.attributes.retain(|attribute| !attribute.values.is_empty());
        }
        rules::check_entry(dn, &stored.attributes).map_err(fail)?;
        self.check_unique(&stored).map_err(fail)?;
        // An export may hold the time of the last change; a wrong one would be worse than none.
        stored.attributes.retain(|attribute| {
            !same_attribute(&attribute.name, "modifyTimestamp")
                && !same_attribute(&attribute.name, "entryCSN")
        });
        Ok(self.keep(stored))
    }

    /// See [`crate::directory::WritableDirectory::add`].
    pub(crate) fn add(&mut self, dn: &Dn, mut attributes: Vec<Attribute>) -> Result<Written, Refusal> {
        let doing = format!("add `{dn}`");
        let fail = |(code, text): (u32, String)| refuse(code, &doing, &text);
        for attribute in &attributes {
            rules::check_settable(&attribute.name).map_err(fail)?;
        }
        // As OpenLDAP does: what the name says need not be said again.
        for (name, value) in dn.rdn().into_iter().flat_map(Rdn::parts) {
            let syntax = syntax(name);
            let key = syntax.key(value.as_bytes());
            match attributes.iter_mut().find(|attribute| same_attribute(&attribute.name, name)) {
                Some(own) if own.values.iter().any(|own| syntax.key(own) == key) => {}
                Some(own) => own.values.push(value.as_bytes().to_vec()),
                None => {
                    attributes.push(Attribute { name: name.into(), values: vec![value.as_bytes().to_vec()] });
                }
            }
        }
        rules::check_entry(dn, &attributes).map_err(fail)?;
        if self.entries.contains_key(&dn.key()) {
            return Err(fail((code::ENTRY_EXISTS, String::new())));
        }
        let parent = dn.parent().and_then(|parent| self.entries.get(&parent.key()));
        let file = parent.ok_or_else(|| no_such_object(&doing, &self.nearest(dn)))?.file;
        let stored = Stored { dn: dn.clone(), attributes, file, modified: Some(SystemTime::now()) };
        self.check_unique(&stored).map_err(fail)?;
        Ok(self.keep(stored))
    }

    /// See [`crate::directory::WritableDirectory::delete`].
    pub(crate) fn delete(&mut self, dn: &Dn, only_if: Option<&Filter>) -> Result<Written, Refusal> {
        let doing = format!("delete `{dn}`");
        let file = self.writable(dn, only_if, &doing)?.file;
        if self.has_children(dn) {
            return Err(refuse(code::NOT_ON_NON_LEAF, &doing, "subordinate objects must be deleted first"));
        }
        self.entries.remove(&dn.key());
        self.groups_of.take();
        Ok(Written { file, dn: dn.clone(), attributes: None })
    }

    fn keep(&mut self, mut stored: Stored) -> Written {
        stored.modified = Some(SystemTime::now());
        let written =
            Written { file: stored.file, dn: stored.dn.clone(), attributes: Some(stored.attributes.clone()) };
        self.entries.insert(stored.dn.key(), stored);
        self.groups_of.take();
        written
    }

    fn check_unique(&self, new: &Stored) -> Result<(), (u32, String)> {
        let key = new.dn.key();
        for (class, attribute) in UNIQUE.iter().filter(|(class, _)| new.is_class(class)) {
            let syntax = syntax(attribute);
            let keys = |stored: &Stored| {
                stored.values(attribute).iter().map(|value| syntax.key(value)).collect::<Vec<_>>()
            };
            let wanted = keys(new);
            let other = self.entries.iter().find(|(other, stored)| {
                **other != key
                    && stored.is_class(class)
                    && keys(stored).iter().any(|value| wanted.contains(value))
            });
            if let Some((_, other)) = other {
                let text = format!("some attributes not unique: `{}` has this {attribute}", other.dn);
                return Err((code::CONSTRAINT_VIOLATION, text));
            }
        }
        Ok(())
    }
}

/// Attributes that are never taken from the files.
fn is_computed(attribute: &str) -> bool {
    ["memberOf", "entryCSN", "entryDN", "hasSubordinates"]
        .iter()
        .any(|name| name.eq_ignore_ascii_case(attribute))
}

fn content_hash(stored: &Stored) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut attributes: Vec<&Attribute> =
        stored.attributes.iter().filter(|a| !is_computed(&a.name)).collect();
    attributes.sort_by_key(|attribute| attribute.name.to_lowercase());
    for attribute in attributes {
        let mut values: Vec<&Vec<u8>> = attribute.values.iter().collect();
        values.sort();
        (attribute.name.to_lowercase(), values).hash(&mut hasher);
    }
    hasher.finish()
}

/// Where a value stands in the order of its syntax, for `>=` and `<=`; nothing when the syntax has no order.
fn ordinal(syntax: Syntax, key: &[u8]) -> Option<i128> {
    let text = std::str::from_utf8(key).ok()?;
    match syntax {
        Syntax::Integer => text.parse().ok(),
        Syntax::Time => text.parse::<Timestamp>().ok().map(Timestamp::as_nanosecond),
        _ => None,
    }
}

fn generalized(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(
        |_| String::new(),
        |time| {
            let digits: String = time.to_string().chars().take(19).filter(char::is_ascii_digit).collect();
            format!("{digits}Z")
        },
    )
}
