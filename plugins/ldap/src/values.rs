//! Values on their way between authored YAML, a directory, and the `before` and `after` of a change.
//!
//! Read first: [`Image`], the values of a few attributes of one entry. Values are sets: their order means nothing.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farrier_model::{Failure, FailureKind, Text, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::directory::{Attribute, Edit, Entry};
use crate::dn::{Dn, EntryName};
use crate::schema::{Syntax, is_attribute_name, is_secret, same_attribute, syntax};

/// The values of some attributes of an entry. An attribute without values is absent from the entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Image(pub(crate) Vec<Attribute>);

impl Image {
    /// These attributes of an entry, present or not.
    pub(crate) fn of(entry: &Entry, names: impl IntoIterator<Item = impl AsRef<str>>) -> Image {
        let attribute =
            |name: &str| Attribute { name: name.into(), values: sorted(entry.values(name).to_vec()) };
        Image(names.into_iter().map(|name| attribute(name.as_ref())).collect())
    }

    /// Every attribute of an entry whose name `keep` accepts, by name.
    pub(crate) fn whole(entry: &Entry, keep: impl Fn(&str) -> bool) -> Image {
        let mut attributes: Vec<Attribute> = entry
            .attributes
            .iter()
            .filter(|attribute| keep(&attribute.name))
            .map(|attribute| Attribute {
                name: attribute.name.clone(),
                values: sorted(attribute.values.clone()),
            })
            .collect();
        // The classes say what an entry is, so they stand first.
        attributes.sort_by_key(|a| (!same_attribute(&a.name, "objectClass"), a.name.to_lowercase()));
        Image(attributes)
    }

    /// The names of its attributes.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|attribute| &*attribute.name)
    }

    /// The attributes that have values.
    pub(crate) fn present(&self) -> Vec<Attribute> {
        self.0.iter().filter(|attribute| !attribute.values.is_empty()).cloned().collect()
    }

    /// The names of the attributes that an entry holds otherwise.
    pub(crate) fn differences(&self, entry: &Entry) -> Vec<String> {
        self.0
            .iter()
            .filter(|wanted| !same_values(&wanted.name, &wanted.values, entry.values(&wanted.name)))
            .map(|wanted| wanted.name.to_string())
            .collect()
    }

    /// The attributes that `other` holds otherwise.
    pub(crate) fn differing_from(&self, other: &Image) -> Image {
        let same = |own: &Attribute| {
            let others = other.0.iter().find(|others| same_attribute(&others.name, &own.name));
            others.is_some_and(|others| same_values(&own.name, &own.values, &others.values))
        };
        Image(self.0.iter().filter(|own| !same(own)).cloned().collect())
    }

    /// What turns this image into `other`, which has the same attributes: old values deleted, new ones added.
    pub(crate) fn edits_to(&self, other: &Image) -> Vec<Edit> {
        let mut edits = Vec::new();
        for old in &self.0 {
            let new = other
                .0
                .iter()
                .find(|new| same_attribute(&new.name, &old.name))
                .map_or(&[][..], |new| &new.values);
            let name = &old.name;
            let gone = without(name, &old.values, new);
            let added = without(name, new, &old.values);
            if !gone.is_empty() {
                edits.push(Edit::Delete(Attribute { name: name.clone(), values: gone }));
            }
            if !added.is_empty() {
                edits.push(Edit::Add(Attribute { name: name.clone(), values: added }));
            }
        }
        edits
    }

    /// As a change holds it: null, text, or a list of text under each name.
    pub(crate) fn to_value(&self) -> Value {
        Value::map(self.0.iter().map(|attribute| (attribute.name.clone(), shown(&attribute.values))))
    }

    /// Out of a change.
    pub(crate) fn from_change(value: &Value, object: &str) -> Result<Image, Failure> {
        let broken = || {
            Failure::new(
                FailureKind::Internal,
                format!("the recorded change of `{object}` is not one of this action"),
            )
        };
        let map = value.as_map().ok_or_else(broken)?;
        let attribute = |(name, value): (&Text, &Value)| {
            let values = match value {
                Value::Null => Some(Vec::new()),
                Value::List(items) => items.iter().map(recorded).collect(),
                single => recorded(single).map(|bytes| vec![bytes]),
            };
            values.map(|values| Attribute { name: name.clone(), values })
        };
        map.iter().map(attribute).collect::<Option<Vec<_>>>().map(Image).ok_or_else(broken)
    }
}

