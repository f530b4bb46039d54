//! `ldap.members`.

use std::borrow::Cow;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::compare::{Way, set_all};
use crate::directory::{Attribute, Directory, Entry, Query, Scope, fetch};
use crate::dn::{Dn, EntryName};
use crate::filter::Filter;
use crate::schema::{Syntax, is_attribute_name, is_secret, same_attribute, syntax};
use crate::target::Ldap;
use crate::values::{Image, without};

/// Adds members to a group, or removes members from one group or from every group under an entry.
///
/// There is one change for each group that differs. Members that are there already, or gone already, are no change. A
/// group that must have a member (`groupOfNames`) is never emptied; that is an error which names the group.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Members {
    /// The directory.
    target: Target<Ldap>,
    /// The group. Either this or `groups_under`.
    #[serde(default)]
    group: Option<EntryName>,
    /// Remove from every group at or under this entry that has one of the members.
    #[serde(default)]
    groups_under: Option<Dn>,
    /// The attribute that holds the members. The default is `member`; `memberUid` holds account names.
    #[serde(default)]
    attribute: Option<String>,
    /// Members to add.
    #[serde(default)]
    add: Vec<Member>,
    /// Members to remove.
    #[serde(default)]
    remove: Vec<Member>,
}

/// A member: `{ base: "ou=people,dc=example,dc=org", rdn: [uid, alice] }`, the whole name as text, or for `memberUid` the
/// account's name.
#[derive(Debug, Clone)]
enum Member {
    Entry(EntryName),
    Text(String),
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Member, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Text(text) => Ok(Member::Text(text.to_string())),
            value @ Value::Map(_) => value.read().map(Member::Entry).map_err(D::Error::custom),
            other => Err(D::Error::custom(format!("expected the name of an entry, not {}", other.kind()))),
        }
    }
}

impl JsonSchema for Member {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "member".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "`{ base: …, rdn: [uid, alice] }`, or text.",
            "anyOf": [generator.subschema_for::<EntryName>(), { "type": "string" }],
        })
    }
}

/// The groups that differ.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Regrouped {
    /// Their names.
    groups: Vec<String>,
}

/// Classes whose entries must keep a member, and the attribute that holds it.
const NEVER_EMPTY: [(&str, &str); 2] = [("groupOfNames", "member"), ("groupOfUniqueNames", "uniqueMember")];

/// How many members one search asks about: filters have a size that servers accept.
const MEMBERS_PER_SEARCH: usize = 50;

/// The input, checked.
struct Wish {
    place: Place,
    attribute: String,
    add: Vec<Vec<u8>>,
    remove: Vec<Vec<u8>>,
}

enum Place {
    Group(Dn),
    Under(Dn),
}

impl Members {
    fn wish(&self) -> Result<Wish, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let attribute = self.attribute.clone().unwrap_or_else(|| "member".into());
        if !is_attribute_name(&attribute) || is_secret(&attribute) {
            return Err(input(format!("`{attribute}` is not an attribute that holds members")));
        }
        let place = match (&self.group, &self.groups_under) {
            (Some(group), None) => Place::Group(group.dn()),
            (None, Some(_)) if !self.add.is_empty() => {
                return Err(input(
                    "`add` needs one `group`; members are only removed from all groups under an entry".into(),
                ));
            }
            (None, Some(base)) => Place::Under(base.clone()),
            _ => return Err(input("give either `group` or `groups_under`".into())),
        };
        let values = |members: &[Member]| -> Result<Vec<Vec<u8>>, Failure> {
            let mut values: Vec<Vec<u8>> = Vec::new();
            for member in members {
                let value = member_value(&attribute, member).map_err(input)?;
                if !without(&attribute, std::slice::from_ref(&value), &values).is_empty() {
                    values.push(value);
                }
            }
            Ok(values)
        };
        let (add, remove) = (values(&self.add)?, values(&self.remove)?);
        if add.is_empty() && remove.is_empty() {
            return Err(input("`add` and `remove` are both empty".into()));
        }
        if without(&attribute, &add, &remove).len() != add.len() {
            return Err(input("a member is in `add` and in `remove`".into()));
        }
        Ok(Wish { place, attribute, add, remove })
    }
}

