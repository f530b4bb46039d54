//! Search filters: [`Filter`], RFC 4515.
//!
//! The structure of a filter comes from the runbook's author alone. A parameter fills (part of) one assertion value and
//! is escaped when the filter is written, so no value can add a condition, a wildcard or another attribute; in a
//! condition on an attribute that holds names of entries, no value can add a part to the name either.

use std::collections::BTreeMap;
use std::fmt;

use farrier_model::literal::{Piece, pieces};
use farrier_model::{Failure, FailureKind, Value};

use crate::dn::{self, Dn};
use crate::schema::{Syntax, is_attribute_name, syntax};

/// A parsed filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    /// All hold; true when there are none.
    And(Vec<Filter>),
    /// One holds; false when there are none.
    Or(Vec<Filter>),
    /// It does not hold.
    Not(Box<Filter>),
    /// The attribute has a value.
    Present(String),
    /// One of the attribute's values compares so.
    Compare(String, Comparison, Vec<u8>),
    /// One of the attribute's values has these pieces in this order.
    Substrings(String, Substrings),
    /// A named matching rule.
    Extensible(Extensible),
}

/// How a value compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// `=`
    Equal,
    /// `~=`
    Approximate,
    /// `>=`
    AtLeast,
    /// `<=`
    AtMost,
}

/// `initial*any*…*last`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Substrings {
    pub(crate) initial: Option<Vec<u8>>,
    pub(crate) any: Vec<Vec<u8>>,
    pub(crate) last: Option<Vec<u8>>,
}

/// `attribute:dn:rule:=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extensible {
    pub(crate) attribute: Option<String>,
    pub(crate) of_name: bool,
    pub(crate) rule: Option<String>,
    pub(crate) value: Vec<u8>,
}

/// Deeper filters are refused: servers do too, and reading one must not exhaust the stack.
const MAX_DEPTH: usize = 50;

impl Filter {
    /// Reads the author's text and puts `params` in the place of its `$name`s.
    ///
    /// # Errors
    /// [`FailureKind::Input`] with what is wrong and where.
    pub(crate) fn parse(text: &str, params: &BTreeMap<String, Value>) -> Result<Filter, Failure> {
        let fail =
            |message: String| Failure::new(FailureKind::Input, format!("in the filter `{text}`: {message}"));
        let mut tokens = Vec::with_capacity(text.len());
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => tokens.extend(text.chars().map(Token::Char)),
                Piece::Param(name) => {
                    let value = params
                        .get(&*name)
                        .ok_or_else(|| fail(format!("`${name}` has no value; give it under `params:`")))?;
                    let value =
                        param_text(value).map_err(|reason| fail(format!("parameter `{name}` {reason}")))?;
                    tokens.push(Token::Param(name.to_string(), value));
                }
            }
        }
        let mut parser = Parser { tokens: &tokens, at: 0 };
        parser.skip_spaces();
        let filter = parser.filter(0).map_err(&fail)?;
        parser.skip_spaces();
        if parser.at < tokens.len() {
            return Err(fail(format!("there is text after its end, {}", parser.place())));
        }
        Ok(filter)
    }

    /// The attribute has this value.
    pub(crate) fn equal(attribute: &str, value: impl Into<Vec<u8>>) -> Filter {
        Filter::Compare(attribute.to_owned(), Comparison::Equal, value.into())
    }

    /// Every entry.
    pub(crate) fn any() -> Filter {
        Filter::Present("objectClass".into())
    }
}

/// A parameter as the text of an assertion value.
fn param_text(value: &Value) -> Result<String, String> {
    let text = match value {
        Value::Text(text) => text.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Bool(flag) => (if *flag { "TRUE" } else { "FALSE" }).to_owned(),
        other => return Err(format!("is {}; a filter takes text, a whole number or a bool", other.kind())),
    };
    if text.contains('\0') {
        return Err("contains a NUL character".into());
    }
    // An empty value would turn `(cn=$name*)` into `(cn=*)`.
    if text.is_empty() {
        return Err("is empty".into());
    }
    Ok(text)
}

