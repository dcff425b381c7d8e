//! Makes the things in a script happen.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::cidr6::Ipv6Cidr;
use aws_cni_ipam::event::Event;
use aws_cni_ipam::ids::EniId;
use aws_cni_ipam::policy::{EniConfigChoice, Policy};
use aws_cni_ipam::tags;

use crate::node::Happening;
use crate::script::{Action, Asking, Hand, Left, Lie, Networking, Role, Span, Warm};
use crate::world::{Next, World, instance};

/// The name of the node's cluster.
pub(crate) const CLUSTER: &str = "sim";

const MINUTE: u64 = 60_000;
/// By then a look for drift has shown what others have done.
const DRIFT: u64 = 75 * MINUTE;

/// What a role is written as.
pub(crate) fn role_tags(role: Role) -> BTreeMap<String, String> {
    let tag = |value: &str| (tags::SUBNET_ROLE.to_owned(), value.to_owned());
    let elsewhere = || (format!("{}elsewhere", tags::SUBNET_CLUSTER), "shared".to_owned());
    match role {
        Role::None => BTreeMap::new(),
        Role::Pods => BTreeMap::from([tag("1")]),
        Role::NotPods => BTreeMap::from([tag("0")]),
        Role::Other => BTreeMap::from([tag("1"), elsewhere()]),
    }
}

/// Writes into a policy where new ENIs go.
pub(crate) fn set_networking(policy: &mut Policy, to: Networking, group: u32, subnets: usize) {
    let wanted = match to {
        Networking::Own | Networking::Missing => 0..0,
        Networking::Second => 2..3,
        Networking::Others => 2..subnets.max(2) + 1,
    };
    let names: Vec<_> = wanted.map(|n| format!("subnet-{n}").as_str().into()).collect();
    policy.custom_networking = to != Networking::Own;
    policy.eni_config_missing =
        (to == Networking::Missing).then(|| "there is no ENIConfig default".to_owned());
    policy.eni_config = (!names.is_empty()).then(|| EniConfigChoice {
        name: to.to_string(),
        subnets: names,
        groups: (group > 0)
            .then(|| format!("sg-config-{group}").as_str().into())
            .into_iter()
            .collect(),
    });
}

impl World {
    pub(crate) fn act(&mut self, action: &Action) {
        let now = self.queue.now;
        if !matches!(action, Action::Pod { .. } | Action::Gc {}) {
            *self
                .node
                .counts
                .faults
                .entry(action.word().to_owned())
                .or_default() += 1;
        }
        if self.node.trace.is_some() {
            self.node.tell(|| format!("== {action}"));
        }
        match *action {
            Action::Pod {
                n,
                life,
                patience,
                quirk,
            } => self.node.pod(n, life, patience, quirk),
            Action::Del { n } => self.node.end(n),
            Action::Gc {} => self.node.gc(),
            Action::Call { which, how, times } => self.node.weather.next_calls(which, how, times, now),
            Action::Outage { which, how, span } => self.node.weather.outage(which, how, now + span.0),
            Action::Lag { by, span } => self.node.weather.late(by.0, now + span.0),
            Action::Describe { lie, span } => self.lie(lie, span),
            Action::Imds { lie, span } => self.node.weather.imds(lie, now + span.0),
            Action::Taken { subnet, left, span } => {
                let dice = &mut self.dice;
                if let Some(place) = self.account.subnets.get_mut(subnet) {
                    place.crowd(left, dice);
                }
                self.give_back(subnet, span);
            }
            Action::Fragmented { subnet, span } => {
                if let Some(place) = self.account.subnets.get_mut(subnet) {
                    place.fragment();
                }
                self.give_back(subnet, span);
            }
            Action::Plain { subnet, span } => {
                if let Some(place) = self.account.subnets.get_mut(subnet) {
                    place.six.is_associated = false;
                }
                self.give_back(subnet, span);
            }
            Action::Kernel { trouble, span } => self.node.weather.kernel(trouble, now + span.0),
            Action::Rename { nth } => {
                if let Some(link) = self.node.kernel.rename(nth) {
                    self.node.step(Event::LinkSeen(link));
                }
            }
            Action::Stray { nth } => self.stray(nth),
            Action::Disk { trouble, span } => self.node.weather.disk(trouble, now + span.0),
            Action::Kill { effect, down } => self.node.kill_before(effect, down),
            Action::Power { down } => self.power(down),
            Action::Damage { nth, lost } => self.damage(nth, lost),
            Action::Restore { age } => self.restore(age),
            Action::Outside { hand, nth } => self.outside(hand, nth),
            Action::Config { warm, max_enis } => self.config(warm, max_enis),
            Action::Crashes { times, life } => {
                self.node
                    .weather
                    .trouble_until(now + u64::from(times) * (life.0 + 100));
                for nth in 0..u64::from(times) {
                    self.queue.after(
                        1 + nth * (life.0 + 100),
                        Next::Script(Action::Kill {
                            effect: 0,
                            down: Span(100),
                        }),
                    );
                }
            }
            Action::Left { what, age } => self.left(what, age),
            Action::Retag { subnet, role } => {
                if let Some(subnet) = self.account.subnets.get_mut(subnet) {
                    subnet.tags = role_tags(role);
                }
                self.doubt_blocks(now + DRIFT);
                self.node.weather.trouble_until(now);
            }
            Action::Networking { to, group } => {
                let mut policy = self.node.policy.clone();
                set_networking(&mut policy, to, group, self.account.subnets.len());
                self.node.policy = policy.clone();
                self.node.weather.trouble_until(now);
                self.node.step(Event::Reconfigured(Box::new(policy)));
            }
            Action::Asking { to } => self.asking(to),
            Action::Cidr {} => {
                let more = Ipv4Cidr::new(Ipv4Addr::new(100, 64, 0, 0), 16);
                self.node.facts.vpc_cidrs.extend(more);
                let cidrs = self.node.facts.vpc_cidrs.clone();
                self.node.step(Event::VpcCidrs(cidrs));
            }
        }
    }

