//! `files.read_many`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use farrier_action::text::{ItemExpr, ItemTemplate};
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::expr::Template;
use farrier_model::spec::Risk;
use farrier_model::time::parse_duration;
use farrier_model::{Effect, Failure, FailureKind, Fidelity, Scope, Text, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::path::SafePath;
use crate::pool::Item;
use crate::private::PRIVATE;
use crate::reading::Reading;
use crate::target::FilesTarget;

/// Reads a few small text files in each of many folders, such as the homes of tools.
///
/// A file that is missing is null. So is one that cannot be had as text: forbidden, not UTF-8, too large, no regular
/// file, a link that leaves the item's folder, an error of the disk, no answer in time. Each of these has an entry in
/// `notes` and never fails the step. Links that stay inside the folder are followed; absolute links are not.
///
/// The step fails when the root cannot be opened or the disk as a whole does not answer. A disk that is not mounted
/// can look like an empty folder, so a runbook that deletes by what it reads here checks `folders`. Where the target has `via`,
/// all is read at once on the host with the disk; a connection that breaks fails the step.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadMany {
    /// The target with the files.
    target: Target<FilesTarget>,
    /// The root, one of those that the environment names.
    root: String,
    /// The list to go through, mostly another step's output.
    #[schemars(with = "Vec<serde_json::Value>")]
    items: Vec<Value>,
    /// What the expressions below call the item.
    #[serde(rename = "as")]
    name: String,
    /// The key of an item, a bare expression; every item has its own.
    key: ItemExpr,
    /// The item's folder beneath the root, as a list of path segments: `["${ account.cn | after('.') }"]`.
    folder: ItemTemplate,
    /// The files to read, each under the name that the output gives it: a path in the folder, or a list of paths of
    /// which the first that can be read counts. A path is fixed text such as `public_html/toolinfo.json`, or a list of
    /// segments, which may hold expressions.
    read: Reads,
    /// What becomes of line breaks: `kept`, or `joined` with a space between lines.
    #[serde(default)]
    lines: Lines,
    /// A file with more bytes is not read.
    #[serde(default = "default_max_bytes")]
    max_bytes: u64,
    /// All texts together may have so many bytes; more fail the step.
    #[serde(default = "default_max_total_bytes")]
    max_total_bytes: u64,
    /// How long one file may take to answer.
    #[serde(default)]
    timeout: Timeout,
    /// How many files are read at a time.
    #[serde(default = "default_parallel")]
    parallel: u16,
}

fn default_max_bytes() -> u64 {
    1 << 20
}

fn default_max_total_bytes() -> u64 {
    256 << 20
}

fn default_parallel() -> u16 {
    16
}

/// What becomes of line breaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lines {
    /// They stay.
    #[default]
    Kept,
    /// Lines are joined with a space; the last line break goes.
    Joined,
}

/// A duration such as `5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout(pub Duration);

