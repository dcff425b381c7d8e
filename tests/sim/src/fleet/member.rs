//! What a fleet is made of: nodes that know neither each other nor the clock.

use super::limits::Limits;

/// What a node sees of the world while something happens to it, and what it wants of it.
#[derive(Debug)]
pub struct Around<'a, E> {
    /// Virtual milliseconds since the simulation began.
    pub now: u64,
    /// The account's buckets.
    pub limits: &'a mut Limits,
    /// What will happen to the node, and in how many milliseconds.
    pub later: Vec<(u64, E)>,
    /// Pods that run from now on.
    pub running: Vec<u32>,
}

impl<E> Around<'_, E> {
    /// Arranges for something to happen.
    pub fn later(&mut self, wait: u64, what: E) {
        self.later.push((wait, what));
    }
}

/// A node of a fleet.
pub trait Member {
    /// What happens to it.
    type Event;

    /// It is switched on.
    fn start(&mut self, around: &mut Around<'_, Self::Event>);
    /// A pod comes, to live so many milliseconds.
    fn pod(&mut self, pod: u32, life: u64, around: &mut Around<'_, Self::Event>);
    /// Something happens.
    fn happen(&mut self, event: Self::Event, around: &mut Around<'_, Self::Event>);
    /// Addresses it holds for pods, used or not.
    fn held(&self) -> u64;
    /// Pods that run now.
    fn pods(&self) -> u64;
    /// ADDs that failed.
    fn failed(&self) -> u64;
    /// A promise it broke.
    fn violation(&self) -> Option<String>;
}
