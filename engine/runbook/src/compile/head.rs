//! What stands at the top of a runbook: its name, targets, inputs, vars, triggers, guards, locks.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use farrier_model::expr::Template;
use farrier_model::spec::Catalog;
use farrier_model::time::{Timestamp, parse_duration};
use farrier_model::{Expr, Text, Type, Value};
use farrier_schedule::{Due, Pattern, Spec};

use super::names::{Found, IN_KEYS, IN_TITLE, IN_VARS, NOWHERE, Names, View, hint};
use super::with::input_type;
use super::{order, types};
use crate::at::{At, Keyed};
use crate::authored::{self, CatchUp, DurationText, GuardOtherwise, HealthOtherwise, Overlap};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, quoted};
use crate::graph::{
    Escalate, Guard, GuardAction, Health, InputKind, InputSpec, Lock, Rate, RateOf, TargetUse, Trigger,
};
use crate::inputs::{check_value, describe};
use crate::read::{NoHooks, check_schema, constant};
use crate::yaml::Node;

/// The checked top of a runbook.
pub(super) struct Head {
    pub name: Text,
    pub targets: BTreeMap<Text, TargetUse>,
    pub inputs: Vec<InputSpec>,
    /// Every input could be read, so that callers can be checked against them.
    pub inputs_good: bool,
    pub vars: Vec<(Text, Template)>,
    pub names: Names,
    pub found: Found,
    pub run_title: Option<Template>,
    pub triggers: Vec<Trigger>,
    pub escalate: Option<Escalate>,
    pub health: Option<Health>,
    pub timeout: Option<Duration>,
    pub one_run_per: Option<Expr>,
    pub locks: Vec<Lock>,
}

/// Checks everything above the steps.
pub(super) fn check(
    name: &Text,
    node: &Node,
    authored: &authored::Runbook,
    catalog: &Catalog,
    out: &mut Diagnostics,
) -> Head {
    if *authored.runbook.value != **name {
        out.push(
            Diagnostic::new(
                codes::NAME_IS_NOT_STEM,
                authored.runbook.span,
                format!("the runbook is called {}, and its file {}", quoted(&authored.runbook), quoted(name)),
            )
            .expected(format!("`{name}`"))
            .help(format!("write `runbook: {name}`, or rename the file to `{}.yaml`", authored.runbook)),
        );
    }
    let targets = check_targets(&authored.targets, catalog, out);
    let (inputs, inputs_good) = check_inputs(node, &authored.inputs, out);
    let mut names = Names {
        inputs: authored.inputs.iter().map(|(name, _)| (Text::from(&*name.value), Type::Any)).collect(),
        targets: targets.iter().map(|(alias, target)| (alias.clone(), target.group)).collect(),
        // A name that did not pass its checks is still known, so that one mistake gives one message.
        vars: authored.vars.iter().map(|(name, _)| (Text::from(&*name.value), Type::Any)).collect(),
        ..Names::default()
    }
    .with_run();
    names.targets.extend(
        authored
            .targets
            .iter()
            .filter(|(alias, _)| !targets.contains_key(&*alias.value))
            .map(|(alias, kind)| (Text::from(&*alias.value), kind.starts_with("group of "))),
    );
    for spec in &inputs {
        names.inputs.insert(spec.name.clone(), input_type(spec));
    }
    let mut found = Found::default();
    let vars = check_vars(&authored.vars, &mut names, &mut found, out);
    names.signals = authored.signals.iter().map(|signal| Text::from(&*signal.name.value)).collect();
    let view = |roots| View { names: &names, roots, result: None, locals: Vec::new(), step: None };
    let one_run_per = authored
        .one_run_per
        .as_ref()
        .and_then(|key| view(IN_KEYS).bare(&key.0, &mut found, out))
        .map(|(expr, _)| expr);
    let locks =
        authored.locks.iter().filter_map(|lock| check_lock(lock, &view(IN_KEYS), &mut found, out)).collect();
    let run_title =
        authored.run_title.as_ref().and_then(|title| view(IN_TITLE).mixed(&title.0, &mut found, out));
    let triggers = authored
        .triggers
        .iter()
        .zip(node.get("triggers").and_then(Node::as_list).unwrap_or_default())
        .filter_map(|(trigger, node)| check_trigger(name, trigger, node, &inputs, &names, &mut found, out))
        .collect();
    let escalate = authored.escalate.as_ref().map(|escalate| Escalate {
        on: escalate.on.iter().map(|occasion| occasion.value).collect(),
        to: escalate.to.as_ref().map_or(&*authored.owner.value, |to| &*to.value).into(),
    });
    let health = authored.health.as_ref().and_then(|health| {
        Some(Health {
            success_every: positive(&health.success_every, out)?,
            otherwise: health.otherwise.map_or(HealthOtherwise::Page, |otherwise| otherwise.value),
        })
    });
    Head {
        name: name.clone(),
        inputs_good,
        timeout: authored.timeout.as_ref().and_then(|timeout| positive(timeout, out)),
        vars,
        found,
        run_title,
        triggers,
        escalate,
        health,
        one_run_per,
        locks,
        targets,
        inputs,
        names,
    }
}

