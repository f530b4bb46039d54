//! `sql.credentials`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::ops::ControlFlow;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Secret, Value};
use farrier_plugin_files::FilesTarget;
use farrier_plugin_files::deposit::{Found, SecretPlace};
use farrier_plugin_files::options::option;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::at;
use crate::database::Session;
use crate::dialect::Sql as Statement;
use crate::server::{AccountName, Hash};
use crate::table::{TableName, name_error};
use crate::target::Sql;
use crate::value::Param;

/// Gives database accounts that are not in a table yet a password and a file with it, and adds them to the table.
///
/// The password is made here, from the machine's randomness, and is written into the account's file and nowhere else; the table
/// gets its hash. The file is never overwritten: one that is there already, of an earlier attempt or of old, has the password that
/// counts. So a step that was cut off goes on, and files and table agree. An account whose folder is not there is left for the
/// next run and named in the output. The server itself learns of the account by `sql.account`. Where the target of the files has
/// `via`, the file is made on the host with the disk, and the password goes there through the connection alone.
///
/// Undo takes back the row and the file that this step made.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The database with the table.
    target: Target<Sql>,
    /// The table of accounts.
    table: TableName,
    /// The column with the account's name on the servers.
    account: String,
    /// The column that gets the hash of the password.
    hash: String,
    /// The target with the files.
    files: Target<FilesTarget>,
    /// The root that they lie beneath.
    root: String,
    /// The accounts that are to be in the table.
    accounts: Vec<New>,
}

/// An account that is to be in the table.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct New {
    /// The account's name on the servers.
    name: String,
    /// The other columns of its row.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    row: BTreeMap<String, Value>,
    /// The path of its file beneath the root, as a list of segments. Its folder must be there.
    #[schemars(with = "Vec<String>")]
    file: Value,
    /// The number of the account and group that own the file.
    owner: Option<u32>,
}

/// What `sql.credentials` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CredentialsMade {
    /// Those that are added to the table.
    added: Vec<String>,
    /// Those whose folder is not there yet.
    skipped: Vec<String>,
}

/// The letters and digits of passwords, and how many one has.
const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const LENGTH: usize = 16;

impl New {
    fn place(&self, root: &str) -> Result<SecretPlace, Failure> {
        SecretPlace::new(root, &self.file, self.owner)
    }

    /// The file's content.
    fn text(&self, password: &Secret) -> Secret {
        Secret::new(format!("[client]\nuser = {}\npassword = {}\n", self.name, password.reveal()))
    }

    /// The password in a file's content.
    fn password(&self, text: &Secret, place: &SecretPlace) -> Result<Secret, Failure> {
        match (option(text, "user"), option(text, "password")) {
            (Some(user), Some(password)) if user.reveal() == self.name => Ok(password),
            _ => Err(Failure::new(
                FailureKind::Refused,
                format!("`{}` has no credentials of `{}`, and is not overwritten", place.shown(), self.name),
            )),
        }
    }
}

/// A password that nobody knows.
fn fresh() -> Result<Secret, Failure> {
    let mut password = String::with_capacity(LENGTH);
    let unread = |error: std::io::Error| {
        Failure::new(FailureKind::Internal, format!("the machine gives no random numbers: {error}"))
    };
    let mut random = std::fs::File::open("/dev/urandom").map_err(unread)?;
    let mut byte = [0];
    while password.len() < LENGTH {
        random.read_exact(&mut byte).map_err(unread)?;
        // Those beyond the last multiple of 62 would make some letters likelier.
        if usize::from(byte[0]) < 256 / LETTERS.len() * LETTERS.len() {
            password.push(char::from(LETTERS[usize::from(byte[0]) % LETTERS.len()]));
        }
    }
    Ok(Secret::new(password))
}

impl Credentials {
    fn check(&self) -> Result<(), Failure> {
        let columns = self.accounts.iter().flat_map(|new| new.row.keys());
        for column in [&self.account, &self.hash].into_iter().chain(columns) {
            if let Some(error) = name_error(column) {
                return Err(Failure::new(FailureKind::Input, error));
            }
        }
        for new in &self.accounts {
            AccountName::new(&new.name, "%")?;
            new.place(&self.root)?;
            if new.row.contains_key(&self.account) || new.row.contains_key(&self.hash) {
                let message =
                    format!("`row` of `{}` has the columns of the name and the hash itself", new.name);
                return Err(Failure::new(FailureKind::Input, message));
            }
        }
        Ok(())
    }

