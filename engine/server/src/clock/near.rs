//! [`Near`]: the schedules that are due next, as many as fit, by the moment at which they are due.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use farrier_model::time::Timestamp;
use farrier_store::ScheduleRow;

/// How many schedules are kept in memory.
pub(super) const SIZE: usize = 4_096;

/// The near future. Empty and ignorant at first.
#[derive(Default)]
pub(super) struct Near {
    heap: BinaryHeap<Reverse<Soon>>,
    /// What is due after this moment may be missing; none knows everything.
    until: Option<Timestamp>,
    known: bool,
}

struct Soon(Timestamp, ScheduleRow);

impl Near {
    /// The near future from the first schedules of the ledger, soonest first.
    pub(super) fn of(rows: Vec<ScheduleRow>) -> Near {
        let until = if rows.len() < SIZE { None } else { rows.last().and_then(|row| row.next_due) };
        let heap = rows.into_iter().filter_map(|row| Some(Reverse(Soon(row.next_due?, row)))).collect();
        Near { heap, until, known: true }
    }

    /// Whether the ledger has to be asked before anybody can say what is due at `now`.
    pub(super) fn is_empty_before(&self, now: Timestamp) -> bool {
        !self.known || (self.heap.is_empty() && self.until.is_some_and(|until| until <= now))
    }

    /// Takes out what is due at `now`, at most `limit`.
    pub(super) fn take(&mut self, now: Timestamp, limit: usize) -> Vec<ScheduleRow> {
        let mut due = Vec::new();
        while due.len() < limit
            && let Some(Reverse(Soon(at, _))) = self.heap.peek()
            && *at <= now
            && let Some(Reverse(Soon(_, row))) = self.heap.pop()
        {
            due.push(row);
        }
        due
    }

    /// Puts a schedule in, unless it is due beyond what is known. Does nothing when everything is to be read anew.
    pub(super) fn put(&mut self, row: ScheduleRow) {
        let Some(next) = row.next_due.filter(|_| self.known) else { return };
        if self.until.is_none_or(|until| next <= until) {
            self.heap.push(Reverse(Soon(next, row)));
        }
    }

    /// When something is due next, or the ledger has to be asked.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse(Soon(at, _))| *at).or(self.until)
    }
}

impl PartialEq for Soon {
    fn eq(&self, other: &Soon) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Soon {}

impl PartialOrd for Soon {
    fn partial_cmp(&self, other: &Soon) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Soon {
    fn cmp(&self, other: &Soon) -> Ordering {
        self.0.cmp(&other.0).then_with(|| self.1.id.cmp(&other.1.id))
    }
}