/// Reads a duration.
pub(crate) fn duration(text: &DurationText, out: &mut Diagnostics) -> Option<Duration> {
    let parsed = parse_duration(text.text());
    if parsed.is_none() {
        let digits = !text.text().is_empty() && text.text().bytes().all(|byte| byte.is_ascii_digit());
        let diagnostic = Diagnostic::new(
            codes::BAD_DURATION,
            text.0.span,
            format!("{} is not a duration", quoted(text.text())),
        )
        .expected("a duration such as `90s`, `5m`, `1h30m` or `40d`");
        out.push(if digits {
            diagnostic.help(format!("write a unit: `{}s`", text.text()))
        } else {
            diagnostic
        });
    }
    parsed
}

/// Reads a duration that must not be zero.
pub(super) fn positive(text: &DurationText, out: &mut Diagnostics) -> Option<Duration> {
    let parsed = duration(text, out)?;
    if parsed.is_zero() {
        out.push(
            Diagnostic::new(codes::BAD_DURATION, text.0.span, "the duration is zero")
                .expected("a longer one"),
        );
        return None;
    }
    Some(parsed)
}

/// Reports a name that expressions could not write after a dot.
pub(super) fn check_id(name: &At<String>, what: &str, out: &mut Diagnostics) {
    let letter = name.starts_with(|c: char| c.is_ascii_lowercase());
    if letter && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return;
    }
    let fixed: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect::<String>()
        .trim_start_matches(|c: char| !c.is_ascii_lowercase())
        .to_owned();
    let diagnostic =
        Diagnostic::new(codes::BAD_ID, name.span, format!("{} cannot be the name of {what}", quoted(name)))
            .expected("lower-case letters, digits and `_`, a letter first");
    out.push(if fixed.is_empty() { diagnostic } else { diagnostic.help(format!("write `{fixed}`")) });
}

fn check_targets(
    authored: &Keyed<At<String>>,
    catalog: &Catalog,
    out: &mut Diagnostics,
) -> BTreeMap<Text, TargetUse> {
    let mut targets = BTreeMap::new();
    for (alias, kind) in authored {
        check_id(alias, "a target", out);
        let (optional, group, bare) = match (kind.strip_prefix("optional "), kind.strip_prefix("group of ")) {
            (Some(bare), _) => (true, false, bare.trim()),
            (None, Some(bare)) => (false, true, bare.trim()),
            (None, None) => (false, false, kind.as_str()),
        };
        if catalog.targets.contains_key(bare) {
            targets.insert(Text::from(&*alias.value), TargetUse { kind: bare.into(), group, optional });
        } else {
            let diagnostic = Diagnostic::new(
                codes::UNKNOWN_TARGET_KIND,
                kind.span,
                format!("unknown kind of target {}", quoted(bare)),
            );
            out.push(match hint(bare, catalog.targets.keys().copied(), "kinds") {
                Some(help) => diagnostic.help(help),
                None => diagnostic,
            });
        }
    }
    targets
}

fn check_inputs(
    node: &Node,
    authored: &Keyed<authored::Input>,
    out: &mut Diagnostics,
) -> (Vec<InputSpec>, bool) {
    let mut specs = Vec::with_capacity(authored.len());
    let before = out.len();
    for (name, input) in authored {
        check_id(name, "an input", out);
        let raw = node.get("inputs").and_then(|inputs| inputs.get(&name.value));
        specs.push(check_input(name, input, raw, out));
    }
    (specs, out.len() == before)
}

