//! Regular expressions as Go's RE2 reads them, for a library that is a little different.
//!
//! `\d`, `\w`, `\s` and `\b` mean ASCII there; brackets, `&&`, `--` and `~~` within a class are plain characters; a `{`
//! that begins no repetition is one too; and two repetitions in a row are an error.

use regex::{Regex, RegexBuilder};

use super::{BadMatcher, shown};

/// Compiles an expression that matches whole texts.
pub(super) fn compile(source: &str, size: usize) -> Result<Regex, BadMatcher> {
    let wrong = |why: &str| BadMatcher(format!("`{}` is not a regular expression: {why}", shown(source)));
    if source.len() > 4096 {
        return Err(BadMatcher("the regular expression is longer than 4096 bytes".into()));
    }
    let translated = translate(source).map_err(wrong)?;
    // By itself first: a stray `)` must not close the group around it.
    let build = |text: &str| RegexBuilder::new(text).size_limit(size).nest_limit(100).octal(true).build();
    let built = build(&translated).and_then(|_| build(&format!("^(?:{translated})$")));
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => wrong("it would be too large"),
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            wrong(last.strip_prefix("error: ").unwrap_or(last))
        }
    })
}

fn translate(source: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(source.len() + 16);
    let mut rest = source;
    // Whether what stands before is a repetition, and may be followed by a `?` that makes it lazy.
    let mut repeated = false;
    while let Some(c) = rest.chars().next() {
        let tail = &rest[c.len_utf8()..];
        let was_repeated = std::mem::take(&mut repeated);
        match c {
            '\\' if tail.starts_with('Q') => {
                let quoted = &tail[1..];
                let (plain, after) = quoted.split_once("\\E").unwrap_or((quoted, ""));
                out.push_str(&regex::escape(plain));
                rest = after;
            }
            '\\' => rest = escape(tail, false, &mut out)?,
            '[' => rest = class(tail, &mut out)?,
            '*' | '+' | '?' => {
                if was_repeated {
                    return Err("one repetition follows another");
                }
                out.push(c);
                rest = tail;
                if let Some(after) = rest.strip_prefix('?') {
                    out.push('?');
                    rest = after;
                }
                repeated = true;
            }
            '{' => match repetition(tail) {
                Some(length) => {
                    if was_repeated {
                        return Err("one repetition follows another");
                    }
                    out.push('{');
                    out.push_str(&tail[..length]);
                    rest = &tail[length..];
                    if let Some(after) = rest.strip_prefix('?') {
                        out.push('?');
                        rest = after;
                    }
                    repeated = true;
                }
                None => {
                    out.push_str("\\{");
                    rest = tail;
                }
            },
            '(' if tail.starts_with('?') => {
                let flags = tail[1..].chars().take_while(|c| !matches!(c, ':' | ')' | '<' | 'P'));
                if flags.into_iter().any(|c| !matches!(c, 'i' | 'm' | 's' | 'U' | '-')) {
                    return Err("this group is unknown");
                }
                out.push_str("(?");
                rest = &tail[1..];
                // The flags themselves; they are no repetition.
                let end = rest.find([':', ')', '>']).ok_or("a group is not closed")?;
                out.push_str(&rest[..=end]);
                rest = &rest[end + 1..];
            }
            c => {
                out.push(c);
                rest = tail;
            }
        }
    }
    Ok(out)
}

/// How long a repetition is, with its closing brace: `3}`, `3,}`, `3,5}`.
fn repetition(text: &str) -> Option<usize> {
    let end = text.find('}')?;
    let (least, most) = text[..end].split_once(',').unwrap_or((&text[..end], ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && digits(least) && digits(most)).then_some(end + 1)
}

/// What follows a backslash, in a class or outside.
fn escape<'t>(text: &'t str, in_class: bool, out: &mut String) -> Result<&'t str, &'static str> {
    let c = text.chars().next().ok_or("a backslash stands at its end")?;
    let rest = &text[c.len_utf8()..];
    let ascii = match c {
        'd' => Some("[0-9]"),
        'D' => Some("[^0-9]"),
        'w' => Some("[0-9A-Za-z_]"),
        'W' => Some("[^0-9A-Za-z_]"),
        's' => Some(r"[\t\n\x0C\r ]"),
        'S' => Some(r"[^\t\n\x0C\r ]"),
        'b' if !in_class => Some(r"(?-u:\b)"),
        'B' if !in_class => return Err("`\\B` is not understood"),
        _ => None,
    };
    match (ascii, c) {
        (Some(ascii), _) => out.push_str(ascii),
        (None, 'C' | 'E' | 'G' | 'R' | 'X' | 'Z' | '<' | '>') => return Err("this escape is unknown"),
        (None, c) => {
            out.push('\\');
            out.push(c);
        }
    }
    Ok(rest)
}

/// What follows the opening bracket of a class, to its end.
fn class<'t>(text: &'t str, out: &mut String) -> Result<&'t str, &'static str> {
    out.push('[');
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    loop {
        let c = rest.chars().next().ok_or("a `[` is not closed")?;
        let tail = &rest[c.len_utf8()..];
        rest = match c {
            ']' if !first => {
                out.push(']');
                return Ok(tail);
            }
            '\\' => escape(tail, true, out)?,
            '[' if tail.starts_with(':') && tail.contains(":]") => {
                let end = tail.find(":]").unwrap_or_default() + 2;
                out.push('[');
                out.push_str(&tail[..end]);
                &tail[end..]
            }
            '[' | '&' | '~' | ']' => {
                out.push('\\');
                out.push(c);
                tail
            }
            '-' if tail.starts_with('-') || first => {
                out.push_str("\\-");
                tail
            }
            c => {
                out.push(c);
                tail
            }
        };
        first = false;
    }
}
