//! What an account may do: [`Grants`], by what it may do it on, in the server's own words.
//!
//! Patterns are the trap here: in a grant on `s1__%` each `_` stands for any character, so it also covers the databases of
//! `s12`. [`Scope`] makes patterns from plain text and escapes it; a grant that somebody wrote without escaping is another
//! scope, and shows up as surplus.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use farrier_model::{Failure, FailureKind, Value};

/// Everything that can be granted on a database, in one word.
pub(crate) const ALL: &str = "ALL PRIVILEGES";
/// What that word stands for on databases; a server shows the word when all of them are granted.
pub(crate) const ALL_ON_DATABASES: [&str; 19] = [
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "CREATE",
    "DROP",
    "REFERENCES",
    "INDEX",
    "ALTER",
    "CREATE TEMPORARY TABLES",
    "LOCK TABLES",
    "EXECUTE",
    "CREATE VIEW",
    "SHOW VIEW",
    "CREATE ROUTINE",
    "ALTER ROUTINE",
    "EVENT",
    "TRIGGER",
    "DELETE HISTORY",
];
/// The right to pass on, which is no part of "all".
pub(crate) const GRANT_OPTION: &str = "GRANT OPTION";

/// What something is granted on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// The whole server.
    Server,
    /// Databases whose names fit a pattern, as the server keeps it: `%` and `_` stand for characters, `\` takes that away.
    Databases(String),
    /// Membership in roles; what is granted are their names.
    Roles,
    /// The role that is active after login.
    DefaultRole,
    /// Anything else, such as a table, as the server shows it. Never granted by Farrier, and revoked as it stands.
    Other(String),
}

impl Scope {
    /// Databases by a part of their names that is taken as it is.
    pub(crate) fn databases(before: &str, plain: &str, after: &str) -> Scope {
        let escaped: String = plain.chars().fold(String::new(), |mut text, c| {
            if matches!(c, '_' | '%' | '\\') {
                text.push('\\');
            }
            text.push(c);
            text
        });
        Scope::Databases(format!("{before}{escaped}{after}"))
    }

    /// As in `ON …`.
    pub(crate) fn quoted(&self) -> String {
        match self {
            Scope::Server => "*.*".into(),
            Scope::Databases(pattern) => format!("`{}`.*", pattern.replace('`', "``")),
            Scope::Roles | Scope::DefaultRole => String::new(),
            Scope::Other(text) => text.clone(),
        }
    }

    /// Reads what [`Scope`] shows, or what the server shows after `ON`.
    pub(crate) fn parse(text: &str) -> Scope {
        match text {
            "*.*" => return Scope::Server,
            "roles" => return Scope::Roles,
            "default role" => return Scope::DefaultRole,
            _ => {}
        }
        let pattern = text.strip_prefix('`').and_then(|rest| rest.strip_suffix("`.*"));
        match pattern {
            Some(pattern) if !pattern.replace("``", "").contains('`') => {
                Scope::Databases(pattern.replace("``", "`"))
            }
            _ => Scope::Other(text.to_owned()),
        }
    }

    /// Whether a database's name fits, as the server judges.
    pub(crate) fn covers(&self, database: &str) -> bool {
        match self {
            Scope::Server => true,
            Scope::Databases(pattern) => {
                fits(&pattern.chars().collect::<Vec<_>>(), &database.chars().collect::<Vec<_>>())
            }
            _ => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Roles => f.write_str("roles"),
            Scope::DefaultRole => f.write_str("default role"),
            other => f.write_str(&other.quoted()),
        }
    }
}

