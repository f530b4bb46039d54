//! Finds the names inside an expression with their places: `steps.a.rows[0].name` as a root and a path, filters with
//! the attributes they name.
//!
//! minijinja compiles and evaluates; this only looks. It reads tokens, not grammar, so it works on any expression that
//! compiled, in one pass and without recursion.

use std::ops::Range;

/// One dotted name. Ranges are bytes of the expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chain {
    /// `inputs`, `steps`, an item's name, …
    pub root: String,
    /// Where the root stands.
    pub root_range: Range<usize>,
    /// What is reached through it.
    pub path: Vec<Access>,
    /// From the root to the end of the path.
    pub range: Range<usize>,
    /// `is defined`, `is undefined` or `| default` stands behind it: its absence is expected.
    pub guarded: bool,
}

/// One link of a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Access {
    /// `.name` or `['name']`.
    Field {
        /// The name.
        name: String,
        /// Where it stands.
        range: Range<usize>,
    },
    /// `[3]`.
    Index {
        /// Where it stands.
        range: Range<usize>,
    },
    /// `[from:to]`.
    Slice {
        /// Where it stands.
        range: Range<usize>,
    },
    /// `[expression]`.
    Dynamic {
        /// Where it stands.
        range: Range<usize>,
    },
}

impl Access {
    /// Where it stands.
    pub(super) fn range(&self) -> &Range<usize> {
        match self {
            Access::Field { range, .. }
            | Access::Index { range }
            | Access::Slice { range }
            | Access::Dynamic { range } => range,
        }
    }
}

/// One `| name(…)`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Filter {
    /// Its name.
    pub name: String,
    /// The path in `attribute='a.b'`.
    pub attribute: Option<Vec<Access>>,
    /// The path in a first argument that is a text, as of `selectattr('a.b')`.
    pub positional: Option<Vec<Access>>,
}

/// An expression that is nothing but a name and filters on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    /// The name.
    pub chain: Chain,
    /// The filters, in order.
    pub filters: Vec<Filter>,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word,
    Number,
    Text,
    Mark(u8),
}

fn tokens(source: &str) -> Vec<(Token, Range<usize>)> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        let kind = if byte.is_ascii_alphabetic() || byte == b'_' {
            while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_') {
                at += 1;
            }
            Token::Word
        } else if byte.is_ascii_digit() {
            // A fraction belongs to the number, a field behind a number does not exist.
            while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'.' | b'_'))
            {
                at += 1;
            }
            Token::Number
        } else if byte == b'"' || byte == b'\'' {
            at += 1;
            while at < bytes.len() && bytes[at] != byte {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at = (at + 1).min(bytes.len());
            Token::Text
        } else {
            at += 1;
            if byte.is_ascii_whitespace() {
                continue;
            }
            Token::Mark(byte)
        };
        found.push((kind, start..at));
    }
    found
}

const KEYWORDS: &[&str] =
    &["and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None"];

/// Every dotted name in the expression, in order.
pub(super) fn chains(source: &str) -> Vec<Chain> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match chain_at(source, &tokens, at) {
            Some((chain, next)) => {
                // Names inside `[ … ]` are read as well: go on behind the root, path words are told apart by their dot.
                at = if chain
                    .path
                    .iter()
                    .any(|access| matches!(access, Access::Slice { .. } | Access::Dynamic { .. }))
                {
                    at + 1
                } else {
                    next
                };
                found.push(chain);
            }
            None => at += 1,
        }
    }
    found
}

fn is_mark(tokens: &[(Token, Range<usize>)], at: usize, mark: u8) -> bool {
    tokens.get(at).is_some_and(|(token, _)| *token == Token::Mark(mark))
}

/// Whether a colon stands between the brackets, and not within others.
fn is_slice(inner: &[(Token, Range<usize>)]) -> bool {
    let mut depth = 0_usize;
    inner.iter().any(|(token, _)| match token {
        Token::Mark(b'[' | b'(' | b'{') => {
            depth += 1;
            false
        }
        Token::Mark(b']' | b')' | b'}') => {
            depth = depth.saturating_sub(1);
            false
        }
        Token::Mark(b':') => depth == 0,
        _ => false,
    })
}

