//! Expressions: the minijinja expressions that authors write between `${` and `}`.
//!
//! Read [`Expr`] (one expression), then [`Template`] (a tree of constants and expressions), then [`Scope`] (the names
//! they see). Evaluation is a pure function of the scope: no clock, no randomness, no environment, no files.
//!
//! **Unknown values.** In a plan a name may stand for something known only later. Reading such a value while an
//! expression is evaluated makes the whole result unknown, whatever the expression then did with it. Branches that
//! are not taken are not read, so `${ a if known else unknown_thing }` stays known.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use minijinja::value::{Enumerator, Object, ObjectExt, ObjectRepr, ValueKind};
use minijinja::{Environment, ErrorKind, Expression, UndefinedBehavior, Value as Mj};

use crate::filters;
use crate::value::{List, Map, Text, Value};

/// Instructions one evaluation may take; a runaway loop over a nested list ends here.
const FUEL: u64 = 50_000_000;
/// The longest text an expression may produce, in bytes.
const MAX_TEXT: usize = 16 << 20;

/// Why an expression is wrong or could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExprError {
    /// A lower-case fragment.
    pub message: String,
    /// The bytes of the expression that it is about.
    pub range: Option<Range<usize>>,
}

impl ExprError {
    fn new(message: impl Into<String>, range: Option<Range<usize>>) -> ExprError {
        ExprError { message: message.into(), range }
    }

    /// Something undefined was used. If it came from a lookup, the key that the lookup did not have says more;
    /// minijinja writes `x[...]` with the wrong `x` for a subscript that is not constant.
    fn undefined(message: String, range: Option<Range<usize>>) -> ExprError {
        let message = match MISSED.take() {
            Some((lookup, key))
                if [&*lookup, "[...]", "result"].iter().any(|part| message.contains(part)) =>
            {
                format!("`{lookup}` has no item with the key `{key}`")
            }
            _ => message,
        };
        ExprError::new(message, range)
    }

    fn from_minijinja(error: &minijinja::Error, source: &str) -> ExprError {
        let detail = error.detail().map(str::to_owned);
        let message = match (error.kind(), detail) {
            (ErrorKind::UndefinedError, detail) => {
                let message = detail.unwrap_or_else(|| match error.range().and_then(|r| source.get(r)) {
                    Some(name) => format!("`{name}` is not defined"),
                    None => "a name is not defined".into(),
                });
                return ExprError::undefined(message, error.range());
            }
            (ErrorKind::OutOfFuel, _) => "the expression takes too many steps".into(),
            (_, Some(detail)) if detail.contains("undefined") => {
                return ExprError::undefined(detail, error.range());
            }
            (_, Some(detail)) => detail,
            (kind, None) => kind.to_string(),
        };
        ExprError::new(message, error.range())
    }
}

fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        for global in ["debug", "namespace"] {
            environment.remove_global(global);
        }
        filters::add_to(&mut environment);
        environment
    })
}

/// One checked expression. Cloning is cheap.
#[derive(Clone)]
pub struct Expr {
    source: Text,
    references: Arc<[Text]>,
    /// Made when it is evaluated first, and kept: it takes more than ten kilobytes, and most expressions of a project are
    /// only ever checked.
    compiled: Arc<OnceLock<Result<Expression<'static, 'static>, ExprError>>>,
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expr({})", self.source)
    }
}

impl PartialEq for Expr {
    fn eq(&self, other: &Expr) -> bool {
        self.source == other.source
    }
}

impl Expr {
    /// Checks a bare expression (without `${ }`).
    ///
    /// # Errors
    /// A syntax error, or the name of a filter or test that does not exist.
    pub fn parse(source: &str) -> Result<Expr, ExprError> {
        if source.trim().is_empty() {
            return Err(ExprError::new("the expression is empty", None));
        }
        let compiled = environment()
            .compile_expression(source)
            .map_err(|error| ExprError::from_minijinja(&error, source))?;
        filters::check_names(source)?;
        let mut names: Vec<String> = compiled.undeclared_variables(true).into_iter().collect();
        names.sort_unstable();
        let references = names.iter().map(|name| name.as_str().into()).collect();
        Ok(Expr { source: source.into(), references, compiled: Arc::default() })
    }

