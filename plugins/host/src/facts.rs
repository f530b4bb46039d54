//! `host.facts`.

use std::collections::BTreeMap;

use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fan_out::{Pace, Share, fan_out, telling};
use crate::hosts::{Names, fold};
use crate::marks::Marks;
use crate::target::{Choice, HostTarget};

/// Asks hosts what they are and since when they run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Facts {
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
    /// How many hosts must answer: a number or a share such as `90%`. The default is all.
    #[serde(default)]
    must_succeed: Option<Share>,
}

/// What hosts are.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Found {
    /// One entry for each host that answered, in order.
    hosts: Vec<HostFacts>,
    /// The names of the hosts that did not answer.
    failed: Vec<String>,
}

/// What one host is.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HostFacts {
    /// The name it was asked by.
    host: String,
    /// The name it gives itself.
    hostname: String,
    /// The kernel's random name for the time since it was started.
    boot_id: String,
    /// When it was started, to the second.
    started: String,
    /// For how many seconds it has run.
    uptime_seconds: u64,
    /// Its system, such as `debian`.
    os: String,
    /// The version of its system, such as `12`.
    os_version: String,
    /// The version of its kernel.
    kernel: String,
    /// Its kind of processor, such as `x86_64`.
    architecture: String,
    /// How many processors it has.
    processors: u32,
    /// Its memory in bytes.
    memory_bytes: u64,
}

impl Action for Facts {
    const NAME: &'static str = "host.facts";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
workers:
  uses: host.facts
  with: { target: nodes, select: 'tools-k8s-worker-[1-80]', must_succeed: 90% }
";
    type Output = Found;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Found>, Failure> {
        let host = cx.reader(&self.target).await?;
        let at_target = |failure: Failure| failure.at(self.target.alias());
        let choice = Choice::of(self.hosts.as_ref(), self.select.as_ref(), &self.sets, self.except.as_ref());
        let chosen = host.choose(choice).map_err(at_target)?;
        let pace = Pace::new(chosen.len(), None, false, None, self.must_succeed)?;
        let marks = Marks::of(cx.node());
        let answers = fan_out(
            &chosen,
            pace,
            async |at| host.transport.facts(&chosen[at], &marks).await,
            Result::is_err,
            telling(cx, chosen.len()),
        )
        .await;
        let (mut found, mut failed, mut reason) = (Vec::new(), Vec::new(), None);
        for (name, answer) in chosen.iter().zip(answers) {
            match answer {
                Some(Ok(facts)) => found.push(of(name, facts, &host.now)),
                Some(Err(failure)) => {
                    failed.push(name.clone());
                    reason.get_or_insert(failure);
                }
                None => failed.push(name.clone()),
            }
        }
        match reason {
            Some(failure) if !pace.allows(failed.len()) => {
                if chosen.len() == 1 {
                    return Err(at_target(failure));
                }
                let shown = fold(&failed);
                Err(at_target(Failure::new(
                    failure.kind,
                    format!(
                        "{} of {} hosts did not answer ({shown}); {}",
                        failed.len(),
                        chosen.len(),
                        failure.message
                    ),
                )))
            }
            _ if found.is_empty() => {
                Err(at_target(Failure::new(FailureKind::Unreachable, "none of the hosts answered")))
            }
            _ => Ok(Planned::known(Found { hosts: found, failed })),
        }
    }
}

fn of(name: &str, facts: crate::transport::Facts, now: &farrier_action::Now) -> HostFacts {
    HostFacts {
        host: name.to_owned(),
        hostname: facts.hostname,
        boot_id: facts.boot_id,
        started: crate::reboot::to_the_second(now.get() - facts.uptime),
        uptime_seconds: facts.uptime.as_secs(),
        os: facts.os,
        os_version: facts.os_version,
        kernel: facts.kernel,
        architecture: facts.architecture,
        processors: facts.processors,
        memory_bytes: facts.memory_bytes,
    }
}

#[cfg(test)]
mod tests {
    use farrier_model::Value;
    use serde_json::json;

    use crate::tests::World;

    #[tokio::test]
    async fn this_machine_says_what_it_is() {
        let world = World::local();
        let output = world.plan("host.facts", &json!({ "target": "nodes" })).await.unwrap().output.unwrap();
        let host = &output.get("hosts").unwrap().as_list().unwrap()[0];
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(host.get("boot_id").unwrap().as_str(), Some(boot_id.trim()));
        assert_eq!(host.get("host").unwrap().as_str(), Some("localhost"));
        assert!(host.get("processors").unwrap().as_int().unwrap() > 0);
        assert!(host.get("memory_bytes").unwrap().as_int().unwrap() > 1 << 20);
    }

    #[tokio::test]
    async fn it_keeps_the_laws() {
        let world = World::scripted("hosts: { 'a-[1-2]': { os_version: '11' } }");
        let bad_inputs = [
            json!({ "target": "nodes" }),
            json!({ "target": "nodes", "hosts": "a-[1-2]" }),
            json!({ "target": "nodes", "hosts": "elsewhere" }),
            json!({ "target": "nodes", "hosts": [] }),
            json!({ "target": "nodes", "hosts": "a-1", "select": "@all" }),
            json!({ "target": "nodes", "select": "@nobody" }),
            json!({ "target": "nodes", "select": "a-1", "must_succeed": "101%" }),
            json!({ "target": "nodes", "select": "a-1", "batch": 1 }),
        ];
        let input = json!({ "target": "nodes", "select": "@all" });
        let shown = world.prove("host.facts", &input, &bad_inputs).await.unwrap();
        assert!(shown.plan.changes.is_empty(), "it only reads");
        assert_eq!(shown.output.get("hosts").unwrap().as_list().unwrap().len(), 2);
        assert!(world.did().iter().all(|did| did.contains("facts")), "{:?}", world.did());
    }

    #[tokio::test]
    async fn hosts_that_do_not_answer_are_named() {
        let world =
            World::scripted("hosts: { 'a-[1-2]': { os_version: '11' }, b: { unreachable: no route } }");
        let input = |must: &str| json!({ "target": "nodes", "select": "@all", "must_succeed": must });
        let output = world.plan("host.facts", &input("60%")).await.unwrap().output.unwrap();
        assert_eq!(output.get("failed").unwrap(), &Value::list(vec![Value::text("b")]));
        let hosts = output.get("hosts").unwrap().as_list().unwrap();
        let names: Vec<String> = hosts.iter().map(|host| host.get("host").unwrap().to_string()).collect();
        assert_eq!(names, ["a-1", "a-2"]);
        assert_eq!(hosts[0].get("os_version").unwrap().as_str(), Some("11"));
        assert_eq!(hosts[0].get("started").unwrap().as_str(), Some("2026-01-01T00:00:00Z"));
        let failure = world.plan("host.facts", &input("100%")).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "target `nodes`: 1 of 3 hosts did not answer (b); cannot reach the host `b`: no route"
        );
    }
}
