//! What the world judges that no node can: calls by who uses what they are about, and everything once all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::cloud::{CloudCall, CloudEni};
use aws_cni_ipam::ids::{EniId, SandboxKey};
use aws_cni_ipam::model::{Eni, EniRole, EniState};
use aws_cni_ipam::plan::{Act, plan};
use aws_cni_ipam::pool::Pool;
use aws_cni_ipam::records::decode;
use aws_cni_ipam::tags;

use crate::cloud::NO_MANAGE;
use crate::node::PodState;
use crate::script::{Quirk, Span};
use crate::world::World;

mod six;

const MINUTE: u64 = 60_000;
/// By then everything that failed has been tried again: the longest back-off is an hour and a quarter.
const PATIENCE: u64 = 180 * MINUTE;
/// EC2 calls of an idle hour: lists of ENIs, of what others left and of subnets.
/// A subnet without a block of 16 is asked for one twice an hour, each time after a look at the subnets. What has a
/// public address is looked at eight times in the first hour after it was to be given back, and less and less often then.
const IDLE_CALLS: usize = 20;
/// EC2 calls of an hour in which a full subnet is asked for more, again and again.
const SHORT_CALLS: usize = 400;

type Records = BTreeMap<String, Vec<u8>>;

/// What is stored otherwise than it is known. What cannot be read is left for a human.
fn difference(known: &Records, stored: &Records) -> Option<String> {
    let readable = |(key, value): &(&String, &Vec<u8>)| decode(key, value).is_ok();
    let only_stored = stored
        .iter()
        .filter(readable)
        .find(|(key, value)| known.get(*key) != Some(*value));
    let only_known = known.iter().find(|(key, value)| stored.get(*key) != Some(*value));
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    only_stored
        .map(|(key, value)| format!("{key} is stored as {}", text(value)))
        .or_else(|| only_known.map(|(key, value)| format!("{key} should be stored as {}", text(value))))
}

/// Whether it is settled only when a pod goes: one that holds it, or the block that it was in before EC2 gave it again
/// elsewhere, which is not taken apart under a pod.
fn waits(pool: &Pool, cidr: Ipv4Cidr) -> bool {
    let holds = |address| pool.known(address).is_some_and(|known| known.holder.is_some());
    let is_held = |cidr: Ipv4Cidr| cidr.addresses().any(holds);
    let known_in = |address: Ipv4Addr| Some(pool.placed(address)?.0.carries(address)?.0);
    is_held(cidr) || cidr.addresses().filter_map(known_in).any(is_held)
}

impl World {
    fn user(&self, address: Ipv4Addr) -> Option<&SandboxKey> {
        let address = IpAddr::V4(address);
        let live = self.node.truth.holder(address);
        live.or_else(|| self.node.kernel.routes.get(&address))
    }

    /// Who uses any of what is on an ENI. From whom others have taken an address on another one, he does not use it here,
    /// though EC2 may have given it again.
    fn user_of_any(&self, eni: Option<&EniId>, cidrs: &[Ipv4Cidr]) -> Option<(Ipv4Addr, &SandboxKey)> {
        let held = |key| self.node.pool.as_ref()?.allocations().get(key);
        let is_elsewhere = |address, key| {
            let on_another = held(key).is_some_and(|held| Some(&held.eni) != eni);
            self.meddled.contains_key(&IpAddr::V4(address)) && on_another
        };
        let mut addresses = cidrs.iter().copied().flat_map(Ipv4Cidr::addresses);
        addresses.find_map(|address| {
            let key = self.user(address)?;
            (!is_elsewhere(address, key)).then_some((address, key))
        })
    }

