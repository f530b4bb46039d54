//! What the names of a runbook mean, and the check of one expression against them.
//!
//! [`Names`] is the same for the whole runbook. A [`View`] says which of them one place may use; what it did use goes
//! into [`Found`], from which the compiler makes edges and finds unused names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use farrier_model::expr::{Segment, Template, TextPart, segments};
use farrier_model::{Expr, Text, Type, Value};

use super::scan::{self, Access, Chain};
use super::types::{self, Stray};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, nearest, quoted};
use crate::yaml::Node;

/// Fields of `run`. Execution fills in exactly these.
const RUN_FIELDS: [&str; 7] = ["id", "runbook", "environment", "started_at", "state", "title", "signal"];

/// What the names of one runbook mean.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Types of inputs.
    pub inputs: HashMap<Text, Type>,
    /// Types of vars, as far as they have been checked.
    pub vars: HashMap<Text, Type>,
    /// Positions of steps.
    pub steps: HashMap<Text, u32>,
    /// Types of the outputs of steps, by position.
    pub outputs: Vec<Type>,
    /// Aliases of targets, and whether each is a group.
    pub targets: HashMap<Text, bool>,
    /// The type of `run`.
    pub run: Option<Type>,
    /// Signals that the runbook accepts.
    pub signals: Vec<Text>,
    /// The runbook itself, and those that it starts.
    pub runbooks: Vec<Text>,
}

/// Which names one place may use.
#[derive(Debug, Clone)]
pub(super) struct View<'n> {
    /// What they mean.
    pub names: &'n Names,
    /// The names at the top, such as `inputs`.
    pub roots: &'static [&'static str],
    /// The type of `result`, where there is one.
    pub result: Option<&'n Type>,
    /// Names of items.
    pub locals: Vec<(Text, Type)>,
    /// The step it belongs to.
    pub step: Option<u32>,
}

/// Names of steps and what follows from them.
pub(super) const IN_STEP: &[&str] = &["inputs", "vars", "steps", "run", "targets"];
/// Names that need no step.
pub(super) const IN_VARS: &[&str] = &["inputs", "vars", "run", "targets"];
/// Names in titles and keys of runs.
pub(super) const IN_TITLE: &[&str] = &["inputs"];
/// Names in keys of runs and names of locks.
pub(super) const IN_KEYS: &[&str] = &["inputs", "vars"];
/// Names in an alert trigger.
pub(super) const IN_ALERT: &[&str] = &["alert"];
/// Nothing.
pub(super) const NOWHERE: &[&str] = &[];

/// One use of a step's output.
#[derive(Debug, Clone)]
pub(super) struct StepUse {
    /// Where.
    pub span: Span,
    /// The field of the output, when it is named.
    pub field: Option<String>,
    /// The expression says itself what holds when it is absent.
    pub guarded: bool,
}

/// What was used.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By step.
    pub steps: BTreeMap<u32, Vec<StepUse>>,
    /// Inputs.
    pub inputs: BTreeSet<String>,
    /// Vars.
    pub vars: BTreeSet<String>,
    /// Targets.
    pub targets: BTreeSet<String>,
    /// The alert was used.
    pub alert: bool,
}

/// An expression and the type of its value.
pub(super) type Typed = (Expr, Type);

/// Maps bytes of an expression to its place.
pub(super) type Places<'p> = &'p dyn Fn(Range<usize>) -> Span;

impl Names {
    /// The type of `run`.
    pub(super) fn with_run(mut self) -> Names {
        self.run =
            Some(Type::Record(RUN_FIELDS.iter().map(|field| (Text::from(*field), Type::Text)).collect()));
        self
    }
}

fn alert_type() -> Type {
    let labels = || Type::Dict(Box::new(Type::Text));
    let mut fields: Vec<(Text, Type)> = vec![("labels".into(), labels()), ("annotations".into(), labels())];
    fields.extend(
        ["status", "starts_at", "ends_at", "fingerprint", "generator_url"]
            .map(|name| (Text::from(name), Type::Text)),
    );
    Type::Record(fields)
}

/// "did you mean", or all the names when they are few.
pub(super) fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, what: &str) -> Option<String> {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    match nearest(name, known.iter().copied()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if known.is_empty() => Some(format!("there are no {what} here")),
        None if known.len() <= 12 => Some(format!(
            "the {what} here are {}",
            known.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
        )),
        None => None,
    }
}

fn with_hint(diagnostic: Diagnostic, hint: Option<String>) -> Diagnostic {
    match hint {
        Some(hint) => diagnostic.help(hint),
        None => diagnostic,
    }
}

