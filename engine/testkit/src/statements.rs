//! Telling statements that write from statements that only read, for "a plan wrote nothing" checks.

/// Those of `statements` that are not known to be reads. A check for "wrote nothing" has to fail on a statement it
/// does not know, so everything unknown counts as a write.
pub fn writes(statements: &[String]) -> Vec<String> {
    statements.iter().filter(|statement| !reads_only(statement)).cloned().collect()
}

/// Whether `statement` only reads, or only sets up its own session.
pub fn reads_only(statement: &str) -> bool {
    let words = words(statement);
    let Some(first) = words.first() else { return true };
    let has = |word: &str| words.iter().any(|other| other == word);
    match first.as_str() {
        "show" | "describe" | "desc" | "use" | "begin" | "start" | "commit" | "rollback" | "savepoint"
        | "release" | "values" | "table" | "deallocate" | "discard" | "close" | "fetch" => true,
        "select" => !has("into"),
        // In PostgreSQL a common table expression can write, and EXPLAIN ANALYZE runs its statement.
        "with" | "explain" | "analyze" | "declare" | "prepare" => {
            !["insert", "update", "delete", "merge", "into", "replace"].iter().any(|word| has(word))
                && (first != "analyze" || has("select"))
        }
        "set" => !has("global") && !has("password"),
        _ => false,
    }
}

/// The words of a statement in lower case, without comments, quoted names and strings.
fn words(statement: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = statement;
    while let Some(start) = rest.chars().next() {
        let after_first = &rest[start.len_utf8()..];
        rest = if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, after)| after)
        } else if rest.starts_with("-- ") || start == '#' {
            rest.split_once('\n').map_or("", |(_, after)| after)
        } else if matches!(start, '\'' | '"' | '`') {
            after_first.split_once(start).map_or("", |(_, after)| after)
        } else if start.is_alphanumeric() || start == '_' {
            let end = rest.find(|other: char| !other.is_alphanumeric() && other != '_').unwrap_or(rest.len());
            words.push(rest[..end].to_lowercase());
            &rest[end..]
        } else {
            after_first
        };
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_told_from_writes() {
        let cases = [
            ("SELECT name FROM tools WHERE note = 'insert into x'", true),
            ("  /* hint */ select 1 -- delete\n", true),
            ("(select 1) union (select 2)", true),
            ("SELECT `into` FROM t FOR UPDATE", true),
            ("SHOW TABLES", true),
            ("SET SESSION TRANSACTION READ ONLY", true),
            ("START TRANSACTION READ ONLY", true),
            ("with a as (select 1) select * from a", true),
            ("EXPLAIN SELECT 1", true),
            ("", true),
            ("SELECT 1 INTO OUTFILE '/tmp/x'", false),
            ("select * into copy from t", false),
            ("with a as (delete from t returning *) select * from a", false),
            ("EXPLAIN ANALYZE UPDATE t SET a = 1", false),
            ("ANALYZE TABLE t", false),
            ("SET GLOBAL read_only = 1", false),
            ("INSERT INTO t VALUES (1)", false),
            ("# note\nDROP DATABASE x", false),
            ("GRANT SELECT ON x.* TO y", false),
            ("call clean_up()", false),
            ("LOCK TABLES t WRITE", false),
        ];
        for (statement, expected) in cases {
            assert_eq!(reads_only(statement), expected, "{statement}");
        }
    }

    #[test]
    fn only_the_writes_are_kept() {
        let statements = ["SELECT 1", "DELETE FROM t", "SHOW TABLES"].map(str::to_owned);
        assert_eq!(writes(&statements), ["DELETE FROM t"]);
    }
}
