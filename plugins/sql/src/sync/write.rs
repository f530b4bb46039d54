//! The changes, all in one transaction: deletes, then updates, then inserts.
//!
//! Every statement says in its `WHERE` what the plan saw, and the number of rows it matched is compared with the number
//! of rows it names. The first mismatch undoes everything; then the rows are read again, to say which are not as the
//! plan saw them, or to find that all are already as wanted, because an earlier attempt went through unheard.
//!
//! A unique value that moves from one updated row to another decides the order of the updates. Where the values go
//! round in a circle no order helps: those rows are deleted and inserted again within the transaction, which is refused
//! when a foreign key points at the table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;

use farrier_model::{Change, Failure, FailureKind, Map, Value};

use super::Sync;
use super::wanted::{Shape, push_key};
use crate::column::Column;
use crate::database::{Database, Fault, Session};
use crate::dialect::{Clock, Sql};
use crate::table::Table;

/// A `CASE` has one branch for each row and is walked for each row, so its length is bounded.
const UPDATED_AT_ONCE: usize = 100;
/// A chain of updates that wait for each other is followed this far; the rest is rewritten like a circle.
const LEVELS: usize = 32;
/// A statement carries no more text than this, unless one row alone has more; MariaDB takes 16 MB by default.
const BYTES_AT_ONCE: usize = 4 << 20;
/// How many rows a failure names.
const NAMED: usize = 5;

/// One row on its way from `before` to `after`.
#[derive(Clone, Copy)]
struct Step<'c> {
    before: Option<&'c Map>,
    after: Option<&'c Map>,
    object: &'c str,
}

impl<'c> Step<'c> {
    fn forward(change: &'c Change) -> Step<'c> {
        Step { before: change.before.as_map(), after: change.after.as_map(), object: &change.object }
    }
    fn reversed(self) -> Step<'c> {
        Step { before: self.after, after: self.before, object: self.object }
    }
}

