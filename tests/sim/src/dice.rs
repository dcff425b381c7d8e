//! Chance as a pure function of a seed: one stream for each thing that rolls, so that they do not disturb each other.

use aws_cni_ipam::obstacle::spread;

/// A stream of numbers.
#[derive(Debug, Clone)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// The stream of this name under a seed.
    pub fn new(seed: u64, name: &str) -> Self {
        let named = name
            .bytes()
            .fold(seed, |state, byte| spread(state ^ u64::from(byte)));
        Self { state: spread(named) }
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        spread(self.state)
    }

    /// A number less than `end`, 0 when there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll().checked_rem(end).unwrap_or(0)
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True this often in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T], or: T) -> T {
        let index = usize::try_from(self.below(of.len() as u64)).unwrap_or(0);
        of.get(index).copied().unwrap_or(or)
    }

    /// A wait around `usual` milliseconds: mostly less than twice that, now and then ten times.
    pub fn wait(&mut self, usual: u64) -> u64 {
        match self.below(100) {
            0..=1 => self.between(usual, usual.saturating_mul(10)),
            2..=14 => self.between(usual, usual.saturating_mul(3)),
            _ => self.between(usual / 2, usual.saturating_mul(3) / 2),
        }
    }
}