enum Token {
    Char(char),
    Param(String, String),
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

/// A stretch of an assertion value without wildcards.
#[derive(Default)]
struct Stretch {
    bytes: Vec<u8>,
    has_text: bool,
    params: Vec<(usize, String)>,
}

impl Parser<'_> {
    fn filter(&mut self, depth: usize) -> Result<Filter, String> {
        if depth > MAX_DEPTH {
            return Err(format!("it is nested more than {MAX_DEPTH} deep"));
        }
        self.expect('(')?;
        self.skip_spaces();
        let filter = match self.peek() {
            Some('&') => Filter::And(self.list(depth)?),
            Some('|') => Filter::Or(self.list(depth)?),
            Some('!') => {
                self.at += 1;
                self.skip_spaces();
                Filter::Not(Box::new(self.filter(depth + 1)?))
            }
            _ => return self.condition(),
        };
        self.skip_spaces();
        self.expect(')')?;
        Ok(filter)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Filter>, String> {
        self.at += 1;
        let mut filters = Vec::new();
        loop {
            self.skip_spaces();
            if self.peek() != Some('(') {
                return Ok(filters);
            }
            filters.push(self.filter(depth + 1)?);
        }
    }

    /// `attribute operator value)`.
    fn condition(&mut self) -> Result<Filter, String> {
        let mut head = String::new();
        let comparison = loop {
            match self.tokens.get(self.at) {
                Some(Token::Param(name, _)) => {
                    return Err(format!("`${name}` can only stand in a value, after `=`, {}", self.place()));
                }
                Some(Token::Char(c)) => {
                    self.at += 1;
                    match (c, self.peek()) {
                        ('=', _) => break Comparison::Equal,
                        ('~', Some('=')) => {
                            self.at += 1;
                            break Comparison::Approximate;
                        }
                        ('>', Some('=')) => {
                            self.at += 1;
                            break Comparison::AtLeast;
                        }
                        ('<', Some('=')) => {
                            self.at += 1;
                            break Comparison::AtMost;
                        }
                        ('(' | ')', _) => {
                            self.at -= 1;
                            return Err(format!("expected `attribute=value` {}", self.place()));
                        }
                        _ => head.push(*c),
                    }
                }
                None => return Err("it ends before its condition does".into()),
            }
        };
        let head = head.trim();
        if let Some(rule) = head.strip_suffix(':') {
            if comparison != Comparison::Equal {
                return Err(format!("`{head}` needs `:=`"));
            }
            return self.extensible(rule);
        }
        if !is_attribute_name(head) {
            return Err(format!("`{head}` is not the name of an attribute, {}", self.place()));
        }
        let mut stretches = self.value()?;
        let is_name = syntax(head) == Syntax::Name;
        if is_name {
            stretches.iter_mut().for_each(Stretch::escape_names);
        }
        let whole = stretches.len() == 1;
        let mut values: Vec<Vec<u8>> = stretches.into_iter().map(Stretch::filled).collect();
        if whole {
            let value = values.remove(0);
            if is_name && comparison == Comparison::Equal {
                std::str::from_utf8(&value)
                    .map_err(|_| "it is not UTF-8".to_owned())
                    .and_then(|text| Dn::parse(text).map_err(|error| error.to_string()))
                    .map_err(|reason| format!("`{head}` holds names of entries: {reason}"))?;
            }
            return Ok(Filter::Compare(head.to_owned(), comparison, value));
        }
        if comparison != Comparison::Equal {
            return Err(format!(
                "`*` in the value of `{head}` is allowed only after `=`; write `\\2a` for a star"
            ));
        }
        if values.iter().all(Vec::is_empty) {
            return Ok(Filter::Present(head.to_owned()));
        }
        let some = |bytes: Vec<u8>| (!bytes.is_empty()).then_some(bytes);
        let last = values.pop().and_then(some);
        let initial = some(values.remove(0));
        let any = values.into_iter().filter_map(some).collect();
        Ok(Filter::Substrings(head.to_owned(), Substrings { initial, any, last }))
    }

    fn extensible(&mut self, head: &str) -> Result<Filter, String> {
        let mut parts = head.split(':');
        let attribute = parts.next().filter(|name| !name.is_empty());
        let mut rest: Vec<&str> = parts.collect();
        let of_name = rest.first().is_some_and(|part| part.eq_ignore_ascii_case("dn"));
        if of_name {
            rest.remove(0);
        }
        let rule = rest.pop();
        if !rest.is_empty()
            || (attribute.is_none() && rule.is_none())
            || !attribute.into_iter().chain(rule).all(is_attribute_name)
        {
            return Err(format!("`{head}:=` is not `attribute:dn:rule:=`"));
        }
        let mut stretches = self.value()?;
        if stretches.len() != 1 {
            return Err(format!("`*` in the value of `{head}:=` must be written `\\2a`"));
        }
        Ok(Filter::Extensible(Extensible {
            attribute: attribute.map(str::to_owned),
            of_name,
            rule: rule.map(str::to_owned),
            value: stretches.remove(0).filled(),
        }))
    }

    /// The stretches between wildcards, up to and with the closing parenthesis.
    fn value(&mut self) -> Result<Vec<Stretch>, String> {
        let mut stretches = vec![Stretch::default()];
        loop {
            let token = self.tokens.get(self.at).ok_or("it ends before its value does; `)` is missing")?;
            self.at += 1;
            let last = stretches.len() - 1;
            match token {
                Token::Param(_, value) => {
                    let at = stretches[last].bytes.len();
                    stretches[last].params.push((at, value.clone()));
                }
                Token::Char(')') => return Ok(stretches),
                Token::Char('*') => stretches.push(Stretch::default()),
                Token::Char('\\') => {
                    let byte = self.hex_pair()?;
                    stretches[last].push(&[byte]);
                }
                Token::Char(c @ ('(' | '\0')) => {
                    self.at -= 1;
                    return Err(format!(
                        "`{}` in a value must be written `\\{:02x}`, {}",
                        c.escape_debug(),
                        u32::from(*c),
                        self.place()
                    ));
                }
                Token::Char(c) => stretches[last].push(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn hex_pair(&mut self) -> Result<u8, String> {
        let mut digit = || {
            let digit = self.peek()?.to_digit(16)?;
            self.at += 1;
            Some(digit as u8)
        };
        match (digit(), digit()) {
            (Some(high), Some(low)) => Ok(high * 16 + low),
            _ => Err(format!("a backslash needs two hex digits after it, as in `\\2a`, {}", self.place())),
        }
    }

    fn peek(&self) -> Option<char> {
        match self.tokens.get(self.at)? {
            Token::Char(c) => Some(*c),
            Token::Param(..) => None,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.peek() == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        Err(format!("expected `{wanted}` {}", self.place()))
    }

    /// Line breaks and spaces between conditions are the author's layout.
    fn skip_spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    /// Where the parser is, in the author's words.
    fn place(&self) -> String {
        let rest: String = self.tokens[self.at.min(self.tokens.len())..]
            .iter()
            .take(12)
            .map(|token| match token {
                Token::Char(c) => c.to_string(),
                Token::Param(name, _) => format!("${name}"),
            })
            .collect();
        if rest.is_empty() { "at its end".into() } else { format!("at `{rest}`") }
    }
}

impl Stretch {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.has_text = true;
    }

    /// Makes parameters inside a name stay the value of one part. A parameter that is the whole value is a whole name.
    fn escape_names(&mut self) {
        if self.has_text || self.params.len() > 1 {
            for (_, value) in &mut self.params {
                *value = dn::escape(value).into_owned();
            }
        }
    }

    /// The bytes with the parameters in their places.
    fn filled(self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut from = 0;
        for (at, value) in self.params {
            out.extend(&self.bytes[from..at]);
            out.extend(value.bytes());
            from = at;
        }
        out.extend(&self.bytes[from..]);
        out
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, operator: char, filters: &[Filter]| {
            write!(f, "({operator}")?;
            filters.iter().try_for_each(|filter| filter.fmt(f))?;
            f.write_str(")")
        };
        match self {
            Filter::And(filters) => list(f, '&', filters),
            Filter::Or(filters) => list(f, '|', filters),
            Filter::Not(filter) => write!(f, "(!{filter})"),
            Filter::Present(attribute) => write!(f, "({attribute}=*)"),
            Filter::Compare(attribute, comparison, value) => {
                let operator = match comparison {
                    Comparison::Equal => "=",
                    Comparison::Approximate => "~=",
                    Comparison::AtLeast => ">=",
                    Comparison::AtMost => "<=",
                };
                write!(f, "({attribute}{operator}{})", escape(value))
            }
            Filter::Substrings(attribute, parts) => {
                let end = |part: &Option<Vec<u8>>| part.as_deref().map(escape).unwrap_or_default();
                write!(f, "({attribute}={}*", end(&parts.initial))?;
                parts.any.iter().try_for_each(|part| write!(f, "{}*", escape(part)))?;
                write!(f, "{})", end(&parts.last))
            }
            Filter::Extensible(Extensible { attribute, of_name, rule, value }) => {
                write!(f, "({}", attribute.as_deref().unwrap_or_default())?;
                if *of_name {
                    f.write_str(":dn")?;
                }
                if let Some(rule) = rule {
                    write!(f, ":{rule}")?;
                }
                write!(f, ":={})", escape(value))
            }
        }
    }
}

/// An assertion value as RFC 4515 section 3 writes it.
pub(crate) fn escape(value: &[u8]) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '(' | ')' | '*' | '\\') || c.is_ascii_control() {
                let _ = write!(out, "\\{:02x}", u32::from(c));
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params(pairs: &[(&str, &str)]) -> BTreeMap<String, Value> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), Value::text(*value))).collect()
    }

