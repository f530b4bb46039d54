//! `host.service`.

use std::collections::BTreeMap;

use farrier_action::duration::Length;
use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Fidelity, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fan_out::{Pace, Share, fan_out, silent, telling};
use crate::hosts::Names;
use crate::marks::Marks;
use crate::target::{Choice, Host, HostTarget};
use crate::transport::{Service as Unit, Verb};

/// Makes a service run or not, start with the machine or not, and starts it anew.
///
/// What is already so is no change. `undo: restore` brings back what was; a service that was started anew stays as it is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The machines.
    target: Target<HostTarget>,
    /// The name of a host, or a list of names. Left out where the target is a single machine.
    #[serde(default)]
    hosts: Option<Names>,
    /// A set of hosts, instead of `hosts`, as in `host.run`.
    #[serde(default)]
    select: Option<Literal>,
    /// Names, or lists of names, that `select` knows as `@NAME`, as in `host.run`.
    #[serde(default)]
    sets: BTreeMap<String, Names>,
    /// Hosts to leave out of the set.
    #[serde(default)]
    except: Option<Names>,
    /// The service manager's name for it, such as `exim4` or `nfs-server.service`.
    name: String,
    /// Whether it runs. Left out, that stays as it is.
    #[serde(default)]
    running: Option<bool>,
    /// Whether it starts with the machine. Left out, that stays as it is.
    #[serde(default)]
    enabled: Option<bool>,
    /// Starts it anew, whether it runs or not.
    #[serde(default)]
    restart: bool,
    /// How many hosts at once: a number or a share such as `30%`. The default is 32.
    #[serde(default)]
    batch: Option<Share>,
    /// The next batch begins only when all of the one before is done.
    #[serde(default)]
    whole_batches: bool,
    /// A pause after each host before the next takes its place; with `whole_batches`, between batches.
    #[serde(default)]
    pause: Option<Length>,
}

/// How services are now.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Services {
    /// One entry for each host, in order.
    hosts: Vec<ServiceState>,
    /// The names of the hosts where something changed.
    changed: Vec<String>,
}

/// How it is on one host.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ServiceState {
    /// The host.
    host: String,
    /// Whether it runs.
    running: bool,
    /// Whether it starts with the machine; nothing for a service that cannot be enabled.
    enabled: Option<bool>,
}

