//! The plugin against recorded routes and against a server: the same suite on both.

mod certificates;
mod hostile;
mod laws;
mod server;
mod suite;
mod variables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use farrier_action::harness::World;
use farrier_action::{ActionRegistry, Binding, NodeInfo, Planned, ReadCx, Targets, WriteCx};
use farrier_model::{Effect, Failure, NodeName, RunId, Scope, Value};

use server::Server;

const ROUTES: &str = include_str!("routes.yaml");

/// Recorded routes, alone or behind a server.
pub(super) struct Place {
    folder: tempfile::TempDir,
    server: Option<Server>,
}

impl Place {
    pub(super) fn routes() -> Place {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("routes.yaml"), ROUTES).unwrap();
        Place { folder, server: None }
    }

    pub(super) async fn server() -> Place {
        let mut place = Place::routes();
        place.serve().await;
        place
    }

    /// Puts a server before the routes.
    pub(super) async fn serve(&mut self) {
        self.server = Some(Server::start(&self.path("routes.yaml"), &self.path(STATE)).await);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The entry of an environment, without `kind`, with these fields besides the address.
    pub(super) fn config(&self, more: &str) -> Value {
        let url = self.server.as_ref().map_or_else(|| "routes:routes.yaml".into(), Server::url);
        let mut fields =
            vec![("url", Value::text(url)), ("write_as", Value::map([("bearer", secret(self))]))];
        if self.server.is_some() {
            fields.push(("idempotency_header", Value::text("Idempotency-Key")));
        }
        let more = json(more);
        fields.extend(more.as_map().unwrap().iter().map(|(name, value)| (&**name, value.clone())));
        Value::map(fields)
    }

    pub(super) fn targets_of(&self, config: Value) -> Arc<Targets> {
        let binding = Binding { alias: "feed".into(), kind: "http".into(), config };
        Arc::new(Targets::new(self.folder.path().to_owned(), vec![binding], BTreeMap::new()))
    }

    pub(super) fn targets(&self) -> Arc<Targets> {
        self.targets_of(self.config("{}"))
    }

    /// The requests that were recorded.
    pub(super) fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(STATE)).unwrap_or_default();
        text.lines().map(json).collect()
    }

    /// What was asked that changes something, once each.
    pub(super) fn world(&self) -> World {
        let mut world = World::new();
        for request in self.requests() {
            if request.get("repeated").is_some() || request.get("method") == Some(&Value::text("GET")) {
                continue;
            }
            let path: Vec<&str> =
                request.get("path").unwrap().as_list().unwrap().iter().filter_map(Value::as_str).collect();
            let base = match &self.server {
                Some(server) => server.url(),
                None => "http://routes.invalid".into(),
            };
            let method = request.get("method").unwrap();
            let object = format!("{method} {base}/{}", path.join("/"));
            world.insert(object, request.get("body").unwrap().clone());
        }
        world
    }
}

const STATE: &str = "routes.yaml.requests.jsonl";
pub(super) const TOKEN: &str = "t0ken-that-nobody-may-see";

/// A reference to a secret in a private file.
fn secret(place: &Place) -> Value {
    use std::os::unix::fs::PermissionsExt as _;
    let path = place.path("token");
    std::fs::write(&path, TOKEN).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Value::map([("file", Value::text("token"))])
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

pub(super) fn cx(targets: &Arc<Targets>, effect_id: &str) -> ReadCx {
    let node = NodeInfo {
        run: RunId::at(0, [7; 10]),
        node: NodeName::step("s"),
        attempt: 1,
        effect_id: effect_id.into(),
    };
    ReadCx::new(targets.clone(), Scope::default(), node)
}

pub(super) async fn plan(
    targets: &Arc<Targets>,
    action: &str,
    input: &str,
) -> Result<Planned<Value>, Failure> {
    registry().bind(action, &json(input))?.plan(&cx(targets, "effect")).await
}

pub(super) async fn apply(
    targets: &Arc<Targets>,
    action: &str,
    input: &str,
    effect_id: &str,
) -> Result<Value, Failure> {
    let cx = cx(targets, effect_id);
    let action = registry().bind(action, &json(input))?;
    let planned = action.plan(&cx).await?;
    action.apply(&WriteCx::after_intent(cx), &planned.changes).await
}

#[test]
fn every_action_is_registered_once_and_its_example_is_a_step() {
    let mut registry = registry();
    let names: Vec<&str> = registry.catalog().actions.keys().copied().collect();
    assert_eq!(
        names,
        [
            "http.certificate",
            "http.delete",
            "http.drop_variables",
            "http.get",
            "http.request",
            "http.send",
            "http.variables"
        ]
    );
    for spec in registry.catalog().actions.values() {
        let step: Value = serde_saphyr::from_str(spec.example).unwrap();
        let (_, step) = step.as_map().unwrap().iter().next().unwrap();
        assert_eq!(step.get("uses").and_then(Value::as_str), Some(spec.name));
        assert!(spec.effect == Effect::Read || step.get("undo").is_some(), "{}", spec.name);
        if let Err(failure) = registry.bind(spec.name, step.get("with").unwrap()) {
            panic!("the example of {}: {failure}", spec.name);
        }
    }
    assert_eq!(registry.catalog().actions["http.request"].effect, Effect::Keyed);
    assert_eq!(registry.catalog().actions["http.send"].effect, Effect::Once);
    assert!(crate::register(&mut registry).is_err());
}

#[test]
fn only_relative_routes_are_a_stand_in() {
    let is = |config: &str| registry().is_stand_in("http", &json(config)).unwrap();
    assert!(is(r#"{"url": "routes:a.yaml"}"#));
    assert!(!is(r#"{"url": "routes:/a.yaml"}"#));
    assert!(!is(r#"{"url": "routes:a.yaml", "state": "/tmp/a"}"#));
    assert!(!is(r#"{"url": "https://example.org"}"#));
    let identity = registry().identity("http", &json(r#"{"url": "https://example.org/a/"}"#)).unwrap();
    assert_eq!(identity, "https://example.org/a");
}

/// The example of the manual, as a user would write it down.
#[tokio::test]
async fn the_manuals_routes_answer() {
    let page = include_str!("../../../../site/manual/environments.md");
    let (_, example) = page.split_once("```yaml stand-in http\n").unwrap();
    let place = Place::routes();
    std::fs::write(place.path("routes.yaml"), example.split_once("```").unwrap().0).unwrap();
    let targets = place.targets();
    let health = r#"{"target": "feed", "path": ["health"]}"#;
    plan(&targets, "http.get", health).await.unwrap_err();
    plan(&targets, "http.get", health).await.unwrap();
    let tool = r#"{"target": "feed", "path": ["tools", "a"], "query": {"detail": "full", "x": 1}}"#;
    plan(&targets, "http.get", tool).await.unwrap();
    let entry = r#"{"target": "feed", "path": ["sal", "7"]}"#;
    assert!(plan(&targets, "http.get", entry).await.is_err());
    let post = r#"{"target": "feed", "path": ["sal"], "json": {"message": "done"}}"#;
    assert!(apply(&targets, "http.request", post, "E").await.unwrap_err().in_doubt);
    assert_eq!(
        apply(&targets, "http.request", post, "E").await.unwrap().get("status"),
        Some(&Value::Int(201))
    );
    plan(&targets, "http.get", entry).await.unwrap();
    plan(&targets, "http.certificate", r#"{"target": "feed"}"#).await.unwrap();
    assert_eq!(place.world().len(), 1);
}