/// The chain that begins at token `at`, and the token behind it.
fn chain_at(source: &str, tokens: &[(Token, Range<usize>)], at: usize) -> Option<(Chain, usize)> {
    let (Token::Word, root_range) = tokens.get(at)? else { return None };
    let root = &source[root_range.clone()];
    if KEYWORDS.contains(&root) {
        return None;
    }
    if at > 0 {
        let (before, before_range) = &tokens[at - 1];
        let word_before = &source[before_range.clone()];
        let test_name = *before == Token::Word
            && (word_before == "is"
                || (word_before == "not" && at > 1 && &source[tokens[at - 2].1.clone()] == "is"));
        if matches!(before, Token::Mark(b'.' | b'|')) || test_name {
            return None;
        }
    }
    let assigned = is_mark(tokens, at + 1, b'=') && !is_mark(tokens, at + 2, b'=');
    if assigned || is_mark(tokens, at + 1, b'(') {
        return None;
    }
    let mut path = Vec::new();
    let mut end = root_range.end;
    let mut next = at + 1;
    loop {
        if is_mark(tokens, next, b'.') {
            let Some((Token::Word | Token::Number, range)) = tokens.get(next + 1) else { break };
            path.push(Access::Field { name: source[range.clone()].to_owned(), range: range.clone() });
            end = range.end;
            next += 2;
        } else if is_mark(tokens, next, b'[') {
            let mut depth = 0_usize;
            let close = (next..tokens.len()).find(|index| match tokens[*index].0 {
                Token::Mark(b'[') => {
                    depth += 1;
                    false
                }
                Token::Mark(b']') => {
                    depth -= 1;
                    depth == 0
                }
                _ => false,
            });
            let Some(close) = close else { break };
            let range = tokens[next].1.start..tokens[close].1.end;
            path.push(match &tokens[next + 1..close] {
                [(Token::Text, text)] if !source[text.clone()].contains('\\') => Access::Field {
                    name: source[text.start + 1..text.end - 1].to_owned(),
                    range: text.start + 1..text.end - 1,
                },
                [(Token::Number, _)] | [(Token::Mark(b'-'), _), (Token::Number, _)] => {
                    Access::Index { range: range.clone() }
                }
                inner if is_slice(inner) => Access::Slice { range: range.clone() },
                _ => Access::Dynamic { range: range.clone() },
            });
            end = range.end;
            next = close + 1;
        } else if is_mark(tokens, next, b'(') && !path.is_empty() {
            // A method call: what it returns is not known, and its name is not a field.
            path.pop();
            break;
        } else {
            break;
        }
    }
    let word = |index: usize| tokens.get(index).map_or("", |(_, range)| &source[range.clone()]);
    let tested = if word(next + 1) == "not" { word(next + 2) } else { word(next + 1) };
    let guarded = (word(next) == "is" && matches!(tested, "defined" | "undefined"))
        || (word(next) == "|" && matches!(word(next + 1), "default" | "d"));
    let chain = Chain {
        root: root.to_owned(),
        root_range: root_range.clone(),
        path,
        range: root_range.start..end,
        guarded,
    };
    Some((chain, next))
}

/// The expression as one name with filters, when it is nothing else.
pub(super) fn pipeline(source: &str) -> Option<Pipeline> {
    let tokens = tokens(source);
    let (chain, mut next) = chain_at(source, &tokens, 0)?;
    let mut filters = Vec::new();
    while next < tokens.len() {
        if !is_mark(&tokens, next, b'|') {
            return None;
        }
        let (Token::Word, name) = tokens.get(next + 1)? else { return None };
        let mut filter = Filter { name: source[name.clone()].to_owned(), attribute: None, positional: None };
        next += 2;
        if is_mark(&tokens, next, b'(') {
            let mut depth = 0_usize;
            let close = (next..tokens.len()).find(|index| match tokens[*index].0 {
                Token::Mark(b'(') => {
                    depth += 1;
                    false
                }
                Token::Mark(b')') => {
                    depth -= 1;
                    depth == 0
                }
                _ => false,
            })?;
            let arguments = &tokens[next + 1..close];
            if let [(Token::Text, range), ..] = arguments {
                filter.positional = dotted(source, range);
            }
            for window in arguments.windows(3) {
                if let [(Token::Word, word), (Token::Mark(b'='), _), (Token::Text, range)] = window
                    && &source[word.clone()] == "attribute"
                {
                    filter.attribute = dotted(source, range);
                }
            }
            next = close + 1;
        }
        filters.push(filter);
    }
    Some(Pipeline { chain, filters })
}

