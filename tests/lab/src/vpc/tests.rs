//! The model against EC2's rules.

use std::time::{Duration, Instant};

use super::*;

struct Rig {
    model: Model,
    subnet: SubnetId,
    group: GroupId,
    node: Instance,
    now: Instant,
}

const SLOW: Stages = Stages {
    link: Duration::from_secs(2),
    status: Duration::from_secs(3),
};

fn rig(instance_type: &str) -> Rig {
    let mut model = Model::new(42, "eu-central-1", "123456789012");
    let now = Instant::now();
    let vpc = model.create_vpc(
        &["10.0.0.0/16".parse().unwrap()],
        Some("fd00::/56".parse().unwrap()),
    );
    let subnet = model
        .create_subnet(
            &vpc,
            "eu-central-1a",
            "10.0.0.0/24".parse().unwrap(),
            Some("fd00::/64".parse().unwrap()),
        )
        .unwrap();
    let group = model.create_group(&vpc, "nodes").unwrap();
    let node = model
        .run_instance(NewInstance::new(instance_type, &subnet, &group), now)
        .unwrap();
    Rig {
        model,
        subnet,
        group,
        node,
        now,
    }
}

impl Rig {
    fn create(&mut self) -> EniId {
        let request = CreateEni::plain(self.subnet.clone(), vec![self.group.clone()]);
        self.model.create_eni(request, self.now).unwrap().id.clone()
    }

    fn attach(&mut self, eni: &EniId, device: u32) -> ApiResult<AttachmentId> {
        let request = AttachEni {
            eni: eni.clone(),
            instance: self.node.id.clone(),
            device,
            card: 0,
        };
        self.model.attach_eni(&request, SLOW, self.now)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.model.advance(self.now);
    }

    fn status(&self, eni: &EniId) -> &'static str {
        let eni = &self.model.enis()[eni];
        eni.attachment
            .as_ref()
            .map_or(eni.status(), |attachment| attachment.status.as_str())
    }
}

fn count(addresses: u32, prefixes: u32) -> Wanted {
    Wanted {
        addresses: if addresses > 0 {
            Want::Count(addresses)
        } else {
            Want::Nothing
        },
        prefixes: if prefixes > 0 {
            Want::Count(prefixes)
        } else {
            Want::Nothing
        },
        ..Wanted::default()
    }
}

#[test]
fn attaching_has_two_stages_and_so_has_detaching() {
    let mut rig = rig("m5.large");
    let changes = rig.model.subscribe();
    assert!(matches!(changes.try_recv(), Ok(VpcChange::EniAttached(primary)) if primary.device == 0));
    let eni = rig.create();
    let attachment = rig.attach(&eni, 1).unwrap();
    assert_eq!(rig.status(&eni), "attaching");
    rig.pass(1);
    assert!(changes.try_recv().is_err(), "the link is not there yet");
    rig.pass(1);
    assert!(matches!(changes.try_recv(), Ok(VpcChange::EniAttached(new)) if new.eni == eni));
    assert_eq!(rig.status(&eni), "attaching");
    rig.pass(1);
    assert_eq!(rig.status(&eni), "attached");
    let in_use = rig.model.delete_eni(&eni, rig.now).unwrap_err();
    assert_eq!(
        in_use.message,
        format!("Network interface '{eni}' is currently in use.")
    );
    rig.model.detach_eni(&attachment, SLOW, rig.now).unwrap();
    assert_eq!(rig.status(&eni), "detaching");
    rig.pass(3);
    assert!(matches!(changes.try_recv(), Ok(VpcChange::EniDetached { .. })));
    assert_eq!(rig.status(&eni), "available");
    rig.model.delete_eni(&eni, rig.now).unwrap();
    assert_eq!(
        rig.model.delete_eni(&eni, rig.now).unwrap_err().code,
        "InvalidNetworkInterfaceID.NotFound"
    );
}

#[test]
fn detaching_before_the_link_came_never_shows_one() {
    let mut rig = rig("m5.large");
    let changes = rig.model.subscribe();
    assert!(changes.try_recv().is_ok());
    let eni = rig.create();
    let attachment = rig.attach(&eni, 1).unwrap();
    rig.model.detach_eni(&attachment, SLOW, rig.now).unwrap();
    rig.pass(10);
    assert!(changes.try_recv().is_err());
    assert_eq!(rig.status(&eni), "available");
}

#[test]
fn instance_and_eni_limits_hold() {
    let mut rig = rig("t3.medium");
    let enis: Vec<EniId> = (0..3).map(|_| rig.create()).collect();
    rig.attach(&enis[0], 1).unwrap();
    assert_eq!(
        rig.attach(&enis[1], 1).unwrap_err().message,
        format!(
            "Instance '{}' already has an interface attached at device index '1'.",
            rig.node.id
        )
    );
    rig.attach(&enis[1], 2).unwrap();
    assert_eq!(
        rig.attach(&enis[2], 3).unwrap_err().message,
        "Interface count 4 exceeds the limit for t3.medium"
    );
    assert_eq!(
        rig.attach(&enis[0], 3).unwrap_err().code,
        "InvalidNetworkInterface.InUse"
    );
    let primary = rig.node.primary_eni.clone();
    rig.model.assign(&primary, &count(3, 2), false, rig.now).unwrap();
    let over = rig
        .model
        .assign(&primary, &count(1, 0), false, rig.now)
        .unwrap_err();
    assert_eq!(
        over.code, "PrivateIpAddressLimitExceeded",
        "addresses and prefixes share slots"
    );
    let over = rig
        .model
        .assign(&primary, &count(0, 1), false, rig.now)
        .unwrap_err();
    assert_eq!(over.code, "PrivateIpAddressLimitExceeded");
}

