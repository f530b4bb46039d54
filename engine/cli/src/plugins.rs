//! What this binary can do: every plugin, in alphabetical order. There is no other place where plugins are registered.

use farrier_action::{ActionRegistry, RegistryError};

/// A registry with every action and target kind.
///
/// # Errors
/// When two plugins claim one name.
pub fn registry() -> Result<ActionRegistry, RegistryError> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry)?;
    farrier_plugin_external::register(&mut registry)?;
    farrier_plugin_files::register(&mut registry)?;
    farrier_plugin_flow::register(&mut registry)?;
    farrier_plugin_host::register(&mut registry)?;
    farrier_plugin_http::register(&mut registry)?;
    farrier_plugin_k8s::register(&mut registry)?;
    farrier_plugin_ldap::register(&mut registry)?;
    farrier_plugin_mail::register(&mut registry)?;
    farrier_plugin_prometheus::register(&mut registry)?;
    farrier_plugin_sql::register(&mut registry)?;
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use farrier_model::spec::{ActionSpec, MARK, Risk};

    #[test]
    fn no_name_is_taken_twice_and_every_action_is_documented() {
        let registry = super::registry().unwrap();
        for (name, spec) in &registry.catalog().actions {
            assert!(!spec.summary.is_empty(), "`{name}` has no documentation");
            assert!(name.contains('.'), "`{name}` is not `plugin.verb`");
            assert!(!spec.example.is_empty(), "`{name}` has no example");
        }
        for (kind, spec) in &registry.catalog().targets {
            assert!(!spec.summary.is_empty(), "target kind `{kind}` has no documentation");
        }
    }

    /// Steps that examples speak of, each with the output that they use.
    const OTHERS: [(&str, &str); 7] = [
        (
            "dump",
            "{ uses: sql.dump, with: { target: database, database: s1__a, into: { target: homes, root: a, path: \
             [s1__a.sql] } }, undo: restore }",
        ),
        (
            "checked",
            "{ uses: files.check_archive, with: { target: homes, archive: \"${ steps.archive.file }\", \
             manifest: \"${ steps.archive.manifest }\" } }",
        ),
        (
            "archive",
            "{ uses: files.archive, with: { target: homes, source: { root: a, path: [b], owner: 1 }, \
             into: { root: c, path: [b.tgz] } }, undo: restore }",
        ),
        (
            "accounts",
            "{ uses: ldap.search, with: { target: people, base: dc=org, filter: (cn=*), \
             attributes: { cn: string, uidNumber: int, homeDirectory: string } } }",
        ),
        (
            "groups",
            "{ uses: ldap.search, with: { target: people, base: dc=org, filter: (cn=*), \
             attributes: { cn: string, member: list of dn } } }",
        ),
        (
            "recorded",
            "{ uses: sql.query, with: { target: records, sql: SELECT * FROM a, \
             columns: { username: string, last_seen: string } } }",
        ),
        (
            "present",
            "{ uses: sql.query, with: { target: records, sql: SELECT * FROM b, \
             columns: { username: string, last_seen: string } } }",
        ),
    ];

    /// A runbook around an example: the targets that it names, the input and the steps that it speaks of.
    fn around(spec: &ActionSpec) -> String {
        let id = spec.example.split(':').next().unwrap();
        let mut targets = String::new();
        for (field, schema) in spec.input["properties"].as_object().into_iter().flatten() {
            // The field itself, or a place in another target.
            let inner = [schema].into_iter().chain(schema["anyOf"].as_array().into_iter().flatten());
            let inner =
                inner.map(|schema| (&schema["properties"]["target"], format!("{field}: {{ target: ")));
            for (schema, before) in inner.chain([(schema, format!("{field}: "))]) {
                let kind = schema[MARK].as_str().and_then(|mark| mark.strip_prefix("target:"));
                let alias = spec.example.split_once(&before).map(|(_, rest)| {
                    rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap()
                });
                if let (Some(kind), Some(alias)) = (kind, alias)
                    && !targets.contains(&format!("  {alias}: "))
                {
                    targets.push_str(&format!("  {alias}: {kind}\n"));
                }
            }
        }
        let mut steps = String::new();
        let mut writes = spec.risk;
        for (other, text) in OTHERS {
            let mentioned = format!("steps.{other}.");
            if id != other && (spec.example.contains(&mentioned) || steps.contains(&mentioned)) {
                steps.push_str(&format!("  {other}: {text}\n"));
                let (alias, kind) = match text {
                    _ if text.contains("ldap.") => ("people", "ldap"),
                    _ if text.contains("sql.dump") => ("database", "sql"),
                    _ if text.contains("files.") => ("homes", "files"),
                    _ => ("records", "sql"),
                };
                if text.contains("undo: restore") {
                    writes = writes.max(Risk::Recoverable);
                }
                if !targets.contains(alias) {
                    targets.push_str(&format!("  {alias}: {kind}\n"));
                }
            }
        }
        for line in spec.example.lines() {
            steps.push_str(&format!("  {line}\n"));
        }
        let risk = match writes {
            Risk::ReadOnly => "read_only",
            Risk::Recoverable => "recoverable",
            Risk::Destructive => "destructive",
        };
        let targets = if targets.is_empty() { String::new() } else { format!("targets:\n{targets}") };
        let inputs = if spec.example.contains("inputs.project") {
            "inputs: { project: { type: string, default: tools } }\n"
        } else {
            ""
        };
        format!(
            "runbook: example\nsummary: An example\nowner: someone\nrisk: {risk}\n{targets}{inputs}steps:\n{steps}"
        )
    }

    #[test]
    fn every_example_compiles() {
        let registry = super::registry().unwrap();
        let mut wrong = Vec::new();
        for (name, spec) in &registry.catalog().actions {
            let text = around(spec);
            let sources = [("example".into(), text.as_str().into())].into();
            if let Err(diagnostics) = farrier_runbook::compile_bundle("example", &sources, registry.catalog())
            {
                wrong.push(format!("{name}:\n{text}\n{}", diagnostics.render(false)));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