impl Default for Timeout {
    fn default() -> Timeout {
        Timeout(Duration::from_secs(5))
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timeout, D::Error> {
        let text = String::deserialize(deserializer)?;
        match parse_duration(&text) {
            Some(duration) if !duration.is_zero() => Ok(Timeout(duration)),
            _ => Err(D::Error::custom(format!("`{text}` is not a duration such as `5s`"))),
        }
    }
}

impl JsonSchema for Timeout {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// The files of each item: names, and for each the places to look.
#[derive(Debug)]
struct Reads {
    names: Arc<[Text]>,
    places: Vec<Vec<Place>>,
}

impl Reads {
    /// For each file its places, where none of them depends on the item: then all items share them.
    fn shared(&self) -> Vec<Option<Arc<[SafePath]>>> {
        let fixed = |place: &Place| match place {
            Place::Fixed(path) => Some(path.clone()),
            Place::PerItem(_) => None,
        };
        self.places.iter().map(|places| places.iter().map(fixed).collect()).collect()
    }
}

/// One place to look for a file.
#[derive(Debug)]
enum Place {
    Fixed(SafePath),
    /// Gives one segment or a list of them.
    PerItem(Template),
}

impl<'de> Deserialize<'de> for Reads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reads, D::Error> {
        let tree = Value::deserialize(deserializer)?;
        let Template::Map(entries) = Template::parse(&tree).map_err(D::Error::custom)? else {
            return Err(D::Error::custom("the files to read are a map of names and paths"));
        };
        if entries.is_empty() {
            return Err(D::Error::custom("there is no file to read"));
        }
        let mut names = Vec::new();
        let mut places = Vec::new();
        for (name, template) in entries {
            let candidates = match template {
                Template::List(candidates) => candidates,
                one => vec![one],
            };
            if candidates.is_empty() {
                return Err(D::Error::custom(format!("`{name}` has no path")));
            }
            let candidates: Result<Vec<Place>, D::Error> = candidates
                .into_iter()
                .map(|candidate| {
                    place(candidate).map_err(|wrong| D::Error::custom(format!("`{name}`: {wrong}")))
                })
                .collect();
            places.push(candidates?);
            names.push(name);
        }
        Ok(Reads { names: names.into(), places })
    }
}

/// The author's own slashes part segments. What an expression gives is one segment, so that data adds no folders.
fn place(candidate: Template) -> Result<Place, String> {
    let constants = |segments: &[Template]| {
        segments
            .iter()
            .map(|segment| match segment {
                Template::Const(value) => Some(value.clone()),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
    };
    match candidate {
        Template::Const(Value::Text(path)) => {
            SafePath::of(path.split('/')).map(Place::Fixed).map_err(|bad| bad.0)
        }
        Template::List(segments) => match constants(&segments) {
            Some(constants) if constants.is_empty() => Err("a path has no segments".into()),
            Some(constants) => {
                SafePath::of_value(&Value::list(constants)).map(Place::Fixed).map_err(|bad| bad.0)
            }
            None => Ok(Place::PerItem(Template::List(segments))),
        },
        dynamic @ (Template::Expr(_) | Template::Text(_)) => Ok(Place::PerItem(dynamic)),
        Template::Const(_) | Template::Map(_) => Err("a path is text or a list of segments".into()),
    }
}

impl JsonSchema for Reads {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "reads".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "x-farrier": "item_template" })
    }
}

/// What was read.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Texts {
    /// By the item's key: under each name of `read` the text, or null.
    #[schemars(schema_with = "files_schema")]
    pub files: Value,
    /// How many items there are.
    pub count: u64,
    /// How many items have a folder.
    pub folders: u64,
    /// How many texts were read.
    pub read: u64,
    /// Why a file that is there was not read. Missing files have no note.
    pub notes: Vec<Note>,
}

/// Why a file was not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Note {
    /// The item's key.
    pub key: String,
    /// The name under `read`.
    pub name: String,
    /// Why.
    pub note: String,
}

fn files_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "x-farrier": "keys_of:read",
            "additionalProperties": { "type": ["string", "null"] },
        },
    })
}

