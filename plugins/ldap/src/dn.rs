//! Names of entries: [`Dn`] and [`Rdn`], RFC 4514.
//!
//! A name is parts, never text: a value enters through [`Rdn::new`] and is escaped when the name is written, so a value
//! cannot become another part. [`Dn::key`] is the form in which two names of one entry are equal.

use std::borrow::Cow;
use std::fmt;

use farrier_model::Value;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::schema::{canonical, is_attribute_name};

/// Why text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the name of an entry: {reason}")]
pub(crate) struct DnError {
    text: String,
    reason: String,
}

/// The name of an entry, most specific part first. Attribute names are lower case; values keep their case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Dn(Vec<Rdn>);

/// One part of a name: one attribute with its value, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rdn(Vec<(String, String)>);

impl Rdn {
    /// A part made of one attribute and its value.
    pub(crate) fn new(attribute: &str, value: &str) -> Result<Rdn, DnError> {
        let fail =
            |reason: String| DnError { text: format!("{attribute}={value}").replace('\0', "\\00"), reason };
        if !is_attribute_name(attribute) || attribute.contains(';') {
            return Err(fail(format!("`{attribute}` is not the name of an attribute")));
        }
        if value.is_empty() {
            return Err(fail(format!("`{attribute}` has no value")));
        }
        if value.contains('\0') {
            return Err(fail("it contains a NUL character".into()));
        }
        Ok(Rdn(vec![(canonical(attribute).into_owned(), value.to_owned())]))
    }

    /// The attributes and values.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(attribute, value)| (&**attribute, &**value))
    }

    fn key(&self) -> String {
        let mut parts: Vec<String> =
            self.parts().map(|(name, value)| format!("{name}={}", value_key(value))).collect();
        parts.sort();
        parts.join("+")
    }
}

/// Case and repeated spaces do not matter. What separates parts in a key is escaped, so that keys stay distinct.
fn value_key(value: &str) -> String {
    let words: Vec<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase().replace('\\', "\\\\").replace('+', "\\+")
}

/// Whether the most specific part of a name is surely not the one of the key. Nothing is said of one with escapes.
fn begins_otherwise(text: &str, key: &str) -> bool {
    let first = text.split(',').next().unwrap_or_default();
    let wanted = key.strip_suffix('\0').and_then(|key| key.rsplit('\0').next());
    let (Some((_, value)), Some((_, wanted))) =
        (first.split_once('='), wanted.and_then(|part| part.split_once('=')))
    else {
        return false;
    };
    let value = value.trim_matches(' ');
    let plain = value.is_ascii() && !value.contains(['\\', '"', '+']) && !value.contains("  ");
    plain && !value.eq_ignore_ascii_case(wanted)
}

impl Dn {
    /// Reads a name.
    pub(crate) fn parse(text: &str) -> Result<Dn, DnError> {
        let mut reader = Reader { rest: text };
        reader.name().map_err(|reason| DnError { text: text.replace('\0', "\\00"), reason })
    }

    /// Whether `text` is a name with this key. A search asks this of every member of every group, and most differ in
    /// their most specific part, so that one is looked at first.
    pub(crate) fn has_key(text: &str, key: &str) -> bool {
        !begins_otherwise(text, key) && Dn::parse(text).is_ok_and(|dn| dn.key() == key)
    }

    /// The name of the entry `rdn` under this one.
    pub(crate) fn child(&self, rdn: Rdn) -> Dn {
        let mut parts = Vec::with_capacity(self.0.len() + 1);
        parts.push(rdn);
        parts.extend(self.0.iter().cloned());
        Dn(parts)
    }

    /// The most specific part.
    pub(crate) fn rdn(&self) -> Option<&Rdn> {
        self.0.first()
    }

    /// The name of the entry above; nothing for the root.
    pub(crate) fn parent(&self) -> Option<Dn> {
        (!self.0.is_empty()).then(|| Dn(self.0[1..].to_vec()))
    }

    /// How many parts it has.
    pub(crate) fn depth(&self) -> usize {
        self.0.len()
    }

    /// Equal for two names of one entry. The least specific part stands first and parts end with NUL, so in sorted
    /// order an entry is followed by everything under it.
    pub(crate) fn key(&self) -> String {
        let mut key = String::new();
        for rdn in self.0.iter().rev() {
            key.push_str(&rdn.key());
            key.push('\0');
        }
        key
    }
}

impl fmt::Display for Rdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (attribute, value)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("+")?;
            }
            write!(f, "{attribute}={}", escape(value))?;
        }
        Ok(())
    }
}

impl fmt::Display for Dn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rdn) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            rdn.fmt(f)?;
        }
        Ok(())
    }
}

