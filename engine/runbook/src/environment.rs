//! An environment says what the targets of runbooks are: the only place with addresses and references to secrets.
//!
//! Read [`EnvironmentFile`] (what is written) and [`Environment`] (what is left when it is right). An environment can
//! make a runbook stricter, never looser.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use farrier_model::expr::Template;
use farrier_model::spec::{Catalog, Risk};
use farrier_model::{ChangeKind, Value};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::at::{At, Keyed};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, FileId, Span, nearest, quoted};
use crate::graph::{Guard, GuardAction};
use crate::read::{self, Place, SchemaHooks, check_entry, read};
use crate::yaml::{Node, NodeKind, parse};

/// An environment: what the targets of runbooks are, who is told, and what is stricter here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentFile {
    /// The name, as in `--env NAME`.
    #[schemars(extend("pattern" = "^[a-z0-9]([a-z0-9_.-]*[a-z0-9])?$", "x-expected" = "a name of small letters, digits, `-`, `_` and `.`"))]
    environment: At<String>,
    /// For people who choose one.
    about: Option<String>,
    /// What each target is, by the name that runbooks use: its `kind` and that kind's settings, or `group:` with the
    /// names of several targets of one kind.
    #[schemars(extend("propertyNames" = { "pattern": "^[a-z][a-z0-9_]*$", "x-expected": "a name of small letters, digits and `_` that begins with a letter" }))]
    #[expect(
        dead_code,
        reason = "read from the tree, so that targets are checked even when another key is wrong"
    )]
    #[serde(default)]
    targets: Keyed<Node>,
    /// Where the people are, by the names that runbooks use in `owner:` and `escalate:`.
    #[serde(default)]
    notify: BTreeMap<String, Contact>,
    /// Groups of people by name, for the approvals and signals of runbooks: `{ roots: [ada, grace] }`. A name that is no
    /// group stands for one person.
    #[serde(default)]
    people: BTreeMap<String, Vec<String>>,
    /// Receivers of Alertmanager whose alerts start runs here: the last part of the webhook's path,
    /// `/webhooks/alertmanager/RECEIVER`. Without any, no alert starts a run here.
    #[serde(default)]
    receivers: Vec<String>,
    /// `true`: nothing that writes starts by itself.
    #[serde(default)]
    freeze: bool,
    /// Limits on the changes of every run, besides those of its runbook.
    #[serde(default)]
    guards: Vec<At<GuardFile>>,
    /// How many people must approve a run before its first write.
    #[serde(default)]
    approvals: Approvals,
    /// Where runs are kept. Without it: SQLite, in the data folder.
    store: Option<Store>,
}

/// Where a group of people is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// A mail address.
    #[schemars(extend("pattern" = "^[^@ ]+@[^@ ]+$", "x-expected" = "a mail address"))]
    pub mail: String,
    /// The target of kind `mail` that sends it; may be left out where there is only one.
    #[serde(default)]
    pub through: Option<String>,
}

/// How many people must approve a run before its first write, by the runbook's risk. The person who asked for the run
/// does not count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approvals {
    /// For `risk: recoverable`.
    #[serde(default)]
    #[schemars(range(max = 9))]
    pub recoverable: u32,
    /// For `risk: destructive`.
    #[serde(default)]
    #[schemars(range(max = 9))]
    pub destructive: u32,
}

impl Approvals {
    /// How many a runbook of this risk needs.
    pub fn needed(&self, risk: Risk) -> u32 {
        match risk {
            Risk::ReadOnly => 0,
            Risk::Recoverable => self.recoverable,
            Risk::Destructive => self.destructive.max(self.recoverable),
        }
    }
}

/// Where runs are kept. Exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Store {
    /// A SQLite file; a relative path starts at the folder of the environment file.
    Sqlite(String),
    /// A PostgreSQL database, shared by several nodes.
    Postgres(Postgres),
}

/// A PostgreSQL database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// `postgres://USER@HOST/DATABASE`, without the password.
    pub url: String,
    /// Where the password is.
    pub password: Option<SecretSource>,
}

