//! What others do at EC2 behind the node's back.

use std::net::Ipv4Addr;

use aws_cni_ipam::cloud::{Amount, CloudAttachment, CloudEni};
use aws_cni_ipam::ids::{AttachmentId, CardIndex, DeviceIndex, EniId, InstanceId};
use aws_cni_ipam::limits::{FurtherCards, InstanceLimits};
use aws_cni_ipam::{stamp, tags};

use super::{Account, Consequence, Instance, NO_MANAGE};
use crate::script::{Hand, Left};

fn nth<T>(of: &[T], nth: u32) -> Option<&T> {
    let index = usize::try_from(nth).unwrap_or(0).checked_rem(of.len())?;
    of.get(index)
}

impl Account {
    /// Somebody does something to an instance's ENIs. `is_used` tells which addresses pods have.
    pub fn outside(
        &mut self,
        instance: &InstanceId,
        hand: Hand,
        choice: u32,
        now: u64,
        is_used: &dyn Fn(Ipv4Addr) -> bool,
    ) {
        let carries_pods = |eni: &CloudEni| {
            eni.secondary.iter().any(|address| is_used(*address))
                || eni.prefixes.iter().any(|prefix| {
                    (0..16).any(|step| is_used(Ipv4Addr::from_bits(prefix.base().to_bits() + step)))
                })
        };
        let primary = self
            .instances
            .get(instance)
            .map(|instance| instance.primary.clone());
        let ours: Vec<CloudEni> = self.attached(instance).cloned().collect();
        let is_idle = |eni: &&CloudEni| Some(&eni.id) != primary.as_ref() && !carries_pods(eni);
        let secondary: Vec<&CloudEni> = ours
            .iter()
            .filter(|eni| Some(&eni.id) != primary.as_ref())
            .collect();
        let idle: Vec<&CloudEni> = ours.iter().filter(is_idle).collect();
        match hand {
            Hand::UnassignIdle | Hand::UnassignAny => {
                let any = hand == Hand::UnassignAny;
                let addresses: Vec<(&EniId, Ipv4Addr)> = ours
                    .iter()
                    .flat_map(|eni| eni.secondary.iter().map(move |address| (&eni.id, *address)))
                    .filter(|(_, address)| any || !is_used(*address))
                    .collect();
                if let Some((eni, address)) = nth(&addresses, choice) {
                    drop(self.unassign(eni, &[*address], &[], now));
                }
            }
            Hand::UnassignPrefix => {
                let prefixes: Vec<_> = ours
                    .iter()
                    .filter(|eni| !carries_pods(eni))
                    .flat_map(|eni| eni.prefixes.iter().map(move |prefix| (&eni.id, *prefix)))
                    .collect();
                if let Some((eni, prefix)) = nth(&prefixes, choice) {
                    drop(self.unassign(eni, &[], &[*prefix], now));
                }
            }
            Hand::Assign => {
                if let Some(eni) = nth(&ours, choice) {
                    drop(self.assign(&eni.id, Amount::Addresses(1), now));
                }
            }
            Hand::DetachIdle | Hand::DetachAny | Hand::DeleteIdle => {
                let among = if hand == Hand::DetachAny {
                    &secondary
                } else {
                    &idle
                };
                if let Some(eni) = nth(among, choice) {
                    self.detach(&eni.id, now);
                    if hand == Hand::DeleteIdle {
                        self.delete(&eni.id, now);
                    }
                }
            }
            Hand::Untag | Hand::NoManage => {
                let mut among = if hand == Hand::NoManage { idle } else { secondary };
                // Without its tag a foreign ENI would be ours to use.
                among.retain(|eni| self.interfaces.get(&eni.id).is_some_and(|known| !known.foreign));
                if let Some(eni) = nth(&among, choice) {
                    let id = eni.id.clone();
                    self.change(&id, now, |eni| {
                        let Some(eni) = eni else { return };
                        if hand == Hand::Untag {
                            eni.tags.clear();
                        } else {
                            eni.tags.insert(NO_MANAGE.to_owned(), "true".to_owned());
                        }
                    });
                }
            }
            Hand::Attach | Hand::Trunk | Hand::EfaOnly | Hand::Efa | Hand::Bring => {
                self.attach_foreign(instance, hand, now);
            }
            Hand::Public => {
                let all = |eni: &CloudEni| [eni.primary].into_iter().chain(eni.secondary.clone());
                let addresses: Vec<(&EniId, Ipv4Addr)> = ours
                    .iter()
                    .flat_map(|eni| all(eni).map(move |address| (&eni.id, address)))
                    .collect();
                if let Some((eni, address)) = nth(&addresses, choice) {
                    self.associate(eni, *address, now);
                }
            }
            Hand::GiveBlock | Hand::TakeBlock | Hand::ReturnBlock => {
                self.outside_six(instance, hand, choice, now);
            }
            Hand::Leave => self.leave(instance, now),
            Hand::Groups => {
                if let Some(primary) = primary {
                    self.set_groups(&primary, vec![format!("sg-{}", choice % 4 + 1).into()], now);
                }
            }
        }
    }