    #[test]
    fn filters_are_read_and_written() {
        for (text, written) in [
            ("(uid=$x)", "(uid=v)"),
            ("(&(objectClass=posixAccount)(cn=$x.*))", "(&(objectClass=posixAccount)(cn=v.*))"),
            ("(| (a=1)\n  (!(b=*)) )", "(|(a=1)(!(b=*)))"),
            ("(cn=a*b*$x*)", "(cn=a*b*v*)"),
            ("(cn=*$x)", "(cn=*v)"),
            ("(n>=3)", "(n>=3)"),
            ("(n<=$x)", "(n<=v)"),
            ("(cn~=x)", "(cn~=x)"),
            ("(cn:caseExactMatch:=$x)", "(cn:caseExactMatch:=v)"),
            ("(ou:dn:=x)", "(ou:dn:=x)"),
            ("(cn=\\2a\\28$$)", "(cn=\\2a\\28$)"),
            ("(cn=ä)", "(cn=ä)"),
            ("(cn=\\ff)", "(cn=\\ff)"),
            ("(&)", "(&)"),
            ("(member=uid=$x,ou=people)", "(member=uid=v,ou=people)"),
            ("(cn=)", "(cn=)"),
        ] {
            let filter =
                Filter::parse(text, &params(&[("x", "v")])).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.to_string(), written, "{text}");
            assert!(ldap3::parse_filter(written).is_ok(), "another parser refuses {written}");
        }
    }

    #[test]
    fn what_is_no_filter_is_an_input_error() {
        let nested = format!("{}(a=1){}", "(!".repeat(60), ")".repeat(60));
        for (text, reason) in [
            ("uid=x", "expected `(`"),
            ("(uid=x", "`)` is missing"),
            ("(uid=x))", "text after its end"),
            ("(uid)", "expected `attribute=value`"),
            ("(u id=x)", "is not the name of an attribute"),
            ("(=x)", "is not the name of an attribute"),
            ("($x=1)", "`$x` can only stand in a value"),
            ("($x(a=1))", "`$x` can only stand in a value"),
            ("(a=1)$x", "text after its end"),
            ("(uid=a(b)", "must be written `\\28`"),
            ("(uid=\\2)", "two hex digits"),
            ("(n>=1*)", "only after `=`"),
            ("(uid=$missing)", "`$missing` has no value"),
            ("(uid=$empty)", "parameter `empty` is empty"),
            ("(uid=$nul)", "NUL"),
            ("(member=$x)", "holds names of entries"),
            ("(a:b:c:=1)", "attribute:dn:rule"),
            (&nested, "nested more than"),
        ] {
            let values = params(&[("x", "v"), ("empty", ""), ("nul", "a\0b")]);
            let failure = Filter::parse(text, &values).expect_err(text);
            assert_eq!(failure.kind, FailureKind::Input);
            assert!(failure.message.contains(reason), "{text}: {failure}");
        }
        let list = BTreeMap::from([("x".to_owned(), Value::list(vec![]))]);
        assert!(Filter::parse("(a=$x)", &list).is_err_and(|failure| failure.message.contains("is list")));
    }

    #[test]
    fn a_value_inside_a_name_stays_one_part_of_it() {
        let values = params(&[("x", "a,ou=admins"), ("whole", "uid=a,ou=b")]);
        let filter = Filter::parse("(member=uid=$x,ou=people)", &values).unwrap();
        assert_eq!(filter, Filter::equal("member", "uid=a\\,ou=admins,ou=people"));
        assert_eq!(filter.to_string(), "(member=uid=a\\5c,ou=admins,ou=people)");
        let filter = Filter::parse("(member=$whole)", &values).unwrap();
        assert_eq!(filter, Filter::equal("member", "uid=a,ou=b"));
    }

    /// Undoes RFC 4515 escaping without the parser under test.
    fn unescaped(text: &str) -> Vec<u8> {
        let mut parts = text.split('\\');
        let mut bytes = parts.next().unwrap().as_bytes().to_vec();
        for part in parts {
            bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
            bytes.extend(part[2..].bytes());
        }
        bytes
    }

    proptest! {
        #[test]
        fn escaping_round_trips(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let written = escape(&value);
            prop_assert!(!written.contains(['(', ')', '*', '\0']));
            prop_assert_eq!(unescaped(&written), value.clone());
            let again = Filter::parse(&format!("(cn={})", written.replace('$', "$$")), &BTreeMap::new()).unwrap();
            prop_assert_eq!(again, Filter::equal("cn", value));
        }

        #[test]
        fn a_value_never_changes_the_structure(any in "[^\0]{1,20}", hostile in r"[()*\\&|!=a,$ ]{1,16}") {
            for value in [any, hostile] {
                let values = params(&[("x", &value)]);
                let filter = Filter::parse("(&(uid=$x)(!(cn=$x.*))(mail=*$x*$x))", &values).unwrap();
                let bytes = value.clone().into_bytes();
                let expected = Filter::And(vec![
                    Filter::equal("uid", bytes.clone()),
                    Filter::Not(Box::new(Filter::Substrings(
                        "cn".into(),
                        Substrings { initial: Some(format!("{value}.").into_bytes()), ..Substrings::default() },
                    ))),
                    Filter::Substrings(
                        "mail".into(),
                        Substrings { initial: None, any: vec![bytes.clone()], last: Some(bytes) },
                    ),
                ]);
                prop_assert_eq!(&filter, &expected);
                let written = filter.to_string();
                // Two parsers read the written form: ours sees the same filter, the client library's sees one too.
                prop_assert_eq!(Filter::parse(&written.replace('$', "$$"), &BTreeMap::new()).unwrap(), expected);
                prop_assert!(ldap3::parse_filter(&written).is_ok(), "{}", written);
            }
        }

        #[test]
        fn reading_never_panics(text in r"[()&|!=*\\a-c2$ :~<>]{0,40}") {
            let _ = Filter::parse(&text, &params(&[("a", "v"), ("b", "w")]));
        }
    }
}
