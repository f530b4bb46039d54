//! [`render`]: the author's text with the values of its parameters.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use farrier_model::literal::{Piece, pieces};
use farrier_model::{Failure, FailureKind, Value};

/// Values by name.
pub(crate) type Params = BTreeMap<String, Value>;

/// Where in the text a parameter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Outside of strings.
    Open {
        regex: bool,
    },
    /// In a string that begins with this quote.
    Quoted {
        quote: char,
        regex: bool,
    },
    Comment,
}

/// Puts the values in the place of `$name`.
///
/// In a string a value is only ever part of that string; behind `=~` and `!~` it also is no pattern: `.` is a dot.
/// There a list stands for any one of its texts. Outside of strings, text becomes a string of its own, a number stands
/// for itself, and a duration may stand where PromQL wants one (`[$range]`, `offset $age`).
///
/// # Errors
/// [`FailureKind::Input`], naming the parameter. An empty text is refused, since a label that is absent equals it, and
/// a pattern made of nothing fits everything.
pub(crate) fn render(text: &str, params: &Params) -> Result<String, Failure> {
    let pieces = pieces(text);
    for name in params.keys() {
        let used = |piece: &Piece| matches!(piece, Piece::Param(known) if **known == **name);
        if !pieces.iter().any(used) {
            return Err(Failure::new(FailureKind::Input, format!("the parameter `{name}` is not used")));
        }
    }
    let mut result = String::with_capacity(text.len());
    let mut place = Place::Open { regex: false };
    for piece in &pieces {
        match piece {
            Piece::Text(text) => {
                place = after(place, text);
                result.push_str(text);
            }
            Piece::Param(name) => {
                let wrong = |reason: String| {
                    Failure::new(FailureKind::Input, format!("the parameter `{name}` {reason}"))
                };
                let value = params.get(&**name).ok_or_else(|| wrong("has no value".into()))?;
                let written = match place {
                    Place::Comment => Err("stands in a comment".into()),
                    Place::Quoted { quote, regex } => in_string(value, quote, regex),
                    Place::Open { regex } => in_the_open(value, regex, &result),
                };
                result.push_str(&written.map_err(wrong)?);
            }
        }
    }
    match place {
        Place::Quoted { .. } => Err(Failure::new(FailureKind::Input, "a string in the query has no end")),
        _ => Ok(result),
    }
}

/// Where the text is after `text` of the author's.
fn after(mut place: Place, text: &str) -> Place {
    let mut escaped = false;
    let mut last_two = [' ', ' '];
    for c in text.chars() {
        place = match place {
            Place::Comment if c == '\n' => Place::Open { regex: false },
            Place::Comment => Place::Comment,
            Place::Quoted { quote, .. } if escaped => {
                escaped = false;
                Place::Quoted { quote, regex: matches!(place, Place::Quoted { regex: true, .. }) }
            }
            Place::Quoted { quote, .. } if c == '\\' && quote != '`' => {
                escaped = true;
                place
            }
            Place::Quoted { quote, .. } if c == quote => Place::Open { regex: false },
            Place::Quoted { .. } => place,
            Place::Open { regex } => match c {
                '"' | '\'' | '`' => Place::Quoted { quote: c, regex },
                '#' => Place::Comment,
                '~' if matches!(last_two[1], '=' | '!') => Place::Open { regex: true },
                _ if c.is_whitespace() => place,
                _ => Place::Open { regex: false },
            },
        };
        last_two = [last_two[1], c];
    }
    place
}

fn in_string(value: &Value, quote: char, regex: bool) -> Result<String, String> {
    let plain = match value {
        Value::List(items) if regex => alternatives(items)?,
        Value::List(_) => return Err("is a list, which only a pattern behind `=~` or `!~` can hold".into()),
        _ => {
            let text = simple(value)?;
            if regex { pattern(&text) } else { text }
        }
    };
    escaped(&plain, quote)
}

