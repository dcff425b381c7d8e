//! Tags of ENIs that exist (reference ipamd 4.8): what is missing or different is written, the primary ENI's, too; what
//! is there besides is left alone.

use std::collections::BTreeMap;

use super::growth::common_tags;
use super::ids::EniId;
use super::model::Eni;
use super::pool::Pool;
use super::tags;

/// What is to be written on an ENI, when its tags are known to lack it.
pub(super) fn due(pool: &Pool, eni: &Eni) -> Option<BTreeMap<String, String>> {
    let has = &pool.memory.enis.get(&eni.id)?.seen.as_ref()?.tags;
    if has_all(pool, has) {
        return None;
    }
    let mut wanted = common_tags(pool);
    let instance = pool.facts().instance.to_string();
    wanted.insert(tags::INSTANCE.to_owned(), instance);
    wanted.retain(|key, value| has.get(key) != Some(value));
    (!wanted.is_empty()).then_some(wanted)
}

/// Whether nothing is missing, as nearly always; the same as [`common_tags`] wants, without making it.
fn has_all(pool: &Pool, has: &BTreeMap<String, String>) -> bool {
    let policy = pool.policy();
    let more = &policy.additional_tags;
    let is = |key: &str, value: &str| has.get(key).is_some_and(|has| has == value);
    let is_there = |key: &str, value: &str| more.contains_key(key) || is(key, value);
    let (owner, cni) = tags::OWNER;
    let of_cluster = |cluster: &String| is_there(tags::CLUSTER, cluster) && is_there(owner, cni);
    let own = |(key, value): (&String, &String)| key == tags::INSTANCE || is(key, value);
    policy.cluster_name.as_ref().is_none_or(of_cluster)
        && more.iter().all(own)
        && is(tags::INSTANCE, pool.facts().instance.as_str())
}

/// EC2 has written them.
pub(super) fn set(pool: &mut Pool, id: &EniId, tags: BTreeMap<String, String>) {
    if let Some(seen) = &mut pool.memory.progress(id).seen {
        seen.tags.extend(tags);
    }
}
