//! The list against the table: which rows are new, differ, or are not listed.
//!
//! The table is streamed. A row that is as wanted leaves nothing behind, so a comparison without differences needs the
//! memory of the list and its keys alone. Rows that are not listed are kept only when they would be deleted.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use farrier_model::{Change, ChangeKind, Failure, FailureKind, Text, Value};

use super::wanted::{Wanted, fold_key, push_cell, push_key};
use super::{NotListed, Sync, unique, write};
use crate::column::Folding;
use crate::database::{Row, Session};
use crate::dialect::Sql;

/// Lists of this length and shorter are looked up by key, longer ones by reading the whole table.
const LOOKED_UP: usize = 200;

/// What the comparison found.
pub(super) struct Found {
    pub(super) changes: Vec<Change>,
    /// How many existing rows were compared.
    pub(super) considered: usize,
}

/// A listed row that differs.
pub(super) struct Differs {
    /// Its place in the list.
    pub(super) wanted: usize,
    /// What is stored: the written columns, then those that get the time of writing.
    pub(super) before: Vec<Value>,
}

/// The comparison while it runs.
struct Comparison<'w> {
    wanted: &'w Wanted,
    delete: bool,
    /// The columns of the select list, as places in the table: written ones, clocks, and when rows may be deleted
    /// the others.
    selected: Vec<usize>,
    seen: Vec<bool>,
    differs: Vec<Differs>,
    /// Rows that are not listed, with their key text; only when they would be deleted.
    not_listed: Vec<(String, Vec<Value>)>,
    not_listed_count: usize,
    considered: usize,
    key_text: String,
}

pub(super) async fn compare(sync: &Sync, session: &mut dyn Session) -> Result<Found, Failure> {
    let dialect = session.dialect();
    let table = dialect.describe(session, &sync.table).await?;
    let wanted = Wanted::read(sync, table)?;
    let delete = sync.rows_not_listed == NotListed::Delete;
    if wanted.rows.is_empty() && !delete {
        return Ok(Found { changes: Vec::new(), considered: 0 });
    }

    let mut selected = wanted.columns.clone();
    selected.extend(wanted.clocks.iter().map(|(place, _)| *place));
    if delete {
        for (place, column) in wanted.table.columns.iter().enumerate() {
            if !selected.contains(&place) && !column.generated {
                selected.push(place);
            }
        }
    }
    let mut comparison = Comparison {
        wanted: &wanted,
        delete,
        seen: vec![false; wanted.rows.len()],
        differs: Vec::new(),
        not_listed: Vec::new(),
        not_listed_count: 0,
        considered: 0,
        key_text: String::new(),
        selected,
    };
    let mut sql = comparison.select(session);
    let looked_up = !delete && wanted.rows.len() <= LOOKED_UP;
    if looked_up {
        let all: Vec<usize> = (0..wanted.rows.len()).collect();
        comparison.push_scope(&mut sql, true)?;
        comparison.push_keys(&mut sql, &all)?;
    } else {
        comparison.push_scope(&mut sql, false)?;
    }
    session.fetch(&sql.text, &sql.params, &mut |row| comparison.take(row)).await?;
    comparison.join_spellings(session).await?;
    let Comparison { seen, differs, not_listed, considered, selected, .. } = comparison;

    let new: Vec<usize> = (0..wanted.rows.len()).filter(|at| !seen[*at]).collect();
    refuse_incomplete(&wanted, &new)?;
    let deleted_keys: HashSet<&str> = not_listed.iter().map(|(key, _)| &**key).collect();
    if !new.is_empty() || !differs.is_empty() {
        // An empty table needs no look; what was not read may have rows.
        let may_have_rows = considered > 0 || looked_up || !wanted.scope.is_empty();
        unique::check(session, &wanted, &new, &differs, &deleted_keys, may_have_rows).await?;
    }
    let changes = changes(sync, &wanted, &selected, &new, differs, not_listed);
    write::refuse_unwritable(session, &wanted.table, &changes).await?;
    Ok(Found { changes, considered })
}

