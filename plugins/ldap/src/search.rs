//! `ldap.search`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind, Text, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::directory::{Entry, Query, Scope};
use crate::dn::Dn;
use crate::filter::Filter;
use crate::schema::{is_attribute_name, is_secret, same_attribute};
use crate::target::Ldap;

/// Finds entries of a directory.
///
/// The answer is whole or the step fails: a size or time limit, a page that does not come, or a referral never gives
/// part of the entries. An empty answer is an answer; say in `expect` when it must not be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    /// The directory.
    target: Target<Ldap>,
    /// The entry to search at and under.
    base: Dn,
    /// `base` for the base entry alone, `one` for the entries directly under it, `sub` for the base and all under it.
    #[serde(default)]
    scope: Scope,
    /// Which entries, as in RFC 4515: `(&(objectClass=posixAccount)(cn=$project.*))`. `$name` stands for a parameter,
    /// whose characters never count as part of the filter; `$$` is a dollar sign.
    filter: Literal,
    /// The values of the filter's `$name`s: text, whole numbers or bools.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    params: BTreeMap<String, Value>,
    /// The attributes to return, with their types: `string`, `int`, `bool`, `generalized_time`, `dn`, or `bytes` (as
    /// base64). `list of TYPE` for attributes with any number of values; `optional TYPE` gives null when an entry lacks
    /// the attribute, which otherwise is an error. Operational attributes come when they are named.
    attributes: Columns,
    /// More entries than this are an error.
    #[serde(default)]
    size_limit: Option<usize>,
    /// How many entries to ask for at a time. The default is 500.
    #[serde(default)]
    page_size: Option<usize>,
}

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Found {
    /// The entries: for each its `dn` and the attributes that were asked for.
    #[schemars(schema_with = "entries_schema")]
    entries: Value,
}

fn params_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": true })
}

fn entries_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "x-farrier": "keys_of:attributes",
            "properties": { "dn": { "type": "string" } },
            "required": ["dn"],
        },
    })
}

impl Action for Search {
    const NAME: &'static str = "ldap.search";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
accounts:
  uses: ldap.search
  with:
    target: directory
    base: ou=people,ou=servicegroups,dc=wikimedia,dc=org
    filter: (&(objectClass=posixAccount)(cn=$project.*))
    params: { project: tools }
    attributes: { cn: string, uidNumber: int, pwdAccountLockedTime: optional generalized_time }
  expect:
    - { that: result.entries | length > 0, otherwise: the directory returned no accounts }
";

    type Output = Found;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Found>, Failure> {
        let filter = Filter::parse(&self.filter.0, &self.params)?;
        if self.page_size == Some(0) {
            return Err(Failure::new(
                FailureKind::Input,
                "`page_size` is 0; ask for at least one entry at a time",
            ));
        }
        let reader = cx.reader(&self.target).await?;
        let size_limit = match (self.size_limit, reader.size_limit) {
            (Some(own), Some(general)) => Some(own.min(general)),
            (own, general) => own.or(general),
        };
        let query = Query {
            base: self.base.clone(),
            scope: self.scope,
            filter,
            attributes: self.attributes.0.iter().map(|(name, _)| name.to_string()).collect(),
            size_limit,
            // The base alone needs no pages.
            page_size: (self.scope != Scope::Base).then_some(self.page_size.unwrap_or(500)),
        };
        let mut table = Table::new(&self.attributes);
        let answer = reader.directory.search(&query, &mut |entry| table.take(&entry)).await;
        answer.map_err(|refusal| refusal.failure.at(self.target.alias()))?;
        Ok(Planned::known(Found { entries: Value::list(table.rows) }))
    }
}

/// Attributes and their types, in the author's order.
#[derive(Debug, Clone)]
struct Columns(Vec<(Text, ColumnType)>);

/// `optional list of string` and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ColumnType {
    optional: bool,
    list: bool,
    scalar: Scalar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    String,
    Int,
    Bool,
    Time,
    Name,
    Bytes,
}

const TYPES: &str = "`string`, `int`, `bool`, `generalized_time`, `dn` or `bytes`";