impl Action for Service {
    const NAME: &'static str = "host.service";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
mail:
  uses: host.service
  with: { target: nodes, select: 'tools-mail-[1-2]', name: exim4, running: true, enabled: true, batch: 1 }
  undo: restore
";
    type Output = Services;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Services>, Failure> {
        self.check()?;
        let host = cx.reader(&self.target).await?;
        let at_target = |failure: Failure| failure.at(self.target.alias());
        let choice = Choice::of(self.hosts.as_ref(), self.select.as_ref(), &self.sets, self.except.as_ref());
        let chosen = host.choose(choice).map_err(at_target)?;
        let units = self.look(&host, &chosen, cx).await.map_err(at_target)?;
        let (mut changes, mut after, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        for (name, unit) in chosen.iter().zip(units) {
            if self.enabled.is_some() && unit.enabled.is_none() {
                let message =
                    format!("the service `{}` of the host `{name}` cannot be enabled or disabled", self.name);
                return Err(at_target(Failure::new(FailureKind::Refused, message)));
            }
            let wanted = self.wanted(unit);
            let before = changes.len();
            if wanted != unit {
                changes.push(self.change(host.named(name), unit, wanted));
            }
            if self.restart {
                changes.push(self.restart(host.named(name), unit));
            }
            if changes.len() > before {
                changed.push(name.clone());
            }
            let running = wanted.running || self.restart;
            after.push(ServiceState { host: name.clone(), running, enabled: wanted.enabled });
        }
        let fidelity = if self.restart { Fidelity::Described } else { Fidelity::Computed };
        let planned = Planned::changes(changes, Services { hosts: after, changed }).considered(chosen.len());
        Ok(Planned { fidelity, ..planned })
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Services, Failure> {
        self.check()?;
        let host = cx.writer(&self.target).await?;
        let choice = Choice::of(self.hosts.as_ref(), self.select.as_ref(), &self.sets, self.except.as_ref());
        let chosen = host.choose(choice).map_err(|failure| failure.at(self.target.alias()))?;
        let changed = self.make(&host, changes, Side::After, cx).await?;
        let units = self.look(&host, &chosen, cx).await.map_err(|failure| failure.at(self.target.alias()))?;
        for (name, unit) in chosen.iter().zip(&units) {
            if !unit.running && (self.restart || self.running == Some(true)) {
                let message =
                    format!("the service `{}` of the host `{name}` was started and does not run", self.name);
                return Err(Failure::new(FailureKind::Exit, message).at(self.target.alias()));
            }
        }
        let hosts = chosen
            .into_iter()
            .zip(units)
            .map(|(host, unit)| ServiceState { host, running: unit.running, enabled: unit.enabled })
            .collect();
        Ok(Services { hosts, changed })
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let host = cx.writer(&self.target).await?;
        self.make(&host, changes, Side::Before, cx).await.map(drop)
    }
}

/// Which side of a change to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
}

impl Service {
    fn check(&self) -> Result<(), Failure> {
        let input = |message: String| Err(Failure::new(FailureKind::Input, message));
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@:\\".contains(&byte);
        if self.name.is_empty() || self.name.starts_with(['-', '.']) || !self.name.bytes().all(letters) {
            return input(format!("`name`: {:?} is not the name of a service", self.name));
        }
        if self.running.is_none() && self.enabled.is_none() && !self.restart {
            return input("it says neither `running` nor `enabled` nor `restart`".into());
        }
        if self.restart && self.running == Some(false) {
            return input("`restart` and `running: false` exclude each other".into());
        }
        Pace::new(1, self.batch, self.whole_batches, self.pause, None).map(drop)
    }

    fn wanted(&self, unit: Unit) -> Unit {
        let running = self.running.unwrap_or(unit.running);
        // A failed service that shall not run does not run.
        Unit { running, enabled: self.enabled.or(unit.enabled), failed: unit.failed && !running }
    }

    fn object(&self, host: Option<&str>) -> String {
        match host {
            Some(host) => format!("{host}: service {}", self.name),
            None => format!("service {}", self.name),
        }
    }

    /// Only what differs is part of it, so that nothing else is compared or written.
    fn change(&self, host: Option<&str>, unit: Unit, wanted: Unit) -> Change {
        let side = |side: Unit, more: Option<&str>| {
            let mut fields: Vec<(&str, Value)> =
                more.iter().map(|host| ("host", Value::text(*host))).collect();
            if unit.running != wanted.running {
                fields.push(("running", Value::Bool(side.running)));
            }
            if unit.enabled != wanted.enabled {
                fields.push(("enabled", side.enabled.map_or(Value::Null, Value::Bool)));
            }
            Value::map(fields)
        };
        Change {
            object: self.object(host).into(),
            kind: ChangeKind::Update,
            before: side(unit, None),
            after: side(wanted, host),
            fingerprint: None,
        }
    }

    fn restart(&self, host: Option<&str>, unit: Unit) -> Change {
        let mut after: Vec<(&str, Value)> = host.iter().map(|host| ("host", Value::text(*host))).collect();
        after.push(("restart", Value::Bool(true)));
        Change {
            object: self.object(host).into(),
            kind: ChangeKind::Run,
            before: Value::map([("running", Value::Bool(unit.running))]),
            after: Value::map(after),
            fingerprint: None,
        }
    }

