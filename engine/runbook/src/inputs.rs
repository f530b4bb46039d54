//! Checks what a run is told: each value against its [`InputSpec`], all problems at once.
//!
//! Read [`check_inputs`]. [`check_value`] holds the rules of the types; the compiler uses it for defaults too, so a
//! default keeps the rules of its own input.

use std::collections::BTreeMap;
use std::net::IpAddr;

use farrier_model::time::{format_duration, parse_duration, parse_timestamp};
use farrier_model::{Text, Value};

use crate::diagnostic::{nearest, quoted};
use crate::graph::{Graph, InputKind, InputSpec};

/// One given value.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Text from a command line: read by the declared type. A list is JSON, or its items separated by commas.
    Text(String),
    /// A typed value, from a child run or a request.
    Value(Value),
}

/// What is wrong with one input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("input `{input}`: {message}")]
pub struct InputProblem {
    /// The input.
    pub input: Text,
    /// A lower-case fragment.
    pub message: String,
    /// The next step.
    pub help: Option<String>,
}

/// The inputs of a run: a map with every declared input, defaults filled in, in the runbook's order.
///
/// # Errors
/// Every problem, in the runbook's order; unknown names last.
pub fn check_inputs(graph: &Graph, given: &BTreeMap<Text, Given>) -> Result<Value, Vec<InputProblem>> {
    let mut problems = Vec::new();
    let mut values: Vec<(Text, Value)> = Vec::with_capacity(graph.inputs.len());
    for spec in &graph.inputs {
        let problem = |message: String| InputProblem {
            input: spec.name.clone(),
            message,
            help: (!spec.about.is_empty()).then(|| spec.about.to_string()),
        };
        let checked = match given.get(&spec.name) {
            Some(Given::Text(text)) => {
                from_text(&spec.kind, text).and_then(|value| check_value(spec, &value))
            }
            Some(Given::Value(Value::Null)) if spec.default.is_some() => {
                Ok(spec.default.clone().unwrap_or_default())
            }
            Some(Given::Value(value)) => check_value(spec, value),
            None => match &spec.default {
                Some(default) => Ok(default.clone()),
                None => {
                    problems
                        .push(problem(format!("is not given, and must be; it is {}", describe(&spec.kind))));
                    continue;
                }
            },
        };
        match checked {
            Ok(value) => values.push((spec.name.clone(), value)),
            Err(message) => problems.push(problem(message)),
        }
    }
    for name in given.keys().filter(|name| !graph.inputs.iter().any(|spec| spec.name == **name)) {
        let known = graph.inputs.iter().map(|spec| &*spec.name);
        let help = match nearest(name, known.clone()) {
            Some(near) => Some(format!("did you mean `{near}`?")),
            None if graph.inputs.is_empty() => Some("the runbook has no inputs".into()),
            None => Some(format!("its inputs are {}", known.map(quoted).collect::<Vec<_>>().join(", "))),
        };
        problems.push(InputProblem {
            input: name.clone(),
            message: format!("runbook `{}` has no such input", graph.name),
            help,
        });
    }
    if problems.is_empty() { Ok(Value::map(values)) } else { Err(problems) }
}

/// How messages call a type.
pub fn describe(kind: &InputKind) -> String {
    match kind {
        InputKind::String => "text on one line".into(),
        InputKind::Text => "text".into(),
        InputKind::Int => "a whole number".into(),
        InputKind::Bool => "`true` or `false`".into(),
        InputKind::Duration => "a duration such as `90s` or `40d`".into(),
        InputKind::Timestamp => "a timestamp such as `2026-11-22T10:15:30Z`".into(),
        InputKind::List(inner) => format!("a list, each item {}", describe(inner)),
        InputKind::Map => "a map".into(),
        InputKind::PathSegment => "one component of a path, without `/`".into(),
        InputKind::Dn => "a distinguished name such as `uid=a,ou=people,dc=example`".into(),
        InputKind::Host => "a host name or address".into(),
        InputKind::K8sName => {
            "the name of a Kubernetes object: lower-case letters, digits, `-` and `.`".into()
        }
        InputKind::ToolName => "a tool's name without its project: lower-case letters, digits and `-`".into(),
    }
}