    /// The text as written.
    pub fn source(&self) -> &Text {
        &self.source
    }

    /// The names it reads, dotted as far as they are constant (`steps.accounts.entries`), sorted.
    pub fn references(&self) -> &[Text] {
        &self.references
    }

    /// If the expression is nothing but one dotted name, that name.
    pub fn as_path(&self) -> Option<&str> {
        let path = self.source.trim();
        let part_ok = |part: &str| {
            let mut chars = part.chars();
            chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
                && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        (path.split('.').all(part_ok) && !matches!(path, "true" | "false" | "none" | "not")).then_some(path)
    }

    /// The value in `scope`. [`Value::Unknown`] when it read something unknown.
    ///
    /// # Errors
    /// Undefined names, wrong operand types, limits.
    pub fn eval(&self, scope: &Scope) -> Result<Value, ExprError> {
        let compiled = self.compiled.get_or_init(|| {
            environment()
                .compile_expression_owned(self.source.to_string())
                .map_err(|error| ExprError::from_minijinja(&error, &self.source))
        });
        let compiled = compiled.as_ref().map_err(Clone::clone)?;
        let outer = UNKNOWN_READ.with(RefCell::take);
        MISSED.take();
        let result = compiled.eval(Mj::from_object(scope.clone()));
        let converted = match result {
            Ok(value) if value.is_undefined() => {
                Err(ExprError::undefined("the result is not defined".into(), None))
            }
            Ok(value) => from_minijinja(&value),
            Err(error) => Err(ExprError::from_minijinja(&error, &self.source)),
        };
        let unknown = UNKNOWN_READ.with(|cell| cell.replace(outer));
        match unknown {
            Some(step) => Ok(Value::Unknown(step)),
            None => converted,
        }
    }

    /// The truth value in `scope`; nothing when it is unknown.
    ///
    /// # Errors
    /// As [`Expr::eval`], and when the value is not `true` or `false`.
    pub fn eval_bool(&self, scope: &Scope) -> Result<Option<bool>, ExprError> {
        match self.eval(scope)? {
            Value::Bool(flag) => Ok(Some(flag)),
            Value::Unknown(_) => Ok(None),
            other => Err(ExprError::new(
                format!("`{}` is {} `{other}`, not true or false", self.source, other.kind()),
                None,
            )),
        }
    }
}

/// A tree of constants and expressions, as authored under `with:` and in outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    /// Fixed data.
    Const(Value),
    /// One whole `${ … }`: keeps its native type.
    Expr(Expr),
    /// Text mixed with `${ … }`: always text.
    Text(Vec<TextPart>),
    /// A list.
    List(Vec<Template>),
    /// A map.
    Map(Vec<(Text, Template)>),
}

/// A stretch of a mixed text.
#[derive(Debug, Clone, PartialEq)]
pub enum TextPart {
    /// As it stands.
    Plain(Text),
    /// To be evaluated.
    Expr(Expr),
}

/// A piece of authored text: plain, or the inside of a `${ }` with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Plain text, `$${` already unescaped to `${`.
    Plain(String),
    /// The inside of `${ … }` and its byte range within the whole text (without the delimiters).
    Expr(String, Range<usize>),
}

