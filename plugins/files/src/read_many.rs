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

use crate::beneath::Beneath;
use crate::path::SafePath;
use crate::pool::{Item, Limits, read_all};
use crate::private::PRIVATE;
use crate::target::FilesTarget;

/// Reads a few small text files in each of many folders, such as the homes of tools.
///
/// A file that is missing is null. So is one that cannot be had as text: forbidden, not UTF-8, too large, no regular
/// file, a link that leaves the item's folder, an error of the disk, no answer in time. Each of these has an entry in
/// `notes` and never fails the step. Links that stay inside the folder are followed; absolute links are not.
///
/// The step fails when the root cannot be opened or the disk as a whole does not answer. A disk that is not mounted
/// can look like an empty folder, so a runbook that deletes by what it reads here checks `folders`.
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
        let timeout = self.timeout.0;
        let root = files.root(&self.root, timeout).await.map_err(at_target)?;
        let limits = Limits {
            parallel: usize::from(self.parallel.clamp(1, 256)),
            timeout,
            max_total: self.max_total_bytes,
        };
        let source = Beneath::new(root, self.max_bytes);
        let Wanted { keys, refused, items, positions } = wanted;
        let found = read_all(source, items, &limits, files.hanging()).await.map_err(at_target)?;

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
        let fixed: Vec<Option<Arc<[SafePath]>>> =
            self.read.places.iter().map(|places| all_fixed(places)).collect();
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

