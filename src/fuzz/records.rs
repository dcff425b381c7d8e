//! What the store holds, after whatever has happened to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::{Mac, Tick};
use crate::ipam::limits;
use crate::ipam::node::NodeFacts;
use crate::ipam::policy::Policy;
use crate::ipam::pool::Pool;
use crate::ipam::records;
use crate::ipam::recover::{Start, summary};
use crate::ipam::verify;
use crate::ipam::witness::KernelFacts;

/// Records as `key=value` lines: the pool starts from whatever they say, and what it starts with breaks no invariant.
pub fn stored_records(data: &[u8]) {
    let stored: BTreeMap<String, Vec<u8>> = super::lines(data);
    for (key, value) in &stored {
        if let Ok(record) = records::decode(key, value) {
            assert_eq!(
                &record.key().text(),
                key,
                "a record under another's key was taken"
            );
            let again = records::decode(key, &record.value());
            assert_eq!(again.ok(), Some(record));
        }
    }
    let facts = records::stored_facts(&stored).unwrap_or_else(node);
    let start = Start {
        policy: Policy::default(),
        limits: limits::lookup(&facts.instance_type),
        facts,
        records: stored,
        kernel: KernelFacts::default(),
        gone: BTreeSet::new(),
    };
    let now = Tick(1_000_000);
    let (pool, _effects) = Pool::recover(start, now);
    let violations = verify::pool(&pool, now);
    assert!(violations.is_empty(), "{violations:?}");
    drop(summary(&pool));
}

pub(super) fn node() -> NodeFacts {
    NodeFacts {
        instance: "i-1".into(),
        instance_type: "m5.large".into(),
        zone: "eu-west-1a".to_owned(),
        vpc: "vpc-1".into(),
        vpc_cidrs: Vec::new(),
        subnet: "subnet-1".into(),
        subnet_cidr: Ipv4Cidr::new(Ipv4Addr::new(10, 0, 0, 0), 24).unwrap_or_else(|| panic!()),
        primary_eni: "eni-1".into(),
        primary_mac: Mac([2, 0, 0, 0, 0, 1]),
        primary_address: Ipv4Addr::new(10, 0, 0, 4),
        security_groups: vec!["sg-1".into()],
        boot: "boot-1".into(),
        booted_at: 0,
    }
}
