//! How often one thing is put right before it is a fight with another manager, which nobody wins by repairing faster.

use std::collections::BTreeMap;
use std::time::Duration;

/// So often within [`WINDOW`] one thing is put right without ado. `ip addr flush` alone goes on for ten rounds when what it
/// has deleted comes back.
const OFTEN: u32 = 20;
const WINDOW: Duration = Duration::from_mins(1);
/// How long a thing in dispute is left alone at first; doubled each time the fight goes on.
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// What to do about something that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Put it right.
    Repair,
    /// Leave it alone for so long, and say so: somebody else wants it otherwise.
    Dispute(Duration),
    /// Leave it alone; it has been said.
    Leave,
}

/// The repairs of late, by what was repaired. Time is whatever clock the caller reads, counted from one start.
#[derive(Debug, Default)]
pub struct Limiter {
    things: BTreeMap<String, History>,
}

#[derive(Debug)]
struct History {
    since: Duration,
    repairs: u32,
    paused_until: Option<Duration>,
    next_pause: Duration,
}

impl Limiter {
    /// `thing` is not as it should be at `now`.
    pub fn judge(&mut self, thing: &str, now: Duration) -> Verdict {
        self.forget(now);
        let history = self.things.entry(thing.to_owned()).or_insert(History {
            since: now,
            repairs: 0,
            paused_until: None,
            next_pause: FIRST_PAUSE,
        });
        if let Some(until) = history.paused_until {
            if now < until {
                return Verdict::Leave;
            }
            history.paused_until = None;
            (history.since, history.repairs) = (now, 0);
        }
        if now.saturating_sub(history.since) >= WINDOW {
            (history.since, history.repairs) = (now, 0);
        }
        if history.repairs < OFTEN {
            history.repairs = history.repairs.saturating_add(1);
            return Verdict::Repair;
        }
        let pause = history.next_pause;
        history.paused_until = Some(now.saturating_add(pause));
        history.next_pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        Verdict::Dispute(pause)
    }

    /// The things that are left alone at `now`.
    pub fn disputed(&self, now: Duration) -> impl Iterator<Item = &str> {
        let paused = move |history: &History| history.paused_until.is_some_and(|until| now < until);
        self.things
            .iter()
            .filter(move |(_, history)| paused(history))
            .map(|(thing, _)| thing.as_str())
    }

    /// When the first of them is looked at again.
    pub fn next_look(&self, now: Duration) -> Option<Duration> {
        let ends = self.things.values().filter_map(|history| history.paused_until);
        ends.filter(|until| now < *until).min()
    }

    /// A thing that has stayed right for an hour after its last pause starts afresh.
    fn forget(&mut self, now: Duration) {
        self.things.retain(|_, history| {
            let last = history.paused_until.unwrap_or(history.since);
            now.saturating_sub(last) < LONGEST_PAUSE
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_fight_is_told_once_and_paused_for_longer_each_time() {
        let mut limiter = Limiter::default();
        let mut pauses = Vec::new();
        let mut repairs = 0;
        // Somebody takes it away ten times a second for an hour.
        for tenth in 0..36_000_u32 {
            match limiter.judge("rule", SECOND / 10 * tenth) {
                Verdict::Repair => repairs += 1,
                Verdict::Dispute(pause) => pauses.push(pause.as_secs()),
                Verdict::Leave => {}
            }
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920]);
        assert_eq!(repairs, 6 * OFTEN);
        let now = SECOND * 3600;
        assert_eq!(limiter.disputed(now).collect::<Vec<_>>(), ["rule"]);
        assert!(limiter.next_look(now).is_some_and(|at| at > now));
    }

    #[test]
    fn one_fight_leaves_the_others_alone_and_ends() {
        let mut limiter = Limiter::default();
        for _ in 0..OFTEN {
            assert_eq!(limiter.judge("rule", SECOND), Verdict::Repair);
        }
        assert_eq!(limiter.judge("rule", SECOND), Verdict::Dispute(FIRST_PAUSE));
        assert_eq!(limiter.judge("table", SECOND), Verdict::Repair);
        assert_eq!(limiter.judge("rule", SECOND * 60), Verdict::Leave);
        assert_eq!(limiter.judge("rule", SECOND * 61), Verdict::Repair);
        assert_eq!(limiter.judge("rule", SECOND * 10_000), Verdict::Repair);
        assert_eq!(limiter.disputed(SECOND * 10_000).count(), 0);
    }

    proptest! {
        /// Whatever somebody does, no thing is put right more often than this in any hour.
        #[test]
        fn repairs_are_bounded(gaps in proptest::collection::vec(0_u64..30_000, 1..2_000)) {
            let mut limiter = Limiter::default();
            let mut now = Duration::ZERO;
            let mut repairs: Vec<Duration> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if limiter.judge("rule", now) == Verdict::Repair {
                    repairs.push(now);
                    let minute = repairs.iter().filter(|at| now.saturating_sub(**at) < WINDOW).count();
                    prop_assert!(minute <= 2 * OFTEN as usize, "{minute} within a minute");
                }
            }
        }
    }
}
