//! Reading by schema: the JSON Schema of a Rust type checks a [`Node`] tree, and only a clean tree becomes the type.
//!
//! [`check_schema`] walks the tree once beside the schema and reports every problem at its place. It knows the part of
//! JSON Schema that `schemars` makes of Rust types; scalars are read by the declared type, so a `string` field keeps
//! `1.10` and a quoted `"5"` is no number. [`SchemaHooks`] let the compiler take over scalars that hold expressions.
//!
//! Recursion follows the tree, whose depth the parser limits.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use farrier_model::expr::Template;
use farrier_model::spec::MARK;
use farrier_model::{Text, Value};
use regex::Regex;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::codes;
use crate::de;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, nearest, quoted};
use crate::yaml::{Key, Node, NodeKind, Scalar};

/// Extension keyword: what a text with a `pattern` is, in words, for messages.
pub const EXPECTED: &str = "x-expected";

/// Reads `T` out of a tree. Reports every problem; returns nothing when there is one.
///
/// Untagged and internally tagged enums and `flatten` lose places and read scalars without their declared type; authored
/// types do without them. In authored types a key that may be left out may not be empty instead: `needs:` with nothing behind it is a slip.
pub fn read<T: DeserializeOwned + JsonSchema + 'static>(node: &Node, out: &mut Diagnostics) -> Option<T> {
    let schema = schema_of::<T>();
    check_schema(node, &schema, &mut NoHooks, out)?;
    match T::deserialize(de::Reader::new(node)) {
        Ok(value) => Some(value),
        Err(error) => {
            out.push(Diagnostic::new(codes::REFUSED_VALUE, error.span.unwrap_or(node.span), error.message));
            None
        }
    }
}

/// The JSON Schema of an authored type, made once.
pub fn schema_of<T: JsonSchema + 'static>() -> Arc<Json> {
    static MADE: LazyLock<Mutex<HashMap<TypeId, Arc<Json>>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(TypeId::of::<T>())
        .or_insert_with(|| {
            let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
            let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
            without_optional_null(&mut schema);
            Arc::new(schema)
        })
        .clone()
}

/// A key that is not required is left out, not null.
fn without_optional_null(schema: &mut Json) {
    match schema {
        Json::Object(fields) => {
            let required: Vec<String> = fields
                .get("required")
                .and_then(Json::as_array)
                .map(|names| names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
                .unwrap_or_default();
            if let Some(Json::Object(properties)) = fields.get_mut("properties") {
                for (name, property) in properties.iter_mut() {
                    if !required.contains(name) {
                        without_null(property);
                    }
                }
            }
            for (name, field) in fields.iter_mut() {
                if !matches!(name.as_str(), "default" | "const" | "enum" | "examples") {
                    without_optional_null(field);
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(without_optional_null),
        _ => {}
    }
}

fn without_null(schema: &mut Json) {
    let Json::Object(fields) = schema else { return };
    if let Some(Json::Array(types)) = fields.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            fields.insert("type".into(), one);
        }
    }
    if fields.get("default").is_some_and(Json::is_null) {
        fields.shift_remove("default");
    }
    if let Some(Json::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Json::Array(branches)) = fields.get_mut("anyOf") {
        branches.retain(|branch| branch.get("type").is_none_or(|name| name != "null"));
        if let [Json::Object(one)] = branches.as_slice() {
            let one = one.clone();
            fields.shift_remove("anyOf");
            for (name, field) in one {
                // The description of the field says more than that of its type.
                fields.entry(name).or_insert(field);
            }
        }
    }
}

/// Where a node stands, for [`SchemaHooks`].
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// What stands there.
    pub node: &'a Node,
    /// The schema for it, references resolved and "or null" taken off.
    pub schema: &'a Json,
    /// The `x-farrier` mark of that schema.
    pub mark: Option<&'a str>,
    /// The map or list around it.
    pub parent: Option<&'a Node>,
    /// The key it stands under, when it is in a map.
    pub key: Option<&'a Key>,
}

/// Takes over parts of a tree that the schema alone cannot judge.
pub trait SchemaHooks {
    /// Called for each node before it is checked. `None`: the schema decides. `Some(None)`: the hook has judged it and
    /// reported why it is wrong. `Some(Some(template))`: it is fine, and this is what it is.
    ///
    /// May be called more than once for a node that could have one of several shapes; of what is pushed to `out`, only
    /// the diagnostics of the shape that fits best remain.
    fn intercept(&mut self, place: Place<'_>, out: &mut Diagnostics) -> Option<Option<Template>>;
}

/// The schema decides everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl SchemaHooks for NoHooks {
    fn intercept(&mut self, _: Place<'_>, _: &mut Diagnostics) -> Option<Option<Template>> {
        None
    }
}

/// Checks a tree against a JSON Schema and reports every problem. Returns what the tree means, scalars read by their
/// declared type: [`Template::Const`] without hooks; nothing when a problem was found (here or by the parser).
pub fn check_schema(
    node: &Node,
    schema: &Json,
    hooks: &mut dyn SchemaHooks,
    out: &mut Diagnostics,
) -> Option<Template> {
    let mut checker = Checker { root: schema, hooks, trials: 0 };
    checker.check(Place { node, schema, mark: None, parent: None, key: None }, out)
}

/// As [`check_schema`], for what stands under `key`: problems of the whole are shown there.
pub fn check_entry(
    key: &Key,
    node: &Node,
    schema: &Json,
    hooks: &mut dyn SchemaHooks,
    out: &mut Diagnostics,
) -> Option<Template> {
    let mut checker = Checker { root: schema, hooks, trials: 0 };
    checker.check(Place { node, schema, mark: None, parent: None, key: Some(key) }, out)
}

/// The constant behind a [`Template`] that was checked without hooks.
pub fn constant(template: Template) -> Option<Value> {
    match template {
        Template::Const(value) => Some(value),
        _ => None,
    }
}

struct Checker<'a> {
    /// `$ref` starts here.
    root: &'a Json,
    hooks: &'a mut dyn SchemaHooks,
    /// How many shapes are being tried around this place.
    trials: u32,
}

