//! Filters of the field: DNs, times, sizes, hosts. Everything else is minijinja's own.

use std::time::Duration;

use minijinja::value::Value as Mj;
use minijinja::{Environment, Error, ErrorKind};

use crate::expr::ExprError;
use crate::time::{format_duration, parse_duration, parse_timestamp};

/// Filters that Farrier adds. The manual lists them from here.
pub const OWN_FILTERS: &[(&str, &str)] = &[
    ("after", "the text after the first occurrence of the argument; all of it when it does not occur"),
    ("before", "the text before the first occurrence of the argument; all of it when it does not occur"),
    ("days", "a duration such as `40d` in whole days"),
    ("days_since", "`run.started_at | days_since(t)`: whole days from t to the timestamp"),
    ("duration", "a number of seconds as a duration"),
    ("from_json", "the data in a JSON text; null when it is not JSON"),
    ("host", "an instance label `host:port` without its port"),
    ("human_bytes", "a number of bytes for people: `1.5 GiB`"),
    ("rdn", "the value of the first part of a distinguished name, unescaped: `uid=a,ou=b` gives `a`"),
    ("seconds", "a duration such as `90s` in seconds"),
    ("to_json", "the data as JSON text"),
    ("unix", "a timestamp in whole seconds since 1970, as many tables hold it"),
];

/// minijinja's filters and tests, for the check that every name exists.
const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "trim",
    "unique",
    "upper",
    "zip",
];
const TESTS: &[&str] = &[
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "int",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "safe",
    "sameas",
    "sequence",
    "startingwith",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

pub(crate) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("after", |text: &str, mark: &str| {
        text.split_once(mark).map_or(text, |(_, after)| after).to_owned()
    });
    environment.add_filter("before", |text: &str, mark: &str| {
        text.split_once(mark).map_or(text, |(before, _)| before).to_owned()
    });
    environment.add_filter("days", |text: &str| Ok::<_, Error>((duration(text)?.as_secs() / 86_400) as i64));
    environment.add_filter("seconds", |text: &str| Ok::<_, Error>(duration(text)?.as_secs() as i64));
    environment.add_filter("duration", |seconds: u64| format_duration(Duration::from_secs(seconds)));
    environment.add_filter("days_since", |now: &str, then: &str| {
        let elapsed = timestamp(now)?.as_nanosecond() - timestamp(then)?.as_nanosecond();
        Ok::<_, Error>(elapsed.div_euclid(86_400_000_000_000) as i64)
    });
    environment.add_filter("unix", |text: &str| Ok::<_, Error>(timestamp(text)?.as_second()));
    environment.add_filter("host", |instance: &str| {
        let port = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        match instance.rsplit_once(':') {
            Some((host, tail)) if port(tail) && (!host.contains(':') || host.ends_with(']')) => {
                host.to_owned()
            }
            _ => instance.to_owned(),
        }
    });
    environment.add_filter("human_bytes", |bytes: f64| human_bytes(bytes));
    environment.add_filter("rdn", |dn: &str| {
        first_rdn_value(dn).ok_or_else(|| wrong(format!("`{dn}` is not a distinguished name")))
    });
    environment.add_filter("from_json", |text: &str| {
        crate::value::Value::from_json(text).map_or(Mj::from(()), |value| crate::expr::to_minijinja(&value))
    });
    environment.add_filter("to_json", |value: Mj| {
        crate::expr::from_minijinja(&value).map(|value| value.to_json()).map_err(|error| wrong(error.message))
    });
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn duration(text: &str) -> Result<Duration, Error> {
    parse_duration(text).ok_or_else(|| wrong(format!("`{text}` is not a duration such as `90s` or `40d`")))
}

fn timestamp(text: &str) -> Result<jiff::Timestamp, Error> {
    parse_timestamp(text).ok_or_else(|| wrong(format!("`{text}` is not a timestamp")))
}

fn human_bytes(bytes: f64) -> String {
    let mut size = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{size} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} PiB")
}

