//! What goes wrong, how long it takes and what it costs, adjustable while everything runs.

mod latency;
mod lies;
mod rules;
mod throttle;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use latency::Latency;
pub use lies::Lies;
pub use rules::{Effect, Rule, Scope, glob};
pub use throttle::Bucket;

use crate::calls::Service;
use crate::vpc::journal::Version;
use crate::vpc::rng::Rng;
use crate::vpc::{InstanceId, Stages};

/// How long things take for a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// An EC2 call, before it is carried out.
    pub ec2: Latency,
    /// An IMDS request.
    pub imds: Latency,
    /// From `AttachNetworkInterface` until the link appears.
    pub attach_link: Latency,
    /// From there until EC2 says `attached`.
    pub attach_status: Latency,
    /// From `DetachNetworkInterface` until the link goes.
    pub detach_link: Latency,
    /// From there until EC2 says `available`.
    pub detach_status: Latency,
    /// How far EC2's describes lag behind its own changes.
    pub describe_lag: Latency,
    /// How far IMDS lags behind EC2.
    pub imds_lag: Latency,
}

impl Timing {
    /// Milliseconds: for tests.
    pub const INSTANT: Self = Self {
        ec2: Latency::Zero,
        imds: Latency::Zero,
        attach_link: Latency::millis(5),
        attach_status: Latency::millis(2),
        detach_link: Latency::millis(5),
        detach_status: Latency::millis(2),
        describe_lag: Latency::Zero,
        imds_lag: Latency::Zero,
    };

    /// What people report of EC2: calls around 100 ms, attaching around two seconds with a tail.
    pub const REALISTIC: Self = Self {
        ec2: log_normal(100, 0.4, 2_000),
        imds: log_normal(1, 0.5, 20),
        attach_link: log_normal(1_500, 0.35, 10_000),
        attach_status: log_normal(500, 0.35, 5_000),
        detach_link: log_normal(1_000, 0.35, 10_000),
        detach_status: log_normal(1_000, 0.35, 10_000),
        describe_lag: log_normal(50, 0.5, 1_000),
        imds_lag: log_normal(800, 0.5, 5_000),
    };
}

const fn log_normal(median_ms: u64, sigma: f64, max_ms: u64) -> Latency {
    Latency::LogNormal {
        median: Duration::from_millis(median_ms),
        sigma,
        max: Duration::from_millis(max_ms),
    }
}

/// A set of timings and limits under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// Milliseconds and no throttling.
    #[default]
    Instant,
    /// Seconds for attaching, EC2's published throttling.
    Realistic,
}

/// How calls are throttled.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Throttling {
    /// Not at all.
    #[default]
    Off,
    /// As EC2 publishes it: a bucket for each action, shared by all nodes of the account.
    Published,
    /// These buckets by action; other actions are free.
    Only(BTreeMap<String, Bucket>),
}

/// How a server is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Connections are reset as soon as they are there.
    Reset,
    /// Connections are taken, but never answered.
    BlackHole,
}

/// The handle of an injected rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(u64);

#[derive(Debug)]
struct Active {
    id: RuleId,
    rule: Rule,
    matched: u64,
    hits: u64,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    seed: u64,
    timing: Timing,
    by_instance: BTreeMap<InstanceId, Timing>,
    throttling: Throttling,
    by_scope: BTreeMap<(Scope, String), Bucket>,
    levels: throttle::Levels,
    rules: Vec<Active>,
    next_rule: u64,
    outages: BTreeMap<(Service, Scope), Outage>,
    lies: BTreeMap<InstanceId, Lies>,
}