    /// Nothing a pod uses is given back, nothing of others is touched.
    pub(crate) fn judge_call(&mut self, call: &CloudCall) {
        self.judge_asking(call);
        self.judge_block(call);
        let (about, taken): (Option<EniId>, Vec<Ipv4Cidr>) = match call {
            CloudCall::UnassignAddresses { eni, proofs } => (
                Some(eni.clone()),
                proofs
                    .iter()
                    .map(|proof| Ipv4Cidr::host(*proof.subject()))
                    .collect(),
            ),
            CloudCall::UnassignPrefixes { eni, proofs } => (
                Some(eni.clone()),
                proofs.iter().map(|proof| *proof.subject()).collect(),
            ),
            CloudCall::DetachEni { eni, .. } => self.all_of(eni),
            CloudCall::DeleteEni { proof } => self.all_of(proof.subject()),
            CloudCall::AttachEni { eni, .. }
            | CloudCall::Assign { eni, .. }
            | CloudCall::SetGroups { eni, .. }
            | CloudCall::TagEni { eni, .. }
            | CloudCall::DeleteOnTermination { eni, .. } => (Some(eni.clone()), Vec::new()),
            _ => return,
        };
        let removes = matches!(call, CloudCall::DetachEni { .. } | CloudCall::DeleteEni { .. });
        let user = self
            .user_of_any(about.as_ref(), &taken)
            .map(|(address, key)| (IpAddr::V4(address), key));
        let user_of_blocks = || self.user_of_blocks(about.as_ref().filter(|_| removes)?);
        let found = user
            .or_else(user_of_blocks)
            .map(|(address, key)| format!("{address} is to be given back while {key} uses it: {call:?}"));
        if let Some(what) = found {
            self.node.violated("freed-in-use", what);
        }
        let Some(id) = about else { return };
        let interface = self.account.interfaces.get(&id);
        if removes && interface.is_some_and(|interface| interface.kept) {
            let what = format!("{id} was brought by others, and is not ours to take away: {call:?}");
            return self.node.violated("foreign-eni", what);
        }
        // EC2's list may be of a moment before it was associated.
        let long_since = interface.filter(|interface| interface.public_since + 2 * MINUTE < self.now());
        let public = long_since.and_then(|interface| interface.is.as_ref());
        let reached = public.and_then(|eni| {
            let mut public = eni.public.iter();
            public.find(|address| removes || taken.iter().any(|cidr| cidr.contains(**address)))
        });
        if let Some(address) = reached {
            let what = format!("{address} is to be given back with its public address: {call:?}");
            self.node.violated("freed-public", what);
        }
        let interface = self.account.interfaces.get(&id);
        let left = interface.and_then(|interface| interface.left);
        let is_foreign = interface.is_some_and(|interface| interface.foreign);
        let may_be = match (call, left) {
            // Whoever wants to delete it, puts a lease on it or the time of its creation first.
            (CloudCall::TagEni { .. }, Some(Some(_))) => true,
            (CloudCall::DeleteEni { .. }, Some(Some(from))) => from <= self.now(),
            _ => !is_foreign,
        };
        if !may_be {
            self.node
                .violated("foreign-eni", format!("{id} is somebody else's: {call:?}"));
        }
        if matches!(call, CloudCall::DeleteEni { .. } | CloudCall::DetachEni { .. })
            && id == self.node.facts.primary_eni
        {
            self.node
                .violated("foreign-eni", format!("{id} is the primary ENI: {call:?}"));
        }
        if matches!(call, CloudCall::DeleteEni { .. }) {
            self.judge_deletion(&id);
        }
    }

    /// Nothing is asked that may not be; what was begun while it might be is finished.
    fn judge_asking(&mut self, call: &CloudCall) {
        let now = self.now();
        let policy = &self.node.policy;
        let is_settled = |patience: u64| self.asking_since.is_none_or(|since| since + patience < now);
        let takes_or_gives = matches!(
            call,
            CloudCall::CreateEni { .. }
                | CloudCall::Assign { .. }
                | CloudCall::UnassignAddresses { .. }
                | CloudCall::UnassignPrefixes { .. }
                | CloudCall::DetachEni { .. }
        );
        let is_too_much = !policy.ask_ec2 && is_settled(MINUTE)
            || !policy.provisioning && takes_or_gives && is_settled(PATIENCE);
        if is_too_much {
            let what = format!("EC2 may not be asked this: {call:?}");
            self.node.violated("not-to-be-asked", what);
        }
    }