/// Shapes tried inside shapes: beyond this the first one counts, so that the work stays linear.
const MAX_TRIALS: u32 = 3;

static EVERYTHING: Json = Json::Bool(true);

impl<'s> Checker<'s> {
    fn check(&mut self, place: Place<'_>, out: &mut Diagnostics) -> Option<Template> {
        if place.node.kind == NodeKind::Broken {
            return None;
        }
        let (schema, nullable, mark) = self.resolve(place.schema);
        let place = Place { schema, mark: mark.or(place.mark), ..place };
        if let Some(judged) = self.hooks.intercept(place, out) {
            return judged;
        }
        if nullable && place.node.is_null() {
            return Some(Template::Const(Value::Null));
        }
        if let Some(branches) = branches(schema) {
            return self.one_of(place, branches, out);
        }
        match &place.node.kind {
            NodeKind::Scalar(scalar) => scalar_value(scalar, place, out).map(Template::Const),
            NodeKind::List(items) => self.list(place, items, out),
            NodeKind::Map(entries) => self.map(place, entries, out),
            NodeKind::Broken => None,
        }
    }

    /// Follows references and takes "or null" off. The mark may stand on any of the schemas on the way.
    fn resolve<'a>(&self, schema: &'a Json) -> (&'a Json, bool, Option<&'a str>)
    where
        's: 'a,
    {
        let mut schema = schema;
        let mut nullable = false;
        let mut mark = None;
        // Longer chains are circles.
        for _ in 0..16 {
            mark = mark.or_else(|| schema.get(MARK).and_then(Json::as_str));
            nullable |= match schema.get("type") {
                Some(Json::Array(names)) => names.iter().any(|name| name == "null"),
                Some(Json::String(name)) => name == "null",
                _ => schema
                    .get("enum")
                    .and_then(Json::as_array)
                    .is_some_and(|values| values.iter().any(Json::is_null)),
            };
            if let Some(target) = schema.get("$ref").and_then(Json::as_str) {
                let root: &'a Json = self.root;
                let Some(found) = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) else {
                    break;
                };
                schema = found;
                continue;
            }
            if let Some([one]) = schema.get("allOf").and_then(Json::as_array).map(Vec::as_slice) {
                schema = one;
                continue;
            }
            if let Some(options) = schema.get("anyOf").and_then(Json::as_array) {
                let mut others =
                    options.iter().filter(|option| option.get("type").is_none_or(|name| name != "null"));
                let (first, second) = (others.next(), others.next());
                if let (Some(first), None) = (first, second)
                    && options.len() == 2
                {
                    nullable = true;
                    schema = first;
                    continue;
                }
            }
            break;
        }
        (schema, nullable, mark)
    }

    fn list(&mut self, place: Place<'_>, items: &[Node], out: &mut Diagnostics) -> Option<Template> {
        if !allows(place.schema, "array") {
            return wrong_type(place, out);
        }
        let mut good = check_length(place, items.len(), ["minItems", "maxItems"], ["item", "items"], out);
        let item_schema = place.schema.get("items").unwrap_or(&EVERYTHING);
        let prefix = place.schema.get("prefixItems").and_then(Json::as_array);
        let mut checked = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let schema = prefix.and_then(|schemas| schemas.get(index)).unwrap_or(item_schema);
            let inner = Place { node: item, schema, mark: None, parent: Some(place.node), key: None };
            match self.check(inner, out) {
                Some(template) => checked.push(template),
                None => good = false,
            }
        }
        if good && place.schema.get("uniqueItems").is_some_and(|unique| *unique == true) {
            good = check_unique(items, out);
        }
        good.then(|| collapse_list(checked))
    }

    fn map(&mut self, place: Place<'_>, entries: &[(Key, Node)], out: &mut Diagnostics) -> Option<Template> {
        if !allows(place.schema, "object") {
            return wrong_type(place, out);
        }
        let properties = place.schema.get("properties").and_then(Json::as_object);
        let others = place.schema.get("additionalProperties");
        let names = place.schema.get("propertyNames");
        let mut good =
            check_length(place, entries.len(), ["minProperties", "maxProperties"], ["entry", "entries"], out);
        let mut checked = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let known = properties.and_then(|properties| properties.get(&*key.text));
            let schema = match (known, others) {
                (Some(schema), _) | (None, Some(schema)) if known.is_some() || *schema != false => schema,
                (None, Some(_)) => {
                    let known =
                        properties.into_iter().flat_map(|properties| properties.keys()).map(String::as_str);
                    unknown_key(key, known, entries, out);
                    good = false;
                    continue;
                }
                _ => &EVERYTHING,
            };
            if let Some(names) = names {
                good &= check_pattern(&key.text, key.span, names, out);
            }
            let inner = Place { node: value, schema, mark: None, parent: Some(place.node), key: Some(key) };
            match self.check(inner, out) {
                Some(template) => checked.push((key.text.clone(), template)),
                None => good = false,
            }
        }
        for name in place.schema.get("required").and_then(Json::as_array).into_iter().flatten() {
            let Some(name) = name.as_str() else { continue };
            if !entries.iter().any(|(key, _)| &*key.text == name) {
                missing_key(name, properties.and_then(|properties| properties.get(name)), place, out);
                good = false;
            }
        }
        good.then(|| collapse_map(checked))
    }

    /// A node that may have one of several shapes.
    fn one_of(&mut self, place: Place<'_>, branches: &[Json], out: &mut Diagnostics) -> Option<Template> {
        let mut shapes = Vec::new();
        self.flatten(branches, &mut shapes, 0);
        let kind = match &place.node.kind {
            NodeKind::List(_) => "array",
            NodeKind::Map(_) => "object",
            NodeKind::Scalar(_) | NodeKind::Broken => "scalar",
        };
        let fitting: Vec<&Json> = shapes.iter().copied().filter(|shape| fits_kind(shape, kind)).collect();
        match (&place.node.kind, fitting.as_slice()) {
            (_, []) => {
                let expected = list_of(shapes.iter().map(|shape| describe_schema(shape)).collect());
                out.push(
                    Diagnostic::new(
                        codes::WRONG_TYPE,
                        blame(place),
                        format!("{}{} does not fit here", under(place), place.node.describe()),
                    )
                    .expected(expected),
                );
                None
            }
            (_, [one]) => self.check(Place { schema: one, mark: None, ..place }, out),
            (NodeKind::Scalar(scalar), many) => {
                let mut names = Vec::new();
                let closed = many.iter().all(|shape| constants(shape, &mut names));
                if closed {
                    return named_value(scalar, &names, place, out).map(Template::Const);
                }
                self.best(place, many, out)
            }
            (NodeKind::Map(entries), many) => {
                if let Some(tag) = tag_of(many) {
                    return self.tagged(place, entries, many, tag, out);
                }
                if many.iter().all(|shape| only_key(shape).is_some()) {
                    return self.externally_tagged(place, entries, many, out);
                }
                self.best(place, many, out)
            }
            (_, many) => self.best(place, many, out),
        }
    }

    fn flatten<'a>(&self, branches: &'a [Json], shapes: &mut Vec<&'a Json>, depth: usize)
    where
        's: 'a,
    {
        for branch in branches {
            let (schema, ..) = self.resolve(branch);
            match self::branches(schema) {
                Some(inner) if depth < 8 => self.flatten(inner, shapes, depth + 1),
                _ => shapes.push(schema),
            }
        }
    }

    /// `{ env: NAME }`: the one key says which shape it is.
    fn externally_tagged(
        &mut self,
        place: Place<'_>,
        entries: &[(Key, Node)],
        shapes: &[&Json],
        out: &mut Diagnostics,
    ) -> Option<Template> {
        let names: Vec<&str> = shapes.iter().filter_map(|shape| only_key(shape)).collect();
        let chosen = entries.iter().find_map(|(key, _)| {
            let index = names.iter().position(|name| *name == &*key.text)?;
            Some((key, shapes[index]))
        });
        match chosen {
            Some((_, shape)) if entries.len() == 1 => {
                self.check(Place { schema: shape, mark: None, ..place }, out)
            }
            Some((first, _)) => {
                let mut good = true;
                for (key, _) in entries.iter().filter(|(key, _)| key != first) {
                    if names.contains(&&*key.text) {
                        out.push(
                            Diagnostic::new(
                                codes::NOT_ONE_KEY,
                                key.span,
                                format!(
                                    "{} and {} exclude each other",
                                    quoted(&first.text),
                                    quoted(&key.text)
                                ),
                            )
                            .label(first.span, "the other one")
                            .help("keep one of them"),
                        );
                    } else {
                        unknown_key(key, names.iter().copied(), entries, out);
                    }
                    good = false;
                }
                debug_assert!(!good);
                None
            }
            None if entries.is_empty() => {
                let expected = format!("one of {}", list_of(names.iter().map(|name| quoted(name)).collect()));
                out.push(
                    Diagnostic::new(codes::NOT_ONE_KEY, blame(place), "one key is needed here")
                        .expected(expected),
                );
                None
            }
            None => {
                for (key, _) in entries {
                    unknown_key(key, names.iter().copied(), entries, out);
                }
                None
            }
        }
    }

    /// `{ kind: NAME, … }`: a field says which shape it is.
    fn tagged(
        &mut self,
        place: Place<'_>,
        entries: &[(Key, Node)],
        shapes: &[&Json],
        tag: &str,
        out: &mut Diagnostics,
    ) -> Option<Template> {
        let Some((_, value)) = entries.iter().find(|(key, _)| &*key.text == tag) else {
            missing_key(tag, None, place, out);
            return None;
        };
        let tag_value = |shape: &Json| shape["properties"][tag]["const"].as_str().map(str::to_owned);
        let names: Vec<String> = shapes.iter().filter_map(|shape| tag_value(shape)).collect();
        let chosen = value.as_text().and_then(|text| names.iter().position(|name| **name == **text));
        let Some(index) = chosen else {
            not_one_of(value, &names.iter().map(String::as_str).collect::<Vec<_>>(), value.span, out);
            return None;
        };
        self.check(Place { schema: shapes[index], mark: None, ..place }, out)
    }

    /// Tries each shape; the one with the fewest problems counts.
    fn best(&mut self, place: Place<'_>, shapes: &[&Json], out: &mut Diagnostics) -> Option<Template> {
        if self.trials >= MAX_TRIALS {
            return self.check(Place { schema: shapes[0], mark: None, ..place }, out);
        }
        self.trials += 1;
        let before = out.len();
        let mut fewest: Option<Vec<Diagnostic>> = None;
        let mut result = None;
        for shape in shapes {
            result = self.check(Place { schema: shape, mark: None, ..place }, out);
            if result.is_some() {
                break;
            }
            let problems = out.split_off(before);
            if fewest.as_ref().is_none_or(|fewest| problems.len() < fewest.len()) {
                fewest = Some(problems);
            }
        }
        self.trials -= 1;
        if result.is_none() {
            out.truncate(before);
            fewest.into_iter().flatten().for_each(|problem| out.push(problem));
        }
        result
    }
}