/// Reads text of a command line by the declared type.
fn from_text(kind: &InputKind, text: &str) -> Result<Value, String> {
    let wrong = || format!("{} is not {}", quoted(text), describe(kind));
    match kind {
        InputKind::Int => text.parse().map(Value::Int).map_err(|_| wrong()),
        InputKind::Bool => text.parse().map(Value::Bool).map_err(|_| wrong()),
        InputKind::Map => match Value::from_json(text) {
            Ok(value @ Value::Map(_)) => Ok(value),
            _ => Err(format!("{} is not a map; write it as JSON", quoted(text))),
        },
        InputKind::List(_) if text.trim_start().starts_with('[') => {
            Value::from_json(text).map_err(|error| format!("{} is not JSON: {error}", quoted(text)))
        }
        InputKind::List(_) if text.is_empty() => Ok(Value::list(Vec::new())),
        InputKind::List(inner) => Ok(Value::list(
            text.split(',').map(|item| from_text(inner, item.trim())).collect::<Result<_, _>>()?,
        )),
        _ => Ok(Value::text(text)),
    }
}

/// The value as the run will see it, if it keeps the rules of its input.
///
/// # Errors
/// The first rule it breaks, as a lower-case fragment.
pub fn check_value(spec: &InputSpec, value: &Value) -> Result<Value, String> {
    check_kind(&spec.kind, value)?;
    if let Some(pattern) = &spec.pattern {
        let texts: Vec<&Value> = match value {
            Value::List(items) => items.iter().collect(),
            other => vec![other],
        };
        if let Some(stray) = texts.into_iter().find(|text| !pattern.is_match(&text.to_string())) {
            return Err(format!(
                "{} does not match `{}`",
                quoted(&stray.to_string()),
                shown_pattern(pattern)
            ));
        }
    }
    if let Some(measure) = measure(&spec.kind, value) {
        let (what, show): (&str, fn(i64) -> String) = match spec.kind {
            InputKind::Duration => {
                ("", |ms| format_duration(std::time::Duration::from_millis(ms.max(0).cast_unsigned())))
            }
            InputKind::Int => ("", |number| number.to_string()),
            InputKind::List(_) | InputKind::Map => (" entries", |number| number.to_string()),
            _ => (" characters", |number| number.to_string()),
        };
        if let Some(min) = spec.min.filter(|min| measure < *min) {
            return Err(format!("{} is too small; at least {}{what}", quoted(&value.to_string()), show(min)));
        }
        if let Some(max) = spec.max.filter(|max| measure > *max) {
            return Err(format!("{} is too large; at most {}{what}", quoted(&value.to_string()), show(max)));
        }
    }
    if !spec.one_of.is_empty() && !spec.one_of.contains(value) {
        let names: Vec<String> = spec.one_of.iter().map(|one| quoted(&one.to_string())).collect();
        return Err(format!("{} is not one of {}", quoted(&value.to_string()), names.join(", ")));
    }
    Ok(value.clone())
}

/// The pattern as its author wrote it, without the anchors.
fn shown_pattern(pattern: &regex::Regex) -> &str {
    let text = pattern.as_str();
    text.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(text)
}

/// What `min` and `max` bound: the number, the duration in milliseconds, the length.
fn measure(kind: &InputKind, value: &Value) -> Option<i64> {
    match (kind, value) {
        (_, Value::Int(number)) => Some(*number),
        (InputKind::Duration, Value::Text(text)) => {
            parse_duration(text).map(|length| length.as_millis() as i64)
        }
        (InputKind::Timestamp | InputKind::Bool, _) => None,
        (_, Value::Text(text)) => Some(text.chars().count() as i64),
        (_, Value::List(items)) => Some(items.len() as i64),
        (_, Value::Map(entries)) => Some(entries.len() as i64),
        _ => None,
    }
}

