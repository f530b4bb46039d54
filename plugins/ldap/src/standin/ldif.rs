//! LDIF, RFC 2849: content records, read and written.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farrier_model::Text;

use crate::directory::Attribute;
use crate::dn::Dn;
use crate::schema::is_attribute_name;

/// One entry of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its name.
    pub(crate) dn: Dn,
    /// Its attributes, in order of first mention.
    pub(crate) attributes: Vec<Attribute>,
    /// The line that it begins in, from 1.
    pub(crate) line: usize,
    /// Where it stands in the text, with its comments.
    span: Range<usize>,
    /// The same from its `dn:`.
    body: Range<usize>,
}

/// What is wrong, and in which line.
pub(crate) type LdifError = (usize, String);

/// Reads a text of content records.
pub(crate) fn read(text: &str) -> Result<Vec<Record>, LdifError> {
    let mut names: HashSet<Text> = HashSet::new();
    let mut records = Vec::new();
    for block in blocks(text) {
        if let Some(head) = read_head(&block)? {
            records.push(Record {
                attributes: read_attributes(&block[head.lines..], &mut names)?,
                ..head.record
            });
        }
    }
    Ok(records)
}

/// Lines without an empty one between them.
fn blocks(text: &str) -> impl Iterator<Item = Vec<Line<'_>>> {
    let mut lines = logical_lines(text).peekable();
    std::iter::from_fn(move || {
        lines.peek()?;
        Some(lines.by_ref().take_while(|line| !line.text.is_empty()).collect())
    })
}

/// One line after unfolding.
struct Line<'a> {
    text: Cow<'a, str>,
    number: usize,
    span: Range<usize>,
}

/// Unfolds lines, and drops line ends. An empty line stays, as the end of a record.
fn logical_lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut at = 0;
    let mut raw = text.split_inclusive('\n').enumerate().map(move |(index, line)| {
        let from = at;
        at += line.len();
        (index + 1, line.trim_end_matches(['\n', '\r']), from..at)
    });
    let mut held: Option<Line<'_>> = None;
    let mut ended = false;
    std::iter::from_fn(move || {
        loop {
            match raw.next() {
                Some((_, line, span))
                    if line.starts_with(' ') && held.as_ref().is_some_and(|held| !held.text.is_empty()) =>
                {
                    if let Some(held) = &mut held {
                        held.text.to_mut().push_str(&line[1..]);
                        held.span.end = span.end;
                    }
                }
                Some((number, line, span)) => {
                    let done = held.replace(Line { text: Cow::Borrowed(line), number, span });
                    if done.is_some() {
                        return done;
                    }
                }
                None if ended => return None,
                None => {
                    ended = true;
                    return held.take();
                }
            }
        }
    })
}

/// The beginning of a record: all of it but the attributes, which follow after so many lines.
struct Head {
    record: Record,
    lines: usize,
}