    fn config(&mut self, warm: Warm, max_enis: u32) {
        let now = self.queue.now;
        let mut policy = self.node.policy.clone();
        let had_prefixes = policy.prefixes.is_some();
        warm.set(&mut policy);
        if had_prefixes != warm.has_prefixes() && self.node.truth.count() > 0 {
            self.node.counts.met("mode changes with pods running");
        }
        policy.max_enis = (max_enis > 0).then_some(max_enis);
        self.node.policy = policy.clone();
        self.node.weather.trouble_until(now);
        self.node.step(Event::Reconfigured(Box::new(policy)));
    }

    fn asking(&mut self, to: Asking) {
        let now = self.queue.now;
        let mut policy = self.node.policy.clone();
        to.set(&mut policy);
        self.node.policy = policy.clone();
        self.asking_since = Some(now);
        self.node.weather.trouble_until(now);
        self.node.step(Event::Reconfigured(Box::new(policy)));
    }

    fn left(&mut self, what: Left, age: Span) {
        let now = self.queue.now;
        let unix = self.node.unix();
        self.account
            .leave_of_another(what, unix.saturating_sub(age.0 / 1000), unix, now);
        self.node.weather.trouble_until(now);
    }

    fn give_back(&mut self, subnet: usize, span: Span) {
        let until = self.queue.now + span.0;
        self.node.weather.trouble_until(until);
        self.queue.at(until, Next::Emptied(subnet));
    }

    fn stray(&mut self, nth: u32) {
        let Some(pool) = &self.node.pool else { return };
        let routes = &self.node.kernel.routes;
        let idle: Vec<Ipv4Addr> = pool
            .addresses()
            .iter()
            .filter(|(_, known)| known.holder.is_none())
            .filter(|(address, _)| !routes.contains_key(address))
            .filter_map(|(address, _)| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            })
            .collect();
        let index = usize::try_from(nth).unwrap_or(0).checked_rem(idle.len());
        if let Some(address) = index.and_then(|index| idle.get(index)) {
            self.node.kernel.bare_rules.insert(*address);
        }
    }

    fn power(&mut self, down: Span) {
        let now = self.queue.now;
        self.node.power_cut(down);
        self.node.weather.trouble_until(now + down.0);
        let macs: Vec<_> = self
            .account
            .attached(&instance())
            .filter(|eni| eni.id != self.node.facts.primary_eni)
            .map(|eni| eni.mac)
            .collect();
        for mac in macs {
            let at = now + down.0 + self.dice.below(12_000);
            self.queue.at(at, Next::Node(Happening::LinkComes(mac)));
        }
    }

    fn damage(&mut self, nth: u32, lost: bool) {
        let now = self.queue.now;
        if self.node.pool.is_some() {
            self.node.die();
        }
        let damaged = self.node.disk.damage(nth, lost);
        self.node.truth.forget_rests();
        self.node.note_lost_records();
        self.doubt_blocks(now + DRIFT);
        if damaged
            .as_ref()
            .is_some_and(|key| !key.starts_with("address/") && !key.starts_with("allocation/"))
        {
            self.node.truth.count_anew(now);
        }
        self.node.weather.trouble_until(now);
        self.node.tell(|| format!("{damaged:?} is damaged"));
        self.queue.after(500, Next::Node(Happening::Start));
    }

    fn restore(&mut self, age: Span) {
        let now = self.queue.now;
        self.node.restore(now.saturating_sub(age.0));
        self.doubt_blocks(now + DRIFT);
        self.node.weather.trouble_until(now);
        self.queue.after(500, Next::Node(Happening::Start));
    }

    /// Two lies of EC2 in a row are one that is longer than the core withstands.
    fn lie(&mut self, lie: Lie, span: Span) {
        let now = self.queue.now;
        if self.node.weather.describe_lied_at + MINUTE > now {
            self.doubt_blocks(now + span.0 + DRIFT);
            self.node.truth.count_anew(now + span.0 + DRIFT);
        }
        self.node.weather.describe(lie, now + span.0);
    }

    fn outside(&mut self, hand: Hand, nth: u32) {
        let now = self.queue.now;
        let before = self.on_enis();
        let truth = &self.node.truth;
        let routes = &self.node.kernel.routes;
        let is_used = |address: Ipv4Addr| {
            let address = IpAddr::V4(address);
            truth.holder(address).is_some() || routes.contains_key(&address)
        };
        self.account.outside(&instance(), hand, nth, now, &is_used);
        let after = self.on_enis();
        for (eni, there) in &before {
            if after.get(eni) != Some(there) {
                self.meddled_enis.insert(eni.clone(), now);
                self.doubt_blocks(now + DRIFT);
                self.node.truth.count_anew(now + DRIFT);
                self.meddled
                    .extend(there.0.iter().map(|address| (IpAddr::V4(*address), now)));
            }
        }
        self.node.weather.trouble_until(now);
        if hand == Hand::Groups {
            self.queue.after(20_000, Next::GroupsSeen);
        }
    }

    fn on_enis(&self) -> BTreeMap<EniId, (Vec<Ipv4Addr>, Vec<Ipv6Cidr>)> {
        let of = |eni: &aws_cni_ipam::cloud::CloudEni| {
            let addresses = eni.cidrs().flat_map(Ipv4Cidr::addresses).collect();
            (eni.id.clone(), (addresses, eni.prefixes6.clone()))
        };
        self.account.attached(&instance()).map(of).collect()
    }
}
