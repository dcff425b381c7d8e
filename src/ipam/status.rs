//! What the pool says of itself.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::cloud::FailureClass;
use super::explain::explain;
use super::ids::{CardIndex, Tick};
use super::model::AddressState;
use super::obstacle::Topic;
use super::places;
use super::plan::{Hindrance, Plan, Report, plan};
use super::pool::Pool;
use super::six;

/// The short form, for STATUS and probes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether an ADD would get an address now or when growth under way is done.
    pub serving: bool,
    /// Why not, or what stands in the way of more.
    pub reasons: Vec<String>,
    /// Addresses a sandbox could have now.
    pub free: u64,
    /// Addresses sandboxes have.
    pub assigned: u32,
    /// Addresses at rest.
    pub cooling: u32,
    /// Addresses in doubt.
    pub quarantined: u32,
    /// Addresses on their way.
    pub coming: u32,
    /// Sandboxes waiting.
    pub waiting: u32,
    /// ENIs that take or will take a place.
    pub enis: u32,
    /// Somebody has said that the node takes no new pods.
    pub cordoned: bool,
    /// Contradictions between witnesses, by kind, counted since the start.
    pub drift: BTreeMap<&'static str, u64>,
    /// The same numbers of each network card, where more than one is managed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cards: BTreeMap<CardIndex, CardStatus>,
}

/// What a network card has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CardStatus {
    /// ENIs that take or will take a place.
    pub enis: u32,
    /// Addresses a sandbox could have now.
    pub free: u32,
    /// Addresses sandboxes have.
    pub assigned: u32,
    /// Addresses at rest.
    pub cooling: u32,
    /// Addresses in doubt.
    pub quarantined: u32,
    /// Addresses on their way.
    pub coming: u32,
}

impl From<&Report> for CardStatus {
    fn from(report: &Report) -> Self {
        Self {
            enis: report.enis,
            free: report.free,
            assigned: report.assigned,
            cooling: report.cooling,
            quarantined: report.quarantined,
            coming: report.coming,
        }
    }
}

impl std::fmt::Display for Hindrance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Starting => f.write_str("EC2 has not yet said what is attached"),
            Self::LimitsUnknown => f.write_str("the instance type's limits are not known yet"),
            Self::Cordoned => f.write_str(
                "the node is cordoned: nothing is held ready beyond what is there, and nothing is given back",
            ),
            Self::ProvisioningOff => f.write_str("provisioning is switched off"),
            Self::NotDelegated => {
                f.write_str("no ENI for pods has a /80 IPv6 prefix, and provisioning is switched off")
            }
            Self::NoPrefixes { instance_type } => write!(
                f,
                "ENIs of {instance_type} carry no prefixes, and IPv6 addresses for pods come in a /80 only"
            ),
            Self::SubnetsUnknown => f.write_str("EC2 has not yet said where new ENIs may go"),
            Self::NoSubnet { zone } => write!(
                f,
                "no subnet in {zone} is for this node's ENIs: the tag kubernetes.io/role/cni is 0 or missing, or names \
                 other clusters, on each"
            ),
            Self::NoEniConfig { why: Some(why) } => write!(f, "no ENI can be made: {why}"),
            Self::NoEniConfig { why: None } => {
                f.write_str("no ENI can be made: no ENIConfig holds for this node")
            }
            Self::EniLimit {
                enis,
                slots,
                by_setting,
                taken,
                closed,
            } => {
                let by = if *by_setting {
                    "MAX_ENI"
                } else {
                    "the instance type"
                };
                write!(f, "{by} allows {enis} ENIs with {slots} addresses for pods each")?;
                f.write_str(&places::told(closed, *taken))
            }
            Self::MaxPods { max_pods } => write!(f, "max-pods allows {max_pods} addresses"),
            Self::NoLink { eni, seconds } => write!(
                f,
                "{eni} is attached, but the kernel has shown no link with its hardware address for {seconds} s"
            ),
            Self::RestFollows { addresses } => {
                write!(
                    f,
                    "{addresses} addresses are asked for when the calls under way have ended, or may be repeated"
                )
            }
            Self::AskingForLess { failure } => write!(f, "{failure}; it is asked for less"),
            Self::Braked(brake) => write!(f, "{brake}"),
            Self::Failed { failure, .. } => write!(f, "{failure}"),
        }
    }
}

/// A reason, and when what failed is tried again.
pub(super) fn told(obstacle: &Hindrance, now: Tick) -> String {
    match obstacle {
        Hindrance::Failed { until, .. } => {
            format!("{obstacle}; next try in {} s", until.since(now).as_secs())
        }
        Hindrance::Braked(brake) => {
            format!("{obstacle}; next in {} s", brake.until.since(now).as_secs())
        }
        _ => obstacle.to_string(),
    }
}

