//! [`Matcher`]: `name op value` in Alertmanager's own syntax.
//!
//! Alertmanager reads matchers in two ways: the *classic* one of its early versions, where names are those of Prometheus
//! and a value may stand without quotes; and the *UTF-8* one (from 0.27), where names and values are any text in Go's quotes.
//! Where both understand a text, the classic reading counts, as in Alertmanager's default mode. A label that an alert
//! does not have is an empty text; a regular expression matches a whole value or nothing.

mod classic;
mod re2;
mod utf8;

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;

/// How large a compiled regular expression may be.
const REGEX_SIZE: usize = 1 << 20;

/// A text that is not a list of matchers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadMatcher(pub String);

/// How a matcher compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Fits,
    /// `!~`
    FitsNot,
}

impl Operation {
    fn sign(self) -> &'static str {
        match self {
            Operation::Equal => "=",
            Operation::NotEqual => "!=",
            Operation::Fits => "=~",
            Operation::FitsNot => "!~",
        }
    }
}

/// One condition on a label.
#[derive(Debug, Clone)]
pub struct Matcher {
    name: String,
    operation: Operation,
    value: String,
    regex: Option<Regex>,
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Matcher) -> bool {
        (&self.name, self.operation, &self.value) == (&other.name, other.operation, &other.value)
    }
}

impl Matcher {
    /// A condition.
    ///
    /// # Errors
    /// The value of `=~` or `!~` is not a regular expression, or one that would be too large.
    pub fn new(
        name: impl Into<String>,
        operation: Operation,
        value: impl Into<String>,
    ) -> Result<Matcher, BadMatcher> {
        let (name, value) = (name.into(), value.into());
        let regex = match operation {
            Operation::Equal | Operation::NotEqual => None,
            Operation::Fits | Operation::FitsNot => Some(re2::compile(&value, REGEX_SIZE)?),
        };
        Ok(Matcher { name, operation, value, regex })
    }

    /// The label's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it compares.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// What it compares with.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether the labels fulfil it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.name).map_or("", String::as_str);
        match (self.operation, &self.regex) {
            (Operation::Equal, _) => found == self.value,
            (Operation::NotEqual, _) => found != self.value,
            (Operation::Fits, regex) => regex.as_ref().is_some_and(|regex| regex.is_match(found)),
            (Operation::FitsNot, regex) => regex.as_ref().is_none_or(|regex| !regex.is_match(found)),
        }
    }
}

impl fmt::Display for Matcher {
    /// Quoted, which both readings understand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if classic::is_name(&self.name) {
            f.write_str(&self.name)?;
        } else {
            write!(f, "\"{}\"", Quoted(&self.name))?;
        }
        write!(f, "{}\"{}\"", self.operation.sign(), Quoted(&self.value))
    }
}

/// A text for a message: what would move the cursor is spelled out.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                c => fmt::Write::write_char(f, c)?,
            }
        }
        Ok(())
    }
}

/// Whether an alert with these labels fulfils all of them.
pub fn matches_all(matchers: &[Matcher], labels: &BTreeMap<String, String>) -> bool {
    matchers.iter().all(|matcher| matcher.matches(labels))
}

/// Reads one matcher, or several between `{` and `}`, as one entry of `matchers:` in Alertmanager's configuration.
///
/// # Errors
/// Neither reading understands it; the reason of the classic one, unless the text can only be meant for the other.
pub fn read_matchers(text: &str) -> Result<Vec<Matcher>, BadMatcher> {
    match (classic::read(text), utf8::read(text)) {
        (Ok(classic), _) => Ok(classic),
        (Err(_), Ok(utf8)) => Ok(utf8),
        (Err(classic), Err(utf8)) => {
            let newer = text.trim_start_matches(['{', ' ']).starts_with('"');
            Err(if newer { utf8 } else { classic })
        }
    }
}

