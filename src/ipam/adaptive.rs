//! How much an adaptive pool holds ready: as many addresses as pods came at once lately, and a few when none come.
//!
//! An ADD that finds nothing waits for what it causes to be fetched, so the pool only has to bridge that time. Pods come
//! in bursts (a deployment, a drained neighbour), so what counts is the most that came within the time an ENI takes to
//! be there, not the average. A peak is forgotten by halves: a node that has become quiet gives its addresses back step
//! by step, and one that has just been busy does not begin again from nothing.
//!
//! Single addresses are fetched as many again as are held ready, and given back only when there are more than twice as
//! many: an address for each pod that comes, and back again when it goes, would be two calls a pod.

use std::time::Duration;

use super::ids::Tick;
use super::pool::Pool;
use super::subnets;

/// As long as an ENI may take from the question to the first pod on it, in seconds that users report.
const WINDOW: Duration = Duration::from_secs(10);
/// After this long half of a peak is forgotten.
const HALF_LIFE: Duration = Duration::from_mins(10);
/// Free addresses of a node that nothing happens on.
const LEAST: u32 = 2;
/// Free addresses of a node that has just started: its own agents come first, about so many.
const AT_START: u32 = 8;
/// No node holds more of its subnets' free addresses ready than this part.
const SHARE: u32 = 32;

/// What has been seen of pods' coming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Churn {
    /// When the present window began.
    since: Tick,
    /// Pods that came in it.
    arrivals: u32,
    /// The most that came in one.
    peak: u32,
    /// When that was.
    peak_at: Tick,
    /// Free addresses to hold ready by all this.
    level: u32,
}

impl Churn {
    pub(super) fn new(now: Tick) -> Self {
        Self {
            since: now,
            arrivals: 0,
            peak: AT_START,
            peak_at: now,
            level: AT_START,
        }
    }

    /// A pod has come.
    pub(super) fn arrived(&mut self, now: Tick) {
        if now.since(self.since) >= WINDOW {
            self.since = now;
            self.arrivals = 0;
        }
        self.arrivals = self.arrivals.saturating_add(1);
        if self.arrivals >= self.remembered(now) {
            self.peak = self.arrivals;
            self.peak_at = now;
        }
    }

    /// What is left of the peak.
    fn remembered(&self, now: Tick) -> u32 {
        let halves = now.since(self.peak_at).as_secs() / HALF_LIFE.as_secs();
        let halves = u32::try_from(halves).unwrap_or(u32::MAX);
        self.peak.checked_shr(halves).unwrap_or(0)
    }

    fn wish(&self, now: Tick) -> u32 {
        let peak = self.remembered(now);
        // A quarter more: the next burst may be somewhat larger, and some addresses rest.
        peak.saturating_add(peak / 4).max(LEAST)
    }

    /// When half of what is left will be forgotten.
    fn forgets_at(&self, now: Tick) -> Option<Tick> {
        let halves = now.since(self.peak_at).as_secs() / HALF_LIFE.as_secs();
        let halves = u32::try_from(halves.saturating_add(1)).unwrap_or(u32::MAX);
        (self.level > LEAST).then(|| self.peak_at.after(HALF_LIFE.saturating_mul(halves)))
    }

    /// Free addresses to hold ready.
    pub(super) fn level(&self) -> u32 {
        self.level
    }
}

/// Draws the conclusion from what has been seen; true when the level has changed.
pub(super) fn refresh(pool: &mut Pool, now: Tick) -> bool {
    let share = subnets::free_of_all(pool).map_or(u32::MAX, |free| free / SHARE);
    let level = pool.memory.churn.wish(now).min(share.max(LEAST));
    let is_new = level != pool.memory.churn.level;
    pool.memory.churn.level = level;
    is_new
}

/// When there is a conclusion to draw though nothing happens.
pub(super) fn due(pool: &Pool, now: Tick) -> Option<Tick> {
    let is_asked_for = pool.policy().is_adaptive();
    pool.memory.churn.forgets_at(now).filter(|_| is_asked_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Tick {
        Tick(1_000 * seconds)
    }

    #[test]
    fn the_largest_burst_counts_and_is_forgotten_by_halves() {
        let mut churn = Churn::new(after(0));
        assert_eq!(churn.wish(after(0)), 10);
        for _ in 0..40 {
            churn.arrived(after(5));
        }
        // Slow arrivals do not hide it.
        for second in (20..500).step_by(20) {
            churn.arrived(after(second));
        }
        assert_eq!(churn.wish(after(500)), 50);
        assert_eq!(churn.wish(after(605)), 25);
        assert_eq!(churn.wish(after(1_205)), 12);
        assert_eq!(churn.wish(after(100_000)), LEAST);
    }

    #[test]
    fn pods_that_come_one_by_one_need_little() {
        let mut churn = Churn::new(after(0));
        for second in (10..20_000).step_by(10) {
            churn.arrived(after(second));
        }
        assert_eq!(churn.wish(after(20_000)), LEAST);
    }
}
