//! The UTF-8 reading: names and values are bare words or texts in Go's quotes.

use std::iter::Peekable;
use std::str::CharIndices;

use super::{BadMatcher, Matcher, Operation, shown};

/// Whether a character ends a bare word.
fn is_special(c: char) -> bool {
    c.is_whitespace() || matches!(c, '{' | '}' | '!' | '=' | '~' | ',' | '\\' | '"' | '\'' | '`')
}

struct Reader<'t> {
    text: &'t str,
    chars: Peekable<CharIndices<'t>>,
}

/// Reads a list of matchers; braces around it come as a pair.
pub(super) fn read(text: &str) -> Result<Vec<Matcher>, BadMatcher> {
    let mut reader = Reader { text, chars: text.char_indices().peekable() };
    let braces = reader.take('{');
    let mut matchers = Vec::new();
    loop {
        reader.skip_space();
        if braces && reader.take('}') {
            break;
        }
        if reader.chars.peek().is_none() && !braces && !matchers.is_empty() {
            break;
        }
        matchers.push(reader.matcher()?);
        reader.skip_space();
        if !reader.take(',') {
            if braces && !reader.take('}') {
                return Err(reader.wrong("`,` or `}` is missing"));
            }
            break;
        }
    }
    reader.skip_space();
    if reader.chars.peek().is_some() {
        return Err(reader.wrong("`,` is missing"));
    }
    if matchers.is_empty() {
        return Err(BadMatcher("there is no matcher".into()));
    }
    Ok(matchers)
}

impl Reader<'_> {
    fn wrong(&mut self, why: &str) -> BadMatcher {
        let at = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        let rest: String = self.text[at..].chars().take(20).collect();
        let place =
            if rest.is_empty() { "at its end".to_owned() } else { format!("before `{}`", shown(&rest)) };
        BadMatcher(format!("`{}` is not a list of matchers: {why} {place}", shown(self.text)))
    }

    fn skip_space(&mut self) {
        while self.chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip_space();
        self.chars.next_if(|(_, c)| *c == wanted).is_some()
    }

    fn matcher(&mut self) -> Result<Matcher, BadMatcher> {
        let name = self.word()?.ok_or_else(|| self.wrong("the name of a label is missing"))?;
        if name.is_empty() {
            return Err(self.wrong("the name of a label is empty"));
        }
        self.skip_space();
        let first = self.chars.next_if(|(_, c)| matches!(c, '=' | '!'));
        let second = match first {
            Some((_, '=')) => self.chars.next_if(|(_, c)| *c == '~'),
            Some(_) => self.chars.next_if(|(_, c)| matches!(c, '=' | '~')),
            None => None,
        };
        let operation = match (first.map(|(_, c)| c), second.map(|(_, c)| c)) {
            (Some('='), None) => Operation::Equal,
            (Some('='), Some(_)) => Operation::Fits,
            (Some('!'), Some('=')) => Operation::NotEqual,
            (Some('!'), Some(_)) => Operation::FitsNot,
            _ => return Err(self.wrong("one of `=`, `!=`, `=~` and `!~` is missing")),
        };
        let value = self.word()?.ok_or_else(|| self.wrong("the value is missing"))?;
        Matcher::new(name, operation, value)
    }

    /// A bare word or a quoted text.
    fn word(&mut self) -> Result<Option<String>, BadMatcher> {
        self.skip_space();
        if self.chars.next_if(|(_, c)| *c == '"').is_some() {
            return self.quoted().map(Some);
        }
        let mut word = String::new();
        while let Some((_, c)) = self.chars.next_if(|(_, c)| !is_special(*c)) {
            word.push(c);
        }
        Ok((!word.is_empty()).then_some(word))
    }

    /// What stands up to the closing quote, with Go's escapes. Those of bytes must make UTF-8.
    fn quoted(&mut self) -> Result<String, BadMatcher> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut buffer = [0; 4];
        loop {
            match self.chars.next().map(|(_, c)| c) {
                None | Some('\n') => return Err(self.wrong("a quote is not closed")),
                Some('"') => break,
                Some('\\') => self.escape(&mut bytes)?,
                Some(c) => bytes.extend(c.encode_utf8(&mut buffer).as_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("a quoted text is not UTF-8"))
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), BadMatcher> {
        let c = self.chars.next().map(|(_, c)| c);
        let simple = match c {
            Some('a') => Some(7),
            Some('b') => Some(8),
            Some('f') => Some(12),
            Some('n') => Some(b'\n'),
            Some('r') => Some(b'\r'),
            Some('t') => Some(b'\t'),
            Some('v') => Some(11),
            Some('\\') => Some(b'\\'),
            Some('"') => Some(b'"'),
            _ => None,
        };
        if let Some(byte) = simple {
            bytes.push(byte);
            return Ok(());
        }
        let number = match c {
            Some('x') => self.number(16, 2, 0),
            Some('u') => self.number(16, 4, 0),
            Some('U') => self.number(16, 8, 0),
            Some(digit @ '0'..='7') => self.number(8, 2, digit.to_digit(8).unwrap_or_default()),
            _ => None,
        };
        let wrong = "this escape is unknown";
        let number = number.ok_or_else(|| self.wrong(wrong))?;
        if matches!(c, Some('u' | 'U')) {
            let character = char::from_u32(number).ok_or_else(|| self.wrong(wrong))?;
            bytes.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            bytes.push(u8::try_from(number).map_err(|_| self.wrong(wrong))?);
        }
        Ok(())
    }

    fn number(&mut self, radix: u32, digits: usize, first: u32) -> Option<u32> {
        (0..digits).try_fold(first, |number, _| {
            let digit = self.chars.next_if(|(_, c)| c.is_digit(radix))?.1.to_digit(radix)?;
            number.checked_mul(radix)?.checked_add(digit)
        })
    }
}