    fn object(&self, new: &New) -> String {
        format!("table {}: {}={}", self.table, self.account, new.name)
    }

    /// The hash in the row of this name, if there is a row.
    async fn stored(&self, session: &mut dyn Session, name: &str) -> Result<Option<Option<Hash>>, Failure> {
        let dialect = session.dialect();
        let mut sql = Statement::new(
            dialect,
            format!(
                "SELECT {} FROM {} WHERE {} = ",
                dialect.quoted(&self.hash),
                dialect.quoted_table(&self.table),
                dialect.quoted(&self.account)
            ),
        );
        let placeholder = sql.bind(Param::Text(name.into()));
        sql.push(&placeholder);
        let mut found = None;
        session
            .fetch(&sql.text, &sql.params, &mut |row| {
                found = Some(crate::hashes::of_cell(&row.cell(0)?));
                Ok(ControlFlow::Break(()))
            })
            .await?;
        Ok(found)
    }

    async fn look(&self, cx: &ReadCx) -> Result<Planned<CredentialsMade>, Failure> {
        self.check()?;
        let (reader, files) = (cx.reader(&self.target).await?, cx.reader(&self.files).await?);
        let (mut changes, mut output) =
            (Vec::new(), CredentialsMade { added: Vec::new(), skipped: Vec::new() });
        let in_files = |failure| at(failure, self.files.alias());
        let mut wanted = Vec::new();
        for new in &self.accounts {
            let mut session = reader.0.read().await?;
            let stored = self.stored(&mut *session, &new.name).await;
            session.rollback().await;
            if stored?.is_none() {
                wanted.push((new, new.place(&self.root)?));
            }
        }
        let places = wanted.iter().map(|(_, place)| place.clone()).collect();
        let found = SecretPlace::look_at_all(files, places).await.map_err(in_files)?;
        for ((new, place), found) in wanted.into_iter().zip(found) {
            let password = match found.map_err(in_files)? {
                Found::NoFolder => {
                    output.skipped.push(new.name.clone());
                    continue;
                }
                Found::Nothing => format!("a new one, in {}", place.shown()),
                Found::Text(text) => {
                    new.password(&text, &place)?;
                    format!("the one in {}", place.shown())
                }
            };
            let row = new.row.iter().map(|(column, value)| (column.as_str(), value.clone()));
            let after = row.chain([("password", Value::text(password))]);
            changes.push(Change {
                object: self.object(new).into(),
                kind: ChangeKind::Create,
                before: Value::Null,
                after: Value::map(after),
                fingerprint: None,
            });
            output.added.push(new.name.clone());
        }
        let considered = self.accounts.len();
        Ok(Planned::changes(changes, output).considered(considered))
    }

    /// Adds one account, or finds it added. Only looks whether that can be done, unless it is to `act`.
    async fn add(&self, cx: &WriteCx, new: &New, change: &Change, act: bool) -> Result<(), Failure> {
        let (writer, files) = (cx.writer(&self.target).await?, cx.writer(&self.files).await?);
        let place = new.place(&self.root)?;
        let in_files = |failure| at(failure, self.files.alias());
        let mut session = writer.0.write().await?;
        let stored = self.stored(&mut *session, &new.name).await?;
        session.rollback().await;
        let there = match place.look(files.clone()).await.map_err(in_files)? {
            Found::Text(text) => Some(Hash::of(&new.password(&text, &place)?)),
            Found::Nothing => None,
            Found::NoFolder => {
                let message = format!("the folder of `{}` is gone", place.shown());
                return Err(Failure::new(FailureKind::Drift, message));
            }
        };
        if let Some(stored) = stored {
            if stored.is_some() && stored == there {
                return Ok(());
            }
            let message =
                format!("`{}` is there by now, with another password; it was left alone", change.object);
            return Err(Failure::new(FailureKind::Drift, message));
        }
        if !act {
            return Ok(());
        }
        let hash = match there {
            Some(hash) => hash,
            None => {
                let (effect, password) = (cx.node().effect_id.clone(), fresh()?);
                place.make(files, effect, new.text(&password)).await.map_err(in_files)?;
                Hash::of(&password)
            }
        };
        // The key of the table keeps a second row out.
        let mut session = writer.0.write().await?;
        let dialect = session.dialect();
        let mut columns = vec![dialect.quoted(&self.account), dialect.quoted(&self.hash)];
        columns.extend(new.row.keys().map(|column| dialect.quoted(column)));
        let table = dialect.quoted_table(&self.table);
        let mut sql =
            Statement::new(dialect, format!("INSERT INTO {table} ({}) VALUES (", columns.join(", ")));
        // In the case that the present maintain-dbusers writes.
        let hash = hash.reveal().to_ascii_lowercase();
        let mut values = vec![Param::Text(new.name.as_str().into()), Param::Text(hash.into())];
        for value in new.row.values() {
            values.push(Param::of(value).map_err(|reason| Failure::new(FailureKind::Input, reason))?);
        }
        for (at, value) in values.into_iter().enumerate() {
            let placeholder = sql.bind(value);
            sql.push(if at == 0 { "" } else { ", " });
            sql.push(&placeholder);
        }
        sql.push(")");
        session.execute(&sql.text, &sql.params).await.map_err(|fault| {
            let mut failure = fault.failure;
            failure.message = format!("`{}` cannot be added: {}", change.object, failure.message);
            failure
        })?;
        session.commit().await
    }

