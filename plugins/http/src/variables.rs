//! `http.variables`.

use std::collections::BTreeMap;
use std::sync::Arc;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Secret, Value};
use farrier_outbound::Web;
use farrier_plugin_files::deposit::{Found, SecretPlace};
use farrier_plugin_files::options::option;
use farrier_plugin_files::{Files, FilesTarget};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::parts::Path;
use crate::shelf::{Kept, Shelf, check_name, check_way};
use crate::target::Http;

/// Sets variables at a server to what files of credentials say, such as those that `sql.credentials` makes.
///
/// The file is the truth: a variable that is missing or has another value is set, and read back. The value goes from the file
/// into the request and is nowhere else; plans and results name the file. An owner without a file is left alone and named in
/// the output, and so is one whose variables the server does not let be read or set: the others are not kept waiting. Only
/// when that happens to ten in a row, the step fails, since the server itself is in trouble.
///
/// There is no undo, since what a variable was before is told to nobody.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Variables {
    /// The server.
    target: Target<Http>,
    /// The field of its answer to `GET` that has the list of `name` and `value`.
    list: String,
    /// The variables to set, each with the option of the file that has its value, such as `user` and `password`. Others stay
    /// as they are.
    set: BTreeMap<String, String>,
    /// The target with the files.
    files: Target<FilesTarget>,
    /// The root that they lie beneath.
    root: String,
    /// Whose variables they are.
    owners: Vec<Owner>,
}

/// Somebody with a file and variables.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Owner {
    /// The name in plans and results.
    name: String,
    /// Where the server keeps the variables: one text for each segment of the path below that of the target.
    path: Path,
    /// The path of the file beneath the root, as a list of segments.
    #[schemars(with = "Vec<String>")]
    file: Value,
}

/// What `http.variables` did.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct VariablesSet {
    /// Those whose variables were set.
    set: Vec<String>,
    /// Those who have no file.
    without_a_file: Vec<String>,
    /// Those whose variables are as they were, and why.
    refused: Vec<Refused>,
}

/// Somebody whose variables could not be read or set.
#[derive(Debug, Serialize, JsonSchema)]
struct Refused {
    /// Who.
    name: String,
    /// Why.
    reason: String,
}

/// How many owners are looked at together.
const AT_ONCE: usize = 8;
/// After so many failures in a row, the others are not tried.
const IN_A_ROW: usize = 10;
/// How many of those who cannot be read a plan names.
const NOTED: usize = 10;

impl VariablesSet {
    fn new() -> VariablesSet {
        VariablesSet { set: Vec::new(), without_a_file: Vec::new(), refused: Vec::new() }
    }
}

/// What was found of an owner.
enum Looked {
    NoFile,
    /// What the file says, and what is kept at the server.
    Both {
        wanted: Kept,
        kept: Kept,
    },
}

/// Counts failures in a row.
#[derive(Default)]
struct Patience(usize);

impl Patience {
    fn went_well(&mut self) {
        self.0 = 0;
    }

    /// Notes one who was refused, or gives up.
    fn refused(&mut self, output: &mut VariablesSet, owner: &Owner, failure: Failure) -> Result<(), Failure> {
        self.0 += 1;
        if self.0 == IN_A_ROW {
            return Err(failure);
        }
        output.refused.push(Refused { name: owner.name.clone(), reason: failure.message });
        Ok(())
    }
}

impl Variables {
    fn check(&self) -> Result<(), Failure> {
        let input = |message: &str| Err(Failure::new(FailureKind::Input, message));
        if self.set.is_empty() {
            return input("`set` names none");
        }
        self.set.keys().try_for_each(|name| check_name(name))?;
        for owner in &self.owners {
            if owner.path.is_empty() {
                return input("the `path` of an owner is empty");
            }
            farrier_outbound::Request::new(
                farrier_outbound::Method::Get,
                owner.path.iter().map(|part| &part.0),
            )?;
            self.place(owner)?;
        }
        let mut names: Vec<&str> = self.owners.iter().map(|owner| owner.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return input("an owner's name comes twice");
        }
        Ok(())
    }

