//! The plugin on a folder, on a real mail server, on servers that break off, and before those who listen.

mod eavesdropped;
mod scripted;
mod suite;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use farrier_action::{ActionRegistry, Binding, NodeInfo, Now, ReadCx, Targets, WriteCx};
use farrier_model::{Effect, Failure, NodeName, RunId, Scope, Value};

pub(super) const PEOPLE: &str = r#""from": "farrier@example.org", "people": {"admins": ["a@example.org", "b@example.org"]},
    "only_to": ["example.org"]"#;

pub(super) struct Place {
    pub(super) folder: tempfile::TempDir,
    pub(super) targets: Arc<Targets>,
}

impl Place {
    /// A target with these settings besides the people.
    pub(super) fn with(settings: &str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let targets = targets(folder.path().to_owned(), settings);
        Place { folder, targets }
    }

    pub(super) fn secret(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.folder.path().join("password");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The mails in the folder `mails`, in the order of sending.
    pub(super) fn mails(&self) -> Vec<(String, String)> {
        let mut mails: Vec<(String, String)> = std::fs::read_dir(self.folder.path().join("mails"))
            .into_iter()
            .flatten()
            .map(|file| file.unwrap().path())
            .map(|path| {
                (
                    path.file_name().unwrap().to_string_lossy().into_owned(),
                    std::fs::read_to_string(&path).unwrap(),
                )
            })
            .collect();
        mails.sort();
        mails
    }
}

pub(super) fn targets(base_dir: PathBuf, settings: &str) -> Arc<Targets> {
    let config = json(&format!("{{{settings}, {PEOPLE}}}"));
    let binding = Binding { alias: "post".into(), kind: "mail".into(), config };
    let now = "2026-11-22T10:00:00Z".parse().unwrap();
    Arc::new(Targets::new(base_dir, vec![binding], BTreeMap::new()).at(Now::from_fn(move || now)))
}

pub(super) fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    registry
}

#[track_caller]
pub(super) fn json(text: &str) -> Value {
    Value::from_json(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

pub(super) async fn send(targets: &Arc<Targets>, input: &str) -> Result<Value, Failure> {
    let node = NodeInfo {
        run: RunId::at(0, [7; 10]),
        node: NodeName::step("s"),
        attempt: 1,
        effect_id: "EFFECT".into(),
    };
    let cx = ReadCx::new(targets.clone(), Scope::default(), node);
    let action = registry().bind("mail.send", &json(input))?;
    let planned = action.plan(&cx).await?;
    action.apply(&WriteCx::after_intent(cx), &planned.changes).await
}

#[test]
fn the_action_is_registered_and_its_example_is_a_step() {
    let mut registry = registry();
    let spec = &registry.catalog().actions["mail.send"];
    assert_eq!(spec.effect, Effect::Once);
    let step: Value = serde_saphyr::from_str(spec.example).unwrap();
    let (_, step) = step.as_map().unwrap().iter().next().unwrap();
    assert!(step.get("undo").is_some());
    assert!(registry.bind("mail.send", step.get("with").unwrap()).is_ok());
    let is = |url: &str| {
        registry.is_stand_in("mail", &json(&format!(r#"{{"url": "{url}", "from": "a@b.org"}}"#))).unwrap()
    };
    assert!(is("folder:a") && !is("folder:/a") && !is("smtp://localhost"));
    let identity = registry.identity("mail", &json(r#"{"url": "smtps://a/", "from": "a@b.org"}"#)).unwrap();
    assert_eq!(identity, "smtps://a as a@b.org");
    assert!(crate::register(&mut registry).is_err());
}