/// The alternatives of a schema, if it has any.
fn branches(schema: &Json) -> Option<&[Json]> {
    schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Json::as_array).map(Vec::as_slice)
}

/// Whether the schema allows values of a type; a schema without types allows all.
fn allows(schema: &Json, wanted: &str) -> bool {
    match schema.get("type") {
        Some(Json::String(name)) => name == wanted,
        Some(Json::Array(names)) => names.iter().any(|name| name == wanted),
        _ => schema.get("enum").is_none() && schema.get("const").is_none() && *schema != false,
    }
}

fn fits_kind(schema: &Json, kind: &str) -> bool {
    match kind {
        "scalar" => {
            let named = schema.get("enum").is_some() || schema.get("const").is_some();
            named
                || ["string", "boolean", "integer", "number", "null"].iter().any(|name| allows(schema, name))
        }
        kind => allows(schema, kind),
    }
}

/// Adds the constants of a shape that is nothing but a list of texts.
fn constants<'a>(schema: &'a Json, names: &mut Vec<&'a str>) -> bool {
    if let Some(name) = schema.get("const").and_then(Json::as_str) {
        names.push(name);
        return true;
    }
    let Some(values) = schema.get("enum").and_then(Json::as_array) else { return false };
    names.extend(values.iter().filter_map(Json::as_str));
    true
}