fn in_the_open(value: &Value, regex: bool, before: &str) -> Result<String, String> {
    match value {
        Value::Int(number) if !regex => Ok(number.to_string()),
        Value::Float(number) if !regex && number.is_finite() => Ok(number.to_string()),
        Value::Text(text) if wants_duration(before) => farrier_model::time::parse_duration(text)
            .filter(|duration| !duration.is_zero())
            .map(|_| text.to_string())
            .ok_or_else(|| format!("is {text:?}, not a duration such as `5m`")),
        _ => Ok(format!("\"{}\"", in_string(value, '"', regex)?)),
    }
}

/// Whether PromQL wants a duration behind this text.
fn wants_duration(before: &str) -> bool {
    let before = before.trim_end();
    before.ends_with('[')
        || before
            .strip_suffix("offset")
            .is_some_and(|rest| rest.ends_with(|c: char| c.is_whitespace() || c == ']'))
}

/// A single value as text.
fn simple(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) if text.is_empty() => {
            Err("is empty, which would also fit series without the label".into())
        }
        Value::Text(text) if text.contains('\0') => Err("contains a NUL character".into()),
        Value::Text(text) => Ok(text.to_string()),
        Value::Int(number) => Ok(number.to_string()),
        other => Err(format!("is {}; expected text, a whole number or, in a pattern, a list", other.kind())),
    }
}

/// A pattern that fits any one of the items.
fn alternatives(items: &[Value]) -> Result<String, String> {
    if items.is_empty() {
        return Err("is an empty list, which fits nothing; leave the step out with `if`".into());
    }
    let patterns: Vec<String> =
        items.iter().map(|item| simple(item).map(|text| pattern(&text))).collect::<Result<_, _>>()?;
    Ok(format!("(?:{})", patterns.join("|")))
}

/// A pattern of RE2 that fits exactly this text.
fn pattern(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            result.push('\\');
        }
        result.push(c);
    }
    result
}