/// Cuts authored text at its `${ … }`. `$${` stands for a literal `${`.
///
/// # Errors
/// A `${` without its `}`; the range is that of the `${`.
pub fn segments(text: &str) -> Result<Vec<Segment>, ExprError> {
    let mut segments = Vec::new();
    let mut plain = String::new();
    let mut at = 0;
    while let Some(found) = text[at..].find("${") {
        let open = at + found;
        if text[..open].ends_with('$') && open > at {
            plain.push_str(&text[at..open - 1]);
            plain.push_str("${");
            at = open + 2;
            continue;
        }
        plain.push_str(&text[at..open]);
        let start = open + 2;
        let Some(len) = expression_len(&text[start..]) else {
            return Err(ExprError::new("this `${` has no closing `}`", Some(open..start)));
        };
        if !plain.is_empty() {
            segments.push(Segment::Plain(std::mem::take(&mut plain)));
        }
        segments.push(Segment::Expr(text[start..start + len].to_owned(), start..start + len));
        at = start + len + 1;
    }
    plain.push_str(&text[at..]);
    if !plain.is_empty() || segments.is_empty() {
        segments.push(Segment::Plain(plain));
    }
    Ok(segments)
}

/// Length of the expression at the start of `text`, up to the `}` that closes it; quotes and inner braces count.
fn expression_len(text: &str) -> Option<usize> {
    let mut depth = 0_u32;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(at),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}

impl Template {
    /// Compiles authored text: constant, one whole expression, or a mix.
    ///
    /// # Errors
    /// As [`Expr::parse`] and [`segments`]; ranges are within `text`.
    pub fn parse_text(text: &str) -> Result<Template, ExprError> {
        let mut parts = Vec::new();
        for segment in segments(text)? {
            parts.push(match segment {
                Segment::Plain(plain) => TextPart::Plain(plain.into()),
                Segment::Expr(source, range) => {
                    TextPart::Expr(Expr::parse(&source).map_err(|mut error| {
                        error.range = Some(match error.range {
                            Some(inner) => range.start + inner.start..range.start + inner.end,
                            None => range.clone(),
                        });
                        error
                    })?)
                }
            });
        }
        Ok(match parts.as_mut_slice() {
            [TextPart::Plain(plain)] => Template::Const(Value::Text(plain.clone())),
            [TextPart::Expr(expr)] => Template::Expr(expr.clone()),
            _ => Template::Text(parts),
        })
    }

    /// Compiles every text inside `value`.
    ///
    /// # Errors
    /// As [`Template::parse_text`], for the first text that is wrong.
    pub fn parse(value: &Value) -> Result<Template, ExprError> {
        Ok(match value {
            Value::Text(text) => Template::parse_text(text)?,
            Value::List(items) => {
                Template::List(items.iter().map(Template::parse).collect::<Result<_, _>>()?)
            }
            Value::Map(map) => {
                Template::Map(
                    map.iter()
                        .map(|(key, value)| Ok((key.clone(), Template::parse(value)?)))
                        .collect::<Result<_, ExprError>>()?,
                )
            }
            other => Template::Const(other.clone()),
        })
    }

    /// The value in `scope`; unknown parts stay unknown in place.
    ///
    /// # Errors
    /// As [`Expr::eval`], and when a list, a map or nothing would be put into text.
    pub fn eval(&self, scope: &Scope) -> Result<Value, ExprError> {
        Ok(match self {
            Template::Const(value) => value.clone(),
            Template::Expr(expr) => expr.eval(scope)?,
            Template::Text(parts) => {
                let mut text = String::new();
                for part in parts {
                    match part {
                        TextPart::Plain(plain) => text.push_str(plain),
                        TextPart::Expr(expr) => match expr.eval(scope)? {
                            unknown @ Value::Unknown(_) => return Ok(unknown),
                            value @ (Value::Null | Value::List(_) | Value::Map(_)) => {
                                return Err(ExprError::new(
                                    format!(
                                        "`{}` is {}, which cannot be put into text",
                                        expr.source().trim(),
                                        value.kind()
                                    ),
                                    None,
                                ));
                            }
                            value => text.push_str(&value.to_string()),
                        },
                    }
                    if text.len() > MAX_TEXT {
                        return Err(ExprError::new("the text grows beyond 16 MiB", None));
                    }
                }
                Value::text(text)
            }
            Template::List(items) => {
                Value::list(items.iter().map(|item| item.eval(scope)).collect::<Result<_, _>>()?)
            }
            Template::Map(entries) => {
                let keys: Arc<[Text]> = entries.iter().map(|(key, _)| key.clone()).collect();
                Value::record(
                    keys,
                    entries.iter().map(|(_, item)| item.eval(scope)).collect::<Result<_, _>>()?,
                )
            }
        })
    }

