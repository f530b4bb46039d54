//! What would collide: unique keys other than the step's own, found before anything is written.
//!
//! The table as it stands has no collision, so one can only come from a row that is new or whose unique value changes.
//! Those alone are looked up, which keeps a comparison without differences free of all this.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use farrier_model::{Failure, FailureKind, Value};

use super::compare::Differs;
use super::wanted::{Wanted, fold_key, push_key};
use crate::column::Column;
use crate::database::{Session, fetch_values};
use crate::dialect::Sql;
use crate::value::Param;

/// How many texts the server is asked about at once.
const ASKED_AT_ONCE: usize = 200;

pub(super) async fn check(
    session: &mut dyn Session,
    wanted: &Wanted,
    new: &[usize],
    differs: &[Differs],
    deleted: &HashSet<&str>,
    table_may_have_rows: bool,
) -> Result<(), Failure> {
    same_beyond_ascii(session, wanted, "key", &wanted.key, new).await?;
    for unique in &wanted.table.unique {
        let Some(places) = unique
            .columns
            .iter()
            .map(|place| wanted.columns.iter().position(|column| column == place))
            .collect::<Option<Vec<usize>>>()
        else {
            continue;
        };
        let in_scope =
            |place: &usize| wanted.scope.iter().any(|(scoped, _)| *scoped == wanted.columns[*place]);
        let is_the_key = places.iter().all(|place| wanted.key.contains(place) || in_scope(place));
        if is_the_key && wanted.scope.iter().all(|(scoped, _)| unique.columns.contains(scoped)) {
            continue;
        }
        let changes_it = |differs: &&Differs| {
            places.iter().any(|place| differs.before[*place] != wanted.rows[differs.wanted][*place])
        };
        let mut changed: Vec<usize> = new.to_vec();
        changed.extend(differs.iter().filter(changes_it).map(|differs| differs.wanted));
        if changed.is_empty() {
            continue;
        }
        let folded = among_wanted(wanted, &unique.name, &places)?;
        same_beyond_ascii(session, wanted, &unique.name, &places, &changed).await?;
        if table_may_have_rows {
            let mut leaving: HashSet<String> = deleted.iter().map(|key| (*key).to_owned()).collect();
            leaving
                .extend(differs.iter().filter(changes_it).map(|differs| key_text(wanted, &differs.before)));
            against_table(session, wanted, &unique.name, &places, &changed, &leaving, &folded).await?;
        }
    }
    Ok(())
}

fn key_text(wanted: &Wanted, row: &[Value]) -> String {
    let mut text = String::new();
    wanted.key.iter().for_each(|place| push_key(&mut text, &row[*place]));
    text
}

fn collision(wanted: &Wanted, unique: &str, places: &[usize], one: usize, other: usize) -> Failure {
    let (one, other) = (one.min(other), one.max(other));
    Failure::new(
        FailureKind::Input,
        format!(
            "rows {} ({}) and {} ({}) both have {}, and `{unique}` is a unique key",
            one + 1,
            wanted.shown_key(&wanted.rows[one]),
            other + 1,
            wanted.shown_key(&wanted.rows[other]),
            shown(wanted, places, &wanted.rows[other]),
        ),
    )
}

fn shown(wanted: &Wanted, places: &[usize], row: &[Value]) -> String {
    let parts = places.iter().map(|place| format!("{}={}", wanted.column(*place).name, row[*place]));
    parts.collect::<Vec<_>>().join(", ")
}

fn parts<'w>(
    wanted: &'w Wanted,
    places: &'w [usize],
    row: &'w [Value],
) -> impl Iterator<Item = (&'w Column, &'w Value)> {
    places.iter().map(move |place| (wanted.column(*place), &row[*place]))
}

/// Two wanted rows with one unique value; otherwise which row has which.
fn among_wanted(wanted: &Wanted, unique: &str, places: &[usize]) -> Result<HashMap<String, usize>, Failure> {
    let mut folded = HashMap::with_capacity(wanted.rows.len());
    for (at, row) in wanted.rows.iter().enumerate() {
        let exact = || {
            let mut text = String::new();
            for place in places {
                push_key(&mut text, &row[*place]);
            }
            text
        };
        if places.iter().any(|place| row[*place].is_null()) {
            continue;
        }
        let text = fold_key(parts(wanted, places, row)).unwrap_or_else(exact);
        if let Some(other) = folded.insert(text, at) {
            return Err(collision(wanted, unique, places, other, at));
        }
    }
    Ok(folded)
}

