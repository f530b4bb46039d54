//! `host.run`.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::marks::{self, Marks};
use crate::process::{self, Finished, Spec};
use crate::target::{Host, HostTarget, PATH};

/// Runs one command. No shell reads it: each argument reaches the program as it is.
///
/// Farrier cannot know what a command changes, so a plan only shows the command, and after a crash in the middle a
/// person decides. A command that changes nothing says `read_only: true`: it then also runs in plans, and later steps
/// can use its output there.
///
/// The command gets a small fixed environment (`PATH`, `LANG`, `HOME`, `USER`, `LOGNAME`) and what `env` adds. `FARRIER_RUN`
/// and `FARRIER_NODE` say what it belongs to; `FARRIER_EFFECT` is the same for every attempt of the step, so a script can
/// use it as a key to do its work only once. When the step ends, is cancelled or takes too long, everything that the command started is ended as well.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The machine.
    target: Target<HostTarget>,
    /// The program and its arguments. A program without a slash is looked for in the usual folders.
    argv: Vec<FreeText>,
    /// Environment variables to add.
    #[serde(default)]
    env: BTreeMap<String, FreeText>,
    /// The folder to run in, an absolute path. Left out, `/`.
    #[serde(default)]
    cwd: Option<String>,
    /// Text for its standard input. Left out, the input is empty.
    #[serde(default)]
    stdin: Option<String>,
    /// The author's word that the command changes nothing.
    #[serde(default)]
    read_only: bool,
    /// The exit codes that mean success.
    #[serde(default = "default_ok_codes")]
    ok_codes: Vec<u8>,
    /// How many bytes are kept of the beginning of each output, and as many of its end.
    #[serde(default = "default_max_output")]
    max_output: u32,
}

fn default_ok_codes() -> Vec<u8> {
    vec![0]
}

fn default_max_output() -> u32 {
    64 << 10
}

/// What the command said.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ran {
    /// Its standard output. Bytes that are not UTF-8 become `�`.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
    /// The middle of an output was left out because it was longer than `max_output` allows.
    pub cut: bool,
}

impl Action for Run {
    const NAME: &'static str = "host.run";
    const EFFECT: Effect = Effect::Once;
    const RISK: Risk = Risk::Destructive;
    const EXAMPLE: &'static str = "\
evidence:
  uses: host.run
  with:
    target: nodes
    argv: [ps, -eo, 'pid,stat,user,etimes,args', --no-headers]
    read_only: true
  timeout: 20s
  undo: none
";
    type Output = Ran;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Ran>, Failure> {
        self.check()?;
        let host = cx.reader(&self.target).await?;
        if self.read_only {
            return self.run(&host, cx).await.map(Planned::known);
        }
        host.program(&self.argv[0].0).map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Planned::described(vec![self.change()]))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Ran, Failure> {
        self.check()?;
        if *changes != [self.change()] {
            return Err(Failure::new(FailureKind::Drift, "the command is not the one that was planned"));
        }
        let host = cx.writer(&self.target).await?;
        self.run(&host, cx).await
    }
}