impl ColumnType {
    fn parse(text: &str) -> Result<ColumnType, String> {
        let mut words = text.split_whitespace().peekable();
        let optional = words.next_if_eq(&"optional").is_some();
        let list = words.next_if_eq(&"list").is_some();
        if list && words.next() != Some("of") {
            return Err(format!("`{text}` is not a type; write `list of string`"));
        }
        let scalar = match words.next() {
            Some("string") => Scalar::String,
            Some("int") => Scalar::Int,
            Some("bool") => Scalar::Bool,
            Some("generalized_time") => Scalar::Time,
            Some("dn") => Scalar::Name,
            Some("bytes") => Scalar::Bytes,
            _ => {
                return Err(format!(
                    "`{text}` is not a type; expected {TYPES}, after `optional` or `list of` if so"
                ));
            }
        };
        match words.next() {
            Some(word) => Err(format!("`{word}` in `{text}` is too much")),
            None => Ok(ColumnType { optional, list, scalar }),
        }
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Columns, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let map = value.as_map().filter(|map| !map.is_empty());
        let map = map.ok_or_else(|| {
            D::Error::custom("expected attributes with their types, as in `{ uid: string }`")
        })?;
        let mut columns: Vec<(Text, ColumnType)> = Vec::new();
        for (name, value) in map.iter() {
            if !is_attribute_name(name) {
                return Err(D::Error::custom(format!("`{name}` is not the name of an attribute")));
            }
            if name.eq_ignore_ascii_case("dn") {
                return Err(D::Error::custom("`dn` is always there; remove it"));
            }
            if is_secret(name) {
                return Err(D::Error::custom(format!(
                    "`{name}` is a secret, and outputs are recorded; it cannot be read"
                )));
            }
            if columns.iter().any(|(known, _)| same_attribute(known, name)) {
                return Err(D::Error::custom(format!("`{name}` is there twice")));
            }
            let column =
                value.as_str().ok_or_else(|| format!("{} is not a type; expected {TYPES}", value.kind()));
            let column = column
                .and_then(ColumnType::parse)
                .map_err(|reason| D::Error::custom(format!("`{name}`: {reason}")))?;
            columns.push((name.clone(), column));
        }
        Ok(Columns(columns))
    }
}

impl JsonSchema for Columns {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "attribute_types".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "string",
                "pattern": "^(optional +)?(list +of +)?(string|int|bool|generalized_time|dn|bytes)$",
            },
        })
    }
}

/// Makes rows of entries as they come. Rows share their keys, and equal texts are shared where they are likely.
struct Table<'a> {
    columns: &'a [(Text, ColumnType)],
    keys: Arc<[Text]>,
    rows: Vec<Value>,
    /// The same people are members of many groups.
    names: HashMap<Vec<u8>, Text>,
}

impl<'a> Table<'a> {
    fn new(columns: &'a Columns) -> Table<'a> {
        let keys =
            std::iter::once(Text::from("dn")).chain(columns.0.iter().map(|(name, _)| name.clone())).collect();
        Table { columns: &columns.0, keys, rows: Vec::new(), names: HashMap::new() }
    }

    fn take(&mut self, entry: &Entry) -> Result<(), Failure> {
        let dn = Dn::parse(&entry.dn).map_err(|error| misfit(&entry.dn, &error.to_string()))?;
        let mut cells = Vec::with_capacity(self.keys.len());
        cells.push(Value::text(dn.to_string()));
        for (index, (name, column)) in self.columns.iter().enumerate() {
            let values = entry.values(name);
            let cell = self.cell(index, *column, values);
            cells.push(cell.map_err(|reason| misfit(&entry.dn, &format!("`{name}` {reason}")))?);
        }
        self.rows.push(Value::record(self.keys.clone(), cells));
        Ok(())
    }

    fn cell(&mut self, index: usize, column: ColumnType, values: &[Vec<u8>]) -> Result<Value, String> {
        match values {
            [] if column.optional => Ok(Value::Null),
            [] if column.list => Ok(Value::list(Vec::new())),
            [] => Err("is missing; declare it `optional` if it may be".into()),
            several if column.list => several
                .iter()
                .map(|value| self.scalar(index, column.scalar, value))
                .collect::<Result<Vec<Value>, String>>()
                .map(Value::list),
            [single] => self.scalar(index, column.scalar, single),
            several => Err(format!("has {} values; declare it `list of …`", several.len())),
        }
    }

    fn scalar(&mut self, index: usize, scalar: Scalar, bytes: &[u8]) -> Result<Value, String> {
        if scalar == Scalar::Bytes {
            return Ok(Value::text(BASE64.encode(bytes)));
        }
        let text =
            std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text; declare it `bytes`".to_owned())?;
        let not = |what: &str| format!("is `{text}`, which is not {what}");
        match scalar {
            // Neighbours often hold the same value: a shell, a group.
            Scalar::String => Ok(match self.rows.last().and_then(|row| self.neighbour(row, index)) {
                Some(Value::Text(known)) if **known == *text => Value::Text(known.clone()),
                _ => Value::text(text),
            }),
            Scalar::Int => text.parse().map(Value::Int).map_err(|_| not("a whole number")),
            Scalar::Bool => match text {
                "TRUE" => Ok(Value::Bool(true)),
                "FALSE" => Ok(Value::Bool(false)),
                _ => Err(not("`TRUE` or `FALSE`")),
            },
            Scalar::Time => farrier_model::time::parse_timestamp(text)
                .map(|time| Value::text(time.to_string()))
                .ok_or_else(|| not("a generalized time")),
            Scalar::Name => {
                if let Some(known) = self.names.get(bytes) {
                    return Ok(Value::Text(known.clone()));
                }
                let name = Text::from(Dn::parse(text).map_err(|_| not("the name of an entry"))?.to_string());
                self.names.insert(bytes.to_vec(), name.clone());
                Ok(Value::Text(name))
            }
            Scalar::Bytes => Ok(Value::Null),
        }
    }

    fn neighbour<'r>(&self, row: &'r Value, index: usize) -> Option<&'r Value> {
        row.get(&self.columns[index].0)
    }
}

