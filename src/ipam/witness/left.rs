//! The key to deleting what another instance has left behind.
//!
//! Tags have no compare-and-swap, so a lease only keeps the fleet from doing the same work; safety rests on EC2
//! refusing to delete what is attached, on age, and on a second look.

use std::time::Duration;

use serde::Serialize;

use super::{LocalEvidence, Proof, Unproven};
use crate::cloud::CloudEni;
use crate::ids::{EniId, InstanceId, Tick};
use crate::{stamp, tags};

/// Younger ENIs may be on their way to their instance: the Go daemon, too, leaves them alone.
pub(super) const YOUNG: Duration = Duration::from_mins(5);
/// An instance EC2 does not know counts as gone only for ENIs older than this: it may be too new for a Describe, and an
/// instance that has ended stays listed for about an hour
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html>).
pub(super) const OLD: Duration = Duration::from_hours(1);
/// How long a lease holds: a round takes two minutes.
pub(super) const LEASE: Duration = Duration::from_mins(15);

/// What a successful `DescribeInstances` said about an ENI's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerSays {
    /// Not asked.
    Unasked,
    /// It lives, or is only stopped.
    Lives,
    /// It has been terminated.
    Terminated,
    /// EC2 does not know it.
    Unknown,
}

/// Whose eyes an ENI is looked at with.
#[derive(Debug, Clone, Copy)]
pub struct Reaper<'a> {
    /// This instance.
    pub instance: &'a InstanceId,
    /// `CLUSTER_NAME`.
    pub cluster: Option<&'a str>,
    /// Seconds since 1970.
    pub unix: u64,
}

/// When an ENI was looked at, and what EC2 said of its owner then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// When EC2 was asked.
    pub asked: Tick,
    /// What it said of the owner.
    pub owner: OwnerSays,
}

/// Why an ENI is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Spared {
    /// It is attached.
    #[error("it is attached")]
    Attached,
    /// Neither daemon's description, or no owner tag with an instance's id.
    #[error("neither daemon has made it")]
    NotOurs,
    /// This instance's own are dealt with elsewhere.
    #[error("it is this instance's own")]
    Own,
    /// Somebody may be reached by it once it is attached again.
    #[error("a public address is associated with it")]
    Public,
    /// Somebody keeps both daemons away from it.
    #[error("it is tagged as not managed")]
    NotManaged,
    /// It belongs to another cluster, or may.
    #[error("it belongs to another cluster")]
    OtherCluster,
    /// Another node is at it.
    #[error("another node holds a lease on it")]
    Leased,
    /// It says nothing, or nothing legible, of its age.
    #[error("its age is not known")]
    Ageless,
    /// It may be on its way to its instance.
    #[error("it is too young")]
    Young,
}

/// Where a cluster leaves its name.
const CLUSTER_PREFIX: &str = "kubernetes.io/cluster/";

impl Reaper<'_> {
    /// The instance an ENI was made for, if the ENI may be looked at at all, whatever its age.
    pub fn owner_of(self, eni: &CloudEni) -> Result<InstanceId, Spared> {
        let tag = |key: &str| eni.tags.get(key).map(String::as_str);
        if eni.attachment.is_some() {
            return Err(Spared::Attached);
        }
        let owner = tag(tags::INSTANCE).filter(|owner| owner.starts_with("i-"));
        let owner = owner.filter(|_| eni.description.starts_with(tags::DESCRIPTION_PREFIX));
        let owner = InstanceId::from(owner.ok_or(Spared::NotOurs)?);
        if owner == *self.instance {
            return Err(Spared::Own);
        }
        if tag(tags::NO_MANAGE).is_some_and(|value| value != "false") {
            return Err(Spared::NotManaged);
        }
        if !eni.public.is_empty() {
            return Err(Spared::Public);
        }
        // Without a name of our own nothing of a cluster with one is ours (Q25).
        let is_named = || eni.tags.keys().any(|key| key.starts_with(CLUSTER_PREFIX));
        let is_cluster = match self.cluster {
            Some(cluster) => tag(tags::CLUSTER) == Some(cluster),
            None => tag(tags::CLUSTER).is_none() && !is_named(),
        };
        if !is_cluster {
            return Err(Spared::OtherCluster);
        }
        match self.lease(eni) {
            Some((holder, _)) if holder != *self.instance => Err(Spared::Leased),
            _ => Ok(owner),
        }
    }

    /// How old an ENI is by its tag.
    pub fn age(self, eni: &CloudEni) -> Result<Duration, Spared> {
        let created = eni.tags.get(tags::CREATED_AT);
        let created = created
            .and_then(|text| stamp::parse(text))
            .ok_or(Spared::Ageless)?;
        let age = Duration::from_secs(self.unix.saturating_sub(created));
        if age < YOUNG { Err(Spared::Young) } else { Ok(age) }
    }

    /// Who holds a lease, and until when; one that has run out, or that runs longer than any, is none.
    pub fn lease(self, eni: &CloudEni) -> Option<(InstanceId, u64)> {
        let (holder, until) = eni.tags.get(tags::REAPER)?.split_once(' ')?;
        let until = stamp::parse(until)?;
        let longest = self.unix.saturating_add(LEASE.as_secs().saturating_mul(2));
        (self.unix < until && until <= longest).then(|| (InstanceId::from(holder), until))
    }

    /// The lease this node writes on an ENI.
    pub fn new_lease(self) -> String {
        let until = self.unix.saturating_add(LEASE.as_secs());
        format!("{} {}", self.instance, stamp::rfc3339(until))
    }

    /// Whether the owner is gone, for an ENI of this age.
    pub fn is_gone(self, owner: OwnerSays, age: Duration) -> bool {
        match owner {
            OwnerSays::Terminated => true,
            OwnerSays::Unknown => age > OLD,
            OwnerSays::Lives | OwnerSays::Unasked => false,
        }
    }
}