/// A reference to a secret. Exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSource {
    /// The value of an environment variable of the Farrier process.
    Env(String),
    /// The content of a file, without its last line break. Refused when others can read the file.
    File(String),
    /// A systemd credential (`LoadCredential=`) of the service.
    Credential(String),
    /// The standard output of a command; an argument list with an absolute program.
    Command(Vec<String>),
}

/// A limit on the changes of every run here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GuardFile {
    /// The kinds of change it counts; all when left out.
    #[serde(default)]
    count: Vec<Counted>,
    /// At most so many.
    at_most: Option<u64>,
    /// At most this share of the objects that were compared, such as `2%`.
    #[schemars(extend("pattern" = "^[0-9]{1,2}(\\.[0-9]+)?%$", "x-expected" = "a share such as `2%`"))]
    share: Option<String>,
    /// What happens beyond that.
    #[serde(default)]
    otherwise: Otherwise,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Counted {
    Create,
    Update,
    Delete,
    Run,
    Send,
}

/// What happens when a guard trips.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Otherwise {
    /// The run fails before the change.
    Stop,
    /// The run waits until a person accepts.
    #[default]
    Ask,
    /// As `ask`, and the owner is paged.
    Page,
}

/// Several targets under one name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupFile {
    /// The names of targets of one kind, in the order in which they are used.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    group: Vec<At<String>>,
}

/// A checked environment.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The name.
    pub name: String,
    /// For people.
    pub about: Option<String>,
    /// What the targets are.
    pub targets: TargetBindings,
    /// Where people are, by name.
    pub notify: BTreeMap<String, Contact>,
    /// Groups of people, by name.
    pub people: BTreeMap<String, Vec<String>>,
    /// Receivers whose alerts start runs here.
    pub receivers: Vec<String>,
    /// Nothing that writes starts by itself.
    pub freeze: bool,
    /// Limits besides those of the runbooks.
    pub guards: Vec<Guard>,
    /// Approvals by risk.
    pub approvals: Approvals,
    /// Where runs are kept.
    pub store: Option<Store>,
}

/// What the aliases of runbooks stand for.
#[derive(Debug, Clone, Default)]
pub struct TargetBindings {
    /// Single targets, in file order.
    pub bindings: Vec<Binding>,
    /// Aliases that stand for several targets of one kind, in the file's order.
    pub groups: BTreeMap<String, Vec<String>>,
}

/// One target.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The name that runbooks use.
    pub alias: At<String>,
    /// The kind.
    pub kind: String,
    /// The kind's settings, checked against its schema.
    pub config: Value,
}

impl TargetBindings {
    /// One target, by alias.
    pub fn get(&self, alias: &str) -> Option<&Binding> {
        self.bindings.iter().find(|binding| *binding.alias == alias)
    }

    /// The kind behind an alias, and whether it is a group.
    pub fn kind(&self, alias: &str) -> Option<(&str, bool)> {
        if let Some(binding) = self.get(alias) {
            return Some((&binding.kind, false));
        }
        let first = self.groups.get(alias)?.first()?;
        self.get(first).map(|binding| (&*binding.kind, true))
    }
}

/// Reads an environment. Nothing is returned when something in it is wrong.
pub fn read_environment(
    file: FileId,
    bytes: &[u8],
    catalog: &Catalog,
    out: &mut Diagnostics,
) -> Option<Environment> {
    let node = parse(file, bytes, out)?;
    let before = out.len();
    // The targets are checked even when something else is wrong, so that all problems show at once.
    let written = read::<EnvironmentFile>(&node, out);
    let targets = match node.get("targets") {
        Some(targets) => read_targets(targets, catalog, out),
        None => Some(TargetBindings::default()),
    };
    let written = written?;
    let guards: Vec<Guard> = written.guards.iter().filter_map(|guard| read_guard(guard, out)).collect();
    if let Some(Store::Postgres(postgres)) = &written.store
        && has_password(&postgres.url)
        && let Some(url) =
            node.get("store").and_then(|store| store.get("postgres")).and_then(|store| store.get("url"))
    {
        report_secret(url.span, "url", out);
    }
    let targets = targets?;
    if out.has_errors_in(file) && out.len() > before {
        return None;
    }
    Some(Environment {
        name: written.environment.value,
        about: written.about,
        targets,
        notify: written.notify,
        people: written.people,
        receivers: written.receivers,
        freeze: written.freeze,
        guards,
        approvals: written.approvals,
        store: written.store,
    })
}

