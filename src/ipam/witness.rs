//! Evidence: who says what about an address or an ENI, and the key to freeing it.

/// Evidence that nobody uses `subject`. Only this module can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof<T> {
    subject: T,
}

impl<T> Proof<T> {
    /// What the proof is about.
    pub fn subject(&self) -> &T {
        &self.subject
    }
}
