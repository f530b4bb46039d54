//! [`Matcher`]: what alerts and silences are picked by, as Alertmanager writes it: `name="value"`, `!=`, `=~`, `!~`.

use farrier_action::text::Literal;
use farrier_model::{Failure, FailureKind, Value};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::promql::{Params, render};

/// One condition on a label. Its fields are those of Alertmanager's API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Matcher {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) is_regex: bool,
    #[serde(default = "yes")]
    pub(crate) is_equal: bool,
}

fn yes() -> bool {
    true
}

impl Matcher {
    /// Reads one matcher.
    pub(crate) fn parse(text: &str) -> Result<Matcher, Failure> {
        let wrong = |what: &str| {
            Failure::new(FailureKind::Input, format!("the matcher `{text}` {what}"))
                .help("write `name=\"value\"`, with `=`, `!=`, `=~` or `!~`")
        };
        let trimmed = text.trim();
        let end = trimmed.find(['=', '!']).ok_or_else(|| wrong("has no operator"))?;
        let (name, rest) = trimmed.split_at(end);
        let name = name.trim();
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(wrong("begins with no label"));
        }
        let operators = [("=~", true, true), ("!~", true, false), ("!=", false, false), ("=", false, true)];
        let (operator, is_regex, is_equal) = operators
            .into_iter()
            .find(|(operator, ..)| rest.starts_with(operator))
            .ok_or_else(|| wrong("has no operator"))?;
        let rest = rest[operator.len()..].trim();
        let value = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted).ok_or_else(|| wrong("has a string with a wrong end"))?,
            None if rest.is_empty() => return Err(wrong("has no value")),
            None if rest.contains(|c: char| c.is_whitespace() || "{}!=~,\\\"'`".contains(c)) => {
                return Err(wrong("has a value that needs quotes"));
            }
            None => rest.to_owned(),
        };
        let matcher = Matcher { name: name.to_owned(), value, is_regex, is_equal };
        if matcher.is_regex {
            matcher.regex().map_err(|error| wrong(&format!("has a wrong pattern: {error}")))?;
        }
        Ok(matcher)
    }

    /// Reads the matchers of a step, with the values of their parameters.
    ///
    /// # Errors
    /// [`FailureKind::Input`]; also when each of them fits alerts without its label, which all together then fit
    /// everything.
    pub(crate) fn all(texts: &[Literal], params: &Params) -> Result<Vec<Matcher>, Failure> {
        let whole: Vec<&str> = texts.iter().map(|text| text.0.as_str()).collect();
        let mut matchers = Vec::new();
        for text in &whole {
            let used: Vec<_> = farrier_model::literal::params(text);
            let own: Params = params
                .iter()
                .filter(|(name, _)| used.iter().any(|known| **known == ***name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            matchers.push(Matcher::parse(&render(text, &own)?)?);
        }
        // Every parameter is used in one of them.
        render(&whole.join("\n"), params)?;
        Ok(matchers)
    }

    /// Whether the value of its label fits; an absent label is an empty one.
    pub(crate) fn fits(&self, value: &str) -> bool {
        let same = if self.is_regex {
            self.regex().is_ok_and(|regex| regex.is_match(value))
        } else {
            self.value == value
        };
        same == self.is_equal
    }

    fn regex(&self) -> Result<Regex, String> {
        let pattern = format!("^(?:{})$", self.value);
        Regex::new(&pattern).map_err(|error| {
            error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })
    }

    /// As Alertmanager writes it.
    pub(crate) fn shown(&self) -> String {
        let operator = match (self.is_equal, self.is_regex) {
            (true, false) => "=",
            (false, false) => "!=",
            (true, true) => "=~",
            (false, true) => "!~",
        };
        format!("{}{operator}{}", self.name, quoted(&self.value))
    }
}

/// `{a="b", c=~"d"}`.
pub(crate) fn shown(matchers: &[Matcher]) -> String {
    let parts: Vec<String> = matchers.iter().map(Matcher::shown).collect();
    format!("{{{}}}", parts.join(", "))
}

/// The matchers as text values.
pub(crate) fn values(matchers: &[Matcher]) -> Value {
    Value::list(matchers.iter().map(|matcher| Value::text(matcher.shown())).collect())
}

fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

/// The value of a string behind its opening quote; its closing one must be the end.
fn unquoted(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.as_str().is_empty().then_some(value),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                c @ ('\\' | '"') => value.push(c),
                'u' => {
                    let digits = chars.as_str().get(..4)?;
                    value.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    chars = chars.as_str()[4..].chars();
                }
                _ => return None,
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_read_and_fit() {
        for (text, value, fits) in [
            ("a=\"b\"", "b", true),
            ("a = b", "b", true),
            ("a!=\"b\"", "", true),
            ("a=~\"b|c\"", "c", true),
            ("a=~\"b\"", "bc", false),
            ("a!~\"b.*\"", "bc", false),
            ("a=\"x\\\"y\\\\z\\n\"", "x\"y\\z\n", true),
            ("a=\"\\u0007\"", "\u{7}", true),
        ] {
            let matcher = Matcher::parse(text).unwrap();
            assert_eq!(matcher.fits(value), fits, "{text}");
            assert_eq!(Matcher::parse(&matcher.shown()).unwrap(), matcher, "{text}");
        }
        for bad in [
            "a",
            "=b",
            "a=",
            "1a=b",
            "a=b c",
            "a=\"b",
            "a=\"b\" or",
            "a=~\"(\"",
            "a\n=b\"",
            "a==b",
            "a=\"\\x\"",
        ] {
            assert!(Matcher::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_stay_values() {
        let texts = ["alertname=\"$name\"", "instance=~\"$host(:.*)?\""].map(|text| Literal(text.into()));
        let params: Params = Value::from_json(r#"{"name": "X\", project=~\".*\n${ a }", "host": "a.b"}"#)
            .unwrap()
            .read()
            .unwrap();
        let matchers = Matcher::all(&texts, &params).unwrap();
        assert_eq!(matchers.len(), 2);
        assert_eq!(matchers[0].value, "X\", project=~\".*\n${ a }");
        assert!(matchers[1].fits("a.b:9100") && !matchers[1].fits("axb"));
        let failure = Matcher::all(&texts[..1], &params).unwrap_err();
        assert_eq!(failure.message, "the parameter `host` is not used");
    }
}