/// The controls; clones share them.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// Controls with the timings of a preset.
    pub fn new(seed: u64, preset: Preset) -> Self {
        let faults = Self(Arc::new(Mutex::new(State {
            rng: Rng::new(seed),
            seed,
            timing: Timing::INSTANT,
            by_instance: BTreeMap::new(),
            throttling: Throttling::Off,
            by_scope: BTreeMap::new(),
            levels: throttle::Levels::default(),
            rules: Vec::new(),
            next_rule: 0,
            outages: BTreeMap::new(),
            lies: BTreeMap::new(),
        })));
        faults.apply(preset);
        faults
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets timings and throttling for all nodes; rules, outages and lies stay.
    pub fn apply(&self, preset: Preset) {
        let mut state = self.state();
        state.by_instance.clear();
        (state.timing, state.throttling) = match preset {
            Preset::Instant => (Timing::INSTANT, Throttling::Off),
            Preset::Realistic => (Timing::REALISTIC, Throttling::Published),
        };
    }

    /// Changes the timing for all nodes or one of them.
    pub fn timing(&self, scope: &Scope, change: impl FnOnce(&mut Timing)) {
        let mut state = self.state();
        match scope {
            Scope::All => {
                change(&mut state.timing);
                state.by_instance.clear();
            }
            Scope::Instance(instance) => {
                let general = state.timing;
                change(state.by_instance.entry(instance.clone()).or_insert(general));
            }
        }
    }

    /// Switches throttling.
    pub fn throttle(&self, throttling: Throttling) {
        let mut state = self.state();
        state.throttling = throttling;
        state.levels = throttle::Levels::default();
    }

    /// Adds a bucket for an action of one node or for the action of all nodes together.
    pub fn add_bucket(&self, scope: Scope, action: &str, bucket: Bucket) {
        self.state().by_scope.insert((scope, action.to_owned()), bucket);
    }

    /// Adds a rule. Rules are asked in the order they were added; the first that isn't a mere delay decides.
    pub fn inject(&self, rule: Rule) -> RuleId {
        let mut state = self.state();
        state.next_rule += 1;
        let id = RuleId(state.next_rule);
        state.rules.push(Active {
            id,
            rule,
            matched: 0,
            hits: 0,
        });
        id
    }

    /// Withdraws a rule.
    pub fn withdraw(&self, id: RuleId) {
        self.state().rules.retain(|active| active.id != id);
    }

    /// How many calls a rule has met.
    pub fn hits(&self, id: RuleId) -> u64 {
        let state = self.state();
        state
            .rules
            .iter()
            .find(|active| active.id == id)
            .map_or(0, |active| active.hits)
    }

    /// Takes a server away from all nodes or one of them, or gives it back with `None`.
    pub fn outage(&self, service: Service, scope: Scope, outage: Option<Outage>) {
        let mut state = self.state();
        match outage {
            Some(outage) => state.outages.insert((service, scope), outage),
            None => state.outages.remove(&(service, scope)),
        };
    }

    /// Changes what IMDS and describes withhold from a node or make up.
    pub fn lies(&self, instance: &InstanceId, change: impl FnOnce(&mut Lies)) {
        change(self.state().lies.entry(instance.clone()).or_default());
    }

    /// Ends all rules, outages and lies; timings stay.
    pub fn heal(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.outages.clear();
        state.lies.clear();
        state.by_scope.clear();
    }

    pub(crate) fn timing_of(&self, instance: Option<&InstanceId>) -> Timing {
        let state = self.state();
        instance
            .and_then(|instance| state.by_instance.get(instance))
            .copied()
            .unwrap_or(state.timing)
    }

    pub(crate) fn lies_of(&self, instance: Option<&InstanceId>) -> Lies {
        let state = self.state();
        instance
            .and_then(|instance| state.lies.get(instance))
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn sample(&self, latency: Latency) -> Duration {
        latency.sample(&mut self.state().rng)
    }

    pub(crate) fn outage_of(&self, service: Service, instance: Option<&InstanceId>) -> Option<Outage> {
        let state = self.state();
        state
            .outages
            .iter()
            .find(|((hit, scope), _)| *hit == service && scope.includes(instance))
            .map(|(_, outage)| *outage)
    }

    pub(crate) fn attach_stages(&self, instance: &InstanceId) -> Stages {
        let timing = self.timing_of(Some(instance));
        let link = self.sample(timing.attach_link);
        Stages {
            link,
            status: link + self.sample(timing.attach_status),
        }
    }

    pub(crate) fn detach_stages(&self, instance: Option<&InstanceId>) -> Stages {
        let timing = self.timing_of(instance);
        let link = self.sample(timing.detach_link);
        Stages {
            link,
            status: link + self.sample(timing.detach_status),
        }
    }

    /// Whether a reader with this lag has been reached by a version. The lag of a version is drawn once, from its
    /// number, so that what a reader has seen doesn't vanish again.
    pub(crate) fn reached(&self, lag: Latency, now: Instant) -> impl Fn(&Version) -> bool + use<> {
        let seed = self.state().seed;
        move |version| {
            let mut rng = Rng::new(seed ^ version.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            version.at + lag.sample(&mut rng) <= now
        }
    }

    /// Whether a call may pass all buckets it falls under.
    pub(crate) fn admit(
        &self,
        action: &str,
        unfiltered: bool,
        instance: Option<&InstanceId>,
        now: Instant,
    ) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        let general = match &state.throttling {
            Throttling::Off => None,
            Throttling::Published => Some(Bucket::published(action, unfiltered)),
            Throttling::Only(buckets) => buckets.get(action).copied(),
        };
        // Only of describes are there two buckets.
        let key = format!("{action}/{}", unfiltered && action.starts_with("Describe"));
        if general.is_some_and(|bucket| !state.levels.take(&key, bucket, now)) {
            return false;
        }
        state
            .by_scope
            .iter()
            .filter(|((scope, own), _)| own == action && scope.includes(instance))
            .all(|((scope, _), bucket)| state.levels.take(&format!("{scope:?}/{action}"), *bucket, now))
    }

    /// What the rules do to a call: all delays, and the first effect that decides.
    pub(crate) fn meet(&self, service: Service, action: &str, instance: Option<&InstanceId>) -> Verdict {
        let mut state = self.state();
        let state = &mut *state;
        let mut verdict = Verdict::default();
        for active in &mut state.rules {
            let rule = &active.rule;
            let concerns = rule.service == service && rule.scope.includes(instance);
            let delay = matches!(rule.effect, Effect::DelayBefore(_) | Effect::DelayAfter(_));
            if !concerns || (verdict.effect.is_some() && !delay) || !glob(&rule.pattern, action) {
                continue;
            }
            active.matched += 1;
            let due = active.matched > rule.skip;
            if !due || rule.count.is_some_and(|count| active.hits >= count) {
                continue;
            }
            active.hits += 1;
            match &rule.effect {
                Effect::DelayBefore(latency) => verdict.before += latency.sample(&mut state.rng),
                Effect::DelayAfter(latency) => verdict.after += latency.sample(&mut state.rng),
                effect => verdict.effect = Some(effect.clone()),
            }
        }
        verdict
    }
}

/// What the rules do to a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    pub(crate) before: Duration,
    pub(crate) after: Duration,
    pub(crate) effect: Option<Effect>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_and_scope() {
        let faults = Faults::new(1, Preset::Instant);
        let node = InstanceId::from("i-1");
        let id = faults.inject(
            Rule::ec2_error("Create*", "InternalError", "x")
                .on(&node)
                .skip(1)
                .times(2),
        );
        let met = |who: Option<&InstanceId>| faults.meet(Service::Ec2, "CreateTags", who).effect.is_some();
        assert!(!met(None));
        let mine: Vec<bool> = (0..4).map(|_| met(Some(&node))).collect();
        assert_eq!(mine, [false, true, true, false]);
        assert_eq!(faults.hits(id), 2);
    }

    #[test]
    fn lag_is_monotonic_and_heals() {
        let faults = Faults::new(1, Preset::Realistic);
        let now = Instant::now();
        let version = Version {
            at: now,
            seq: 9,
            readdressed: 0,
            eni: None,
        };
        let lag = Latency::Uniform(Duration::from_secs(1), Duration::from_secs(9));
        let first = (0..100)
            .find(|tenth| faults.reached(lag, now + Duration::from_millis(tenth * 100))(&version))
            .unwrap();
        assert!((10..=90).contains(&first));
        assert!(faults
            .reached(lag, now + Duration::from_millis((first + 1) * 100))(
            &version
        ));
        assert!(faults.reached(Latency::Zero, now)(&version));
    }

    #[test]
    fn a_node_may_have_its_own_timing_and_bucket() {
        let faults = Faults::new(1, Preset::Instant);
        let node = InstanceId::from("i-1");
        faults.timing(&Scope::Instance(node.clone()), |timing| {
            timing.ec2 = Latency::secs(3);
        });
        assert_eq!(faults.timing_of(Some(&node)).ec2, Latency::secs(3));
        assert_eq!(faults.timing_of(None).ec2, Latency::Zero);
        faults.add_bucket(Scope::Instance(node.clone()), "CreateTags", Bucket::new(1.0, 0.0));
        let now = Instant::now();
        assert!(faults.admit("CreateTags", false, Some(&node), now));
        assert!(!faults.admit("CreateTags", false, Some(&node), now));
        assert!(faults.admit("CreateTags", false, None, now));
    }
}