/// The key of a shape with exactly one key.
fn only_key(schema: &Json) -> Option<&str> {
    let [name] = schema.get("required")?.as_array()?.as_slice() else { return None };
    let one = schema.get("properties")?.as_object()?.len() == 1;
    (one && schema.get("additionalProperties") == Some(&Json::Bool(false))).then(|| name.as_str()).flatten()
}

/// The field that is a different constant in each shape.
fn tag_of<'a>(shapes: &[&'a Json]) -> Option<&'a str> {
    let (first, rest) = shapes.split_first()?;
    first.get("properties")?.as_object()?.iter().find_map(|(name, property)| {
        let tagged = |shape: &Json| shape["properties"][name].get("const").is_some_and(Json::is_string);
        (property.get("const").is_some_and(Json::is_string) && rest.iter().all(|shape| tagged(shape)))
            .then_some(name.as_str())
    })
}

/// What a schema wants, in words.
fn describe_schema(schema: &Json) -> String {
    if let Some(text) = schema.get(EXPECTED).and_then(Json::as_str) {
        return text.to_owned();
    }
    let mut names = Vec::new();
    if constants(schema, &mut names) {
        return list_of(names.into_iter().map(quoted).collect());
    }
    if let Some(key) = only_key(schema) {
        return format!("`{key}: …`");
    }
    if let Some(branches) = branches(schema) {
        return list_of(branches.iter().map(describe_schema).collect());
    }
    let word = |name: &str| match name {
        "object" => "a map",
        "array" => "a list",
        "string" => "text",
        "boolean" => "`true` or `false`",
        "integer" => "a whole number",
        "number" => "a number",
        "null" => "nothing",
        _ => "a value",
    };
    match schema.get("type") {
        Some(Json::String(name)) => word(name).to_owned(),
        Some(Json::Array(names)) => list_of(
            names
                .iter()
                .filter_map(Json::as_str)
                .filter(|name| *name != "null")
                .map(|name| word(name).to_owned())
                .collect(),
        ),
        _ => "a value".into(),
    }
}

