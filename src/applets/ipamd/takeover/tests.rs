//! Against checkpoints that the Go daemon (v1.23.1) wrote, with what the kernel and EC2 had beside them.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::*;
use crate::ipam::ids::{BootId, DeviceIndex, Mac};
use crate::ipam::import::{Left, export};
use crate::ipam::model::Allocation;
use crate::ipam::witness::ImdsEni;

macro_rules! captured {
    ($name:literal) => {
        (
            include_bytes!(concat!("../../../../tests/data/go-daemon/", $name, ".ipam.json")).as_slice(),
            include_str!(concat!(
                "../../../../tests/data/go-daemon/",
                $name,
                ".witnesses.json"
            )),
        )
    };
}

fn addresses(value: &Value) -> Vec<Ipv4Addr> {
    let all = value.as_array().unwrap().iter();
    all.map(|text| text.as_str().unwrap().parse().unwrap()).collect()
}

fn eni(value: &Value) -> ImdsEni {
    let prefixes = value["prefixes"].as_array().unwrap().iter();
    ImdsEni {
        id: value["id"].as_str().unwrap().into(),
        mac: value["mac"].as_str().unwrap().parse().unwrap(),
        device: DeviceIndex(u32::try_from(value["device"].as_u64().unwrap()).unwrap()),
        card: CardIndex(0),
        subnet: "subnet-0aaaaaaaaaaaaaaaa".into(),
        subnet_cidr: None,
        addresses: addresses(&value["addresses"]),
        prefixes6: Vec::new(),
        prefixes: prefixes
            .map(|text| text.as_str().unwrap().parse().unwrap())
            .collect(),
    }
}

fn seen(text: &str) -> Witnesses {
    let facts: Value = serde_json::from_str(text).unwrap();
    let enis: Vec<ImdsEni> = facts["enis"].as_array().unwrap().iter().map(eni).collect();
    let to_text = |value: &Value| value.as_str().unwrap().to_owned();
    Witnesses {
        facts: NodeFacts {
            instance: "i-0123456789abcdef0".into(),
            instance_type: "m5.4xlarge".into(),
            zone: "eu-central-1a".to_owned(),
            vpc: "vpc-1".into(),
            vpc_cidrs: Vec::new(),
            subnet: "subnet-0aaaaaaaaaaaaaaaa".into(),
            subnet_cidr: "10.0.1.0/24".parse().unwrap(),
            primary_eni: enis[0].id.clone(),
            primary_mac: Mac([2, 0, 0, 0, 0, 0]),
            primary_address: enis[0].addresses[0],
            security_groups: Vec::new(),
            boot: BootId::from("boot"),
            booted_at: 0,
        },
        links: facts["links"].as_array().unwrap().iter().map(to_text).collect(),
        routes: facts["routes"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(address, link)| (address.parse().unwrap(), to_text(link)))
            .collect(),
        tables: facts["tables"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(address, table)| {
                let table = u32::try_from(table.as_u64().unwrap()).unwrap();
                (address.parse().unwrap(), TableId(table))
            })
            .collect(),
        enis,
        link_hash: |namespace, name, interface| veth::host_name("", namespace, name, interface),
    }
}

fn judged(bytes: &[u8], seen: &Witnesses) -> Vec<Judged> {
    let read = checkpoint::read(bytes).unwrap();
    assert_eq!(read.bad, []);
    judge(&[(CardIndex(0), read.entries)], seen, clocks())
}

fn held(judged: &[Judged]) -> Vec<Allocation> {
    judged
        .iter()
        .map(|judged| match &judged.verdict {
            Verdict::Adopted(held) => Allocation::clone(held),
            other => panic!("{judged}: {other:?}"),
        })
        .collect()
}

#[test]
fn every_pod_of_a_real_node_is_adopted_with_its_link_and_its_enis_table() {
    for ((bytes, facts), pods) in [
        (captured!("secondary"), 45),
        (captured!("secondary-after-deletes"), 30),
        (captured!("prefix"), 40),
    ] {
        let seen = seen(facts);
        let held = held(&judged(bytes, &seen));
        assert_eq!(held.len(), pods);
        for held in held {
            assert_eq!(Some(&held.host_veth), seen.routes.get(&held.address), "{held:?}");
            let by_rule = seen.tables.get(&held.address).copied();
            assert_eq!(held.table(), by_rule.unwrap_or(TableId::MAIN), "{held:?}");
        }
    }
}

/// Fifteen pods are deleted after the file was copied: the kernel says so, the file does not.
#[test]
fn what_was_deleted_since_is_not_adopted() {
    let (bytes, _) = captured!("secondary");
    let (_, facts) = captured!("secondary-after-deletes");
    let judged = judged(bytes, &seen(facts));
    let adopted = judged.iter().filter(|judged| judged.is_adopted()).count();
    let gone = judged
        .iter()
        .filter(|judged| judged.verdict == Verdict::Left(Left::Gone))
        .count();
    assert_eq!((adopted, gone), (30, 15));
}

/// To the millisecond: that is how exactly we know since when.
#[test]
fn what_is_adopted_is_exported_as_the_go_daemon_wrote_it() {
    for (bytes, facts) in [
        captured!("secondary"),
        captured!("secondary-after-deletes"),
        captured!("prefix"),
    ] {
        let entries = checkpoint::read(bytes).unwrap().entries;
        // The files' own times may lie ahead of this machine's boot, or its clock.
        let clocks = Clocks {
            boot: crate::ipam::ids::Tick(1 << 40),
            unix_ns: entries.iter().map(|entry| entry.given_ns).max().unwrap() + 1_000_000_000,
        };
        let judged = judge(&[(CardIndex(0), entries.clone())], &seen(facts), clocks);
        let mut exported = export(&held(&judged), clocks).remove(&CardIndex(0)).unwrap();
        for (written, read) in exported.iter_mut().zip(&entries) {
            assert!(written.given_ns.abs_diff(read.given_ns) <= 1_000_000);
            written.given_ns = read.given_ns;
        }
        assert_eq!(exported, entries);
        assert_eq!(checkpoint::write(&exported).as_bytes(), bytes, "byte for byte");
    }
}

#[test]
fn files_of_every_card_are_found_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "ipam.json",
        "ipam-nic-1.json",
        "ipam-nic-x.json",
        "ipam.json.tmp12",
        "other.json",
    ] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let found = files(&folder.path().join("ipam.json"));
    let cards: Vec<u32> = found.keys().map(|card| card.0).collect();
    assert_eq!(cards, [0, 1]);
    assert!(files(Path::new("/nowhere/ipam.json")).is_empty());
    let why = Found::read(&found[&CardIndex(0)], CardIndex(0)).err().unwrap();
    assert!(
        why.to_string()
            .ends_with("ipam.json: the file is empty; the file was not changed"),
        "{why}"
    );
}