fn sorted(mut values: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    values.sort();
    values
}

/// Values of names compare as names; all others byte by byte, since a change of case is a change that can be wanted.
fn key(attribute: &str, value: &[u8]) -> Vec<u8> {
    match syntax(attribute) {
        Syntax::Name => Syntax::Name.key(value).unwrap_or_else(|| value.to_vec()),
        _ => value.to_vec(),
    }
}

/// Whether two sets of values of an attribute are the same.
pub(crate) fn same_values(attribute: &str, one: &[Vec<u8>], other: &[Vec<u8>]) -> bool {
    let keys = |values: &[Vec<u8>]| values.iter().map(|value| key(attribute, value)).collect::<BTreeSet<_>>();
    keys(one) == keys(other)
}

/// The values that are not among `others`.
pub(crate) fn without(attribute: &str, values: &[Vec<u8>], others: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let others: BTreeSet<Vec<u8>> = others.iter().map(|value| key(attribute, value)).collect();
    values.iter().filter(|value| !others.contains(&key(attribute, value))).cloned().collect()
}

/// Values as a reader of a plan sees them.
pub(crate) fn shown(values: &[Vec<u8>]) -> Value {
    let one = |value: &Vec<u8>| match std::str::from_utf8(value) {
        Ok(text) => Value::text(text),
        Err(_) => Value::map([("base64", Value::text(BASE64.encode(value)))]),
    };
    match values {
        [] => Value::Null,
        [single] => one(single),
        several => Value::list(several.iter().map(one).collect()),
    }
}

fn recorded(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Text(text) => Some(text.as_bytes().to_vec()),
        other => BASE64.decode(other.get("base64")?.as_str()?).ok(),
    }
}

/// Attributes with the values an author wants. A value is text, a whole number, a bool, `{base: …, rdn: […]}` for the
/// name of an entry, a list of these, or null for none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted(pub(crate) Image);

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Wanted, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Some(map) = value.as_map() else {
            return Err(D::Error::custom(format!(
                "expected attributes with their values, not {}",
                value.kind()
            )));
        };
        let mut image = Image::default();
        for (name, value) in map.iter() {
            if !is_attribute_name(name) {
                return Err(D::Error::custom(format!("`{name}` is not the name of an attribute")));
            }
            if is_secret(name) {
                return Err(D::Error::custom(format!(
                    "`{name}` is a secret, and the values of secrets are recorded with a plan; set it by other means"
                )));
            }
            if image.names().any(|known| same_attribute(known, name)) {
                return Err(D::Error::custom(format!("`{name}` is given twice")));
            }
            let values =
                authored(name, value).map_err(|reason| D::Error::custom(format!("`{name}` {reason}")))?;
            image.0.push(Attribute { name: name.clone(), values: sorted(values) });
        }
        Ok(Wanted(image))
    }
}

impl JsonSchema for Wanted {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "attribute_values".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": true })
    }
}

fn authored(attribute: &str, value: &Value) -> Result<Vec<Vec<u8>>, String> {
    let mut values: Vec<Vec<u8>> = Vec::new();
    match value {
        Value::Null => {}
        Value::List(items) => {
            for item in items.iter() {
                let value = authored_one(attribute, item)?;
                if without(attribute, std::slice::from_ref(&value), &values).is_empty() {
                    return Err(format!("has the value `{item}` twice"));
                }
                values.push(value);
            }
        }
        single => values.push(authored_one(attribute, single)?),
    }
    Ok(values)
}