/// `a`, `a or b`, `a, b or c`, each once.
fn list_of(mut names: Vec<String>) -> String {
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    match names.split_last() {
        None => "nothing".into(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

/// Where to point for a problem of a whole node: a map or list is too long to mark, its key says which one it is.
fn blame(place: Place<'_>) -> Span {
    match (&place.node.kind, place.key) {
        (NodeKind::Map(_) | NodeKind::List(_), Some(key)) => key.span,
        (NodeKind::Map(entries), None) => entries.first().map_or(place.node.span, |(key, _)| key.span),
        // Nothing was written, so there is nothing to mark but the key.
        (NodeKind::Scalar(scalar), Some(key)) if scalar.plain && scalar.text.is_empty() => key.span,
        _ => place.node.span,
    }
}

/// "`needs`: " or nothing.
fn under(place: Place<'_>) -> String {
    place.key.map(|key| format!("{}: ", quoted(&key.text))).unwrap_or_default()
}

fn wrong_type(place: Place<'_>, out: &mut Diagnostics) -> Option<Template> {
    let expected = describe_schema(place.schema);
    let message = format!("{}{} does not fit here", under(place), place.node.describe());
    let mut diagnostic = Diagnostic::new(codes::WRONG_TYPE, blame(place), message).expected(expected);
    if allows(place.schema, "array") && !matches!(place.node.kind, NodeKind::List(_)) {
        diagnostic = diagnostic.help("write a list: `[one]`, or a line that begins with `- ` for each item");
    }
    out.push(diagnostic);
    None
}

/// After so many problems nobody reads the help of the next one.
const ENOUGH: usize = 1000;

/// Keys of other tools, and what they are called here.
const ELSEWHERE: [(&str, &str); 12] = [
    ("action", "uses"),
    ("args", "with"),
    ("depends", "needs"),
    ("depends_on", "needs"),
    ("description", "summary"),
    ("loop", "for_each"),
    ("rollback", "undo"),
    ("schedule", "triggers"),
    ("tasks", "steps"),
    ("variables", "vars"),
    ("when", "if"),
    ("with_items", "for_each"),
];

fn unknown_key<'a>(
    key: &Key,
    known: impl Iterator<Item = &'a str>,
    entries: &[(Key, Node)],
    out: &mut Diagnostics,
) {
    if out.len() > ENOUGH {
        // Looking for what was meant costs more than everything else.
        out.push(Diagnostic::new(codes::UNKNOWN_KEY, key.span, format!("unknown key {}", quoted(&key.text))));
        return;
    }
    let known: Vec<&str> = known.collect();
    let mut diagnostic =
        Diagnostic::new(codes::UNKNOWN_KEY, key.span, format!("unknown key {}", quoted(&key.text)));
    let given = |name: &str| entries.iter().any(|(other, _)| &*other.text == name);
    let elsewhere = ELSEWHERE.iter().find(|(name, _)| **name == *key.text).map(|(_, ours)| *ours);
    if let Some(name) =
        elsewhere.filter(|name| known.contains(name)).or_else(|| nearest(&key.text, known.iter().copied()))
    {
        diagnostic = diagnostic.help(if given(name) {
            format!("`{name}` is given already; remove this key")
        } else {
            format!("did you mean `{name}`?")
        });
    } else if known.is_empty() {
        diagnostic = diagnostic.help("no key is allowed here");
    } else {
        let mut names = known;
        names.sort_unstable();
        diagnostic = diagnostic.help(format!(
            "the keys here are {}",
            names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
        ));
    }
    out.push(diagnostic);
}

fn missing_key(name: &str, schema: Option<&Json>, place: Place<'_>, out: &mut Diagnostics) {
    let message = match place.key {
        Some(key) => format!("{} has no `{name}`", quoted(&key.text)),
        None => format!("the key `{name}` is missing"),
    };
    let mut diagnostic = Diagnostic::new(codes::MISSING_KEY, blame(place), message);
    let about = schema.and_then(|schema| schema.get("description")).and_then(Json::as_str);
    let first = about.and_then(|about| about.split("\n\n").next()).map(|text| text.replace('\n', " "));
    diagnostic = match first {
        Some(about) if about.len() <= 160 => diagnostic.help(format!("add `{name}:`. {about}")),
        _ => diagnostic.help(format!("add `{name}:`")),
    };
    out.push(diagnostic);
}

fn not_one_of(node: &Node, names: &[&str], span: Span, out: &mut Diagnostics) {
    let expected = list_of(names.iter().map(|name| quoted(name)).collect());
    let mut diagnostic =
        Diagnostic::new(codes::NOT_ONE_OF, span, format!("{} is not known here", node.describe()))
            .expected(expected);
    if let Some(name) = node.as_text().and_then(|text| nearest(text, names.iter().copied())) {
        diagnostic = diagnostic.help(format!("did you mean `{name}`?"));
    }
    out.push(diagnostic);
}

fn named_value(scalar: &Scalar, names: &[&str], place: Place<'_>, out: &mut Diagnostics) -> Option<Value> {
    if names.contains(&&*scalar.text) {
        return Some(Value::Text(scalar.text.clone()));
    }
    not_one_of(place.node, names, blame(place), out);
    None
}

/// Reads a scalar by its declared type.
fn scalar_value(scalar: &Scalar, place: Place<'_>, out: &mut Diagnostics) -> Option<Value> {
    let schema = place.schema;
    let mut names = Vec::new();
    if constants(schema, &mut names) {
        return named_value(scalar, &names, place, out);
    }
    let typed = schema.get("type").is_some();
    if !typed && *schema != false {
        return Some(scalar.to_value());
    }
    let allowed = |name: &str| allows(schema, name);
    if scalar.is_null() && !allowed("null") {
        let expected = describe_schema(schema);
        let message = match place.key {
            Some(key) => format!("{} has no value", quoted(&key.text)),
            None => "a value is missing".into(),
        };
        let help = if allowed("string") {
            "write a value; an empty text is \"\""
        } else {
            "write a value, or leave the key out"
        };
        out.push(Diagnostic::new(codes::NO_VALUE, blame(place), message).expected(expected).help(help));
        return None;
    }
    if scalar.is_null() {
        return Some(Value::Null);
    }
    if allowed("boolean")
        && let Some(flag) = scalar.to_bool()
    {
        return Some(Value::Bool(flag));
    }
    if allowed("integer")
        && let Some(number) = scalar.to_int()
    {
        return in_range(number as f64, place, out).then_some(Value::Int(number));
    }
    if allowed("number")
        && let Some(number) = scalar.to_float()
    {
        return in_range(number, place, out).then_some(Value::Float(number));
    }
    if allowed("string") {
        let length = scalar.text.chars().count();
        let good = check_length(place, length, ["minLength", "maxLength"], ["character", "characters"], out)
            && check_pattern(&scalar.text, place.node.span, schema, out);
        return good.then(|| Value::Text(scalar.text.clone()));
    }
    report_scalar(scalar, place, out);
    None
}

/// A scalar that is none of the allowed types, with the fix where it is a known slip.
fn report_scalar(scalar: &Scalar, place: Place<'_>, out: &mut Diagnostics) {
    let allowed = |name: &str| allows(place.schema, name);
    let span = blame(place);
    let shown = place.node.describe();
    let expected = describe_schema(place.schema);
    let text = &*scalar.text;
    let unquoted = scalar.without_quotes();
    let would_fit = allowed("boolean") && unquoted.to_bool().is_some()
        || allowed("integer") && unquoted.to_int().is_some()
        || allowed("number") && unquoted.to_float().is_some();
    let diagnostic = if !scalar.plain && would_fit {
        Diagnostic::new(codes::QUOTED, span, format!("{shown} is in quotes, which makes it text"))
            .help(format!("write {text} without quotes"))
    } else if allowed("boolean") && !allowed("integer") {
        let diagnostic = Diagnostic::new(codes::NOT_BOOL, span, format!("{shown} is not `true` or `false`"));
        match text.to_ascii_lowercase().as_str() {
            "yes" | "y" | "on" | "true" | "1" => diagnostic.help("write true"),
            "no" | "n" | "off" | "false" | "0" => diagnostic.help("write false"),
            _ => diagnostic,
        }
    } else if allowed("integer") {
        int_problem(text, span, &shown)
    } else if allowed("number") {
        Diagnostic::new(codes::NOT_NUMBER, span, format!("{shown} is not a number"))
    } else {
        wrong_type(place, out);
        return;
    };
    out.push(diagnostic.expected(expected));
}

fn int_problem(text: &str, span: Span, shown: &str) -> Diagnostic {
    let digits = text.trim_start_matches(['-', '+']);
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let diagnostic = Diagnostic::new(codes::NOT_NUMBER, span, format!("{shown} is not a whole number"));
    let no_zeros = digits.trim_start_matches('0');
    if all_digits && digits.starts_with('0') {
        let number = if no_zeros.is_empty() { "0" } else { no_zeros };
        diagnostic.help(format!("write {number}; a number has no leading zeros"))
    } else if all_digits {
        Diagnostic::new(codes::OUT_OF_RANGE, span, format!("{shown} is too large"))
            .help("whole numbers have 64 bits")
    } else if digits.contains('_') && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_') {
        diagnostic.help(format!("write {}", text.replace('_', "")))
    } else {
        let radix = match digits.get(..2) {
            Some("0x" | "0X") => 16,
            Some("0o" | "0O") => 8,
            Some("0b" | "0B") => 2,
            _ => return diagnostic,
        };
        match i64::from_str_radix(&digits[2..], radix) {
            Ok(number) => diagnostic.help(format!("write it in decimal: {number}")),
            Err(_) => diagnostic,
        }
    }
}

/// Bounds that a Rust integer type has and schemars gives as `format` alone.
fn format_bounds(format: &str) -> Option<(f64, f64)> {
    Some(match format {
        "uint8" => (0.0, f64::from(u8::MAX)),
        "uint16" => (0.0, f64::from(u16::MAX)),
        "uint32" => (0.0, f64::from(u32::MAX)),
        "uint" | "uint64" => (0.0, i64::MAX as f64),
        "int8" => (f64::from(i8::MIN), f64::from(i8::MAX)),
        "int16" => (f64::from(i16::MIN), f64::from(i16::MAX)),
        "int32" => (f64::from(i32::MIN), f64::from(i32::MAX)),
        _ => return None,
    })
}

fn in_range(number: f64, place: Place<'_>, out: &mut Diagnostics) -> bool {
    let schema = place.schema;
    let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
    let (format_min, format_max) = schema
        .get("format")
        .and_then(Json::as_str)
        .and_then(format_bounds)
        .map_or((None, None), |(min, max)| (Some(min), Some(max)));
    let min = bound("minimum").or(format_min);
    let max = bound("maximum").or(format_max);
    let above = bound("exclusiveMinimum");
    let below = bound("exclusiveMaximum");
    let problem = if let Some(min) = min.filter(|min| number < *min) {
        format!("at least {min}")
    } else if let Some(max) = max.filter(|max| number > *max) {
        format!("at most {max}")
    } else if let Some(above) = above.filter(|above| number <= *above) {
        format!("more than {above}")
    } else if let Some(below) = below.filter(|below| number >= *below) {
        format!("less than {below}")
    } else {
        return true;
    };
    let message = format!("{} is out of range", place.node.describe());
    out.push(Diagnostic::new(codes::OUT_OF_RANGE, blame(place), message).expected(problem));
    false
}

fn check_length(
    place: Place<'_>,
    length: usize,
    [min, max]: [&str; 2],
    [one, many]: [&str; 2],
    out: &mut Diagnostics,
) -> bool {
    let limit = |name: &str| place.schema.get(name).and_then(Json::as_u64).map(|limit| limit as usize);
    let word = |count: usize| if count == 1 { one } else { many };
    let (problem, expected) = if let Some(min) = limit(min).filter(|min| length < *min) {
        ("few", format!("at least {min} {}", word(min)))
    } else if let Some(max) = limit(max).filter(|max| length > *max) {
        ("many", format!("at most {max} {}", word(max)))
    } else {
        return true;
    };
    let message = format!("{}too {problem} {many}", under(place));
    out.push(Diagnostic::new(codes::WRONG_LENGTH, blame(place), message).expected(expected));
    false
}

fn check_unique(items: &[Node], out: &mut Diagnostics) -> bool {
    let mut seen: HashMap<&Text, Span> = HashMap::new();
    let mut good = true;
    for item in items {
        let Some(text) = item.as_text() else { continue };
        if let Some(first) = seen.insert(text, item.span) {
            good = false;
            out.push(
                Diagnostic::new(codes::WRONG_LENGTH, item.span, format!("{} is given twice", quoted(text)))
                    .label(first, "first given here")
                    .help("remove one of them"),
            );
        }
    }
    good
}

/// How plugins write the form of a duration.
const DURATION: &str = "^([0-9]+(w|d|h|m|s|ms))+$";

fn check_pattern(text: &str, span: Span, schema: &Json, out: &mut Diagnostics) -> bool {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, Option<Regex>>> = RefCell::default();
    }
    let Some(pattern) = schema.get("pattern").and_then(Json::as_str) else { return true };
    let matches = COMPILED.with_borrow_mut(|compiled| {
        if !compiled.contains_key(pattern) {
            compiled.insert(pattern.to_owned(), Regex::new(pattern).ok());
        }
        // A pattern that this engine cannot compile is left to the type behind it.
        compiled.get(pattern).and_then(Option::as_ref).is_none_or(|regex| regex.is_match(text))
    });
    if !matches {
        let expected = match schema.get(EXPECTED).and_then(Json::as_str) {
            Some(words) => words.to_owned(),
            None if pattern == DURATION => "a duration such as `90s` or `1h30m`".into(),
            None => format!("text that matches `{pattern}`"),
        };
        let shown = if text.is_empty() { "an empty text".into() } else { quoted(text) };
        out.push(
            Diagnostic::new(codes::WRONG_FORM, span, format!("{shown} does not fit here")).expected(expected),
        );
    }
    matches
}

