//! Scripted hosts: machines that exist in a file, for tests, demonstrations and dry runs.
//!
//! Read first: [`script::Script`] (what an author writes), then [`state::State`] (what has become of it).
//!
//! A host knows the commands that its script lists, and services, files and reboots by itself. What commands change
//! is kept in `state.json`, and every command that was run in `commands.jsonl`, both in the state folder: the same
//! world is there after a crash, for every process, and for both sides of one.
//!
//! **Rule:** time is the run's own ([`Now`]): a host that starts again in a simulated run is back in simulated time.

pub(crate) mod script;
pub(crate) mod state;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use farrier_action::Now;
use farrier_model::{Failure, FailureKind};
use serde_json::json;

use self::script::{CommandScript, HostScript, Script};
use self::state::{HostState, State, Store};
use crate::capture::Capture;
use crate::marks::Marks;
use crate::transport::{Command, Ended, Facts, Finished, RemoteFile, Service, Transport, Verb};

/// The hosts of one script.
#[derive(Debug)]
pub(crate) struct Scripted {
    script: Script,
    store: Store,
    now: Now,
}

impl Scripted {
    /// Reads the script; the state folder is made when something happens.
    pub(crate) fn open(path: &Path, state: Option<PathBuf>, now: Now) -> Result<Scripted, Failure> {
        let script = Script::read(path)?;
        let folder = state.unwrap_or_else(|| path.with_extension("state"));
        Ok(Scripted { script, store: Store::new(folder), now })
    }

    /// Every host of the script.
    pub(crate) fn names(&self) -> Vec<String> {
        self.script.names()
    }

    fn script(&self, host: &str) -> Result<&HostScript, Failure> {
        self.script.host(host).ok_or_else(|| {
            Failure::new(FailureKind::Unreachable, format!("the name of the host `{host}` is not known"))
                .help("add it under `hosts:` in the script of the scripted hosts")
        })
    }

    /// The host as it is, if it can be reached.
    fn reach(&self, host: &str, state: &State) -> Result<HostState, Failure> {
        let script = self.script(host)?;
        let state = state.hosts.get(host).cloned().unwrap_or_else(|| HostState::new(host, script));
        match state.unreachable(self.now.get()) {
            Some(reason) => Err(Failure::new(
                FailureKind::Unreachable,
                format!("cannot reach the host `{host}`: {reason}"),
            )),
            None => Ok(state),
        }
    }

    fn look(&self, host: &str) -> Result<HostState, Failure> {
        self.reach(host, &self.store.read()?)
    }

    /// Changes one host, if it can be reached.
    fn change<T>(
        &self,
        host: &str,
        change: impl FnOnce(&mut HostState, &HostScript) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let script = self.script(host)?;
        self.store.change(|state| {
            let mut changed = self.reach(host, state)?;
            let outcome = change(&mut changed, script)?;
            state.hosts.insert(host.to_owned(), changed);
            Ok(outcome)
        })
    }

    fn record(&self, host: &str, marks: &Marks, did: serde_json::Value) -> Result<(), Failure> {
        let mut line = json!({ "at": self.now.get().to_string(), "host": host });
        if let (Some(line), serde_json::Value::Object(did)) = (line.as_object_mut(), did) {
            line.extend(did);
            for (name, value) in marks.variables() {
                let name = name.trim_start_matches(crate::marks::RESERVED).to_lowercase();
                line.insert(name, value.into());
            }
        }
        self.store.record(&line)
    }

    fn find(&self, host: &str, state: &HostState, argv: &[&str]) -> Result<&CommandScript, Failure> {
        let own = &self.script(host)?.commands;
        let all = own.iter().chain(&self.script.commands);
        all.into_iter().find(|command| command.fits(argv) && state.fits(&command.when)).ok_or_else(|| {
            let shown = crate::words::command_line(argv);
            Failure::new(
                FailureKind::Refused,
                format!("the scripted host `{host}` does not know `{shown}` now"),
            )
            .help("add it under `commands:` in the script of the scripted hosts")
        })
    }
}