impl Action for ReadMany {
    const NAME: &'static str = "files.read_many";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
homes:
  uses: files.read_many
  with:
    target: homes
    root: tool_homes
    items: ${ steps.accounts.entries }
    as: account
    key: account.cn
    folder: [\"${ account.cn | after('.') }\"]
    read:
      description: .description
      toolinfo: [toolinfo.json, public_html/toolinfo.json]
    lines: joined
";
    type Output = Texts;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Texts>, Failure> {
        let Some(wanted) = self.wanted(cx.scope())? else {
            return Ok(Planned { fidelity: Fidelity::Deferred, ..Planned::described(Vec::new()) });
        };
        let files = cx.reader(&self.target).await?;
        let at_target = |failure: Failure| failure.at(self.target.alias());
        let reading = Reading {
            root: self.root.clone(),
            parallel: self.parallel,
            timeout: self.timeout.0,
            max_bytes: self.max_bytes,
            max_total_bytes: self.max_total_bytes,
        };
        let Wanted { keys, refused, items, positions } = wanted;
        let found = match files.via() {
            Some(via) => via.read_many(reading, &self.read.shared(), items).await,
            None => reading.here(&files, items).await,
        };
        let found = found.map_err(at_target)?;

        let mut texts =
            Texts { files: Value::Null, count: keys.len() as u64, folders: 0, read: 0, notes: refused };
        let nothing = vec![Value::Null; self.read.names.len()];
        let mut cells = vec![nothing; keys.len()];
        for (found, position) in found.into_iter().zip(positions) {
            texts.folders += u64::from(found.folder);
            for (column, (text, notes)) in found.texts.into_iter().enumerate() {
                let note = |note| Note {
                    key: keys[position].to_string(),
                    name: self.read.names[column].to_string(),
                    note,
                };
                texts.notes.extend(notes.into_iter().map(note));
                if let Some(text) = text {
                    texts.read += 1;
                    cells[position][column] = Value::from(self.shaped(text));
                }
            }
        }
        let records = cells.into_iter().map(|cells| Value::record(self.read.names.clone(), cells));
        texts.files = Value::map(keys.iter().cloned().zip(records));
        let mut planned = Planned::known(texts);
        planned.notes.extend(planned.output.as_ref().and_then(|texts| remark(&texts.notes)));
        Ok(planned)
    }
}

/// What a plan says of files that gave no text: how many, and the first of them.
fn remark(notes: &[Note]) -> Option<String> {
    let Note { key, name, note } = notes.first()?;
    let many = match notes.len() {
        1 => "1 text could not be read".to_owned(),
        many => format!("{many} texts could not be read; the first"),
    };
    // A star stands for all texts of an item.
    let what = if name == "*" { format!("`{key}`") } else { format!("`{name}` of `{key}`") };
    Some(format!("{many}: {what}: {note}"))
}

/// What is to be read, worked out before the disk is touched.
struct Wanted {
    keys: Vec<Text>,
    /// Items whose path is not one: data is never the end of a run.
    refused: Vec<Note>,
    items: Vec<Item>,
    /// Where in `keys` each of `items` belongs.
    positions: Vec<usize>,
}

impl ReadMany {
    /// Keys and paths of all items; nothing when one is known only later.
    fn wanted(&self, scope: &Scope) -> Result<Option<Wanted>, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let starts_well = self.name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(input(format!(
                "`as`: `{}` is not a name: use letters, digits and underscores",
                self.name
            )));
        }
        let fixed = self.read.shared();
        let name = Text::from(&*self.name);
        let mut wanted =
            Wanted { keys: Vec::new(), refused: Vec::new(), items: Vec::new(), positions: Vec::new() };
        let mut known: HashMap<Text, usize> = HashMap::with_capacity(self.items.len());
        for (position, item) in self.items.iter().enumerate() {
            let scope = scope.with(name.clone(), item.clone());
            let at = |failure: Failure| input(format!("`items[{position}]`: {}", failure.message));
            let key = match self.key.eval(&scope).map_err(at)? {
                Value::Text(key) => key,
                Value::Int(number) => number.to_string().into(),
                Value::Unknown(_) => return Ok(None),
                other => {
                    let source = self.key.0.source();
                    return Err(input(format!(
                        "`items[{position}]`: the key `{source}` is {}, not text",
                        other.kind()
                    )));
                }
            };
            if let Some(first) = known.insert(key.clone(), position) {
                let message = format!("`items[{first}]` and `items[{position}]` have the same key `{key}`");
                return Err(input(message));
            }
            let folder = self.folder.eval(&scope).map_err(at)?;
            if folder.unknown_after().is_some() {
                return Ok(None);
            }
            wanted.keys.push(key.clone());
            let paths = SafePath::of_value(&folder).map_err(|bad| bad.0).and_then(|path| {
                if path.segments().next() == Some(PRIVATE) {
                    return Err(format!("`{PRIVATE}` is Farrier's own, and no path leads there"));
                }
                Ok(path)
            });
            let paths = paths.map_err(|wrong| ("*".to_owned(), wrong));
            let paths = paths.and_then(|folder| Ok(Item { folder, texts: self.places(&fixed, &scope)? }));
            match paths {
                Ok(item) => {
                    wanted.items.push(item);
                    wanted.positions.push(position);
                }
                Err((name, note)) => wanted.refused.push(Note { key: key.to_string(), name, note }),
            }
        }
        Ok(Some(wanted))
    }

    /// The places of each text for one item; or the text's name and why it has none.
    fn places(
        &self,
        fixed: &[Option<Arc<[SafePath]>>],
        scope: &Scope,
    ) -> Result<Vec<Arc<[SafePath]>>, (String, String)> {
        let of_text = |(index, fixed): (usize, &Option<Arc<[SafePath]>>)| {
            if let Some(fixed) = fixed {
                return Ok(fixed.clone());
            }
            let path_of = |place: &Place| match place {
                Place::Fixed(path) => Ok(path.clone()),
                Place::PerItem(template) => template
                    .eval(scope)
                    .map_err(|error| error.message)
                    .and_then(|value| SafePath::of_value(&value).map_err(|bad| bad.0)),
            };
            let paths: Result<Arc<[SafePath]>, String> =
                self.read.places[index].iter().map(path_of).collect();
            paths.map_err(|wrong| (self.read.names[index].to_string(), wrong))
        };
        fixed.iter().enumerate().map(of_text).collect()
    }

    fn shaped(&self, text: String) -> String {
        match self.lines {
            Lines::Kept => text,
            Lines::Joined => text.lines().collect::<Vec<_>>().join(" "),
        }
    }
}