/// Everything that speaks for deleting an ENI another instance has left.
#[derive(Debug, Clone, Copy)]
pub struct LeftEvidence<'a> {
    /// Who looks.
    pub reaper: Reaper<'a>,
    /// The ENI, as the second look shows it.
    pub eni: &'a CloudEni,
    /// The first look.
    pub first: Look,
    /// The second.
    pub second: Look,
    /// What this node's kernel and store know of it.
    pub local: LocalEvidence,
    /// How long a Describe may lag behind.
    pub lag: Duration,
}

impl Proof<EniId> {
    /// The key to deleting an ENI that another instance has left: it is attached nowhere, of our cluster, old, leased by
    /// this node, and its owner is gone; EC2 has said so twice, far enough apart.
    pub fn left_eni(evidence: LeftEvidence<'_>) -> Result<Self, Unproven> {
        let LeftEvidence {
            reaper,
            eni,
            first,
            second,
            local,
            lag,
        } = evidence;
        reaper.owner_of(eni).map_err(Unproven::Spared)?;
        let age = reaper.age(eni).map_err(Unproven::Spared)?;
        if !reaper.is_gone(first.owner, age) || !reaper.is_gone(second.owner, age) {
            return Err(Unproven::Owner);
        }
        if second.asked.since(first.asked) < lag {
            return Err(Unproven::SecondLook);
        }
        local.is_clean()?;
        let holder = reaper.lease(eni).map(|(holder, _)| holder);
        if holder.as_ref() != Some(reaper.instance) {
            return Err(Unproven::Lease);
        }
        Ok(Self {
            subject: eni.id.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cloud::{CloudAttachment, ConnectionTracking};
    use crate::ids::{CardIndex, DeviceIndex, Mac};

    const NOW: u64 = 1_795_248_000;

    fn eni(edit: impl FnOnce(&mut CloudEni)) -> CloudEni {
        let mut eni = CloudEni {
            id: "eni-1".into(),
            mac: Mac([2; 6]),
            subnet: "subnet-1".into(),
            subnet_cidr: None,
            primary: "10.0.0.9".parse().unwrap(),
            secondary: vec![],
            prefixes: vec![],
            prefixes6: vec![],
            public: vec![],
            tracking: ConnectionTracking::default(),
            groups: vec![],
            interface_type: "interface".to_owned(),
            attachment: None,
            description: "aws-K8S-i-1".to_owned(),
            tags: BTreeMap::from([
                (tags::INSTANCE.to_owned(), "i-1".to_owned()),
                (tags::CREATED_AT.to_owned(), stamp::rfc3339(NOW - 7200)),
                (
                    tags::REAPER.to_owned(),
                    format!("i-me {}", stamp::rfc3339(NOW + 60)),
                ),
            ]),
        };
        edit(&mut eni);
        eni
    }

    fn tagged(key: &str, value: &str) -> CloudEni {
        eni(|eni| drop(eni.tags.insert(key.to_owned(), value.to_owned())))
    }

    const GONE: Look = Look {
        asked: Tick(0),
        owner: OwnerSays::Terminated,
    };

    fn judge(eni: &CloudEni, cluster: Option<&str>, first: Look, second: Look) -> Result<(), Unproven> {
        let me = InstanceId::from("i-me");
        let evidence = LeftEvidence {
            reaper: Reaper {
                instance: &me,
                cluster,
                unix: NOW,
            },
            eni,
            first,
            second,
            local: LocalEvidence {
                link: false,
                pod_routes: 0,
                allocations: 0,
            },
            lag: Duration::from_mins(1),
        };
        Proof::left_eni(evidence).map(|proof| assert_eq!(proof.subject(), &eni.id))
    }

    fn look(seconds: u64, owner: OwnerSays) -> Look {
        Look {
            asked: Tick(seconds * 1000),
            owner,
        }
    }

    /// Every rule alone spares an ENI that is otherwise to be deleted.
    #[test]
    fn each_rule_alone_spares() {
        let later = look(60, OwnerSays::Terminated);
        assert_eq!(judge(&eni(|_| ()), None, GONE, later), Ok(()));
        let attached = eni(|eni| {
            eni.attachment = Some(CloudAttachment {
                id: "attach-1".into(),
                instance: None,
                device: DeviceIndex(1),
                card: CardIndex(0),
                status: "attaching".to_owned(),
                delete_on_termination: false,
            });
        });
        let no_owner = eni(|eni| drop(eni.tags.remove(tags::INSTANCE)));
        let ageless = eni(|eni| drop(eni.tags.remove(tags::CREATED_AT)));
        let public = eni(|eni| eni.public = vec![eni.primary]);
        let ago = |seconds: u64| stamp::rfc3339(NOW - seconds);
        let leased = format!("i-2 {}", stamp::rfc3339(NOW + 60));
        for (eni, why) in [
            (attached, Spared::Attached),
            (
                eni(|eni| "somebody's".clone_into(&mut eni.description)),
                Spared::NotOurs,
            ),
            (no_owner, Spared::NotOurs),
            (tagged(tags::INSTANCE, "the one in the corner"), Spared::NotOurs),
            (tagged(tags::INSTANCE, "i-me"), Spared::Own),
            (tagged(tags::NO_MANAGE, "true"), Spared::NotManaged),
            (public, Spared::Public),
            (tagged(tags::CLUSTER, "other"), Spared::OtherCluster),
            (
                tagged("kubernetes.io/cluster/other", "owned"),
                Spared::OtherCluster,
            ),
            (tagged(tags::REAPER, &leased), Spared::Leased),
            (ageless, Spared::Ageless),
            (tagged(tags::CREATED_AT, "yesterday"), Spared::Ageless),
            (tagged(tags::CREATED_AT, &ago(299)), Spared::Young),
            (
                tagged(tags::CREATED_AT, &stamp::rfc3339(NOW + 900)),
                Spared::Young,
            ),
        ] {
            assert_eq!(judge(&eni, None, GONE, later), Err(Unproven::Spared(why)));
        }
        assert_eq!(
            judge(&tagged(tags::CREATED_AT, &ago(300)), None, GONE, later),
            Ok(())
        );
        assert_eq!(
            judge(&tagged(tags::NO_MANAGE, "false"), None, GONE, later),
            Ok(())
        );
    }

    #[test]
    fn a_cluster_with_a_name_reaps_its_own_only() {
        let later = look(60, OwnerSays::Terminated);
        let other = Err(Unproven::Spared(Spared::OtherCluster));
        assert_eq!(
            judge(&tagged(tags::CLUSTER, "mine"), Some("mine"), GONE, later),
            Ok(())
        );
        assert_eq!(
            judge(&tagged(tags::CLUSTER, "other"), Some("mine"), GONE, later),
            other
        );
        assert_eq!(judge(&eni(|_| ()), Some("mine"), GONE, later), other);
    }

    #[test]
    fn the_owner_must_be_gone_in_both_looks_and_the_second_be_late_enough() {
        use OwnerSays::{Lives, Terminated, Unasked, Unknown};
        let old = eni(|_| ());
        for alive in [Lives, Unasked] {
            assert_eq!(
                judge(&old, None, look(0, alive), look(60, Terminated)),
                Err(Unproven::Owner)
            );
            assert_eq!(judge(&old, None, GONE, look(60, alive)), Err(Unproven::Owner));
        }
        assert_eq!(judge(&old, None, look(0, Unknown), look(60, Unknown)), Ok(()));
        let within_the_hour = tagged(tags::CREATED_AT, &stamp::rfc3339(NOW - 3600));
        let unknown = judge(&within_the_hour, None, GONE, look(60, Unknown));
        assert_eq!(unknown, Err(Unproven::Owner));
        assert_eq!(judge(&within_the_hour, None, GONE, look(60, Terminated)), Ok(()));
        assert_eq!(
            judge(&old, None, GONE, look(59, Terminated)),
            Err(Unproven::SecondLook)
        );
        assert_eq!(
            judge(&old, None, look(60, Terminated), GONE),
            Err(Unproven::SecondLook)
        );
    }

    #[test]
    fn without_a_lease_of_its_own_nobody_deletes() {
        let later = look(60, OwnerSays::Terminated);
        let lease = |text: String| judge(&tagged(tags::REAPER, &text), None, GONE, later);
        assert_eq!(
            lease(format!("i-me {}", stamp::rfc3339(NOW))),
            Err(Unproven::Lease),
            "run out"
        );
        assert_eq!(
            lease(format!("i-2 {}", stamp::rfc3339(NOW))),
            Err(Unproven::Lease)
        );
        assert_eq!(lease("i-me for ever".to_owned()), Err(Unproven::Lease));
        let forged = format!("i-2 {}", stamp::rfc3339(NOW + 86_400));
        assert_eq!(lease(forged), Err(Unproven::Lease), "no lease runs so long");
        let unleased = eni(|eni| drop(eni.tags.remove(tags::REAPER)));
        assert_eq!(judge(&unleased, None, GONE, later), Err(Unproven::Lease));
    }
}
