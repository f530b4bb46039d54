//! The one place where a command becomes text for a shell: the login shell of the account on the other side.
//!
//! SSH carries one text, not a list, and the other side hands it to a shell. So each word is quoted such that every POSIX
//! shell reads exactly that word. The property test sends words through real servers to dash and bash.

/// One word, in single quotes: within them, a shell reads nothing but the closing quote.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A command line of these words.
pub(crate) fn line(words: &[&str]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted() {
        for (word, expected) in [
            ("plain", "'plain'"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("$(id) `id` \\ \"", "'$(id) `id` \\ \"'"),
            ("a\nb", "'a\nb'"),
        ] {
            assert_eq!(quote(word), expected);
        }
        assert_eq!(line(&["a b", "'"]), r"'a b' ''\'''");
    }
}