impl View<'_> {
    /// Checks one expression. Reports what is wrong; returns nothing then.
    pub(super) fn expression(
        &self,
        source: &str,
        places: Places<'_>,
        found: &mut Found,
        out: &mut Diagnostics,
    ) -> Option<Typed> {
        let expr = match Expr::parse(source) {
            Ok(expr) => expr,
            Err(error) => {
                let span = places(error.range.unwrap_or(0..source.len()));
                out.push(Diagnostic::new(codes::BAD_EXPRESSION, span, error.message));
                return None;
            }
        };
        let chains = scan::chains(source);
        let mut good = true;
        for chain in &chains {
            let guarded = chain.guarded
                || chains.iter().any(|other| {
                    other.guarded && other.root == chain.root && first_field(other) == first_field(chain)
                });
            good &= self.chain(chain, guarded, places, found, out).is_some();
        }
        // Whatever the scanner does not see, the evaluator still reads.
        for reference in expr.references() {
            let root = reference.split('.').next().unwrap_or_default();
            if !chains.iter().any(|chain| chain.root == root) && !self.known_root(root) {
                good = false;
                out.push(self.unknown_root(root, places(0..source.len())));
            }
        }
        if !good {
            return None;
        }
        let kind = self.pipeline(source, places, out)?;
        Some((expr, kind))
    }

    /// The type of a whole expression, as far as it is certain.
    fn pipeline(&self, source: &str, places: Places<'_>, out: &mut Diagnostics) -> Option<Type> {
        let Some(pipeline) = scan::pipeline(source) else { return Some(Type::Any) };
        let mut unused = Found::default();
        let mut kind = self.chain(&pipeline.chain, true, places, &mut unused, &mut Diagnostics::new())?;
        for filter in &pipeline.filters {
            match types::through(&kind, filter) {
                Ok(next) => kind = next,
                Err(stray) => {
                    let path = filter.attribute.as_ref().or(filter.positional.as_ref())?;
                    out.push(stray_diagnostic(&stray, path, places));
                    return None;
                }
            }
        }
        Some(kind)
    }

    fn known_root(&self, root: &str) -> bool {
        self.roots.contains(&root)
            || self.locals.iter().any(|(name, _)| **name == *root)
            || (root == "result" && self.result.is_some())
    }

    fn unknown_root(&self, root: &str, span: Span) -> Diagnostic {
        let elsewhere = ["inputs", "vars", "steps", "run", "targets", "alert", "result", "item"];
        let here: Vec<&str> = self
            .roots
            .iter()
            .copied()
            .chain(self.locals.iter().map(|(name, _)| &**name))
            .chain(self.result.is_some().then_some("result"))
            .collect();
        if elsewhere.contains(&root) {
            let diagnostic =
                Diagnostic::new(codes::NAME_NOT_HERE, span, format!("`{root}` has no meaning here"));
            return with_hint(diagnostic, hint("", here, "names"));
        }
        let diagnostic = Diagnostic::new(codes::UNKNOWN_NAME, span, format!("unknown name {}", quoted(root)));
        let own = [("inputs", &self.names.inputs), ("vars", &self.names.vars)];
        for (group, names) in own {
            if self.roots.contains(&group) && names.contains_key(root) {
                return diagnostic.help(format!("write `{group}.{root}`"));
            }
        }
        if self.roots.contains(&"steps") && self.names.steps.contains_key(root) {
            return diagnostic.help(format!("write `steps.{root}.FIELD`"));
        }
        with_hint(diagnostic, hint(root, here, "names"))
    }

    /// Checks one name with its path; its type.
    fn chain(
        &self,
        chain: &Chain,
        guarded: bool,
        places: Places<'_>,
        found: &mut Found,
        out: &mut Diagnostics,
    ) -> Option<Type> {
        if let Some((_, kind)) = self.locals.iter().rev().find(|(name, _)| **name == *chain.root) {
            return walk(kind, &chain.path, places, out);
        }
        if !self.known_root(&chain.root) {
            out.push(self.unknown_root(&chain.root, places(chain.root_range.clone())));
            return None;
        }
        match &*chain.root {
            "result" => walk(self.result?, &chain.path, places, out),
            "run" => walk(self.names.run.as_ref().unwrap_or(&Type::Any), &chain.path, places, out),
            "alert" => {
                found.alert = true;
                walk(&alert_type(), &chain.path, places, out)
            }
            group => self.member(group, chain, guarded, places, found, out),
        }
    }

    /// `inputs.NAME`, `vars.NAME`, `steps.NAME`, `targets.NAME`.
    fn member(
        &self,
        group: &str,
        chain: &Chain,
        guarded: bool,
        places: Places<'_>,
        found: &mut Found,
        out: &mut Diagnostics,
    ) -> Option<Type> {
        let Some(Access::Field { name, range }) = chain.path.first() else {
            let span = places(chain.range.clone());
            out.push(
                Diagnostic::new(codes::WHOLE_GROUP, span, format!("`{group}` must be followed by a name"))
                    .expected(format!("`{group}.NAME`"))
                    .help("what a step depends on is found before anything runs, so names are constant"),
            );
            return None;
        };
        let rest = &chain.path[1..];
        let span = places(range.clone());
        let names = self.names;
        match group {
            "inputs" => match names.inputs.get(name.as_str()) {
                Some(kind) => {
                    found.inputs.insert(name.clone());
                    walk(kind, rest, places, out)
                }
                None => unknown(codes::UNKNOWN_INPUT, "input", name, names.inputs.keys(), span, out),
            },
            "vars" => match names.vars.get(name.as_str()) {
                Some(kind) => {
                    found.vars.insert(name.clone());
                    walk(kind, rest, places, out)
                }
                None => unknown(codes::UNKNOWN_VAR, "var", name, names.vars.keys(), span, out),
            },
            "targets" => match names.targets.get(name.as_str()) {
                Some(true) => {
                    found.targets.insert(name.clone());
                    walk(&Type::List(Box::new(Type::Text)), rest, places, out)
                }
                Some(false) => {
                    out.push(
                        Diagnostic::new(
                            codes::NOT_A_GROUP,
                            span,
                            format!("`{name}` is one target, not a group"),
                        )
                        .help(format!(
                            "declare it as a group (`{name}: group of …`), or write its name as text"
                        )),
                    );
                    None
                }
                None => unknown(codes::UNKNOWN_TARGET, "target", name, names.targets.keys(), span, out),
            },
            _ => {
                let Some(index) = names.steps.get(name.as_str()).copied() else {
                    return unknown(codes::UNKNOWN_STEP, "step", name, names.steps.keys(), span, out);
                };
                if self.step == Some(index) {
                    out.push(
                        Diagnostic::new(codes::CYCLE, span, format!("step `{name}` uses its own output"))
                            .help("in `expect`, `verify` and `undo` it is called `result`"),
                    );
                    return None;
                }
                let field = match rest.first() {
                    Some(Access::Field { name, .. }) => Some(name.clone()),
                    _ => None,
                };
                let whole = places(chain.range.clone());
                found.steps.entry(index).or_default().push(StepUse { span: whole, field, guarded });
                walk(names.outputs.get(index as usize).unwrap_or(&Type::Any), rest, places, out)
            }
        }
    }

    /// Checks a key that always holds a bare expression.
    pub(super) fn bare(&self, node: &Node, found: &mut Found, out: &mut Diagnostics) -> Option<Typed> {
        let text = node.as_text()?;
        if let Some(at) = text.find("${") {
            let fixed = match segments(text).as_deref() {
                Ok([Segment::Expr(inner, _)]) => Some(inner.trim().to_owned()),
                _ => None,
            };
            let diagnostic = Diagnostic::new(
                codes::NOT_BARE,
                node.offset_span(at..at + 2),
                "this is always an expression, so `${ }` is left out",
            );
            out.push(match fixed {
                Some(fixed) => diagnostic.help(format!("write {}", quoted(&fixed))),
                None => diagnostic
                    .help("write one expression; texts are joined with `~`: `inputs.a ~ '.' ~ inputs.b`"),
            });
            return None;
        }
        self.expression(text, &|range| node.offset_span(range), found, out)
    }

    /// Checks a bare expression that must be true or false.
    pub(super) fn condition(&self, node: &Node, found: &mut Found, out: &mut Diagnostics) -> Option<Expr> {
        let (expr, kind) = self.bare(node, found, out)?;
        if types::never_fits(&kind, &Type::Bool) {
            out.push(
                Diagnostic::new(
                    codes::TYPE_MISMATCH,
                    node.span,
                    format!("the condition is {}, not true or false", types::describe(&kind)),
                )
                .help(match kind {
                    Type::List(_) => format!("compare it: `{} | length > 0`", expr.source().trim()),
                    Type::Int | Type::Float => format!("compare it: `{} > 0`", expr.source().trim()),
                    _ => format!("compare it: `{} == …`", expr.source().trim()),
                }),
            );
            return None;
        }
        Some(expr)
    }

    /// Checks text that may mix plain text and `${ }`.
    pub(super) fn mixed(&self, node: &Node, found: &mut Found, out: &mut Diagnostics) -> Option<Template> {
        let text = node.as_text()?;
        lint_braces(node, out);
        let parts = match segments(text) {
            Ok(parts) => parts,
            Err(error) => {
                let span = node.offset_span(error.range.unwrap_or(0..text.len()));
                out.push(
                    Diagnostic::new(codes::BAD_EXPRESSION, span, error.message)
                        .help("`$${` stands for a plain `${`"),
                );
                return None;
            }
        };
        if let [Segment::Plain(plain)] = parts.as_slice() {
            return Some(Template::Const(Value::text(plain.as_str())));
        }
        let mut compiled = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Segment::Plain(plain) => compiled.push(Some(TextPart::Plain(plain.into()))),
                Segment::Expr(source, range) => {
                    let places = |inner: Range<usize>| {
                        node.offset_span(range.start + inner.start..range.start + inner.end)
                    };
                    let checked = self.expression(&source, &places, found, out).and_then(|(expr, kind)| {
                        if !matches!(kind, Type::List(_) | Type::Record(_) | Type::Dict(_)) {
                            return Some(TextPart::Expr(expr));
                        }
                        out.push(
                            Diagnostic::new(
                                codes::TYPE_MISMATCH,
                                node.offset_span(range.clone()),
                                format!("{} cannot be put into text", types::describe(&kind)),
                            )
                            .help(
                                "join it (`… | join(', ')`), count it (`… | length`), or write `… | to_json`",
                            ),
                        );
                        None
                    });
                    compiled.push(checked);
                }
            }
        }
        let parts: Vec<TextPart> = compiled.into_iter().collect::<Option<_>>()?;
        // Text in a text field stays text, also when one expression is all of it.
        Some(Template::Text(parts))
    }

    /// Checks a tree without a schema: each text is a constant or one whole `${ }`; `mix` allows both in one.
    pub(super) fn tree(
        &self,
        node: &Node,
        mix: bool,
        found: &mut Found,
        out: &mut Diagnostics,
    ) -> Option<(Template, Type)> {
        if let Some(text) = node.as_text() {
            if !text.contains("${") {
                lint_braces(node, out);
                let value = node.to_value();
                let kind = type_of(&value);
                return Some((Template::Const(value), kind));
            }
            return self.whole(node, mix, found, out);
        }
        if let Some(items) = node.as_list() {
            let items: Vec<_> = items.iter().map(|item| self.tree(item, mix, found, out)).collect();
            let (items, kinds): (Vec<_>, Vec<_>) =
                items.into_iter().collect::<Option<Vec<_>>>()?.into_iter().unzip();
            let same = kinds.windows(2).all(|pair| pair[0] == pair[1]);
            let inner = if same { kinds.into_iter().next().unwrap_or(Type::Any) } else { Type::Any };
            return Some((Template::List(items), Type::List(Box::new(inner))));
        }
        let entries = node.as_map()?;
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| Some((key.text.clone(), self.tree(value, mix, found, out)?)))
            .collect();
        let entries: Vec<(Text, (Template, Type))> = entries.into_iter().collect::<Option<_>>()?;
        let kinds = entries.iter().map(|(key, (_, kind))| (key.clone(), kind.clone())).collect();
        Some((
            Template::Map(entries.into_iter().map(|(key, (template, _))| (key, template)).collect()),
            Type::Record(kinds),
        ))
    }

    /// Checks a text that contains `${`: one whole expression keeps its type, a mix is text where that is allowed.
    pub(super) fn whole(
        &self,
        node: &Node,
        mix: bool,
        found: &mut Found,
        out: &mut Diagnostics,
    ) -> Option<(Template, Type)> {
        let text = node.as_text()?;
        lint_braces(node, out);
        match segments(text) {
            Ok(parts) => match parts.as_slice() {
                [Segment::Plain(plain)] => Some((Template::Const(Value::text(plain.as_str())), Type::Text)),
                [Segment::Expr(source, range)] => {
                    let places = |inner: Range<usize>| {
                        node.offset_span(range.start + inner.start..range.start + inner.end)
                    };
                    let (expr, kind) = self.expression(source, &places, found, out)?;
                    Some((Template::Expr(expr), kind))
                }
                _ if mix => self.mixed(node, found, out).map(|template| (template, Type::Text)),
                parts => {
                    out.push(
                        Diagnostic::new(codes::MIXED_TEXT, node.span, "text and `${ }` cannot be mixed here")
                            .expected("a constant, or one `${ }`")
                            .help(joined(parts)),
                    );
                    None
                }
            },
            // Reports where the delimiter is missing.
            Err(_) => self.mixed(node, found, out).map(|template| (template, Type::Text)),
        }
    }
}

