//! What will happen, in the order of virtual time; at the same time, in the order it was arranged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// When, in which order of arrangement, and where what happens is kept: the heap moves its entries about, so they are
/// small.
type Entry = Reverse<(u64, u64, usize)>;

/// Things to come.
#[derive(Debug)]
pub struct Agenda<T> {
    /// Virtual milliseconds since the simulation began.
    pub now: u64,
    heap: BinaryHeap<Entry>,
    things: Vec<Option<T>>,
    free: Vec<usize>,
    arranged: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            now: 0,
            heap: BinaryHeap::new(),
            things: Vec::new(),
            free: Vec::new(),
            arranged: 0,
        }
    }
}

impl<T> Agenda<T> {
    /// Arranges for something to happen, not before now.
    pub fn at(&mut self, at: u64, what: T) {
        self.arranged += 1;
        let place = self.free.pop().unwrap_or(self.things.len());
        match self.things.get_mut(place) {
            Some(thing) => *thing = Some(what),
            None => self.things.push(Some(what)),
        }
        self.heap.push(Reverse((at.max(self.now), self.arranged, place)));
    }

    /// Arranges for something to happen in so many milliseconds.
    pub fn after(&mut self, wait: u64, what: T) {
        self.at(self.now.saturating_add(wait), what);
    }

    /// The next thing not after `end`, with the clock set to its time; else the clock is set to `end`.
    pub fn next_until(&mut self, end: u64) -> Option<T> {
        if self.heap.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Reverse((at, _, place)) = self.heap.pop()?;
            self.now = at;
            self.free.push(place);
            return self.things.get_mut(place)?.take();
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