#[test]
fn prefixes_need_nitro() {
    let mut rig = rig("m4.large");
    let primary = rig.node.primary_eni.clone();
    assert_eq!(
        rig.model
            .assign(&primary, &count(0, 1), false, rig.now)
            .unwrap_err()
            .code,
        "UnsupportedOperation"
    );
}

#[test]
fn a_token_creates_once() {
    let mut rig = rig("m5.large");
    let mut request = CreateEni {
        token: Some("t-1".to_owned()),
        wanted: count(3, 0),
        ..CreateEni::plain(rig.subnet.clone(), vec![rig.group.clone()])
    };
    let before = rig.model.space(&rig.subnet).unwrap().free_addresses();
    let first = rig.model.create_eni(request.clone(), rig.now).unwrap();
    let second = rig.model.create_eni(request.clone(), rig.now).unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(rig.model.space(&rig.subnet).unwrap().free_addresses(), before - 4);
    request.description = "other".to_owned();
    assert_eq!(
        rig.model.create_eni(request, rig.now).unwrap_err().code,
        "IdempotentParameterMismatch"
    );
}

#[test]
fn a_refused_call_changes_nothing() {
    let mut rig = rig("m5.large");
    rig.model.leave_free(&rig.subnet.clone(), 4).unwrap();
    let space = rig.model.space(&rig.subnet).unwrap().clone();
    let request = CreateEni {
        wanted: count(4, 0),
        ..CreateEni::plain(rig.subnet.clone(), vec![])
    };
    let error = rig.model.create_eni(request, rig.now).unwrap_err();
    assert_eq!(error.code, "InsufficientFreeAddressesInSubnet");
    assert_eq!(*rig.model.space(&rig.subnet).unwrap(), space);
    assert_eq!(rig.model.enis().len(), 1);
}

#[test]
fn readers_may_lag_behind() {
    let mut rig = rig("m5.large");
    let eni = rig.create();
    let created = rig.now;
    rig.pass(5);
    rig.model.assign(&eni, &count(2, 0), false, rig.now).unwrap();
    rig.pass(5);
    rig.model.delete_eni(&eni, rig.now).unwrap();
    let seen = |at: Instant| {
        rig.model
            .view(|version| version.at <= at)
            .get(&eni)
            .map(|eni| eni.secondary.len())
    };
    assert_eq!(seen(created.checked_sub(Duration::from_secs(1)).unwrap()), None);
    assert_eq!(seen(created), Some(0));
    assert_eq!(seen(created + Duration::from_secs(7)), Some(2));
    assert_eq!(seen(rig.now), None);
}

#[test]
fn unassigning_names_what_is_not_there() {
    let mut rig = rig("m5.large");
    let primary = rig.node.primary_eni.clone();
    let grant = rig.model.assign(&primary, &count(2, 1), false, rig.now).unwrap();
    rig.model.unassign(&primary, &grant, rig.now).unwrap();
    let again = rig.model.unassign(&primary, &grant, rig.now).unwrap_err();
    assert_eq!(again.code, "InvalidParameterValue");
    assert!(again.message.contains(&grant.addresses[0].to_string()));
    let own = Grant {
        addresses: vec![rig.node.private_ip],
        ..Grant::default()
    };
    assert!(rig.model.unassign(&primary, &own, rig.now).is_err());
}

#[test]
fn reassigning_moves_an_address() {
    let mut rig = rig("m5.large");
    let (one, two) = (rig.create(), rig.create());
    let grant = rig.model.assign(&one, &count(2, 0), false, rig.now).unwrap();
    let wanted = Wanted {
        addresses: Want::Exactly(vec![grant.addresses[0]]),
        ..Wanted::default()
    };
    assert_eq!(
        rig.model.assign(&two, &wanted, false, rig.now).unwrap_err().code,
        "InvalidIPAddress.InUse"
    );
    rig.model.assign(&two, &wanted, true, rig.now).unwrap();
    assert_eq!(rig.model.enis()[&one].secondary, grant.addresses[1..]);
    assert_eq!(rig.model.enis()[&two].secondary, grant.addresses[..1]);
}

#[test]
fn termination_deletes_what_is_marked() {
    let mut rig = rig("m5.large");
    let (kept, gone) = (rig.create(), rig.create());
    rig.attach(&kept, 1).unwrap();
    let attachment = rig.attach(&gone, 2).unwrap();
    let mark = Modify::DeleteOnTermination {
        attachment,
        delete: true,
    };
    rig.model.modify_eni(&gone, mark, rig.now).unwrap();
    rig.pass(5);
    let node = rig.node.id.clone();
    rig.model.terminate_instance(&node, rig.now).unwrap();
    assert_eq!(rig.model.enis().keys().collect::<Vec<_>>(), vec![&kept]);
    assert_eq!(rig.status(&kept), "available");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let world = || {
        let mut rig = rig("m5.large");
        let eni = rig.create();
        rig.model.assign(&eni, &count(5, 2), false, rig.now).unwrap();
        rig.model.enis().clone()
    };
    assert_eq!(world(), world());
}
