//! `http.variables` and `http.drop_variables`: on the stand-in's shelf, and on a server that serves it.

use std::collections::BTreeMap;
use std::sync::Arc;

use farrier_action::harness::{Case, World};
use farrier_action::{ActionRegistry, Binding, Planned, Targets, WriteCx};
use farrier_model::{ChangeKind, Failure, FailureKind, Scope, Value};
use futures_util::FutureExt as _;

use super::{Place, cx, json};

const PASSWORD: &str = "pass+word'of<nobody>";
const OTHER: &str = "an0therPassw0rd";
const SHELF: &str = "{ path: [tool, \"*\", envvars], list: envvars }";

fn registry() -> ActionRegistry {
    let mut registry = super::registry();
    farrier_plugin_files::register(&mut registry).unwrap();
    registry
}

/// A place that keeps variables, after what `routes` answer, and the homes of `tools`, each with a file.
async fn site(server: bool, routes: &str, tools: &[&str]) -> Place {
    let mut place = Place::routes();
    std::fs::write(place.path("routes.yaml"), format!("variables: [{SHELF}]\nroutes: {routes}\n")).unwrap();
    if server {
        place.serve().await;
    }
    for tool in tools {
        write(&place, tool, PASSWORD);
    }
    place
}

fn write(place: &Place, tool: &str, password: &str) {
    let home = place.path("homes").join(tool);
    std::fs::create_dir_all(&home).unwrap();
    let text = format!("[client]\nuser = s-{tool}\npassword = {password}\n");
    std::fs::write(home.join("replica.my.cnf"), text).unwrap();
}

fn targets(place: &Place, more: &str) -> Arc<Targets> {
    targets_of(place, place.config(more))
}

fn targets_of(place: &Place, config: Value) -> Arc<Targets> {
    let homes = format!(r#"{{"roots": {{"homes": "{}"}}}}"#, place.path("homes").display());
    std::fs::create_dir_all(place.path("homes")).unwrap();
    let bindings = vec![
        Binding { alias: "feed".into(), kind: "http".into(), config },
        Binding { alias: "homes".into(), kind: "files".into(), config: json(&homes) },
    ];
    Arc::new(Targets::new(place.path(""), bindings, BTreeMap::new()))
}

fn input(tools: &[&str]) -> Value {
    let owner = |tool: &&str| {
        format!(
            r#"{{"name": "{tool}", "path": ["tool", "{tool}", "envvars"], "file": ["{tool}", "replica.my.cnf"]}}"#
        )
    };
    let owners: Vec<String> = tools.iter().map(owner).collect();
    json(&format!(
        r#"{{"target": "feed", "list": "envvars", "set": {{"A_USER": "user", "A_PASSWORD": "password"}},
            "files": "homes", "root": "homes", "owners": [{}]}}"#,
        owners.join(", ")
    ))
}

fn drops(tool: &str) -> Value {
    json(&format!(
        r#"{{"target": "feed", "list": "envvars", "path": ["tool", "{tool}", "envvars"], "variables": ["A_USER", "A_PASSWORD"]}}"#
    ))
}

async fn plan(targets: &Arc<Targets>, action: &str, input: &Value) -> Result<Planned<Value>, Failure> {
    registry().bind(action, input)?.plan(&cx(targets, "effect")).await
}

async fn apply(
    targets: &Arc<Targets>,
    action: &str,
    input: &Value,
    planned: &Planned<Value>,
) -> Result<Value, Failure> {
    registry()
        .bind(action, input)?
        .apply(&WriteCx::after_intent(cx(targets, "effect")), &planned.changes)
        .await
}

/// What is kept of a tool, by the requests that came and were answered well.
fn kept(place: &Place, tool: &str) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    for request in place.requests() {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let path: Vec<String> =
            request.get("path").unwrap().as_list().unwrap().iter().map(|part| text(Some(part))).collect();
        let done = request.get("status").and_then(Value::as_int).is_some_and(|status| status < 300);
        if !done || path.get(1).map(String::as_str) != Some(tool) || request.get("kept").is_none() {
            continue;
        }
        match (&*text(request.get("method")), path.get(3)) {
            ("POST", None) => {
                let body = request.get("body").unwrap();
                kept.insert(text(body.get("name")), text(body.get("value")));
            }
            ("DELETE", Some(name)) => drop(kept.remove(name)),
            _ => {}
        }
    }
    kept
}