impl Comparison<'_> {
    fn select(&self, session: &dyn Session) -> Sql {
        let dialect = session.dialect();
        let columns: Vec<String> =
            self.selected.iter().map(|place| dialect.selected(&self.wanted.table.columns[*place])).collect();
        let table = dialect.quoted_table(&self.wanted.table.name);
        Sql::new(dialect, format!("SELECT {} FROM {table}", columns.join(", ")))
    }

    /// Adds the rows that the step owns; `more` when another condition follows.
    fn push_scope(&self, sql: &mut Sql, more: bool) -> Result<(), Failure> {
        push_scope(sql, self.wanted, more)
    }

    /// Adds "the key is one of these", by the columns' own idea of equality.
    fn push_keys(&self, sql: &mut Sql, rows: &[usize]) -> Result<(), Failure> {
        sql.push("(");
        for (number, at) in rows.iter().enumerate() {
            sql.push(if number == 0 { "(" } else { " OR (" });
            for (part, place) in self.wanted.key.iter().enumerate() {
                sql.push(if part == 0 { "" } else { " AND " });
                sql.push_equal(self.wanted.column(*place), &self.wanted.rows[*at][*place])?;
            }
            sql.push(")");
        }
        sql.push(")");
        Ok(())
    }

    fn take(&mut self, row: &dyn Row) -> Result<ControlFlow<()>, Failure> {
        self.considered += 1;
        self.key_text.clear();
        for place in &self.wanted.key {
            push_cell(&mut self.key_text, self.wanted.column(*place), &row.cell(*place)?);
        }
        match self.wanted.by_key.get(&*self.key_text) {
            Some(at) => self.compare(row, *at)?,
            None => {
                self.not_listed_count += 1;
                if self.delete {
                    let values = self.values(row, self.selected.len())?;
                    self.not_listed.push((self.key_text.clone(), values));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn compare(&mut self, row: &dyn Row, at: usize) -> Result<(), Failure> {
        if std::mem::replace(&mut self.seen[at], true) {
            return Err(Failure::new(
                FailureKind::Refused,
                format!(
                    "table `{}` has several rows with the key {}",
                    self.wanted.table.name,
                    self.wanted.shown_key(&self.wanted.rows[at])
                ),
            ));
        }
        let wanted = &self.wanted.rows[at];
        for (place, value) in wanted.iter().enumerate() {
            if self.wanted.compared[place]
                && !(value.is_null() && self.wanted.keeps_old[place])
                && !self.wanted.column(place).holds(&row.cell(place)?, value)
            {
                let width = self.wanted.columns.len() + self.wanted.clocks.len();
                let before = self.values(row, width)?;
                self.differs.push(Differs { wanted: at, before });
                break;
            }
        }
        Ok(())
    }

    /// The first `width` values of a row, in their columns' forms.
    fn values(&self, row: &dyn Row, width: usize) -> Result<Vec<Value>, Failure> {
        (0..width)
            .map(|place| Ok(self.wanted.table.columns[self.selected[place]].value(&row.cell(place)?)))
            .collect()
    }

    /// Finds wanted rows that exist under another spelling of their key, which the collation holds equal.
    async fn join_spellings(&mut self, session: &mut dyn Session) -> Result<(), Failure> {
        let folds = self.wanted.key.iter().any(|place| self.wanted.column(*place).folding != Folding::EXACT);
        let missing: Vec<usize> = (0..self.seen.len()).filter(|at| !self.seen[*at]).collect();
        if !folds || self.not_listed_count == 0 || missing.is_empty() {
            return Ok(());
        }
        let width = self.wanted.columns.len() + self.wanted.clocks.len();
        let mut found: Vec<(usize, String, Vec<Value>)> = Vec::new();
        let chunk = session.dialect().max_rows();
        for chunk in missing.chunks(chunk) {
            let folded: HashMap<String, usize> = chunk
                .iter()
                .filter_map(|at| self.folded(&self.wanted.rows[*at]).map(|text| (text, *at)))
                .collect();
            let mut unsure = false;
            for (key, values) in self.look_up(session, chunk, width).await? {
                match self.folded(&values).and_then(|text| folded.get(&text)) {
                    Some(at) => found.push((*at, key, values)),
                    None => unsure = true,
                }
            }
            if unsure {
                // Beyond ASCII only the server knows which is which, so it is asked about one at a time.
                for at in chunk {
                    if found.iter().any(|(known, ..)| known == at) {
                        continue;
                    }
                    for (key, values) in self.look_up(session, &[*at], width).await? {
                        found.push((*at, key, values));
                    }
                }
            }
        }
        let same: HashSet<String> = found.iter().map(|(_, key, _)| key.clone()).collect();
        if same.len() < found.len() {
            let mut by_key: HashMap<&str, usize> = HashMap::new();
            for (at, key, _) in &found {
                if let Some(other) = by_key.insert(key, *at) {
                    return Err(self.wanted.equal_spellings(other.min(*at), other.max(*at)));
                }
            }
        }
        self.not_listed.retain(|(key, _)| !same.contains(key));
        for (at, _, before) in found {
            self.seen[at] = true;
            self.differs.push(Differs { wanted: at, before });
        }
        Ok(())
    }

    fn folded(&self, values: &[Value]) -> Option<String> {
        fold_key(self.wanted.key.iter().map(|place| (self.wanted.column(*place), &values[*place])))
    }

    /// The existing rows whose keys the database holds equal to these, and that are not listed under their own.
    async fn look_up(
        &self,
        session: &mut dyn Session,
        rows: &[usize],
        width: usize,
    ) -> Result<Vec<(String, Vec<Value>)>, Failure> {
        let mut sql = self.select(session);
        self.push_scope(&mut sql, true)?;
        self.push_keys(&mut sql, rows)?;
        let mut found = Vec::new();
        session
            .fetch(&sql.text, &sql.params, &mut |row| {
                let values = self.values(row, width)?;
                let mut key = String::new();
                self.wanted.key.iter().for_each(|place| push_key(&mut key, &values[*place]));
                if !self.wanted.by_key.contains_key(&*key) {
                    found.push((key, values));
                }
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        Ok(found)
    }
}

/// Adds `WHERE` with the rows that the step owns; `more` when another condition follows.
pub(super) fn push_scope(sql: &mut Sql, wanted: &Wanted, more: bool) -> Result<(), Failure> {
    if wanted.scope.is_empty() && !more {
        return Ok(());
    }
    sql.push(" WHERE ");
    for (number, (place, value)) in wanted.scope.iter().enumerate() {
        sql.push(if number == 0 { "" } else { " AND " });
        let column = &wanted.table.columns[*place];
        if !value.is_null() {
            // An index serves this form; the exact one below it not always.
            sql.push_equal(column, value)?;
            sql.push(" AND ");
        }
        sql.push_same(column, value)?;
    }
    if more && !wanted.scope.is_empty() {
        sql.push(" AND ");
    }
    Ok(())
}

/// A new row needs a value for each column that cannot do without.
fn refuse_incomplete(wanted: &Wanted, new: &[usize]) -> Result<(), Failure> {
    let Some(first) = new.first() else { return Ok(()) };
    let shown = |at: usize| format!("row {} ({})", at + 1, wanted.shown_key(&wanted.rows[at]));
    for (place, column) in wanted.table.columns.iter().enumerate() {
        let written =
            wanted.columns.contains(&place) || wanted.clocks.iter().any(|(clock, _)| *clock == place);
        if !written && !column.has_default && !column.generated {
            return Err(Failure::new(
                FailureKind::Input,
                format!("{} is new, and column `{}` has no default value", shown(*first), column.name),
            )
            .help("add the column to `rows`, or to `set_on_write` if it holds the time of writing"));
        }
    }
    for place in (0..wanted.columns.len()).filter(|place| wanted.keeps_old[*place]) {
        if let Some(at) = new.iter().find(|at| wanted.rows[**at][place].is_null())
            && !wanted.column(place).nullable
        {
            return Err(Failure::new(
                FailureKind::Input,
                format!("{} is new, so `{}` has no old value to keep", shown(*at), wanted.column(place).name),
            ));
        }
    }
    Ok(())
}

fn changes(
    sync: &Sync,
    wanted: &Wanted,
    selected: &[usize],
    new: &[usize],
    differs: Vec<Differs>,
    not_listed: Vec<(String, Vec<Value>)>,
) -> Vec<Change> {
    let name = |place: &usize| Text::from(&*wanted.table.columns[*place].name);
    let all: Arc<[Text]> = selected.iter().map(name).collect();
    let width = wanted.columns.len() + wanted.clocks.len();
    let written: Arc<[Text]> = selected[..width].iter().map(name).collect();
    let object = |row: &[Value]| Text::from(format!("table {}: {}", sync.table, wanted.shown_key(row)));
    let later = || wanted.clocks.iter().map(|_| Value::text("(time of writing)"));

    let mut changes = Vec::with_capacity(not_listed.len() + differs.len() + new.len());
    for (_, values) in not_listed {
        changes.push(Change {
            object: object(&values),
            kind: ChangeKind::Delete,
            before: Value::record(all.clone(), values),
            after: Value::Null,
            fingerprint: None,
        });
    }
    for Differs { wanted: at, before } in differs {
        let after = wanted.rows[at].iter().enumerate().map(|(place, value)| {
            if value.is_null() && wanted.keeps_old[place] { before[place].clone() } else { value.clone() }
        });
        let after: Vec<Value> = after.chain(later()).collect();
        changes.push(Change {
            object: object(&before),
            kind: ChangeKind::Update,
            before: Value::record(written.clone(), before),
            after: Value::record(written.clone(), after),
            fingerprint: None,
        });
    }
    for at in new {
        let after: Vec<Value> = wanted.rows[*at].iter().cloned().chain(later()).collect();
        changes.push(Change {
            object: object(&after),
            kind: ChangeKind::Create,
            before: Value::Null,
            after: Value::record(written.clone(), after),
            fingerprint: None,
        });
    }
    changes
}