/// Two changed rows with values that only the server knows to be equal.
async fn same_beyond_ascii(
    session: &mut dyn Session,
    wanted: &Wanted,
    unique: &str,
    places: &[usize],
    changed: &[usize],
) -> Result<(), Failure> {
    let asks = |at: &usize| {
        places.iter().any(|place| {
            let text = wanted.rows[*at][*place].as_str();
            text.is_some_and(|text| wanted.column(*place).folding.fold(text).is_none())
        })
    };
    if !changed.iter().any(asks) {
        return Ok(());
    }
    let dialect = session.dialect();
    let mut keys: Vec<String> = vec![String::new(); changed.len()];
    for place in places {
        let column = wanted.column(*place);
        for (first, chunk) in changed.chunks(ASKED_AT_ONCE).enumerate() {
            let mut sql = Sql::new(dialect, "SELECT ");
            let mut asked = Vec::new();
            for (offset, at) in chunk.iter().enumerate() {
                let key = &mut keys[first * ASKED_AT_ONCE + offset];
                let value = &wanted.rows[*at][*place];
                let text = value
                    .as_str()
                    .map(|text| if column.folding.end_spaces { text.trim_end_matches(' ') } else { text });
                match (text, dialect.sort_key(column, String::from("?"))) {
                    (Some(text), Some(expression)) => {
                        sql.push(if asked.is_empty() { "" } else { ", " });
                        sql.params.push(Param::Text(text.into()));
                        sql.push(&expression);
                        asked.push(first * ASKED_AT_ONCE + offset);
                    }
                    _ => push_key(key, value),
                }
            }
            if asked.is_empty() {
                continue;
            }
            let answer = fetch_values(session, &sql.text, &sql.params).await?;
            for (index, weight) in asked.iter().zip(answer.first().into_iter().flatten()) {
                push_key(&mut keys[*index], weight);
            }
        }
    }
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (key, at) in keys.iter().zip(changed) {
        if places.iter().any(|place| wanted.rows[*at][*place].is_null()) {
            continue;
        }
        if let Some(other) = known.insert(key, *at) {
            return Err(if *places == *wanted.key {
                wanted.equal_spellings(other.min(*at), other.max(*at))
            } else {
                collision(wanted, unique, places, other, *at)
            });
        }
    }
    Ok(())
}

/// A changed row that would take a value which an existing row keeps.
async fn against_table(
    session: &mut dyn Session,
    wanted: &Wanted,
    unique: &str,
    places: &[usize],
    changed: &[usize],
    leaving: &HashSet<String>,
    folded: &HashMap<String, usize>,
) -> Result<(), Failure> {
    let dialect = session.dialect();
    let listed: Vec<String> =
        (0..wanted.columns.len()).map(|place| dialect.selected(wanted.column(place))).collect();
    for chunk in changed.chunks(dialect.max_rows()) {
        let table = dialect.quoted_table(&wanted.table.name);
        let mut sql = Sql::new(dialect, format!("SELECT {} FROM {table} WHERE ", listed.join(", ")));
        let mut any = false;
        for at in chunk {
            let row = &wanted.rows[*at];
            if places.iter().any(|place| row[*place].is_null()) {
                continue;
            }
            sql.push(if any { " OR (" } else { "(" });
            any = true;
            for (part, place) in places.iter().enumerate() {
                sql.push(if part == 0 { "" } else { " AND " });
                sql.push_equal(wanted.column(*place), &row[*place])?;
            }
            sql.push(")");
        }
        if !any {
            continue;
        }
        session
            .fetch(&sql.text, &sql.params, &mut |row| {
                let values = (0..wanted.columns.len())
                    .map(|place| Ok(wanted.column(place).value(&row.cell(place)?)))
                    .collect::<Result<Vec<Value>, Failure>>()?;
                let owned = wanted.scope.iter().all(|(scoped, value)| {
                    wanted.columns.iter().position(|column| column == scoped).is_none_or(|at| values[at] == *value)
                });
                if owned && leaving.contains(&key_text(wanted, &values)) {
                    return Ok(ControlFlow::Continue(()));
                }
                let taker = fold_key(parts(wanted, places, &values))
                    .and_then(|text| folded.get(&text))
                    .map_or_else(|| "a wanted row".to_owned(), |at| format!("row {} ({})", at + 1, wanted.shown_key(&wanted.rows[*at])));
                let whose = if owned { "" } else { " outside `only_where`" };
                Err(Failure::new(
                    FailureKind::Refused,
                    format!(
                        "{taker} cannot get {}: the existing row {}{whose} has it, and `{unique}` is a unique key",
                        shown(wanted, places, &values),
                        wanted.shown_key(&values),
                    ),
                ))
            })
            .await?;
    }
    Ok(())
}
