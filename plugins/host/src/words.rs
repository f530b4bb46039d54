//! Commands and outputs as people read them.

/// The command for people, quoted as a shell would want it, cut when it is very long.
pub(crate) fn command_line(argv: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 400;
    let words: Vec<String> = argv.iter().map(|argument| quoted(argument.as_ref())).collect();
    shortened(&words.join(" "), SHOWN)
}

/// One word of a command line, in quotes when a shell would need them or nobody could see where it ends.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@,+%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    if word.chars().any(char::is_control) {
        return format!("$'{}'", word.escape_debug());
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

pub(crate) fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The end of an output, where commands say what was wrong.
pub(crate) fn last_of(text: &str) -> &str {
    const SHOWN: usize = 1000;
    let text = text.trim();
    let start = text.char_indices().rev().nth(SHOWN - 1).map_or(0, |(at, _)| at);
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_for_people() {
        for (word, expected) in [
            ("plain-1.2/x:y=z", "plain-1.2/x:y=z"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("a\nb'c", r"$'a\nb\'c'"),
            ("é", "é"),
        ] {
            assert_eq!(quoted(word), expected, "{word:?}");
        }
        assert_eq!(command_line(&["echo", &"x".repeat(1000)]).chars().count(), 401);
    }
}
