//! Why the pool is as large as it is, in sentences: made from the plan's own report, so that it says what was decided by
//! and nothing else. What this module has no sentence for is told by name and value.

mod surplus;

use serde::Serialize;
use serde_json::Value;

use super::cloud::{Amount, Unit};
use super::ids::{CardIndex, Tick};
use super::memory::Purpose;
use super::model::AddressState;
use super::plan::{Act, Plan, Report, plan};
use super::policy::WarmTarget;
use super::pool::Pool;
use super::six;
use super::status::{told, told_of};
use super::targets::Goal;

/// What a sentence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum About {
    /// What there is.
    Now,
    /// What is wanted, and by which setting.
    Wanted,
    /// What would be asked for next.
    Next,
    /// What is there beyond what is wanted, and what becomes of it.
    Surplus,
    /// What has been asked for and not answered.
    UnderWay,
    /// What keeps it from more.
    Limit,
    /// Who or what waits for what.
    Waiting,
    /// Something the report says that has no sentence yet.
    Besides,
}

/// One sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sentence {
    /// What it is about.
    pub about: About,
    /// The sentence.
    pub text: String,
}

/// In quarantine there can be hundreds, for one reason.
const MOST_NAMED: usize = 5;

/// What [`explain`] has sentences for.
pub(super) const SPOKEN_OF: [&str; 12] = [
    "free",
    "left_over",
    "assigned",
    "cooling",
    "quarantined",
    "coming",
    "waiting",
    "warm",
    "short",
    "enis",
    "hindrances",
    "delays",
];

/// Why the pool is as large as it is, and what would happen next.
pub fn explain(pool: &Pool, now: Tick) -> Vec<Sentence> {
    let plan = plan(pool, now);
    let Plan { acts, report } = &plan;
    let mut told = Telling::default();
    if pool.policy().is_six() {
        told.say(About::Now, six::told::now(pool, report, now));
        told.say(About::Wanted, six::told::wanted(report));
    } else if report.cards.is_empty() {
        there_is(&mut told, report);
        wanted(&mut told, pool, CardIndex::FIRST, report);
        surplus::tell(&mut told, pool, CardIndex::FIRST, &plan, now);
    }
    for (card, of_card) in &report.cards {
        told.card = Some(*card);
        there_is(&mut told, of_card);
        wanted(&mut told, pool, *card, of_card);
        surplus::tell(&mut told, pool, *card, &plan, now);
    }
    told.card = None;
    for act in acts {
        told.say(About::Next, next(act));
    }
    under_way(&mut told, pool, now);
    limits(&mut told, pool, report, now);
    waiting(&mut told, pool, report, now);
    besides(&mut told, report);
    told.sentences
}

#[derive(Default)]
struct Telling {
    sentences: Vec<Sentence>,
    /// Of which card among several the talk is.
    card: Option<CardIndex>,
}

impl Telling {
    fn say(&mut self, about: About, text: String) {
        let text = told_of(self.card, text);
        self.sentences.push(Sentence { about, text });
    }
}

fn some(count: u32, one: &str, many: &str) -> String {
    let what = if count == 1 { one } else { many };
    format!("{count} {what}")
}

fn addresses(count: u32) -> String {
    some(count, "address", "addresses")
}

fn there_is(told: &mut Telling, report: &Report) {
    let all = [report.assigned, report.free, report.cooling, report.quarantined];
    let total = all.into_iter().fold(0, u32::saturating_add);
    let enis = some(report.enis, "ENI takes a place", "ENIs take a place");
    told.say(
        About::Now,
        format!(
            "{enis}; of {} {} with pods, {} free, {} at rest and {} in quarantine; {} on the way.",
            addresses(total),
            report.assigned,
            report.free,
            report.cooling,
            report.quarantined,
            some(report.coming, "more is", "more are"),
        ),
    );
    if report.left_over > 0 {
        told.say(
            About::Now,
            format!(
                "{} of the free ones are of the kind the mode no longer asks for: they serve, but the target does not \
                 count on them.",
                report.left_over
            ),
        );
    }
}

fn wanted(told: &mut Telling, pool: &Pool, card: CardIndex, report: &Report) {
    let goal = Goal::of(pool, card);
    let (by, minimum) = match goal.target {
        _ if !card.is_first() => ("Every network card besides the first".to_owned(), 0),
        WarmTarget::Enis(enis) => (format!("WARM_ENI_TARGET={enis}"), 0),
        WarmTarget::Ips { .. } if pool.policy().is_adaptive() => (
            "ADAPTIVE_WARM_POOL, by how many pods came at once lately,".to_owned(),
            0,
        ),
        WarmTarget::Ips { warm, minimum } => (format!("WARM_IP_TARGET={warm}"), minimum),
        WarmTarget::Adaptive => ("ADAPTIVE_WARM_POOL".to_owned(), 0),
        WarmTarget::Prefixes(prefixes) => (format!("WARM_PREFIX_TARGET={prefixes}"), 0),
        WarmTarget::Nothing => ("A cordoned node".to_owned(), 0),
    };
    let kind = match goal.unit {
        Unit::Address => "single addresses",
        Unit::Prefix => "prefixes of 16 addresses",
        Unit::Block => "one /80 for all pods",
    };
    if pool.limits().is_some() {
        told.say(
            About::Wanted,
            format!(
                "{by} asks for {} free and ready, besides what pods wait for; they come as {kind}.",
                addresses(report.warm)
            ),
        );
    }
    if minimum > 0 {
        told.say(
            About::Wanted,
            format!(
                "MINIMUM_IP_TARGET={minimum} asks for {} in all, whoever has them.",
                addresses(minimum)
            ),
        );
    }
    told.say(
        About::Wanted,
        if report.short == 0 {
            "What is free and on the way covers that: nothing more is asked for.".to_owned()
        } else {
            some(report.short, "address is short.", "addresses are short.")
        },
    );
}

