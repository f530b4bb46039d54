//! Checks `with:` against the input schema of an action, or against the inputs of a child runbook.
//!
//! The schema decides about constants. [`Hooks`] takes over where the schema's `x-farrier` mark gives a text a meaning
//! (see [`farrier_model::spec`]) and wherever a text holds `${ }`.

use std::collections::BTreeMap;
use std::ops::Range;

use farrier_model::expr::{Segment, Template, segments};
use farrier_model::spec::MARK;
use farrier_model::{Text, Type, Value, literal};
use serde_json::{Value as Json, json};

use super::names::{Found, View, hint};
use super::{scan, types};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, quoted};
use crate::graph::{InputKind, InputSpec, TargetUse};
use crate::inputs::{check_value, describe};
use crate::read::{Place, SchemaHooks, check_schema};
use crate::yaml::{Node, NodeKind};

/// Checks the input of an action; `uses` is where the action is named.
pub(super) fn action_input(
    with: Option<&Node>,
    uses: Span,
    schema: &Json,
    view: &View<'_>,
    targets: &BTreeMap<Text, TargetUse>,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Option<Template> {
    let nothing = Node { span: uses, kind: NodeKind::Map(Vec::new()) };
    let node = with.unwrap_or(&nothing);
    let item_view = items_view(node, view);
    check_schema(node, schema, &mut Hooks { root: schema, view, item_view, targets, found }, out)
}

/// Checks the input of a child run.
pub(super) fn child_input(
    with: Option<&Node>,
    uses: Span,
    inputs: &[InputSpec],
    view: &View<'_>,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Option<Template> {
    let nothing = Node { span: uses, kind: NodeKind::Map(Vec::new()) };
    let node = with.unwrap_or(&nothing);
    let properties: serde_json::Map<String, Json> =
        inputs.iter().map(|spec| (spec.name.to_string(), input_schema(&spec.kind, &spec.about))).collect();
    let required: Vec<&str> = inputs.iter().filter(|spec| spec.required).map(|spec| &*spec.name).collect();
    let schema = json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    let no_targets = BTreeMap::new();
    let mut hooks = Hooks { root: &schema, view, item_view: view.clone(), targets: &no_targets, found };
    let before = out.len();
    let template = check_schema(node, &schema, &mut hooks, out);
    let code = |code| if code == codes::UNKNOWN_KEY { codes::UNKNOWN_INPUT } else { codes::INPUT_RULE };
    super::head::recode(before, code, out);
    let template = template?;
    let constants: Vec<(Text, Value)> = match &template {
        Template::Const(Value::Map(map)) => {
            map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
        }
        Template::Map(entries) => entries
            .iter()
            .filter_map(|(key, entry)| match entry {
                Template::Const(value) => Some((key.clone(), value.clone())),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let mut good = true;
    for (name, value) in constants {
        let Some(spec) = inputs.iter().find(|spec| spec.name == name) else { continue };
        if let Err(message) = check_value(spec, &value) {
            good = false;
            let span = node.get(&name).map_or(node.span, |node| node.span);
            out.push(Diagnostic::new(codes::INPUT_RULE, span, message).expected(describe(&spec.kind)));
        }
    }
    good.then_some(template)
}

/// The JSON Schema of an input's type.
fn input_schema(kind: &InputKind, about: &str) -> Json {
    let mut schema = match kind {
        InputKind::Int => json!({ "type": "integer" }),
        InputKind::Bool => json!({ "type": "boolean" }),
        InputKind::List(inner) => json!({ "type": "array", "items": input_schema(inner, "") }),
        InputKind::Map => json!({ "type": "object", "additionalProperties": true }),
        _ => json!({ "type": "string" }),
    };
    if !about.is_empty()
        && let Some(schema) = schema.as_object_mut()
    {
        schema.insert("description".into(), about.into());
    }
    schema
}

/// The type of an input's value.
pub(super) fn input_type(spec: &InputSpec) -> Type {
    let kind = kind_type(&spec.kind);
    if spec.default.as_ref().is_some_and(Value::is_null) { Type::Optional(Box::new(kind)) } else { kind }
}

fn kind_type(kind: &InputKind) -> Type {
    match kind {
        InputKind::Int => Type::Int,
        InputKind::Bool => Type::Bool,
        InputKind::List(inner) => Type::List(Box::new(kind_type(inner))),
        InputKind::Map => Type::Dict(Box::new(Type::Any)),
        _ => Type::Text,
    }
}

/// What expressions evaluated for each item see: what the step sees, the item under the name in `as` (`item` when
/// there is none), and the names under `lookup`.
fn items_view<'n>(with: &Node, view: &View<'n>) -> View<'n> {
    let mut inner = view.clone();
    let name: Text = match with.get("as").and_then(Node::as_text) {
        Some(name) if !name.contains("${") => name.clone(),
        _ => "item".into(),
    };
    let list = ["from", "in", "items"].into_iter().find_map(|key| with.get(key));
    inner.locals.push((name, list.and_then(|list| item_type(list, view)).unwrap_or(Type::Any)));
    if let Some(entries) = with.get("lookup").and_then(Node::as_map) {
        inner.locals.extend(entries.iter().map(|(key, _)| (key.text.clone(), Type::Any)));
    }
    inner
}

/// The type of one item of the list that `node` names.
fn item_type(node: &Node, view: &View<'_>) -> Option<Type> {
    // What is wrong with the list is reported where the list itself is checked.
    let (_, kind) = view.whole(node, false, &mut Found::default(), &mut Diagnostics::new())?;
    match kind {
        Type::List(item) => Some(*item),
        _ => None,
    }
}

struct Hooks<'a, 'n> {
    root: &'a Json,
    view: &'a View<'n>,
    item_view: View<'n>,
    targets: &'a BTreeMap<Text, TargetUse>,
    found: &'a mut Found,
}

impl SchemaHooks for Hooks<'_, '_> {
    fn intercept(&mut self, place: Place<'_>, out: &mut Diagnostics) -> Option<Option<Template>> {
        let mark = place.mark.or_else(|| mark_of_branches(place.schema));
        if mark == Some("item_template") {
            return Some(self.item_template(place.node, out).then(|| Template::Const(place.node.to_value())));
        }
        let Some(text) = place.node.as_text() else {
            self.literals(place, out);
            return None;
        };
        let dynamic = text.contains("${");
        match mark {
            Some("literal") => dynamic.then(|| {
                report_literal(place, text, out);
                None
            }),
            Some("item_expression") => {
                let checked = self.item_view.bare(place.node, self.found, out);
                Some(checked.map(|_| Template::Const(Value::Text(text.clone()))))
            }
            Some("text") if dynamic => Some(self.view.mixed(place.node, self.found, out)),
            Some("signal") if !dynamic => Some(self.signal(place.node, text, out)),
            Some("runbook") if !dynamic => Some(self.runbook(place.node, text, out)),
            Some(mark) if mark.starts_with("target:") && !dynamic => {
                Some(self.target(&mark["target:".len()..], place.node, text, out))
            }
            _ if !dynamic => {
                super::names::lint_braces(place.node, out);
                None
            }
            _ => Some(self.whole(place, out)),
        }
    }
}

impl Hooks<'_, '_> {
    /// One whole `${ }` whose type may fit the schema.
    fn whole(&mut self, place: Place<'_>, out: &mut Diagnostics) -> Option<Template> {
        let (template, kind) = self.view.whole(place.node, false, self.found, out)?;
        let wanted = types::of_schema(place.schema, self.root, None, &Json::Null, 0);
        if types::never_fits(&kind, &wanted) {
            let source = match &template {
                Template::Expr(expr) => expr.source().trim().to_owned(),
                _ => "…".into(),
            };
            let diagnostic = Diagnostic::new(
                codes::TYPE_MISMATCH,
                place.node.span,
                format!("{} does not fit here", types::describe(&kind)),
            )
            .expected(types::describe(&wanted));
            out.push(match (&wanted, &kind) {
                (Type::Text, Type::List(_)) => {
                    diagnostic.help(format!("take one item, or join them: ${{ {source} | join(' ') }}"))
                }
                (Type::Text, Type::Int | Type::Float | Type::Bool) => {
                    diagnostic.help(format!("make it text: ${{ {source} | string }}"))
                }
                (Type::Int, Type::Text) => {
                    diagnostic.help(format!("make it a number: ${{ {source} | int }}"))
                }
                (Type::Int, Type::List(_)) => diagnostic.help(format!("count it: ${{ {source} | length }}")),
                (Type::List(_), Type::Text | Type::Int | Type::Record(_)) => {
                    diagnostic.help(format!("make it a list of one: ${{ [{source}] }}"))
                }
                _ => diagnostic,
            });
            return None;
        }
        Some(template)
    }

    /// Checks every `${ }` in a tree that the action evaluates for each item.
    fn item_template(&mut self, node: &Node, out: &mut Diagnostics) -> bool {
        if node.as_text().is_some_and(|text| text.contains("${")) {
            return self.item_view.whole(node, true, self.found, out).is_some();
        }
        let mut good = true;
        for item in node.as_list().into_iter().flatten() {
            good &= self.item_template(item, out);
        }
        for (_, value) in node.as_map().into_iter().flatten() {
            good &= self.item_template(value, out);
        }
        good
    }

    /// The name of a target of one kind.
    fn target(&mut self, kind: &str, node: &Node, alias: &Text, out: &mut Diagnostics) -> Option<Template> {
        self.found.targets.insert(alias.to_string());
        let diagnostic = match self.targets.get(alias) {
            Some(target) if &*target.kind == kind && !target.group => {
                return Some(Template::Const(Value::Text(alias.clone())));
            }
            Some(target) if target.group => {
                Diagnostic::new(codes::WRONG_TARGET, node.span, format!("`{alias}` is a group of targets"))
                    .expected(format!("one target of kind `{kind}`"))
                    .help(format!(
                        "use `for_each: {{ in: \"${{ targets.{alias} }}\", … }}` and name the item here"
                    ))
            }
            Some(target) => Diagnostic::new(
                codes::WRONG_TARGET,
                node.span,
                format!("target `{alias}` is of kind `{}`", target.kind),
            )
            .expected(format!("a target of kind `{kind}`")),
            None => {
                let fitting: Vec<&str> = self
                    .targets
                    .iter()
                    .filter(|(_, target)| &*target.kind == kind)
                    .map(|(name, _)| &**name)
                    .collect();
                let help = if fitting.is_empty() {
                    Some(format!("declare it at the top: `targets: {{ {alias}: {kind} }}`"))
                } else {
                    hint(alias, fitting, &format!("targets of kind `{kind}`"))
                };
                let diagnostic = Diagnostic::new(
                    codes::UNKNOWN_TARGET,
                    node.span,
                    format!("unknown target {}", quoted(alias)),
                );
                help.map_or(diagnostic.clone(), |help| diagnostic.help(help))
            }
        };
        out.push(diagnostic);
        None
    }

    /// The name of a signal.
    fn signal(&self, node: &Node, name: &Text, out: &mut Diagnostics) -> Option<Template> {
        let known = &self.view.names.signals;
        if known.contains(name) {
            return Some(Template::Const(Value::Text(name.clone())));
        }
        let diagnostic = Diagnostic::new(
            codes::UNKNOWN_SIGNAL,
            node.span,
            format!("the runbook accepts no signal {}", quoted(name)),
        );
        let declare =
            format!("declare it at the top: `signals: [{{ name: {name}, who: [ … ], then: continue }}]`");
        out.push(match hint(name, known.iter().map(|known| &**known), "signals") {
            Some(help) if !known.is_empty() => diagnostic.help(help),
            _ => diagnostic.help(declare),
        });
        None
    }

    /// The name of this runbook, or of one that it starts: a run is pinned to the texts of these, and knows no others.
    fn runbook(&self, node: &Node, name: &Text, out: &mut Diagnostics) -> Option<Template> {
        let known = &self.view.names.runbooks;
        if known.contains(name) {
            return Some(Template::Const(Value::Text(name.clone())));
        }
        let diagnostic = Diagnostic::new(
            codes::UNKNOWN_RUNBOOK,
            node.span,
            format!("{} is neither this runbook nor one that it starts", quoted(name)),
        );
        out.push(match hint(name, known.iter().map(|known| &**known), "runbooks") {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        });
        None
    }

    /// Of a map with `params`: every `$name` in its literals is a parameter, and every parameter is used.
    fn literals(&self, place: Place<'_>, out: &mut Diagnostics) {
        if place.schema.get("properties").is_none_or(|properties| properties.get("params").is_none()) {
            return;
        }
        let mut texts: Vec<&Node> = Vec::new();
        self.gather(place.node, place.schema, &mut texts, 0);
        if texts.is_empty() {
            return;
        }
        let params = place.node.entry("params");
        let given: Option<&[(crate::yaml::Key, Node)]> = params.and_then(|(_, node)| node.as_map());
        // Parameters that one expression gives as a whole are known only in a run.
        if params.is_some() && given.is_none() {
            return;
        }
        let given = given.unwrap_or_default();
        let mut used: Vec<Text> = Vec::new();
        for node in texts {
            let text = node.as_text().map_or("", |text| text);
            for name in literal::params(text) {
                if !given.iter().any(|(key, _)| key.text == name) {
                    let at = text.find(&format!("${name}")).unwrap_or(0);
                    let span = node.offset_span(at..at + 1 + name.len());
                    let mut diagnostic =
                        Diagnostic::new(codes::UNKNOWN_PARAM, span, format!("`${name}` is not in `params`"));
                    diagnostic.help = hint(&name, given.iter().map(|(key, _)| &*key.text), "params")
                        .filter(|help| help.starts_with("did"))
                        .or_else(|| {
                            Some(format!(
                                "add `params: {{ {name}: … }}`; `$${name}` stands for a plain `${name}`"
                            ))
                        });
                    out.push(diagnostic);
                }
                used.push(name);
            }
        }
        for (key, _) in given.iter().filter(|(key, _)| !used.contains(&key.text)) {
            out.push(
                Diagnostic::new(
                    codes::UNUSED_PARAM,
                    key.span,
                    format!("the parameter {} is not used", quoted(&key.text)),
                )
                .help(format!("write `${}` where it belongs, or remove it", key.text)),
            );
        }
    }

    /// The texts marked `literal` in and below a map, up to the next map with `params` of its own.
    fn gather<'t>(&self, node: &'t Node, schema: &Json, texts: &mut Vec<&'t Node>, depth: usize) {
        if depth > 8 {
            return;
        }
        let schema = types::resolve(schema, self.root);
        if schema.get(MARK).is_some_and(|mark| mark == "literal") {
            if node.as_text().is_some_and(|text| !text.contains("${")) {
                texts.push(node);
            }
            return;
        }
        for branch in
            ["anyOf", "oneOf"].into_iter().filter_map(|union| schema.get(union)?.as_array()).flatten()
        {
            self.gather(node, branch, texts, depth + 1);
        }
        for item in node.as_list().into_iter().flatten() {
            if let Some(inner) = schema.get("items") {
                self.gather(item, inner, texts, depth + 1);
            }
        }
        for (key, value) in node.as_map().into_iter().flatten() {
            let inner = schema.get("properties").and_then(|all| all.get(&*key.text));
            if let Some(inner) =
                inner.or_else(|| schema.get("additionalProperties").filter(|inner| inner.is_object()))
            {
                let own = types::resolve(inner, self.root)
                    .get("properties")
                    .and_then(|all| all.get("params"))
                    .is_some();
                if !own {
                    self.gather(value, inner, texts, depth + 1);
                }
            }
        }
    }
}

/// `${ }` in text of another language: names a parameter that would do the same safely.
fn report_literal(place: Place<'_>, text: &str, out: &mut Diagnostics) {
    let parts = match segments(text) {
        Ok(parts) => parts,
        Err(error) => {
            let span = place.node.offset_span(error.range.unwrap_or(0..text.len()));
            out.push(Diagnostic::new(
                codes::EXPRESSION_IN_LITERAL,
                span,
                "`${` cannot stand in text of another language",
            ));
            return;
        }
    };
    for part in parts {
        let Segment::Expr(source, range) = part else { continue };
        let name = parameter_name(&source);
        let whole: Range<usize> = range.start.saturating_sub(2)..(range.end + 1).min(text.len());
        out.push(
            Diagnostic::new(
                codes::EXPRESSION_IN_LITERAL,
                place.node.offset_span(whole),
                "`${ }` cannot stand in text of another language, because data must not become code",
            )
            .help(format!(
                "write `${name}` here, and `params: {{ {name}: \"${{ {} }}\" }}` beside it",
                source.trim()
            )),
        );
    }
}

/// A parameter's name for an expression: its last constant name.
fn parameter_name(source: &str) -> String {
    let last = scan::chains(source).into_iter().next().map(|chain| {
        let field = chain.path.iter().rev().find_map(|access| match access {
            scan::Access::Field { name, .. } => Some(name.clone()),
            _ => None,
        });
        field.unwrap_or(chain.root)
    });
    last.filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or_else(|| "value".into())
}

/// The mark that every text among several shapes carries.
fn mark_of_branches(schema: &Json) -> Option<&str> {
    let branches = schema.get("anyOf").or_else(|| schema.get("oneOf"))?.as_array()?;
    let mut texts = branches.iter().filter(|branch| branch.get("type").is_some_and(|name| name == "string"));
    let first = texts.next()?.get(MARK)?.as_str()?;
    texts.all(|branch| branch.get(MARK).and_then(Json::as_str) == Some(first)).then_some(first)
}
