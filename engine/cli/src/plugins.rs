//! What this binary can do: every plugin, in alphabetical order. There is no other place where plugins are registered.

use farrier_action::{ActionRegistry, RegistryError};

/// A registry with every action and target kind.
///
/// # Errors
/// When two plugins claim one name.
pub fn registry() -> Result<ActionRegistry, RegistryError> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry)?;
    farrier_plugin_files::register(&mut registry)?;
    farrier_plugin_flow::register(&mut registry)?;
    farrier_plugin_host::register(&mut registry)?;
    farrier_plugin_ldap::register(&mut registry)?;
    farrier_plugin_sql::register(&mut registry)?;
    Ok(registry)
}

#[cfg(test)]
mod tests {
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
}