#[async_trait]
impl Transport for Scripted {
    async fn run(&self, host: &str, command: &Command<'_>) -> Result<Finished, Failure> {
        let state = self.look(host)?;
        let found = self.find(host, &state, &command.argv)?;
        if command.read_only && found.then.is_some() {
            let shown = crate::words::command_line(&command.argv);
            return Err(Failure::new(
                FailureKind::Refused,
                format!("`{shown}` changes the scripted host `{host}`, and the step says `read_only: true`"),
            ));
        }
        self.record(
            host,
            command.marks,
            json!({
                "did": "run",
                "argv": command.argv,
                "env": command.env.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "cwd": command.cwd,
                "stdin": command.stdin,
                "read_only": command.read_only,
                "code": found.code,
            }),
        )?;
        let late = found.takes.is_some_and(|takes| takes.0 > command.time_limit);
        if let Some(takes) = found.takes {
            farrier_action::rest::sleep(takes.0.min(command.time_limit)).await;
        }
        if let Some(then) = &found.then
            && !late
        {
            self.change(host, |state, script| {
                state.apply(host, then, script, self.now.get());
                Ok(())
            })?;
        }
        if found.cut {
            let failure = Failure::new(
                FailureKind::Unreachable,
                format!("the connection to the host `{host}` was cut"),
            );
            return Err(if command.read_only { failure } else { failure.in_doubt() });
        }
        let output = |text: &str| {
            let mut capture = Capture::new(command.max_output);
            capture.push(text.replace("$host", host).as_bytes());
            capture
        };
        let ended = if late { Ended::Late } else { Ended::Code(found.code) };
        Ok(Finished { ended, stdout: output(&found.stdout), stderr: output(&found.stderr) })
    }

    async fn facts(&self, host: &str, _: &Marks) -> Result<Facts, Failure> {
        let (script, state) = (self.script(host)?, self.look(host)?);
        let or =
            |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let uptime = self.now.get().duration_since(state.started);
        Ok(Facts {
            boot_id: state.boot_id,
            uptime: uptime.try_into().unwrap_or_default(),
            hostname: host.to_owned(),
            kernel: or(&script.kernel, "6.1.0-amd64"),
            architecture: or(&script.architecture, "x86_64"),
            os: or(&script.os, "debian"),
            os_version: or(&script.os_version, "12"),
            processors: script.processors.max(1),
            memory_bytes: if script.memory_bytes == 0 { 4 << 30 } else { script.memory_bytes },
        })
    }

    async fn service(&self, host: &str, unit: &str, _: &Marks) -> Result<Option<Service>, Failure> {
        Ok(self.look(host)?.services.get(unit).copied())
    }

    async fn set_service(&self, host: &str, unit: &str, verb: Verb, marks: &Marks) -> Result<(), Failure> {
        self.look(host)?;
        self.record(host, marks, json!({ "did": "service", "unit": unit, "verb": verb.name() }))?;
        self.change(host, |state, _| {
            let service = state.services.get_mut(unit).ok_or_else(|| {
                Failure::new(FailureKind::Refused, format!("the host `{host}` has no service `{unit}`"))
            })?;
            *service = match verb {
                Verb::Start | Verb::Restart => Service { running: true, failed: false, ..*service },
                Verb::Stop => Service { running: false, failed: false, ..*service },
                Verb::Enable => Service { enabled: Some(true), ..*service },
                Verb::Disable => Service { enabled: Some(false), ..*service },
            };
            Ok(())
        })
    }

    async fn read_file(
        &self,
        host: &str,
        path: &str,
        limit: usize,
        _: &Marks,
    ) -> Result<Option<RemoteFile>, Failure> {
        let file = self.look(host)?.files.get(path).cloned();
        match file {
            Some(file) if file.content.len() > limit => Err(crate::posix::too_large(host, path, limit)),
            file => Ok(file),
        }
    }

    async fn write_file(
        &self,
        host: &str,
        path: &str,
        before: Option<&RemoteFile>,
        wanted: Option<&RemoteFile>,
        marks: &Marks,
    ) -> Result<(), Failure> {
        self.look(host)?;
        let did = if wanted.is_some() { "write_file" } else { "remove_file" };
        self.record(host, marks, json!({ "did": did, "path": path }))?;
        self.change(host, |state, _| {
            if state.files.get(path) != before {
                return Err(crate::posix::drift(host, path));
            }
            match wanted {
                None => drop(state.files.remove(path)),
                Some(file) => {
                    let owned =
                        |name: &String| if name.is_empty() { "root".to_owned() } else { name.clone() };
                    let (owner, group) = (owned(&file.owner), owned(&file.group));
                    state.files.insert(path.to_owned(), RemoteFile { owner, group, ..file.clone() });
                }
            }
            Ok(())
        })
    }

