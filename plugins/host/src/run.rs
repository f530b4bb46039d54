//! `host.run`.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier_action::duration::Length;
use farrier_action::text::{FreeText, Literal};
use farrier_action::{Action, Planned, Probe, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::fan_out::{Pace, Share, fan_out, telling};
use crate::hosts::Names;
use crate::marks::{self, Marks};
use crate::outcome::{self, Done, Ran};
use crate::target::{Choice, Host, HostTarget};
use crate::transport::{Command, Ended};
use crate::words;

/// Runs one command, on one host or on many. No shell reads it: each argument reaches the program as it is.
///
/// Farrier cannot know what a command changes, so a plan only shows the command, on which hosts, and after a crash in the
/// middle a person decides. A command that changes nothing says `read_only: true`: it then also runs in plans, and later
/// steps can use its output there. `unless` is a command that tells whether the work is done already: hosts where it
/// succeeds are left alone, and after a crash it is asked instead of a person.
///
/// The command gets a small fixed environment (`PATH`, `LANG`, `HOME`, `USER`, `LOGNAME`) and what `env` adds. `FARRIER_RUN`
/// and `FARRIER_NODE` say what it belongs to; `FARRIER_EFFECT` is the same for every attempt of the step, so a script can
/// use it as a key to do its work only once. When the step ends, is cancelled or takes too long, everything that the
/// command started is ended as well.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The machines.
    pub(crate) target: Target<HostTarget>,
    /// The name of a host, or a list of names. Names are taken as they are and never as patterns, so they may come from
    /// anywhere. Left out where the target is a single machine.
    #[serde(default)]
    pub(crate) hosts: Option<Names>,
    /// A set of hosts, instead of `hosts`: `worker-[1-80] ! @broken`, with `,` for both, `!` for without, `&` for in both and
    /// `^` for in one of two; `@NAME` is a group of the environment or one of `sets`, `@all` every host of the environment.
    #[serde(default)]
    pub(crate) select: Option<Literal>,
    /// Names, or lists of names, that `select` knows as `@NAME`: hosts that other steps have found. They are taken as they
    /// are, and one without any host is a set like others.
    #[serde(default)]
    pub(crate) sets: BTreeMap<String, Names>,
    /// Hosts to leave out of the set.
    #[serde(default)]
    pub(crate) except: Option<Names>,
    /// The program and its arguments. A program without a slash is looked for in the usual folders.
    pub(crate) argv: Vec<FreeText>,
    /// A command that changes nothing and succeeds where `argv` need not be run.
    #[serde(default)]
    pub(crate) unless: Option<Vec<FreeText>>,
    /// Environment variables to add.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, FreeText>,
    /// The folder to run in, an absolute path. Left out, `/`.
    #[serde(default)]
    pub(crate) cwd: Option<String>,
    /// Text for its standard input. Left out, the input is empty.
    #[serde(default)]
    pub(crate) stdin: Option<String>,
    /// The author's word that the command changes nothing.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// The exit codes that mean success.
    #[serde(default = "outcome::default_ok_codes")]
    pub(crate) ok_codes: Vec<u8>,
    /// How many bytes are kept of the beginning of each output, and as many of its end.
    #[serde(default = "outcome::default_max_output")]
    pub(crate) max_output: u32,
    /// After this time the machine itself ends the command, even when Farrier or the connection is gone.
    #[serde(default = "outcome::default_time_limit")]
    #[schemars(default = "outcome::shown_time_limit")]
    pub(crate) time_limit: Length,
    /// How many hosts at once: a number or a share such as `30%`. A host that is done makes room for the next. The default
    /// is 32.
    #[serde(default)]
    pub(crate) batch: Option<Share>,
    /// The next batch begins only when all of the one before is done.
    #[serde(default)]
    pub(crate) whole_batches: bool,
    /// A pause after each host before the next takes its place; with `whole_batches`, between batches.
    #[serde(default)]
    pub(crate) pause: Option<Length>,
    /// How many hosts must succeed: a number or a share such as `90%`. When that can no longer be, no further host is begun,
    /// and the step fails. The default is all.
    #[serde(default)]
    pub(crate) must_succeed: Option<Share>,
    /// What people are shown instead of the command line.
    #[serde(skip)]
    pub(crate) title: Option<String>,
}

