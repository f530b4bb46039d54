//! `host.reboot`.

use std::time::Duration;

use farrier_action::duration::Length;
use farrier_action::{Action, Planned, Probe, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::time::{Timestamp, format_duration};
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Fidelity, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::hosts::Names;
use crate::marks::Marks;
use crate::target::{Choice, Host, HostTarget};
use crate::transport::Facts;

/// How often a host is asked whether it is back.
const EVERY: Duration = Duration::from_secs(5);

/// Starts a host again, and waits until it is back.
///
/// The kernel's boot id tells whether it happened: it is part of the plan, and another one means that the host was started
/// again, by this step or by anyone else. So a host is never started twice, also when Farrier itself is killed meanwhile.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reboot {
    /// The machines.
    target: Target<HostTarget>,
    /// The name of the host. Left out where the target is a single machine other than Farrier's own.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    host: Option<Names>,
    /// How long it may take until the host answers again.
    #[serde(default = "default_back_within")]
    #[schemars(default = "shown_back_within")]
    back_within: Length,
}

fn default_back_within() -> Length {
    Length(Duration::from_secs(15 * 60))
}

fn shown_back_within() -> String {
    format_duration(default_back_within().0)
}

/// A host that was started again.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Back {
    /// Its boot id now.
    boot_id: String,
    /// When it answered again. What was measured before that says nothing about the host as it is now.
    #[schemars(extend(
        "pattern" = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})$",
        "x-expected" = "a time such as `2026-08-20T10:15:00Z`"
    ))]
    back_at: String,
}

