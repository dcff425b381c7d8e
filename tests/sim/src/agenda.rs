//! What will happen, in the order of virtual time; at the same time, in the order it was arranged.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug)]
struct Entry<T> {
    at: u64,
    number: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Things to come.
#[derive(Debug)]
pub struct Agenda<T> {
    /// Virtual milliseconds since the simulation began.
    pub now: u64,
    heap: BinaryHeap<Entry<T>>,
    arranged: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            now: 0,
            heap: BinaryHeap::new(),
            arranged: 0,
        }
    }
}

impl<T> Agenda<T> {
    /// Arranges for something to happen, not before now.
    pub fn at(&mut self, at: u64, what: T) {
        self.arranged += 1;
        self.heap.push(Entry {
            at: at.max(self.now),
            number: self.arranged,
            what,
        });
    }

    /// Arranges for something to happen in so many milliseconds.
    pub fn after(&mut self, wait: u64, what: T) {
        self.at(self.now.saturating_add(wait), what);
    }

    /// The next thing not after `end`, with the clock set to its time; else the clock is set to `end`.
    pub fn next_until(&mut self, end: u64) -> Option<T> {
        if self.heap.peek().is_some_and(|next| next.at <= end) {
            let next = self.heap.pop()?;
            self.now = next.at;
            return Some(next.what);
        }
        self.now = self.now.max(end);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Agenda;

    #[test]
    fn what_is_arranged_comes_in_its_order() {
        let mut agenda = Agenda::default();
        for (at, what) in [(5, 'c'), (2, 'a'), (2, 'b'), (9, 'd')] {
            agenda.at(at, what);
        }
        let order: String = std::iter::from_fn(|| agenda.next_until(8)).collect();
        assert_eq!((order.as_str(), agenda.now), ("abc", 8));
    }
}