impl Action for Run {
    const NAME: &'static str = "host.run";
    const EFFECT: Effect = Effect::Probed;
    const RISK: Risk = Risk::Destructive;
    const READ_ONLY_IF: Option<&'static str> = Some("read_only");
    const EXAMPLE: &'static str = "\
evidence:
  uses: host.run
  with:
    target: nodes
    hosts: tools-k8s-worker-12
    argv: [ps, -eo, 'pid,stat,user,etimes,args', --no-headers]
    read_only: true
  timeout: 20s
  undo: none
";
    type Output = Ran;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Ran>, Failure> {
        self.check()?;
        let host = cx.reader(&self.target).await?;
        let at_target = |failure: Failure| failure.at(self.target.alias());
        let chosen = host.choose(self.choice()).map_err(at_target)?;
        let pace = self.pace(chosen.len())?;
        if self.read_only {
            let results = self.run(&host, &chosen, pace, cx).await;
            return outcome::judge(&chosen, results, pace, &self.command_line())
                .map(Planned::known)
                .map_err(at_target);
        }
        for name in &chosen {
            host.transport.find_program(name, &self.argv[0].0).map_err(at_target)?;
        }
        let left = self.left(&host, &chosen, cx).await.map_err(at_target)?;
        if left.is_empty() {
            let done = chosen.iter().map(|_| Some(Done::nothing_to_do())).collect();
            return outcome::judge(&chosen, done, pace, "").map(Planned::known);
        }
        let considered = self.unless.as_ref().map(|_| chosen.len() as u64);
        let changes = left.iter().map(|name| self.change(host.named(name))).collect();
        Ok(Planned { considered, ..Planned::described(changes) })
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Ran, Failure> {
        self.check()?;
        let host = cx.writer(&self.target).await?;
        let at_target = |failure: Failure| failure.at(self.target.alias());
        let chosen = self.planned(&host, changes)?;
        let pace = self.pace(chosen.len())?;
        let results = self.run(&host, &chosen, pace, cx).await;
        outcome::judge(&chosen, results, pace, &self.command_line()).map_err(at_target)
    }

    async fn probe(&self, cx: &ReadCx, changes: &[Change]) -> Result<Probe, Failure> {
        if self.unless.is_none() {
            return Ok(Probe::Unknown);
        }
        let host = cx.reader(&self.target).await?;
        let chosen = self.planned(&host, changes)?;
        // Where it is not done it can be begun again: `unless` is asked once more before, host by host.
        let left = self.left(&host, &chosen, cx).await.map_err(|failure| failure.at(self.target.alias()))?;
        Ok(if left.is_empty() { Probe::Applied } else { Probe::NotApplied })
    }
}

impl Run {
    /// Of a script, its text.
    pub(crate) fn script_text(&self) -> &str {
        self.argv.get(2).map_or("", |text| &text.0)
    }

    fn choice(&self) -> Choice<'_> {
        Choice::of(self.hosts.as_ref(), self.select.as_ref(), &self.sets, self.except.as_ref())
    }

    fn pace(&self, total: usize) -> Result<Pace, Failure> {
        Pace::new(total, self.batch, self.whole_batches, self.pause, self.must_succeed)
    }

    /// What the kernel would refuse anyway, in the author's words and before anything is touched.
    fn check(&self) -> Result<(), Failure> {
        check_argv("argv", &self.argv)?;
        if let Some(unless) = &self.unless {
            check_argv("unless", unless)?;
        }
        check_env(&self.env)?;
        check_folder("cwd", self.cwd.as_deref())?;
        self.pace(1)?;
        if self.read_only && self.unless.is_some() {
            return input("a command that is `read_only` has nothing to leave out with `unless`".into());
        }
        Ok(())
    }