    fn place(&self, owner: &Owner) -> Result<SecretPlace, Failure> {
        SecretPlace::new(&self.root, &owner.file, None)
    }

    fn object(owner: &Owner) -> String {
        format!("variables of {}", owner.name)
    }

    fn shelf<'a>(&'a self, web: &'a dyn Web, owner: &'a Owner) -> Shelf<'a> {
        Shelf { web, path: &owner.path, list: &self.list }
    }

    /// What the file says; nothing when there is none.
    async fn wanted(&self, files: Arc<Files>, owner: &Owner) -> Result<Option<Kept>, Failure> {
        let place = self.place(owner)?;
        let Found::Text(text) = place.look(files).await? else { return Ok(None) };
        let value = |(name, field): (&String, &String)| -> Result<(String, Secret), Failure> {
            let value = option(&text, field).ok_or_else(|| {
                Failure::new(FailureKind::Refused, format!("`{}` has no `{field}`", place.shown()))
            })?;
            Ok((name.clone(), value))
        };
        self.set.iter().map(value).collect::<Result<Kept, Failure>>().map(Some)
    }

    async fn look(&self, web: &dyn Web, files: Arc<Files>, owner: &Owner) -> Result<Looked, Failure> {
        let Some(wanted) = self.wanted(files, owner).await? else { return Ok(Looked::NoFile) };
        let kept = self.shelf(web, owner).read().await?;
        Ok(Looked::Both { wanted, kept })
    }

    /// The change of an owner, nothing when all is as wanted.
    fn change(&self, owner: &Owner, wanted: &Kept, kept: &Kept) -> Result<Option<Change>, Failure> {
        let differing: Vec<&String> = differing(wanted, kept).map(|(name, _)| name).collect();
        if differing.is_empty() {
            return Ok(None);
        }
        let file = self.place(owner)?.shown();
        let before = differing.iter().filter(|name| kept.contains_key(**name));
        let before: Vec<_> = before.map(|name| (name.as_str(), Value::text("another one"))).collect();
        let after = differing.iter().map(|name| {
            let field = self.set.get(*name).map_or("", String::as_str);
            (name.as_str(), Value::text(format!("{field} in {file}")))
        });
        let is_new = before.is_empty();
        Ok(Some(Change {
            object: Self::object(owner).into(),
            kind: if is_new { ChangeKind::Create } else { ChangeKind::Update },
            before: if is_new { Value::Null } else { Value::map(before) },
            after: Value::map(after),
            // None of what is secret: a short one could be guessed from it.
            fingerprint: None,
        }))
    }

    async fn plan_all(&self, cx: &ReadCx) -> Result<Planned<VariablesSet>, Failure> {
        self.check()?;
        let (reader, files) = (cx.reader(&self.target).await?, cx.reader(&self.files).await?);
        check_way(reader.in_the_clear)?;
        let (mut changes, mut output) = (Vec::new(), VariablesSet::new());
        let mut patience = Patience::default();
        let mut looks = Vec::with_capacity(self.owners.len());
        for owner in &self.owners {
            looks.push(self.look(&*reader.web, files.clone(), owner).boxed());
        }
        let mut looked = stream::iter(looks).buffered(AT_ONCE);
        for owner in &self.owners {
            let Some(found) = looked.next().await else { break };
            match found {
                Ok(Looked::NoFile) => output.without_a_file.push(owner.name.clone()),
                Ok(Looked::Both { wanted, kept }) => {
                    patience.went_well();
                    if let Some(change) = self.change(owner, &wanted, &kept)? {
                        changes.push(change);
                        output.set.push(owner.name.clone());
                    }
                }
                Err(failure) => patience.refused(&mut output, owner, failure)?,
            }
        }
        // What applying meets is known then, but who reads the plan is to hear of it, too.
        let notes: Vec<String> = output
            .refused
            .iter()
            .take(NOTED)
            .map(|refused| format!("the variables of {} cannot be read: {}", refused.name, refused.reason))
            .collect();
        let planned = Planned::changes(changes, output).considered(self.owners.len());
        Ok(notes.into_iter().fold(planned.unknown("set").unknown("refused"), Planned::note))
    }

    /// Sets what differs, if it is what the plan saw: nothing where it planned to make something, and something where it
    /// planned to replace it. What was there is not known well enough to be compared, and does not count.
    async fn bring(
        &self,
        web: &dyn Web,
        owner: &Owner,
        change: &Change,
        wanted: Kept,
        kept: Kept,
    ) -> Result<(), Failure> {
        for (name, value) in differing(&wanted, &kept) {
            let was_there = change.before.get(name).is_some();
            if change.after.get(name).is_none() || was_there != kept.contains_key(name) {
                let message = format!("`{name}` of {} is not as it was when it was planned", owner.name);
                return Err(Failure::new(FailureKind::Drift, message));
            }
            self.shelf(web, owner).set(name, value).await?;
        }
        let kept = self.shelf(web, owner).read().await?;
        match differing(&wanted, &kept).next() {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("the server took `{name}` of {} and has another value", owner.name);
                Err(Failure::new(FailureKind::Refused, message))
            }
        }
    }

    async fn apply_all(&self, cx: &WriteCx, changes: &[Change]) -> Result<VariablesSet, Failure> {
        self.check()?;
        let (writer, files) = (cx.writer(&self.target).await?, cx.reader(&self.files).await?);
        check_way(writer.in_the_clear)?;
        let (mut output, mut patience) = (VariablesSet::new(), Patience::default());
        let web = &*writer.web;
        for owner in &self.owners {
            let object = Self::object(owner);
            let change = changes.iter().find(|change| *change.object == *object);
            let done = match (self.look(web, files.clone(), owner).await, change) {
                (Ok(Looked::NoFile), Some(_)) => {
                    let message = format!("`{}` is gone", self.place(owner)?.shown());
                    return Err(Failure::new(FailureKind::Drift, message));
                }
                (Ok(Looked::NoFile), None) => {
                    output.without_a_file.push(owner.name.clone());
                    continue;
                }
                // What the plan did not see is for the next run.
                (Ok(Looked::Both { .. }), None) => Ok(()),
                (Ok(Looked::Both { wanted, kept }), Some(change)) => {
                    self.bring(web, owner, change, wanted, kept).await
                }
                (Err(failure), _) => Err(failure),
            };
            match done {
                Err(failure) if failure.kind == FailureKind::Drift => return Err(failure),
                Err(failure) => patience.refused(&mut output, owner, failure)?,
                Ok(()) => {
                    patience.went_well();
                    output.set.extend(change.map(|_| owner.name.clone()));
                }
            }
        }
        Ok(output)
    }
}

/// What is wanted and not kept.
fn differing<'a>(wanted: &'a Kept, kept: &'a Kept) -> impl Iterator<Item = (&'a String, &'a Secret)> {
    wanted.iter().filter(|(name, value)| kept.get(*name).is_none_or(|kept| kept.reveal() != value.reveal()))
}

impl Action for Variables {
    const NAME: &'static str = "http.variables";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
envvars:
  uses: http.variables
  with:
    target: envvars
    list: envvars
    set: { TOOL_TOOLSDB_USER: user, TOOL_TOOLSDB_PASSWORD: password }
    files: homes
    root: tool_homes
    owners:
      - { name: tools.example, path: [envvars, v1, tool, example, envvars], file: [example, replica.my.cnf] }
  expect:
    - { that: result.refused | length == 0, otherwise: some variables could not be set }
  undo: none
";
    type Output = VariablesSet;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<VariablesSet>, Failure> {
        self.plan_all(cx).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<VariablesSet, Failure> {
        self.apply_all(cx, changes).await.map_err(|failure| failure.at(self.target.alias()))
    }
}