impl Action for Reboot {
    const NAME: &'static str = "host.reboot";
    const EFFECT: Effect = Effect::Probed;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
reboot:
  uses: host.reboot
  with: { target: nodes, host: tools-k8s-worker-12, back_within: 15m }
  timeout: 25m
  undo: none
";
    type Output = Back;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Back>, Failure> {
        let host = cx.reader(&self.target).await?;
        let name = self.name(&host)?;
        let facts = self.facts(&host, &name, cx).await?;
        let change = Change {
            object: name.as_str().into(),
            kind: ChangeKind::Run,
            before: Value::map([("boot_id", Value::text(&*facts.boot_id))]),
            after: Value::map([("host", Value::text(&*name)), ("reboot", Value::Bool(true))]),
            fingerprint: Some(facts.boot_id.as_str().into()),
        };
        let output = Back { boot_id: facts.boot_id, back_at: to_the_second(host.now.get()) };
        let planned = Planned { fidelity: Fidelity::Described, ..Planned::changes(vec![change], output) };
        let up = format_duration(Duration::from_secs(facts.uptime.as_secs()));
        Ok(planned.unknown("boot_id").unknown("back_at").note(format!("{name} has been up for {up}")))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Back, Failure> {
        let host = cx.writer(&self.target).await?;
        let name = self.name(&host)?;
        let boot_id = planned(changes, &name)?;
        let marks = Marks::of(cx.node());
        host.transport
            .reboot(&name, boot_id, &marks)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        let begun = Instant::now();
        loop {
            let problem = match self.facts(&host, &name, cx).await {
                Ok(facts) if facts.boot_id != boot_id => {
                    return Ok(Back { boot_id: facts.boot_id, back_at: to_the_second(host.now.get()) });
                }
                Ok(_) => "it has not gone down".to_owned(),
                Err(failure) if failure.kind.may_pass() => failure.message,
                Err(failure) => return Err(failure),
            };
            let rest = self.back_within.0.saturating_sub(begun.elapsed());
            if rest.is_zero() {
                let within = format_duration(self.back_within.0);
                let message =
                    format!("`{name}` was told to start again and is not back within {within}: {problem}");
                return Err(Failure::new(FailureKind::Timeout, message).at(self.target.alias()));
            }
            farrier_action::rest::sleep(EVERY.min(rest)).await;
        }
    }

    async fn probe(&self, cx: &ReadCx, changes: &[Change]) -> Result<Probe, Failure> {
        let host = cx.reader(&self.target).await?;
        let name = self.name(&host)?;
        let boot_id = planned(changes, &name)?;
        // It may just be starting: then it answers within the time that it has anyway.
        let begun = Instant::now();
        loop {
            match self.facts(&host, &name, cx).await {
                Ok(facts) if facts.boot_id == boot_id => return Ok(Probe::NotApplied),
                Ok(_) => return Ok(Probe::Applied),
                Err(failure) if failure.kind.may_pass() && begun.elapsed() < self.back_within.0 => {
                    farrier_action::rest::sleep(EVERY).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

impl Reboot {
    fn name(&self, host: &Host) -> Result<String, Failure> {
        let chosen = host
            .choose(Choice { hosts: self.host.as_ref(), ..Choice::default() })
            .map_err(|failure| failure.at(self.target.alias()))?;
        match chosen.as_slice() {
            [name] if host.named(name).is_some() => Ok(name.clone()),
            [_] => Err(Failure::new(FailureKind::Input, "Farrier does not start its own machine again")
                .at(self.target.alias())),
            _ => {
                Err(Failure::new(FailureKind::Input, "`host` is one host").help("use `for_each` for several"))
            }
        }
    }

    async fn facts(&self, host: &Host, name: &str, cx: &ReadCx) -> Result<Facts, Failure> {
        let marks = Marks::of(cx.node());
        host.transport.facts(name, &marks).await.map_err(|failure| failure.at(self.target.alias()))
    }
}

/// The boot id that the host had when this was planned.
fn planned<'a>(changes: &'a [Change], name: &str) -> Result<&'a str, Failure> {
    match changes {
        [change] if &*change.object == name => change.before.get("boot_id").and_then(Value::as_str),
        _ => None,
    }
    .ok_or_else(|| Failure::new(FailureKind::Drift, "this is not what was planned"))
}

/// RFC 3339, without a fraction.
pub(crate) fn to_the_second(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tests::World;

    const HOSTS: &str = "hosts: { 'w-[1-2]': { reboot_takes: 90s } }";

    #[tokio::test(start_paused = true)]
    async fn it_waits_until_the_host_is_back() {
        let world = World::scripted(HOSTS);
        let begun = world.now();
        let input = json!({ "target": "nodes", "host": "w-1", "back_within": "15m" });
        let shown = world.prove("host.reboot", &input, &[]).await.unwrap();
        let [change] = shown.plan.changes.as_slice() else { panic!() };
        assert_eq!((&*change.object, change.kind), ("w-1", ChangeKind::Run));
        let planned = shown.plan.output.unwrap();
        assert!(planned.get("back_at").unwrap().unknown_after().is_some(), "{planned}");
        let new = shown.output.get("boot_id").unwrap().as_str().unwrap();
        assert_ne!(Some(new), change.before.get("boot_id").unwrap().as_str());
        let took = world.now().duration_since(begun);
        assert!((90..100).contains(&took.as_secs()), "{took:?}");
        assert_eq!(shown.output.get("back_at").unwrap().as_str().unwrap(), to_the_second(world.now()));
        assert_eq!(world.did(), ["w-1 reboot"]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_come_back_is_an_error() {
        let world = World::scripted("hosts: { w-1: { reboot_takes: 2h } }");
        let input = json!({ "target": "nodes", "host": "w-1", "back_within": "10m" });
        let failure = world.run("host.reboot", &input).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Timeout);
        assert!(failure.message.contains("not back within 10m: cannot reach the host `w-1`"), "{failure}");
        assert!(!failure.in_doubt);
    }

    #[tokio::test(start_paused = true)]
    async fn the_boot_id_tells_whether_it_happened() {
        let world = World::scripted(HOSTS);
        let input = json!({ "target": "nodes", "host": "w-1" });
        let plan = world.plan("host.reboot", &input).await.unwrap();
        assert_eq!(world.probe("host.reboot", &input, &plan.changes).await.unwrap(), Probe::NotApplied);
        world.apply("host.reboot", &input, &plan.changes).await.unwrap();
        assert_eq!(world.probe("host.reboot", &input, &plan.changes).await.unwrap(), Probe::Applied);
        // The same again, as after a lost answer, starts nothing.
        world.apply("host.reboot", &input, &plan.changes).await.unwrap();
        assert_eq!(world.did(), ["w-1 reboot"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_waits_for_a_host_that_is_just_starting() {
        let world = World::scripted(HOSTS);
        let input = json!({ "target": "nodes", "host": "w-1" });
        let plan = world.plan("host.reboot", &input).await.unwrap();
        world.apply_until("host.reboot", &input, &plan.changes, || !world.did().is_empty()).await;
        // Another process, after a crash.
        let again = world.again();
        assert_eq!(again.probe("host.reboot", &input, &plan.changes).await.unwrap(), Probe::Applied);
    }

    #[tokio::test]
    async fn bad_input_is_refused() {
        let world = World::scripted(HOSTS);
        for bad in [
            json!({ "target": "nodes" }),
            json!({ "target": "nodes", "host": "w-[1-2]" }),
            json!({ "target": "nodes", "host": ["w-1", "w-2"] }),
            json!({ "target": "nodes", "host": "w-9" }),
            json!({ "target": "nodes", "host": "w-1", "back_within": "soon" }),
        ] {
            assert_eq!(world.plan("host.reboot", &bad).await.unwrap_err().kind, FailureKind::Input, "{bad}");
        }
        let own = World::local().plan("host.reboot", &json!({ "target": "nodes" })).await.unwrap_err();
        assert_eq!(own.message, "Farrier does not start its own machine again");
    }
}
