//! What the pool knows only while the daemon runs: calls, commits and waiters in flight, and what others last said.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::adaptive::Churn;
use super::budget::Budget;
use super::cidr::Ipv4Cidr;
use super::cloud::{Amount, CloudFailure, ConnectionTracking, DescribeScope, Unit};
use super::drift::Drifts;
use super::effect::Reply;
use super::egress::EgressSlot;
use super::event::AddRequest;
use super::gathering::Gathering;
use super::ids::{
    CallId, CardIndex, ClientToken, CommitId, DeviceIndex, EniId, Mac, SandboxKey, SecurityGroupId, SubnetId,
    Tick, WaiterId,
};
use super::leaks::{LeakCall, Leaks};
use super::model::Eni;
use super::obstacle::{Obstacle, Pace, Topic, spread};
use super::plan::Report;
use super::quick::Calm;
use super::records::RecordKey;
use super::shortage::Shortage;
use super::six;
use super::subnets::SubnetView;
use super::witness::{Ec2Listing, Ec2Says, ImdsSnapshot, LinkFact, Unproven};

/// What a call in flight is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    Create(ClientToken),
    Attach(EniId),
    Termination(EniId),
    Assign {
        eni: EniId,
        amount: Amount,
    },
    Delete(EniId),
    Unassign {
        eni: EniId,
        cidrs: Vec<Ipv4Cidr>,
    },
    Detach(EniId),
    Describe(DescribeScope),
    Subnets,
    Groups {
        eni: EniId,
        groups: Vec<SecurityGroupId>,
    },
    Tags {
        eni: EniId,
        tags: BTreeMap<String, String>,
    },
    Limits,
    /// Looking for what others have left, and deleting it.
    Leak(LeakCall),
}

/// A call in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) purpose: Purpose,
    pub(super) since: Tick,
}

/// What has to be done with a reply that stood behind a commit that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Final {
    /// `Durable` for this allocation.
    Durable(SandboxKey),
    /// Any other.
    Told(Reply),
}

/// A commit in flight and what stands behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) keys: BTreeSet<RecordKey>,
    pub(super) calls: Vec<CallId>,
    pub(super) finals: Vec<(WaiterId, Final)>,
}

/// What EC2's Describe of attached ENIs last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ec2View {
    /// Nothing yet.
    Asking,
    /// It answered.
    Answered,
    /// It could not be reached or refused.
    Failed(CloudFailure),
}

/// What EC2 last said of an ENI that it keeps to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its description is one of ours, or of the Go daemon's.
    pub(super) made_by_us: bool,
    pub(super) groups: Vec<SecurityGroupId>,
    pub(super) tags: BTreeMap<String, String>,
}

/// What is asked, and what was done, about an ENI that is to be given back, or something on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Inquiry {
    /// Only a Describe with this or a greater number counts.
    pub(super) since: Option<CallId>,
    /// What was to go when the intent was recorded.
    pub(super) about: BTreeSet<Ipv4Cidr>,
    /// What EC2 said.
    pub(super) listing: Option<Ec2Listing>,
    /// When the call was sent; from then on only EC2 knows.
    pub(super) sent: Option<Tick>,
    /// EC2 has taken the order to detach it.
    pub(super) detached: bool,
    /// EC2 lists it as attached nowhere.
    pub(super) unattached: bool,
}