    /// Every expression in the tree.
    pub fn expressions(&self) -> Vec<&Expr> {
        match self {
            Template::Const(_) => Vec::new(),
            Template::Expr(expr) => vec![expr],
            Template::Text(parts) => parts
                .iter()
                .filter_map(|part| match part {
                    TextPart::Expr(expr) => Some(expr),
                    TextPart::Plain(_) => None,
                })
                .collect(),
            Template::List(items) => items.iter().flat_map(Template::expressions).collect(),
            Template::Map(entries) => entries.iter().flat_map(|(_, item)| item.expressions()).collect(),
        }
    }
}

/// The names an expression sees: `inputs`, `vars`, `steps`, `run`, `item`, `result`, … Later names hide earlier ones.
#[derive(Clone, Default)]
pub struct Scope {
    names: Arc<Vec<(Text, Value)>>,
    local: Option<Arc<Local>>,
}

/// One name on top of a scope; a chain, so that evaluation per item shares everything below it.
struct Local {
    name: Text,
    bound: Bound,
    outer: Option<Arc<Local>>,
}

enum Bound {
    Value(Value),
    Lookup(Arc<Lookup>),
}

/// Items by key, under one name of a scope (see [`Scope::with_lookup`]).
#[derive(Debug)]
struct Lookup {
    name: Text,
    items: Value,
    default: Option<Value>,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.names.iter().map(|(name, _)| name).chain(self.locals().map(|local| &local.name)))
            .finish()
    }
}

impl Scope {
    /// A scope of these names.
    pub fn new(names: Vec<(Text, Value)>) -> Scope {
        Scope { names: Arc::new(names), local: None }
    }

    /// This scope with one more name. Cheap, as evaluation per item needs it.
    pub fn with(&self, name: impl Into<Text>, value: Value) -> Scope {
        self.with_bound(name.into(), Bound::Value(value))
    }

    /// This scope with `items`, a map, under one more name. A key that the map does not have gives `default`; without
    /// one it is undefined, and an expression that fails over it names the lookup and the key.
    pub fn with_lookup(&self, name: impl Into<Text>, items: Value, default: Option<Value>) -> Scope {
        let name = name.into();
        let lookup = Arc::new(Lookup { name: name.clone(), items, default });
        self.with_bound(name, Bound::Lookup(lookup))
    }

    fn with_bound(&self, name: Text, bound: Bound) -> Scope {
        let outer = self.local.clone();
        Scope { names: self.names.clone(), local: Some(Arc::new(Local { name, bound, outer })) }
    }

    fn locals(&self) -> impl Iterator<Item = &Local> {
        std::iter::successors(self.local.as_deref(), |local| local.outer.as_deref())
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        if let Some(local) = self.locals().find(|local| *local.name == *name) {
            return Some(match &local.bound {
                Bound::Value(value) => value,
                Bound::Lookup(lookup) => &lookup.items,
            });
        }
        self.names.iter().rev().find(|(known, _)| &**known == name).map(|(_, value)| value)
    }
}

thread_local! {
    /// The step of the first unknown value that the evaluation in progress has read.
    static UNKNOWN_READ: RefCell<Option<Text>> = const { RefCell::new(None) };
    /// The last lookup that did not have a key, and the key, in the evaluation in progress.
    static MISSED: RefCell<Option<(Text, String)>> = const { RefCell::new(None) };
}

pub(crate) fn to_minijinja(value: &Value) -> Mj {
    match value {
        Value::Null => Mj::from(()),
        Value::Bool(flag) => Mj::from(*flag),
        Value::Int(number) => Mj::from(*number),
        Value::Float(number) => Mj::from(*number),
        Value::Text(text) => Mj::from(text.clone()),
        Value::List(items) => Mj::from_dyn_object(items.clone()),
        Value::Map(map) => Mj::from_dyn_object(map.clone()),
        Value::Unknown(step) => {
            UNKNOWN_READ.with_borrow_mut(|read| read.get_or_insert_with(|| step.clone()).clone());
            Mj::UNDEFINED
        }
    }
}

