//! Chooses what to ask EC2 for: first the free places of the ENIs there are, then more ENIs.

use super::budget::{Kind, Priority};
use super::census::{count, is_underway};
use super::cloud::{Amount, FailureClass, Unit};
use super::ids::{CardIndex, EniId, SubnetId, Tick};
use super::model::{Creation, Eni, EniRole, EniState};
use super::obstacle::Topic;
use super::places;
use super::plan::{Act, Hindrance, Need, Plan, eni_limit, places_taken};
use super::pool::Pool;
use super::shortage::{self, Take};
use super::six;
use super::subnets::{self, Candidate};
use super::targets::Goal;

/// A plan in the making.
pub(super) struct Growing<'a> {
    pub(super) pool: &'a Pool,
    /// The network card that is to grow.
    pub(super) card: CardIndex,
    pub(super) goal: Goal,
    /// Places for pods an ENI has.
    pub(super) slots: u32,
    pub(super) need: &'a mut Need,
    pub(super) plan: &'a mut Plan,
    pub(super) now: Tick,
}

impl Growing<'_> {
    /// Where a subnet has no block of 16, single addresses stand in: first for the pods that wait, since an ENI elsewhere
    /// takes seconds, and at last for everything that nothing else could give.
    pub(super) fn grow(mut self, enis_by_type: u32) {
        let unit = self.goal.unit;
        if subnets::is_needed_first(self.pool) && !self.knows_subnets() {
            return;
        }
        self.fill(unit);
        if unit == Unit::Prefix {
            let warm = self.plan.report.warm.min(self.need.addresses);
            self.need.addresses = self.need.addresses.saturating_sub(warm);
            self.fill(Unit::Address);
            self.need.addresses = self.need.addresses.saturating_add(warm);
        }
        if unit == Unit::Block && !six::is_wanted(self.pool) {
            return;
        }
        let later = self.leave_to_busy_enis();
        self.widen(enis_by_type, unit);
        if unit == Unit::Prefix {
            self.fill(Unit::Address);
            self.widen(enis_by_type, Unit::Address);
        }
        self.need.addresses = self.need.addresses.saturating_add(later);
    }

    /// Takes off the need what finds room on ENIs that are being created, attached or asked for addresses: they are asked
    /// for the rest when that has ended, sooner than another ENI could be there. So it is with one whose call EC2 throttled,
    /// as long as no pod waits: an ENI in its stead would take three calls of the same account. Who waits is served by
    /// whatever EC2 has tokens for: of 1,000 nodes that start at once, pods of the last run in half the time so.
    fn leave_to_busy_enis(&mut self) -> u32 {
        let room = self.room_on_busy_enis(|subnet| self.gives(subnet));
        let later = self.rest_follows(room);
        self.need.addresses = self.need.addresses.saturating_sub(later);
        later
    }

    /// Notes what of the need so many places will take later.
    fn rest_follows(&mut self, room: u32) -> u32 {
        let places = room.saturating_mul(self.goal.unit.size());
        let later = self.need.addresses.min(places);
        if later > 0 {
            self.hinder(Hindrance::RestFollows { addresses: later });
        }
        later
    }

    /// Places on ENIs that cannot be asked for addresses at this moment, in subnets that may give some.
    fn room_on_busy_enis(&self, gives: impl Fn(&SubnetId) -> bool) -> u32 {
        let asked = |eni: &Eni| self.plan.acts.iter().any(|act| act.asks(&eni.id));
        let places = |eni: &Eni| {
            let taken = eni
                .slots_taken()
                .saturating_add(eni.assigning.map_or(0, Amount::places));
            self.slots.saturating_sub(taken)
        };
        let is_new = |eni: &Eni| matches!(eni.state, EniState::Created | EniState::Attaching);
        let report = &self.plan.report;
        let is_urgent = report.waiting > report.free.saturating_add(report.coming);
        let is_going_on = |eni: &Eni| {
            (is_new(eni) || eni.assigning.is_some())
                && self.is_clear(&Topic::Assign(eni.id.clone()))
                && self.is_clear(&Topic::Attach(eni.id.clone()))
        };
        let is_busy = |eni: &&Eni| {
            eni.role != EniRole::Unmanaged
                && eni.card == self.card
                && !eni.excluded
                && is_underway(self.pool, eni)
                && gives(&eni.subnet)
                && !asked(eni)
                && (is_going_on(eni) || (!is_urgent && self.is_throttled(&eni.id)))
        };
        let enis = self.pool.enis().values().filter(is_busy).map(places);
        let is_going_on = |creation: &&Creation| {
            let topic = Topic::Creation(creation.token.clone());
            creation.card == self.card && self.is_clear(&topic) && gives(&creation.subnet)
        };
        let creations = self.pool.creations().values().filter(is_going_on);
        let creations = creations.map(|creation| self.slots.saturating_sub(creation.amount.places()));
        enis.chain(creations).sum()
    }

    /// Whether a subnet is not known to be at its end.
    fn gives(&self, subnet: &SubnetId) -> bool {
        let is_short = shortage::is_short(self.pool, subnet, self.goal.unit, self.now);
        !is_short && self.is_clear(&Topic::Subnet(subnet.clone()))
    }

    /// Whether a subnet is asked for this unit at all now: single addresses in place of prefixes only where it has no
    /// blocks.
    fn is_asked_for(&mut self, subnet: &SubnetId, unit: Unit) -> bool {
        let blocks = Topic::Blocks(subnet.clone());
        match (self.goal.unit, unit) {
            (Unit::Prefix, Unit::Address) => !self.pool.memory.is_clear(&blocks, self.now),
            (_, Unit::Prefix) => !self.is_hindered(&blocks),
            (Unit::Address, Unit::Address) | (_, Unit::Block) | (Unit::Block, _) => true,
        }
    }

    fn is_clear(&self, topic: &Topic) -> bool {
        self.pool.memory.is_clear(topic, self.now)
    }

    /// Whether EC2 has put off a call for addresses on an ENI, which is repeated soon.
    fn is_throttled(&self, id: &EniId) -> bool {
        let obstacle = self.pool.memory.obstacle(&Topic::Assign(id.clone()), self.now);
        let failure = obstacle.and_then(|obstacle| obstacle.failure.as_ref());
        failure.is_some_and(|failure| failure.class == FailureClass::Throttled)
    }

    fn is_hindered(&mut self, topic: &Topic) -> bool {
        let Some(obstacle) = self.pool.memory.obstacle(topic, self.now) else {
            return false;
        };
        if let Some(failure) = &obstacle.failure {
            self.hinder(Hindrance::Failed {
                failure: failure.clone(),
                until: obstacle.until,
            });
        }
        true
    }

    fn hinder(&mut self, hindrance: Hindrance) {
        if !self.plan.report.hindrances.contains(&hindrance) {
            self.plan.report.hindrances.push(hindrance);
        }
    }

    /// Whether a subnet that refused is being asked for less, and has to answer first.
    fn is_short(&mut self, subnet: &SubnetId, unit: Unit) -> bool {
        let Some(failure) = shortage::waits(self.pool, &self.plan.acts, subnet, unit, self.now) else {
            return false;
        };
        let failure = failure.clone();
        self.hinder(Hindrance::AskingForLess { failure });
        true
    }

    fn is_here(&self, act: &Act) -> bool {
        match act {
            Act::Assign { eni, .. } => self.pool.enis().get(eni).is_some_and(|eni| eni.card == self.card),
            Act::Create { card, .. } => *card == self.card,
            Act::DescribeSubnets => true,
        }
    }

    /// Whether one more call has to wait for its budget. Pods that wait come first, and may have all of it.
    fn is_braked(&mut self) -> bool {
        let report = &self.plan.report;
        let here = self.plan.acts.iter().filter(|act| self.is_here(act));
        let planned = here.map(|act| match act {
            Act::Assign { amount, .. } | Act::Create { amount, .. } => amount.addresses(),
            Act::DescribeSubnets => 0,
        });
        let there = report.free.saturating_add(report.coming);
        let priority = if report.waiting > planned.fold(there, u32::saturating_add) {
            Priority::Blocked
        } else {
            Priority::Warm
        };
        let changes = |act: &&Act| !matches!(act, Act::DescribeSubnets);
        let calls = count(self.plan.acts.iter().filter(changes).count());
        let budget = &self.pool.memory.budget;
        let Err(brake) = budget.check(Kind::Changing, priority, calls, self.now) else {
            return false;
        };
        self.hinder(Hindrance::Braked(brake));
        true
    }

    /// What to ask for with `places` free on an ENI: all of it where whole ENIs are wanted, else what is missing.
    fn wish(&self, unit: Unit, places: u32) -> Amount {
        if self.goal.takes_whole_enis() && unit == self.goal.unit {
            unit.amount(places)
        } else {
            self.need.of(unit, places, self.goal.slack(self.pool))
        }
    }

    /// The free places of the ENIs there are: one call each, for all that is wanted there.
    fn fill(&mut self, unit: Unit) {
        let pool = self.pool;
        let mut enis: Vec<&Eni> = pool
            .enis()
            .values()
            .filter(|eni| eni.role != EniRole::Unmanaged && !eni.excluded && is_underway(pool, eni))
            .filter(|eni| eni.card == self.card)
            .filter(|eni| !matches!(eni.state, EniState::Created | EniState::Attaching))
            .collect();
        enis.sort_by_key(|eni| eni.device);
        for eni in enis {
            self.fill_eni(eni, unit);
        }
    }

    fn fill_eni(&mut self, eni: &Eni, unit: Unit) {
        let free = match unit {
            Unit::Block => u32::from(eni.block.is_none()),
            Unit::Address | Unit::Prefix => self.slots.saturating_sub(eni.slots_taken()),
        };
        let is_busy = eni.assigning.is_some()
            || self.pool.memory.is_assigning(&eni.id)
            || self.plan.acts.iter().any(|act| act.asks(&eni.id));
        if self.need.is_met() || free == 0 || is_busy || !self.is_asked_for(&eni.subnet, unit) {
            return;
        }
        if self.is_hindered(&Topic::Assign(eni.id.clone()))
            || self.is_hindered(&Topic::Subnet(eni.subnet.clone()))
            || self.is_short(&eni.subnet, unit)
            || self.is_braked()
        {
            return;
        }
        let wish = Take::assign(self.wish(unit, free));
        let amount = shortage::modest(self.pool, &eni.subnet, wish, self.now);
        self.need.take(amount);
        let eni = eni.id.clone();
        self.plan.acts.push(Act::Assign { eni, amount });
    }

    /// As many more ENIs as are needed, side by side, each created with what it is to carry.
    fn widen(&mut self, by_type: u32, unit: Unit) {
        if self.need.is_met() || self.slots == 0 {
            return;
        }
        let (limit, by_setting) = eni_limit(self.pool, by_type);
        let taken = places_taken(self.pool, self.card);
        let is_creation = |act: &&Act| matches!(act, Act::Create { card, .. } if *card == self.card);
        let planned = count(self.plan.acts.iter().filter(is_creation).count());
        let devices = count(self.pool.room_for_devices(self.card));
        let mut room = limit.saturating_sub(taken).min(devices).saturating_sub(planned);
        if room == 0 {
            return self.end_at_limit(limit, by_setting);
        }
        if self.is_hindered(&Topic::Create) {
            return;
        }
        let candidates = match subnets::candidates(self.pool) {
            Ok(candidates) => candidates,
            Err(hindrance) => return self.hinder(*hindrance),
        };
        if !self.knows_subnets() || self.waits_for_blocks(&candidates, unit) {
            return;
        }
        while !self.need.is_met() && room > 0 {
            if self.is_braked() {
                return;
            }
            let Some(subnet) = self.choose(&candidates, unit) else {
                return;
            };
            let wish = Take::create(self.wish(unit, self.slots));
            let amount = shortage::modest(self.pool, &subnet, wish, self.now);
            self.need.take(amount);
            room = room.saturating_sub(1);
            let card = self.card;
            self.plan.acts.push(Act::Create { subnet, card, amount });
        }
        if !self.need.is_met() {
            self.end_at_limit(limit, by_setting);
        }
    }

    /// No more ENIs. But where a subnet is asked for less than it refused, those that are on their way, and those asked for
    /// just now, have places left for what it may still have.
    fn end_at_limit(&mut self, limit: u32, by_setting: bool) {
        let taken = places_taken(self.pool, self.card);
        self.hinder(Hindrance::EniLimit {
            enis: limit,
            slots: self.slots,
            by_setting,
            taken,
            closed: places::closed(self.pool, self.card, self.now),
        });
        let planned = self.plan.acts.iter().map(|act| match act {
            Act::Create { card, amount, .. } if *card == self.card => {
                self.slots.saturating_sub(amount.places())
            }
            _ => 0,
        });
        let planned: u32 = planned.sum();
        // Those in subnets that give what is asked for have been counted on before.
        let may_give =
            |subnet: &SubnetId| !self.gives(subnet) && self.is_clear(&Topic::Subnet(subnet.clone()));
        let room = self.room_on_busy_enis(may_give).saturating_add(planned);
        self.rest_follows(room.saturating_add(self.room_of_leaving_enis(limit, taken)));
    }

    /// Places on the ENIs that may come in the place of those on their way back to EC2, within seconds.
    fn room_of_leaving_enis(&self, limit: u32, taken: u32) -> u32 {
        let leaves = |eni: &&Eni| {
            eni.card == self.card && matches!(eni.state, EniState::Draining | EniState::Detaching)
        };
        let leaving = count(self.pool.enis().values().filter(leaves).count());
        let then_free = limit.saturating_sub(taken.saturating_sub(leaving));
        then_free.min(leaving).saturating_mul(self.slots)
    }

    /// Asks for the subnets where what is known of them is old. A pod does not wait for the answer as long as there is
    /// any; what is only held ready does.
    fn knows_subnets(&mut self) -> bool {
        if subnets::is_due(self.pool, self.now) {
            self.look_at_subnets();
        }
        let is_asking = self.plan.acts.contains(&Act::DescribeSubnets);
        let report = &self.plan.report;
        let is_urgent = report.waiting > report.free.saturating_add(report.coming);
        let is_awaited = is_asking || subnets::is_awaited(self.pool, self.now);
        if is_awaited && !(is_urgent && subnets::is_known(self.pool)) {
            self.hinder(Hindrance::SubnetsUnknown);
            return false;
        }
        true
    }

    fn look_at_subnets(&mut self) {
        if !self.plan.acts.contains(&Act::DescribeSubnets) {
            self.plan.acts.push(Act::DescribeSubnets);
        }
    }

    /// Single addresses stand in for prefixes only when no subnet has a block: one that is being asked may have.
    fn waits_for_blocks(&self, candidates: &[Candidate], unit: Unit) -> bool {
        let is_clear = |topic: Topic| self.is_clear(&topic);
        let is_open = |subnet: &SubnetId| {
            is_clear(Topic::CreateIn(subnet.clone())) && is_clear(Topic::Subnet(subnet.clone()))
        };
        let may_have =
            |candidate: &Candidate| is_open(&candidate.id) && is_clear(Topic::Blocks(candidate.id.clone()));
        (self.goal.unit, unit) == (Unit::Prefix, Unit::Address) && candidates.iter().any(may_have)
    }

    /// The subnet with most left that nothing is known against. Why none will do is told only if none will.
    fn choose(&mut self, candidates: &[Candidate], unit: Unit) -> Option<SubnetId> {
        let mut told = std::mem::take(&mut self.plan.report.hindrances);
        let open: Vec<&Candidate> = candidates
            .iter()
            .filter(|candidate| self.is_open(&candidate.id, unit))
            .collect();
        let best = open.into_iter().min_by_key(|candidate| {
            let left = subnets::left(self.pool, &self.plan.acts, candidate);
            let is_short = shortage::is_short(self.pool, &candidate.id, unit, self.now);
            (is_short, std::cmp::Reverse(left))
        });
        std::mem::swap(&mut told, &mut self.plan.report.hindrances);
        if best.is_none() {
            for hindrance in told {
                self.hinder(hindrance);
            }
        }
        best.map(|candidate| candidate.id.clone())
    }

    fn is_open(&mut self, subnet: &SubnetId, unit: Unit) -> bool {
        self.is_asked_for(subnet, unit)
            && !self.is_hindered(&Topic::CreateIn(subnet.clone()))
            && !self.is_hindered(&Topic::Subnet(subnet.clone()))
            && !self.is_short(subnet, unit)
    }
}
