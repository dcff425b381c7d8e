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
    let mut wanted = common_tags(pool);
    let instance = pool.facts().instance.to_string();
    wanted.insert(tags::INSTANCE.to_owned(), instance);
    wanted.retain(|key, value| has.get(key) != Some(value));
    (!wanted.is_empty()).then_some(wanted)
}

/// EC2 has written them.
pub(super) fn set(pool: &mut Pool, id: &EniId, tags: BTreeMap<String, String>) {
    if let Some(seen) = &mut pool.memory.progress(id).seen {
        seen.tags.extend(tags);
    }
}
