//! Keeps the processes with the greatest values of a walk, in memory that is used again.
//! What the value is, is left to `process` and `fd`.

use super::pids::Comm;
use crate::spec::Key;

/// How many processes each list of the greatest names.
pub(super) static TOP_N: Key<i64> = Key::int(
    "collector.process_top_n",
    10,
    0,
    50,
    "How many processes each of these lists names: the greatest users of CPU, of resident memory and of files.",
);

/// The processes with the greatest values, greatest first; of equal values the lower pid comes first.
pub(super) struct Top {
    limit: usize,
    rows: Vec<Row>,
}

/// A process in a [`Top`].
pub(super) struct Row {
    pub value: f64,
    pub pid: u32,
    pub comm: Comm,
    /// /proc may have a longer name.
    pub is_short: bool,
}

impl Top {
    /// A list of at most `limit` processes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, rows: Vec::with_capacity(limit) }
    }

    /// Empties the list and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }

    /// True when [`Top::add`] would take the process: what it costs to learn its name is spent on these only.
    /// Who has nothing is in no list.
    pub(super) fn takes(&self, value: f64, pid: u32) -> bool {
        value > 0.0 && self.place(value, pid) < self.limit
    }

    /// Adds the process if it is among the greatest.
    pub(super) fn add(&mut self, value: f64, pid: u32, comm: &[u8]) {
        if self.takes(value, pid) {
            self.insert(Row { value, pid, comm: Comm::new(comm), is_short: false });
        }
    }

    /// The same with a name that /proc may have longer: [`Top::lengthen`] asks, once it is known who is in the list.
    pub(super) fn add_short(&mut self, value: f64, pid: u32, comm: &[u8], is_short: bool) {
        if self.takes(value, pid) {
            self.insert(Row { value, pid, comm: Comm::new(comm), is_short });
        }
    }

    /// Asks `name` for the whole name of each process that was added with a short one; it leaves what it cannot tell.
    pub(super) fn lengthen(&mut self, mut name: impl FnMut(u32, &mut Comm)) {
        for row in self.rows.iter_mut().filter(|row| row.is_short) {
            name(row.pid, &mut row.comm);
        }
    }

    fn insert(&mut self, row: Row) {
        let place = self.place(row.value, row.pid);
        if self.rows.len() == self.limit {
            self.rows.pop();
        }
        self.rows.insert(place, row);
    }

    /// The processes, greatest first.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn place(&self, value: f64, pid: u32) -> usize {
        self.rows.partition_point(|row| row.value > value || (row.value == value && row.pid < pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_are_kept_in_order() {
        let mut top = Top::new(3);
        for (value, pid) in [(5.0, 9), (0.0, 1), (7.0, 3), (5.0, 2), (5.0, 4), (1.0, 5), (8.0, 6), (f64::NAN, 7)] {
            top.add(value, pid, b"x");
        }
        let rows: Vec<(f64, u32)> = top.rows().iter().map(|row| (row.value, row.pid)).collect();
        assert_eq!(rows, [(8.0, 6), (7.0, 3), (5.0, 2)]);
        top.add_short(9.0, 8, b"kworker/0:1", true);
        top.lengthen(|pid, comm| *comm = Comm::new(format!("{pid}-events").as_bytes()));
        let names: Vec<&str> = top.rows().iter().map(|row| row.comm.as_str()).collect();
        assert_eq!(names, ["8-events", "x", "x"]);
        let mut top = Top::new(3);
        for (value, pid) in [(7.0, 3), (8.0, 6), (5.0, 2)] {
            top.add(value, pid, b"x");
        }
        assert!(!top.takes(5.0, 3) && top.takes(5.0, 1));
        let mut none = Top::new(0);
        none.add(1.0, 1, b"x");
        assert!(none.rows().is_empty());
    }
}
