//! `host.script`.

use std::collections::BTreeMap;

use farrier_action::duration::Length;
use farrier_action::text::{FreeText, Literal};
use farrier_action::{Action, Planned, Probe, ReadCx, Target, WriteCx};
use farrier_model::literal::{Piece, pieces};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::fan_out::Share;
use crate::hosts::Names;
use crate::outcome::{self, Ran};
use crate::run::Run;
use crate::target::HostTarget;

/// The longest script that may stand in a runbook.
const LINES: usize = 15;

/// Runs a small shell script, on one host or on many: one of the project's own files, or up to 15 lines in the runbook.
///
/// Values reach the script only as environment variables, `params`, and are never part of its text. In a script in the
/// runbook, `$name` is the parameter of that name (write `"$name"`, as in any shell), and `$$name` the shell's own variable.
/// The script is run by `/bin/sh -eu`: it ends at the first command that fails.
///
/// In everything else it is like `host.run`: opaque to a plan, `read_only` and `unless` included.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "`script` is what authors write")]
pub struct Script {
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
    /// The script, of at most 15 lines.
    #[serde(default)]
    script: Option<Literal>,
    /// The script's path below the folder that the environment names in `scripts`, instead of `script`.
    #[serde(default)]
    file: Option<String>,
    /// The script's environment variables: texts, numbers and truth values.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    params: BTreeMap<String, Value>,
    /// A command that changes nothing and succeeds where the script need not be run.
    #[serde(default)]
    unless: Option<Vec<FreeText>>,
    /// The folder to run in, an absolute path. Left out, `/`.
    #[serde(default)]
    cwd: Option<String>,
    /// Text for its standard input. Left out, the input is empty.
    #[serde(default)]
    stdin: Option<String>,
    /// The author's word that the script changes nothing.
    #[serde(default)]
    read_only: bool,
    /// The exit codes that mean success.
    #[serde(default = "outcome::default_ok_codes")]
    ok_codes: Vec<u8>,
    /// How many bytes are kept of the beginning of each output, and as many of its end.
    #[serde(default = "outcome::default_max_output")]
    max_output: u32,
    /// After this time the machine itself ends the script, even when Farrier or the connection is gone.
    #[serde(default = "outcome::default_time_limit")]
    #[schemars(default = "outcome::shown_time_limit")]
    time_limit: Length,
    /// How many hosts at once: a number or a share such as `30%`. The default is 32.
    #[serde(default)]
    batch: Option<Share>,
    /// The next batch begins only when all of the one before is done.
    #[serde(default)]
    whole_batches: bool,
    /// A pause after each host before the next takes its place; with `whole_batches`, between batches.
    #[serde(default)]
    pause: Option<Length>,
    /// How many hosts must succeed: a number or a share such as `90%`. The default is all.
    #[serde(default)]
    must_succeed: Option<Share>,
}

impl Action for Script {
    const NAME: &'static str = "host.script";
    const EFFECT: Effect = Effect::Probed;
    const RISK: Risk = Risk::Destructive;
    const READ_ONLY_IF: Option<&'static str> = Some("read_only");
    const EXAMPLE: &'static str = r#"
tidy:
  uses: host.script
  with:
    target: nodes
    select: tools-bastion-[14-15]
    script: |
      for file in /var/tmp/"$prefix"*; do
        [ -e "$$file" ] && rm -- "$$file"
      done
    params: { prefix: build- }
    batch: 1
  needs: []
  undo: none
"#;
    type Output = Ran;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Ran>, Failure> {
        let run = self.as_run(cx).await?;
        let planned = run.plan(cx).await?;
        let shown = run.script_text().lines().map(|line| format!("| {line}"));
        Ok(if planned.changes.is_empty() { planned } else { shown.fold(planned, Planned::note) })
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Ran, Failure> {
        self.as_run(cx).await?.apply(cx, changes).await
    }

    async fn probe(&self, cx: &ReadCx, changes: &[Change]) -> Result<Probe, Failure> {
        self.as_run(cx).await?.probe(cx, changes).await
    }
}

impl Script {
    /// The same as a command: a shell whose arguments hold the script and nothing else.
    async fn as_run(&self, cx: &ReadCx) -> Result<Run, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let mut env = BTreeMap::new();
        for (name, value) in &self.params {
            let letters =
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if !letters || name.is_empty() || name.starts_with(|letter: char| letter.is_ascii_digit()) {
                return Err(input(format!(
                    "`params`: `{name}` is not the name of a parameter such as `tool_name`"
                )));
            }
            let text = match value {
                Value::Text(text) => text.to_string(),
                Value::Int(_) | Value::Float(_) | Value::Bool(_) => value.to_string(),
                _ => {
                    return Err(input(format!(
                        "`params.{name}` is neither a text nor a number nor a truth value"
                    )));
                }
            };
            env.insert(name.clone(), FreeText(text));
        }
        let (text, title) = match (&self.script, &self.file) {
            (Some(script), None) => {
                if script.0.lines().count() > LINES {
                    return Err(input(format!("`script` has more than {LINES} lines"))
                        .help("put it into a file of the project, and name that in `file`"));
                }
                let first = script.0.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
                (rendered(&script.0), format!("script `{}`", crate::words::shortened(first.trim(), 60)))
            }
            (None, Some(path)) => {
                let host = cx.reader(&self.target).await?;
                let text = host.script(path).map_err(|failure| failure.at(self.target.alias()))?;
                (text, format!("script {path}"))
            }
            _ => return Err(input("it needs exactly one of `script` and `file`".into())),
        };
        if text.trim().is_empty() {
            return Err(input("the script is empty".into()));
        }
        let argv = ["/bin/sh", "-euc", text.as_str(), "script"].map(|word| FreeText(word.to_owned())).into();
        Ok(Run {
            target: self.target.clone(),
            hosts: self.hosts.clone(),
            select: self.select.clone(),
            sets: self.sets.clone(),
            except: self.except.clone(),
            argv,
            unless: self.unless.clone(),
            env,
            cwd: self.cwd.clone(),
            stdin: self.stdin.clone(),
            read_only: self.read_only,
            ok_codes: self.ok_codes.clone(),
            max_output: self.max_output,
            time_limit: self.time_limit,
            batch: self.batch,
            whole_batches: self.whole_batches,
            pause: self.pause,
            must_succeed: self.must_succeed,
            title: Some(title),
        })
    }
}

