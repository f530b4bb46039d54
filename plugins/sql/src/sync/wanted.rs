//! The list of wanted rows in the table's own terms: [`Wanted`].

use std::collections::HashMap;
use std::fmt::Write as _;

use farrier_model::{Failure, FailureKind, Map, Value};

use super::Sync;
use crate::column::{Column, Kind, TextLimits, short};
use crate::dialect::Clock;
use crate::table::Table;
use crate::value::Cell;

/// The wanted rows, every value in its column's form.
pub(super) struct Wanted {
    pub(super) table: Table,
    /// The written columns, as places in the table: those of the rows, then those of the scope that no row has.
    pub(super) columns: Vec<usize>,
    /// The key, as places in `columns`.
    pub(super) key: Vec<usize>,
    /// For each of `columns`, whether a difference is a reason to write.
    pub(super) compared: Vec<bool>,
    /// For each of `columns`, whether a wanted null means the old value.
    pub(super) keeps_old: Vec<bool>,
    /// The rows that the step owns, as places in the table and values.
    pub(super) scope: Vec<(usize, Value)>,
    /// Columns that get the time of writing, as places in the table.
    pub(super) clocks: Vec<(usize, Clock)>,
    /// The values, in the order of `columns`.
    pub(super) rows: Vec<Box<[Value]>>,
    /// Where a row with this key text is.
    pub(super) by_key: HashMap<Box<str>, usize>,
}

/// How the step reads the table, without its rows; what writing needs as well.
pub(super) struct Shape {
    pub(super) columns: Vec<usize>,
    pub(super) key: Vec<usize>,
    pub(super) ignored: Vec<usize>,
    pub(super) scope: Vec<(usize, Value)>,
    pub(super) clocks: Vec<(usize, Clock)>,
}

fn input(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Input, message)
}

impl Shape {
    /// Finds the named columns in the table and checks what can be checked without reading rows.
    pub(super) fn of(sync: &Sync, table: &Table) -> Result<Shape, Failure> {
        let rows = sync
            .rows
            .as_list()
            .ok_or_else(|| input(format!("`rows` is {}, not a list", sync.rows.kind())))?;
        let mut columns: Vec<usize> = Vec::new();
        if let Some(first) = rows.first() {
            let first =
                first.as_map().ok_or_else(|| input(format!("row 1 is {}, not a map", first.kind())))?;
            for name in first.keys() {
                columns.push(table.position(name).map_err(|failure| in_row(1, failure))?);
            }
        }
        let named = |field: &str, names: &[String]| -> Result<Vec<usize>, Failure> {
            let mut places = Vec::new();
            for name in names {
                let place = table.position(name).map_err(|failure| Failure {
                    message: format!("`{field}`: {}", failure.message),
                    ..failure
                })?;
                if places.contains(&place) {
                    return Err(input(format!("`{field}` names `{name}` twice")));
                }
                places.push(place);
            }
            Ok(places)
        };
        let key = named("key", &sync.key)?;
        let ignored = named("ignore", &sync.ignore)?;
        if key.is_empty() {
            return Err(input("`key` names no column"));
        }
        if let Some(place) = key.iter().find(|place| ignored.contains(place)) {
            return Err(input(format!(
                "`{}` is a key column and cannot be ignored",
                table.columns[*place].name
            )));
        }
        let mut scope = Vec::new();
        for (name, value) in &sync.only_where {
            let place = table.position(name).map_err(|failure| Failure {
                message: format!("`only_where`: {}", failure.message),
                ..failure
            })?;
            let value = table.columns[place]
                .wanted(value)
                .map_err(|reason| input(format!("`only_where`: {reason}")))?;
            if !columns.contains(&place) && !rows.is_empty() {
                columns.push(place);
            }
            scope.push((place, value));
        }
        let mut clocks = Vec::new();
        for (name, time) in &sync.set_on_write {
            let place = table.position(name).map_err(|failure| Failure {
                message: format!("`set_on_write`: {}", failure.message),
                ..failure
            })?;
            if columns.contains(&place) {
                return Err(input(format!("column `{name}` stands in `rows` and in `set_on_write`"))
                    .help("remove one"));
            }
            clocks.push((place, Clock::from(*time)));
        }
        if rows.is_empty() {
            columns.clone_from(&key);
        }
        for place in &key {
            if !columns.contains(place) {
                return Err(input(format!("row 1 has no key column `{}`", table.columns[*place].name)));
            }
        }
        for place in columns.iter().chain(clocks.iter().map(|(place, _)| place)) {
            if table.columns[*place].generated {
                return Err(input(format!(
                    "column `{}` is computed by the database and cannot be written",
                    table.columns[*place].name
                )));
            }
        }
        let distinct = table.unique.iter().any(|unique| {
            unique
                .columns
                .iter()
                .all(|place| key.contains(place) || scope.iter().any(|(scoped, _)| scoped == place))
        });
        if !distinct {
            return Err(Failure::new(
                FailureKind::Refused,
                format!("`{}` is not a primary or unique key of table `{}`", sync.key.join(", "), table.name),
            )
            .help("name a unique key under `key`, or add one to the table"));
        }
        Ok(Shape { columns, key, ignored, scope, clocks })
    }
}