    async fn reboot(&self, host: &str, boot_id: &str, marks: &Marks) -> Result<(), Failure> {
        if self.look(host)?.boot_id != boot_id {
            return Ok(());
        }
        self.record(host, marks, json!({ "did": "reboot" }))?;
        self.change(host, |state, script| {
            state.reboot(host, script, self.now.get());
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tests::World;

    const HOSTS: &str = r#"
hosts:
  w-[1-3]:
    services: { nfs: running, exim4: stopped disabled }
    files: { /etc/motd: "hello\n" }
    vars: { stuck: "3" }
    reboot_takes: 30s
    on_boot: { vars: { stuck: "0" } }
    commands:
      - { argv: [ps, ...], when: { vars: { stuck: "3" } }, stdout: "D D D\n" }
      - { argv: [ps, ...], stdout: "none on $host\n" }
      - { argv: [umount, "*"], then: { services: { nfs: stopped }, files: { /etc/motd: null } } }
      - { argv: [vanish], then: { unreachable: gone, unreachable_for: 20s } }
      - { argv: [half], then: { vars: { stuck: "1" } }, cut: true }
      - { argv: [slow], takes: 10m, stdout: "done\n" }
  away: { unreachable: no route to host }
commands:
  - { argv: [fails], code: 3, stderr: "wrong\n" }
  - { argv: [done, w-1], when: { files: { /done: null } }, code: 1 }
  - { argv: [done, w-1] }
  - { argv: [do, "*"], then: { files: { /done: "x" } } }
"#;

    fn input(host: &str, argv: &[&str], read_only: bool) -> serde_json::Value {
        json!({ "target": "nodes", "hosts": host, "argv": argv, "read_only": read_only })
    }

    async fn stdout(world: &World, host: &str, argv: &[&str]) -> String {
        let output = world.run("host.run", &input(host, argv, true)).await.unwrap();
        output.get("stdout").unwrap().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn commands_depend_on_the_state_and_change_it() {
        let world = World::scripted(HOSTS);
        assert_eq!(stdout(&world, "w-1", &["ps", "-e"]).await, "D D D\n");
        world.run("host.run", &input("w-1", &["umount", "/x"], false)).await.unwrap();
        let state = &world.state()["hosts"]["w-1"];
        assert_eq!((&state["services"]["nfs"], &state["files"]), (&json!("stopped"), &json!({})));
        world.run("host.reboot", &json!({ "target": "nodes", "host": "w-1" })).await.unwrap();
        assert_eq!(stdout(&world, "w-1", &["ps", "-e"]).await, "none on w-1\n");
        assert_eq!(
            world.state()["hosts"]["w-1"]["services"],
            json!({ "nfs": "running", "exim4": "stopped disabled" })
        );
        // Another process sees the same, and other hosts are as they were.
        let again = world.again();
        assert_eq!(stdout(&again, "w-1", &["ps"]).await, "none on w-1\n");
        assert_eq!(stdout(&again, "w-2", &["ps"]).await, "D D D\n");
        assert_eq!(
            world.did(),
            ["w-1 ps -e", "w-1 umount /x", "w-1 reboot", "w-1 ps -e", "w-1 ps", "w-2 ps"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_can_be_away_for_a_while() {
        let world = World::scripted(HOSTS);
        let failure = world.run("host.run", &input("away", &["ps"], true)).await.unwrap_err();
        assert_eq!(failure.to_string(), "target `nodes`: cannot reach the host `away`: no route to host");
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, false));
        world.run("host.run", &input("w-1", &["vanish"], false)).await.unwrap();
        let failure = world.run("host.run", &input("w-1", &["ps"], true)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable);
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        stdout(&world, "w-1", &["ps"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_connection_leaves_doubt_and_the_work_done() {
        let world = World::scripted(HOSTS);
        let failure = world.run("host.run", &input("w-1", &["half"], false)).await.unwrap_err();
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, true));
        assert_eq!(world.state()["hosts"]["w-1"]["vars"]["stuck"], "1");
        let slow = json!({ "target": "nodes", "hosts": "w-1", "argv": ["slow"], "time_limit": "5m" });
        let failure = world.run("host.run", &slow).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Timeout);
        assert!(
            failure.message.contains("`slow` was ended because it took longer than its `time_limit`"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn what_a_script_does_not_know_is_said() {
        let world = World::scripted(HOSTS);
        for (host, argv, read_only, expected) in [
            ("w-1", &["rm", "-rf", "/"][..], false, "does not know `rm -rf /` now"),
            (
                "w-1",
                &["umount", "/x"],
                true,
                "changes the scripted host `w-1`, and the step says `read_only: true`",
            ),
            ("w-1", &["fails"], true, "`fails` ended with code 3: wrong"),
            ("w-4", &["ps"], true, "this environment does not have the hosts `w-4`"),
        ] {
            let failure = world.run("host.run", &input(host, argv, read_only)).await.unwrap_err();
            assert!(failure.message.contains(expected), "{failure}");
        }
        assert_eq!(world.did(), ["w-1 fails"]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_hosts_are_one_step() {
        let world = World::scripted(HOSTS);
        world.run("host.reboot", &json!({ "target": "nodes", "host": "w-2" })).await.unwrap();
        let input = json!({
            "target": "nodes", "select": "@all", "except": "w-9", "argv": ["ps"], "read_only": true, "must_succeed": "75%",
        });
        let output = world.run("host.run", &input).await.unwrap();
        let text = output.get("stdout").unwrap().to_string();
        assert_eq!(text, "== w-[1,3] (2)\nD D D\n== w-2 (1)\nnone on w-2\n");
        assert_eq!(output.get("failed").unwrap().to_string(), r#"["away"]"#);
        let group = &output.get("groups").unwrap().as_list().unwrap()[0];
        assert_eq!(group.get("folded").unwrap().as_str(), Some("w-[1,3]"));
        let strict =
            json!({ "target": "nodes", "select": "@all", "argv": ["ps"], "read_only": true, "batch": 1 });
        let failure = world.run("host.run", &strict).await.unwrap_err();
        assert_eq!(
            failure.message,
            "1 of 4 hosts failed, and 3 were not begun; away: cannot reach the host `away`: no route to host"
        );
        let changes = json!({ "target": "nodes", "select": "w-[1-3] ! w-2", "argv": ["umount", "/x"] });
        let plan = world.plan("host.run", &changes).await.unwrap();
        let objects: Vec<&str> = plan.changes.iter().map(|change| &*change.object).collect();
        assert_eq!(objects, ["w-1: umount /x", "w-3: umount /x"]);
        world.apply("host.run", &changes, &plan.changes).await.unwrap();
        assert_eq!(world.did().iter().filter(|line| line.contains("umount")).count(), 2);
        // Other hosts than the planned ones are not touched.
        let other = json!({ "target": "nodes", "select": "w-[1-3]", "argv": ["umount", "/y"] });
        let failure = world.apply("host.run", &other, &plan.changes).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift);
    }

    #[tokio::test]
    async fn a_probe_tells_what_is_done() {
        let world = World::scripted(HOSTS);
        let input =
            json!({ "target": "nodes", "hosts": "w-1", "argv": ["do", "it"], "unless": ["done", "w-1"] });
        let plan = world.plan("host.run", &input).await.unwrap();
        assert_eq!(plan.changes.len(), 1);
        let probe = async || world.probe("host.run", &input, &plan.changes).await.unwrap();
        assert_eq!(probe().await, farrier_action::Probe::NotApplied);
        world.apply("host.run", &input, &plan.changes).await.unwrap();
        assert_eq!(probe().await, farrier_action::Probe::Applied);
        // Again, as after a lost answer: it is done once.
        world.apply("host.run", &input, &plan.changes).await.unwrap();
        assert_eq!(world.did().iter().filter(|line| *line == "w-1 do it").count(), 1);
        assert!(world.plan("host.run", &input).await.unwrap().changes.is_empty());
        let plain = json!({ "target": "nodes", "hosts": "w-1", "argv": ["do", "it"] });
        let plan = world.plan("host.run", &plain).await.unwrap();
        let probe = world.probe("host.run", &plain, &plan.changes).await.unwrap();
        assert_eq!(probe, farrier_action::Probe::Unknown, "without `unless` a person decides");
    }

    #[tokio::test(start_paused = true)]
    async fn the_hosts_of_the_manual_are_as_it_says() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../site/manual/environments.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, after) = page.split_once("### Scripted hosts").unwrap();
        let world = World::scripted(after.split("```").nth(1).unwrap().strip_prefix("yaml\n").unwrap());
        assert_eq!(stdout(&world, "worker-1", &["ps", "-e"]).await, "D 3 hung\n");
        let failure = world.run("host.run", &input("worker-1", &["flush"], false)).await.unwrap_err();
        assert!(failure.in_doubt);
        world.run("host.reboot", &json!({ "target": "nodes", "host": "worker-2" })).await.unwrap();
        assert_eq!(stdout(&world, "worker-2", &["ps", "-e"]).await, "none on worker-2\n");
    }

    #[tokio::test]
    async fn mistakes_in_a_script_are_found_at_once() {
        for (script, expected) in [
            ("hosts: { a: { servics: {} } }", "servics"),
            ("hosts: { a: { services: { x: up } } }", "`up` is not `running`"),
            ("hosts: { 'a[': {} }", "not closed"),
            ("hosts: { a: { reboot_takes: soon } }", "not a duration"),
            ("hosts: [", "hosts.yaml"),
        ] {
            let world = World::scripted(script);
            let failure = world.plan("host.facts", &json!({ "target": "nodes" })).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Input);
            assert!(failure.message.contains(expected), "{script}: {failure}");
        }
    }
}