fn carried(amount: Amount) -> String {
    if amount == Amount::Block {
        return "a /80".to_owned();
    }
    addresses(amount.addresses())
}

fn next(act: &Act) -> String {
    match act {
        Act::Assign { eni, amount } => format!("Next EC2 is asked for {} on {eni}.", carried(*amount)),
        Act::Create { subnet, amount, card } => {
            let place = if card.is_first() {
                String::new()
            } else {
                format!(" for network {card}")
            };
            format!(
                "Next EC2 is asked for an ENI with {} in {subnet}{place}.",
                carried(*amount)
            )
        }
        Act::DescribeSubnets => "Next EC2 is asked which subnets ENIs may go to.".to_owned(),
    }
}

fn under_way(told: &mut Telling, pool: &Pool, now: Tick) {
    for ask in pool.memory.calls.values() {
        let what = match &ask.purpose {
            Purpose::Create(_) => "to create an ENI".to_owned(),
            Purpose::Attach(eni) => format!("to attach {eni}"),
            Purpose::Assign { eni, amount } => format!("for {} on {eni}", carried(*amount)),
            Purpose::Delete(eni) => format!("to delete {eni}, which nobody uses"),
            Purpose::Subnets => "which subnets ENIs may go to".to_owned(),
            Purpose::Unassign { eni, cidrs } => {
                format!("to take back {} of {eni}'s CIDRs, which nobody uses", cidrs.len())
            }
            Purpose::Detach(eni) => format!("to detach {eni}, which nobody uses"),
            other => format!("({other:?})"),
        };
        let seconds = now.since(ask.since).as_secs();
        told.say(
            About::UnderWay,
            format!("EC2 has been asked {what}, {seconds} s ago."),
        );
    }
    for (id, progress) in &pool.memory.enis {
        if let Some(since) = progress.link_awaited {
            let seconds = now.since(since).as_secs();
            told.say(
                About::UnderWay,
                format!("{id} is attached; its link has been awaited for {seconds} s."),
            );
        } else if progress.configuring {
            told.say(About::UnderWay, format!("The link of {id} is being configured."));
        }
    }
}

fn limits(told: &mut Telling, pool: &Pool, report: &Report, now: Tick) {
    if let Some(reason) = &pool.memory.store_trouble {
        told.say(
            About::Limit,
            format!("No pod gets an address: the store cannot be written: {reason}."),
        );
    }
    for (card, hindrance) in report.hindrances_by_card() {
        told.card = card;
        told.say(
            About::Limit,
            format!("There is no more because: {}.", self::told(hindrance, now)),
        );
    }
    told.card = None;
    for delay in &report.delays {
        told.say(
            About::Limit,
            format!("What is on the way takes longer: {}.", self::told(delay, now)),
        );
    }
}

fn waiting(told: &mut Telling, pool: &Pool, report: &Report, now: Tick) {
    if report.waiting > 0 {
        told.say(
            About::Waiting,
            some(
                report.waiting,
                "pod waits for an address.",
                "pods wait for an address.",
            ),
        );
    }
    let states = || {
        let all = pool.addresses().iter();
        all.map(|(address, known)| (address, known.state(now)))
    };
    let rests = states().filter_map(|(_, state)| match state {
        AddressState::Cooling { until } => Some(until),
        _ => None,
    });
    if let Some(until) = rests.min() {
        // It is free after the last instant of its rest.
        let seconds = until.since(now).as_millis().div_ceil(1000);
        told.say(
            About::Waiting,
            format!("The first address at rest is free in {seconds} s."),
        );
    }
    let mut doubtful = states().filter_map(|(address, state)| match state {
        AddressState::Quarantined(why) => Some(format!("{address} is in quarantine: {why}.")),
        _ => None,
    });
    for text in doubtful.by_ref().take(MOST_NAMED) {
        told.say(About::Waiting, text);
    }
    let more = doubtful.count();
    if more > 0 {
        told.say(
            About::Waiting,
            format!("{more} more are in quarantine; ipamd status --json has them all."),
        );
    }
}

/// Whatever else the report has learned to say.
fn besides(told: &mut Telling, report: &Report) {
    let Ok(Value::Object(fields)) = serde_json::to_value(report) else {
        return;
    };
    for (name, value) in fields {
        let is_empty = match &value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        // Every card's own report has been told as such.
        if !SPOKEN_OF.contains(&name.as_str()) && name != "cards" && !is_empty {
            told.say(About::Besides, format!("{}: {value}", name.replace('_', " ")));
        }
    }
}