    async fn look(&self, host: &Host, chosen: &[String], cx: &ReadCx) -> Result<Vec<Unit>, Failure> {
        let marks = Marks::of(cx.node());
        let pace = Pace::new(chosen.len(), None, false, None, None)?;
        let ask = async |at: usize| {
            let name = &chosen[at];
            let unit = host.transport.service(name, &self.name, &marks).await?;
            unit.ok_or_else(|| {
                let message = format!("the host `{name}` has no service `{}`", self.name);
                Failure::new(FailureKind::Refused, message)
            })
        };
        // Hosts that were not asked come after one that failed.
        fan_out(chosen, pace, ask, Result::is_err, telling(cx, chosen.len()))
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// Brings one side of changes about, host by host, comparing before. Gives the hosts where something was done.
    async fn make(
        &self,
        host: &Host,
        changes: &[Change],
        side: Side,
        cx: &WriteCx,
    ) -> Result<Vec<String>, Failure> {
        let not_planned = || Failure::new(FailureKind::Drift, "this is not what was planned");
        let mut hosts: Vec<String> = Vec::new();
        for change in changes {
            let name = host.of_change(change).ok_or_else(not_planned)?;
            if *change.object != *self.object(host.named(&name)) {
                return Err(not_planned());
            }
            if !hosts.contains(&name) {
                hosts.push(name);
            }
        }
        let marks = Marks::of(cx.node());
        let pace = Pace::new(hosts.len(), self.batch, self.whole_batches, self.pause, None)?;
        let look = async |at: usize| {
            let own = changes.iter().filter(|change| host.of_change(change).as_ref() == Some(&hosts[at]));
            for change in own {
                self.needed(host, &hosts[at], change, side, &marks).await?;
            }
            Ok::<_, Failure>(())
        };
        // All are looked at before one is changed, so that drift on one leaves all as they are.
        let looked =
            fan_out(&hosts, Pace::new(hosts.len(), None, false, None, None)?, look, Result::is_err, silent)
                .await;
        if let Some(failure) = looked.into_iter().flatten().find_map(Result::err) {
            return Err(failure.at(self.target.alias()));
        }
        let work = async |at: usize| {
            let name = &hosts[at];
            let own = changes.iter().filter(|change| host.of_change(change).as_ref() == Some(name));
            for change in own {
                for verb in self.needed(host, name, change, side, &marks).await? {
                    host.transport.set_service(name, &self.name, verb, &marks).await?;
                }
            }
            Ok::<_, Failure>(())
        };
        let outcomes = fan_out(&hosts, pace, work, Result::is_err, telling(cx, hosts.len())).await;
        let failed = outcomes.into_iter().flatten().find_map(Result::err);
        failed.map_or(Ok(hosts), |failure| Err(failure.at(self.target.alias())))
    }

    /// What brings one side of a change about on a host as it is now: nothing where it is so already.
    async fn needed(
        &self,
        host: &Host,
        name: &str,
        change: &Change,
        side: Side,
        marks: &Marks,
    ) -> Result<Vec<Verb>, Failure> {
        if change.kind == ChangeKind::Run {
            return Ok(if side == Side::After { vec![Verb::Restart] } else { Vec::new() });
        }
        let now = host.transport.service(name, &self.name, marks).await?;
        let field = |side: &Value, field: &str| side.get(field).and_then(Value::as_bool);
        let (from, to) = match side {
            Side::After => (&change.before, &change.after),
            Side::Before => (&change.after, &change.before),
        };
        let mut verbs = Vec::new();
        for (key, state, on, off) in [
            ("running", now.map(|unit| unit.running), Verb::Start, Verb::Stop),
            ("enabled", now.and_then(|unit| unit.enabled), Verb::Enable, Verb::Disable),
        ] {
            let (Some(from), Some(to)) = (field(from, key), field(to, key)) else { continue };
            match state {
                Some(state) if state == to => {}
                Some(state) if state == from => verbs.push(if to { on } else { off }),
                _ => {
                    let message =
                        format!("the service `{}` of the host `{name}` is not as it was", self.name);
                    return Err(Failure::new(FailureKind::Drift, message));
                }
            }
        }
        Ok(verbs)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tests::World;

    const HOSTS: &str = "hosts: { 'm-[1-3]': { services: { exim4: running disabled, nfs: failed } } }";

    fn input(more: serde_json::Value) -> serde_json::Value {
        let mut input = json!({ "target": "nodes", "select": "m-[1-2]", "name": "exim4" });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    }

    /// So that every host is in the state file from the start.
    async fn world() -> World {
        let world = World::scripted(HOSTS);
        let touch = json!({ "target": "nodes", "select": "@all", "name": "nfs", "restart": true });
        world.run("host.service", &touch).await.unwrap();
        world
    }

    #[tokio::test]
    async fn it_keeps_the_laws() {
        let world = world().await;
        let bad = [
            input(json!({})),
            input(json!({ "running": false, "restart": true })),
            input(json!({ "name": "-x", "running": true })),
            input(json!({ "name": "a b", "running": true })),
            input(json!({ "name": "", "running": true })),
            input(json!({ "running": "yes" })),
            input(json!({ "running": true, "batch": 0 })),
            input(json!({ "running": true, "select": "m-9" })),
        ];
        let wanted = input(json!({ "running": false, "enabled": true }));
        let meddle =
            json!({ "target": "nodes", "hosts": "m-1", "name": "exim4", "enabled": true, "running": false });
        let other = world.again();
        let shown = world
            .prove_with(
                "host.service",
                &wanted,
                &bad,
                Some(Box::new(|| {
                    let (other, meddle) = (&other, &meddle);
                    Box::pin(async move {
                        // Between before and after: enabled already, and gone.
                        other.run("host.service", meddle).await.unwrap();
                        let path = other.folder().join("hosts.state/state.json");
                        let text = std::fs::read_to_string(&path).unwrap();
                        std::fs::write(
                            &path,
                            text.replacen("\"exim4\": \"stopped\"", "\"exim5\": \"stopped\"", 1),
                        )
                        .unwrap();
                    })
                })),
            )
            .await
            .unwrap();
        let [change, _] = shown.plan.changes.as_slice() else { panic!() };
        assert_eq!(&*change.object, "m-1: service exim4");
        assert_eq!(
            change.before,
            Value::map([("running", Value::Bool(true)), ("enabled", Value::Bool(false))])
        );
        assert_eq!(shown.output.get("changed").unwrap().to_string(), r#"["m-1","m-2"]"#);
    }

    #[tokio::test]
    async fn what_is_so_already_is_no_change() {
        let world = world().await;
        let plan = world.plan("host.service", &input(json!({ "running": true }))).await.unwrap();
        assert_eq!((plan.changes.len(), plan.considered), (0, Some(2)));
        let plan =
            world.plan("host.service", &input(json!({ "running": true, "restart": true }))).await.unwrap();
        assert_eq!(plan.changes.len(), 2);
        assert_eq!((plan.changes[0].kind, plan.fidelity), (ChangeKind::Run, Fidelity::Described));
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_is_an_error() {
        let world = world().await;
        let failure =
            world.plan("host.service", &input(json!({ "name": "no", "running": false }))).await.unwrap_err();
        assert_eq!(failure.to_string(), "target `nodes`: the host `m-1` has no service `no`");
    }

    #[tokio::test]
    async fn undo_leaves_alone_what_someone_else_changed() {
        let world = world().await;
        let stop = input(json!({ "running": false }));
        let plan = world.plan("host.service", &stop).await.unwrap();
        world.apply("host.service", &stop, &plan.changes).await.unwrap();
        world.undo("host.service", &stop, &plan.changes).await.unwrap();
        assert_eq!(world.state()["hosts"]["m-1"]["services"]["exim4"], "running disabled");
        assert_eq!(
            world.did()[3..],
            [
                "m-1 service stop exim4",
                "m-2 service stop exim4",
                "m-1 service start exim4",
                "m-2 service start exim4"
            ]
        );
    }
}