    fn all_of(&self, id: &EniId) -> (Option<EniId>, Vec<Ipv4Cidr>) {
        let cidrs = self.account.eni(id).map(|eni| eni.cidrs().collect());
        (Some(id.clone()), cidrs.unwrap_or_default())
    }

    /// EC2 refuses to delete what is attached; asking for it long after it was attached is a mistake all the same.
    fn judge_deletion(&mut self, id: &EniId) {
        if !self.shown_unattached.contains(id) {
            let what = format!("{id} is to be deleted, and EC2 has never said that it is unattached");
            self.node.violated("delete-unproven", what);
        }
        let now = self.now();
        let attached = self.account.interfaces.get(id).is_some_and(|interface| {
            let attachment = interface.is.as_ref().and_then(|eni| eni.attachment.as_ref());
            attachment.is_some() && interface.moved_at + 2 * MINUTE < now
        });
        if attached {
            let what = format!("{id} is to be deleted although it has been attached for minutes");
            self.node.violated("delete-attached", what);
        }
    }

    /// What is given out is on the ENI it is said to be on, where nobody meddled and nothing lies. A daemon that EC2 has not
    /// answered since its start has the word of IMDS alone, which must be enough to serve.
    pub(crate) fn judge_grant(&mut self, address: IpAddr, id: &EniId) {
        let disturbed = self.node.weather.ec2_doubtful_until + 75 * MINUTE > self.now();
        let tick = self.node.tick();
        let by_imds_alone = self.node.pool.as_ref().is_some_and(|pool| pool.trusts_imds(tick));
        if disturbed || by_imds_alone || self.was_meddled(address, id) {
            return;
        }
        let carries = |eni: &CloudEni| {
            eni.attachment.is_some()
                && match address {
                    IpAddr::V4(address) => eni.cidrs().any(|cidr| cidr.contains(address)),
                    IpAddr::V6(address) => eni.prefixes6.iter().any(|block| block.contains(address)),
                }
        };
        if !self.account.eni(id).is_some_and(carries) {
            let what = format!("{address} was given out on {id}, which does not carry it");
            self.node.violated("not-in-ec2", what);
        }
    }

    /// The script is over: everything heals, everybody is answered, and the pool finds to its target and rests there.
    pub(crate) fn converge(&mut self) {
        self.heal();
        let calm = self.now() + PATIENCE;
        self.run_until(calm);
        self.drift_seen();
        self.let_calls_end();
        if self.node.violation.is_some() {
            return;
        }
        self.judge_everybody_answered();
        self.judge_agreement();
        self.judge_groups();
        self.judge_target();
        self.judge_idle_calls();
        self.everybody_leaves();
    }

    /// What was meddled with last is seen by the next look for drift.
    fn drift_seen(&mut self) {
        let end = self.now() + 70 * MINUTE;
        self.run_until(end);
    }

    /// A full subnet is asked again every minute or two, for ever, and an ENI may be on its way out: what is under way just
    /// now is no finding.
    fn let_calls_end(&mut self) {
        for _ in 0..60 {
            let tick = self.node.tick();
            let is_leaving = |eni: &Eni| {
                matches!(
                    eni.state,
                    EniState::Draining | EniState::Detaching | EniState::Discarding { .. }
                )
            };
            let is_busy = |pool: &Pool| {
                !pool.creations().is_empty()
                    || plan(pool, tick).report.coming > 0
                    || pool.enis().values().any(is_leaving)
            };
            if !self.node.pool.as_ref().is_some_and(is_busy) {
                return;
            }
            let soon = self.now() + 1000;
            self.run_until(soon);
        }
    }