fn read_guard(written: &At<GuardFile>, out: &mut Diagnostics) -> Option<Guard> {
    if written.at_most.is_none() && written.share.is_none() {
        out.push(
            Diagnostic::new(codes::NO_LIMIT, written.span, "this guard limits nothing")
                .help("add `at_most:` or `share:`"),
        );
        return None;
    }
    let share = written.share.as_deref().and_then(|text| text.strip_suffix('%')?.parse::<f64>().ok());
    Some(Guard {
        count: written.count.iter().map(|counted| (*counted).into()).collect(),
        at_most: written.at_most,
        share: share.map(|percent| percent / 100.0),
        rate: None,
        otherwise: match written.otherwise {
            Otherwise::Stop => GuardAction::Stop,
            Otherwise::Ask => GuardAction::Ask,
            Otherwise::Page => GuardAction::Page,
        },
        text: out.text(written.span).replace('\n', " ").into(),
    })
}

impl From<Counted> for ChangeKind {
    fn from(counted: Counted) -> ChangeKind {
        match counted {
            Counted::Create => ChangeKind::Create,
            Counted::Update => ChangeKind::Update,
            Counted::Delete => ChangeKind::Delete,
            Counted::Run => ChangeKind::Run,
            Counted::Send => ChangeKind::Send,
        }
    }
}

/// Reads what stands under `targets:`, in an environment or a test.
pub(crate) fn read_targets(node: &Node, catalog: &Catalog, out: &mut Diagnostics) -> Option<TargetBindings> {
    // That it is a map was checked with the file's type.
    let entries = node.as_map()?;
    let before = out.len();
    let mut targets = TargetBindings::default();
    let mut groups: Vec<(&str, GroupFile)> = Vec::new();
    for (key, value) in entries {
        let Some(fields) = value.as_map() else {
            if value.kind != NodeKind::Broken {
                let message = format!("{}: expected a map, found {}", quoted(&key.text), value.describe());
                out.push(
                    Diagnostic::new(codes::WRONG_TYPE, key.span, message)
                        .help("write `{ kind: …, … }`, or `{ group: [ … ] }` for several targets"),
                );
            }
            continue;
        };
        match (value.entry("kind"), value.entry("group")) {
            (Some((_, kind)), None) => {
                let kind_name = kind.as_text().map(|text| &**text).unwrap_or_default();
                if kind.is_null() {
                    let span = value.entry("kind").map_or(key.span, |(kind, _)| kind.span);
                    out.push(
                        Diagnostic::new(codes::NO_VALUE, span, "`kind` has no value")
                            .help(format!("the kinds are {}", kinds(catalog))),
                    );
                    continue;
                }
                let Some(spec) = catalog.targets.get(kind_name) else {
                    unknown_kind(kind, catalog, out);
                    continue;
                };
                let rest = fields.iter().filter(|(field, _)| &*field.text != "kind").cloned().collect();
                let rest = Node { span: key.span, kind: NodeKind::Map(rest) };
                let mut hooks = Secrets { alias: key };
                let checked = check_entry(key, &rest, &spec.config, &mut hooks, out);
                if let Some(config) = checked.and_then(read::constant) {
                    let alias = At::new(key.text.to_string(), key.span);
                    targets.bindings.push(Binding { alias, kind: kind_name.to_owned(), config });
                }
            }
            (None, Some(_)) => {
                if let Some(group) = read::<GroupFile>(value, out) {
                    groups.push((&key.text, group));
                }
            }
            (Some((kind, _)), Some((group, _))) => out.push(
                Diagnostic::new(
                    codes::KIND_OR_GROUP,
                    group.span,
                    format!("{} is both one target and a group", quoted(&key.text)),
                )
                .label(kind.span, "one target")
                .help("remove `kind:` or `group:`"),
            ),
            (None, None) => out.push(
                Diagnostic::new(
                    codes::KIND_OR_GROUP,
                    key.span,
                    format!("{} has no `kind`", quoted(&key.text)),
                )
                .help(format!("add `kind:`, one of {}", kinds(catalog))),
            ),
        }
    }
    for (alias, group) in groups {
        check_group(alias, &group, entries, out);
        targets.groups.insert(alias.to_owned(), group.group.into_iter().map(|member| member.value).collect());
    }
    (out.len() == before).then_some(targets)
}