fn check_input(
    name: &At<String>,
    input: &authored::Input,
    raw: Option<&Node>,
    out: &mut Diagnostics,
) -> InputSpec {
    let kind = input.kind.value.kind(input.of.map(|of| of.value));
    let before = out.len();
    if let Some(of) = &input.of {
        if input.kind.value != authored::InputType::List {
            out.push(
                Diagnostic::new(codes::INPUT_RULE, of.span, "`of` names the type of a list's items")
                    .help("write `type: list`, or remove `of`"),
            );
        } else if of.value == authored::InputType::List {
            out.push(
                Diagnostic::new(codes::INPUT_RULE, of.span, "a list of lists cannot be an input")
                    .help("use `of: map`, or a `map` of lists"),
            );
        }
    }
    let textual = |kind: &InputKind| {
        !matches!(kind, InputKind::Int | InputKind::Bool | InputKind::Map | InputKind::List(_))
    };
    let pattern = input.pattern.as_ref().and_then(|pattern| {
        let of_text = match &kind {
            InputKind::List(inner) => textual(inner),
            other => textual(other),
        };
        if !of_text {
            out.push(
                Diagnostic::new(
                    codes::INPUT_RULE,
                    pattern.span,
                    format!("a pattern is for text; this input is {}", describe(&kind)),
                )
                .help("remove `pattern`"),
            );
            return None;
        }
        match regex::Regex::new(&format!("^(?:{})$", pattern.value)) {
            Ok(regex) => Some(regex),
            Err(error) => {
                let detail = error.to_string();
                let reason =
                    detail.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                out.push(
                    Diagnostic::new(
                        codes::BAD_PATTERN,
                        pattern.span,
                        format!("{} is not a regular expression: {reason}", quoted(&pattern.value)),
                    )
                    .help("in double quotes YAML reads `\\`; single quotes keep it"),
                );
                None
            }
        }
    });
    let bound = |bound: &Option<authored::Bound>, out: &mut Diagnostics| {
        let node = &bound.as_ref()?.0;
        let text = node.as_text()?;
        let read = match &kind {
            InputKind::Duration => parse_duration(text).map(|length| length.as_millis() as i64),
            InputKind::Bool | InputKind::Timestamp => None,
            _ => text.parse().ok(),
        };
        if read.is_none() {
            let expected = match &kind {
                InputKind::Duration => "a duration such as `40d`",
                InputKind::Bool | InputKind::Timestamp => "no bound: this type has no size",
                InputKind::Int => "a whole number",
                _ => "a length, as a whole number",
            };
            out.push(
                Diagnostic::new(
                    codes::INPUT_RULE,
                    node.span,
                    format!("{} is not a bound for this input", quoted(text)),
                )
                .expected(expected),
            );
        }
        read
    };
    let min = bound(&input.min, out);
    let max = bound(&input.max, out);
    if let (Some(low), Some(high), Some(written)) = (min, max, &input.max)
        && low > high
    {
        let other = input.min.as_ref().map_or(written.0.span, |min| min.0.span);
        out.push(
            Diagnostic::new(
                codes::MIN_ABOVE_MAX,
                written.0.span,
                "no value fits: `max` is smaller than `min`",
            )
            .label(other, "`min` is larger"),
        );
    }
    let mut spec = InputSpec {
        name: (*name.value).into(),
        kind,
        default: None,
        required: true,
        pattern,
        min,
        max,
        one_of: Vec::new(),
        about: input.about.as_ref().map_or("", |about| &*about.value).into(),
    };
    let mut one_of = Vec::new();
    for node in input.one_of.iter().flatten() {
        if let Some(value) = typed_constant(node, &spec.kind, codes::INPUT_RULE, out) {
            one_of.extend(checked(&spec, &value, node, codes::INPUT_RULE, out));
        }
    }
    spec.one_of = one_of;
    if let Some(node) = raw.and_then(|raw| raw.get("default")) {
        spec.required = false;
        if node.is_null() {
            spec.default = Some(Value::Null);
        } else if let Some(value) = typed_constant(node, &spec.kind, codes::BAD_DEFAULT, out)
            && out.len() == before
        {
            spec.default = checked(&spec, &value, node, codes::BAD_DEFAULT, out);
        }
    }
    spec
}

fn checked(
    spec: &InputSpec,
    value: &Value,
    node: &Node,
    code: codes::Code,
    out: &mut Diagnostics,
) -> Option<Value> {
    match check_value(spec, value) {
        Ok(value) => Some(value),
        Err(message) => {
            let message = if code == codes::BAD_DEFAULT {
                format!("the default breaks the input's own rules: {message}")
            } else {
                message
            };
            out.push(Diagnostic::new(code, node.span, message));
            None
        }
    }
}