/// Why writing stopped.
enum Stop {
    /// A row was not as the plan saw it.
    Stale,
    /// Anything else.
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        Stop::Fault(fault)
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Failure {
        match stop {
            Stop::Fault(fault) => fault.failure,
            Stop::Stale => Failure::new(FailureKind::Drift, "a row changed while it was read"),
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Fault(failure.into())
    }
}

pub(super) async fn apply(sync: &Sync, database: &dyn Database, changes: &[Change]) -> Result<(), Failure> {
    let steps: Vec<Step<'_>> = changes.iter().map(Step::forward).collect();
    write(sync, database, &steps, true).await
}

pub(super) async fn undo(sync: &Sync, database: &dyn Database, changes: &[Change]) -> Result<(), Failure> {
    let steps: Vec<Step<'_>> = changes.iter().map(|change| Step::forward(change).reversed()).collect();
    write(sync, database, &steps, false).await
}

/// Takes the steps. `forward` writes the time of writing; backwards the old time is written like any value, and rows
/// that are as before already are left alone.
async fn write(
    sync: &Sync,
    database: &dyn Database,
    steps: &[Step<'_>],
    forward: bool,
) -> Result<(), Failure> {
    let mut session = database.write().await?;
    let outcome = async {
        let table = session.dialect().describe(&mut *session, &sync.table).await?;
        let writer = Writer::new(sync, table, forward)?;
        let left: Vec<Step<'_>> = if forward {
            steps.to_vec()
        } else {
            let states = writer.states(&mut *session, steps).await?;
            if states.contains(&State::Other) {
                return Err(Stop::Stale);
            }
            steps
                .iter()
                .zip(states)
                .filter(|(_, state)| *state != State::After)
                .map(|(step, _)| *step)
                .collect()
        };
        writer.write(&mut *session, &left).await
    }
    .await;
    match outcome {
        Ok(()) => session.commit().await,
        Err(stop) => {
            session.rollback().await;
            explain(sync, database, steps, forward, stop).await
        }
    }
}

/// Says why writing stopped, or that there was nothing left to write.
async fn explain(
    sync: &Sync,
    database: &dyn Database,
    steps: &[Step<'_>],
    forward: bool,
    stop: Stop,
) -> Result<(), Failure> {
    let duplicate = match &stop {
        Stop::Stale => false,
        Stop::Fault(fault) if fault.duplicate.is_some() => true,
        Stop::Fault(_) => {
            let Stop::Fault(fault) = stop else { return Ok(()) };
            return Err(fault.failure);
        }
    };
    let mut session = database.read().await?;
    let states = async {
        let table = session.dialect().describe(&mut *session, &sync.table).await?;
        Writer::new(sync, table, forward)?.states(&mut *session, steps).await
    }
    .await;
    session.rollback().await;
    let states = states?;
    if states.iter().all(|state| *state == State::After) {
        return Ok(());
    }
    let others: Vec<&str> = steps
        .iter()
        .zip(&states)
        .filter(|(_, state)| **state != State::Before)
        .map(|(step, _)| step.object)
        .collect();
    if let (true, true, Stop::Fault(fault)) = (duplicate, others.is_empty(), stop) {
        return Err(fault.failure);
    }
    let mut named: Vec<String> = others.iter().take(NAMED).map(|object| format!("`{object}`")).collect();
    match others.len() {
        // It was as it should be again by the time we looked.
        0 => named.push("a row".into()),
        count if count > NAMED => named.push(format!("{} more", count - NAMED)),
        _ => {}
    }
    let named = named.join(", ");
    let seen = if forward { "the plan saw it" } else { "this run left it" };
    Err(Failure::new(FailureKind::Drift, format!("no longer as {seen}, so nothing was changed: {named}"))
        .help("someone else wrote to the table in the meantime; plan again"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    After,
    Other,
}

/// The table and the step's idea of it.
struct Writer {
    table: Table,
    /// Places in the table.
    key: Vec<usize>,
    /// The rows that the step owns: the key alone need not tell rows apart.
    scope: Vec<(usize, Value)>,
    /// For each column of the table, whether its old value must be as the plan saw it.
    compared: Vec<bool>,
    clocks: Vec<(usize, Clock)>,
    chunk: usize,
    forward: bool,
}

impl Writer {
    fn new(sync: &Sync, table: Table, forward: bool) -> Result<Writer, Failure> {
        let shape = Shape::of(sync, &table)?;
        let all = sync.rows.as_list().is_none_or(<[Value]>::is_empty);
        let compared = (0..table.columns.len())
            .map(|place| {
                (all || shape.columns.contains(&place))
                    && !shape.ignored.contains(&place)
                    && !shape.clocks.iter().any(|(clock, _)| *clock == place)
                    && !table.columns[place].generated
            })
            .collect();
        Ok(Writer {
            table,
            key: shape.key,
            scope: shape.scope,
            compared,
            clocks: shape.clocks,
            chunk: sync.chunk.max(1),
            forward,
        })
    }

    /// The column and value of each field of a row.
    fn fields<'m>(&'m self, row: &'m Map) -> Result<Vec<(usize, &'m Value)>, Failure> {
        row.iter().map(|(name, value)| Ok((self.table.position(name)?, value))).collect()
    }

    fn value<'m>(&self, row: &'m Map, place: usize) -> Result<&'m Value, Failure> {
        let name = &self.table.columns[place].name;
        row.get(name).ok_or_else(|| {
            Failure::new(FailureKind::Internal, format!("the planned change has no value for `{name}`"))
        })
    }

    fn key_text(&self, row: &Map) -> Result<String, Failure> {
        let mut text = String::new();
        for place in &self.key {
            push_key(&mut text, self.value(row, *place)?);
        }
        Ok(text)
    }

    fn clock(&self, place: usize) -> Option<Clock> {
        self.clocks.iter().find(|(clock, _)| self.forward && *clock == place).map(|(_, clock)| *clock)
    }

    async fn write(&self, session: &mut dyn Session, steps: &[Step<'_>]) -> Result<(), Stop> {
        let deletes: Vec<&Map> =
            steps.iter().filter(|step| step.after.is_none()).filter_map(|step| step.before).collect();
        let inserts: Vec<&Map> =
            steps.iter().filter(|step| step.before.is_none()).filter_map(|step| step.after).collect();
        let updates: Vec<(&Map, &Map)> =
            steps.iter().filter_map(|step| step.before.zip(step.after)).collect();
        let Order { levels, circle } = order(&self.table, &updates);
        let circle: Vec<(&Map, &Map)> = circle.into_iter().map(|at| updates[at]).collect();

        self.delete(session, &deletes).await?;
        let rewritten = self.take_out(session, &circle).await?;
        for level in levels {
            let level: Vec<(&Map, &Map)> = level.into_iter().map(|at| updates[at]).collect();
            self.update(session, &level).await?;
        }
        let rewritten: Vec<&Map> = rewritten.iter().collect();
        self.insert(session, &rewritten).await?;
        self.insert(session, &inserts).await
    }

    /// Adds "this row, as the plan saw it".
    fn push_row(&self, sql: &mut Sql, row: &Map) -> Result<(), Failure> {
        self.push_identity(sql, row)?;
        for (place, value) in self.fields(row)? {
            if self.compared[place] {
                sql.push(" AND ");
                sql.push_same(&self.table.columns[place], value)?;
            }
        }
        Ok(())
    }

    /// Adds what tells the row from all others, in a form that an index serves.
    fn push_identity(&self, sql: &mut Sql, row: &Map) -> Result<(), Failure> {
        for (place, value) in &self.scope {
            let column = &self.table.columns[*place];
            if value.is_null() {
                sql.push_same(column, value)?;
            } else {
                sql.push_equal(column, value)?;
            }
            sql.push(" AND ");
        }
        self.push_key(sql, row)
    }

    fn push_key(&self, sql: &mut Sql, row: &Map) -> Result<(), Failure> {
        for (part, place) in self.key.iter().enumerate() {
            sql.push(if part == 0 { "" } else { " AND " });
            sql.push_equal(&self.table.columns[*place], self.value(row, *place)?)?;
        }
        Ok(())
    }

    fn push_rows<'m>(&self, sql: &mut Sql, rows: impl Iterator<Item = &'m Map>) -> Result<(), Failure> {
        for (number, row) in rows.enumerate() {
            sql.push(if number == 0 { " WHERE (" } else { " OR (" });
            self.push_row(sql, row)?;
            sql.push(")");
        }
        Ok(())
    }

    /// How many rows one statement may name when each takes `params` parameters.
    fn at_once(&self, session: &dyn Session, params: usize, limit: usize) -> usize {
        self.chunk.min(limit).min(session.dialect().max_params() / params.max(1)).max(1)
    }

    async fn delete(&self, session: &mut dyn Session, rows: &[&Map]) -> Result<(), Stop> {
        let dialect = session.dialect();
        let params = self.scope.len() + self.key.len() + self.table.columns.len();
        for chunk in rows.chunks(self.at_once(session, params, dialect.max_rows())) {
            let mut sql =
                Sql::new(dialect, format!("DELETE FROM {}", dialect.quoted_table(&self.table.name)));
            self.push_rows(&mut sql, chunk.iter().copied())?;
            self.execute(session, &sql, chunk.len()).await?;
        }
        Ok(())
    }

    /// Runs a statement that must match exactly `rows` rows.
    async fn execute(&self, session: &mut dyn Session, sql: &Sql, rows: usize) -> Result<(), Stop> {
        if session.execute(&sql.text, &sql.params).await? == rows as u64 { Ok(()) } else { Err(Stop::Stale) }
    }

    async fn insert(&self, session: &mut dyn Session, rows: &[&Map]) -> Result<(), Stop> {
        let dialect = session.dialect();
        let mut rest = rows;
        while let Some(first) = rest.first() {
            let fields: Vec<usize> = self.fields(first)?.into_iter().map(|(place, _)| place).collect();
            let limit = self.at_once(session, fields.len(), usize::MAX);
            let same = rest
                .iter()
                .take_while(|row| row.len() == fields.len() && row.keys().eq(first.keys()))
                .count();
            let same = portion(&rest[..same], limit, |row| size(row));
            let (chunk, others) = rest.split_at(same);
            rest = others;
            let names: Vec<String> =
                fields.iter().map(|place| dialect.quoted(&self.table.columns[*place].name)).collect();
            let mut sql = Sql::new(
                dialect,
                format!(
                    "INSERT INTO {} ({}){} VALUES ",
                    dialect.quoted_table(&self.table.name),
                    names.join(", "),
                    dialect.insert_clause()
                ),
            );
            for (number, row) in chunk.iter().enumerate() {
                sql.push(if number == 0 { "(" } else { ", (" });
                for (part, place) in fields.iter().enumerate() {
                    sql.push(if part == 0 { "" } else { ", " });
                    match self.clock(*place) {
                        Some(clock) => sql.push(dialect.clock(clock)),
                        None => sql.push_value(&self.table.columns[*place], self.value(row, *place)?)?,
                    }
                }
                sql.push(")");
            }
            self.execute(session, &sql, chunk.len()).await?;
        }
        Ok(())
    }

    /// Updates rows of which none waits for another, those that change the same columns together.
    async fn update(&self, session: &mut dyn Session, rows: &[(&Map, &Map)]) -> Result<(), Stop> {
        let mut groups: BTreeMap<Vec<usize>, Vec<(&Map, &Map)>> = BTreeMap::new();
        for (before, after) in rows {
            let mut changed = Vec::new();
            for (place, value) in self.fields(after)? {
                if self.clock(place).is_some() || self.value(before, place)? != value {
                    changed.push(place);
                }
            }
            // A key is written last: MariaDB lets later assignments see the earlier ones.
            changed.sort_by_key(|place| (self.key.contains(place), *place));
            groups.entry(changed).or_default().push((before, after));
        }
        let dialect = session.dialect();
        for (changed, rows) in groups {
            if changed.is_empty() {
                continue;
            }
            let params =
                (changed.len() + 1) * (self.key.len() + 1) + self.scope.len() + self.table.columns.len();
            let limit = self.at_once(session, params, dialect.max_rows().min(UPDATED_AT_ONCE));
            for chunk in portions(&rows, limit, |(before, after)| size(before) + size(after)) {
                let mut sql =
                    Sql::new(dialect, format!("UPDATE {} SET ", dialect.quoted_table(&self.table.name)));
                for (part, place) in changed.iter().enumerate() {
                    sql.push(if part == 0 { "" } else { ", " });
                    self.push_assignment(&mut sql, *place, chunk)?;
                }
                self.push_rows(&mut sql, chunk.iter().map(|(before, _)| *before))?;
                self.execute(session, &sql, chunk.len()).await?;
            }
        }
        Ok(())
    }

    fn push_assignment(&self, sql: &mut Sql, place: usize, rows: &[(&Map, &Map)]) -> Result<(), Failure> {
        let column = &self.table.columns[place];
        let name = sql.dialect.quoted(&column.name);
        sql.push(&format!("{name} = "));
        if let Some(clock) = self.clock(place) {
            let clock = sql.dialect.clock(clock);
            sql.push(clock);
            return Ok(());
        }
        let first = self.value(rows[0].1, place)?;
        let mut equal = true;
        for (_, after) in rows {
            equal &= self.value(after, place)? == first;
        }
        if equal {
            return sql.push_value(column, first);
        }
        sql.push("CASE");
        for (before, after) in rows {
            sql.push(" WHEN ");
            self.push_key(sql, before)?;
            sql.push(" THEN ");
            let value = self.value(after, place)?;
            if value.is_null() {
                // A bound null has the type of text, which would make text of the numbers beside it.
                let null = sql.dialect.typed(column, "NULL".into());
                sql.push(&null);
            } else {
                sql.push_value(column, value)?;
            }
        }
        // No ELSE: the statement's WHERE names these rows alone.
        sql.push(" END");
        Ok(())
    }

    /// Reads rows in full, deletes them, and returns them as they are to be inserted again.
    async fn take_out(&self, session: &mut dyn Session, rows: &[(&Map, &Map)]) -> Result<Vec<Map>, Stop> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let dialect = session.dialect();
        if let Some(key) = dialect.referenced_by(session, &self.table).await? {
            return Err(circle_refused(&self.table, &key).into());
        }
        let stored: Vec<usize> =
            (0..self.table.columns.len()).filter(|place| !self.table.columns[*place].generated).collect();
        let full = self.read(session, &stored, rows.iter().map(|(before, _)| *before)).await?;
        let mut merged = Vec::with_capacity(rows.len());
        for (before, after) in rows {
            let Some(values) = full.get(&self.key_text(before)?) else { return Err(Stop::Stale) };
            let row: Map = stored
                .iter()
                .zip(values)
                .map(|(place, value)| {
                    let name = &*self.table.columns[*place].name;
                    (name, after.get(name).unwrap_or(value).clone())
                })
                .collect();
            merged.push(row);
        }
        let before: Vec<&Map> = rows.iter().map(|(before, _)| *before).collect();
        self.delete(session, &before).await?;
        Ok(merged)
    }

