//! A small catalog, so that the language is tested without plugins; and one way to read a file by what it is.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part")]

use std::collections::BTreeMap;

use farrier_model::Effect;
use farrier_model::spec::{ActionSpec, Catalog, Risk, TargetSpec};
use farrier_runbook::{
    Diagnostics, Source, compile, compile_alerts, parse, read_environment, read_project, read_tests,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// Makes a type whose schema is a string with an `x-farrier` mark.
macro_rules! marked {
    ($($name:ident = $mark:literal),+) => {
        $(
            struct $name;
            impl JsonSchema for $name {
                fn inline_schema() -> bool {
                    true
                }
                fn schema_name() -> std::borrow::Cow<'static, str> {
                    stringify!($name).into()
                }
                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!({ "type": "string", "x-farrier": $mark })
                }
            }
        )+
    };
}
marked! {
    FreeText = "text",
    Literal = "literal",
    ItemExpr = "item_expression",
    LdapTarget = "target:ldap",
    SqlTarget = "target:sql",
    FilesTarget = "target:files",
    SignalName = "signal",
    RunbookName = "runbook"
}

/// A tree whose `${ }` parts are evaluated for each item.
struct ItemTemplate(u8);

impl JsonSchema for ItemTemplate {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ItemTemplate".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-farrier": "item_template" })
    }
}

/// Any value.
struct Any(u8);

impl JsonSchema for Any {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Any".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        true.into()
    }
}

/// A reference to a secret. Exactly one key.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case", deny_unknown_fields)]
enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file.
    File(String),
    /// A systemd credential.
    Credential(String),
    /// A command's output.
    Command(Vec<String>),
}

/// A directory.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct LdapConfig {
    /// The server.
    url: String,
    /// Who reads.
    read_as: Option<Account>,
    /// Seconds to wait for an answer.
    wait: Option<u16>,
}

/// An account.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Account {
    /// Its entry.
    dn: String,
    /// Its password.
    password: SecretRef,
}

/// A database.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct SqlConfig {
    /// The server and the database.
    url: String,
    /// The password.
    password: Option<SecretRef>,
}

/// Trees of files.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FilesConfig {
    /// Folders by name.
    roots: BTreeMap<String, String>,
}

/// Finds entries of a directory.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Search {
    /// The directory.
    target: LdapTarget,
    /// Where to look.
    base: String,
    /// Which entries.
    filter: Literal,
    /// Values for the filter.
    #[schemars(default)]
    params: BTreeMap<String, Any>,
    /// The attributes to read, with their types.
    attributes: BTreeMap<String, String>,
    /// The most entries.
    limit: Option<u32>,
    /// How deep to look.
    scope: Option<Scope>,
}

/// How deep to look.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum Scope {
    /// The entry alone.
    Base,
    /// Everything below.
    Subtree,
}

/// What was found.
#[derive(JsonSchema)]
struct Found {
    /// The entries.
    #[schemars(schema_with = "entries")]
    entries: u8,
}

fn entries(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "object", "x-farrier": "keys_of:attributes" } })
}

/// Makes a table equal to a list of rows.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Sync {
    /// The database.
    target: SqlTarget,
    /// The table.
    table: String,
    /// The columns that tell rows apart.
    key: Vec<String>,
    /// The rows.
    rows: Vec<BTreeMap<String, Any>>,
    /// What happens to other rows.
    #[schemars(default)]
    rows_not_listed: Option<RowsNotListed>,
}

/// What happens to other rows.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum RowsNotListed {
    Keep,
    Delete,
}

/// What was changed.
#[derive(JsonSchema)]
struct Synced {
    /// Rows.
    changed: u64,
}

/// Maps a list.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Rows {
    /// The list.
    from: Vec<Any>,
    /// The item's name.
    r#as: String,
    /// Which items.
    r#where: Option<ItemExpr>,
    /// Other lists by key.
    #[schemars(default)]
    lookup: BTreeMap<String, Lookup>,
    /// The columns.
    row: BTreeMap<String, ItemTemplate>,
}

/// Another list by key.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Lookup {
    /// The list.
    r#in: Vec<Any>,
    /// The key of an item.
    key: ItemExpr,
}

/// The list.
#[derive(JsonSchema)]
struct RowsOut {
    /// One row for each item.
    #[schemars(schema_with = "rows")]
    rows: u8,
}

fn rows(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "object", "x-farrier": "keys_of:row" } })
}

/// Deletes a tree.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DeleteTree {
    /// Where.
    target: FilesTarget,
    /// The named root.
    root: String,
    /// The folder below it.
    path: Vec<String>,
}

/// Sends a message.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Note {
    /// What to say.
    message: FreeText,
}

/// Waits.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Wait {
    /// How long.
    #[serde(rename = "for")]
    length: Option<String>,
    /// A signal that ends it early.
    signal: Option<SignalName>,
}

/// Lists runs.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Runs {
    /// Of which runbook.
    runbook: RunbookName,
}

/// Nothing.
#[derive(JsonSchema)]
struct Nothing {}

fn schema<T: JsonSchema>() -> serde_json::Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

fn action<I: JsonSchema, O: JsonSchema>(name: &'static str, effect: Effect, risk: Risk) -> ActionSpec {
    ActionSpec {
        name,
        summary: format!("The action {name}."),
        effect,
        pure: name.starts_with("data."),
        risk,
        read_only_if: None,
        deletes: name.contains("delete"),
        restores: name == "sql.sync",
        input: schema::<I>(),
        output: schema::<O>().into(),
        example: "",
    }
}