fn member_value(attribute: &str, member: &Member) -> Result<Vec<u8>, String> {
    let text = match member {
        Member::Entry(_) if syntax(attribute) != Syntax::Name => {
            return Err(format!("`{attribute}` does not hold names of entries; give the member as text"));
        }
        Member::Entry(name) => name.dn().to_string(),
        Member::Text(text) if syntax(attribute) == Syntax::Name => {
            Dn::parse(text).map_err(|error| error.to_string())?.to_string()
        }
        Member::Text(text) => text.clone(),
    };
    if text.is_empty() || text.contains('\0') {
        return Err(format!("a member in `{attribute}` is empty or contains a NUL character"));
    }
    Ok(text.into_bytes())
}

impl Wish {
    async fn plan(&self, directory: &dyn Directory) -> Result<Planned<Regrouped>, Failure> {
        let groups = match &self.place {
            Place::Group(dn) => vec![
                fetch(directory, dn, self.wanted_attributes())
                    .await?
                    .ok_or_else(|| Failure::new(FailureKind::Refused, format!("there is no group `{dn}`")))?,
            ],
            Place::Under(base) => self.groups_with_members(directory, base).await?,
        };
        let considered = groups.len();
        let changes: Vec<Change> = groups
            .iter()
            .filter_map(|group| self.change(group).transpose())
            .collect::<Result<_, Failure>>()?;
        let output = regrouped(&changes);
        Ok(Planned::changes(changes, output).considered(considered))
    }

    fn wanted_attributes(&self) -> Vec<String> {
        vec!["objectClass".into(), self.attribute.clone()]
    }

    async fn groups_with_members(&self, directory: &dyn Directory, base: &Dn) -> Result<Vec<Entry>, Failure> {
        let mut groups: std::collections::BTreeMap<String, Entry> = std::collections::BTreeMap::new();
        for some in self.remove.chunks(MEMBERS_PER_SEARCH) {
            let query = Query {
                base: base.clone(),
                scope: Scope::Sub,
                filter: Filter::Or(
                    some.iter().map(|value| Filter::equal(&self.attribute, value.clone())).collect(),
                ),
                attributes: self.wanted_attributes(),
                size_limit: None,
                page_size: Some(500),
            };
            directory
                .search(&query, &mut |entry| {
                    groups.insert(name_of(&entry)?.key(), entry);
                    Ok(())
                })
                .await?;
        }
        Ok(groups.into_values().collect())
    }

    fn change(&self, group: &Entry) -> Result<Option<Change>, Failure> {
        let dn = name_of(group)?;
        let present = group.values(&self.attribute);
        let mut wanted = without(&self.attribute, present, &self.remove);
        wanted.extend(without(&self.attribute, &self.add, present));
        let after = Image(vec![Attribute { name: self.attribute.as_str().into(), values: wanted }]);
        if after.differences(group).is_empty() {
            return Ok(None);
        }
        let must_not_be_empty = NEVER_EMPTY
            .iter()
            .any(|(class, attribute)| group.has_class(class) && same_attribute(attribute, &self.attribute));
        if must_not_be_empty && after.present().is_empty() {
            return Err(Failure::new(FailureKind::Refused, format!("`{dn}` would have no member left"))
                .help("add another member first, or delete the group before this step"));
        }
        let mut after = after;
        after.0.iter_mut().for_each(|attribute| attribute.values.sort());
        Ok(Some(Change {
            object: dn.to_string().into(),
            kind: ChangeKind::Update,
            before: Image::of(group, [&self.attribute]).to_value(),
            after: after.to_value(),
            fingerprint: None,
        }))
    }
}

fn name_of(entry: &Entry) -> Result<Dn, Failure> {
    Dn::parse(&entry.dn).map_err(|error| Failure::new(FailureKind::Refused, error.to_string()))
}

fn regrouped(changes: &[Change]) -> Regrouped {
    Regrouped { groups: changes.iter().map(|change| change.object.to_string()).collect() }
}

impl Action for Members {
    const NAME: &'static str = "ldap.members";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
leave_groups:
  uses: ldap.members
  with:
    target: directory
    groups_under: ou=servicegroups,dc=wikimedia,dc=org
    remove: [{ base: \"ou=people,ou=servicegroups,dc=wikimedia,dc=org\", rdn: [uid, tools.example] }]
  undo: restore
";

    type Output = Regrouped;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Regrouped>, Failure> {
        let wish = self.wish()?;
        let reader = cx.reader(&self.target).await?;
        wish.plan(&*reader.directory).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Regrouped, Failure> {
        let writer = cx.writer(&self.target).await?;
        set_all(&*writer.directory, changes, Way::Apply)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(regrouped(changes))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        set_all(&*writer.directory, changes, Way::Undo)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