/// A value as RFC 4514 section 2.4 writes it.
pub(crate) fn escape(value: &str) -> Cow<'_, str> {
    let special = |c: char| matches!(c, '"' | '+' | ',' | ';' | '<' | '>' | '\\');
    if !value.contains(|c: char| special(c) || c.is_ascii_control())
        && !value.starts_with([' ', '#'])
        && !value.ends_with(' ')
    {
        return Cow::Borrowed(value);
    }
    use fmt::Write as _;
    let last = value.char_indices().last().map_or(0, |(at, _)| at);
    let mut out = String::with_capacity(value.len() + 4);
    for (at, c) in value.char_indices() {
        match c {
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\{:02X}", u32::from(c));
            }
            c if special(c) || (at == 0 && matches!(c, ' ' | '#')) || (at == last && c == ' ') => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn name(&mut self) -> Result<Dn, String> {
        if self.rest.contains('\0') {
            return Err("it contains a NUL character".into());
        }
        self.skip_spaces();
        let mut parts = Vec::new();
        if self.rest.is_empty() {
            return Ok(Dn(parts));
        }
        loop {
            let (rdn, more) = self.rdn()?;
            parts.push(rdn);
            if !more {
                return Ok(Dn(parts));
            }
        }
    }

    /// One part, and whether another follows.
    fn rdn(&mut self) -> Result<(Rdn, bool), String> {
        let mut parts = Vec::new();
        loop {
            self.skip_spaces();
            let Some(equals) = self.rest.find('=') else {
                return Err(format!("`{}` has no `=`", self.rest));
            };
            let attribute = self.rest[..equals].trim_end_matches(' ');
            if !is_attribute_name(attribute) || attribute.contains(';') {
                return Err(format!("`{attribute}` is not the name of an attribute"));
            }
            let attribute = canonical(attribute).into_owned();
            self.rest = &self.rest[equals + 1..];
            let value = self.value(&attribute)?;
            parts.push((attribute, value));
            match self.next() {
                Some('+') => {}
                separator => {
                    // The order of the attributes in one part means nothing.
                    parts.sort();
                    return Ok((Rdn(parts), separator.is_some()));
                }
            }
        }
    }

    /// A value, up to the separator that ends it.
    fn value(&mut self, attribute: &str) -> Result<String, String> {
        self.skip_spaces();
        if self.rest.starts_with('#') {
            return Err(format!(
                "the value of `{attribute}` is hex-encoded, which is not supported; write it as text"
            ));
        }
        let mut bytes: Vec<u8> = Vec::new();
        // Unescaped spaces before the separator are not part of the value.
        let mut significant = 0;
        while let Some(c) = self.rest.chars().next() {
            match c {
                ',' | ';' | '+' => break,
                '"' | '<' | '>' => {
                    return Err(format!("`{c}` in the value of `{attribute}` must be written `\\{c}`"));
                }
                '\\' => {
                    self.next();
                    bytes.extend(self.escaped()?);
                    significant = bytes.len();
                }
                c => {
                    self.next();
                    bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                    if c != ' ' {
                        significant = bytes.len();
                    }
                }
            }
        }
        bytes.truncate(significant);
        if bytes.is_empty() {
            return Err(format!("`{attribute}` has no value"));
        }
        let value =
            String::from_utf8(bytes).map_err(|_| format!("the value of `{attribute}` is not UTF-8"))?;
        if value.contains('\0') {
            return Err(format!("the value of `{attribute}` contains a NUL character"));
        }
        Ok(value)
    }

    /// What a backslash stands before: a special character, or two hex digits.
    fn escaped(&mut self) -> Result<Vec<u8>, String> {
        let first = self.next().ok_or("it ends with a backslash")?;
        if matches!(first, ' ' | '"' | '#' | '+' | ',' | ';' | '<' | '=' | '>' | '\\') {
            return Ok(vec![first as u8]);
        }
        let second = self.next();
        match (first.to_digit(16), second.and_then(|c| c.to_digit(16))) {
            (Some(high), Some(low)) => Ok(vec![(high * 16 + low) as u8]),
            _ => Err(format!("`\\{first}` is not an escape")),
        }
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }
}

impl<'de> Deserialize<'de> for Dn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dn, D::Error> {
        let text = String::deserialize(deserializer)?;
        let dn = Dn::parse(&text).map_err(D::Error::custom)?;
        if dn.0.is_empty() {
            return Err(D::Error::custom(
                "the name of an entry is empty; write for example `ou=people,dc=example,dc=org`",
            ));
        }
        Ok(dn)
    }
}

impl JsonSchema for Dn {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "dn".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["ou=people,dc=example,dc=org"] })
    }
}

impl<'de> Deserialize<'de> for Rdn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rdn, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Some([Value::Text(attribute), value]) = value.as_list() else {
            return Err(D::Error::custom("expected an attribute and its value, as in `[uid, alice]`"));
        };
        let text = match value {
            Value::Text(text) => text.to_string(),
            Value::Int(number) => number.to_string(),
            other => {
                return Err(D::Error::custom(format!(
                    "the value of `{attribute}` is {}, not text",
                    other.kind()
                )));
            }
        };
        Rdn::new(attribute, &text).map_err(D::Error::custom)
    }
}

impl JsonSchema for Rdn {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "rdn".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "items": { "type": "string" },
            "minItems": 2,
            "maxItems": 2,
            "examples": [["uid", "alice"]],
        })
    }
}

