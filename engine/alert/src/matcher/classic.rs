//! The classic reading: names as Prometheus has them, values with or without quotes.

use super::{BadMatcher, Matcher, Operation, shown};

/// The space that stands around names, signs and values.
const SPACE: [char; 5] = [' ', '\t', '\n', '\u{c}', '\r'];

/// Whether Prometheus takes it for the name of a label. Colons are those of old rules.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | ':'))
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
}

/// Reads a list of matchers; braces around it and a comma at its end may be there or not.
pub(super) fn read(text: &str) -> Result<Vec<Matcher>, BadMatcher> {
    let text = text.strip_prefix('{').unwrap_or(text);
    let text = text.strip_suffix('}').unwrap_or(text);
    let pieces = pieces(text);
    if pieces.is_empty() {
        return Err(BadMatcher("there is no matcher".into()));
    }
    pieces.into_iter().map(read_one).collect()
}

/// Cuts at commas outside of quotes.
fn pieces(text: &str) -> Vec<&str> {
    let (mut quoted, mut escaped, mut start) = (false, false, 0);
    let mut pieces = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            ',' if !quoted => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            '"' if escaped => escaped = false,
            '"' => quoted = !quoted,
            '\\' => escaped = !escaped,
            // A comma within quotes leaves a backslash before it as it is, too.
            ',' => {}
            _ => escaped = false,
        }
    }
    if !text[start..].trim().is_empty() {
        pieces.push(text[start..].trim());
    }
    pieces
}

fn read_one(piece: &str) -> Result<Matcher, BadMatcher> {
    let wrong = |why: &str| BadMatcher(format!("`{}` is not a matcher: {why}", shown(piece)));
    let rest = piece.trim_start_matches(SPACE);
    let end =
        rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    if !is_name(name) {
        return Err(wrong("it does not begin with the name of a label"));
    }
    let rest = rest.trim_start_matches(SPACE);
    let signs = [
        ("=~", Operation::Fits),
        ("=", Operation::Equal),
        ("!=", Operation::NotEqual),
        ("!~", Operation::FitsNot),
    ];
    let Some((operation, value)) =
        signs.into_iter().find_map(|(sign, operation)| Some((operation, rest.strip_prefix(sign)?)))
    else {
        return Err(wrong("one of `=`, `!=`, `=~` and `!~` follows the name"));
    };
    let value =
        unescape(value.trim_matches(SPACE)).ok_or_else(|| wrong("a quote in its value stands alone"))?;
    Matcher::new(name, operation, value)
}

/// The value that is meant; nothing when a quote has no partner. A backslash that escapes nothing is one.
fn unescape(raw: &str) -> Option<String> {
    let (raw, mut open) = match raw.strip_prefix('"') {
        Some(rest) => (rest, true),
        None => (raw, false),
    };
    let mut value = String::with_capacity(raw.len());
    let mut escaped = false;
    let last = raw.len().saturating_sub(1);
    for (at, c) in raw.char_indices() {
        if escaped {
            escaped = false;
            match c {
                'n' => value.push('\n'),
                '"' | '\\' => value.push(c),
                other => value.extend(['\\', other]),
            }
            continue;
        }
        match c {
            '\\' if at < last => escaped = true,
            '"' if open && at == last => open = false,
            '"' => return None,
            other => value.push(other),
        }
    }
    (!open).then_some(value)
}
