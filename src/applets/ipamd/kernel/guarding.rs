//! Putting right what somebody else has changed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::{
    Author, EniMark, Guarded, HostFacts, Mail, RecordedPod, RuleLayout, Sighting, Worker, authors,
    configure_where, put_pods_right, repairs,
};
use crate::ipam::ids::Mac;
use crate::net::eni::EniError;
use crate::net::nft::NftError;

/// Between two comparisons.
const REST: Duration = Duration::from_millis(20);
/// After something could not be put right; doubled each time it could not, as often as this.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const MOST_DOUBLINGS: u32 = 9;
const PUBLISHED: &str = "addresses in nftables map pod-eni";

impl Worker {
    /// News is worked off at once, but so that a stream of it leaves time for everything else.
    pub(super) fn hear(&mut self, sighting: Sighting) {
        self.heard.add(sighting);
        let earliest = self.guarded_at.map_or_else(Instant::now, |at| at + REST);
        self.guard_at = Some(self.guard_at.map_or(earliest, |at| at.min(earliest)));
    }

    /// Links of others come and go, and none of them is a reason to look at ours.
    pub(super) fn is_enis(&self, mac: Mac) -> bool {
        let mut enis = self.guardian.enis.values();
        mac == self.intent.primary_mac || enis.any(|eni| eni.mac == mac)
    }

    /// Compares everything of the node itself, and has the pods looked after by whoever knows which of them live.
    pub(super) fn guard(&mut self) {
        let sighting = std::mem::take(&mut self.heard);
        let by = authors(&sighting);
        let before = (self.guarded.repairs, self.guardian.disputed());
        // Each DEL is news of a pod, and none of the node.
        if sighting.all || !sighting.host.is_empty() || self.failures > 0 {
            self.guard_node(&by);
        }
        self.guarded_at = Some(Instant::now());
        if sighting.all || !sighting.pods.is_empty() {
            // The actor is gone only when the daemon ends.
            let Sighting { pods: gone, all, .. } = sighting;
            drop(self.mail.send(Mail::Disturbed { gone, all }));
        }
        self.tell_guarded(&before);
    }

    fn guard_node(&mut self, by: &str) {
        let all_right = [self.guard_host(by), self.guard_enis(by), self.guard_published(by)];
        self.look_again_unless(all_right == [true; 3]);
        // A renamed link has its parameters elsewhere.
        self.watch_settings();
        drop(self.mail.send(Mail::TableTouched));
    }

    fn tell_guarded(&mut self, before: &(u64, Vec<String>)) {
        self.guarded.disputed = self.guardian.disputed();
        if (self.guarded.repairs, &self.guarded.disputed) != (before.0, &before.1) {
            drop(self.mail.send(Mail::Guarded(self.guarded.clone())));
        }
    }

    /// What is changed while it is looked at (a link that is being renamed, say) is right or wrong a moment later.
    fn look_again_unless(&mut self, all_right: bool) {
        self.failures = if all_right {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let delay = LOOK_AGAIN.saturating_mul(1 << self.failures.min(MOST_DOUBLINGS));
        self.guard_at = (!all_right).then(|| Instant::now() + delay);
    }

    fn guard_host(&mut self, by: &str) -> bool {
        let guardian = &mut self.guardian;
        let applied = self
            .host
            .apply_where(&self.intent, |change| guardian.may(&change.object(), by));
        match applied {
            Ok(report) => {
                self.primary = report.primary.name;
                for change in &report.changes {
                    note(&mut self.guarded, &change.to_string(), by);
                }
                true
            }
            Err(error) => {
                error!("the host could not be put right: {error}");
                false
            }
        }
    }

    /// A link that is gone for the moment is configured when it comes back.
    fn guard_enis(&mut self, by: &str) -> bool {
        let mut all_right = true;
        let mut moved: BTreeMap<EniMark, u32> = BTreeMap::new();
        for (eni, intent) in self.guardian.enis.clone() {
            let guardian = &mut self.guardian;
            let configured = configure_where(&intent, |change| guardian.may(&format!("{eni}: {change}"), by));
            let link = match configured {
                Ok(link) => link,
                Err(error) => {
                    // One whose link has gone is for the pool to see to.
                    if !matches!(error, EniError::LinkMissing(_)) {
                        warn!(%eni, "an ENI could not be put right: {error}");
                        all_right = false;
                    }
                    continue;
                }
            };
            for change in &link.changes {
                note(&mut self.guarded, &format!("{eni}: {change}"), by);
            }
            moved.extend(intent.mark.map(|mark| (mark, link.ifindex)));
            self.links.insert(eni, link.name);
        }
        let is_new = |(mark, link): (&EniMark, &u32)| self.intent.enis.get(mark) != Some(link);
        if moved.iter().any(is_new) {
            self.intent.enis.extend(moved);
            all_right &= self.guard_host(by);
        }
        all_right
    }

    fn guard_published(&mut self, by: &str) -> bool {
        if self.intent.layout != RuleLayout::Shared {
            return true;
        }
        match self.put_published_right(by) {
            Ok(true) => note(&mut self.guarded, PUBLISHED, by),
            Ok(false) => {}
            Err(error) => {
                warn!("published addresses could not be compared: {error}");
                return false;
            }
        }
        true
    }

    fn put_published_right(&mut self, by: &str) -> Result<bool, NftError> {
        let present = self.host.table().pods()?;
        let known = |mark: &EniMark| self.intent.enis.contains_key(mark);
        let mut wanted = self.published.clone();
        wanted.retain(|_, mark| known(mark));
        let is_right = present.len() == wanted.len()
            && wanted
                .iter()
                .all(|(address, mark)| present.get(address) == Some(&Some(*mark)));
        if is_right || !self.guardian.may(PUBLISHED, by) {
            return Ok(false);
        }
        self.host.table().publish_only(&wanted)
    }

    /// Puts living pods right.
    pub(super) fn restore(&mut self, pods: &[RecordedPod], gone: &BTreeMap<IpAddr, Author>, all: bool) {
        let seen = match HostFacts::observe(&self.intent.veth_prefix) {
            Ok(seen) => seen,
            Err(error) => return warn!("the kernel could not be read: {error}"),
        };
        let before = (self.guarded.repairs, self.guardian.disputed());
        let found = self.guardian.ripe(repairs(&seen, pods), gone, all);
        for repair in &found.repairs {
            let author = gone.get(&repair.address);
            let by = author.map(|author| author.clone().found().to_string());
            let ops: Vec<String> = repair.ops.iter().map(ToString::to_string).collect();
            let by = by.as_deref().unwrap_or("somebody");
            note(
                &mut self.guarded,
                &format!("{}: {}", repair.address, ops.join("; ")),
                by,
            );
        }
        put_pods_right(found);
        self.tell_guarded(&before);
    }

    pub(super) fn watch_settings(&self) {
        self.guardian
            .watch_settings(&self.intent, &self.primary, &self.links);
    }
}

fn note(guarded: &mut Guarded, change: &str, by: &str) {
    warn!(change, by, "put right after {by} had changed it: {change}");
    guarded.repairs = guarded.repairs.saturating_add(1);
    guarded.last = Some(format!("{change} (changed by {by})"));
}
