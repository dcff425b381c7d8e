//! ADDs that come together are asked for together.
//!
//! EC2 counts calls, not addresses: what is asked for the first ADD of a burst is too little for the others, and an ENI
//! created for one needs another call for the rest. So a shortage is not answered at once, but when no ADD has come for a
//! moment; a burst that does not pause is seen in parts of a fifth of a second. What is only to be held ready has a second,
//! as long as half of it is there: the Go daemon looks every five. Nothing is put off where
//! pods that may come would change nothing about it, as with whole ENIs.

use std::time::Duration;

use super::ids::{CardIndex, Tick};
use super::plan::{Act, Plan, Report};
use super::pool::Pool;
use super::targets::Goal;

/// How long EC2 is not asked.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// After an ADD: the next one may be about to come.
    pause: Duration,
    /// After the shortage began, however many come.
    most: Duration,
}

/// Plugins that were started together are a few milliseconds apart, and EC2's answers differ by more than this.
const BURST: Window = Window {
    pause: Duration::from_millis(20),
    most: Duration::from_millis(200),
};

const UNHURRIED: Window = Window {
    pause: Duration::from_secs(1),
    most: Duration::from_secs(1),
};

/// What has been seen of ADDs, and of a shortage that is not answered yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gathering {
    last_add: Option<Tick>,
    since: Option<Tick>,
    until: Option<Tick>,
}

impl Gathering {
    /// An ADD has come.
    pub(super) fn add_came(&mut self, now: Tick) {
        self.last_add = Some(now);
    }

    /// When what is short will be asked for, if that has been put off.
    pub(super) fn until(&self, now: Tick) -> Option<Tick> {
        self.until.filter(|until| *until > now)
    }
}

/// Whether what a plan asks for is put off because more may be to be asked for soon.
pub(super) fn puts_off(pool: &mut Pool, plan: &Plan, now: Tick) -> bool {
    let gains = plan.grows() && Goal::of(pool, CardIndex::FIRST).follows_pods(pool);
    let gathering = &mut pool.memory.gathering;
    let since = gathering.since.unwrap_or(now);
    let due = gathering.last_add.filter(|_| gains).map(|last_add| {
        let Window { pause, most } = window(plan);
        last_add.after(pause).min(since.after(most))
    });
    gathering.until = due.filter(|due| *due > now);
    gathering.since = gathering.until.map(|_| since);
    gathering.until.is_some()
}

fn window(plan: &Plan) -> Window {
    // An ENI takes seconds, in which many pods can come.
    let widens = plan.acts.iter().any(|act| matches!(act, Act::Create { .. }));
    let is_at_ease = if plan.report.cards.is_empty() {
        has_half(&plan.report)
    } else {
        plan.report.cards.values().all(has_half)
    };
    if is_at_ease && !widens { UNHURRIED } else { BURST }
}

/// Whether nobody waits on a card, and at least half of what is to be ready is there or on its way.
fn has_half(report: &Report) -> bool {
    let there = report.free.saturating_add(report.coming);
    report.waiting == 0 && there >= report.warm.div_ceil(2)
}

impl Pool {
    /// Whether something will be asked for as soon as no more ADDs come.
    pub(super) fn is_gathering(&self, now: Tick) -> bool {
        self.memory.gathering.until(now).is_some()
    }
}
