//! Its datastore and the rules of its warm pool (repo: `pkg/ipamd/ipamd.go`, `docs/eni-and-ip-target.md`).

use std::collections::VecDeque;

/// What it is told to hold ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `WARM_ENI_TARGET`.
    Enis(u32),
    /// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET`.
    Ips {
        /// Free addresses to hold ready.
        warm: u32,
        /// Addresses in all.
        minimum: u32,
    },
    /// `WARM_PREFIX_TARGET` with prefix delegation.
    Prefixes(u32),
}

/// An ENI and what is on it.
#[derive(Debug, Default)]
pub struct Eni {
    /// Secondary addresses, or prefixes.
    pub entries: u32,
    /// Addresses pods have.
    pub assigned: u32,
    cooling: VecDeque<u64>,
    made_at: u64,
}

/// What it knows.
#[derive(Debug)]
pub struct Store {
    /// What to hold ready.
    pub target: Target,
    /// Its ENIs, the primary one first.
    pub enis: Vec<Eni>,
    slots: u32,
    most_enis: usize,
}

/// A released address rests so long (`IP_COOLDOWN_PERIOD`).
const COOLDOWN: u64 = 30_000;
/// An ENI is not given back before this age (repo: `pkg/ipamd/datastore/data_store.go`, `minENILifeTime`).
const ENI_AGE: u64 = 60_000;

impl Store {
    /// Nothing but a primary ENI.
    pub fn new(target: Target, most_enis: u32, slots: u32) -> Self {
        Self {
            target,
            enis: vec![Eni::default()],
            slots,
            most_enis: most_enis as usize,
        }
    }

    /// Addresses of one entry.
    pub const fn size(&self) -> u32 {
        match self.target {
            Target::Prefixes(_) => 16,
            Target::Enis(_) | Target::Ips { .. } => 1,
        }
    }

    /// All addresses.
    pub fn total(&self) -> u32 {
        self.enis.iter().map(|eni| eni.entries).sum::<u32>() * self.size()
    }

    /// Those of pods.
    pub fn assigned(&self) -> u32 {
        self.enis.iter().map(|eni| eni.assigned).sum()
    }

    /// Those that are not, cooling ones included.
    fn available(&self) -> u32 {
        self.total().saturating_sub(self.assigned())
    }

    fn free_prefixes(&self) -> u32 {
        let free = |eni: &Eni| eni.entries.saturating_sub(eni.assigned.div_ceil(16));
        self.enis.iter().map(free).sum()
    }

    fn short(&self) -> u32 {
        match self.target {
            Target::Ips { warm, minimum } => warm
                .saturating_sub(self.available())
                .max(minimum.saturating_sub(self.total())),
            Target::Enis(_) | Target::Prefixes(_) => 0,
        }
    }

    fn over(&self) -> u32 {
        match self.target {
            Target::Ips { warm, minimum } => self
                .available()
                .saturating_sub(warm)
                .min(self.total().saturating_sub(minimum)),
            Target::Enis(_) => 0,
            Target::Prefixes(warm) => self.free_prefixes().saturating_sub(warm),
        }
    }

    /// Whether it wants more.
    pub fn is_low(&self) -> bool {
        match self.target {
            Target::Enis(warm) => self.available() < self.slots * warm || warm == 0 && self.available() == 0,
            Target::Ips { .. } => self.short() > 0,
            Target::Prefixes(warm) => self.available() < 16 * warm || warm == 0 && self.available() == 0,
        }
    }

    /// Entries it wants in one step.
    fn wanted(&self) -> u32 {
        match self.target {
            Target::Enis(_) => self.slots,
            Target::Ips { .. } => self.short(),
            Target::Prefixes(warm) => warm.saturating_sub(self.free_prefixes()).max(1),
        }
        .min(self.slots)
    }

    /// The first ENI with room, and what to ask for.
    pub fn room_on(&self) -> Option<(usize, u32)> {
        let eni = self.enis.iter().position(|eni| eni.entries < self.slots)?;
        let room = self.slots - self.enis.get(eni)?.entries;
        Some((eni, room.min(self.wanted())))
    }

    /// What a new ENI is to come with, if there is room for one.
    pub fn new_eni(&self) -> Option<u32> {
        (self.enis.len() < self.most_enis).then(|| self.wanted())
    }

    /// What is given back, by ENI: what exceeds the target (cooling or not).
    pub fn surplus(&mut self) -> Vec<u32> {
        let (mut over, size) = (self.over(), self.size());
        let mut given = Vec::new();
        for eni in &mut self.enis {
            let used = eni.assigned.div_ceil(size);
            let count = eni.entries.saturating_sub(used).min(over);
            if count > 0 {
                eni.entries -= count;
                over -= count;
                given.push(count);
                let left = (eni.entries * size).saturating_sub(eni.assigned) as usize;
                eni.cooling.truncate(left);
            }
        }
        given
    }

    /// Takes out an ENI that can go.
    pub fn deletable(&mut self, now: u64) -> bool {
        let possible = match self.target {
            Target::Enis(warm) => self.available() >= (warm + 1) * self.slots,
            Target::Ips { .. } | Target::Prefixes(_) => true,
        };
        let total = self.total();
        let available = self.available();
        let (target, size, free_prefixes) = (self.target, self.size(), self.free_prefixes());
        let can_go = |eni: &Eni| {
            let here = eni.entries * size;
            eni.assigned == 0
                && eni.made_at + ENI_AGE <= now
                && eni.cooling.iter().all(|until| *until <= now)
                && match target {
                    Target::Enis(_) => true,
                    Target::Ips { warm, minimum } => {
                        available.saturating_sub(here) >= warm && total.saturating_sub(here) >= minimum
                    }
                    Target::Prefixes(warm) => free_prefixes.saturating_sub(eni.entries) >= warm,
                }
        };
        let place = self.enis.iter().skip(1).position(can_go).map(|place| place + 1);
        match place.filter(|_| possible) {
            Some(place) => {
                self.enis.remove(place);
                true
            }
            None => false,
        }
    }

    /// A new ENI is there.
    pub fn adopt(&mut self, entries: u32, now: u64) {
        self.enis.push(Eni {
            entries,
            made_at: now,
            ..Eni::default()
        });
    }

    /// A pod gets an address, if there is one that does not rest.
    pub fn take(&mut self, now: u64) -> Option<usize> {
        let size = self.size();
        let place = self.enis.iter_mut().position(|eni| {
            eni.cooling.retain(|until| *until > now);
            u64::from(eni.entries * size) > u64::from(eni.assigned) + eni.cooling.len() as u64
        })?;
        self.enis.get_mut(place)?.assigned += 1;
        Some(place)
    }

    /// A pod gives its address back.
    pub fn give(&mut self, now: u64) {
        // Which ENI it was on is not kept: the last one with pods empties first, in upstream's favour.
        if let Some(eni) = self.enis.iter_mut().rfind(|eni| eni.assigned > 0) {
            eni.assigned -= 1;
            eni.cooling.push_back(now + COOLDOWN);
        }
    }
}