pub(crate) fn from_minijinja(value: &Mj) -> Result<Value, ExprError> {
    let wrong = |what: &str| Err(ExprError::new(format!("the result is {what}, which is not a value"), None));
    match value.kind() {
        ValueKind::Undefined => Err(ExprError::new("the result is not defined", None)),
        ValueKind::None => Ok(Value::Null),
        ValueKind::Bool => Ok(Value::Bool(value.is_true())),
        ValueKind::Number if value.is_integer() => i64::try_from(value.clone())
            .map(Value::Int)
            .map_err(|_| ExprError::new("the number is too large", None)),
        ValueKind::Number => {
            f64::try_from(value.clone()).map(Value::Float).map_err(|e| ExprError::new(e.to_string(), None))
        }
        ValueKind::String => {
            let text = value.to_str().unwrap_or_else(|| "".into());
            if text.len() > MAX_TEXT {
                return Err(ExprError::new("the text grows beyond 16 MiB", None));
            }
            Ok(Value::Text(text))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            if let Some(list) = value.downcast_object::<List>() {
                return Ok(Value::List(list));
            }
            let items = value.try_iter().map_err(|e| ExprError::new(e.to_string(), None))?;
            Ok(Value::list(items.map(|item| from_minijinja(&item)).collect::<Result<_, _>>()?))
        }
        ValueKind::Map => {
            if let Some(map) = value.downcast_object::<Map>() {
                return Ok(Value::Map(map));
            }
            if let Some(lookup) = value.downcast_object::<Lookup>() {
                return Ok(lookup.items.clone());
            }
            let keys = value.try_iter().map_err(|e| ExprError::new(e.to_string(), None))?;
            let mut entries = Vec::new();
            for key in keys {
                let item = value.get_item(&key).map_err(|e| ExprError::new(e.to_string(), None))?;
                let name = key.to_str().unwrap_or_else(|| key.to_string().into());
                entries.push((name, from_minijinja(&item)?));
            }
            Ok(Value::map(entries))
        }
        ValueKind::Bytes => wrong("bytes"),
        ValueKind::Plain => wrong("an object"),
        other => wrong(&other.to_string()),
    }
}

impl Object for Scope {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }
    fn get_value(self: &Arc<Self>, key: &Mj) -> Option<Mj> {
        self.get_value_by_str(key.as_str()?)
    }
    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Mj> {
        if let Some(local) = self.locals().find(|local| *local.name == *key) {
            return Some(match &local.bound {
                Bound::Value(value) => to_minijinja(value),
                Bound::Lookup(lookup) => Mj::from_dyn_object(lookup.clone()),
            });
        }
        self.get(key).map(to_minijinja)
    }
}

/// Expressions that use the lookup as a whole see a plain map: the default stays behind, so that it cannot reach a
/// value that is stored and read back without it.
impl Object for Lookup {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }
    fn get_value(self: &Arc<Self>, key: &Mj) -> Option<Mj> {
        match key_text(key) {
            Some(key) => self.get_value_by_str(&key),
            None => self.miss(&key.to_string()),
        }
    }
    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Mj> {
        match self.items.get(key) {
            Some(item) => Some(to_minijinja(item)),
            None => self.miss(key),
        }
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|lookup| match &lookup.items {
            Value::Map(map) => Box::new(map.keys().map(|key| Mj::from(key.clone()))),
            _ => Box::new(std::iter::empty()),
        })
    }
    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.items.as_map().map(Map::len)
    }
}

impl Lookup {
    fn miss(&self, key: &str) -> Option<Mj> {
        if self.default.is_none() {
            MISSED.set(Some((self.name.clone(), key.to_owned())));
        }
        self.default.as_ref().map(to_minijinja)
    }
}