    /// Reads these columns of these rows as they stand, by the text of their keys.
    async fn read<'m>(
        &self,
        session: &mut dyn Session,
        columns: &[usize],
        rows: impl Iterator<Item = &'m Map>,
    ) -> Result<HashMap<String, Vec<Value>>, Stop> {
        let dialect = session.dialect();
        let column = |place: &usize| &self.table.columns[*place];
        let listed: Vec<String> =
            self.key.iter().chain(columns).map(|place| dialect.selected(column(place))).collect();
        let select = format!("SELECT {} FROM {}", listed.join(", "), dialect.quoted_table(&self.table.name));
        let rows: Vec<&Map> = rows.collect();
        let mut found = HashMap::with_capacity(rows.len());
        for chunk in rows.chunks(self.at_once(session, self.scope.len() + self.key.len(), dialect.max_rows()))
        {
            let mut sql = Sql::new(dialect, select.clone());
            for (number, row) in chunk.iter().enumerate() {
                sql.push(if number == 0 { " WHERE (" } else { " OR (" });
                self.push_identity(&mut sql, row)?;
                sql.push(")");
            }
            session
                .fetch(&sql.text, &sql.params, &mut |row| {
                    let mut text = String::new();
                    for (at, place) in self.key.iter().enumerate() {
                        push_key(&mut text, &column(place).value(&row.cell(at)?));
                    }
                    let values = columns
                        .iter()
                        .enumerate()
                        .map(|(at, place)| Ok(column(place).value(&row.cell(self.key.len() + at)?)))
                        .collect::<Result<Vec<Value>, Failure>>()?;
                    found.insert(text, values);
                    Ok(ControlFlow::Continue(()))
                })
                .await?;
        }
        Ok(found)
    }

    /// Whether each row stands as before its step, as after it, or otherwise.
    async fn states(&self, session: &mut dyn Session, steps: &[Step<'_>]) -> Result<Vec<State>, Stop> {
        let compared: Vec<usize> = (0..self.compared.len()).filter(|place| self.compared[*place]).collect();
        let mut asked: Vec<&Map> = Vec::new();
        let mut known: HashSet<String> = HashSet::new();
        for row in steps.iter().flat_map(|step| [step.before, step.after]).flatten() {
            if known.insert(self.key_text(row)?) {
                asked.push(row);
            }
        }
        let stored = self.read(session, &compared, asked.into_iter()).await?;
        let stands = |row: &Map| -> Result<bool, Failure> {
            let Some(values) = stored.get(&self.key_text(row)?) else { return Ok(false) };
            for (place, value) in self.fields(row)? {
                if let Some(at) = compared.iter().position(|column| *column == place)
                    && values[at] != *value
                {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let mut states = Vec::with_capacity(steps.len());
        for step in steps {
            let there =
                |row: &Map| -> Result<bool, Failure> { Ok(stored.contains_key(&self.key_text(row)?)) };
            let as_before = match (step.before, step.after) {
                (Some(before), _) => stands(before)?,
                (None, Some(after)) => !there(after)?,
                (None, None) => false,
            };
            let as_after = match (step.after, step.before) {
                (Some(after), _) => stands(after)?,
                (None, Some(before)) => !there(before)?,
                (None, None) => true,
            };
            states.push(match (as_before, as_after) {
                (_, true) => State::After,
                (true, false) => State::Before,
                (false, false) => State::Other,
            });
        }
        Ok(states)
    }
}

/// How many of `rows` one statement takes: at least one, at most `limit`, no more than fit [`BYTES_AT_ONCE`].
fn portion<T>(rows: &[T], limit: usize, size: impl Fn(&T) -> usize) -> usize {
    let mut bytes = 0;
    let fitting = rows.iter().take(limit).take_while(|row| {
        bytes += size(row);
        bytes <= BYTES_AT_ONCE
    });
    fitting.count().max(1).min(rows.len())
}

/// Cuts `rows` into portions.
fn portions<T>(mut rows: &[T], limit: usize, size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut portions = Vec::new();
    while !rows.is_empty() {
        let (first, rest) = rows.split_at(portion(rows, limit, &size));
        portions.push(first);
        rows = rest;
    }
    portions
}

/// How much a row weighs in a statement.
fn size(row: &Map) -> usize {
    row.iter().map(|(_, value)| value.as_str().map_or(8, str::len)).sum()
}

fn circle_refused(table: &Table, key: &str) -> Failure {
    Failure::new(
        FailureKind::Refused,
        format!(
            "rows of `{}` exchange the values of a unique key, and {key} points at the table",
            table.name
        ),
    )
    .help("give the rows values that nobody has in a first step, and the wanted ones in a second")
}

/// Finds at plan time that the changes exchange unique values where that cannot be done.
pub(super) async fn refuse_unwritable(
    session: &mut dyn Session,
    table: &Table,
    changes: &[Change],
) -> Result<(), Failure> {
    let steps: Vec<Step<'_>> = changes.iter().map(Step::forward).collect();
    let updates: Vec<(&Map, &Map)> = steps.iter().filter_map(|step| step.before.zip(step.after)).collect();
    if order(table, &updates).circle.is_empty() {
        return Ok(());
    }
    match session.dialect().referenced_by(session, table).await? {
        Some(key) => Err(circle_refused(table, &key)),
        None => Ok(()),
    }
}

/// The order of updates: those of one level wait only for earlier levels. Places in the list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    levels: Vec<Vec<usize>>,
    circle: Vec<usize>,
}

fn order(table: &Table, updates: &[(&Map, &Map)]) -> Order {
    let mut waits: Vec<usize> = vec![0; updates.len()];
    let mut followers: HashMap<usize, Vec<usize>> = HashMap::new();
    for unique in &table.unique {
        let columns: Vec<&Column> = unique.columns.iter().map(|place| &table.columns[*place]).collect();
        let text = |row: &Map| -> Option<String> {
            let mut text = String::new();
            for column in &columns {
                match row.get(&column.name)? {
                    Value::Null => return None,
                    Value::Text(part) => {
                        let folded = column.folding.fold(part).unwrap_or_else(|| part.to_string());
                        push_key(&mut text, &Value::text(folded));
                    }
                    other => push_key(&mut text, other),
                }
            }
            Some(text)
        };
        let moving: Vec<(usize, Option<String>, Option<String>)> = updates
            .iter()
            .enumerate()
            .map(|(at, (before, after))| (at, text(before), text(after)))
            .filter(|(_, before, after)| before != after)
            .collect();
        let holders: HashMap<&str, usize> =
            moving.iter().filter_map(|(at, before, _)| Some((before.as_deref()?, *at))).collect();
        for (at, _, after) in &moving {
            if let Some(holder) = after.as_deref().and_then(|after| holders.get(after))
                && holder != at
            {
                waits[*at] += 1;
                followers.entry(*holder).or_default().push(*at);
            }
        }
    }
    let mut order = Order::default();
    let mut done = vec![false; updates.len()];
    let mut ready: Vec<usize> = (0..updates.len()).filter(|at| waits[*at] == 0).collect();
    while !ready.is_empty() && order.levels.len() < LEVELS {
        let mut next = Vec::new();
        for at in &ready {
            done[*at] = true;
            for follower in followers.get(at).into_iter().flatten() {
                waits[*follower] -= 1;
                if waits[*follower] == 0 {
                    next.push(*follower);
                }
            }
        }
        order.levels.push(std::mem::replace(&mut ready, next));
    }
    order.circle = (0..updates.len()).filter(|at| !done[*at]).collect();
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::column::Kind;
    use crate::table::{TableName, UniqueKey};

    fn table() -> Table {
        let column = |name| Column::new(name, Kind::Int { min: 0, max: 99 }, "int");
        Table {
            name: TableName { schema: None, table: "t".into() },
            columns: vec![column("k"), column("u")],
            unique: vec![
                UniqueKey { name: "p".into(), columns: vec![0] },
                UniqueKey { name: "u".into(), columns: vec![1] },
            ],
        }
    }

    fn ordered(moves: &[(i64, i64)]) -> Order {
        let row = |key: usize, value: i64| -> Map {
            let value = if value == 0 { Value::Null } else { Value::Int(value) };
            [("k", Value::Int(key as i64)), ("u", value)].into_iter().collect()
        };
        let rows: Vec<(Map, Map)> = moves
            .iter()
            .enumerate()
            .map(|(key, (before, after))| (row(key, *before), row(key, *after)))
            .collect();
        let rows: Vec<(&Map, &Map)> = rows.iter().map(|(before, after)| (before, after)).collect();
        order(&table(), &rows)
    }

    #[test]
    fn portions_are_bounded_in_rows_and_bytes() {
        let third = BYTES_AT_ONCE / 3;
        for (sizes, expected) in [
            (&[1, 1, 1, 1, 1][..], &[2, 2, 1][..]),
            (&[third, third + third, third], &[2, 1]),
            (&[2 * BYTES_AT_ONCE, 1, 2 * BYTES_AT_ONCE], &[1, 1, 1]),
            (&[], &[]),
        ] {
            let cut: Vec<usize> = portions(sizes, 2, |size| *size).iter().map(|part| part.len()).collect();
            assert_eq!(cut, expected, "{sizes:?}");
        }
    }

    #[test]
    fn updates_wait_for_the_row_that_holds_their_value() {
        for (moves, levels, circle) in [
            (&[(1, 11), (2, 12)][..], vec![vec![0, 1]], vec![]),
            (&[(1, 2), (2, 3)], vec![vec![1], vec![0]], vec![]),
            (&[(1, 2), (2, 1)], vec![], vec![0, 1]),
            (&[(1, 2), (2, 1), (5, 6), (6, 7)], vec![vec![3], vec![2]], vec![0, 1]),
            (&[(1, 0), (2, 1)], vec![vec![0], vec![1]], vec![]),
            (&[(0, 1), (0, 2)], vec![vec![0, 1]], vec![]),
            (&[(1, 1), (2, 3)], vec![vec![0, 1]], vec![]),
        ] {
            assert_eq!(ordered(moves), Order { levels, circle }, "{moves:?}");
        }
        let chain: Vec<(i64, i64)> = (1..=80).map(|at| (at, at + 1)).collect();
        let order = ordered(&chain);
        assert_eq!((order.levels.len(), order.circle.len()), (LEVELS, 80 - LEVELS));
    }
}
