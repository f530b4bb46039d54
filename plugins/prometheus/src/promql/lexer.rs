//! The words of PromQL.

/// A word, with its place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) start: usize,
}

impl Token<'_> {
    pub(super) fn end(&self) -> usize {
        self.start + self.text.len()
    }

    pub(super) fn is(&self, text: &str) -> bool {
        self.kind == Kind::Sign && self.text == text
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or a word of the language.
    Word,
    /// A number or a duration.
    Number,
    /// A string, quotes included.
    Quoted,
    /// Anything else, one character at a time.
    Sign,
}

/// The words of `text`, without blanks and comments; nothing when a string has no end.
pub(super) fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let length = |fits: fn(char) -> bool| rest.find(|c: char| !fits(c)).unwrap_or(rest.len());
        let (kind, length) = match first {
            _ if first.is_whitespace() => {
                at += first.len_utf8();
                continue;
            }
            '#' => {
                at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            '"' | '\'' | '`' => (Kind::Quoted, string_length(rest, first)?),
            _ if first.is_ascii_alphabetic() || first == '_' || first == ':' => {
                (Kind::Word, length(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'))
            }
            _ if first.is_ascii_digit() => {
                (Kind::Number, length(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_'))
            }
            _ => (Kind::Sign, first.len_utf8()),
        };
        found.push(Token { kind, text: &rest[..length], start: at });
        at += length;
    }
    Some(found)
}

/// How long the string is at whose opening quote `text` begins.
fn string_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote != '`' => escaped = true,
            _ if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The same query with its blanks and comments made alike, so that two ways to write it are one text.
pub(crate) fn squeezed(text: &str) -> String {
    match tokens(text) {
        Some(words) => words.iter().map(|token| token.text).collect::<Vec<_>>().join(" "),
        None => text.to_owned(),
    }
}