/// The same of one network card among several.
pub(super) fn told_of(card: Option<CardIndex>, text: String) -> String {
    match card {
        Some(card) => format!("{card}: {text}"),
        None => text,
    }
}

impl Pool {
    /// Numbers and reasons now.
    pub fn status(&self, now: Tick) -> Status {
        let Plan { report, .. } = plan(self, now);
        let put_off = self.memory.budget.brakes().filter(|brake| brake.until > now);
        let put_off: Vec<Hindrance> = put_off.copied().map(Hindrance::Braked).collect();
        let mut reasons: Vec<String> = Vec::new();
        let by_card = report.hindrances_by_card();
        let of_card = by_card.map(|(card, hindrance)| told_of(card, told(hindrance, now)));
        let others = report
            .delays
            .iter()
            .chain(&put_off)
            .map(|obstacle| told(obstacle, now));
        for reason in of_card.chain(others) {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        reasons.extend(
            report
                .losses
                .iter()
                .map(|loss| format!("{}: {}", loss.what, loss.failure)),
        );
        let leaks = self.memory.obstacle(&Topic::Leaks, now);
        if let Some((obstacle, failure)) = leaks.and_then(|it| Some((it, it.failure.as_ref()?))) {
            let wait = obstacle.until.since(now).as_secs();
            reasons.push(format!(
                "ENIs that others have left are not deleted: {failure}; next try in {wait} s"
            ));
        }
        if let Some(reason) = &self.memory.store_trouble {
            reasons.insert(0, format!("the store cannot be written: {reason}"));
        }
        // What was throttled is asked for again within seconds: that is growth under way, too.
        let is_put_off = report.hindrances.iter().any(|hindrance| {
            matches!(hindrance, Hindrance::Failed { failure, .. } if failure.class == FailureClass::Throttled)
        });
        Status {
            serving: self.memory.store_trouble.is_none()
                && (report.free > 0
                    || report.coming > 0
                    || report.cooling > 0
                    || is_put_off
                    || self.is_gathering(now)),
            reasons,
            free: if self.policy().is_six() {
                six::count_free(self, now)
            } else {
                report.free.into()
            },
            assigned: report.assigned,
            cooling: report.cooling,
            quarantined: report.quarantined,
            coming: report.coming,
            waiting: report.waiting,
            enis: report.enis,
            cordoned: self.is_cordoned(),
            drift: self.memory.drifts.counted(),
            cards: report
                .cards
                .iter()
                .map(|(card, of_card)| (*card, of_card.into()))
                .collect(),
        }
    }

    /// Everything, for people and support bundles. Its shape is not an interface.
    pub fn dump(&self, now: Tick) -> Value {
        let usable = self.usable_addresses(now);
        let addresses: Vec<Value> = self
            .addresses()
            .iter()
            .map(|(address, known)| {
                let (state, detail) = match known.state(now) {
                    AddressState::Free if usable.contains(address) => ("free", Value::Null),
                    AddressState::Free if self.is_excluded(*address) => ("excluded", Value::Null),
                    AddressState::Free if self.is_going(*address) => ("going", Value::Null),
                    AddressState::Free => ("coming", Value::Null),
                    AddressState::Assigned(key) => ("assigned", json!(key.to_string())),
                    AddressState::Cooling { until } => {
                        ("cooling", json!(until.since(now).as_millis().to_string()))
                    }
                    AddressState::Quarantined(why) => ("quarantined", json!(why.to_string())),
                };
                // Spelled out: the store's short form is not for people.
                let placed = self
                    .placed(*address)
                    .map(|(_, placed)| json!({"verified": placed.verified, "published": placed.published}));
                json!({"address": address, "eni": known.eni, "state": state, "detail": detail,
                    "doubt": known.doubt, "placed": placed, "last_used_ms": known.last_used})
            })
            .collect();
        let obstacles: Vec<Value> = self
            .memory
            .obstacles
            .iter()
            .map(|(topic, obstacle)| {
                json!({"topic": format!("{topic:?}"), "attempt": obstacle.attempt,
                    "retry_in_ms": u64::try_from(obstacle.until.since(now).as_millis()).unwrap_or(u64::MAX),
                    "failure": obstacle.failure})
            })
            .collect();
        let calls: Vec<String> = self
            .memory
            .calls
            .values()
            .map(|ask| format!("{:?}", ask.purpose))
            .collect();
        json!({
            "status": self.status(now), "node": self.facts(), "limits": self.limits(),
            "plan": plan(self, now), "explanation": explain(self, now),
            "enis": self.enis().values().collect::<Vec<_>>(),
            "creations": self.creations().values().collect::<Vec<_>>(),
            "allocations": self.allocations().values().collect::<Vec<_>>(),
            "drift": self.memory.drifts.dump(now), "addresses": addresses, "obstacles": obstacles, "calls": calls,
            "budget": self.budget_figures(now), "call_counters": self.call_counters(),
        })
    }
}
