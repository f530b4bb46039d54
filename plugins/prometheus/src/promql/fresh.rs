//! [`not_older_than`]: the same query over samples from a time on.
//!
//! Prometheus looks back five minutes for the last sample of a series and does not say how old it is: in the answer, the
//! time of a sample is that of the question. So the question itself has to leave old samples out. Each selector `x`
//! becomes `(x and (timestamp(x) >= T))`, where `timestamp` gives the true time of the sample. What is left is as if the
//! older samples did not exist; a series that has no newer one is absent.
//!
//! A range such as `x[5m]` cannot be cut like that. A query with ranges gives nothing until all of them lie after the time.

use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind};

use super::lexer::{Kind, Token, tokens};

/// Words that are no metrics where they stand alone.
const WORDS: [&str; 9] = ["and", "or", "unless", "atan2", "bool", "inf", "nan", "start", "end"];
/// Words before a list of labels.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that are aggregations also without a parenthesis behind them.
const AGGREGATIONS: [&str; 14] = [
    "sum",
    "avg",
    "count",
    "min",
    "max",
    "group",
    "stddev",
    "stdvar",
    "topk",
    "bottomk",
    "count_values",
    "quantile",
    "limitk",
    "limit_ratio",
];

/// The same query, over samples from `time` on.
///
/// # Errors
/// [`FailureKind::Input`] when the query has something that cannot be cut: a subquery, or a range at a fixed time.
pub(crate) fn not_older_than(query: &str, time: Timestamp) -> Result<String, Failure> {
    let cannot = |what: &str| {
        Failure::new(FailureKind::Input, format!("`not_older_than` cannot be kept with {what} in the query"))
    };
    let tokens = tokens(query).ok_or_else(|| cannot("a string that has no end"))?;
    let seconds = seconds(time);
    let mut result = String::new();
    let mut copied = 0;
    let mut longest_range: u64 = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let is_selector = match token.kind {
            Kind::Word => {
                let lower = token.text.to_ascii_lowercase();
                let opens = tokens.get(at + 1).is_some_and(|next| next.is("("));
                if BEFORE_LABELS.contains(&lower.as_str()) {
                    at += 1;
                    if opens {
                        at = past(&tokens, at, "(", ")").ok_or_else(|| cannot("an open parenthesis"))?;
                    }
                    continue;
                }
                if lower == "offset" {
                    return Err(cannot("an `offset` that is not at a metric"));
                }
                let is_aggregation = AGGREGATIONS.contains(&lower.as_str())
                    && tokens.get(at + 1).is_some_and(|next| {
                        ["by", "without"].iter().any(|word| next.text.eq_ignore_ascii_case(word))
                    });
                !opens && !WORDS.contains(&lower.as_str()) && !is_aggregation
            }
            Kind::Sign if token.text == "[" => return Err(cannot("a subquery")),
            Kind::Sign if token.text == "@" => return Err(cannot("an `@` that is not at a metric")),
            Kind::Sign => token.text == "{",
            Kind::Number | Kind::Quoted => false,
        };
        if !is_selector {
            at += 1;
            continue;
        }
        let start = token.start;
        if token.kind == Kind::Word {
            at += 1;
        }
        if tokens.get(at).is_some_and(|next| next.is("{")) {
            at = past(&tokens, at, "{", "}").ok_or_else(|| cannot("an open brace"))?;
        }
        let mut range = None;
        if tokens.get(at).is_some_and(|next| next.is("[")) {
            let end = past(&tokens, at, "[", "]").ok_or_else(|| cannot("an open bracket"))?;
            let [duration] = &tokens[at + 1..end - 1] else { return Err(cannot("a subquery")) };
            range = Some(duration_seconds(duration.text).ok_or_else(|| cannot("a range of unknown length"))?);
            at = end;
        }
        let mut offset: u64 = 0;
        loop {
            match tokens.get(at) {
                Some(next) if next.text.eq_ignore_ascii_case("offset") => {
                    at += 1;
                    let back = tokens.get(at).is_none_or(|sign| !sign.is("-"));
                    at += usize::from(!back);
                    let length = tokens.get(at).and_then(|word| duration_seconds(word.text));
                    let length = length.ok_or_else(|| cannot("an `offset` of unknown length"))?;
                    offset = if back { length } else { 0 };
                    at += 1;
                }
                Some(next) if next.is("@") => {
                    if range.is_some() {
                        return Err(cannot("a range at a fixed time"));
                    }
                    at += 1;
                    let is_function = tokens.get(at + 1).is_some_and(|next| next.is("("));
                    at = if is_function {
                        past(&tokens, at + 1, "(", ")").ok_or_else(|| cannot("an open parenthesis"))?
                    } else {
                        at + 1
                    };
                }
                _ => break,
            }
        }
        let end = tokens.get(at - 1).map_or(query.len(), Token::end);
        let selector = &query[start..end];
        match range {
            Some(range) => longest_range = longest_range.max(range.saturating_add(offset)),
            None => {
                result.push_str(&query[copied..start]);
                result.push_str(&format!("({selector} and (timestamp({selector}) >= {seconds}))"));
                copied = end;
            }
        }
    }
    result.push_str(&query[copied..]);
    if longest_range > 0 {
        // The line break ends a comment of the author's.
        result = format!("({result}\n) and on() (vector(time() - {longest_range}) >= {seconds})");
    }
    Ok(result)
}