    /// What is shown before it runs, and compared when it does.
    fn change(&self, host: Option<&str>) -> Change {
        let mut after = Vec::new();
        let mut object = self.command_line();
        if let Some(name) = host {
            object = format!("{name}: {object}");
            after.push(("host", Value::text(name)));
        }
        after.push((
            "argv",
            Value::list(self.argv.iter().map(|argument| Value::text(&*argument.0)).collect()),
        ));
        if !self.env.is_empty() {
            let env = self.env.iter().map(|(name, value)| (name.as_str(), Value::text(&*value.0)));
            after.push(("env", Value::map(env)));
        }
        after.extend(self.cwd.iter().map(|folder| ("cwd", Value::text(&**folder))));
        after.extend(self.stdin.iter().map(|text| ("stdin", Value::text(&**text))));
        Change {
            object: object.into(),
            kind: ChangeKind::Run,
            before: Value::Null,
            after: Value::map(after),
            fingerprint: None,
        }
    }

    /// The hosts of changes, if they are exactly what this step would make.
    fn planned(&self, host: &Host, changes: &[Change]) -> Result<Vec<String>, Failure> {
        let of = |change: &Change| {
            let name = host.of_change(change)?;
            (self.change(host.named(&name)) == *change).then_some(name)
        };
        let names: Option<Vec<String>> = changes.iter().map(of).collect();
        names.ok_or_else(|| Failure::new(FailureKind::Drift, "the command is not the one that was planned"))
    }

    fn command_line(&self) -> String {
        if let Some(title) = &self.title {
            return title.clone();
        }
        let argv: Vec<&str> = self.argv.iter().map(|argument| &*argument.0).collect();
        words::command_line(&argv)
    }

    /// The hosts where the work is not done yet, as far as `unless` can tell.
    async fn left(&self, host: &Host, chosen: &[String], cx: &ReadCx) -> Result<Vec<String>, Failure> {
        let Some(unless) = &self.unless else { return Ok(chosen.to_vec()) };
        let marks = Marks::of(cx.node());
        let pace = Pace::new(chosen.len(), self.batch, false, None, None)?;
        let ask = async |at: usize| is_done(host, &chosen[at], unless, &marks).await;
        let answers = fan_out(chosen, pace, ask, Result::is_err, telling(cx, chosen.len())).await;
        let mut left = Vec::new();
        for (name, answer) in chosen.iter().zip(answers) {
            match answer {
                Some(Ok(true)) | None => {}
                Some(Ok(false)) => left.push(name.clone()),
                Some(Err(failure)) => return Err(failure),
            }
        }
        Ok(left)
    }

    async fn run(&self, host: &Host, chosen: &[String], pace: Pace, cx: &ReadCx) -> Vec<Option<Done>> {
        let marks = Marks::of(cx.node());
        let work = async |at: usize| {
            let name = &chosen[at];
            if let Some(unless) = self.unless.as_ref().filter(|_| !self.read_only) {
                match is_done(host, name, unless, &marks).await {
                    Ok(true) => return Done::nothing_to_do(),
                    Ok(false) => {}
                    Err(failure) => return Done::failed(failure),
                }
            }
            let command = Command {
                argv: self.argv.iter().map(|argument| &*argument.0).collect(),
                env: self.env.iter().map(|(name, value)| (name.as_str(), value.0.as_str())).collect(),
                marks: &marks,
                cwd: self.cwd.as_deref().unwrap_or("/"),
                stdin: self.stdin.as_deref(),
                max_output: self.max_output as usize,
                time_limit: self.time_limit.0,
                read_only: self.read_only,
            };
            match host.transport.run(name, &command).await {
                Ok(finished) => Done::finished(finished, &self.ok_codes),
                Err(failure) => Done::failed(failure),
            }
        };
        fan_out(chosen, pace, work, Done::has_failed, telling(cx, chosen.len())).await
    }
}

/// Whether the command that tells says that the work is done.
async fn is_done(host: &Host, name: &str, unless: &[FreeText], marks: &Marks) -> Result<bool, Failure> {
    let argv: Vec<&str> = unless.iter().map(|argument| &*argument.0).collect();
    let mut command = Command::new(&argv, marks).reading();
    command.time_limit = Duration::from_secs(300);
    let finished = host.transport.run(name, &command).await?;
    match finished.ended {
        Ended::Code(0) => Ok(true),
        Ended::Code(_) => Ok(false),
        // A probe that did not end by itself has said nothing.
        ended => Err(Failure::new(
            FailureKind::Exit,
            format!("on `{name}`, `unless` (`{}`) {}", words::command_line(&argv), ended.text()),
        )),
    }
}