/// How far an ENI is beyond what is stored of it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts; configured and configuring may both hold during a repair"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EniProgress {
    /// Its link, table and rules stand.
    pub(super) configured: bool,
    /// They are being made.
    pub(super) configuring: bool,
    /// These are being published.
    pub(super) publishing: BTreeSet<Ipv4Addr>,
    /// An answer was lost: a Describe with this or a greater number tells.
    pub(super) doubt: Option<CallId>,
    /// Since when its link is awaited.
    pub(super) link_awaited: Option<Tick>,
    /// Its link did not come in time.
    pub(super) link_overdue: bool,
    /// Attaching failed this often in a row.
    pub(super) attach_failures: u32,
    /// Since when it has.
    pub(super) attach_failing: Option<Tick>,
    /// When EC2 said it is attached.
    pub(super) attached_at: Option<Tick>,
    /// It is to be discarded: only a Describe with this or a greater number says anything about that.
    pub(super) doomed: Option<CallId>,
    /// What EC2 said of it since it is to be discarded.
    pub(super) ec2: Ec2Says,
    /// A Delete has been sent, so that its absence means success.
    pub(super) delete_sent: bool,
    /// Since when EC2's Describe has not listed it.
    pub(super) unlisted_since: Option<Tick>,
    pub(super) seen: Option<Seen>,
    /// When it was attached, if that was since the start.
    pub(super) born: Option<Tick>,
    /// Whether EC2 says that it is one that may be detached.
    pub(super) can_go: bool,
    /// What is being done to give it back.
    pub(super) inquiry: Inquiry,
    /// What a witness said when it, or something on it, was last to be given back.
    pub(super) contradicted: Option<Unproven>,
    /// When it was known to be detached, by our own call.
    pub(super) detached_at: Option<Tick>,
}

impl Default for EniProgress {
    fn default() -> Self {
        Self {
            configured: false,
            configuring: false,
            publishing: BTreeSet::new(),
            doubt: None,
            link_awaited: None,
            link_overdue: false,
            attach_failures: 0,
            attach_failing: None,
            attached_at: None,
            doomed: None,
            ec2: Ec2Says::Unasked,
            delete_sent: false,
            unlisted_since: None,
            seen: None,
            born: None,
            can_go: false,
            inquiry: Inquiry::default(),
            contradicted: None,
            detached_at: None,
        }
    }
}

/// When each witness was last heard: EC2's list of what is attached, a sweep of IMDS, a reading of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) ec2: Option<Tick>,
    pub(super) imds: Option<Tick>,
    pub(super) kernel: Option<Tick>,
}