/// `LIKE`. Greedy with one way back, so that no pattern takes long.
fn fits(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let one = match pattern.get(p) {
            Some('\\') => pattern.get(p + 1).is_some_and(|c| *c == text[t]).then_some(2),
            Some('_') => Some(1),
            Some('%') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(c) => (*c == text[t]).then_some(1),
            None => None,
        };
        match (one, star) {
            (Some(step), _) => (p, t) = (p + step, t + 1),
            (None, Some((at, from))) => {
                star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p.min(pattern.len())..].iter().all(|c| *c == '%')
}

/// What an account may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Grants(pub(crate) BTreeMap<Scope, BTreeSet<String>>);

impl Grants {
    /// Adds something, as the server would: with everything granted, its parts are not named.
    pub(crate) fn add(&mut self, on: Scope, what: impl IntoIterator<Item = String>) {
        let held = self.0.entry(on.clone()).or_default();
        held.extend(what.into_iter().filter(|what| what != "USAGE"));
        if matches!(on, Scope::Databases(_)) && ALL_ON_DATABASES.iter().all(|part| held.contains(*part)) {
            held.insert(ALL.into());
        }
        if held.contains(ALL) {
            held.retain(|what| what == ALL || what == GRANT_OPTION);
        }
        if held.is_empty() {
            self.0.remove(&on);
        }
    }

    /// What it may do on one scope.
    pub(crate) fn on(&self, scope: &Scope) -> BTreeSet<String> {
        self.0.get(scope).cloned().unwrap_or_default()
    }

    /// Whether all of this may be done with a database.
    pub(crate) fn allow(&self, database: &str, wanted: &[&str]) -> bool {
        wanted.iter().all(|what| {
            self.0
                .iter()
                .any(|(scope, held)| scope.covers(database) && (held.contains(*what) || held.contains(ALL)))
        })
    }

    /// Reads one line of `SHOW GRANTS`; lines of other accounts' making are for the caller to keep out.
    pub(crate) fn read(&mut self, line: &str) -> Result<(), Failure> {
        let odd = || {
            // The line may hold a password's hash, so it is not shown.
            Failure::new(
                FailureKind::Refused,
                "the server describes a grant in words that this version does not know",
            )
        };
        if let Some(rest) = line.strip_prefix("SET DEFAULT ROLE ") {
            let (role, _) = name(rest).ok_or_else(odd)?;
            self.add(Scope::DefaultRole, [role]);
            return Ok(());
        }
        let rest = line.strip_prefix("GRANT ").ok_or_else(odd)?;
        let Some(on) = find_outside(rest, " ON ") else {
            let (role, rest) = name(rest).ok_or_else(odd)?;
            let admin = rest.ends_with(" WITH ADMIN OPTION");
            self.add(Scope::Roles, [if admin { format!("{role} WITH ADMIN OPTION") } else { role }]);
            return Ok(());
        };
        let (what, rest) = (&rest[..on], &rest[on + 4..]);
        let to = find_outside(rest, " TO ").ok_or_else(odd)?;
        let (on, rest) = (&rest[..to], &rest[to + 4..]);
        let mut what = parts(what);
        if rest.ends_with(" WITH GRANT OPTION") || rest.contains(" WITH GRANT OPTION ") {
            what.push(GRANT_OPTION.into());
        }
        self.add(Scope::parse(on), what);
        Ok(())
    }

    /// As plans show it and compare it, for these scopes.
    pub(crate) fn shown<'s>(&self, scopes: impl IntoIterator<Item = &'s Scope>) -> Value {
        Value::map(scopes.into_iter().map(|scope| {
            let held = self.on(scope);
            let held: Vec<&str> = held.iter().map(String::as_str).collect();
            let value = if held.is_empty() { Value::Null } else { Value::text(held.join(", ")) };
            (scope.to_string(), value)
        }))
    }
}

/// Where `wanted` stands outside of quotes.
fn find_outside(text: &str, wanted: &str) -> Option<usize> {
    let mut quote: Option<char> = None;
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            None if matches!(c, '`' | '\'') => quote = Some(c),
            None if text[at..].starts_with(wanted) => return Some(at),
            _ => {}
        }
    }
    None
}

/// Cuts `SELECT (a, b), INSERT` at its commas.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).collect()
}