/// "row 3: …".
fn in_row(number: usize, failure: Failure) -> Failure {
    Failure { message: format!("row {number}: {}", failure.message), ..failure }
}

impl Wanted {
    /// Brings the list into the table's terms; every error names its row.
    pub(super) fn read(sync: &Sync, table: Table) -> Result<Wanted, Failure> {
        let shape = Shape::of(sync, &table)?;
        let Shape { columns, key: key_places, ignored, scope, clocks } = shape;
        let place_of = |place: &usize| columns.iter().position(|column| column == place);
        let key: Vec<usize> = key_places.iter().filter_map(place_of).collect();
        let mut keeps_old = vec![false; columns.len()];
        for name in &sync.keep_old_when_null {
            let place = table.position(name).map_err(|failure| Failure {
                message: format!("`keep_old_when_null`: {}", failure.message),
                ..failure
            })?;
            match place_of(&place) {
                Some(at) if !key.contains(&at) => keeps_old[at] = true,
                Some(_) => return Err(input(format!("`keep_old_when_null`: `{name}` is a key column"))),
                // Rows that do not have the column leave it alone anyway.
                None => {}
            }
        }
        let list = sync.rows.as_list().unwrap_or_default();
        let mut wanted = Wanted {
            compared: columns.iter().map(|place| !ignored.contains(place)).collect(),
            rows: Vec::with_capacity(list.len()),
            by_key: HashMap::with_capacity(list.len()),
            table,
            columns,
            key,
            keeps_old,
            scope,
            clocks,
        };
        for (at, row) in list.iter().enumerate() {
            let row =
                row.as_map().ok_or_else(|| input(format!("row {} is {}, not a map", at + 1, row.kind())))?;
            let values = wanted.values(at, row)?;
            let mut text = String::new();
            wanted.key.iter().for_each(|place| push_key(&mut text, &values[*place]));
            if let Some(other) = wanted.by_key.insert(text.into(), at) {
                return Err(input(format!(
                    "rows {} and {} have the same key: {}",
                    other + 1,
                    at + 1,
                    wanted.shown_key(&values)
                ))
                .help("each key may stand in `rows` once"));
            }
            wanted.rows.push(values);
        }
        wanted.refuse_equal_spellings()?;
        Ok(wanted)
    }

    fn values(&self, at: usize, row: &Map) -> Result<Box<[Value]>, Failure> {
        let mut found = 0;
        let mut values = Vec::with_capacity(self.columns.len());
        for (place, table_place) in self.columns.iter().enumerate() {
            let column = &self.table.columns[*table_place];
            let scoped = self.scope.iter().find(|(scoped, _)| scoped == table_place).map(|(_, value)| value);
            let value = match (row.get(&column.name), scoped) {
                (None, Some(scoped)) => scoped.clone(),
                (None, None) => {
                    return Err(input(format!(
                        "row {} has no column `{}`, which row 1 has",
                        at + 1,
                        column.name
                    ))
                    .help("give every row the same columns; write null where there is no value"));
                }
                (Some(value), scoped) => {
                    found += 1;
                    if value.is_null() && self.keeps_old[place] {
                        Value::Null
                    } else {
                        let value = column.wanted(value).map_err(|reason| {
                            input(format!("row {} ({}): {reason}", at + 1, self.shown_authored_key(row)))
                        })?;
                        if self.key.contains(&place) && value.is_null() {
                            return Err(input(format!(
                                "row {}: the key column `{}` is null",
                                at + 1,
                                column.name
                            )));
                        }
                        if scoped.is_some_and(|scoped| *scoped != value) {
                            return Err(input(format!(
                                "row {} ({}): `{}` is not the value that `only_where` says",
                                at + 1,
                                self.shown_authored_key(row),
                                column.name
                            )));
                        }
                        value
                    }
                }
            };
            values.push(value);
        }
        if found < row.len() {
            let known = |name: &str| self.columns.iter().any(|place| self.table.columns[*place].name == name);
            let extra = row.keys().find(|name| !known(name)).map_or("", |name| &**name);
            self.table.position(extra).map_err(|failure| in_row(at + 1, failure))?;
            return Err(input(format!("row {} has the column `{extra}`, which row 1 has not", at + 1))
                .help("give every row the same columns"));
        }
        Ok(values.into())
    }