/// Advice to write the same text as one expression, quoted as YAML needs it where that is simple.
fn joined(parts: &[Segment]) -> String {
    let parts: Vec<String> = parts
        .iter()
        .map(|part| match part {
            Segment::Plain(plain) => {
                let quote = if plain.contains('\'') { '"' } else { '\'' };
                format!("{quote}{}{quote}", plain.replace('\\', "\\\\").replace(quote, &format!("\\{quote}")))
            }
            Segment::Expr(source, _) => {
                let source = source.trim();
                // A filter binds tighter than `~`; everything else is put in parentheses to be safe.
                if scan::pipeline(source).is_some() { source.to_owned() } else { format!("({source})") }
            }
        })
        .collect();
    let expression = format!("${{ {} }}", parts.join(" ~ "));
    if expression.contains(['"', '\\']) {
        format!("write `{expression}`")
    } else {
        format!("write \"{expression}\"")
    }
}

/// `{{ }}` and `{% %}` of other languages are plain text here, and rarely meant to be.
pub(super) fn lint_braces(node: &Node, out: &mut Diagnostics) {
    let Some(text) = node.as_text() else { return };
    for (open, meant) in [
        ("{{", "an expression is written `${ … }`"),
        ("{%", "there are no statements; use an expression `${ … }`"),
    ] {
        if let Some(at) = text.find(open) {
            // The braces of a map inside an expression, or of a regular expression or JSON, do not begin with a space.
            let inside = segments(text).is_ok_and(|parts| {
                parts.iter().any(|part| matches!(part, Segment::Expr(_, range) if range.contains(&at)))
            });
            if !inside {
                out.push(
                    Diagnostic::new(
                        codes::FOREIGN_BRACES,
                        node.offset_span(at..at + 2),
                        format!("`{open}` is plain text here"),
                    )
                    .help(meant)
                    .warning(),
                );
            }
        }
    }
}