fn misfit(dn: &str, reason: &str) -> Failure {
    Failure::new(FailureKind::Refused, format!("in the entry `{dn}`: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Attribute;

    fn columns(json: &str) -> Result<Columns, String> {
        Value::from_json(json).unwrap().read::<Columns>().map_err(|error| error.to_string())
    }

    fn entry(attributes: &[(&str, &[&[u8]])]) -> Entry {
        let attribute = |(name, values): &(&str, &[&[u8]])| Attribute {
            name: (*name).into(),
            values: values.iter().map(|value| value.to_vec()).collect(),
        };
        Entry { dn: "UID=a, DC=x".into(), attributes: attributes.iter().map(attribute).collect() }
    }

    #[test]
    fn entries_become_rows_of_the_declared_types() {
        let columns = columns(
            r#"{"cn": "string", "uidNumber": "int", "pwdLockout": "bool", "pwdAccountLockedTime": "optional generalized_time",
                "member": "list of dn", "jpegPhoto": "optional bytes", "seeAlso": "list of dn", "l": "optional list of string"}"#,
        )
        .unwrap();
        let mut table = Table::new(&columns);
        let full = entry(&[
            ("CN", &[b"A"]),
            ("uidnumber", &[b"7"]),
            ("pwdLockout", &[b"TRUE"]),
            ("pwdAccountLockedTime", &[b"000001010000Z"]),
            ("member", &[b"UID=b, dc=x", b"uid=c,dc=x"]),
            ("jpegPhoto", &[&[0xff]]),
        ]);
        table.take(&full).unwrap();
        assert_eq!(
            table.rows[0].to_json(),
            r#"{"dn":"uid=a,dc=x","cn":"A","uidNumber":7,"pwdLockout":true,"pwdAccountLockedTime":"0000-01-01T00:00:00Z","member":["uid=b,dc=x","uid=c,dc=x"],"jpegPhoto":"/w==","seeAlso":[],"l":null}"#
        );
    }

    #[test]
    fn equal_values_of_neighbours_are_shared() {
        let columns = columns(r#"{"loginShell": "string", "member": "list of dn"}"#).unwrap();
        let mut table = Table::new(&columns);
        let one = entry(&[("loginShell", &[b"/bin/bash"]), ("member", &[b"uid=b,dc=x"])]);
        table.take(&one).unwrap();
        table.take(&one).unwrap();
        let shared = |key: &str| {
            let text = |row: &Value| match row.get(key) {
                Some(Value::Text(text)) => text.clone(),
                Some(Value::List(items)) => items[0]
                    .as_str()
                    .map(|_| match &items[0] {
                        Value::Text(text) => text.clone(),
                        _ => unreachable!(),
                    })
                    .unwrap(),
                other => panic!("{other:?}"),
            };
            Arc::ptr_eq(&text(&table.rows[0]), &text(&table.rows[1]))
        };
        assert!(shared("loginShell") && shared("member"));
    }

    #[test]
    fn an_entry_that_does_not_fit_is_an_error_that_names_it() {
        let cases: [(&str, &[&[u8]], &str); 8] = [
            ("string", &[], "`cn` is missing"),
            ("string", &[b"a", b"b"], "`cn` has 2 values"),
            ("string", &[&[0xff]], "declare it `bytes`"),
            ("int", &[b"x"], "is `x`, which is not a whole number"),
            ("bool", &[b"yes"], "is not `TRUE` or `FALSE`"),
            ("generalized_time", &[b"yesterday"], "is not a generalized time"),
            ("dn", &[b"alice"], "is not the name of an entry"),
            ("list of int", &[b"1", b"x"], "is not a whole number"),
        ];
        for (column, values, reason) in cases {
            let columns = columns(&format!(r#"{{"cn": "{column}"}}"#)).unwrap();
            let failure = Table::new(&columns).take(&entry(&[("cn", values)])).expect_err(column);
            assert_eq!(failure.kind, FailureKind::Refused);
            assert!(
                failure.message.contains("`UID=a, DC=x`") && failure.message.contains(reason),
                "{column}: {failure}"
            );
        }
    }

    #[test]
    fn wrong_types_are_refused() {
        for (json, reason) in [
            ("{}", "expected attributes"),
            (r#"["cn"]"#, "expected attributes"),
            (r#"{"cn": "text"}"#, "is not a type"),
            (r#"{"cn": "list string"}"#, "write `list of string`"),
            (r#"{"cn": "string string"}"#, "too much"),
            (r#"{"cn": 1}"#, "int is not a type"),
            (r#"{"c n": "string"}"#, "not the name of an attribute"),
            (r#"{"cn": "string", "commonName": "string"}"#, "there twice"),
            (r#"{"dn": "dn"}"#, "always there"),
            (r#"{"userPassword": "bytes"}"#, "is a secret"),
        ] {
            let error = columns(json).expect_err(json);
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
