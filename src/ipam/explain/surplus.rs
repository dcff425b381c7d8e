//! What there is beyond the targets, when it goes, and what keeps it: by the same counts and conditions by which it is given
//! back.

use super::{About, Telling, addresses, some};
use crate::census::Census;
use crate::ids::{CardIndex, EniId, Tick};
use crate::obstacle::Topic;
use crate::plan::{Plan, Report};
use crate::pool::Pool;
use crate::release::{self, Hold};
use crate::surplus::{Return, Surplus, of_card};
use crate::targets::Goal;

pub(super) fn tell(told: &mut Telling, pool: &Pool, card: CardIndex, plan: &Plan, now: Tick) {
    let report = plan.report.of(card);
    let found = of_card(pool, card, report, now);
    let spare = spare(pool, card, report, now);
    if spare == 0 && found == Surplus::default() {
        return;
    }
    if spare > 0 {
        let text = format!("{} are free beyond that.", addresses(spare));
        told.say(About::Surplus, text.replacen("1 address are", "1 address is", 1));
    }
    let goes = found.returns.iter().map(|what| name(pool, what));
    let goes: Vec<String> = goes.collect();
    let when = match release::holds(pool, plan, now) {
        Some(hold) => Err(hold),
        None => Ok(release::due(pool, now)),
    };
    match (goes.is_empty(), when) {
        (false, Ok(due)) => told.say(
            About::Surplus,
            format!(
                "In {} s {} to EC2, unless pods come for it.",
                seconds(due, now),
                went(&goes)
            ),
        ),
        (false, Err(hold)) => told.say(
            About::Surplus,
            format!(
                "{} to EC2 once it may: {}.",
                capital(&went(&goes)),
                held(hold, now)
            ),
        ),
        (true, _) if found.next.is_none() && !found.is_held_up => {
            told.say(About::Surplus, why_not(pool, Goal::of(pool, card)).to_owned());
        }
        (true, _) => {}
    }
    if let Some(next) = found.next {
        let text = format!(
            "An ENI nobody uses goes as well when it is a minute old, in {} s.",
            seconds(next, now)
        );
        told.say(About::Surplus, text);
    }
    for (id, wait) in kept(pool, card, now) {
        told.say(
            About::Surplus,
            format!("{id} keeps what it has for {wait} s more: EC2 or a witness did not let it go."),
        );
    }
}

/// Free addresses that the targets do not ask for.
fn spare(pool: &Pool, card: CardIndex, report: &Report, now: Tick) -> u32 {
    let goal = Goal::of(pool, card);
    if pool.limits().is_none() || pool.is_left_alone() {
        return 0;
    }
    let census = Census::of(pool, card, goal, now);
    let beyond = census.free.saturating_sub(report.warm);
    let beyond = beyond.min(census.total.saturating_sub(goal.minimum()));
    beyond.saturating_add(census.left_over)
}

fn name(pool: &Pool, what: &Return) -> String {
    match what {
        Return::Eni(id) => {
            let carried = pool.enis().get(id).map_or(0, |eni| eni.addresses().count());
            format!("{id} with {}", addresses(crate::census::count(carried)))
        }
        Return::Cidrs { eni, cidrs } => {
            let count = crate::census::count(cidrs.len());
            let is_prefix = cidrs.iter().all(|cidr| !cidr.is_host());
            let kind = if is_prefix {
                some(count, "prefix", "prefixes")
            } else {
                addresses(count)
            };
            format!("{kind} of {eni}")
        }
    }
}

fn went(goes: &[String]) -> String {
    let verb = if goes.len() == 1
        && goes
            .iter()
            .all(|one| one.starts_with("eni-") || one.starts_with("1 "))
    {
        "goes back"
    } else {
        "go back"
    };
    format!("{} {verb}", goes.join(" and "))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    // An ENI's id is written as it is.
    if text.starts_with("eni-") {
        return text.to_owned();
    }
    first.into_iter().chain(letters).collect()
}

fn held(hold: Hold, now: Tick) -> String {
    match hold {
        Hold::ProvisioningOff => "provisioning is switched off".to_owned(),
        Hold::Cordoned => "the node is cordoned".to_owned(),
        Hold::NotHeard => "EC2 has not said what is attached".to_owned(),
        Hold::Refused(until) => format!(
            "EC2 did not take something back; next try in {} s",
            seconds(until, now)
        ),
        Hold::Braked(until) => format!(
            "the call budget has none left for it for {} s",
            seconds(until, now)
        ),
        Hold::UnderWay => "something else is just being given back".to_owned(),
        Hold::Growing => "more is being asked for, or pods wait".to_owned(),
    }
}

fn why_not(pool: &Pool, goal: Goal) -> &'static str {
    if goal.slack(pool) > 0 {
        "They stay: the pool keeps up to as many again before it gives any back."
    } else if goal.takes_whole_enis() {
        "They stay: ENIs are given back whole, and none can go without going below that."
    } else {
        "They stay: what they are part of cannot go without going below that, or is in use."
    }
}

fn kept(pool: &Pool, card: CardIndex, now: Tick) -> Vec<(EniId, u64)> {
    let is_here = |id: &EniId| pool.enis().get(id).is_some_and(|eni| eni.card == card);
    let of = |(topic, obstacle): (&Topic, &crate::obstacle::Obstacle)| match topic {
        Topic::Release(id) if obstacle.until > now && is_here(id) => {
            Some((id.clone(), seconds(obstacle.until, now)))
        }
        _ => None,
    };
    pool.memory.obstacles.iter().filter_map(of).collect()
}

fn seconds(until: Tick, now: Tick) -> u64 {
    u64::try_from(until.since(now).as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}