/// The paths, when none depends on the item: then all items share them.
fn all_fixed(places: &[Place]) -> Option<Arc<[SafePath]>> {
    places
        .iter()
        .map(|place| match place {
            Place::Fixed(path) => Some(path.clone()),
            Place::PerItem(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use farrier_action::harness::{Case, World};
    use farrier_action::{ActionRegistry, Binding, Targets};
    use farrier_model::Failure;

    use super::*;

    fn json(text: &str) -> Value {
        Value::from_json(&text.replace('\'', "\"")).unwrap()
    }

    fn registry() -> ActionRegistry {
        let mut registry = ActionRegistry::default();
        crate::register(&mut registry).unwrap();
        registry
    }

    /// When everything below a folder was last changed.
    fn tree(folder: &Path, world: &mut World) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            world.insert(
                path.display().to_string(),
                Value::text(format!("{:?}", metadata.modified().unwrap())),
            );
            if metadata.is_dir() {
                tree(&path, world);
            }
        }
    }

    async fn read(dir: &Path, config: &str, input: &Value, bad_inputs: &[&str]) -> Result<Value, Failure> {
        let registry = registry();
        let config = json(config);
        let binding = Binding { alias: "homes".into(), kind: "files".into(), config };
        let targets = Arc::new(Targets::new(dir.to_owned(), vec![binding], BTreeMap::new()));
        let steps = Value::map([("later", Value::Unknown("later".into()))]);
        let case = Case {
            registry: &registry,
            action: "files.read_many",
            input: input.clone(),
            targets,
            scope: Scope::new(vec![("steps".into(), steps)]),
            observe: Box::new(|| {
                Box::pin(async {
                    let mut world = World::new();
                    tree(dir, &mut world);
                    world
                })
            }),
            disturb: None,
            bad_inputs: bad_inputs.iter().map(|text| json(text)).collect(),
        };
        Ok(case.prove().await?.output)
    }

    const ROOTS: &str = "{'roots': {'tool_homes': 'homes', 'gone': 'nowhere'}}";

    fn input(more: &str) -> Value {
        json(&format!("{{'target': 'homes', 'root': 'tool_homes', 'as': 'account', {more}}}"))
    }

    const TOOLS: &str = "'items': [{'cn': 'tools.a'}, {'cn': 'tools.b'}, {'cn': 'tools.c'}, {'cn': 'tools...'}, {'cn': 'tools.x/y'}],
        'key': 'account.cn', 'folder': ['${ account.cn | after(\\\".\\\") }'],
        'read': {'description': '.description', 'toolinfo': ['toolinfo.json', 'public_html/toolinfo.json']}";

    fn homes() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join("homes").join(name);
        fs::create_dir_all(at("a/public_html")).unwrap();
        fs::create_dir_all(at("b/public_html")).unwrap();
        fs::write(at("a/.description"), "one\r\ntwo\n\nfour 🦊\n").unwrap();
        fs::write(at("a/toolinfo.json"), "first").unwrap();
        fs::write(at("a/public_html/toolinfo.json"), "second").unwrap();
        fs::write(at("b/public_html/toolinfo.json"), "third").unwrap();
        symlink("../a/.description", at("b/.description")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        dir
    }

    #[tokio::test]
    async fn each_item_has_its_texts_and_trouble_its_notes() {
        let dir = homes();
        let output =
            read(dir.path(), ROOTS, &input(&format!("{TOOLS}, 'lines': 'joined'")), &[]).await.unwrap();
        let expected = json(
            "{'tools.a': {'description': 'one two  four 🦊', 'toolinfo': 'first'},
              'tools.b': {'description': null, 'toolinfo': 'third'},
              'tools.c': {'description': null, 'toolinfo': null},
              'tools...': {'description': null, 'toolinfo': null},
              'tools.x/y': {'description': null, 'toolinfo': null}}",
        );
        assert_eq!(output.get("files"), Some(&expected));
        for (field, expected) in [("count", 5), ("folders", 2), ("read", 3)] {
            assert_eq!(output.get(field), Some(&Value::Int(expected)), "{field}");
        }
        let mut notes: Vec<String> = output
            .get("notes")
            .and_then(Value::as_list)
            .unwrap()
            .iter()
            .map(|note| ["key", "name", "note"].map(|field| note.get(field).unwrap().to_string()).join(" "))
            .collect();
        notes.sort();
        assert_eq!(
            notes,
            [
                "tools... * `..` cannot be a segment of a path",
                "tools.b description `.description`: it is a link that leaves its folder",
                "tools.x/y * `x/y` contains a slash, and is to be one segment",
            ]
        );
        let kept = read(dir.path(), ROOTS, &input(TOOLS), &[]).await.unwrap();
        let text = kept.get("files").and_then(|files| files.get("tools.a")?.get("description"));
        assert_eq!(text, Some(&Value::text("one\r\ntwo\n\nfour 🦊\n")));
    }

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

    #[tokio::test]
    async fn paths_may_depend_on_the_item_by_segments() {
        let dir = homes();
        let more = |place: &str| {
            input(&format!(
                "'items': ['a', 'b', '..'], 'key': 'account', 'folder': [], 'read': {{'text': [{place}]}}"
            ))
        };
        let texts = |output: Value| {
            ["a", "b", ".."]
                .map(|key| output.get("files").unwrap().get(key).unwrap().get("text").unwrap().to_string())
        };
        let output = read(dir.path(), ROOTS, &more("['${ account }', 'public_html', 'toolinfo.json']"), &[])
            .await
            .unwrap();
        assert_eq!(texts(output), ["second", "third", "null"]);
        // Data cannot add a folder: it is one segment, whatever it contains.
        let output =
            read(dir.path(), ROOTS, &more("'${ account ~ \\\"/toolinfo.json\\\" }'"), &[]).await.unwrap();
        assert_eq!(texts(output), ["null", "null", "null"]);
    }

    #[tokio::test]
    async fn bad_input_is_refused_before_the_disk_is_touched() {
        let dir = homes();
        let bad = |from: &str, to: &str| {
            format!("{{'target': 'homes', 'root': 'tool_homes', 'as': 'account', {TOOLS}}}").replace(from, to)
        };
        let cases = [
            bad("'.description'", "'../.description'"),
            bad("'.description'", "'/etc/passwd'"),
            bad("'.description'", "'a//b'"),
            bad("'.description'", "[]"),
            bad("'.description'", "[['a', '..']]"),
            bad("'.description'", "7"),
            bad("'account.cn'", "'account.cn +'"),
            bad("'account.cn'", "'account.nothing'"),
            bad("'account.cn'", "'\\\"same\\\"'"),
            bad("'as': 'account'", "'as': 'an account'"),
            bad("'tool_homes'", "'elsewhere'"),
            bad("'as':", "'lines': 'all', 'as':"),
            bad("'as':", "'timeout': '0s', 'as':"),
            bad("'as':", "'parallel': -1, 'as':"),
            bad("'target': 'homes'", "'target': 'nowhere'"),
        ];
        let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
        read(dir.path(), ROOTS, &input(TOOLS), &cases).await.unwrap();
    }

    #[tokio::test]
    async fn a_root_that_is_not_there_is_a_failure_and_not_an_empty_answer() {
        let dir = homes();
        let gone = json(&format!("{{'target': 'homes', 'root': 'gone', 'as': 'account', {TOOLS}}}"));
        let failure = read(dir.path(), ROOTS, &gone, &[]).await.unwrap_err();
        assert_eq!((failure.kind, failure.target.as_deref()), (FailureKind::Unreachable, Some("homes")));
        assert!(failure.message.starts_with("cannot open the root `gone`"), "{failure}");
        let config = "{'via': {'helper': '/usr/bin/farrier'}}";
        let failure = read(dir.path(), config, &input(TOOLS), &[]).await.unwrap_err();
        assert!(
            failure.kind == FailureKind::Input && failure.message.contains("behind `via`"),
            "{}",
            failure.message
        );
    }

    #[tokio::test]
    async fn total_size_is_limited() {
        let dir = homes();
        let failure = read(dir.path(), ROOTS, &input(&format!("{TOOLS}, 'max_total_bytes': 10")), &[])
            .await
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Limit);
        let output = read(dir.path(), ROOTS, &input(&format!("{TOOLS}, 'max_bytes': 5")), &[]).await.unwrap();
        assert_eq!(output.get("read"), Some(&Value::Int(2)));
        assert!(output.get("notes").unwrap().to_json().contains("larger than 5 bytes"));
    }

    #[test]
    fn what_is_known_later_defers_the_step() {
        for more in
            ["'key': 'steps.later.x', 'folder': []", "'key': 'account', 'folder': ['${ steps.later.x }']"]
        {
            let action: ReadMany =
                input(&format!("'items': [1], {more}, 'read': {{'a': 'a'}}")).read().unwrap();
            let steps = Value::map([("later", Value::Unknown("later".into()))]);
            assert!(action.wanted(&Scope::new(vec![("steps".into(), steps)])).unwrap().is_none());
        }
    }

    #[test]
    fn the_example_and_the_schema_fit() {
        let registry = registry();
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