/// Everything that does not survive a restart, and need not.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) started: Tick,
    pub(super) next_call: CallId,
    /// The egress address that was given last.
    pub(super) last_egress: Option<EgressSlot>,
    pub(super) next_commit: CommitId,
    pub(super) tokens: u64,
    pub(super) dice: u64,
    pub(super) calls: BTreeMap<CallId, Ask>,
    pub(super) commits: BTreeMap<CommitId, Tail>,
    /// Addresses whose past is being written, and by which commit: nobody gets them until it is durable.
    pub(super) unwritten: BTreeMap<IpAddr, CommitId>,
    pub(super) waiters: BTreeMap<WaiterId, AddRequest>,
    pub(super) obstacles: BTreeMap<Topic, Obstacle>,
    /// How far the search for what others have left is.
    pub(super) leaks: Leaks,
    /// What may still be asked of EC2.
    pub(super) budget: Budget,
    pub(super) ec2: Ec2View,
    pub(super) describe: BTreeSet<DescribeScope>,
    /// When EC2 is asked for everything again; soon after a lost answer, of which a Describe may have shown only half.
    pub(super) next_look: Option<Tick>,
    pub(super) creations_in_doubt: BTreeMap<ClientToken, CallId>,
    pub(super) enis: BTreeMap<EniId, EniProgress>,
    /// When EC2 named an address or prefix, as long as its Describe may lag behind that.
    pub(super) fresh: BTreeMap<Ipv4Cidr, Tick>,
    /// Since when EC2's Describe has not listed an address or prefix.
    pub(super) unlisted: BTreeMap<Ipv4Cidr, Tick>,
    /// When EC2 took an address back, as long as its lists may lag behind that.
    pub(super) given_back: BTreeMap<Ipv4Addr, Tick>,
    /// Whether there was too much of anything by the last look.
    pub(super) is_surplus: bool,
    /// Since when there is something that could be given back.
    pub(super) surplus_since: Option<Tick>,
    /// When something was last begun to be given back.
    pub(super) last_shrink: Option<Tick>,
    /// What was short then.
    pub(super) short_at_shrink: u32,
    /// When the next is due.
    pub(super) shrink_due: Option<Tick>,
    pub(super) links: BTreeMap<Mac, LinkFact>,
    pub(super) pod_routes: BTreeMap<IpAddr, String>,
    /// Addresses nobody holds that a rule names without a route leading to them, by two readings of the kernel.
    pub(super) orphaned_rules: BTreeSet<IpAddr>,
    /// Released since the kernel was last asked: nobody gets these before it has shown no route for them.
    pub(super) unproven: BTreeSet<IpAddr>,
    /// The kernel is being read; the answer will speak for these.
    pub(super) kernel_read: Option<BTreeSet<IpAddr>>,
    /// Links that came or went since that reading was asked for.
    pub(super) link_news: BTreeSet<Mac>,
    pub(super) imds: Option<ImdsSnapshot>,
    pub(super) imds_pending: bool,
    /// Places EC2 said are taken, by whom is not known.
    pub(super) devices_taken: BTreeSet<(CardIndex, DeviceIndex)>,
    pub(super) subnets: SubnetView,
    /// The primary ENI's connection-tracking time-outs.
    pub(super) tracking: ConnectionTracking,
    /// The primary ENI's groups as IMDS last listed them.
    pub(super) imds_groups: Option<Vec<SecurityGroupId>>,
    /// Subnets that refused, and are being asked for less.
    pub(super) shortages: BTreeMap<(SubnetId, Unit), Shortage>,
    /// When each witness was last heard in full.
    pub(super) heard: Heard,
    /// Where they contradict each other.
    pub(super) drifts: Drifts,
    /// A verdict waits for the kernel's word.
    pub(super) kernel_wanted: bool,
    pub(super) store_trouble: Option<String>,
    pub(super) wake: Option<Tick>,
    pub(super) report: Report,
    /// How pods have come lately.
    pub(super) churn: Churn,
    /// Whether more pods are awaited before EC2 is asked.
    pub(super) gathering: Gathering,
    /// How far the node's /80 has been given out.
    pub(super) cursor: six::Cursor,
    /// What was last said of /80s.
    pub(super) words: six::Words,
    /// What the last settling found, as long as nothing else has happened.
    pub(super) calm: Option<Calm>,
}

impl Memory {
    pub(super) fn new(seed: u64, now: Tick) -> Self {
        Self {
            started: now,
            next_call: CallId(1),
            last_egress: None,
            next_commit: CommitId(1),
            tokens: 0,
            dice: seed,
            calls: BTreeMap::new(),
            commits: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            waiters: BTreeMap::new(),
            obstacles: BTreeMap::new(),
            leaks: Leaks::default(),
            budget: Budget::default(),
            ec2: Ec2View::Asking,
            describe: BTreeSet::new(),
            next_look: None,
            creations_in_doubt: BTreeMap::new(),
            enis: BTreeMap::new(),
            fresh: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            given_back: BTreeMap::new(),
            is_surplus: false,
            surplus_since: None,
            last_shrink: None,
            short_at_shrink: 0,
            shrink_due: None,
            links: BTreeMap::new(),
            pod_routes: BTreeMap::new(),
            orphaned_rules: BTreeSet::new(),
            unproven: BTreeSet::new(),
            kernel_read: None,
            link_news: BTreeSet::new(),
            imds: None,
            imds_pending: false,
            devices_taken: BTreeSet::new(),
            subnets: SubnetView::default(),
            tracking: ConnectionTracking::default(),
            imds_groups: None,
            shortages: BTreeMap::new(),
            heard: Heard::default(),
            drifts: Drifts::default(),
            kernel_wanted: false,
            store_trouble: None,
            wake: None,
            report: Report::default(),
            churn: Churn::new(now),
            gathering: Gathering::default(),
            cursor: six::Cursor::default(),
            words: six::Words::default(),
            calm: None,
        }
    }