/// A constant of an input's type.
fn typed_constant(node: &Node, kind: &InputKind, code: codes::Code, out: &mut Diagnostics) -> Option<Value> {
    fn schema(kind: &InputKind) -> serde_json::Value {
        match kind {
            InputKind::Int => serde_json::json!({ "type": "integer" }),
            InputKind::Bool => serde_json::json!({ "type": "boolean" }),
            InputKind::List(inner) => serde_json::json!({ "type": "array", "items": schema(inner) }),
            InputKind::Map => serde_json::json!({ "type": "object", "additionalProperties": true }),
            _ => serde_json::json!({ "type": "string" }),
        }
    }
    if let Some(at) = node.as_text().and_then(|text| text.find("${")) {
        out.push(
            Diagnostic::new(
                codes::NOT_CONSTANT,
                node.offset_span(at..at + 2),
                "only a constant can stand here",
            )
            .help("an expression belongs into `vars`"),
        );
        return None;
    }
    let before = out.len();
    let value = check_schema(node, &schema(kind), &mut NoHooks, out).and_then(constant);
    recode(before, |_| code, out);
    value
}

/// Gives the mistakes in shape since there were `before` another code: the type is that of an input, not of the language.
pub(super) fn recode(before: usize, code: impl Fn(codes::Code) -> codes::Code, out: &mut Diagnostics) {
    for mut diagnostic in out.split_off(before) {
        if diagnostic.code.as_str().starts_with("E02") {
            diagnostic.code = code(diagnostic.code);
        }
        out.push(diagnostic);
    }
}

