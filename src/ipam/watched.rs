//! A value that counts how often it may have been changed, so that what was concluded from it need not be concluded again.

use std::ops::{Deref, DerefMut};

/// Every mutable access counts, whether it changes anything or not: nothing can change uncounted.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched<T> {
    value: T,
    changes: u64,
}

impl<T> Watched<T> {
    /// How often it may have been changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }
}

impl<T> Deref for Watched<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Watched<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.changes = self.changes.wrapping_add(1);
        &mut self.value
    }
}