/// The text for the shell: a parameter is its environment variable, `$$` the shell's own dollar.
fn rendered(script: &str) -> String {
    pieces(script)
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.to_string(),
            Piece::Param(name) => format!("${{{name}}}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::World;

    #[tokio::test]
    async fn values_are_variables_and_never_text() {
        let world = World::local();
        let evil = "$(touch /tmp/evil); `id` \"' \\ *";
        let script = "for word in \"$value\"; do printf '<%s> %s' \"$$word\" \"$number\"; done";
        let input = serde_json::json!({
            "target": "nodes", "script": script, "params": { "value": evil, "number": 3 }, "read_only": true,
        });
        let output = world.plan("host.script", &input).await.unwrap().output.unwrap();
        assert_eq!(output.get("stdout").unwrap().to_string(), format!("<{evil}> 3"));
    }

    #[tokio::test]
    async fn files_come_from_the_folder_of_the_environment() {
        let world = World::local();
        std::fs::create_dir(world.folder().join("scripts")).unwrap();
        std::fs::write(world.folder().join("scripts/a.sh"), "echo \"$who\"; false; echo never").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", world.folder().join("scripts/link.sh")).unwrap();
        let input = |file: &str| serde_json::json!({ "target": "nodes", "file": file, "params": { "who": "me" }, "ok_codes": [1] });
        let shown = world.prove("host.script", &input("a.sh"), &[]).await.unwrap();
        assert_eq!(shown.output.get("stdout").unwrap().as_str(), Some("me\n"));
        assert_eq!(&*shown.plan.changes[0].object, "script a.sh");
        assert_eq!(shown.plan.notes, ["| echo \"$who\"; false; echo never"]);
        for file in ["../x", "/etc/passwd", "", "a//b", "none.sh", "link.sh"] {
            let failure = world.plan("host.script", &input(file)).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Input, "{file}: {failure}");
        }
    }

    #[tokio::test]
    async fn bad_input_is_refused() {
        let world = World::local();
        let bad = [
            serde_json::json!({ "target": "nodes" }),
            serde_json::json!({ "target": "nodes", "script": "true", "file": "a" }),
            serde_json::json!({ "target": "nodes", "script": "  \n" }),
            serde_json::json!({ "target": "nodes", "script": "true\n".repeat(16) }),
            serde_json::json!({ "target": "nodes", "script": "echo $a", "params": { "a": [1] } }),
            serde_json::json!({ "target": "nodes", "script": "echo $PATH", "params": { "PATH": "/tmp" } }),
            serde_json::json!({ "target": "nodes", "script": "echo $a", "params": { "a": "\u{0}" } }),
            serde_json::json!({ "target": "nodes", "script": "true", "cwd": "x" }),
        ];
        let good = serde_json::json!({ "target": "nodes", "script": "true", "read_only": true });
        world.prove("host.script", &good, &bad).await.unwrap();
    }
}
