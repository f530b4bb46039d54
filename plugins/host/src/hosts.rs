//! Names of hosts, and sets of them.
//!
//! Names come from data (an alert's label, another step's output) and are taken as they are. Sets are written by the
//! author of a runbook or an environment, in the notation of ClusterShell and Cumin: `worker-[1-80]`, `,` `!` `&` `^`.
//!
//! **Rule:** data is never read as a set, so that a label such as `worker-[1-80]` selects nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use farrier_model::{Failure, FailureKind};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// No set may have more hosts than this: a slip such as `[1-800000]` is found before it is carried out.
const MOST: usize = 10_000;

/// One name or a list of names, never patterns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Names(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Names, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Names;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a host, or a list of names")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Names, E> {
                check_name(text).map_err(E::custom)?;
                Ok(Names(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element::<String>()? {
                    check_name(&name).map_err(A::Error::custom)?;
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Names {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "host_names".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// Whether a text is a host's name: letters, digits, `-`, `_` and dots, not beginning with `-` or a dot.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if name.is_empty() || name.len() > 253 || !letters || name.starts_with(['-', '.']) || name.contains("..")
    {
        let shown: String = name.chars().take(100).collect();
        let hint = if name.contains(['[', '@', '*', ',']) {
            "; a set of hosts is written under `select`"
        } else {
            ""
        };
        return Err(format!("{shown:?} is not the name of a host{hint}"));
    }
    Ok(())
}

/// The names of sets, `@NAME`.
pub(crate) type Groups = BTreeMap<String, Vec<String>>;

/// The hosts of a set, in the order in which they are written, each once.
///
/// `groups` are the sets that `@NAME` may name. Operators have no precedence: without parentheses only one kind may
/// be used in a row, and `,` or a space joins last.
pub(crate) fn select(text: &str, groups: &Groups) -> Result<Vec<String>, String> {
    let mut parser = Parser { rest: text.trim(), groups };
    if parser.rest.is_empty() {
        return Err("it is empty".into());
    }
    let hosts = parser.union()?;
    match parser.rest.chars().next() {
        None => Ok(hosts),
        Some(letter) => Err(format!("`{letter}` is in the wrong place")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    groups: &'a Groups,
}

impl Parser<'_> {
    /// `a, b c`
    fn union(&mut self) -> Result<Vec<String>, String> {
        let mut all = self.difference()?;
        loop {
            let trimmed = self.rest.trim_start();
            let spaced = trimmed.len() < self.rest.len();
            self.rest = trimmed;
            if let Some(rest) = trimmed.strip_prefix(',') {
                self.rest = rest.trim_start();
            } else if !spaced || trimmed.is_empty() || trimmed.starts_with(')') {
                return Ok(all);
            }
            let more = self.difference()?;
            join(&mut all, more)?;
        }
    }

    /// `a ! b ! c`, `a & b & c`, `a ^ b ^ c`
    fn difference(&mut self) -> Result<Vec<String>, String> {
        let mut left = self.operand()?;
        let mut first = None;
        loop {
            let trimmed = self.rest.trim_start();
            let Some(operator) = trimmed.chars().next().filter(|letter| "!&^".contains(*letter)) else {
                return Ok(left);
            };
            if *first.get_or_insert(operator) != operator {
                return Err(format!(
                    "`{}` and `{operator}` in a row need parentheses",
                    first.unwrap_or(operator)
                ));
            }
            if left.is_empty() {
                return Err(format!("left of `{operator}` there is no host"));
            }
            self.rest = trimmed[1..].trim_start();
            let right = self.operand()?;
            let there: HashSet<&String> = right.iter().collect();
            match operator {
                '!' => left.retain(|host| !there.contains(host)),
                '&' => left.retain(|host| there.contains(host)),
                _ => {
                    let here: HashSet<&String> = left.iter().collect();
                    let only_right = right.iter().filter(|host| !here.contains(host)).cloned().collect();
                    left.retain(|host| !there.contains(host));
                    join(&mut left, only_right)?;
                }
            }
        }
    }

    /// `(…)`, `@group` or a pattern
    fn operand(&mut self) -> Result<Vec<String>, String> {
        if let Some(rest) = self.rest.strip_prefix('(') {
            self.rest = rest.trim_start();
            let inner = self.union()?;
            let after = self.rest.trim_start().strip_prefix(')').ok_or("a parenthesis is not closed")?;
            self.rest = after;
            return Ok(inner);
        }
        let mut inside = false;
        let end = self.rest.find(|letter: char| {
            inside = if letter == '[' { true } else { inside && letter != ']' };
            !inside && (letter.is_whitespace() || ",!&^()".contains(letter))
        });
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        match word.strip_prefix('@') {
            _ if word.is_empty() => Err("a host or a set is missing".into()),
            Some(name) => self
                .groups
                .get(name)
                .cloned()
                .ok_or_else(|| format!("there is no group `@{name}` of hosts in this environment")),
            None => expand(word),
        }
    }
}

/// Adds what is not there yet.
pub(crate) fn join(all: &mut Vec<String>, more: Vec<String>) -> Result<(), String> {
    let mut known: HashSet<String> = all.iter().cloned().collect();
    all.extend(more.into_iter().filter(|host| known.insert(host.clone())));
    if all.len() > MOST {
        return Err(format!("these are more than {MOST} hosts"));
    }
    Ok(())
}

/// The names of a pattern: `a[1-3,7]b[01-02]`, with steps as in `[1-9/2]`.
pub(crate) fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let mut names = vec![String::new()];
    let mut rest = pattern;
    while !rest.is_empty() {
        let (plain, after) = rest.split_at(rest.find('[').unwrap_or(rest.len()));
        for name in &mut names {
            name.push_str(plain);
        }
        let Some(after) = after.strip_prefix('[') else { break };
        let (inside, after) =
            after.split_once(']').ok_or_else(|| format!("`{pattern}`: a bracket is not closed"))?;
        let numbers = numbers(inside).map_err(|reason| format!("`{pattern}`: {reason}"))?;
        if names.len().saturating_mul(numbers.len()) > MOST {
            return Err(format!("`{pattern}` means more than {MOST} hosts"));
        }
        names = names
            .iter()
            .flat_map(|name| numbers.iter().map(move |number| format!("{name}{number}")))
            .collect();
        rest = after;
    }
    for name in &names {
        check_name(name)?;
    }
    let mut unique = Vec::new();
    join(&mut unique, names)?;
    Ok(unique)
}

/// `1-3,7,01-10/3`
fn numbers(inside: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for part in inside.split(',') {
        let part = part.trim();
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let digits = |text: &str| {
            !text.is_empty() && text.len() < 10 && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(from) || !digits(to) || !digits(step) {
            return Err(format!("`[{part}]` is not a range of numbers such as `[1-80]`"));
        }
        let number = |text: &str| text.parse::<usize>().unwrap_or(0);
        let (first, last, step) = (number(from), number(to), number(step));
        if last < first || step == 0 {
            return Err(format!("`[{part}]` is an empty range"));
        }
        if (last - first) / step >= MOST {
            return Err(format!("`[{part}]` is more than {MOST} numbers"));
        }
        // Zeros in front say how wide the numbers are.
        let width = if from.starts_with('0') { from.len() } else { 0 };
        all.extend((first..=last).step_by(step).map(|number| format!("{number:0width$}")));
    }
    Ok(all)
}

/// Hosts whose names differ in one number: what is before it, the numbers as written and read, what is after it.
type Alike<'a> = (&'a str, Vec<(&'a str, u64)>, &'a str);

/// A short form for people: hosts whose names differ in one number share one word.
pub(crate) fn fold(hosts: &[impl AsRef<str>]) -> String {
    let mut words: Vec<Alike<'_>> = Vec::new();
    for host in hosts {
        let host = host.as_ref();
        let end = host.rfind(|letter: char| letter.is_ascii_digit()).map_or(0, |at| at + 1);
        let start = host[..end].rfind(|letter: char| !letter.is_ascii_digit()).map_or(0, |at| at + 1);
        let (before, digits, after) = (&host[..start], &host[start..end], &host[end..]);
        let Ok(number) = digits.parse() else {
            words.push((host, Vec::new(), ""));
            continue;
        };
        let alike = words.iter_mut().find(|word| !word.1.is_empty() && (word.0, word.2) == (before, after));
        match alike {
            Some((_, numbers, _)) => numbers.push((digits, number)),
            None => words.push((before, vec![(digits, number)], after)),
        }
    }
    let folded = words.into_iter().map(|(before, mut numbers, after)| {
        numbers.sort_by_key(|(digits, number)| (*number, digits.len()));
        match numbers.as_slice() {
            [] => before.to_owned(),
            [(digits, _)] => format!("{before}{digits}{after}"),
            _ => format!("{before}[{}]{after}", ranges(&numbers)),
        }
    });
    folded.collect::<Vec<_>>().join(",")
}

/// Numbers in order, as ranges where they follow each other in the same width.
fn ranges(numbers: &[(&str, u64)]) -> String {
    let mut parts: Vec<(&str, &str, u64)> = Vec::new();
    for (digits, number) in numbers {
        match parts.last_mut() {
            Some((first, last, end)) if *end + 1 == *number && same_width(first, digits) => {
                *last = digits;
                *end = *number;
            }
            _ => parts.push((digits, digits, *number)),
        }
    }
    let shown = parts.iter().map(
        |(first, last, _)| {
            if first == last { (*first).to_owned() } else { format!("{first}-{last}") }
        },
    );
    shown.collect::<Vec<_>>().join(",")
}

/// Whether `[first-next]` would give `next` back.
fn same_width(first: &str, next: &str) -> bool {
    if first.starts_with('0') { first.len() == next.len() } else { !next.starts_with('0') }
}

/// A failure about a set in an input.
pub(crate) fn wrong_set(field: &str, text: &str, reason: &str) -> Failure {
    let shown: String = text.chars().take(200).collect();
    Failure::new(FailureKind::Input, format!("`{field}`: in `{shown}`: {reason}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn groups() -> Groups {
        [("broken".to_owned(), vec!["w-2".to_owned(), "w-9".to_owned()]), ("none".to_owned(), Vec::new())]
            .into()
    }

    #[test]
    fn sets_are_read() {
        for (text, expected) in [
            ("w-1", "w-1"),
            ("w-[1-3]", "w-1 w-2 w-3"),
            ("w-[08-11].example.org", "w-08.example.org w-09.example.org w-10.example.org w-11.example.org"),
            ("w-[1-7/3]", "w-1 w-4 w-7"),
            ("w-[1,3,3]", "w-1 w-3"),
            ("a[1-2]b[3-4]", "a1b3 a1b4 a2b3 a2b4"),
            ("b, a,b", "b a"),
            ("b a", "b a"),
            ("w-[1-3]!w-2", "w-1 w-3"),
            ("w-[1-3] ! @broken", "w-1 w-3"),
            ("w-[1-3] & @broken", "w-2"),
            ("w-[1-3] ^ @broken", "w-1 w-3 w-9"),
            ("w-[1-4] ! w-1 ! w-2", "w-3 w-4"),
            ("(w-[1-4] ! w-1) & w-[1-2]", "w-2"),
            ("a, w-[1-3] ! w-2, b", "a w-1 w-3 b"),
            ("(a, w-1) ! a", "w-1"),
            ("  a  ", "a"),
        ] {
            assert_eq!(select(text, &groups()).unwrap().join(" "), expected, "{text}");
        }
    }

    #[test]
    fn wrong_sets_say_what_is_wrong() {
        for (text, expected) in [
            ("", "empty"),
            ("a !", "missing"),
            ("! a", "missing"),
            ("a,,b", "missing"),
            ("(a", "not closed"),
            ("a)", "wrong place"),
            ("w-[1-3", "not closed"),
            ("w-[3-1]", "empty range"),
            ("w-[1-9/0]", "empty range"),
            ("w-[a-c]", "not a range"),
            ("w-[1-]", "not a range"),
            ("w-[]", "not a range"),
            ("w-[1-99999999]", "more than 10000"),
            ("w-[1-999]x[1-999]", "more than 10000"),
            ("a & b ! c", "parentheses"),
            ("@none ! a", "no host"),
            ("@nowhere", "there is no group"),
            ("-oProxyCommand=x", "not the name of a host"),
            ("a;b", "not the name"),
            ("w-[1-2]]", "not the name"),
        ] {
            let reason = select(text, &groups()).unwrap_err();
            assert!(reason.contains(expected), "{text}: {reason}");
        }
    }

    #[test]
    fn names_from_data_are_never_sets() {
        let read = |json: &str| farrier_model::Value::from_json(json).unwrap().read::<Names>();
        assert_eq!(read(r#""a-1""#).unwrap().0, ["a-1"]);
        assert_eq!(read(r#"["a", "b.example.org"]"#).unwrap().0, ["a", "b.example.org"]);
        assert_eq!(read("[]").unwrap().0, Vec::<String>::new());
        for json in [
            r#""w-[1-80]""#,
            r#""@all""#,
            r#""*""#,
            r#""a,b""#,
            r#""a b""#,
            r#""""#,
            r#""-oX""#,
            r#"["a", ""]"#,
            "3",
            r#""a\u0000""#,
            r#""a\nb""#,
            r#""$(id)""#,
            r#""root@a""#,
            r#""ssh://a""#,
            r#""a:22""#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        assert!(read(r#""w-[1-80]""#).unwrap_err().to_string().contains("`select`"));
    }

    #[test]
    fn folding_is_short() {
        for (hosts, expected) in [
            ("w-1 w-2 w-3 w-7", "w-[1-3,7]"),
            ("w-3 w-1 a", "w-[1,3],a"),
            ("w-09 w-10 w-11", "w-[09-11]"),
            ("w-9 w-10", "w-[9-10]"),
            ("w-1.a w-2.a w-3.b", "w-[1-2].a,w-3.b"),
            ("a b", "a,b"),
            ("w-1 w-01", "w-[1,01]"),
        ] {
            assert_eq!(fold(&hosts.split(' ').collect::<Vec<_>>()), expected);
        }
    }

    proptest! {
        /// What is folded means the same hosts.
        #[test]
        fn folding_loses_nothing(hosts in proptest::collection::btree_set("[a-c]-?[0-9]{0,3}(\\.[a-b][0-9]?)?", 1..30)) {
            let hosts: Vec<String> = hosts.into_iter().collect();
            let mut again = select(&fold(&hosts), &Groups::new()).unwrap();
            again.sort();
            prop_assert_eq!(again, hosts);
        }

        /// No text makes it panic.
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z0-9\\[\\]\\-,!&^()@/ ]{0,20}|\\PC{0,20}") {
            let _ = select(&text, &groups());
        }
    }
}