fn input<T>(message: String) -> Result<T, Failure> {
    Err(Failure::new(FailureKind::Input, message))
}

fn nul(text: &str) -> bool {
    text.contains('\0')
}

pub(crate) fn check_argv(field: &str, argv: &[FreeText]) -> Result<(), Failure> {
    match argv.first().map(|program| &*program.0) {
        None | Some("") => return input(format!("`{field}` names no program")),
        Some(program) if program.contains('/') && !program.starts_with('/') => {
            return input(format!("the program `{program}` must be a plain name or an absolute path"));
        }
        Some("." | "..") => return input(format!("`{field}` names a folder, not a program")),
        Some(program) if program.starts_with('-') || program.contains('=') => {
            return input(format!("`{program}` is not the name of a program"));
        }
        Some(_) => {}
    }
    match argv.iter().position(|argument| nul(&argument.0)) {
        Some(at) => input(format!("`{field}[{at}]` contains a NUL character")),
        None => Ok(()),
    }
}

pub(crate) fn check_env(env: &BTreeMap<String, FreeText>) -> Result<(), Failure> {
    for (name, value) in env {
        if name.is_empty() || name.contains('=') || nul(name) {
            return input(format!("`env`: {name:?} is not the name of a variable"));
        }
        if name.starts_with(marks::RESERVED) {
            return input(format!(
                "`env.{name}`: names that begin with `{}` are Farrier's own",
                marks::RESERVED
            ));
        }
        if nul(&value.0) {
            return input(format!("`env.{name}` contains a NUL character"));
        }
    }
    Ok(())
}