fn collapse_list(items: Vec<Template>) -> Template {
    if items.iter().all(|item| matches!(item, Template::Const(_))) {
        Template::Const(Value::list(items.into_iter().filter_map(constant).collect()))
    } else {
        Template::List(items)
    }
}

fn collapse_map(entries: Vec<(Text, Template)>) -> Template {
    if entries.iter().all(|(_, entry)| matches!(entry, Template::Const(_))) {
        Template::Const(Value::map(
            entries.into_iter().filter_map(|(key, entry)| Some((key, constant(entry)?))),
        ))
    } else {
        Template::Map(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::{At, Keyed};
    use crate::yaml::parse;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Everything {
        name: At<String>,
        #[serde(default)]
        flag: Option<At<bool>>,
        small: Option<u8>,
        signed: Option<i64>,
        ratio: Option<f64>,
        #[serde(default)]
        entries: Keyed<At<Color>>,
        nested: Option<Box<Everything>>,
        shape: Option<Shape>,
        either: Option<Either>,
        tree: Option<Node>,
        #[schemars(with = "Option<Node>")]
        value: Option<Value>,
        pair: Option<(String, u8)>,
        even: Option<Even>,
        nothing: Option<BTreeMap<String, Option<String>>>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Color {
        Red,
        /// Documented variants have a schema of another form.
        Green,
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Shape {
        Point,
        Circle(At<f64>),
        Box { width: u8, height: u8 },
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(try_from = "u8")]
    struct Even(u8);

    impl TryFrom<u8> for Even {
        type Error = String;
        fn try_from(number: u8) -> Result<Even, String> {
            if number.is_multiple_of(2) { Ok(Even(number)) } else { Err(format!("{number} is odd")) }
        }
    }

    // The schema of a `Value` is anything.
    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(transparent)]
    struct Wrapper(Everything);

    fn everything(text: &str) -> (Option<Everything>, Diagnostics) {
        let mut out = Diagnostics::new();
        let file = out.add_file("test.yaml", text.as_bytes());
        let node = parse(file, text.as_bytes(), &mut out).unwrap_or_else(|| panic!("{}", out.render(false)));
        let read = read::<Wrapper>(&node, &mut out).map(|wrapper| wrapper.0);
        assert_eq!(read.is_none(), out.has_errors(), "{}", out.render(false));
        (read, out)
    }

    #[test]
    fn a_clean_tree_becomes_the_type() {
        let (read, out) = everything(
            "name: 1.10\nflag: true\nsmall: 255\nsigned: -9\nratio: 3\nentries: {b: green, a: red}\n\
             nested: {name: true, tree: {x: [012, ~]}}\nshape: {circle: 1.5}\neither: [a, b]\n\
             value: {n: 1, t: '1', f: 1.5, z: null, l: [true]}\npair: [x, 7]\neven: 4\nnothing: {a: ~, b: x}\n",
        );
        let read = read.unwrap_or_else(|| panic!("{}", out.render(false)));
        assert_eq!(read.name.value, "1.10");
        assert_eq!(out.text(read.name.span), "1.10");
        assert_eq!(read.flag.map(|flag| (flag.value, out.text(flag.span))), Some((true, "true")));
        assert_eq!((read.small, read.signed, read.ratio), (Some(255), Some(-9), Some(3.0)));
        let entries: Vec<(&str, &str, &str)> = read
            .entries
            .iter()
            .map(|(key, color)| (key.as_str(), out.text(key.span), out.text(color.span)))
            .collect();
        assert_eq!(entries, [("b", "b", "green"), ("a", "a", "red")]);
        let nested = read.nested.unwrap();
        assert_eq!(nested.name.value, "true");
        let tree = nested.tree.unwrap();
        assert_eq!(out.text(tree.span), "{x: [012, ~]}");
        assert_eq!(tree.to_value().to_json(), r#"{"x":["012",null]}"#);
        assert!(matches!(&read.shape, Some(Shape::Circle(radius)) if out.text(radius.span) == "1.5"));
        assert_eq!(read.either, Some(Either::Many(vec!["a".into(), "b".into()])));
        assert_eq!(read.value.unwrap().to_json(), r#"{"n":1,"t":"1","f":1.5,"z":null,"l":[true]}"#);
        assert_eq!(read.pair, Some(("x".into(), 7)));
        assert_eq!(read.even, Some(Even(4)));
        assert_eq!(read.nothing.unwrap().get("a"), Some(&None));
    }

    #[test]
    fn every_problem_is_reported_at_its_place() {
        for (text, expected) in [
            ("{}", vec![("E0202", "{}")]),
            ("name: ~", vec![("E0208", "~")]),
            ("name: ''", vec![]),
            ("nam: x", vec![("E0201", "nam"), ("E0202", "nam")]),
            (
                "name: x\nflag: yes\nsmall: 256\nsigned: 1.5\nratio: x",
                vec![("E0204", "yes"), ("E0210", "256"), ("E0205", "1.5"), ("E0205", "x")],
            ),
            ("name: x\nflag: 'true'\nsmall: \"5\"", vec![("E0209", "'true'"), ("E0209", "\"5\"")]),
            ("name: x\nflag:\nsmall: null", vec![("E0208", "flag"), ("E0208", "null")]),
            (
                "name: x\nentries: {a: rd, b: [red], c: blue}",
                vec![("E0207", "rd"), ("E0203", "b"), ("E0207", "blue")],
            ),
            ("name: x\nshape: point", vec![]),
            ("name: x\nshape: square", vec![("E0207", "square")]),
            ("name: x\nshape: {box: {width: 1}}", vec![("E0202", "box")]),
            ("name: x\nshape: {box: {width: 1, height: 2, depth: 3}}", vec![("E0201", "depth")]),
            ("name: x\nshape: {circle: 1, box: {width: 1, height: 1}}", vec![("E0213", "box")]),
            ("name: x\nshape: {cirle: 1}", vec![("E0201", "cirle")]),
            ("name: x\nshape: [1]", vec![("E0203", "shape")]),
            ("name: x\neither: one", vec![]),
            ("name: x\neither: {a: b}", vec![("E0203", "either")]),
            ("name: x\neither: [[a]]", vec![("E0203", "[a]")]),
            (
                "name: x\nnested: {nested: {nested: {name: x, small: -1}}}",
                vec![("E0202", "nested"), ("E0202", "nested"), ("E0210", "-1")],
            ),
            ("name: x\neven: 3", vec![("E0214", "3")]),
            ("name: x\npair: [a]", vec![("E0212", "pair")]),
            ("name: x\npair: [a, b]", vec![("E0205", "b")]),
        ] {
            let (_, out) = everything(text);
            let found: Vec<(&str, &str)> =
                out.sorted().iter().map(|found| (found.code.as_str(), out.text(found.span))).collect();
            let mut expected = expected;
            expected.sort_unstable();
            let mut found = found;
            found.sort_unstable();
            assert_eq!(found, expected, "{text}\n{}", out.render(false));
        }
    }

    /// Takes over every scalar with `${`.
    struct Expressions(Vec<(String, Option<String>)>);

    impl SchemaHooks for Expressions {
        fn intercept(&mut self, place: Place<'_>, _: &mut Diagnostics) -> Option<Option<Template>> {
            let text = place.node.as_text().filter(|text| text.contains("${"))?;
            self.0.push((text.to_string(), place.mark.map(str::to_owned)));
            Some(Some(Template::parse_text(text).unwrap()))
        }
    }

    #[test]
    fn hooks_take_over_what_holds_expressions() {
        let schema = serde_json::json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "count": { "type": ["integer", "null"] },
                "kind": { "enum": ["a", "b"] },
                "text": { "anyOf": [{ "type": "string", "x-farrier": "text" }, { "type": "null" }] },
                "list": { "$ref": "#/$defs/list" },
            },
            "$defs": { "list": { "type": "array", "items": { "type": "boolean" } } },
        });
        let text = "count: ${ a }\nkind: ${ b }\ntext: x ${ c }\nlist: [true, '${ d }']\n";
        let mut out = Diagnostics::new();
        let file = out.add_file("test.yaml", text.as_bytes());
        let node = parse(file, text.as_bytes(), &mut out).unwrap();
        let mut hooks = Expressions(Vec::new());
        let template = check_schema(&node, &schema, &mut hooks, &mut out).unwrap();
        assert!(out.is_empty(), "{}", out.render(false));
        let marks: Vec<Option<&str>> = hooks.0.iter().map(|(_, mark)| mark.as_deref()).collect();
        assert_eq!(marks, [None, None, Some("text"), None]);
        assert_eq!(template.expressions().len(), 4);
        assert!(check_schema(&node, &schema, &mut NoHooks, &mut out).is_none());
        assert_eq!(out.len(), 3, "text needs no hook: {}", out.render(false));
    }

    #[test]
    fn broken_parts_are_not_judged_twice() {
        let text = "name: x\nnested: *gone\nflag: true\n";
        let mut out = Diagnostics::new();
        let file = out.add_file("test.yaml", text.as_bytes());
        let node = parse(file, text.as_bytes(), &mut out).unwrap();
        assert!(read::<Wrapper>(&node, &mut out).is_none());
        assert_eq!(out.len(), 1);
    }

    #[test]
    fn trying_shapes_inside_shapes_stays_cheap() {
        let schema = serde_json::json!({ "$ref": "#/$defs/any", "$defs": { "any": { "anyOf": [
            { "type": "array", "items": { "$ref": "#/$defs/any" }, "maxItems": 1 },
            { "type": "array", "items": { "$ref": "#/$defs/any" }, "minItems": 1 },
        ] } } });
        let text = format!("{}x{}", "[".repeat(31), "]".repeat(31));
        let mut out = Diagnostics::new();
        let file = out.add_file("test.yaml", text.as_bytes());
        let node = parse(file, text.as_bytes(), &mut out).unwrap();
        struct Count(usize);
        impl SchemaHooks for Count {
            fn intercept(&mut self, _: Place<'_>, _: &mut Diagnostics) -> Option<Option<Template>> {
                self.0 += 1;
                None
            }
        }
        let mut count = Count(0);
        assert!(check_schema(&node, &schema, &mut count, &mut out).is_none());
        assert!(count.0 < 2000, "{} nodes visited", count.0);
    }
}