fn check_group(alias: &str, group: &GroupFile, entries: &[(crate::yaml::Key, Node)], out: &mut Diagnostics) {
    let mut first: Option<(&At<String>, &str)> = None;
    for member in &group.group {
        let Some((_, target)) = entries.iter().find(|(key, _)| &*key.text == member.as_str()) else {
            let message = format!("there is no target {}", quoted(member));
            let diagnostic = Diagnostic::new(codes::UNKNOWN_MEMBER, member.span, message);
            let others = entries.iter().map(|(key, _)| &*key.text).filter(|name| *name != alias);
            out.push(match nearest(member, others) {
                Some(name) => diagnostic.help(format!("did you mean `{name}`?")),
                None => diagnostic.help(format!("add {} under `targets:`", quoted(member))),
            });
            continue;
        };
        if target.get("group").is_some() {
            out.push(
                Diagnostic::new(
                    codes::MIXED_GROUP,
                    member.span,
                    format!("{} is a group itself", quoted(member)),
                )
                .help("name its members instead"),
            );
            continue;
        }
        let Some(kind) = target.get("kind").and_then(Node::as_text) else { continue };
        match first {
            None => first = Some((member, kind)),
            Some((other, other_kind)) if *other_kind != **kind => out.push(
                Diagnostic::new(
                    codes::MIXED_GROUP,
                    member.span,
                    format!(
                        "{} is of kind `{kind}`, and the group is of kind `{other_kind}`",
                        quoted(member)
                    ),
                )
                .label(other.span, format!("of kind `{other_kind}`"))
                .help("the targets of a group are of one kind"),
            ),
            Some(_) => {}
        }
    }
}

fn unknown_kind(kind: &Node, catalog: &Catalog, out: &mut Diagnostics) {
    if kind.kind == NodeKind::Broken {
        return;
    }
    let message = format!("{} is not a kind of target", kind.describe());
    let diagnostic = Diagnostic::new(codes::UNKNOWN_KIND, kind.span, message);
    let near = kind.as_text().and_then(|text| nearest(text, catalog.targets.keys().copied()));
    out.push(match near {
        Some(name) => diagnostic.help(format!("did you mean `{name}`?")),
        None => diagnostic.help(format!("the kinds are {}", kinds(catalog))),
    });
}

fn kinds(catalog: &Catalog) -> String {
    catalog.targets.keys().map(|kind| quoted(kind)).collect::<Vec<_>>().join(", ")
}

/// Finds secrets that were written into a file.
struct Secrets<'a> {
    alias: &'a crate::yaml::Key,
}

impl SchemaHooks for Secrets<'_> {
    fn intercept(&mut self, place: Place<'_>, out: &mut Diagnostics) -> Option<Option<Template>> {
        let scalar = place.node.as_scalar()?;
        let name = place.key.map_or("", |key| &key.text);
        if is_secret(place.schema) && !scalar.is_null() {
            report_secret(place.node.span, name, out);
            return Some(None);
        }
        if has_password(&scalar.text) {
            report_secret(place.node.span, if name.is_empty() { &self.alias.text } else { name }, out);
            return Some(None);
        }
        None
    }
}

fn report_secret(span: Span, name: &str, out: &mut Diagnostics) {
    out.push(
        Diagnostic::new(codes::SECRET_IN_FILE, span, format!("a secret stands in {}", quoted(name))).help(
            "say where it is instead: { env: VARIABLE }, { file: /path }, { credential: name } or { command: [/program] }; \
             and change the secret, for it has been written down",
        ),
    );
}

/// Whether a schema is that of a reference to a secret.
fn is_secret(schema: &Json) -> bool {
    let Some(branches) = schema.get("oneOf").and_then(Json::as_array) else { return false };
    let names = ["env", "file", "credential", "command"];
    branches.len() == names.len()
        && branches.iter().all(|branch| names.iter().any(|name| branch["properties"].get(name).is_some()))
}