fn read_head(block: &[Line<'_>]) -> Result<Option<Head>, LdifError> {
    let is_version =
        |line: &Line<'_>| line.text.get(..8).is_some_and(|text| text.eq_ignore_ascii_case("version:"));
    let Some(at) = block.iter().position(|line| !line.text.starts_with('#') && !is_version(line)) else {
        return Ok(None);
    };
    let first = &block[at];
    let fail = |reason: String| (first.number, reason);
    let (name, value) = read_line(&first.text).map_err(fail)?;
    if !name.eq_ignore_ascii_case("dn") {
        return Err(fail(format!(
            "a record begins with `dn:`, not with `{name}:`; export with `ldapsearch -LLL`"
        )));
    }
    let dn = String::from_utf8(value).map_err(|_| fail("the name is not UTF-8".into()))?;
    let dn = Dn::parse(&dn).map_err(|error| fail(error.to_string()))?;
    if dn.depth() == 0 {
        return Err(fail("the name is empty".into()));
    }
    let from = block.iter().find(|line| !is_version(line)).map_or(0, |line| line.span.start);
    let end = block.last().map_or(first.span.end, |line| line.span.end);
    let record = Record {
        dn,
        attributes: Vec::new(),
        line: first.number,
        span: from..end,
        body: first.span.start..end,
    };
    Ok(Some(Head { record, lines: at + 1 }))
}

fn read_attributes(lines: &[Line<'_>], names: &mut HashSet<Text>) -> Result<Vec<Attribute>, LdifError> {
    let mut attributes: Vec<Attribute> = Vec::new();
    for line in lines.iter().filter(|line| !line.text.starts_with('#')) {
        let fail = |reason: String| (line.number, reason);
        let (name, value) = read_line(&line.text).map_err(fail)?;
        if name.eq_ignore_ascii_case("changetype") {
            return Err(fail("this is a change, and only entries are read".into()));
        }
        if !is_attribute_name(name) {
            return Err(fail(format!("`{name}` is not the name of an attribute")));
        }
        if let Some(known) = attributes.iter_mut().find(|attribute| attribute.name.eq_ignore_ascii_case(name))
        {
            known.values.push(value);
            continue;
        }
        // The entries of a directory share few attribute names.
        let name = names.get(name).cloned().unwrap_or_else(|| {
            let name = Text::from(name);
            names.insert(name.clone());
            name
        });
        attributes.push(Attribute { name, values: vec![value] });
    }
    attributes.shrink_to_fit();
    for attribute in &mut attributes {
        attribute.values.shrink_to_fit();
    }
    Ok(attributes)
}

fn read_line(line: &str) -> Result<(&str, Vec<u8>), String> {
    let (name, rest) = line.split_once(':').ok_or_else(|| format!("`{line}` has no `:`"))?;
    if let Some(encoded) = rest.strip_prefix(':') {
        let value = BASE64
            .decode(encoded.trim())
            .map_err(|error| format!("the base64 of `{name}` is wrong: {error}"))?;
        return Ok((name, value));
    }
    if rest.starts_with('<') {
        return Err(format!("`{name}` refers to a file, which is not supported"));
    }
    Ok((name, rest.trim_start_matches(' ').as_bytes().to_vec()))
}

/// One record as text.
pub(crate) fn write(dn: &Dn, attributes: &[Attribute]) -> String {
    let mut text = String::new();
    write_line(&mut text, "dn", dn.to_string().as_bytes());
    for attribute in attributes {
        for value in &attribute.values {
            write_line(&mut text, &attribute.name, value);
        }
    }
    text
}

fn write_line(text: &mut String, name: &str, value: &[u8]) {
    let plain = value.iter().all(|byte| byte.is_ascii() && !byte.is_ascii_control())
        && !value.starts_with(b" ")
        && !value.starts_with(b":")
        && !value.starts_with(b"<")
        && !value.ends_with(b" ");
    let line = if plain {
        format!("{name}: {}", String::from_utf8_lossy(value))
    } else {
        format!("{name}:: {}", BASE64.encode(value))
    };
    // All of it is ASCII, so any place will do to fold it at.
    let (first, mut rest) = line.split_at(line.len().min(76));
    text.push_str(first);
    while !rest.is_empty() {
        let (next, after) = rest.split_at(rest.len().min(75));
        text.push_str("\n ");
        text.push_str(next);
        rest = after;
    }
    text.push('\n');
}

/// `text` with the record of `dn` written anew, added, or taken out; all else keeps its bytes.
pub(crate) fn replace(text: &str, dn: &Dn, attributes: Option<&[Attribute]>) -> Result<String, LdifError> {
    let key = dn.key();
    let mut record = None;
    for block in blocks(text) {
        if let Some(head) = read_head(&block)?
            && head.record.dn.key() == key
        {
            record = Some(head.record);
            break;
        }
    }
    Ok(match (record, attributes) {
        (Some(record), Some(attributes)) => {
            format!("{}{}{}", &text[..record.body.start], write(dn, attributes), &text[record.body.end..])
        }
        (Some(record), None) => {
            let after = text[record.span.end..].trim_start_matches(['\r', '\n']);
            format!("{}{after}", &text[..record.span.start])
        }
        (None, Some(attributes)) => {
            let before = text.trim_end_matches(['\r', '\n']);
            let gap = if before.is_empty() { "" } else { "\n\n" };
            format!("{before}{gap}{}", write(dn, attributes))
        }
        (None, None) => text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &str = "version: 1\n\n# people\ndn: uid=a,dc=x\nobjectClass: top\nobjectClass: person\ncn:: TcO8\n# folded\n \
                          comment\ndescription: one \n two\nempty:\n\n\n\ndn:: dWlkPWIsZGM9eA==\r\nuid: b\r\n";

    #[test]
    fn records_are_read() {
        let records = read(SAMPLE).unwrap();
        let shown: Vec<String> =
            records.iter().map(|record| format!("{} {}", record.line, record.dn)).collect();
        assert_eq!(shown, ["4 uid=a,dc=x", "16 uid=b,dc=x"]);
        let first: Vec<String> = records[0]
            .attributes
            .iter()
            .flat_map(|a| a.values.iter().map(|v| format!("{}={}", a.name, String::from_utf8_lossy(v))))
            .collect();
        assert_eq!(
            first,
            ["objectClass=top", "objectClass=person", "cn=Mü", "description=one two", "empty="]
        );
        assert_eq!(read("").unwrap(), []);
        assert_eq!(read("# nothing\n\n\n").unwrap(), []);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, line, reason) in [
            ("cn: a\n", 1, "begins with `dn:`"),
            ("dn: uid=a\ncn\n", 2, "has no `:`"),
            ("dn: uid=a\n\ndn: alice\n", 3, "has no `=`"),
            ("dn: uid=a\nchangetype: modify\n", 2, "this is a change"),
            ("dn: uid=a\njpegPhoto:< file:///x\n", 2, "refers to a file"),
            ("dn: uid=a\ncn:: ***\n", 2, "base64"),
            ("dn: uid=a\nc n: x\n", 2, "not the name of an attribute"),
            ("dn:\ncn: x\n", 1, "the name is empty"),
        ] {
            let (at, message) = read(text).expect_err(text);
            assert_eq!(at, line, "{text}");
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn replacing_a_record_leaves_the_others_their_bytes() {
        let a = Dn::parse("uid=a,dc=x").unwrap();
        let b = Dn::parse("uid=b,dc=x").unwrap();
        let new = [Attribute { name: "uid".into(), values: vec![b"a".to_vec()] }];
        let changed = replace(SAMPLE, &a, Some(&new)).unwrap();
        assert_eq!(
            changed,
            "version: 1\n\n# people\ndn: uid=a,dc=x\nuid: a\n\n\n\ndn:: dWlkPWIsZGM9eA==\r\nuid: b\r\n"
        );
        assert_eq!(replace(SAMPLE, &a, None).unwrap(), "version: 1\n\ndn:: dWlkPWIsZGM9eA==\r\nuid: b\r\n");
        let without_b = replace(SAMPLE, &b, None).unwrap();
        assert!(without_b.ends_with("empty:\n\n\n\n"), "{without_b:?}");
        let again = replace(&without_b, &b, Some(&new)).unwrap();
        assert!(again.ends_with("empty:\n\ndn: uid=b,dc=x\nuid: a\n"), "{again:?}");
        assert_eq!(replace("", &a, Some(&new)).unwrap(), "dn: uid=a,dc=x\nuid: a\n");
    }

    proptest! {
        #[test]
        fn any_value_is_read_back(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 1..4)) {
            let dn = Dn::parse("uid=a,dc=x").unwrap();
            let attributes = vec![Attribute { name: "description".into(), values }];
            let text = write(&dn, &attributes);
            prop_assert!(text.lines().all(|line| line.len() <= 76 && line.is_ascii()));
            let records = read(&text).unwrap();
            prop_assert_eq!(records.len(), 1);
            prop_assert_eq!(&records[0].attributes, &attributes);
            prop_assert_eq!(&records[0].dn, &dn);
        }
    }
}