    /// EC2 is asked for everything again by this time.
    pub(super) fn look_by(&mut self, due: Tick) {
        self.next_look = Some(self.next_look.map_or(due, |next| next.min(due)));
    }

    /// What is known of an ENI beyond the store.
    pub(super) fn progress(&mut self, id: &EniId) -> &mut EniProgress {
        self.enis.entry(id.clone()).or_default()
    }

    pub(super) fn is_configured(&self, id: &EniId) -> bool {
        self.enis.get(id).is_some_and(|progress| progress.configured)
    }

    pub(super) fn is_asking(&self, purpose: &Purpose) -> bool {
        self.calls.values().any(|ask| ask.purpose == *purpose)
    }

    pub(super) fn is_assigning(&self, id: &EniId) -> bool {
        self.calls
            .values()
            .any(|ask| matches!(&ask.purpose, Purpose::Assign { eni, .. } if eni == id))
    }

    /// The next throw of the dice.
    pub(super) fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(1);
        spread(self.dice)
    }

    /// Whether a call to give it, or something on it, back is under way.
    pub(super) fn is_releasing(&self, id: &EniId) -> bool {
        self.calls.values().any(|ask| match &ask.purpose {
            Purpose::Unassign { eni, .. } | Purpose::Detach(eni) => eni == id,
            _ => false,
        })
    }

    /// The obstacle in the way now, if any.
    pub(super) fn obstacle(&self, topic: &Topic, now: Tick) -> Option<&Obstacle> {
        self.obstacles.get(topic).filter(|obstacle| obstacle.until > now)
    }

    pub(super) fn is_clear(&self, topic: &Topic, now: Tick) -> bool {
        self.obstacle(topic, now).is_none()
    }

    /// Something failed (again): not before its pace allows.
    pub(super) fn obstruct(&mut self, topic: Topic, pace: Pace, failure: Option<CloudFailure>, now: Tick) {
        let dice = self.roll();
        // Calls that were under way together and fail together are one attempt.
        let attempt = self.obstacles.get(&topic).map_or(1, |obstacle| {
            obstacle.attempt.saturating_add(u32::from(obstacle.until <= now))
        });
        let asked = failure.as_ref().and_then(|failure| failure.retry_after);
        let wait = pace.wait(attempt, dice).max(asked.unwrap_or_default());
        let until = now.after(wait.max(std::time::Duration::from_millis(1)));
        self.obstacles.insert(
            topic,
            Obstacle {
                attempt,
                until,
                failure,
            },
        );
    }

    /// It worked: the next failure is a first one again.
    pub(super) fn clear(&mut self, topic: &Topic) {
        self.obstacles.remove(topic);
    }

    /// Whether the kernel has still to be asked about a released address.
    pub(super) fn is_unproven(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        let read = self.kernel_read.as_ref();
        self.unproven.contains(&address) || read.is_some_and(|of| of.contains(&address))
    }

    /// IPv4 addresses that the kernel routes to a pod.
    pub(super) fn ipv4_routes(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.pod_routes.keys().filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    /// How many pods the kernel routes addresses of an ENI to, of either family.
    pub(super) fn routes_to(&self, eni: &Eni) -> usize {
        let of = |address: &&IpAddr| eni.places(**address).is_some();
        self.pod_routes.keys().filter(of).count()
    }

    /// Whether the kernel routes an address to a pod, or a rule for pods names it.
    pub(super) fn is_routed(&self, address: impl Into<IpAddr>) -> bool {
        self.pod_routes.contains_key(&address.into())
    }

    /// Forgets everything about an ENI.
    pub(super) fn forget_eni(&mut self, id: &EniId) {
        self.words.forget_eni(id);
        self.enis.remove(id);
        self.obstacles.retain(|topic, _| !topic.concerns(id));
    }
}