    fn judge_everybody_answered(&mut self) {
        let unanswered = self.node.unanswered();
        if !unanswered.is_empty() {
            let what = format!("no final answer to {unanswered:?}");
            self.node.violated("lost-waiter", what);
        }
    }

    /// EC2, pool and store agree; nothing is left without an owner.
    fn judge_agreement(&mut self) {
        let Some(pool) = &self.node.pool else {
            return self
                .node
                .violated("not-running", "the daemon does not run".to_owned());
        };
        let mut found = Vec::new();
        if self.node.disk.is_quiet() {
            found.extend(difference(&pool.records(), &self.node.disk.records).map(|what| ("store", what)));
        }
        if !pool.creations().is_empty() {
            found.push((
                "unfinished",
                format!("{} creations are not finished", pool.creations().len()),
            ));
        }
        let attached: BTreeSet<&EniId> = self
            .account
            .attached(&self.node.facts.instance)
            .map(|eni| &eni.id)
            .collect();
        // A lost ENI is remembered as long as a pod is on it.
        let held = |id: &EniId| pool.allocations().values().any(|held| held.eni == *id);
        // One with a public address that finds no place stays until a human takes that away.
        let is_public = |id: &EniId| self.account.eni(id).is_some_and(|eni| !eni.public.is_empty());
        let here = |eni: &&Eni| match eni.state {
            EniState::Lost => !held(&eni.id),
            EniState::Discarding { .. } => !is_public(&eni.id),
            _ => true,
        };
        let known: BTreeSet<&EniId> = pool.enis().values().filter(here).map(|eni| &eni.id).collect();
        if attached != known {
            found.push((
                "ec2-and-pool",
                format!("attached are {attached:?}, known are {known:?}"),
            ));
        }
        for eni in pool
            .enis()
            .values()
            .filter(here)
            .filter(|eni| eni.role != EniRole::Unmanaged)
        {
            let there: BTreeSet<Ipv4Cidr> = self
                .account
                .eni(&eni.id)
                .map(|eni| eni.cidrs().collect())
                .unwrap_or_default();
            let known: BTreeSet<Ipv4Cidr> = eni.cidrs.keys().copied().collect();
            let other = there
                .symmetric_difference(&known)
                .find(|cidr| !waits(pool, **cidr));
            if let Some(cidr) = other {
                let (at_ec2, here) = (there.contains(cidr), known.contains(cidr));
                found.push((
                    "ec2-and-pool",
                    format!("{cidr} on {}: at EC2 {at_ec2}, known {here}", eni.id),
                ));
            }
        }
        found.extend(
            self.disagreement_on_blocks(pool)
                .map(|what| ("ec2-and-pool", what)),
        );
        // What others have brought is theirs, and what has a public address is for a human to decide about.
        let is_kept = |eni: &CloudEni| {
            let interface = self.account.interfaces.get(&eni.id);
            !eni.public.is_empty() || interface.is_some_and(|interface| interface.kept)
        };
        let ours = |eni: &&CloudEni| {
            let owner = eni.tags.get(tags::INSTANCE).map(String::as_str);
            let left = eni.attachment.is_none() && owner == Some(self.node.facts.instance.as_str());
            let is_left_alone = eni.tags.contains_key(NO_MANAGE);
            left && !held(&eni.id) && !is_left_alone && !is_kept(eni)
        };
        let current = self
            .account
            .interfaces
            .values()
            .filter_map(|interface| interface.is.as_ref());
        if let Some(eni) = current.clone().find(ours) {
            found.push(("leaked-eni", format!("{} is ours and attached nowhere", eni.id)));
        }
        let has_pod = |key: &SandboxKey| {
            let over = [PodState::Done, PodState::Away];
            let mut pods = self.node.pods.values();
            pods.any(|pod| !over.contains(&pod.state) && pod.key() == *key)
        };
        // What a DEL was told while the disk failed is lost with the daemon: no witness but the runtime knows that the
        // sandbox is gone, and its next GC says so. Until then the address is held, which hurts nobody.
        let lost = |key: &SandboxKey| self.node.lost_dels.contains(key);
        if let Some(key) = pool.allocations().keys().find(|key| !has_pod(key) && !lost(key)) {
            found.push((
                "leaked-address",
                format!("{key} holds an address, and its pod is gone"),
            ));
        }
        for (oracle, what) in found {
            self.node.violated(oracle, what);
        }
    }