/// Whether a value is of a type at all.
fn check_kind(kind: &InputKind, value: &Value) -> Result<(), String> {
    let wrong = || Err(format!("{} is not {}", shown(value), describe(kind)));
    let good = match (kind, value) {
        (InputKind::Int, Value::Int(_))
        | (InputKind::Bool, Value::Bool(_))
        | (InputKind::Map, Value::Map(_))
        | (InputKind::Text, Value::Text(_)) => true,
        (InputKind::List(inner), Value::List(items)) => {
            return items.iter().enumerate().try_for_each(|(at, item)| {
                check_kind(inner, item).map_err(|message| format!("item {}: {message}", at + 1))
            });
        }
        (InputKind::String, Value::Text(text)) => !text.chars().any(char::is_control),
        (InputKind::Duration, Value::Text(text)) => parse_duration(text).is_some(),
        (InputKind::Timestamp, Value::Text(text)) => parse_timestamp(text).is_some(),
        (InputKind::PathSegment, Value::Text(text)) => is_path_segment(text),
        (InputKind::Dn, Value::Text(text)) => is_dn(text),
        (InputKind::Host, Value::Text(text)) => is_host(text),
        (InputKind::K8sName, Value::Text(text)) => is_k8s_name(text),
        (InputKind::ToolName, Value::Text(text)) => is_tool_name(text),
        _ => false,
    };
    if good { Ok(()) } else { wrong() }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) if text.is_empty() => "an empty text".into(),
        Value::Text(text) => quoted(&text.escape_debug().to_string()),
        Value::Null => "null".into(),
        Value::List(_) | Value::Map(_) => format!("a {}", value.kind()),
        other => quoted(&other.to_string()),
    }
}

/// A name of one file or folder. Control characters have no place in one that people handle.
fn is_path_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.len() <= 255 && !text.chars().any(|c| c == '/' || c.is_control())
}

/// RFC 4514: `attribute=value` pairs, separated by `,` or `+`. Escaped separators belong to the value.
fn is_dn(text: &str) -> bool {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c.is_control() {
            return false;
        }
        if !escaped && matches!(c, ',' | '+') {
            parts.push(String::new());
            continue;
        }
        escaped = !escaped && c == '\\';
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    !escaped
        && parts.iter().all(|part| {
            let Some((name, value)) = part.trim().split_once('=') else { return false };
            let name = name.trim_end();
            let letters_or_oid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            // Unescaped, these would end or restructure the value.
            let unescaped_special = {
                let mut before = ' ';
                value.chars().any(|c| {
                    let bad = matches!(c, '"' | ';' | '<' | '>' | '\0') && before != '\\';
                    before = if before == '\\' && c == '\\' { ' ' } else { c };
                    bad
                })
            };
            !name.is_empty()
                && name.chars().all(letters_or_oid)
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && !value.is_empty()
                && !unescaped_special
        })
}