/// As [`read_matchers`], in the classic way only, as Alertmanagers before 0.27 do.
///
/// # Errors
/// The classic reading does not understand it.
pub fn read_classic_matchers(text: &str) -> Result<Vec<Matcher>, BadMatcher> {
    classic::read(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn shown(text: &str) -> String {
        match read_matchers(text) {
            Ok(matchers) => matchers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" & "),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn both_readings_are_understood() {
        for (text, expected) in [
            ("alertname=DiskFull", r#"alertname="DiskFull""#),
            (r#"alertname="DiskFull""#, r#"alertname="DiskFull""#),
            (
                r#"{alertname="A", severity=~"warning|critical"}"#,
                r#"alertname="A" & severity=~"warning|critical""#,
            ),
            (r#" a = "b" "#, r#"a="b""#),
            // The classic reading takes either brace away.
            ("{a=b", r#"a="b""#),
            ("a=b}c=d", r#"a="b}c=d""#),
            (r#"a="b","#, r#"a="b""#),
            ("foo=", r#"foo="""#),
            (r#"foo!="a,b""#, r#"foo!="a,b""#),
            (r#"foo="\d""#, r#"foo="\\d""#),
            (r#"foo="\\d+""#, r#"foo="\\d+""#),
            (r#""höhe.meter" = "12""#, r#""höhe.meter"="12""#),
            (r#"{"a b"="\u00e4", c=d}"#, r#""a b"="ä" & c="d""#),
            ("höhe=12", r#""höhe"="12""#),
            (r#"service="{{7*7}}""#, r#"service="{{7*7}}""#),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        for text in [
            "",
            "=",
            "a",
            "a==b\"",
            "a=\"b",
            "1a=",
            r#"a=~"(""#,
            r#"a=~"(a{1000}){1000}""#,
            r#""\xff"="a""#,
            r#""a"="#,
            "\"a\"=b,,",
        ] {
            assert!(shown(text).starts_with("error: "), "{text}: {}", shown(text));
        }
    }

    #[test]
    fn a_label_that_is_missing_is_empty() {
        let alert = labels(&[("project", "tools")]);
        let matches = |text: &str| matches_all(&read_matchers(text).unwrap(), &alert);
        assert!(matches("team="));
        assert!(matches(r#"team!="wmcs""#));
        assert!(matches(r#"team=~"|wmcs""#));
        assert!(!matches(r#"team=~".+""#));
        assert!(matches(r#"project=~"tools|toolsbeta""#));
        assert!(!matches(r#"project=~"tool""#));
        assert!(!matches(r#"project!~"t.*""#));
    }

    #[test]
    fn regular_expressions_are_those_of_re2() {
        let matches = |regex: &str, value: &str| {
            Matcher::new("a", Operation::Fits, regex).unwrap().matches(&labels(&[("a", value)]))
        };
        assert!(matches(r"\d+", "42"));
        assert!(!matches(r"\d+", "٤٢"), "digits are those of ASCII");
        assert!(!matches(r"\w+", "ä"));
        assert!(!matches(r"\s", "\u{b}"));
        assert!(matches(r"[\d\s]+", "4 2"));
        assert!(matches(r"[^\d]", "ä"));
        assert!(matches("[[]", "["));
        assert!(matches("[a&&b]", "&"));
        assert!(matches("[[:alpha:]]+", "abc"));
        assert!(matches(r"\Qa.b\E", "a.b"));
        assert!(!matches(r"\Qa.b\E", "axb"));
        assert!(matches("a{,3}", "a{,3}"));
        assert!(matches("a|b", "b"));
        assert!(!matches("a.b", "a\nb"));
        for wrong in ["a**", "*", "(", "[", r"\y", "(?x)a", "(?=a)"] {
            assert!(Matcher::new("a", Operation::Fits, wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(name in "[a-zA-Z_é. ]{1,8}", value in any::<String>(), negative in any::<bool>()) {
            let operation = if negative { Operation::NotEqual } else { Operation::Equal };
            let matcher = Matcher::new(name, operation, value).unwrap();
            prop_assert_eq!(read_matchers(&matcher.to_string()).unwrap(), vec![matcher]);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = read_matchers(&text);
            let _ = Matcher::new("a", Operation::Fits, text);
        }

        #[test]
        fn no_text_of_the_alphabet_panics(text in r#"[{}=~!,"\\a-c \n*+?()|.\[\]-]{0,24}"#) {
            let _ = read_matchers(&text);
            let _ = Matcher::new("a", Operation::Fits, text);
        }
    }
}