/// A map's key as expressions may give it: text, or a whole number, which stands for its digits.
fn key_text(key: &Mj) -> Option<Cow<'_, str>> {
    match key.as_str() {
        Some(text) => Some(text.into()),
        None if key.is_integer() => Some(key.to_string().into()),
        None => None,
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }
    fn get_value(self: &Arc<Self>, key: &Mj) -> Option<Mj> {
        self.0.get(key.as_usize()?).map(to_minijinja)
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

impl Object for Map {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }
    fn get_value(self: &Arc<Self>, key: &Mj) -> Option<Mj> {
        self.get_value_by_str(&key_text(key)?)
    }
    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Mj> {
        self.get(key).map(to_minijinja)
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|map| Box::new(map.keys().map(|key| Mj::from(key.clone()))))
    }
    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let rows = Value::list(vec![
            Value::map([("cn", Value::text("tools.a")), ("ok", Value::Bool(true))]),
            Value::map([("cn", Value::text("tools.b")), ("ok", Value::Bool(false))]),
        ]);
        let steps = Value::map([
            ("read", Value::map([("rows", rows), ("next", Value::Unknown("drain".into()))])),
            ("drain", Value::Unknown("drain".into())),
        ]);
        Scope::new(vec![("steps".into(), steps), ("inputs".into(), Value::map([("n", Value::Int(3))]))])
    }

    fn eval(source: &str) -> Result<Value, ExprError> {
        Expr::parse(source)?.eval(&scope())
    }

    #[test]
    fn native_types_are_kept_and_lists_are_shared() {
        assert_eq!(eval("inputs.n + 1").unwrap(), Value::Int(4));
        assert_eq!(
            eval("steps.read.rows | map(attribute='cn') | join(' ')").unwrap(),
            Value::text("tools.a tools.b")
        );
        let scope = scope();
        let Value::List(original) = scope.get("steps").unwrap().get("read").unwrap().get("rows").unwrap()
        else {
            panic!()
        };
        let Value::List(read) = Expr::parse("steps.read.rows").unwrap().eval(&scope).unwrap() else {
            panic!()
        };
        assert!(Arc::ptr_eq(&read, original));
    }

    #[test]
    fn reading_an_unknown_makes_the_result_unknown_and_not_reading_it_does_not() {
        let unknown = Value::Unknown("drain".into());
        for source in [
            "steps.drain.x",
            "steps.read.next == 3",
            "steps.read.next is none",
            "[1, steps.drain]",
            "steps.drain | length",
        ] {
            assert_eq!(eval(source).unwrap(), unknown, "{source}");
        }
        assert_eq!(eval("1 if true else steps.drain.x").unwrap(), Value::Int(1));
        assert_eq!(eval("true or steps.drain.x").unwrap(), Value::Bool(true));
        assert_eq!(eval("inputs.n").unwrap(), Value::Int(3), "the mark does not outlive its evaluation");
    }

    #[test]
    fn mistakes_name_the_place() {
        let error = eval("inputs.m + 1").unwrap_err();
        assert!(error.message.contains("undefined"), "{error}");
        assert!(Expr::parse("inputs.n | nosuch").unwrap_err().message.contains("nosuch"));
        assert!(Expr::parse("inputs.n is nosuch").unwrap_err().message.contains("nosuch"));
        assert!(Expr::parse("1 +").is_err());
        assert_eq!(Expr::parse("inputs.n").unwrap().as_path(), Some("inputs.n"));
        assert_eq!(Expr::parse("inputs.n + 1").unwrap().as_path(), None);
        assert_eq!(
            Expr::parse("steps.a.b[inputs.n] ~ vars.x").unwrap().references(),
            ["inputs.n", "steps.a.b", "vars.x"].map(Text::from)
        );
    }

    #[test]
    fn text_is_cut_at_expressions() {
        let eval_text = |text: &str| Template::parse_text(text).and_then(|template| template.eval(&scope()));
        assert_eq!(eval_text("${ inputs.n }").unwrap(), Value::Int(3));
        assert_eq!(eval_text("n=${ inputs.n }!").unwrap(), Value::text("n=3!"));
        assert_eq!(eval_text("${ {'a': '}'}['a'] }").unwrap(), Value::text("}"));
        assert_eq!(eval_text("$${ inputs.n }").unwrap(), Value::text("${ inputs.n }"));
        assert_eq!(eval_text("{{ 7 * 7 }} {% raw %}").unwrap(), Value::text("{{ 7 * 7 }} {% raw %}"));
        assert_eq!(eval_text("x ${ steps.drain } y").unwrap(), Value::Unknown("drain".into()));
        assert_eq!(eval_text("${ inputs.n").unwrap_err().range, Some(0..2));
        assert!(eval_text("x ${ steps.read.rows }").unwrap_err().message.contains("cannot be put into text"));
    }

    #[test]
    fn names_of_an_item_hide_outer_names() {
        let outer = scope().with("item", Value::Int(1)).with("other", Value::Int(2));
        let inner = outer.with("item", Value::Int(3)).with("inputs", Value::Int(4));
        let sum = Expr::parse("item + other + inputs").unwrap();
        assert_eq!(sum.eval(&inner).unwrap(), Value::Int(9));
        assert_eq!(Expr::parse("item + inputs.n").unwrap().eval(&outer).unwrap(), Value::Int(4));
        assert_eq!(inner.get("item"), Some(&Value::Int(3)));
        assert_eq!(inner.get("nothing"), None);
    }

    #[test]
    fn lookups_name_the_key_they_do_not_have() {
        let items = Value::map([("a", Value::map([("n", Value::Int(1))])), ("7", Value::Int(7))]);
        let plain = scope().with_lookup("by", items.clone(), None);
        let with_default = scope().with_lookup("by", items.clone(), Some(Value::map([("n", Value::Int(0))])));
        let eval = |source: &str, scope: &Scope| Expr::parse(source).unwrap().eval(scope);
        for source in ["by['x'].n", "by['x']", "by.x", "by['a'].n + by['x'].n", "by['x'] | length"] {
            let error = eval(source, &plain).unwrap_err();
            assert_eq!(error.message, "`by` has no item with the key `x`", "{source}");
        }
        for source in [
            "by[steps.read.rows[0].cn].n",
            "by[inputs.n].n + 1",
            "by[inputs.n] ~ 'x'",
            "by[inputs.n] | length",
        ] {
            let message = eval(source, &plain).unwrap_err().message;
            assert!(message.starts_with("`by` has no item with the key"), "{source}: {message}");
        }
        let other = eval("(by['x'] | default(1)) + inputs.y.z", &plain).unwrap_err();
        assert_eq!(other.message, "`inputs.y` is undefined", "the lookup is not blamed for another name");
        assert!(
            eval("inputs.x", &plain).unwrap_err().message.contains("not defined"),
            "a miss is soon forgotten"
        );
        assert_eq!(eval("(by['x'] | default({'n': 5})).n", &plain).unwrap(), Value::Int(5));
        assert_eq!(eval("by['x'].n", &with_default).unwrap(), Value::Int(0));
        assert_eq!(eval("by[7]", &plain).unwrap(), Value::Int(7), "a whole number stands for its digits");
        assert_eq!(eval("by", &with_default).unwrap(), items, "as a whole it is its items");
        assert_eq!(eval("by | length", &plain).unwrap(), Value::Int(2));
        assert_eq!(eval("'x' in by", &plain).unwrap(), Value::Bool(false));
    }

    #[test]
    fn runaway_expressions_stop() {
        let many = Value::list((0..20_000).map(Value::Int).collect());
        let scope = Scope::new(vec![("many".into(), many)]);
        let started = Expr::parse("range(100000) | map('string') | join | length").unwrap();
        assert!(started.eval(&scope).is_ok());
        assert!(Expr::parse("range(10000000000)").unwrap().eval(&scope).is_err());
    }
}