/// Whether a text is a URL with a password in it.
fn has_password(text: &str) -> bool {
    static URL: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^[a-z][a-z0-9+.-]*://[^/?#@\s]*:[^/?#@\s]+@").ok());
    URL.as_ref().is_some_and(|url| url.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn catalog() -> Catalog {
        let config = json!({
            "type": "object",
            "properties": { "url": { "type": "string" }, "wait": { "type": "integer" } },
            "required": ["url"],
            "additionalProperties": false,
        });
        let kind = |kind| farrier_model::TargetSpec { kind, summary: String::new(), config: config.clone() };
        Catalog { targets: ["ldap", "sql"].map(|name| (name, kind(name))).into(), ..Catalog::default() }
    }

    #[test]
    fn a_right_environment_is_read_whole() {
        let text = "environment: lab-1
about: For trying things
targets:
  directory: { kind: ldap, url: 'ldap://localhost', wait: 5 }
  s2: { kind: sql, url: 'sqlite:b' }
  s1: { kind: sql, url: 'sqlite:a' }
  replicas: { group: [s2, s1] }
notify:
  admins: { mail: admins@example.org }
freeze: true
guards:
  - { count: [delete, update], at_most: 5, share: 2.5%, otherwise: page }
approvals: { recoverable: 1 }
store: { postgres: { url: 'postgres://farrier@db/farrier', password: { env: PGPASSWORD } } }
";
        let mut out = Diagnostics::new();
        let file = out.add_file("lab-1.yaml", text.as_bytes());
        let environment = read_environment(file, text.as_bytes(), &catalog(), &mut out)
            .unwrap_or_else(|| panic!("{}", out.render(false)));
        assert_eq!(environment.name, "lab-1");
        assert!(environment.freeze);
        let aliases: Vec<&str> =
            environment.targets.bindings.iter().map(|binding| binding.alias.as_str()).collect();
        assert_eq!(aliases, ["directory", "s2", "s1"]);
        let directory = environment.targets.get("directory").unwrap();
        assert_eq!(directory.config.to_json(), r#"{"url":"ldap://localhost","wait":5}"#);
        assert_eq!(out.text(directory.alias.span), "directory");
        assert_eq!(environment.targets.groups["replicas"], ["s2", "s1"]);
        assert_eq!(environment.targets.kind("replicas"), Some(("sql", true)));
        assert_eq!(environment.targets.kind("s1"), Some(("sql", false)));
        assert_eq!(environment.targets.kind("s3"), None);
        let [guard] = environment.guards.as_slice() else { panic!("{:?}", environment.guards) };
        assert_eq!(guard.count, [ChangeKind::Delete, ChangeKind::Update]);
        assert_eq!((guard.at_most, guard.share, guard.otherwise), (Some(5), Some(0.025), GuardAction::Page));
        assert_eq!(environment.approvals.needed(Risk::ReadOnly), 0);
        assert_eq!(environment.approvals.needed(Risk::Destructive), 1, "never fewer than for less");
        assert!(matches!(&environment.store, Some(Store::Postgres(postgres)) if postgres.password.is_some()));
    }

    #[test]
    fn problems_of_targets_show_beside_others() {
        let text = "targets: { a: { kind: ldap, uri: x } }\nfreez: true\n";
        let mut out = Diagnostics::new();
        let file = out.add_file("lab.yaml", text.as_bytes());
        assert!(read_environment(file, text.as_bytes(), &catalog(), &mut out).is_none());
        let mut found: Vec<&str> = out.sorted().iter().map(|found| found.code.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, ["E0201", "E0201", "E0202", "E0202"], "{}", out.render(false));
    }

    #[test]
    fn passwords_in_urls_are_found() {
        for (url, expected) in [
            ("mysql://tools:secret@db/tools", true),
            ("https://:secret@host/", true),
            ("mysql://tools@db/tools", false),
            ("https://host:8080/a@b", false),
            ("https://host/?q=a:b@c", false),
            ("cn=a:b@c", false),
        ] {
            assert_eq!(has_password(url), expected, "{url}");
        }
    }
}