/// A name, with or without quotes, and what follows it.
fn name(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next()?;
    if matches!(quote, '`' | '\'') {
        let end = text[1..].find(quote)? + 1;
        return Some((text[1..end].to_owned(), &text[end + 1..]));
    }
    let end = text.find(' ').unwrap_or(text.len());
    Some((text[..end].to_owned(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &[&str]) -> String {
        let mut grants = Grants::default();
        for line in lines {
            grants.read(line).unwrap();
        }
        let scopes: Vec<Scope> = grants.0.keys().cloned().collect();
        grants.shown(&scopes).to_string()
    }

    #[test]
    fn lines_of_the_server_read() {
        let text = shown(&[
            "GRANT `labsdbuser` TO `s1`@`%`",
            "GRANT RELOAD ON *.* TO `s1`@`%` IDENTIFIED BY PASSWORD '*24' WITH MAX_USER_CONNECTIONS 10",
            r"GRANT ALL PRIVILEGES ON `s1\_\_%`.* TO `s1`@`%`",
            r"GRANT SELECT, SHOW VIEW ON `%\_p`.* TO `s1`@`%`",
            "GRANT SELECT (`x`, `y`), INSERT ON `a`.`t` TO `s1`@`%` WITH GRANT OPTION",
            "SET DEFAULT ROLE `labsdbuser` FOR `s1`@`%`",
            "GRANT USAGE ON *.* TO `s2`@`%`",
            "GRANT `admin` TO `s1`@`%` WITH ADMIN OPTION",
        ]);
        for part in [
            r#""*.*":"RELOAD""#,
            r#""`s1\\_\\_%`.*":"ALL PRIVILEGES""#,
            r#""`%\\_p`.*":"SELECT, SHOW VIEW""#,
            r#""`a`.`t`":"GRANT OPTION, INSERT, SELECT (`x`, `y`)""#,
            r#""roles":"admin WITH ADMIN OPTION, labsdbuser""#,
            r#""default role":"labsdbuser""#,
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(Grants::default().read("REVOKE x").is_err());
    }

    #[test]
    fn a_scope_is_read_as_it_is_shown() {
        for scope in [
            Scope::Server,
            Scope::databases("", "s1__", "%"),
            Scope::Databases("a`b".into()),
            Scope::Roles,
            Scope::DefaultRole,
            Scope::Other("`a`.`t`".into()),
        ] {
            assert_eq!(Scope::parse(&scope.to_string()), scope);
        }
    }

    #[test]
    fn plain_text_in_a_pattern_stands_for_itself() {
        let own = Scope::databases("", "s1__", "%");
        assert_eq!(own.to_string(), r"`s1\_\_%`.*");
        for (database, covered) in
            [("s1__a", true), ("s1__", true), ("s12_a", false), ("s1a__", false), ("xs1__a", false)]
        {
            assert_eq!(own.covers(database), covered, "{database}");
        }
        // The same text without escaping reaches into other people's databases.
        assert!(Scope::Databases("s1__%".into()).covers("s12_a"));
        assert!(Scope::databases("%", "_p", "").covers("enwiki_p"));
        assert!(!Scope::databases("%", "_p", "").covers("enwikixp"));
        assert!(Scope::Databases("%a%b%".into()).covers("xxaxxbxx"));
        assert!(!Scope::Databases("%a%b".into()).covers("xxaxxbxx"));
    }

    #[test]
    fn everything_absorbs_its_parts() {
        let mut grants = Grants::default();
        let on = Scope::databases("", "a", "");
        grants.add(on.clone(), ALL_ON_DATABASES.map(str::to_owned));
        grants.add(on.clone(), [GRANT_OPTION.to_owned(), "SELECT".into()]);
        assert_eq!(grants.on(&on), BTreeSet::from([ALL.to_owned(), GRANT_OPTION.to_owned()]));
        assert!(grants.allow("a", &["TRIGGER", "SELECT"]));
        assert!(!grants.allow("b", &["SELECT"]));
    }
}