/// A DNS name or an IP address. A leading `-` would be read as an option by programs.
fn is_host(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// RFC 1123 subdomain, as Kubernetes asks of most object names.
fn is_k8s_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// What every component of Toolforge accepts: a letter first, at most 32 characters.
fn is_tool_name(text: &str) -> bool {
    is_dns_label(text) && text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use farrier_model::Digest;
    use farrier_model::spec::Risk;
    use petgraph::graph::DiGraph;

    fn spec(name: &str, kind: InputKind) -> InputSpec {
        InputSpec {
            name: name.into(),
            kind,
            default: None,
            required: true,
            pattern: None,
            min: None,
            max: None,
            one_of: Vec::new(),
            about: "".into(),
        }
    }

    fn graph(inputs: Vec<InputSpec>) -> Graph {
        Graph {
            name: "r".into(),
            summary: "".into(),
            owner: "".into(),
            docs: None,
            digest: Digest::of(""),
            risk: Risk::ReadOnly,
            run_title: None,
            targets: BTreeMap::new(),
            inputs,
            vars: Vec::new(),
            guards: Vec::new(),
            triggers: Vec::new(),
            escalate: None,
            health: None,
            timeout: None,
            outputs: None,
            one_run_per: None,
            locks: Vec::new(),
            signals: Vec::new(),
            steps: DiGraph::default(),
            order: Vec::new(),
            main_steps: 0,
        }
    }

    fn text(kind: InputKind, given: &str) -> Result<Value, String> {
        let graph = graph(vec![spec("x", kind)]);
        let given = BTreeMap::from([(Text::from("x"), Given::Text(given.into()))]);
        match check_inputs(&graph, &given) {
            Ok(values) => Ok(values.get("x").cloned().unwrap()),
            Err(problems) => Err(problems[0].message.clone()),
        }
    }

    #[test]
    fn command_line_text_is_read_by_type() {
        let strings = || InputKind::List(Box::new(InputKind::String));
        for (kind, given, expected) in [
            (InputKind::Int, "12", Value::Int(12)),
            (InputKind::Bool, "true", Value::Bool(true)),
            (InputKind::String, "12", Value::text("12")),
            (InputKind::Duration, "1h30m", Value::text("1h30m")),
            (strings(), "a, b", Value::list(vec![Value::text("a"), Value::text("b")])),
            (strings(), r#"["a,b"]"#, Value::list(vec![Value::text("a,b")])),
            (strings(), "", Value::list(vec![])),
            (InputKind::Map, r#"{"a":1}"#, Value::map([("a", Value::Int(1))])),
        ] {
            assert_eq!(text(kind, given).unwrap(), expected, "{given}");
        }
        for (kind, given) in [
            (InputKind::Int, "1.5"),
            (InputKind::Bool, "yes"),
            (InputKind::String, "a\nb"),
            (InputKind::Duration, "5"),
            (InputKind::Timestamp, "yesterday"),
            (InputKind::Map, "a=1"),
            (InputKind::List(Box::new(InputKind::Int)), "1,x"),
            (strings(), "[1]"),
        ] {
            assert!(text(kind.clone(), given).is_err(), "{kind:?} {given}");
        }
    }

    #[test]
    fn names_keep_the_rules_of_their_systems() {
        let long_label = "a".repeat(64);
        for (kind, good, bad) in [
            (InputKind::PathSegment, vec!["a", "a b", "..."], vec!["", ".", "..", "a/b", "a\0b"]),
            (
                InputKind::ToolName,
                vec!["wm-lol", "a", "a1"],
                vec!["", "1a", "A", "a_b", "-a", "a-", "a.b", "abcdefghijklmnopqrstuvwxyzabcdefg"],
            ),
            (
                InputKind::K8sName,
                vec!["tools-k8s-1", "a.b", "1"],
                vec!["", "A", "a..b", "-a", "a_b", &long_label],
            ),
            (
                InputKind::Host,
                vec!["db1.eqiad.wmnet", "10.0.0.1", "::1", "[::1]"],
                vec!["", "-oProxy=x", "a b", "a/b", "a..b"],
            ),
            (
                InputKind::Dn,
                vec!["uid=a,ou=people,dc=x", r"cn=a\,b+uid=c,dc=x", "2.5.4.3=x", "cn=tools.wm-lol,dc=x"],
                vec!["", "a", "uid=,dc=x", "=a", "uid=a,", "uid=a\\", "uid=a;x", "uid=a\n,dc=x"],
            ),
        ] {
            for text in good {
                assert_eq!(check_kind(&kind, &Value::text(text)), Ok(()), "{kind:?} {text}");
            }
            for text in bad {
                assert!(check_kind(&kind, &Value::text(text)).is_err(), "{kind:?} {text}");
            }
        }
    }

    #[test]
    fn every_problem_is_named_at_once_and_defaults_fill_in() {
        let mut project = spec("project", InputKind::String);
        project.default = Some(Value::text("tools"));
        project.pattern = Some(regex::Regex::new("^(?:[a-z]+)$").unwrap());
        let mut number = spec("number", InputKind::Int);
        number.min = Some(1);
        let mut grace = spec("grace", InputKind::Duration);
        grace.max = Some(86_400_000);
        let graph = graph(vec![project, number, grace, spec("tool", InputKind::ToolName)]);
        let given = |pairs: &[(&str, &str)]| -> BTreeMap<Text, Given> {
            pairs.iter().map(|(k, v)| (Text::from(*k), Given::Text((*v).into()))).collect()
        };
        let problems = check_inputs(
            &graph,
            &given(&[("project", "no good"), ("number", "0"), ("grace", "2d"), ("tol", "x")]),
        )
        .unwrap_err();
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        insta::assert_debug_snapshot!((shown, problems[4].help.as_deref()), @r#"
        (
            [
                "input `project`: `no good` does not match `[a-z]+`",
                "input `number`: `0` is too small; at least 1",
                "input `grace`: `2d` is too large; at most 1d",
                "input `tool`: is not given, and must be; it is a tool's name without its project: lower-case letters, digits and `-`",
                "input `tol`: runbook `r` has no such input",
            ],
            Some(
                "did you mean `tool`?",
            ),
        )
        "#);
        let values =
            check_inputs(&graph, &given(&[("number", "1"), ("grace", "1d"), ("tool", "a")])).unwrap();
        assert_eq!(values.get("project"), Some(&Value::text("tools")));
    }
}