    /// Two wanted keys that the collation holds equal cannot both be stored. Beyond ASCII the server is asked later.
    fn refuse_equal_spellings(&self) -> Result<(), Failure> {
        let columns = self.key.iter().map(|place| (self.column(*place), *place)).collect::<Vec<_>>();
        if columns.iter().all(|(column, _)| column.folding == crate::column::Folding::EXACT) {
            return Ok(());
        }
        let mut folded: HashMap<String, usize> = HashMap::with_capacity(self.rows.len());
        for (at, row) in self.rows.iter().enumerate() {
            let Some(text) = fold_key(columns.iter().map(|(column, place)| (*column, &row[*place]))) else {
                continue;
            };
            if let Some(other) = folded.insert(text, at) {
                return Err(self.equal_spellings(other, at));
            }
        }
        Ok(())
    }

    /// The error for two wanted rows with keys that the database holds equal.
    pub(super) fn equal_spellings(&self, one: usize, other: usize) -> Failure {
        let column = self.column(self.key[0]);
        let collation = column.collation.as_ref().map_or("its collation", |(_, collation)| collation);
        input(format!(
            "rows {} and {} have keys that are one to the database ({collation}): {} and {}",
            one + 1,
            other + 1,
            self.shown_key(&self.rows[one]),
            self.shown_key(&self.rows[other])
        ))
    }

    /// The column at a place of `columns`.
    pub(super) fn column(&self, place: usize) -> &Column {
        &self.table.columns[self.columns[place]]
    }

    /// `name=foo, realm=tools`.
    pub(super) fn shown_key(&self, row: &[Value]) -> String {
        let shown =
            self.key.iter().map(|place| format!("{}={}", self.column(*place).name, short_key(&row[*place])));
        shown.collect::<Vec<_>>().join(", ")
    }

    fn shown_authored_key(&self, row: &Map) -> String {
        let shown = self.key.iter().map(|place| {
            let name = &self.column(*place).name;
            format!("{name}={}", row.get(name).map_or_else(String::new, short_key))
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}

fn short_key(value: &Value) -> String {
    short(&value.to_string())
}

/// Adds one value to a text that is the same for the same values and no others.
pub(super) fn push_key(text: &mut String, value: &Value) {
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Text(part) => write!(text, "t{}:{part}", part.len()),
        other => write!(text, "{}:{other};", other.kind()),
    };
}

/// As [`push_key`] for a stored value, without making a value of it where that is not needed.
pub(super) fn push_cell(text: &mut String, column: &Column, cell: &Cell<'_>) {
    match (&column.kind, cell) {
        (Kind::Text(TextLimits { trims: false, .. }) | Kind::Other, Cell::Text(part)) => {
            let _ = write!(text, "t{}:{part}", part.len());
        }
        (_, Cell::Int(number)) if !matches!(column.kind, Kind::Bool | Kind::Float { .. }) => {
            let _ = write!(text, "int:{number};");
        }
        _ => push_key(text, &column.value(cell)),
    }
}

/// The text of a key after folding; nothing when a part is null or only the server can tell.
pub(super) fn fold_key<'v>(parts: impl Iterator<Item = (&'v Column, &'v Value)>) -> Option<String> {
    let mut text = String::new();
    for (column, value) in parts {
        match value {
            Value::Null => return None,
            Value::Text(part) => push_key(&mut text, &Value::text(column.folding.fold(part)?)),
            other => push_key(&mut text, other),
        }
    }
    Some(text)
}
