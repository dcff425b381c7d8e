//! Turns a plan into intents and calls, once the independent judge has nothing against it and no more ADDs come.

use std::collections::BTreeMap;

use super::cloud::{Amount, CloudCall};
use super::ids::{CardIndex, ClientToken, EniId, SubnetId, Tick};
use super::memory::Purpose;
use super::model::Creation;
use super::outbox::Outbox;
use super::plan::{Act, Hindrance, Plan, plan};
use super::pool::Pool;
use super::{gathering, groups, stamp, subnets, tags, verify};

/// Carries out what is to be asked for now; returns the plan.
pub(super) fn grow(pool: &mut Pool, now: Tick, out: &mut Outbox) -> Plan {
    let plan = plan(pool, now);
    let violations = verify::plan(pool, &plan);
    pool.memory.report = plan.report.clone();
    for hindrance in &plan.report.hindrances {
        if let Hindrance::Braked(brake) = hindrance {
            pool.memory.budget.put_off(*brake, now);
        }
    }
    if !violations.is_empty() {
        for violation in violations {
            out.alarm("bad-plan", format!("a plan was not carried out: {violation}"));
        }
        return plan;
    }
    let comes_later = gathering::puts_off(pool, &plan, now);
    for act in &plan.acts {
        match act {
            Act::DescribeSubnets => subnets::ask(pool, now, out),
            _ if comes_later => {}
            Act::Assign { eni, amount } => assign(pool, eni, *amount, now, out),
            Act::Create { subnet, card, amount } => create(pool, subnet.clone(), *card, *amount, now, out),
        }
    }
    plan
}

fn assign(pool: &mut Pool, id: &EniId, amount: Amount, now: Tick, out: &mut Outbox) {
    pool.edit_eni(id, |eni| eni.assigning = Some(amount));
    let purpose = Purpose::Assign {
        eni: id.clone(),
        amount,
    };
    let eni = id.clone();
    out.call(pool, purpose, CloudCall::Assign { eni, amount }, now);
}

fn create(pool: &mut Pool, subnet: SubnetId, card: CardIndex, amount: Amount, now: Tick, out: &mut Outbox) {
    let token = token(pool, now);
    let creation = Creation {
        tags: labels(pool, &token, now),
        token: token.clone(),
        subnet,
        card,
        groups: groups::wanted(pool).to_vec(),
        amount,
        tracking: pool.memory.tracking,
        description: format!("{}{}", tags::DESCRIPTION_PREFIX, pool.facts().instance),
    };
    let request = creation.call(&common_tags(pool));
    pool.insert_creation(creation);
    out.call(pool, Purpose::Create(token), request, now);
}

/// A token no other creation has: within a boot time only moves on, and EC2 takes up to 64 ASCII characters.
fn token(pool: &mut Pool, now: Tick) -> ClientToken {
    pool.memory.tokens = pool.memory.tokens.wrapping_add(1);
    let boot: String = pool
        .facts()
        .boot
        .as_str()
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(8)
        .collect();
    let instance: String = pool.facts().instance.as_str().chars().take(24).collect();
    ClientToken(format!("{instance}-{boot}-{:x}-{:x}", now.0, pool.memory.tokens))
}

/// The Go daemon's tags (reference ipamd 4.8) that say whose an ENI is and when it came, and our token.
fn labels(pool: &Pool, token: &ClientToken, now: Tick) -> BTreeMap<String, String> {
    let facts = pool.facts();
    let created = facts.booted_at.saturating_add(now.0 / 1000);
    let labels = [
        (tags::INSTANCE, facts.instance.to_string()),
        (tags::CREATED_AT, stamp::rfc3339(created)),
        (tags::TOKEN, token.to_string()),
    ];
    labels.map(|(key, value)| (key.to_owned(), value)).into()
}

/// The tags every ENI gets by the configuration: the cluster's, and the user's, which may hide those.
pub(super) fn common_tags(pool: &Pool) -> BTreeMap<String, String> {
    let mut common = BTreeMap::new();
    if let Some(cluster) = &pool.policy().cluster_name {
        let (owner, cni) = tags::OWNER;
        common.insert(tags::CLUSTER.to_owned(), cluster.clone());
        common.insert(owner.to_owned(), cni.to_owned());
    }
    common.extend(pool.policy().additional_tags.clone());
    common
}