    /// Somebody's own ENI, where there is a place for it: with the tag that keeps us away, or of a kind that does; or one for
    /// pods.
    fn attach_foreign(&mut self, instance: &InstanceId, hand: Hand, now: u64) {
        let taken: Vec<DeviceIndex> = self
            .attached(instance)
            .filter_map(|eni| eni.attachment.as_ref())
            .filter(|attachment| attachment.card == CardIndex(0))
            .map(|attachment| attachment.device)
            .collect();
        let limit = self.instances.get(instance).map_or(0, |known| known.limits.enis);
        let device = (1..limit).map(DeviceIndex).find(|device| !taken.contains(device));
        let subnet = self.subnets.first().map(|subnet| subnet.id.clone());
        let (Some(device), Some(subnet), true) = (device, subnet, taken.len() as u64 != u64::from(limit))
        else {
            return;
        };
        let most = self
            .instances
            .get(instance)
            .map_or(0, |known| known.limits.ipv4_per_eni - 1);
        let addresses = if hand == Hand::Bring { 4 } else { 1 };
        let Ok(mut eni) = self.make(&subnet, Amount::Addresses(most.min(addresses))) else {
            return;
        };
        match hand {
            Hand::Trunk => "trunk".clone_into(&mut eni.interface_type),
            Hand::EfaOnly => "efa-only".clone_into(&mut eni.interface_type),
            Hand::Efa => "efa".clone_into(&mut eni.interface_type),
            Hand::Bring => {}
            _ => {
                eni.tags.insert(NO_MANAGE.to_owned(), "true".to_owned());
            }
        }
        eni.attachment = Some(CloudAttachment {
            id: AttachmentId(format!("eni-attach-{}", eni.id)),
            instance: Some(instance.clone()),
            device,
            card: CardIndex(0),
            status: "attached".to_owned(),
            delete_on_termination: true,
        });
        self.consequences
            .push(Consequence::LinkComes(instance.clone(), eni.mac));
        let is_for_pods = matches!(hand, Hand::Efa | Hand::Bring);
        let id = eni.id.clone();
        self.insert(eni, !is_for_pods, now);
        if let Some(interface) = self.interfaces.get_mut(&id) {
            interface.kept = true;
        }
    }

    /// An ENI that another instance has made, of which it has said so at `created`.
    pub fn leave_of_another(&mut self, what: Left, created: u64, unix: u64, now: u64) {
        let Some(subnet) = self.subnets.first().map(|subnet| subnet.id.clone()) else {
            return;
        };
        let Ok(mut eni) = self.make(&subnet, Amount::Addresses(1)) else {
            return;
        };
        let owner: InstanceId = format!("i-neighbour-{}", eni.id).as_str().into();
        if what != Left::Unknown {
            let limits = InstanceLimits {
                enis: 3,
                ipv4_per_eni: 10,
                prefixes: true,
                further: FurtherCards::NONE,
            };
            let neighbour = Instance {
                limits,
                lives: what == Left::Alive,
                primary: eni.id.clone(),
            };
            self.instances.insert(owner.clone(), neighbour);
        }
        eni.description = format!("{}{owner}", tags::DESCRIPTION_PREFIX);
        let mut tag = |key: &str, value: String| eni.tags.insert(key.to_owned(), value);
        tag(tags::INSTANCE, owner.to_string());
        let cluster = if what == Left::OtherCluster {
            "another"
        } else {
            crate::acting::CLUSTER
        };
        tag(tags::CLUSTER, cluster.to_owned());
        if what != Left::Ageless {
            tag(tags::CREATED_AT, stamp::rfc3339(created));
        }
        if what == Left::Leased {
            tag(tags::REAPER, format!("i-another {}", stamp::rfc3339(unix + 900)));
        }
        if what == Left::NoManage {
            tag(tags::NO_MANAGE, "true".to_owned());
        }
        let id = eni.id.clone();
        self.insert(eni, true, now);
        if let Some(interface) = self.interfaces.get_mut(&id) {
            // Ages are told in seconds.
            let aged =
                |seconds: u64| Some((now + seconds * 1000).saturating_sub((unix - created + 2) * 1000));
            interface.left = Some(match what {
                Left::Terminated => aged(300),
                Left::Unknown => aged(3600),
                Left::Ageless => Some(now + 300_000 - 2000),
                Left::Leased => Some(now + 900_000 - 2000),
                Left::Alive | Left::OtherCluster | Left::NoManage => None,
            });
        }
    }

    /// An ENI of this instance that was left unattached long ago.
    fn leave(&mut self, instance: &InstanceId, now: u64) {
        let Some(subnet) = self.subnets.first().map(|subnet| subnet.id.clone()) else {
            return;
        };
        if let Ok(mut eni) = self.make(&subnet, Amount::Addresses(2)) {
            eni.tags.insert(tags::INSTANCE.to_owned(), instance.to_string());
            eni.tags
                .insert(tags::CLUSTER.to_owned(), crate::acting::CLUSTER.to_owned());
            eni.description = format!("aws-K8S-{instance}");
            self.insert(eni, false, now);
        }
    }
}