/// The name of an entry, in parts: `{ base: "ou=people,dc=example,dc=org", rdn: [uid, alice] }`. Values in `rdn` need
/// no escaping. Without `rdn`, `base` names the entry itself.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EntryName {
    /// The entry above, or the entry itself when there is no `rdn`.
    base: Dn,
    /// The attribute and the value that tell the entry from its neighbours.
    #[serde(default)]
    rdn: Option<Rdn>,
}

impl EntryName {
    /// The whole name.
    pub(crate) fn dn(&self) -> Dn {
        named(&self.base, self.rdn.as_ref())
    }
}

/// The name of `rdn` under `base`, or `base` itself.
pub(crate) fn named(base: &Dn, rdn: Option<&Rdn>) -> Dn {
    rdn.map_or_else(|| base.clone(), |rdn| base.child(rdn.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_normalised() {
        for (text, normal) in [
            ("UID=alice , OU = People,dc=x", "uid=alice,ou=People,dc=x"),
            ("commonName=a", "cn=a"),
            ("cn=a\\2Cb\\,c,dc=x", "cn=a\\,b\\,c,dc=x"),
            ("cn=M\\C3\\BCller", "cn=Müller"),
            ("ou=b+cn=a", "cn=a+ou=b"),
            ("cn=a=b", "cn=a=b"),
            ("cn=\\ a\\ ", "cn=\\ a\\ "),
            ("cn=\\#1", "cn=\\#1"),
            ("cn=a;dc=x", "cn=a,dc=x"),
            ("", ""),
        ] {
            assert_eq!(Dn::parse(text).map(|dn| dn.to_string()).as_deref(), Ok(normal), "{text}");
        }
    }

    #[test]
    fn text_that_is_no_name_is_refused() {
        for (text, reason) in [
            ("alice", "has no `=`"),
            ("uid=", "`uid` has no value"),
            ("uid=a,", "has no `=`"),
            ("uid=a,,dc=x", "`,dc` is not the name of an attribute"),
            ("u id=a", "is not the name of an attribute"),
            ("uid=a\\", "ends with a backslash"),
            ("uid=a\\zz", "is not an escape"),
            ("uid=a\\00", "NUL"),
            ("uid=a\0", "NUL"),
            ("uid=\\ff", "not UTF-8"),
            ("uid=#0403616263", "hex-encoded"),
            ("uid=a<b", "must be written"),
        ] {
            let error = Dn::parse(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        assert!(
            Rdn::new("uid", "a\0").is_err() && Rdn::new("uid", "").is_err() && Rdn::new("u=x", "a").is_err()
        );
    }

    #[test]
    fn keys_put_children_after_their_parent() {
        let key = |text: &str| Dn::parse(text).unwrap().key();
        let mut keys = [key("ou=a,dc=x"), key("dc=x"), key("ou=a b,dc=x"), key("cn=z,ou=a,dc=x")];
        keys.sort();
        assert_eq!(keys, [key("dc=x"), key("ou=a,dc=x"), key("cn=z,ou=a,dc=x"), key("ou=a b,dc=x")]);
        assert_eq!(key("UID=Alice  Smith,DC=X"), key("uid=alice smith,dc=x"));
        assert_ne!(key("cn=a+sn=b"), key("cn=a\\+sn\\=b"));
    }

    /// Undoes RFC 4514 escaping without the parser under test: one part, cut at the first `=`.
    fn unescaped(part: &str) -> String {
        let (_, escaped) = part.split_once('=').unwrap();
        let mut bytes = Vec::new();
        let mut chars = escaped.bytes();
        while let Some(byte) = chars.next() {
            if byte != b'\\' {
                bytes.push(byte);
                continue;
            }
            let next = chars.next().unwrap();
            if next.is_ascii_hexdigit() {
                let pair = [next, chars.next().unwrap()];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&pair).unwrap(), 16).unwrap());
            } else {
                bytes.push(next);
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn a_value_stays_one_part(value in "[^\0]{1,24}", hostile in r##"[ ,+=\\"#;<>a0]{1,12}"##) {
            for value in [value, hostile] {
                let base = Dn::parse("ou=people,dc=x").unwrap();
                let dn = base.child(Rdn::new("uid", &value).unwrap());
                let text = dn.to_string();
                let own = text.strip_suffix(",ou=people,dc=x").expect("the base stays as it was");
                prop_assert_eq!(unescaped(own), value.clone());
                let again = Dn::parse(&text).unwrap();
                prop_assert_eq!(again.depth(), 3);
                prop_assert_eq!(again.rdn().unwrap().parts().collect::<Vec<_>>(), vec![("uid", &*value)]);
                prop_assert_eq!(again.parent().unwrap(), base);
                prop_assert_eq!(again, dn);
            }
        }

        #[test]
        fn any_text_is_a_name_or_an_error(text in r##"[a-c=,+;\\ "#0-9ä]{0,30}"##) {
            if let Ok(dn) = Dn::parse(&text) {
                prop_assert_eq!(Dn::parse(&dn.to_string()).unwrap(), dn);
            }
        }
    }
}