    async fn take_back(&self, cx: &WriteCx, new: &New, change: &Change) -> Result<(), Failure> {
        let (writer, files) = (cx.writer(&self.target).await?, cx.writer(&self.files).await?);
        let mut session = writer.0.write().await?;
        let stored = self.stored(&mut *session, &new.name).await?;
        let place = new.place(&self.root)?;
        let was_new =
            change.after.get("password").and_then(Value::as_str).is_some_and(|how| how.starts_with("a new"));
        if was_new {
            let (new, known, named) = (new.clone(), stored.flatten(), place.clone());
            let is_ours = move |text: &Secret| {
                let password = new.password(text, &named).ok();
                password.is_some_and(|password| known.is_none_or(|known| known == Hash::of(&password)))
            };
            place.remove(files, is_ours).await.map_err(|failure| at(failure, self.files.alias()))?;
        }
        let dialect = session.dialect();
        let mut sql = Statement::new(
            dialect,
            format!(
                "DELETE FROM {} WHERE {} = ",
                dialect.quoted_table(&self.table),
                dialect.quoted(&self.account)
            ),
        );
        let placeholder = sql.bind(Param::Text(new.name.as_str().into()));
        sql.push(&placeholder);
        session.execute(&sql.text, &sql.params).await?;
        session.commit().await
    }
}

impl Action for Credentials {
    const NAME: &'static str = "sql.credentials";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
credentials:
  uses: sql.credentials
  with:
    target: accounts
    table: account
    account: mysql_username
    hash: password_hash
    files: homes
    root: tool_homes
    accounts:
      - { name: s52503, row: { type: tool, username: tools.example }, file: [example, replica.my.cnf], owner: 52503 }
  undo: restore
";
    type Output = CredentialsMade;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<CredentialsMade>, Failure> {
        self.look(cx).await.map_err(|failure| at(failure, self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<CredentialsMade, Failure> {
        self.check()?;
        let mut made = CredentialsMade { added: Vec::new(), skipped: Vec::new() };
        // All are compared before the first is made, because each lasts at once.
        for act in [false, true] {
            for new in &self.accounts {
                let object = self.object(new);
                if let Some(change) = changes.iter().find(|change| *change.object == *object) {
                    self.add(cx, new, change, act)
                        .await
                        .map_err(|failure| at(failure, self.target.alias()))?;
                    if act {
                        made.added.push(new.name.clone());
                    }
                }
            }
        }
        let files = cx.reader(&self.files).await?;
        let others: Vec<&New> = self.accounts.iter().filter(|new| !made.added.contains(&new.name)).collect();
        let places = others.iter().map(|new| new.place(&self.root)).collect::<Result<_, _>>()?;
        // All is done by now, so a disk that went away meanwhile costs a list.
        let found = SecretPlace::look_at_all(files, places).await.unwrap_or_default();
        for (new, found) in others.into_iter().zip(found) {
            if matches!(found, Ok(Found::NoFolder)) {
                made.skipped.push(new.name.clone());
            }
        }
        Ok(made)
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        for new in self.accounts.iter().rev() {
            let object = self.object(new);
            if let Some(change) = changes.iter().find(|change| *change.object == *object) {
                self.take_back(cx, new, change).await.map_err(|failure| at(failure, self.target.alias()))?;
            }
        }
        Ok(())
    }
}
