//! What is true of pods and addresses, whatever the pool believes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use aws_cni_ipam::cidr6::{DELEGATED, Ipv6Cidr};
use aws_cni_ipam::ids::SandboxKey;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which oracle found it.
    pub oracle: &'static str,
    /// What it found.
    pub what: String,
    /// When, in virtual milliseconds.
    pub at: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {}: {}",
            self.oracle,
            crate::script::Span(self.at),
            self.what
        )
    }
}

/// Who lives where, and since when an address has been free again.
#[derive(Debug, Default)]
pub struct Truth {
    live: BTreeMap<SandboxKey, IpAddr>,
    holders: BTreeMap<IpAddr, SandboxKey>,
    ended: BTreeMap<IpAddr, (u64, u64)>,
    /// The last address given of each /80.
    counted: BTreeMap<Ipv6Cidr, Ipv6Addr>,
    /// Until when the count of a /80 may begin anew.
    anew_until: u64,
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Truth {
    /// A sandbox was told its address.
    pub fn lives(&mut self, key: SandboxKey, address: IpAddr) {
        self.holders.insert(address, key.clone());
        self.live.insert(key, address);
    }

    /// A sandbox is gone; its address rests.
    pub fn ended(&mut self, key: &SandboxKey, now: u64, cooldown: Duration) {
        if let Some(address) = self.live.remove(key) {
            self.holders.remove(&address);
            self.ended.insert(address, (now, ms(cooldown)));
        }
    }

    /// A sandbox is gone, and nobody can know that it was ever there.
    pub fn vanished(&mut self, key: &SandboxKey) {
        if let Some(address) = self.live.remove(key) {
            self.holders.remove(&address);
        }
    }

    /// All sandboxes are gone.
    pub fn everything_ended(&mut self, now: u64) {
        for address in std::mem::take(&mut self.live).into_values() {
            self.ended.insert(address, (now, u64::MAX));
        }
        // Power lost again before the machine was back, and it came back sooner.
        for (since, _) in self.ended.values_mut() {
            *since = (*since).min(now);
        }
        self.holders.clear();
    }

    /// An address is given to somebody new. Those of a /80 are counted: what is not behind the last one has been given
    /// before, and is told.
    pub fn counts_on(&mut self, address: IpAddr, now: u64) -> Option<Ipv6Addr> {
        let IpAddr::V6(address) = address else { return None };
        let before = self.counted.insert(Ipv6Cidr::new(address, DELEGATED)?, address)?;
        (before >= address && now >= self.anew_until).then_some(before)
    }

    /// How far /80s have been counted is lost, or may be until then.
    pub fn count_anew(&mut self, until: u64) {
        self.anew_until = self.anew_until.max(until);
        self.counted.clear();
    }

    /// The count of one /80 begins anew.
    pub fn uncount(&mut self, block: Ipv6Cidr) {
        self.counted.remove(&block);
    }

    /// What was known of rests cannot be known any more.
    pub fn forget_rests(&mut self) {
        self.ended.clear();
    }

    /// Who lives on an address.
    pub fn holder(&self, address: IpAddr) -> Option<&SandboxKey> {
        self.holders.get(&address)
    }

    /// Who lives on an address, if it is another.
    pub fn holder_but(&self, address: IpAddr, key: &SandboxKey) -> Option<&SandboxKey> {
        self.holders.get(&address).filter(|holder| *holder != key)
    }

    /// Where a sandbox lives.
    pub fn address_of(&self, key: &SandboxKey) -> Option<IpAddr> {
        self.live.get(key).copied()
    }

    /// Who lives, and where.
    pub fn everybody(&self) -> impl Iterator<Item = (&IpAddr, &SandboxKey)> {
        self.holders.iter()
    }

    /// How many live.
    pub fn count(&self) -> usize {
        self.live.len()
    }

    /// How long an address rested, if that was too short.
    pub fn rest_cut_short(&self, address: IpAddr, now: u64, cooldown: Duration) -> Option<u64> {
        let (since, then) = *self.ended.get(&address)?;
        let rested = now.saturating_sub(since);
        (rested < then.min(ms(cooldown))).then_some(rested)
    }

    /// Addresses that rest now and will have rested by then.
    pub fn resting(&self, now: u64, by: u64) -> Vec<IpAddr> {
        let rests = |(address, (since, cooldown)): (&IpAddr, &(u64, u64))| {
            let until = since.saturating_add(*cooldown);
            (until > now && until < by && !self.holders.contains_key(address)).then_some(*address)
        };
        self.ended.iter().filter_map(rests).collect()
    }
}