/// Three target kinds and some actions, shaped like those of the plugins.
pub fn catalog() -> Catalog {
    let actions = [
        action::<Rows, RowsOut>("data.rows", Effect::Read, Risk::ReadOnly),
        action::<DeleteTree, Nothing>("files.delete_tree", Effect::Probed, Risk::Destructive),
        action::<Note, Nothing>("flow.note", Effect::Read, Risk::ReadOnly),
        action::<Wait, Nothing>("flow.wait", Effect::Read, Risk::ReadOnly),
        action::<Runs, Nothing>("flow.runs", Effect::Read, Risk::ReadOnly),
        action::<Search, Found>("ldap.search", Effect::Read, Risk::ReadOnly),
        action::<Note, Nothing>("mail.send", Effect::Once, Risk::Recoverable),
        action::<Sync, Synced>("sql.sync", Effect::Repeatable, Risk::Recoverable),
    ];
    let targets = [
        TargetSpec { kind: "files", summary: "Trees of files.".into(), config: schema::<FilesConfig>() },
        TargetSpec { kind: "ldap", summary: "A directory.".into(), config: schema::<LdapConfig>() },
        TargetSpec { kind: "sql", summary: "A database.".into(), config: schema::<SqlConfig>() },
    ];
    Catalog {
        actions: actions.into_iter().map(|spec| (spec.name, spec)).collect(),
        targets: targets.into_iter().map(|spec| (spec.kind, spec)).collect(),
    }
}

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `NAME.yaml`
    Runbook,
    /// `NAME.environment.yaml`
    Environment,
    /// `NAME.project.yaml`
    Project,
    /// `NAME.test.yaml`
    Tests,
    /// `NAME.alerts.yaml`
    Alerts,
}

impl FileKind {
    /// By the end of the name, or the word itself.
    pub fn of(name: &str) -> FileKind {
        let stem = name.strip_suffix(".yaml").unwrap_or(name);
        match stem.rsplit('.').next() {
            Some("environment") => FileKind::Environment,
            Some("project") => FileKind::Project,
            Some("test" | "tests") => FileKind::Tests,
            Some("alerts") => FileKind::Alerts,
            _ => FileKind::Runbook,
        }
    }
}

/// Reads one file as what it is and returns what is wrong with it.
pub fn diagnose(kind: FileKind, name: &str, bytes: &[u8], catalog: &Catalog) -> Diagnostics {
    let mut out = Diagnostics::new();
    let file = out.add_file(name, bytes);
    match kind {
        FileKind::Runbook => match std::str::from_utf8(bytes) {
            Ok(text) => return compile(&sources(name, text), catalog).diagnostics,
            Err(_) => {
                parse(file, bytes, &mut out);
            }
        },
        FileKind::Environment => {
            read_environment(file, bytes, catalog, &mut out);
        }
        FileKind::Project => {
            read_project(file, bytes, &mut out);
        }
        FileKind::Tests => {
            read_tests(file, bytes, catalog, &mut out);
        }
        FileKind::Alerts => match Source::from_bytes(name, bytes) {
            Ok(source) => return compile_alerts(&[source], &compile(&[disk()], catalog)).diagnostics,
            Err(mistakes) => return mistakes,
        },
    }
    out
}

/// The runbook that routes in files of alerts name.
fn disk() -> Source {
    let text = "runbook: disk\nsummary: An example\nowner: admins\nrisk: read_only\n\
                inputs: { node: { type: host, pattern: 'node-[0-9]+' } }\n\
                steps:\n  tell: { uses: flow.note, with: { message: \"${ inputs.node }\" } }\n";
    Source { path: "disk.yaml".into(), text: text.into() }
}

/// The files of one case: a line `# file: NAME.yaml` begins each of several.
pub fn sources(name: &str, text: &str) -> Vec<Source> {
    const MARK: &str = "# file: ";
    if !text.starts_with(MARK) {
        return vec![Source { path: name.into(), text: text.into() }];
    }
    let mut files: Vec<(String, String)> = Vec::new();
    for line in text.split_inclusive('\n') {
        match (line.strip_prefix(MARK), files.last_mut()) {
            (Some(path), _) => files.push((path.trim().to_owned(), String::new())),
            (None, Some((_, text))) => text.push_str(line),
            (None, None) => {}
        }
    }
    files.into_iter().map(|(path, text)| Source { path, text: text.into() }).collect()
}

/// An example on a page of `site/errors`.
pub struct Example<'a> {
    /// It shows the mistake.
    pub wrong: bool,
    /// What kind of file it is.
    pub kind: FileKind,
    /// The file.
    pub text: &'a str,
}

impl Example<'_> {
    /// The name of its file: a runbook has that of its file.
    pub fn file_name(&self) -> String {
        let named = |line: &'_ str| {
            line.strip_prefix("runbook: ").or_else(|| line.strip_prefix("alerts: ")).map(str::to_owned)
        };
        let name = self.text.lines().find_map(named).unwrap_or("example".into());
        format!("{name}.yaml")
    }
}

/// The examples of a page: fences that begin with `yaml wrong|right KIND`.
pub fn examples(page: &str) -> Vec<Example<'_>> {
    let blocks = page.split("\n```yaml ").skip(1);
    blocks
        .map(|block| {
            let Some((info, rest)) = block.split_once('\n') else {
                panic!("the fence `{block}` ends at once")
            };
            let Some((text, _)) = rest.split_once("\n```") else {
                panic!("the fence `{info}` is not closed")
            };
            match info.split_once(' ') {
                Some((verdict @ ("wrong" | "right"), kind)) => {
                    Example { wrong: verdict == "wrong", kind: FileKind::of(kind), text }
                }
                _ => panic!("`{info}` is not `wrong|right KIND`"),
            }
        })
        .collect()
}
