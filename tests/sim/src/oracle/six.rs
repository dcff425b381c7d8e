//! What the world judges of IPv6: one /80, asked for once, known to both sides, and nothing of it left behind.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aws_cni_ipam::cidr6::Ipv6Cidr;
use aws_cni_ipam::cloud::{Amount, CloudCall, CloudEni};
use aws_cni_ipam::ids::{EniId, SandboxKey};
use aws_cni_ipam::model::EniRole;
use aws_cni_ipam::pool::Pool;

use crate::acting::role_tags;
use crate::script::Role;
use crate::world::World;

impl World {
    /// What is true of /80s is not what the core can know until then.
    pub(crate) fn doubt_blocks(&mut self, until: u64) {
        self.blocks_doubtful_until = self.blocks_doubtful_until.max(until);
    }

    pub(crate) fn blocks_of(&self, id: &EniId) -> BTreeSet<Ipv6Cidr> {
        let eni = self.account.eni(id);
        eni.into_iter()
            .flat_map(|eni| eni.prefixes6.iter().copied())
            .collect()
    }

    /// Who uses an address of an ENI's /80s.
    pub(super) fn user_of_blocks(&self, id: &EniId) -> Option<(IpAddr, &SandboxKey)> {
        let blocks = self.blocks_of(id);
        let inside = |address: &IpAddr| match address {
            IpAddr::V6(address) => blocks.iter().any(|block| block.contains(*address)),
            IpAddr::V4(_) => false,
        };
        let live = self.node.truth.everybody();
        let routed = self.node.kernel.routes.iter();
        live.chain(routed)
            .find(|(address, _)| inside(address))
            .map(|(address, key)| (*address, key))
    }

    /// A second /80 costs the subnet for as long as the node lives: none is asked for while an ENI that pods may be on has
    /// one, whatever answer was lost.
    pub(super) fn judge_block(&mut self, call: &CloudCall) {
        let (CloudCall::Assign { amount, .. } | CloudCall::CreateEni { amount, .. }) = call else {
            return;
        };
        if *amount != Amount::Block || self.now() < self.blocks_doubtful_until {
            return;
        }
        if let Some((id, block)) = self.block_for_pods() {
            let what = format!("{id} has {block}, and another /80 is asked for: {call:?}");
            self.node.violated("second-block", what);
        }
    }

    fn block_for_pods(&self) -> Option<(EniId, Ipv6Cidr)> {
        let is_for_pods = |eni: &&CloudEni| {
            let interface = self.account.interfaces.get(&eni.id);
            let mut subnets = self.account.subnets.iter();
            let subnet = subnets.find(|subnet| subnet.id == eni.subnet);
            let is_kept = interface.is_some_and(|interface| interface.kept);
            let may = [Role::None, Role::Pods].map(role_tags);
            !is_kept && subnet.is_some_and(|subnet| may.contains(&subnet.tags))
        };
        let enis = self.account.attached(&self.node.facts.instance);
        let mut enis = enis.filter(is_for_pods);
        enis.find_map(|eni| Some((eni.id.clone(), *eni.prefixes6.first()?)))
    }

    /// The pool's /80s are EC2's.
    pub(super) fn disagreement_on_blocks(&self, pool: &Pool) -> Option<String> {
        if !pool.policy().is_six() {
            return None;
        }
        let ours = pool.enis().values().filter(|eni| eni.role != EniRole::Unmanaged);
        ours.into_iter().find_map(|eni| {
            let there = self.blocks_of(&eni.id);
            let known = eni.block.as_ref().map(|block| block.prefix);
            let agreed = known.map_or(there.is_empty(), |known| there.contains(&known));
            (!agreed).then(|| format!("{} has {there:?} at EC2, and {known:?} is known", eni.id))
        })
    }

    /// Of a /80 nothing is remembered that nobody has, once its rest is over.
    pub(super) fn judge_forgotten(&mut self) {
        let Some(pool) = &self.node.pool else { return };
        let idle = pool
            .addresses()
            .iter()
            .find(|(address, known)| address.is_ipv6() && known.holder.is_none());
        if let Some((address, known)) = idle {
            let what = format!("{address} is still remembered, and nobody has it: {known:?}");
            self.node.violated("leaked-address", what);
        }
    }
}