fn authored_one(attribute: &str, value: &Value) -> Result<Vec<u8>, String> {
    let text = match value {
        Value::Text(text) => text.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Bool(flag) => (if *flag { "TRUE" } else { "FALSE" }).to_owned(),
        Value::Map(_) => value
            .read::<EntryName>()
            .map_err(|error| format!("is not the name of an entry: {error}"))?
            .dn()
            .to_string(),
        other => {
            return Err(format!("is {}, not text, a whole number, a bool or a list of these", other.kind()));
        }
    };
    if text.is_empty() {
        return Err("is empty; write null to have no value".into());
    }
    if text.contains('\0') {
        return Err("contains a NUL character".into());
    }
    if syntax(attribute) == Syntax::Name {
        return Dn::parse(&text)
            .map(|dn| dn.to_string().into_bytes())
            .map_err(|error| format!("holds names: {error}"));
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: &str, values: &[&str]) -> Attribute {
        Attribute {
            name: name.into(),
            values: values.iter().map(|value| value.as_bytes().to_vec()).collect(),
        }
    }

    #[test]
    fn a_change_holds_what_it_was_made_of() {
        let mut image = Image(vec![attribute("a", &[]), attribute("b", &["1"]), attribute("c", &["x", "y"])]);
        image.0.push(Attribute { name: "jpegPhoto".into(), values: vec![vec![0xff, 0xd8]] });
        let value = image.to_value();
        assert_eq!(value.to_json(), r#"{"a":null,"b":"1","c":["x","y"],"jpegPhoto":{"base64":"/9g="}}"#);
        assert_eq!(Image::from_change(&value, "o").unwrap(), image);
        assert!(Image::from_change(&Value::text("x"), "o").is_err());
    }

    #[test]
    fn edits_touch_only_what_differs() {
        let from = Image(vec![
            attribute("cn", &["a", "b"]),
            attribute("member", &["UID=a, dc=x"]),
            attribute("l", &["z"]),
        ]);
        let to = Image(vec![
            attribute("cn", &["b", "c"]),
            attribute("member", &["uid=a,dc=x"]),
            attribute("l", &[]),
        ]);
        assert_eq!(
            from.edits_to(&to),
            [
                Edit::Delete(attribute("cn", &["a"])),
                Edit::Add(attribute("cn", &["c"])),
                Edit::Delete(attribute("l", &["z"])),
            ]
        );
    }

    #[test]
    fn authored_values_are_checked() {
        let read = |json: &str| Value::from_json(json).unwrap().read::<Wanted>();
        let wanted = read(
            r#"{"uidNumber": 7, "pwdLockout": true, "cn": ["a", "b"], "l": null,
                "member": {"base": "ou=p,dc=x", "rdn": ["uid", "a,b"]}}"#,
        )
        .unwrap();
        assert_eq!(
            wanted.0.to_value().to_json(),
            r#"{"uidNumber":"7","pwdLockout":"TRUE","cn":["a","b"],"l":null,"member":"uid=a\\,b,ou=p,dc=x"}"#
        );
        for (json, reason) in [
            (r#"{"c n": "x"}"#, "is not the name of an attribute"),
            (r#"{"cn": "x", "commonName": "y"}"#, "given twice"),
            (r#"{"cn": ["x", "x"]}"#, "twice"),
            (r#"{"cn": ""}"#, "is empty"),
            (r#"{"cn": "a\u0000"}"#, "NUL"),
            (r#"{"cn": 1.5}"#, "is float"),
            (r#"{"member": "alice"}"#, "holds names"),
            (r#"{"userPassword": "x"}"#, "is a secret"),
            ("[]", "not list"),
        ] {
            let error = read(json).expect_err(json).to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