/// The value of the first RDN, unescaped as RFC 4514 section 2.4 says: `\,` and `\2C` both give a comma.
pub(crate) fn first_rdn_value(dn: &str) -> Option<String> {
    let (_, rest) = dn.split_once('=')?;
    let mut bytes = Vec::new();
    let mut chars = rest.trim_start_matches(' ').bytes().peekable();
    while let Some(byte) = chars.next() {
        match byte {
            b'\\' => {
                let first = chars.next()?;
                let hex = |b: u8| (b as char).to_digit(16);
                match (hex(first), chars.peek().copied().and_then(hex)) {
                    (Some(high), Some(low)) => {
                        chars.next();
                        bytes.push((high * 16 + low) as u8);
                    }
                    _ => bytes.push(first),
                }
            }
            b',' | b'+' => break,
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok().map(|value| value.trim_end_matches(' ').to_owned())
}

/// Checks that every `| filter` and `is test` in an expression that compiled exists, so that a typo is found before
/// anything runs (minijinja finds it only when it gets there).
pub(crate) fn check_names(source: &str) -> Result<(), ExprError> {
    let bytes = source.as_bytes();
    let mut at = 0;
    let mut quote = None;
    let word_at = |start: usize| {
        let start = start + source[start..].len() - source[start..].trim_start().len();
        let end = source[start..]
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .map_or(source.len(), |len| start + len);
        start..end
    };
    while at < bytes.len() {
        let byte = bytes[at];
        if let Some(q) = quote {
            if byte == b'\\' {
                at += 1;
            } else if byte == q {
                quote = None;
            }
            at += 1;
            continue;
        }
        if byte == b'"' || byte == b'\'' {
            quote = Some(byte);
        } else if byte == b'|' {
            let range = word_at(at + 1);
            check_name("filter", &source[range.clone()], range, |name| {
                FILTERS.contains(&name) || OWN_FILTERS.iter().any(|(own, _)| *own == name)
            })?;
        } else if byte.is_ascii_alphabetic() || byte == b'_' {
            let word = word_at(at);
            at = word.end;
            let after_dot = source[..word.start].trim_end().ends_with('.');
            if &source[word] == "is" && !after_dot {
                let mut range = word_at(at);
                if &source[range.clone()] == "not" {
                    range = word_at(range.end);
                }
                if !range.is_empty() {
                    check_name("test", &source[range.clone()], range, |name| TESTS.contains(&name))?;
                }
            }
            continue;
        }
        at += 1;
    }
    Ok(())
}

fn check_name(
    what: &str,
    name: &str,
    range: std::ops::Range<usize>,
    known: impl Fn(&str) -> bool,
) -> Result<(), ExprError> {
    if known(name) {
        return Ok(());
    }
    Err(ExprError { message: format!("there is no {what} `{name}`"), range: Some(range) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::{Expr, Scope};
    use crate::value::Value;

    fn eval(source: &str) -> Value {
        Expr::parse(source).unwrap().eval(&Scope::default()).unwrap()
    }

    #[test]
    fn every_listed_name_exists() {
        let mut environment = Environment::new();
        add_to(&mut environment);
        for name in FILTERS.iter().chain(OWN_FILTERS.iter().map(|(name, _)| name)) {
            let rendered = environment.render_str(&format!("{{{{ '{name}' is filter }}}}"), ()).unwrap();
            assert_eq!(rendered, "True", "filter {name}");
        }
        for name in TESTS {
            let rendered = environment.render_str(&format!("{{{{ '{name}' is test }}}}"), ()).unwrap();
            assert_eq!(rendered, "True", "test {name}");
        }
    }

    #[test]
    fn filters_of_the_field() {
        assert_eq!(eval(r"'uid=a\\,b\\2Cc,ou=people,dc=x' | rdn"), Value::text("a,b,c"));
        assert_eq!(eval("'cn=tools.x,ou=y' | rdn"), Value::text("tools.x"));
        assert_eq!(eval("'tools.wm-lol' | after('.')"), Value::text("wm-lol"));
        assert_eq!(eval("'40d' | days"), Value::Int(40));
        assert_eq!(eval("'2026-11-22T00:00:00Z' | days_since('20261012000001Z')"), Value::Int(40));
        assert_eq!(eval("'2026-11-22T00:00:00Z' | days_since('20261012000000.5Z')"), Value::Int(40));
        assert_eq!(eval("'2026-11-22T00:00:00.5Z' | days_since('20261012000000.5Z')"), Value::Int(41));
        assert_eq!(eval("'2026-11-22T00:00:00.9Z' | unix"), Value::Int(1_795_305_600));
        assert_eq!(eval("'1969-12-31T23:59:59Z' | unix"), Value::Int(-1));
        assert_eq!(eval("'tools-k8s-1:9100' | host"), Value::text("tools-k8s-1"));
        assert_eq!(eval("'[::1]:80' | host"), Value::text("[::1]"));
        assert_eq!(eval("'::1' | host"), Value::text("::1"));
        assert_eq!(eval("1610612736 | human_bytes"), Value::text("1.5 GiB"));
        assert_eq!(eval("'{\"a\": [1, null]}' | from_json | to_json"), Value::text(r#"{"a":[1,null]}"#));
        assert_eq!(eval("'{' | from_json"), Value::Null);
    }
}