    /// ENIs we made have the security groups they should have.
    fn judge_groups(&mut self) {
        let Some(pool) = &self.node.pool else { return };
        let policy = pool.policy();
        if !policy.provisioning {
            return;
        }
        let primary = self.account.eni(&self.node.facts.primary_eni);
        let of_primary = primary.map(|eni| eni.groups.clone()).unwrap_or_default();
        let choice = policy.eni_config.as_ref().filter(|_| policy.custom_networking);
        let wanted = match choice {
            Some(choice) if !choice.groups.is_empty() => choice.groups.clone(),
            None if policy.custom_networking => return,
            _ => of_primary,
        };
        let settled = |eni: &&Eni| {
            let is_settled = eni.role == EniRole::Secondary && eni.state == EniState::Ready;
            is_settled && !(policy.custom_networking && eni.excluded)
        };
        let is_wrong = |eni: &&CloudEni| {
            eni.description.starts_with(tags::DESCRIPTION_PREFIX)
                && !eni.groups.is_empty()
                && eni.groups != wanted
        };
        let mut made = pool
            .enis()
            .values()
            .filter(settled)
            .filter_map(|eni| self.account.eni(&eni.id));
        if let Some(eni) = made.find(is_wrong) {
            let what = format!("{} has {:?} instead of {wanted:?}", eni.id, eni.groups);
            self.node.violated("groups", what);
        }
    }

    /// What instances that are gone have left is deleted by whoever lives, five ENIs an hour.
    fn judge_left(&mut self) {
        let now = self.now();
        let left: Vec<&EniId> = self
            .account
            .interfaces
            .iter()
            .filter(|(_, interface)| interface.is.is_some() && matches!(interface.left, Some(Some(_))))
            .map(|(id, _)| id)
            .collect();
        let overdue = |interface: &&crate::cloud::Interface| {
            let since = interface.left.flatten().filter(|_| interface.is.is_some());
            since.is_some_and(|since| since + 7 * 60 * MINUTE < now)
        };
        if left.len() <= 15 && self.account.interfaces.values().any(|it| overdue(&it)) {
            let what = format!("{left:?} are left although their owners are long gone");
            self.node.violated("left-enis", what);
        }
    }

    /// As much is ready as the targets want, or the plan says why not.
    fn judge_target(&mut self) {
        let tick = self.node.tick();
        let Some(pool) = &self.node.pool else { return };
        let mut plan = plan(pool, tick);
        // An answer about subnets grows old without anything happening; it is asked for again with the next growth.
        plan.acts.retain(|act| *act != Act::DescribeSubnets);
        if !plan.acts.is_empty() {
            self.node
                .violated("unsettled", format!("there is still to do: {:?}", plan.acts));
            return;
        }
        let report = &plan.report;
        if report.short > 0 && report.hindrances.is_empty() {
            self.node.violated(
                "target",
                format!("it is short of {} without a reason", report.short),
            );
        } else if report.waiting > 0 || report.coming > 0 {
            self.node.violated(
                "target",
                format!("{} wait, {} are coming", report.waiting, report.coming),
            );
        }
    }

