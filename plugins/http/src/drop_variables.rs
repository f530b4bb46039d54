//! `http.drop_variables`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::parts::Path;
use crate::shelf::{Shelf, check_name, check_way};
use crate::target::Http;

/// Removes variables of one owner at a server, such as those that `http.variables` sets.
///
/// What they were is shown nowhere, so there is no undo. Those that are gone already are no trouble; an owner whom the
/// server does not know (404) has none.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DropVariables {
    /// The server.
    target: Target<Http>,
    /// The field of its answer to `GET` that has the list of `name` and `value`.
    list: String,
    /// Where the server keeps the owner's variables: one text for each segment of the path below that of the target.
    path: Path,
    /// The names of those to remove.
    variables: Vec<String>,
}

/// What `http.drop_variables` did.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Dropped {
    /// Those that were removed.
    removed: Vec<String>,
}

impl DropVariables {
    fn check(&self) -> Result<(), Failure> {
        if self.path.is_empty() {
            return Err(Failure::new(FailureKind::Input, "`path` is empty"));
        }
        farrier_outbound::Request::new(farrier_outbound::Method::Get, self.path.iter().map(|part| &part.0))?;
        self.variables.iter().try_for_each(|name| check_name(name))
    }

    fn object(&self, name: &str) -> String {
        let path: String = self.path.iter().map(|part| format!("/{}", part.0)).collect();
        format!("variable {name} at {path}")
    }

    async fn plan_all(&self, cx: &ReadCx) -> Result<Planned<Dropped>, Failure> {
        self.check()?;
        let reader = cx.reader(&self.target).await?;
        check_way(reader.in_the_clear)?;
        let shelf = Shelf { web: &*reader.web, path: &self.path, list: &self.list };
        let kept = shelf.read_if_known().await?;
        let removed: Vec<String> =
            self.variables.iter().filter(|name| kept.contains_key(*name)).cloned().collect();
        let change = |name: &String| Change {
            object: self.object(name).into(),
            kind: ChangeKind::Delete,
            before: Value::text("a value"),
            after: Value::Null,
            fingerprint: None,
        };
        Ok(Planned::changes(removed.iter().map(change).collect(), Dropped { removed })
            .considered(self.variables.len()))
    }

    async fn apply_all(&self, cx: &WriteCx, changes: &[Change]) -> Result<Dropped, Failure> {
        self.check()?;
        let writer = cx.writer(&self.target).await?;
        check_way(writer.in_the_clear)?;
        let shelf = Shelf { web: &*writer.web, path: &self.path, list: &self.list };
        let mut removed = Vec::new();
        for name in &self.variables {
            let object = self.object(name);
            if changes.iter().any(|change| *change.object == *object) {
                shelf.remove(name).await?;
                removed.push(name.clone());
            }
        }
        let kept = shelf.read_if_known().await?;
        match removed.iter().find(|name| kept.contains_key(*name)) {
            None => Ok(Dropped { removed }),
            Some(name) => {
                let message = format!("the server says that `{name}` is gone, and has it");
                Err(Failure::new(FailureKind::Refused, message))
            }
        }
    }
}

impl Action for DropVariables {
    const NAME: &'static str = "http.drop_variables";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const EXAMPLE: &'static str = "\
envvars:
  uses: http.drop_variables
  needs: []
  with:
    target: envvars
    list: envvars
    path: [envvars, v1, tool, example, envvars]
    variables: [TOOL_TOOLSDB_USER, TOOL_TOOLSDB_PASSWORD]
  undo: none
";
    type Output = Dropped;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Dropped>, Failure> {
        self.plan_all(cx).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Dropped, Failure> {
        self.apply_all(cx, changes).await.map_err(|failure| failure.at(self.target.alias()))
    }
}