/// The index behind the closing sign that belongs to the opening one at `at`.
fn past(tokens: &[Token<'_>], at: usize, open: &str, close: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        if token.is(open) {
            depth += 1;
        } else if token.is(close) {
            depth -= 1;
            if depth == 0 {
                return Some(index + 1);
            }
        }
    }
    None
}

/// Whole seconds, rounded up.
fn duration_seconds(text: &str) -> Option<u64> {
    // Years are the one unit that PromQL has and Farrier has not.
    let (years, rest) = match text.split_once('y') {
        Some((years, rest)) => (years.parse::<u64>().ok()?, rest),
        None => (0, text),
    };
    let rest = if rest.is_empty() && years > 0 {
        std::time::Duration::ZERO
    } else {
        farrier_model::time::parse_duration(rest)?
    };
    years.checked_mul(365 * 86_400)?.checked_add(rest.as_millis().div_ceil(1000) as u64)
}

/// Seconds since 1970 with milliseconds, as PromQL writes numbers.
fn seconds(time: Timestamp) -> String {
    let millis = time.as_millisecond();
    let (sign, millis) = if millis < 0 { ("-", millis.unsigned_abs()) } else { ("", millis.unsigned_abs()) };
    format!("{sign}{}.{:03}", millis / 1000, millis % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(query: &str) -> Result<String, Failure> {
        not_older_than(query, "1970-01-01T00:01:40.5Z".parse().unwrap())
    }

    #[test]
    fn every_selector_is_cut_and_nothing_else() {
        for (query, wanted) in [
            ("up", "(up and (timestamp(up) >= 100.500))"),
            (
                r#"sum(up{a="b)]}"}) by (job)"#,
                r#"sum((up{a="b)]}"} and (timestamp(up{a="b)]}"}) >= 100.500))) by (job)"#,
            ),
            (
                "sum by (job, up) (up) / on(job) group_left(x) count without(up)({job=\"a\"})",
                "sum by (job, up) ((up and (timestamp(up) >= 100.500))) / on(job) group_left(x) count \
                 without(up)(({job=\"a\"} and (timestamp({job=\"a\"}) >= 100.500)))",
            ),
            (
                "a offset 5m > bool 1e3 or vector(time()) unless NaN",
                "(a offset 5m and (timestamp(a offset 5m) >= 100.500)) > bool 1e3 or vector(time()) unless NaN",
            ),
            ("a @ end() # up\n", "(a @ end() and (timestamp(a @ end()) >= 100.500)) # up\n"),
            (
                "rate(a:b[5m] offset 1h) # up",
                "(rate(a:b[5m] offset 1h) # up\n) and on() (vector(time() - 3900) >= 100.500)",
            ),
            (
                "a - rate(b[1m30s])",
                "((a and (timestamp(a) >= 100.500)) - rate(b[1m30s])\n) and on() (vector(time() - 90) >= 100.500)",
            ),
            ("vector(1)", "vector(1)"),
            (
                "label_replace(up, \"up\", \"$1\", \"a\", \"(.*)\")",
                "label_replace((up and (timestamp(up) >= 100.500)), \"up\", \"$1\", \"a\", \"(.*)\")",
            ),
        ] {
            assert_eq!(cut(query).unwrap(), wanted, "{query}");
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        for (query, what) in [
            ("max_over_time(rate(a[5m])[1h:1m])", "a subquery"),
            ("max_over_time(a[1h:1m])", "a subquery"),
            ("rate(a[5m] @ 100)", "a range at a fixed time"),
            ("sum(a) offset 5m", "an `offset` that is not at a metric"),
            ("a{b=\"c\"", "an open brace"),
            ("a{b=\"c}", "a string that has no end"),
            ("a[x]", "a range of unknown length"),
        ] {
            let failure = cut(query).expect_err(query);
            assert_eq!(failure.message, format!("`not_older_than` cannot be kept with {what} in the query"));
        }
    }
}
