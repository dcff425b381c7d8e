//! What clients are told, judged by what is true in the world: one address, one sandbox; written before told.

use crate::budget::Kind;
use crate::cloud::CloudCall;
use crate::effect::{Grant, Reply};
use crate::ids::{SandboxKey, WaiterId};
use crate::records::RecordKey;
use std::net::{IpAddr, Ipv4Addr};

use super::world::{World, v4};

impl World {
    pub(super) fn reply(&mut self, waiter: WaiterId, reply: Reply) {
        let client = self
            .clients
            .get_mut(&waiter)
            .expect("a reply for a client that exists");
        assert!(
            client.last.is_none(),
            "{waiter} is told {reply:?} after {:?}",
            client.last
        );
        match &reply {
            Reply::Assigned(grant) => {
                assert!(client.grant.is_none(), "assigned twice");
                let key = client.key.clone().expect("only an ADD is assigned to");
                client.grant = Some(grant.clone());
                self.judge_grant(&key, grant);
                self.routes.insert(grant.address, key);
                return;
            }
            Reply::Durable => {
                let grant = client.grant.clone().expect("durable without assigned");
                let key = client.key.clone().expect("only an ADD is durable");
                if !client.gone {
                    let stored = RecordKey::Allocation(key.clone()).text();
                    // A DEL of the same sandbox may already be on its way behind it.
                    let superseded = !self.pool.allocations().contains_key(&key);
                    assert!(
                        self.store.contains_key(&stored) || superseded,
                        "durable before it is stored"
                    );
                    if !superseded {
                        self.live.insert(key, grant.address);
                    }
                }
            }
            Reply::Refused(_) => {
                if let (Some(key), Some(grant)) = (client.key.clone(), client.grant.clone()) {
                    self.routes
                        .retain(|address, holder| (*address, &*holder) != (grant.address, &key));
                }
            }
            Reply::Released { addresses, .. } => {
                assert!(client.released.is_none(), "released twice");
                client.released = Some(addresses.clone());
                for released in addresses {
                    self.routes.retain(|_, holder| *holder != released.key);
                }
                return;
            }
            Reply::Settled => {
                for released in client.released.as_ref().expect("settled without released") {
                    self.live.remove(&released.key);
                    self.gone.insert(released.key.clone());
                }
            }
            Reply::Collected(addresses) => {
                for released in addresses {
                    self.live.remove(&released.key);
                    self.routes.retain(|_, holder| *holder != released.key);
                }
            }
        }
        if let Some(client) = self.clients.get_mut(&waiter) {
            client.last = Some(reply);
        }
    }

    /// Design invariant 9: never more calls in any hour than the ceiling, whatever happens, restarts and reboots included.
    pub(super) fn count_call(&mut self, request: &CloudCall) {
        let kind = match request {
            CloudCall::DescribeEnis { .. }
            | CloudCall::DescribeLeftEnis { .. }
            | CloudCall::DescribeInstances { .. }
            | CloudCall::DescribeSubnets { .. }
            | CloudCall::DescribeInstanceType { .. } => Kind::Describing,
            _ => Kind::Changing,
        };
        let sent = self.earlier_boots + self.now.0;
        self.sent.push((kind, sent));
        let recent = self.sent.iter().rev().take_while(|(_, at)| at + 3_600_000 > sent);
        let hour = recent.filter(|(other, _)| *other == kind).count();
        let most = kind.allowance().hour as usize;
        assert!(hour <= most, "{hour} {kind:?} calls within an hour");
    }

    /// Design invariant 2 as the world sees it: EC2 is not given what a sandbox has, or had lately.
    pub(super) fn judge_unused(&self, addresses: &[Ipv4Addr]) {
        for address in addresses.iter().copied().map(IpAddr::V4) {
            let address = &address;
            let holder = self.live.iter().find(|(_, held)| *held == address);
            assert!(
                holder.is_none(),
                "{address} was given back while {holder:?} lives on it"
            );
            let route = self.routes.get(address);
            assert!(
                route.is_none(),
                "{address} was given back while the kernel routes it to {route:?}"
            );
            let rested = self.released.get(address).map(|since| self.now.since(*since));
            assert!(
                rested.is_none_or(|rested| rested >= self.policy.cooldown),
                "{address} was given back after {rested:?}"
            );
        }
    }

    /// Design invariant 1 as the world sees it.
    fn judge_grant(&self, key: &SandboxKey, grant: &Grant) {
        for (other, address) in &self.live {
            assert!(
                *address != grant.address || other == key,
                "{address} was given to {key} while {other} lives on it"
            );
        }
        if grant.repeated {
            return;
        }
        if let Some(holder) = self.routes.get(&grant.address) {
            assert!(
                holder == key,
                "{} was given to {key} while the kernel routes it to {holder}",
                grant.address
            );
        }
        if let Some(released) = self.released.get(&grant.address) {
            let rested = self.now.since(*released);
            assert!(
                rested > self.policy.cooldown || self.policy.cooldown.is_zero(),
                "{} was reused after {rested:?}",
                grant.address
            );
        }
        let is_wired = self.routes.contains_key(&grant.address);
        assert!(
            is_wired || !self.pool.enis()[&grant.eni].excluded,
            "{} was given on {}, which gets no new pods",
            grant.address,
            grant.eni
        );
        let is_there = |eni: &crate::cloud::CloudEni| match grant.address {
            IpAddr::V4(address) => eni.cidrs().any(|cidr| cidr.contains(address)),
            IpAddr::V6(address) => eni.prefixes6.iter().any(|prefix| prefix.contains(address)),
        };
        assert!(
            self.enis.get(&grant.eni).is_some_and(is_there),
            "{} was given, which EC2 does not have on {}",
            grant.address,
            grant.eni
        );
        let is_published = |address| self.published.contains(&address);
        let mapped =
            grant.eni == self.facts.primary_eni || grant.address.is_ipv6() || is_published(v4(grant.address));
        assert!(
            mapped,
            "{} was given before the kernel's map holds it",
            grant.address
        );
        let carrier = self.enis.get(&grant.eni);
        assert!(
            carrier.is_some_and(|eni| eni.attachment.is_some()),
            "{} was given on {}, which is attached nowhere",
            grant.address,
            grant.eni
        );
    }
}