impl Run {
    /// What the kernel would refuse anyway, in the author's words and before anything is touched.
    fn check(&self) -> Result<(), Failure> {
        let input = |message: String| Err(Failure::new(FailureKind::Input, message));
        let nul = |text: &str| text.contains('\0');
        match self.argv.first().map(|program| &*program.0) {
            None | Some("") => return input("`argv` names no program".into()),
            Some(program) if program.contains('/') && !program.starts_with('/') => {
                return input(format!("the program `{program}` must be a plain name or an absolute path"));
            }
            Some("." | "..") => return input("`argv` names a folder, not a program".into()),
            Some(_) => {}
        }
        if let Some(at) = self.argv.iter().position(|argument| nul(&argument.0)) {
            return input(format!("`argv[{at}]` contains a NUL character"));
        }
        for (name, value) in &self.env {
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
        match &self.cwd {
            Some(folder) if !folder.starts_with('/') || nul(folder) => {
                input(format!("`cwd`: {folder:?} is not an absolute path"))
            }
            _ => Ok(()),
        }
    }

    /// What is shown before it runs, and compared when it does.
    fn change(&self) -> Change {
        let mut after =
            vec![("argv", Value::list(self.argv.iter().map(|argument| Value::text(&*argument.0)).collect()))];
        if !self.env.is_empty() {
            let env = self.env.iter().map(|(name, value)| (name.as_str(), Value::text(&*value.0)));
            after.push(("env", Value::map(env)));
        }
        after.extend(self.cwd.iter().map(|folder| ("cwd", Value::text(&**folder))));
        after.extend(self.stdin.iter().map(|text| ("stdin", Value::text(&**text))));
        Change {
            object: self.command_line().into(),
            kind: ChangeKind::Run,
            before: Value::Null,
            after: Value::map(after),
            fingerprint: None,
        }
    }

    /// The command for people, quoted as a shell would want it, cut when it is very long.
    fn command_line(&self) -> String {
        const SHOWN: usize = 400;
        let words: Vec<String> = self.argv.iter().map(|argument| quoted(&argument.0)).collect();
        shortened(&words.join(" "), SHOWN)
    }

    async fn run(&self, host: &Host, cx: &ReadCx) -> Result<Ran, Failure> {
        let at_target = |failure: Failure| failure.at(self.target.alias());
        let name = &*self.argv[0].0;
        let own: Vec<(&str, String)> = ["HOME", "USER", "LOGNAME"]
            .into_iter()
            .filter_map(|name| Some((name, std::env::var(name).ok()?)))
            .collect();
        let mut env = vec![("PATH", PATH), ("LANG", "C.UTF-8")];
        env.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
        let marks = Marks::of(cx.node());
        env.extend(marks.variables());
        env.extend(self.env.iter().map(|(name, value)| (name.as_str(), value.0.as_str())));
        let spec = Spec {
            program: host.program(name).map_err(at_target)?,
            arguments: self.argv[1..].iter().map(|argument| argument.0.as_str()).collect(),
            env,
            cwd: Path::new(self.cwd.as_deref().unwrap_or("/")),
            stdin: self.stdin.as_deref(),
            max_output: self.max_output as usize,
        };
        let finished = process::run(spec).await.map_err(|error| {
            host.forget(name);
            at_target(self.not_started(&error))
        })?;
        self.judge(finished).map_err(at_target)
    }

    fn not_started(&self, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind as Io;
        let folder_is_gone = self.cwd.as_ref().filter(|folder| !Path::new(folder).is_dir());
        if let Some(folder) = folder_is_gone {
            return Failure::new(FailureKind::Refused, format!("there is no folder `{folder}` to run in"));
        }
        let kind = match error.kind() {
            Io::PermissionDenied => FailureKind::Denied,
            Io::ArgumentListTooLong | Io::OutOfMemory => FailureKind::Limit,
            // Someone is just writing the program, or there are too many processes.
            Io::ExecutableFileBusy | Io::WouldBlock => FailureKind::Conflict,
            _ => FailureKind::Refused,
        };
        Failure::new(kind, format!("cannot start `{}`: {error}", self.command_line()))
    }

    fn judge(&self, finished: Finished) -> Result<Ran, Failure> {
        let cut = finished.stdout.is_cut() || finished.stderr.is_cut();
        let (stdout, stderr) = (finished.stdout.text(), finished.stderr.text());
        let ended = match (finished.status.code(), finished.status.signal()) {
            (Some(code), _) if u8::try_from(code).is_ok_and(|code| self.ok_codes.contains(&code)) => {
                return Ok(Ran { stdout, stderr, code, cut });
            }
            (Some(code), _) => format!("ended with code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended in an unknown way".into(),
        };
        let said = if stderr.trim().is_empty() { last_of(&stdout) } else { last_of(&stderr) };
        let colon = if said.is_empty() { "" } else { ": " };
        Err(Failure::new(FailureKind::Exit, format!("`{}` {ended}{colon}{said}", self.command_line())))
    }
}

/// One word of a command line, in quotes when a shell would need them or nobody could see where it ends.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@,+%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    if word.chars().any(char::is_control) {
        return format!("$'{}'", word.escape_debug());
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The end of an output, where commands say what was wrong.
fn last_of(text: &str) -> &str {
    const SHOWN: usize = 1000;
    let text = text.trim();
    let start = text.char_indices().rev().nth(SHOWN - 1).map_or(0, |(at, _)| at);
    &text[start..]
}

#[cfg(test)]
mod tests {
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
        assert_eq!(shown.output, json("{'stdout': 'done\\n', 'stderr': '', 'code': 0, 'cut': false}"));
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
        assert_eq!(failure.kind, FailureKind::Limit, "{}", shortened(&failure.message, 100));
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
        assert_ne!(run.change(), other.change());
        let with_input: Run = input(&["true"], "{'stdin': 'x'}").read().unwrap();
        assert_ne!(run.change(), with_input.change());
    }

    #[test]
    fn command_lines_are_for_people() {
        for (word, expected) in [
            ("plain-1.2/x:y=z", "plain-1.2/x:y=z"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("a\nb'c", r"$'a\nb\'c'"),
            ("é", "é"),
        ] {
            assert_eq!(quoted(word), expected, "{word:?}");
        }
        let run: Run = input(&["echo", &"x".repeat(1000)], "{}").read().unwrap();
        assert_eq!(run.command_line().chars().count(), 401);
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