    fn judge_idle_calls(&mut self) {
        // Pods still come to their ends, and a few may be tried again.
        if self.node.truth.count() > 0 {
            return;
        }
        let calls = self.calls_since(self.now().saturating_sub(60 * MINUTE));
        let tick = self.node.tick();
        let short = |pool: &Pool| plan(pool, tick).report.short > 0;
        let most = if self.node.pool.as_ref().is_some_and(short) {
            SHORT_CALLS
        } else {
            IDLE_CALLS
        };
        if calls > most {
            let what = format!("{calls} EC2 calls in an hour without pods");
            self.node.violated("idle-calls", what);
        }
    }

    /// The last pods go; nothing of them may be left, and a new one is served.
    fn everybody_leaves(&mut self) {
        let pods: Vec<u32> = self.node.pods.keys().copied().collect();
        for n in pods {
            self.node.end(n);
        }
        self.collect();
        let soon = self.now() + MINUTE;
        self.run_until(soon);
        self.node.gc();
        self.node.lost_dels.clear();
        self.collect();
        let later = self.now() + 200 * MINUTE;
        self.run_until(later);
        if self.node.violation.is_some() {
            return;
        }
        let Some(pool) = &self.node.pool else { return };
        let left: Vec<String> = pool.allocations().keys().map(ToString::to_string).collect();
        if !left.is_empty() {
            self.node
                .violated("leaked-address", format!("{left:?} still hold addresses"));
        }
        self.let_calls_end();
        self.judge_everybody_answered();
        self.judge_agreement();
        self.judge_left();
        self.judge_doubts();
        self.judge_forgotten();
        self.judge_idle_calls();
        let granted = self.node.counts.granted;
        self.node
            .pod(u32::MAX, Span::secs(10), Span::secs(60), Quirk::None);
        self.collect();
        let end = self.now() + 3 * MINUTE;
        self.run_until(end);
        let is_served = self.node.counts.granted > granted;
        if !is_served && self.node.violation.is_none() && !self.is_walled_in() {
            let tick = self.node.tick();
            let status = self.node.pool.as_ref().map(|pool| pool.status(tick));
            let what = format!("a healthy, empty node serves no pod: {status:?}");
            self.node.violated("liveness", what);
        }
    }

    /// Others' ENIs, or such as others have taken from us, have every place but the primary ENI's, where no pods may be.
    fn is_walled_in(&self) -> bool {
        let Some(pool) = &self.node.pool else { return false };
        let is_ours_to_remove = |eni: &Eni| {
            let interface = self.account.interfaces.get(&eni.id);
            let is_ours = |interface: &crate::cloud::Interface| {
                let may_go = |eni: &CloudEni| eni.tags.contains_key(tags::INSTANCE) && eni.public.is_empty();
                !interface.kept && interface.is.as_ref().is_some_and(may_go)
            };
            eni.role == EniRole::Secondary && interface.is_some_and(is_ours)
        };
        let is_no_place = |eni: &Eni| match eni.role {
            // What is to be deleted takes none, nor does what a human has to decide about first.
            _ if matches!(eni.state, EniState::Discarding { .. }) => true,
            EniRole::Primary => eni.excluded,
            EniRole::Unmanaged => true,
            // With a /80 none is given back.
            EniRole::Secondary => eni.excluded && (pool.policy().is_six() || !is_ours_to_remove(eni)),
        };
        let most = pool.limits().map_or(0, |limits| {
            let further = limits.further_cards().map(|card| limits.enis_on(card));
            limits.enis + further.sum::<u32>()
        });
        pool.enis().len() as u64 >= u64::from(most) && pool.enis().values().all(is_no_place)
    }

    fn judge_doubts(&mut self) {
        let Some(pool) = &self.node.pool else { return };
        let doubtful = pool.addresses().iter().find(|(_, known)| known.doubt.is_some());
        if let Some((address, known)) = doubtful {
            let what = format!("{address} is still in doubt: {:?}", known.doubt);
            self.node.violated("doubt", what);
        }
    }
}