/// The type of a constant.
pub(super) fn type_of(value: &Value) -> Type {
    match value {
        Value::Null | Value::Unknown(_) => Type::Any,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Float(_) => Type::Float,
        Value::Text(_) => Type::Text,
        Value::List(items) => {
            let mut kinds = items.iter().map(type_of);
            let first = kinds.next().unwrap_or(Type::Any);
            Type::List(Box::new(if kinds.all(|kind| kind == first) { first } else { Type::Any }))
        }
        Value::Map(map) => {
            Type::Record(map.iter().map(|(key, value)| (key.clone(), type_of(value))).collect())
        }
    }
}

fn first_field(chain: &Chain) -> Option<&str> {
    match chain.path.first() {
        Some(Access::Field { name, .. }) => Some(name),
        _ => None,
    }
}

fn unknown<'a>(
    code: codes::Code,
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a Text>,
    span: Span,
    out: &mut Diagnostics,
) -> Option<Type> {
    let diagnostic = Diagnostic::new(code, span, format!("unknown {what} {}", quoted(name)));
    out.push(with_hint(diagnostic, hint(name, known.map(|name| &**name), &format!("{what}s"))));
    None
}

fn walk(start: &Type, path: &[Access], places: Places<'_>, out: &mut Diagnostics) -> Option<Type> {
    match types::follow(start, path) {
        Ok(kind) => Some(kind),
        Err(stray) => {
            out.push(stray_diagnostic(&stray, path, places));
            None
        }
    }
}

fn stray_diagnostic(stray: &Stray, path: &[Access], places: Places<'_>) -> Diagnostic {
    let range = path.get(stray.access).map_or(0..0, |access| access.range().clone());
    let span = places(range);
    let Some(Access::Field { name, .. }) = path.get(stray.access) else {
        return Diagnostic::new(
            codes::TYPE_MISMATCH,
            span,
            format!("{} has no items", types::describe(&stray.reached)),
        );
    };
    match &stray.reached {
        Type::Record(_) => {
            let diagnostic =
                Diagnostic::new(codes::UNKNOWN_FIELD, span, format!("unknown field {}", quoted(name)));
            with_hint(diagnostic, hint(name, stray.known.iter().map(|name| &**name), "fields"))
        }
        reached @ Type::List(_) => Diagnostic::new(
            codes::TYPE_MISMATCH,
            span,
            format!("{} has no field {}", types::describe(reached), quoted(name)),
        )
        .help(format!(
            "take one item (`[0].{name}`), or that field of each (`| map(attribute='{name}') | list`)"
        )),
        reached => Diagnostic::new(
            codes::TYPE_MISMATCH,
            span,
            format!("{} has no field {}", types::describe(reached), quoted(name)),
        ),
    }
}