fn wanted(tool: &str, password: &str) -> BTreeMap<String, String> {
    [("A_USER", format!("s-{tool}")), ("A_PASSWORD", password.to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// Sets a variable past the action.
async fn set(place: &Place, tool: &str, name: &str, value: &str) {
    let body = format!(
        r#"{{"target": "feed", "path": ["tool", "{tool}", "envvars"], "json": {{"name": "{name}", "value": "{value}"}}}}"#
    );
    super::apply(&targets(place, "{}"), "http.send", &body, "E").await.unwrap();
}

#[track_caller]
fn holds_no_secret(shown: &str) {
    for secret in [PASSWORD, OTHER] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

async fn prove(server: bool) {
    let registry = registry();
    let place = site(server, "[]", &["one", "two"]).await;
    let observe_sets = || {
        let of =
            |tool: &str| (format!("variables of {tool}"), Value::text(format!("{:?}", kept(&place, tool))));
        World::from(["one", "two"].map(of))
    };
    let bad = |input: &str, from: &str, to: &str| json(&input.replace(from, to));
    let text = input(&["one", "two"]).to_json();
    let owners_twice = input(&["one", "one"]);
    let case = Case {
        registry: &registry,
        action: "http.variables",
        input: input(&["one", "two"]),
        targets: targets(&place, "{}"),
        scope: Scope::default(),
        observe: Box::new(|| async { observe_sets() }.boxed()),
        disturb: None,
        bad_inputs: vec![
            owners_twice,
            bad(&text, r#"["tool","one","envvars"]"#, "[]"),
            bad(&text, r#"["tool","one","envvars"]"#, r#"["tool","..","envvars"]"#),
            bad(&text, r#"["one","replica.my.cnf"]"#, r#"["..","etc","passwd"]"#),
            bad(&text, r#""A_USER""#, r#""A=B""#),
            bad(&text, r#""A_USER""#, r#""1A""#),
            bad(&text, r#""A_USER""#, r#""A/../B""#),
            bad(&text, r#""files":"homes""#, r#""files":"feed""#),
        ],
    };
    let shown = case.prove().await.unwrap();
    holds_no_secret(&format!("{:?} {}", shown.plan, shown.output));
    assert_eq!(shown.plan.changes.len(), 2);
    assert!(shown.plan.changes.iter().all(|change| change.kind == ChangeKind::Create));
    assert_eq!(
        shown.plan.changes[0].after.to_json(),
        r#"{"A_PASSWORD":"password in homes/one/replica.my.cnf","A_USER":"user in homes/one/replica.my.cnf"}"#
    );
    assert_eq!(kept(&place, "one"), wanted("one", PASSWORD));

    set(&place, "one", "B", "stays").await;
    let observe_drops = || {
        let of = |name: &str| {
            let value = kept(&place, "one").get(name).cloned();
            value.map(|value| (format!("variable {name} at /tool/one/envvars"), Value::text(value)))
        };
        ["A_USER", "A_PASSWORD", "B"].into_iter().filter_map(of).collect::<World>()
    };
    let text = drops("one").to_json();
    let case = Case {
        registry: &registry,
        action: "http.drop_variables",
        input: drops("one"),
        targets: targets(&place, "{}"),
        scope: Scope::default(),
        observe: Box::new(|| async { observe_drops() }.boxed()),
        disturb: None,
        bad_inputs: vec![
            bad(&text, r#"["tool","one","envvars"]"#, "[]"),
            bad(&text, r#""A_USER""#, r#""..""#),
            bad(&text, r#""A_USER""#, r#""""#),
        ],
    };
    let shown = case.prove().await.unwrap();
    holds_no_secret(&format!("{:?} {}", shown.plan, shown.output));
    assert_eq!(kept(&place, "one"), BTreeMap::from([("B".to_owned(), "stays".to_owned())]));
    assert_eq!(kept(&place, "two"), wanted("two", PASSWORD));
}

#[tokio::test]
async fn the_laws_hold_on_the_stand_in() {
    prove(false).await;
}

#[tokio::test]
async fn the_laws_hold_on_a_server_of_variables() {
    prove(true).await;
}

#[tokio::test]
async fn the_file_wins() {
    let place = site(true, "[]", &["one"]).await;
    let (targets, input) = (targets(&place, "{}"), input(&["one", "homeless"]));
    set(&place, "one", "A_PASSWORD", OTHER).await;
    let planned = plan(&targets, "http.variables", &input).await.unwrap();
    let change = &planned.changes[0];
    assert_eq!(change.kind, ChangeKind::Update);
    assert_eq!(change.before.to_json(), r#"{"A_PASSWORD":"another one"}"#);
    holds_no_secret(&format!("{planned:?}"));
    // What is in the file when it is set is what counts.
    write(&place, "one", "a-third");
    let output = apply(&targets, "http.variables", &input, &planned).await.unwrap();
    assert_eq!(output.to_json(), r#"{"set":["one"],"without_a_file":["homeless"],"refused":[]}"#);
    assert_eq!(kept(&place, "one"), wanted("one", "a-third"));
    // Once more, after an answer that was lost.
    apply(&targets, "http.variables", &input, &planned).await.unwrap();
    let requests = place.requests().len();
    assert!(plan(&targets, "http.variables", &input).await.unwrap().changes.is_empty());
    assert_eq!(place.requests().len(), requests);
}

#[tokio::test]
async fn what_came_in_between_is_not_written_over() {
    let place = site(false, "[]", &["one"]).await;
    let (targets, input) = (targets(&place, "{}"), input(&["one"]));
    let planned = plan(&targets, "http.variables", &input).await.unwrap();
    set(&place, "one", "A_PASSWORD", OTHER).await;
    let failure = apply(&targets, "http.variables", &input, &planned).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert_eq!(kept(&place, "one")["A_PASSWORD"], OTHER);
    // The other way round: what was to be replaced is gone.
    let planned = plan(&targets, "http.variables", &input).await.unwrap();
    apply(
        &targets,
        "http.drop_variables",
        &drops("one"),
        &plan(&targets, "http.drop_variables", &drops("one")).await.unwrap(),
    )
    .await
    .unwrap();
    let failure = apply(&targets, "http.variables", &input, &planned).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    std::fs::remove_file(place.path("homes/one/replica.my.cnf")).unwrap();
    let failure = apply(&targets, "http.variables", &input, &planned).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(kept(&place, "one").is_empty());
}

/// Answers of one tool's shelf that are of no use, and what is said of them.
const HOSTILE: [(&str, &str); 9] = [
    (
        "{ status: 200, text: '<html>SECRET</html>' }",
        "was not answered with a list of variables in `envvars`",
    ),
    ("{ json: { envvars: { A_PASSWORD: SECRET } } }", "was not answered with a list"),
    ("{ json: { envvars: [{ name: A_PASSWORD, value: 7 }] } }", "was not answered with a list"),
    (
        "{ json: { envvars: [{ name: B, value: SECRET }, { name: B, value: b }] } }",
        "was not answered with a list",
    ),
    ("{ json: [] }", "was not answered with a list"),
    ("{ status: 302, headers: { location: 'http://127.0.0.1/SECRET' } }", "was answered with 302"),
    ("{ status: 403, text: 'SECRET is not yours' }", "was answered with 403"),
    ("{ status: 500, text: 'cannot read SECRET' }", "was answered with 500"),
    ("{ fault: cut, json: { envvars: [] } }", "did not come whole"),
];

#[tokio::test]
async fn answers_that_mean_no_good_cost_one_owner() {
    for (answer, reason) in HOSTILE {
        for server in [false, true] {
            let answer = answer.replace("SECRET", OTHER);
            let routes = format!("[{{ path: [tool, bad, envvars], answers: [{answer}] }}]");
            let place = site(server, &routes, &["bad", "good"]).await;
            let (targets, input) = (targets(&place, "{}"), input(&["bad", "good"]));
            let planned = plan(&targets, "http.variables", &input).await.unwrap();
            let output = apply(&targets, "http.variables", &input, &planned).await.unwrap();
            let shown = format!("{planned:?} {output}");
            holds_no_secret(&shown);
            assert!(shown.contains(reason), "{answer}: {shown}");
            assert_eq!(output.get("set").unwrap().to_json(), r#"["good"]"#);
            assert_eq!(kept(&place, "good"), wanted("good", PASSWORD));
            let failure = plan(&targets, "http.drop_variables", &drops("bad")).await.unwrap_err();
            holds_no_secret(&format!("{failure:?}"));
            assert!(failure.message.contains(reason), "{failure}");
        }
    }
}

#[tokio::test]
async fn an_answer_without_end_is_too_much() {
    let long = format!(
        "[{{ path: [tool, bad, envvars], answers: [{{ json: {{ envvars: [], more: {} }} }}] }}]",
        "x".repeat(5000)
    );
    let place = site(true, &long, &["bad", "good"]).await;
    let targets = targets(&place, r#"{"size_limit": 4000}"#);
    let planned = plan(&targets, "http.variables", &input(&["bad", "good"])).await.unwrap();
    assert!(planned.notes[0].contains("has more than 4000 bytes"), "{planned:?}");
    assert_eq!(&*planned.changes[0].object, "variables of good");
}

#[tokio::test]
async fn a_server_that_does_not_keep_its_word_is_told_about() {
    let post =
        |answer: &str| format!("[{{ method: POST, path: [tool, one, envvars], answers: [{answer}] }}]");
    for (answer, reason) in [
        ("{ status: 201 }", "the server took `A_PASSWORD` of one and has another value"),
        ("{ status: 500, text: no }", "POST /tool/one/envvars was answered with 500"),
        ("{ fault: lost }", "POST /tool/one/envvars did not come whole"),
    ] {
        let place = site(true, &post(answer), &["one"]).await;
        let (targets, input) = (targets(&place, "{}"), input(&["one"]));
        let planned = plan(&targets, "http.variables", &input).await.unwrap();
        let output = apply(&targets, "http.variables", &input, &planned).await.unwrap();
        assert!(output.to_json().contains(reason), "{output}");
        holds_no_secret(&output.to_json());
    }
    // One that replaces nothing is made to.
    let place = site(true, &post("{ status: 409 }, { status: 409 }"), &["one"]).await;
    let targets = targets(&place, "{}");
    let output = {
        let planned = plan(&targets, "http.variables", &input(&["one"])).await.unwrap();
        apply(&targets, "http.variables", &input(&["one"]), &planned).await.unwrap()
    };
    assert!(output.to_json().contains("was answered with 409"), "{output}");
    let asked: Vec<String> =
        place.requests().iter().map(|request| request.get("method").unwrap().to_string()).collect();
    assert_eq!(asked, ["POST", "DELETE", "POST"]);
}

#[tokio::test]
async fn when_nobody_is_served_the_step_fails() {
    let names: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let routes = "[{ path: [tool, '*', envvars], answers: [{ status: 503 }] }]";
    let place = site(false, routes, &names).await;
    let failure = plan(&targets(&place, "{}"), "http.variables", &input(&names)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    let planned = plan(&targets(&place, "{}"), "http.variables", &input(&names[..9])).await.unwrap();
    assert_eq!(planned.output.unwrap().get("refused").unwrap().as_list().unwrap().len(), 9);
}

#[tokio::test]
async fn a_file_that_says_too_little_costs_its_owner() {
    let place = site(false, "[]", &["one", "two"]).await;
    std::fs::write(place.path("homes/one/replica.my.cnf"), format!("user = {OTHER}\n")).unwrap();
    let planned = plan(&targets(&place, "{}"), "http.variables", &input(&["one", "two"])).await.unwrap();
    let shown = format!("{planned:?}");
    assert!(shown.contains("`homes/one/replica.my.cnf` has no `password`"), "{shown}");
    holds_no_secret(&shown);
    assert_eq!(planned.changes.len(), 1);
}

#[tokio::test]
async fn values_stay_off_plain_lines() {
    let place = site(false, "[]", &["one"]).await;
    let targets = targets_of(&place, json(r#"{"url": "http://example.org"}"#));
    for (action, input) in [("http.variables", input(&["one"])), ("http.drop_variables", drops("one"))] {
        let failure = plan(&targets, action, &input).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Denied);
        assert_eq!(failure.message, "variables would cross the network in the clear");
    }
}

#[tokio::test]
async fn an_owner_whom_the_server_does_not_know_has_nothing_to_remove() {
    let place = site(false, "[{ path: [tool, gone, envvars], answers: [{ status: 404 }] }]", &[]).await;
    let planned = plan(&targets(&place, "{}"), "http.drop_variables", &drops("gone")).await.unwrap();
    assert!(planned.changes.is_empty());
}