/// The path written inside a quoted text.
fn dotted(source: &str, quoted: &Range<usize>) -> Option<Vec<Access>> {
    let inner = quoted.start + 1..quoted.end - 1;
    let text = &source[inner.clone()];
    if text.is_empty() || text.contains('\\') {
        return None;
    }
    let mut start = inner.start;
    let mut path = Vec::new();
    for part in text.split('.') {
        let range = start..start + part.len();
        start = range.end + 1;
        path.push(if part.bytes().all(|byte| byte.is_ascii_digit()) {
            Access::Index { range }
        } else {
            Access::Field { name: part.to_owned(), range }
        });
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farrier_model::Expr;

    fn shown(source: &str) -> Vec<String> {
        chains(source).iter().map(|chain| source[chain.range.clone()].to_owned()).collect()
    }

    #[test]
    fn names_are_found_and_words_that_are_no_names_are_not() {
        for (source, expected) in [
            ("inputs.n", vec!["inputs.n"]),
            ("steps.a.rows[0].name == 'steps.b.c'", vec!["steps.a.rows[0].name"]),
            (
                "group[account.cn].member | map('rdn') | join(' ')",
                vec!["group[account.cn].member", "account.cn"],
            ),
            ("x is not none and y is defined or not z", vec!["x", "y", "z"]),
            ("a | map(attribute='b') | join(sep=c.d)", vec!["a", "c.d"]),
            ("range(n)[0] ~ {'k': v}['k']", vec!["n", "v"]),
            ("0.95 * (r.items | length) >= 1e3", vec!["r.items"]),
            ("a == b", vec!["a", "b"]),
            ("x['we ird'].y", vec!["x['we ird'].y"]),
        ] {
            assert_eq!(shown(source), expected, "{source}");
        }
    }

    #[test]
    fn every_name_that_the_evaluator_reads_is_found() {
        for source in [
            "steps.a.b[inputs.n] ~ vars.x",
            "(steps.a.rows | selectattr('ok') | list | length) / (inputs.n or 1)",
            "inputs.only if inputs.only else targets.replicas",
            "run.started_at | days_since(account.t) > inputs.grace | days",
            "[a.b, {'c': d.e}] | length",
            "x.y is in z.w",
        ] {
            let found = chains(source);
            for reference in Expr::parse(source).unwrap().references() {
                let root = reference.split('.').next().unwrap();
                assert!(found.iter().any(|chain| chain.root == root), "`{reference}` in `{source}`");
            }
        }
    }

    #[test]
    fn absence_can_be_expected() {
        let guarded = |source: &str| chains(source).iter().map(|chain| chain.guarded).collect::<Vec<_>>();
        assert_eq!(guarded("a.b is defined and a.b > 1"), [true, false]);
        assert_eq!(guarded("a.b is not defined"), [true]);
        assert_eq!(guarded("a.b | default(3)"), [true]);
    }

    #[test]
    fn pipelines_keep_the_paths_that_filters_name() {
        let pipeline = pipeline("steps.dump.items | map(attribute='output.file') | list").unwrap();
        assert_eq!(pipeline.filters.len(), 2);
        let path = pipeline.filters[0].attribute.as_ref().unwrap();
        assert!(
            matches!(&path[1], Access::Field { name, range } if name == "file" && *range == (41..45)),
            "{path:?}"
        );
        assert_eq!(super::pipeline("a ~ b"), None);
        assert_eq!(super::pipeline("a | length > 3"), None);
    }
}