/// The text inside of a string with this quote.
fn escaped(text: &str, quote: char) -> Result<String, String> {
    if quote == '`' {
        return if text.contains('`') {
            Err("contains a backtick, which a string in backticks cannot hold; use double quotes".into())
        } else {
            Ok(text.to_owned())
        };
    }
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => result.push_str("\\\\"),
            '\n' => result.push_str("\\n"),
            _ if c == quote => {
                result.push('\\');
                result.push(c);
            }
            _ if c.is_control() => {
                let _ = write!(result, "\\u{:04x}", u32::from(c));
            }
            _ => result.push(c),
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::super::lexer::{Kind, tokens};
    use super::*;
    use proptest::prelude::*;

    fn with(text: &str, json: &str) -> Result<String, String> {
        let params = Value::from_json(json).unwrap().read::<Params>().unwrap();
        render(text, &params).map_err(|failure| {
            assert_eq!(failure.kind, FailureKind::Input);
            failure.message
        })
    }

    #[test]
    fn values_stay_in_their_place() {
        for (text, params, wanted) in [
            (r#"up{instance=~"$node(:.*)?"}"#, r#"{"node": "a.b"}"#, r#"up{instance=~"a\\.b(:.*)?"}"#),
            (r#"up{instance="$node"}"#, r#"{"node": "a.b"}"#, r#"up{instance="a.b"}"#),
            (
                "up{instance=~'$node', job!~ \"$job\"}",
                r#"{"node": "a'", "job": "|"}"#,
                "up{instance=~'a\\'', job!~ \"\\\\|\"}",
            ),
            (
                "up{a=$a, b=~$b, c!=$c}",
                r#"{"a": "x\"y", "b": "x.y", "c": 1}"#,
                r#"up{a="x\"y", b=~"x\\.y", c!=1}"#,
            ),
            ("x > $n", r#"{"n": -1.5}"#, "x > -1.5"),
            ("rate(x[$range] offset $age)", r#"{"range": "5m", "age": "1h"}"#, "rate(x[5m] offset 1h)"),
            (r#"x{i=~"$all"}"#, r#"{"all": ["a.b", 7]}"#, r#"x{i=~"(?:a\\.b|7)"}"#),
            (r"x{i=~`$a`}", r#"{"a": "a.\\b"}"#, r"x{i=~`a\.\\b`}"),
            (
                r#"x{i="$a"}"#,
                "{\"a\": \"\\\"} or vector(1) #\\n\\u0007\"}",
                r#"x{i="\"} or vector(1) #\n\u0007"}"#,
            ),
            (
                r#"label_replace(x, "a", "$$1", "b", "(.*)$")"#,
                "{}",
                r#"label_replace(x, "a", "$1", "b", "(.*)$")"#,
            ),
            (r#"x{i="${ a }"}"#, "{}", r#"x{i="${ a }"}"#),
            ("x{a=\"\\\"$a\"}", r#"{"a": "b"}"#, "x{a=\"\\\"b\"}"),
        ] {
            assert_eq!(with(text, params).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_said_safely_is_refused() {
        for (text, params, reason) in [
            (r#"x{a="$a"}"#, "{}", "the parameter `a` has no value"),
            ("x", r#"{"a": 1}"#, "the parameter `a` is not used"),
            (r#"x{a=~"$a.*"}"#, r#"{"a": ""}"#, "is empty"),
            (r#"x{a=~"$a.*"}"#, r#"{"a": []}"#, "is an empty list"),
            (r#"x{a="$a"}"#, r#"{"a": ["b"]}"#, "is a list, which only a pattern"),
            (r#"x{a="$a"}"#, r#"{"a": null}"#, "is null"),
            (r#"x{a="$a"}"#, r#"{"a": {"b": 1}}"#, "is map"),
            (r#"x{a="$a"}"#, "{\"a\": \"b\\u0000\"}", "contains a NUL"),
            (r"x{a=`$a`}", r#"{"a": "`"}"#, "contains a backtick"),
            ("x # $a", r#"{"a": "b"}"#, "stands in a comment"),
            ("x[$a]", r#"{"a": "5m] or y["}"#, "not a duration"),
            (r#"x{a="$a}"#, r#"{"a": "b"}"#, "has no end"),
        ] {
            let message = with(text, params).expect_err(text);
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    proptest! {
        /// Whatever the value, the words of the query are the same, and the string says the value.
        #[test]
        fn no_value_changes_the_words(value in "[^\0]{1,20}", quote in prop::sample::select(vec!['"', '\''])) {
            let text = format!("sum(x{{a={quote}$v{quote}, b={quote}c{quote}}}) > 1");
            let params = Params::from([("v".to_owned(), Value::text(value.clone()))]);
            let rendered = render(&text, &params).unwrap();
            let words = |text: &str| tokens(text).unwrap().iter().map(|token| token.kind).collect::<Vec<Kind>>();
            prop_assert_eq!(words(&rendered), words(&text));
            let said = tokens(&rendered).unwrap().into_iter().find(|token| token.kind == Kind::Quoted).unwrap();
            let body = &said.text[1..said.text.len() - 1];
            prop_assert_eq!(unescaped(body), value.clone());
            // As a pattern it fits the value and nothing else.
            let text = format!("x{{a=~{quote}$v{quote}}}");
            let rendered = render(&text, &params).unwrap();
            let said = tokens(&rendered).unwrap().into_iter().find(|token| token.kind == Kind::Quoted).unwrap();
            let pattern = unescaped(&said.text[1..said.text.len() - 1]);
            let pattern = regex::Regex::new(&format!("^(?s:{pattern})$")).unwrap();
            prop_assert!(pattern.is_match(&value));
            let longer = format!("{value}x");
            prop_assert!(!pattern.is_match(&longer));
        }
    }

    fn unescaped(text: &str) -> String {
        let mut result = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            result.push(match c {
                '\\' => match chars.next().unwrap() {
                    'n' => '\n',
                    'u' => {
                        let digits: String = chars.by_ref().take(4).collect();
                        char::from_u32(u32::from_str_radix(&digits, 16).unwrap()).unwrap()
                    }
                    other => other,
                },
                c => c,
            });
        }
        result
    }
}