pub(crate) fn check_folder(field: &str, folder: Option<&str>) -> Result<(), Failure> {
    match folder {
        Some(folder) if !folder.starts_with('/') || nul(folder) => {
            input(format!("`{field}`: {folder:?} is not an absolute path"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use farrier_action::harness::{Case, Shown, World};
    use farrier_action::{ActionRegistry, Binding, Targets};
    use farrier_model::{Fidelity, Scope};
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Value {
        Value::from_json(&text.replace('\'', "\"")).unwrap()
    }

    fn words(words: &[&str]) -> Value {
        Value::list(words.iter().map(|word| Value::text(*word)).collect())
    }

    fn input(argv: &[&str], more: &str) -> Value {
        let more = json(more);
        let fields = [("target".into(), Value::text("here")), ("argv".into(), words(argv))];
        Value::map(
            fields
                .into_iter()
                .chain(more.as_map().unwrap().iter().map(|(key, value)| (key.clone(), value.clone()))),
        )
    }

    /// The laws of actions, with a file as the world: its content stands under the command line.
    async fn prove(input: Value, file: Option<&Path>, bad_inputs: Vec<Value>) -> Result<Shown, Failure> {
        let mut registry = ActionRegistry::default();
        crate::register(&mut registry).unwrap();
        let binding = Binding { alias: "here".into(), kind: "host".into(), config: json("{'local': true}") };
        let object = input.read::<Run>().unwrap().command_line();
        let case = Case {
            registry: &registry,
            action: "host.run",
            input,
            targets: Arc::new(Targets::new("/".into(), vec![binding], BTreeMap::new())),
            scope: Scope::default(),
            observe: Box::new(|| {
                let content = file.and_then(|file| std::fs::read_to_string(file).ok());
                let world: World =
                    content.map(|content| (object.clone(), Value::text(content))).into_iter().collect();
                Box::pin(async { world })
            }),
            disturb: None,
            bad_inputs,
        };
        case.prove().await
    }

    async fn output(argv: &[&str], more: &str) -> Result<Value, Failure> {
        prove(input(argv, more), None, Vec::new()).await.map(|shown| shown.output)
    }

    fn field(output: &Value, name: &str) -> String {
        output.get(name).unwrap().to_string()
    }

    #[tokio::test]
    async fn a_command_is_shown_by_the_plan_and_run_by_apply() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a file");
        let argv = ["sh", "-c", "echo run >>\"$1\"; echo done", "sh", file.to_str().unwrap()];
        let shown = prove(input(&argv, "{}"), Some(&file), Vec::new()).await.unwrap();
        assert_eq!(shown.plan.fidelity, Fidelity::Described);
        assert!(shown.plan.output.is_none(), "its output is known only after it ran");
        let [change] = shown.plan.changes.as_slice() else { panic!() };
        assert_eq!(change.kind, ChangeKind::Run);
        let expected = format!("sh -c 'echo run >>\"$1\"; echo done' sh '{}'", file.display());
        assert_eq!(&*change.object, expected);
        assert_eq!(change.after.get("argv"), Some(&words(&argv)));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "run\n", "once, and not by planning");
        let group = "{'hosts': ['localhost'], 'folded': 'localhost', 'state': 'succeeded', 'code': 0,
                      'stdout': 'done\\n', 'stderr': '', 'reason': ''}";
        let result = "{'host': 'localhost', 'state': 'succeeded', 'code': 0, 'group': 0}";
        let expected = format!(
            "{{'stdout': 'done\\n', 'stderr': '', 'code': 0, 'cut': false, 'failed': [], 'results': [{result}], \
             'groups': [{group}]}}"
        );
        assert_eq!(shown.output, json(&expected));
    }

    #[tokio::test]
    async fn a_command_that_only_reads_runs_in_the_plan() {
        let shown =
            prove(input(&["echo", "a  b", "$HOME"], "{'read_only': true}"), None, Vec::new()).await.unwrap();
        assert!(shown.plan.changes.is_empty());
        assert_eq!(field(&shown.plan.output.unwrap(), "stdout"), "a  b $HOME\n");
    }

    #[tokio::test]
    async fn exit_codes_and_signals_are_failures_with_the_last_words() {
        for (script, ok_codes, expected) in [
            ("echo out; echo wrong >&2; exit 3", "[0]", "ended with code 3: wrong"),
            ("echo out; exit 3", "[0]", "ended with code 3: out"),
            ("exit 0", "[3]", "ended with code 0"),
            ("kill -9 $$", "[0]", "was ended by signal 9"),
        ] {
            for read_only in [true, false] {
                let more = format!("{{'read_only': {read_only}, 'ok_codes': {ok_codes}}}");
                let failure = output(&["sh", "-c", script], &more).await.unwrap_err();
                assert_eq!(
                    (failure.kind, failure.target.as_deref()),
                    (FailureKind::Exit, Some("here")),
                    "{script}"
                );
                assert_eq!(failure.message, format!("`sh -c '{script}'` {expected}"));
            }
        }
        let accepted = output(&["sh", "-c", "exit 3"], "{'ok_codes': [0, 3]}").await.unwrap();
        assert_eq!(accepted.get("code"), Some(&Value::Int(3)));
        let long = output(&["sh", "-c", "seq 1 100000 >&2; exit 1"], "{}").await.unwrap_err();
        assert!(
            long.message.ends_with("99999\n100000") && long.message.len() < 2000,
            "{}",
            long.message.len()
        );
    }

    #[tokio::test]
    async fn long_output_keeps_its_ends() {
        let output = output(&["seq", "1", "100000"], "{'max_output': 20}").await.unwrap();
        assert_eq!(
            field(&output, "stdout"),
            "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n… 588855 bytes left out …\n\n99998\n99999\n100000\n"
        );
        assert_eq!(output.get("cut"), Some(&Value::Bool(true)));
    }

    #[tokio::test]
    async fn folder_input_and_environment_are_as_told() {
        let more = "{'cwd': '/usr', 'stdin': 'in', 'env': {'WORD': 'a b', 'LANG': 'C'}}";
        let shown = output(&["sh", "-c", "pwd; cat; echo; echo \"$WORD\""], more).await.unwrap();
        assert_eq!(field(&shown, "stdout"), "/usr\nin\na b\n");
        // The test's own environment has many more, some of them possibly secret.
        let names = output(&["sh", "-c", "env | cut -d= -f1 | sort"], more).await.unwrap();
        let known = [
            "FARRIER_EFFECT",
            "FARRIER_NODE",
            "FARRIER_RUN",
            "HOME",
            "LANG",
            "LOGNAME",
            "PATH",
            "PWD",
            "SHLVL",
            "USER",
            "WORD",
            "_",
            "OLDPWD",
        ];
        assert!(field(&names, "stdout").lines().all(|name| known.contains(&name)), "{names}");
    }

    #[tokio::test]
    async fn a_command_knows_its_run_and_its_key() {
        let script = "echo $FARRIER_RUN $FARRIER_NODE $FARRIER_EFFECT";
        let output = output(&["sh", "-c", script], "{'read_only': true}").await.unwrap();
        let (run, node) = (farrier_model::RunId::at(0, [7; 10]), farrier_model::NodeName::step("case"));
        let effect = farrier_model::ids::effect_id(run, &node, "do");
        assert_eq!(field(&output, "stdout"), format!("{run} case {effect}\n"));
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_named() {
        for (argv, more, kind, expected) in [
            (&["no-such-program"][..], "{}", FailureKind::Refused, "there is no program `no-such-program`"),
            (&["/no/such/program"], "{}", FailureKind::Refused, "cannot start `/no/such/program`"),
            (&["/etc/passwd"], "{}", FailureKind::Denied, "cannot start `/etc/passwd`"),
            (
                &["true"],
                "{'cwd': '/no/such/folder'}",
                FailureKind::Refused,
                "there is no folder `/no/such/folder`",
            ),
        ] {
            let failure = output(argv, more).await.unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.message.contains(expected), "{failure}");
        }
        let long = "x".repeat(3 << 20);
        let failure = output(&["true", &long], "{}").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Limit, "{}", words::shortened(&failure.message, 100));
    }

    #[tokio::test]
    async fn bad_input_is_refused() {
        let bad = [
            input(&[], "{}"),
            input(&[""], "{}"),
            input(&["bin/true"], "{}"),
            input(&[".."], "{}"),
            input(&["true", "a\0b"], "{}"),
            input(&["true"], "{'env': {'A=B': 'c'}}"),
            input(&["true"], "{'env': {'': 'c'}}"),
            input(&["true"], "{'env': {'A': 'c\\u0000'}}"),
            input(&["true"], "{'env': {'FARRIER_RUN': 'c'}}"),
            input(&["true"], "{'cwd': 'relative'}"),
            input(&["true"], "{'ok_codes': [256]}"),
            input(&["true"], "{'argv': 'true'}"),
            input(&["true"], "{'hosts': ['a']}"),
        ];
        prove(input(&["true"], "{}"), None, bad.into()).await.unwrap();
    }

    #[tokio::test]
    async fn another_command_than_the_planned_one_is_not_run() {
        let run: Run = input(&["true"], "{}").read().unwrap();
        let other: Run = input(&["true", "x"], "{}").read().unwrap();
        assert_ne!(run.change(None), other.change(None));
        let with_input: Run = input(&["true"], "{'stdin': 'x'}").read().unwrap();
        assert_ne!(run.change(None), with_input.change(None));
    }

    #[test]
    fn the_example_is_a_step() {
        let mut registry = ActionRegistry::default();
        crate::register(&mut registry).unwrap();
        let spec = &registry.catalog().actions["host.run"];
        let step: Value = serde_saphyr::from_str(spec.example).unwrap();
        let with = step.get("evidence").and_then(|step| step.get("with")).unwrap();
        registry.bind("host.run", with).map(drop).unwrap();
        assert_eq!(spec.input["properties"]["argv"]["items"]["x-farrier"], "text", "{}", spec.input);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the arguments are, the program gets them byte for byte.
        #[test]
        fn arguments_arrive_as_they_are(arguments in proptest::collection::vec("[^\0]{0,20}|[-$`'\"\\\\;&|<>(){}*?~#!\n\t %]{0,12}", 1..8)) {
            let mut argv = vec!["/usr/bin/printf", "%s\\0"];
            argv.extend(arguments.iter().map(String::as_str));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let output = runtime.block_on(output(&argv, "{}")).unwrap();
            let expected: String = arguments.iter().flat_map(|argument| [argument, "\0"]).collect();
            prop_assert_eq!(field(&output, "stdout"), expected);
        }
    }
}