#[cfg(test)]
mod tests {
    use farrier_action::ActionRegistry;

    use super::*;

    #[test]
    fn plans_say_how_many_texts_are_missing_and_name_the_first() {
        let note =
            |name: &str| Note { key: "tools.a".into(), name: name.into(), note: "it is a folder".into() };
        for (notes, expected) in [
            (vec![], None),
            (
                vec![note("description")],
                Some("1 text could not be read: `description` of `tools.a`: it is a folder"),
            ),
            (
                vec![note("*"), note("toolinfo")],
                Some("2 texts could not be read; the first: `tools.a`: it is a folder"),
            ),
        ] {
            assert_eq!(remark(&notes).as_deref(), expected);
        }
    }

    #[test]
    fn what_is_known_later_defers_the_step() {
        for more in
            ["'key': 'steps.later.x', 'folder': []", "'key': 'account', 'folder': ['${ steps.later.x }']"]
        {
            let input = format!(
                "{{'target': 'homes', 'root': 'a', 'as': 'account', 'items': [1], {more}, 'read': {{'a': 'a'}}}}"
            );
            let action: ReadMany = Value::from_json(&input.replace('\'', "\"")).unwrap().read().unwrap();
            let steps = Value::map([("later", Value::Unknown("later".into()))]);
            assert!(action.wanted(&Scope::new(vec![("steps".into(), steps)])).unwrap().is_none());
        }
    }

    #[test]
    fn the_example_and_the_schema_fit() {
        let mut registry = ActionRegistry::default();
        crate::register(&mut registry).unwrap();
        let spec = &registry.catalog().actions["files.read_many"];
        let step: Value = serde_saphyr::from_str(spec.example).unwrap();
        let with = step.get("homes").and_then(|step| step.get("with")).unwrap();
        let with = Value::map(with.as_map().unwrap().iter().map(|(key, value)| {
            (key.clone(), if &**key == "items" { Value::list(Vec::new()) } else { value.clone() })
        }));
        registry.bind("files.read_many", &with).map(drop).unwrap();
        assert_eq!(spec.output["properties"]["files"]["additionalProperties"]["x-farrier"], "keys_of:read");
        assert_eq!(spec.input["properties"]["read"]["x-farrier"], "item_template");
    }
}