/// Checks vars in the order in which they use each other.
fn check_vars(
    authored: &Keyed<Node>,
    names: &mut Names,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Vec<(Text, Template)> {
    let positions: HashMap<&str, u32> =
        authored.iter().enumerate().map(|(at, (name, _))| (&*name.value, at as u32)).collect();
    let mut edges = Vec::new();
    for (at, (name, node)) in authored.iter().enumerate() {
        check_id(name, "a var", out);
        // Types are not known yet; this pass only finds who uses whom.
        let mut uses = Found::default();
        let view = View { names, roots: IN_VARS, result: None, locals: Vec::new(), step: None };
        view.tree(node, true, &mut uses, &mut Diagnostics::new());
        edges.extend(uses.vars.iter().filter_map(|used| Some((*positions.get(used.as_str())?, at as u32))));
    }
    let order = match order::order(authored.len(), &edges) {
        Ok(order) => order,
        Err(cycles) => {
            for cycle in cycles {
                let path: Vec<&str> = cycle
                    .iter()
                    .rev()
                    .chain(cycle.last())
                    .map(|at| &*authored.0[*at as usize].0.value)
                    .collect();
                let span = authored.0[cycle[0] as usize].0.span;
                out.push(
                    Diagnostic::new(
                        codes::VARS_CYCLE,
                        span,
                        format!("these vars use each other in a circle: {}", path.join(" → ")),
                    )
                    .help("a var may use inputs and other vars, but not itself"),
                );
            }
            (0..authored.len() as u32).collect()
        }
    };
    let mut vars = Vec::with_capacity(authored.len());
    for at in order {
        let (name, node) = &authored.0[at as usize];
        let view = View { names, roots: IN_VARS, result: None, locals: Vec::new(), step: None };
        if let Some((template, kind)) = view.tree(node, true, found, out) {
            names.vars.insert((*name.value).into(), kind);
            vars.push(((*name.value).into(), template));
        }
    }
    vars
}

/// Checks a lock.
pub(super) fn check_lock(
    lock: &authored::Lock,
    view: &View<'_>,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Option<Lock> {
    let name = view.mixed(&lock.name.0, found, out);
    if let Some(capacity) = lock.capacity.filter(|capacity| capacity.value == 0) {
        out.push(
            Diagnostic::new(codes::BAD_LOCK, capacity.span, "a lock that nobody can hold")
                .expected("a capacity of at least 1"),
        );
    }
    let wait = lock.wait.as_ref().map(|wait| duration(wait, out));
    Some(Lock {
        name: name?,
        capacity: lock.capacity.map_or(1, |capacity| capacity.value),
        wait: match wait {
            Some(wait) => Some(wait?),
            None => None,
        },
    })
}

/// Checks guards; `rate` finds what a rate counts.
pub(super) fn check_guards(
    guards: &[authored::Guard],
    place: Span,
    rate: &mut dyn FnMut(&At<String>, &mut Diagnostics) -> Option<RateOf>,
    out: &mut Diagnostics,
) -> Vec<Guard> {
    let mut checked = Vec::new();
    for guard in guards {
        let place = guard
            .at_most
            .map(|limit| limit.span)
            .or_else(|| guard.share.as_ref().map(|share| share.span))
            .or_else(|| guard.rate.as_ref().and_then(|rate| rate.0.first()).map(|name| name.span))
            .or_else(|| guard.count.as_ref().and_then(|kinds| kinds.first()).map(|kind| kind.span))
            .unwrap_or(place);
        let share = guard.share.as_ref().and_then(|share| parse_share(share, out));
        if let Some(names) = &guard.rate {
            let of: Vec<Option<RateOf>> = names.0.iter().map(|name| rate(name, out)).collect();
            let of: Option<Vec<RateOf>> = of.into_iter().collect();
            let missing = match (&guard.at_most, &guard.within) {
                (None, _) => Some("at_most"),
                (_, None) => Some("within"),
                _ => None,
            };
            if let Some(missing) = missing {
                out.push(
                    Diagnostic::new(codes::BAD_GUARD, place, format!("a rate needs `{missing}`"))
                        .help("write `{ rate: NAME, at_most: 3, within: 24h }`"),
                );
            }
            if let Some(stray) = guard.share.as_ref().map(|share| share.span) {
                out.push(
                    Diagnostic::new(codes::BAD_GUARD, stray, "a rate has no `share`").help("use `at_most`"),
                );
            }
            let within = guard.within.as_ref().and_then(|within| positive(within, out));
            if let (Some(of), Some(within), Some(_)) = (of, within, &guard.at_most) {
                checked.push(Guard {
                    count: Vec::new(),
                    at_most: guard.at_most.map(|limit| limit.value),
                    share: None,
                    rate: Some(Rate { of, within }),
                    otherwise: guard_action(guard),
                    text: guard_text(guard).into(),
                });
            }
            continue;
        }
        if let Some(within) = &guard.within {
            out.push(
                Diagnostic::new(codes::BAD_GUARD, within.0.span, "`within` belongs to a rate")
                    .help("name what is counted over time: `rate: STEP`"),
            );
        }
        if guard.at_most.is_none() && guard.share.is_none() {
            out.push(
                Diagnostic::new(codes::BAD_GUARD, place, "the guard has no limit")
                    .help("add `at_most: 25`, `share: 2%`, or both"),
            );
            continue;
        }
        checked.push(Guard {
            count: guard.count.iter().flatten().map(|kind| kind.value.into()).collect(),
            at_most: guard.at_most.map(|limit| limit.value),
            share,
            rate: None,
            otherwise: guard_action(guard),
            text: guard_text(guard).into(),
        });
    }
    checked
}

fn guard_action(guard: &authored::Guard) -> GuardAction {
    match guard.otherwise.map(|otherwise| otherwise.value) {
        None | Some(GuardOtherwise::Stop) => GuardAction::Stop,
        Some(GuardOtherwise::Ask) => GuardAction::Ask,
        Some(GuardOtherwise::Page) => GuardAction::Page,
    }
}

fn guard_text(guard: &authored::Guard) -> String {
    let mut parts = Vec::new();
    parts.extend(guard.rate.as_ref().map(|rate| {
        let names: Vec<&str> = rate.0.iter().map(|name| name.value.as_str()).collect();
        if let [name] = *names { format!("rate: {name}") } else { format!("rate: [{}]", names.join(", ")) }
    }));
    if let Some(kinds) = &guard.count {
        let kinds: Vec<&str> =
            kinds.iter().map(|kind| farrier_model::ChangeKind::from(kind.value).name()).collect();
        parts.push(format!("count: [{}]", kinds.join(", ")));
    }
    parts.extend(guard.at_most.map(|limit| format!("at_most: {}", limit.value)));
    parts.extend(guard.share.as_ref().map(|share| format!("share: {}", share.value)));
    parts.extend(guard.within.as_ref().map(|within| format!("within: {}", within.text())));
    parts.join(", ")
}

/// `2%` as 0.02.
fn parse_share(share: &At<String>, out: &mut Diagnostics) -> Option<f64> {
    let number: Option<f64> = share.strip_suffix('%').and_then(|number| number.trim().parse().ok());
    let fraction = number.map(|number| number / 100.0).filter(|fraction| (0.0..=1.0).contains(fraction));
    if fraction.is_none() {
        let diagnostic =
            Diagnostic::new(codes::BAD_GUARD, share.span, format!("{} is not a share", quoted(share)))
                .expected("a percentage from `0%` to `100%`");
        out.push(match share.parse::<f64>() {
            Ok(number) if (0.0..=100.0).contains(&number) => diagnostic.help(format!("write `{number}%`")),
            _ => diagnostic,
        });
    }
    fraction
}

fn check_trigger(
    name: &Text,
    trigger: &authored::Trigger,
    node: &Node,
    inputs: &[InputSpec],
    names: &Names,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Option<Trigger> {
    let key = |name: &str| node.entry(name).map(|(key, _)| key.span);
    let given: Vec<(&str, Span)> =
        ["every", "cron", "alert"].into_iter().filter_map(|name| Some((name, key(name)?))).collect();
    let ((_, first), rest) = match given.split_first() {
        Some((first, rest)) => (*first, rest),
        None => {
            let place =
                node.as_map().and_then(|entries| entries.first()).map_or(node.span, |(key, _)| key.span);
            out.push(
                Diagnostic::new(codes::BAD_TRIGGER, place, "the trigger does not say when")
                    .expected("one of `every`, `cron` and `alert`"),
            );
            return None;
        }
    };
    for (name, span) in rest {
        out.push(
            Diagnostic::new(codes::BAD_TRIGGER, *span, format!("`{name}` begins a trigger of its own"))
                .label(first, "this trigger")
                .help("write one list item for each trigger"),
        );
    }
    if let Some(alert) = &trigger.alert {
        for name in ["timezone", "clock_change", "overlap", "catch_up", "jitter", "inputs"] {
            if let Some(span) = key(name) {
                let diagnostic = Diagnostic::new(
                    codes::BAD_TRIGGER,
                    span,
                    format!("`{name}` belongs to a trigger by the clock"),
                );
                out.push(if name == "inputs" {
                    diagnostic.help("move it under `alert:`")
                } else {
                    diagnostic
                });
            }
        }
        return super::alerts::check_route(name, alert, first, inputs, names, found, out)
            .map(|route| Trigger::Alert(Box::new(route)));
    }
    let due = match (&trigger.every, &trigger.cron) {
        (Some(every), _) => check_every(every, out).map(Due::Every),
        (_, Some(cron)) => check_cron(cron, trigger, out),
        _ => None,
    };
    if trigger.cron.is_none() {
        for name in ["timezone", "clock_change"] {
            if let Some(span) = key(name) {
                let diagnostic =
                    Diagnostic::new(codes::BAD_TRIGGER, span, format!("`{name}` belongs to `cron`"));
                out.push(diagnostic.help("remove it"));
            }
        }
    }
    let jitter = trigger.jitter.as_ref().and_then(|jitter| duration(jitter, out)).unwrap_or_default();
    if let (Some(Due::Every(every)), Some(written)) = (&due, &trigger.jitter)
        && jitter >= *every
    {
        out.push(
            Diagnostic::new(
                codes::BAD_TRIGGER,
                written.0.span,
                "the jitter is as long as the time between two starts",
            )
            .expected("less than `every`"),
        );
    }
    let view = View { names, roots: NOWHERE, result: None, locals: Vec::new(), step: None };
    let inputs = trigger_inputs(&trigger.inputs, first, inputs, &view, found, out);
    let overlap = trigger.overlap.map_or(Overlap::Skip, |overlap| overlap.value);
    let catch_up = trigger.catch_up.map_or(CatchUp::Latest, |catch_up| catch_up.value);
    if let (CatchUp::All, Overlap::Skip | Overlap::CancelRunning, Some(written)) =
        (catch_up, overlap, &trigger.catch_up)
    {
        let what = "runs that are caught up together would be in each other's way";
        let diagnostic = Diagnostic::new(codes::BAD_TRIGGER, written.span, what);
        out.push(diagnostic.help("with `catch_up: all` write `overlap: queue`, or `overlap: allow`"));
        return None;
    }
    Some(Trigger::Clock { spec: Spec { jitter, overlap, catch_up, ..Spec::new(due?) }, inputs: inputs? })
}

/// The time from one start to the next: what is quicker than a second is no schedule.
fn check_every(every: &DurationText, out: &mut Diagnostics) -> Option<Duration> {
    let duration = positive(every, out)?;
    if duration < Duration::from_secs(1) {
        let what = "the time between two starts is less than a second";
        out.push(Diagnostic::new(codes::BAD_TRIGGER, every.0.span, what).expected("`1s` or more"));
        return None;
    }
    Some(duration)
}

fn check_cron(cron: &At<String>, trigger: &authored::Trigger, out: &mut Diagnostics) -> Option<Due> {
    let change = trigger.clock_change.map(|change| change.value);
    let timezone = trigger.timezone.as_ref();
    // Both are told, so each is tried with a zone and a pattern that are right.
    let pattern = Pattern::new(cron, "Etc/UTC", change);
    let wrong = match &pattern {
        Err(error) => Some(format!("{} is not a cron pattern: {error}", quoted(cron))),
        Ok(pattern) if pattern.next(Timestamp::UNIX_EPOCH).is_none() => {
            Some(format!("{} names no time that ever comes", quoted(cron)))
        }
        Ok(_) => None,
    };
    if let Some(wrong) = &wrong {
        out.push(
            Diagnostic::new(codes::BAD_CRON, cron.span, wrong.as_str())
                .expected("minute, hour, day, month, weekday; or six fields with seconds first")
                .help("for example `17 3 * * *`: every day at 03:17"),
        );
    }
    let zone = timezone.map_or("Etc/UTC", |zone| &*zone.value);
    let known = farrier_schedule::zone(zone).is_ok();
    if let Some(written) = timezone.filter(|_| !known) {
        let diagnostic =
            Diagnostic::new(codes::BAD_TIMEZONE, written.span, format!("unknown time zone {}", quoted(zone)))
                .expected("an IANA name such as `Etc/UTC` or `Europe/Berlin`");
        let available = farrier_schedule::zones();
        out.push(match crate::diagnostic::nearest(zone, available.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic,
        });
    }
    let (pattern, timezone) = ((*cron.value).into(), zone.into());
    (wrong.is_none() && known).then_some(Due::Cron { pattern, timezone, clock_change: change })
}

/// Values that a trigger gives to inputs: the names exist, and nothing that must be given is missing.
pub(super) fn trigger_inputs(
    given: &Keyed<Node>,
    place: Span,
    inputs: &[InputSpec],
    view: &View<'_>,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Option<Template> {
    let mut entries = Vec::new();
    for (name, node) in given {
        let Some(spec) = inputs.iter().find(|spec| *spec.name == *name.value) else {
            // An input with a mistake of its own is known all the same.
            if !view.names.inputs.contains_key(&*name.value) {
                let diagnostic = Diagnostic::new(
                    codes::UNKNOWN_INPUT,
                    name.span,
                    format!("unknown input {}", quoted(name)),
                );
                out.push(match hint(name, inputs.iter().map(|spec| &*spec.name), "inputs") {
                    Some(help) => diagnostic.help(help),
                    None => diagnostic,
                });
            }
            continue;
        };
        if node.as_text().is_some_and(|text| text.contains("${")) {
            if let Some((template, kind)) = view.whole(node, true, found, out) {
                if types::never_fits(&kind, &input_type(spec)) {
                    out.push(
                        Diagnostic::new(
                            codes::TYPE_MISMATCH,
                            node.span,
                            format!("{} does not fit this input", types::describe(&kind)),
                        )
                        .expected(describe(&spec.kind)),
                    );
                }
                entries.push((spec.name.clone(), template));
            }
        } else if let Some(value) = typed_constant(node, &spec.kind, codes::INPUT_RULE, out)
            && let Some(value) = checked(spec, &value, node, codes::INPUT_RULE, out)
        {
            entries.push((spec.name.clone(), Template::Const(value)));
        }
    }
    let missing: Vec<&str> = inputs
        .iter()
        .filter(|spec| spec.required && given.get(&spec.name).is_none())
        .map(|spec| &*spec.name)
        .collect();
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().map(|name| quoted(name)).collect();
        out.push(
            Diagnostic::new(
                codes::TRIGGER_LACKS_INPUT,
                place,
                format!("a run that this trigger starts would lack {}", list.join(", ")),
            )
            .help("give a value under the trigger's `inputs:`, or a `default` to the input"),
        );
        return None;
    }
    Some(Template::Map(entries))
}
