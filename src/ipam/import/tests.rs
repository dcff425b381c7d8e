//! What becomes of a checkpoint, entry by entry, with the kernel's word beside it.

use super::super::checkpoint;
use super::super::ids::{IfName, Mac};
use super::super::records::decode;
use super::*;
use std::net::Ipv4Addr;

/// Stands in for SHA-1: the tests choose names whose last eleven characters are the pod's own.
fn hash(namespace: &str, name: &str, interface: u32) -> String {
    let tail = match interface {
        0 => String::new(),
        n => format!(".{n}"),
    };
    format!("-{namespace}.{name}{tail}")
}

fn facts() -> NodeFacts {
    NodeFacts {
        instance: "i-1".into(),
        instance_type: "m5.large".into(),
        zone: "eu-central-1a".to_owned(),
        vpc: "vpc-1".into(),
        vpc_cidrs: Vec::new(),
        subnet: "subnet-1".into(),
        subnet_cidr: "10.0.0.0/16".parse().unwrap(),
        primary_eni: "eni-0".into(),
        primary_mac: Mac([2, 0, 0, 0, 0, 0]),
        primary_address: Ipv4Addr::new(10, 0, 0, 4),
        security_groups: Vec::new(),
        boot: "boot".into(),
        booted_at: 0,
    }
}

fn eni(id: &str, device: u32, addresses: &[&str], prefixes: &[&str]) -> ImdsEni {
    ImdsEni {
        id: id.into(),
        mac: Mac([2, 0, 0, 0, 0, u8::try_from(device).unwrap()]),
        device: DeviceIndex(device),
        card: CardIndex(0),
        subnet: "subnet-1".into(),
        subnet_cidr: None,
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        prefixes6: Vec::new(),
        prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

fn entry(container: &str, pod: &str, address: &str) -> Entry {
    Entry {
        key: SandboxKey {
            network: "aws-cni".into(),
            container: container.into(),
            ifname: "eth0".into(),
        },
        namespace: if pod.is_empty() { "" } else { "ns" }.to_owned(),
        name: pod.to_owned(),
        ipv4: Some(address.parse().unwrap()),
        ipv6: None,
        given_ns: 5_000_000_000,
        interfaces: 1,
    }
}

const CLOCKS: Clocks = Clocks {
    boot: Tick(100_000),
    unix_ns: 65_000_000_000,
};

/// Two ENIs; pods `a` on the first and `b` on the second are wired.
fn node() -> Witnesses {
    let routes = [("10.0.0.5", "eni-ns.a"), ("10.0.1.5", "vlan-ns.b")];
    Witnesses {
        facts: facts(),
        enis: vec![
            eni("eni-0", 0, &["10.0.0.4", "10.0.0.5", "10.0.0.6"], &[]),
            eni("eni-1", 1, &["10.0.1.4", "10.0.1.5"], &["10.0.2.0/28"]),
        ],
        routes: routes
            .map(|(to, link)| (to.parse().unwrap(), link.to_owned()))
            .into(),
        links: ["eni-ns.a", "vlan-ns.b"].map(str::to_owned).into(),
        tables: [("10.0.1.5".parse().unwrap(), TableId(2))].into(),
        link_hash: hash,
    }
}

fn verdicts(entries: Vec<Entry>, seen: &Witnesses) -> Vec<String> {
    let judged = judge(&[(CardIndex(0), entries)], seen, CLOCKS);
    judged.iter().map(ToString::to_string).collect()
}

fn stored(judged: &[Judged], seen: &Witnesses) -> BTreeMap<String, Option<Record>> {
    let changes = changes(judged, seen, CLOCKS.boot, Duration::from_secs(30));
    changes
        .into_iter()
        .map(|change| match change {
            Change::Put { key, value } => (key.clone(), Some(decode(&key, &value).unwrap())),
            Change::Remove { key } => (key, None),
        })
        .collect()
}

#[test]
fn ipamd_86_live_sandboxes_are_adopted_with_their_links_and_enis() {
    let seen = node();
    let files = [(
        CardIndex(0),
        vec![entry("c1", "a", "10.0.0.5"), entry("c2", "b", "10.0.1.5")],
    )];
    let judged = judge(&files, &seen, CLOCKS);
    let held: Vec<_> = judged
        .iter()
        .map(|judged| match &judged.verdict {
            Verdict::Adopted(held) => held,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        (held[0].eni.as_str(), held[0].table(), held[0].host_veth.as_str()),
        ("eni-0", TableId::MAIN, "eni-ns.a")
    );
    assert_eq!(
        (held[1].eni.as_str(), held[1].table(), held[1].host_veth.as_str()),
        ("eni-1", TableId(2), "vlan-ns.b")
    );
    assert_eq!(held[0].since, Tick(40_000), "a minute ago, by the other clock");
    let stored = stored(&judged, &seen);
    assert!(stored.contains_key("node"));
    assert!(stored["allocation/aws-cni/c1/eth0"].is_some());
    assert_eq!(stored["address/10.0.0.5"], None, "no doubt is left on it");
}

#[test]
fn ipamd_86_what_the_kernel_does_not_show_is_not_adopted_and_its_address_rests() {
    let seen = node();
    let files = [(
        CardIndex(0),
        vec![entry("c3", "gone", "10.0.0.6"), entry("c4", "a", "10.0.0.7")],
    )];
    let judged = judge(&files, &seen, CLOCKS);
    assert_eq!(judged[0].verdict, Verdict::Left(Left::Gone));
    assert_eq!(judged[1].verdict, Verdict::Left(Left::Superseded));
    let stored = stored(&judged, &seen);
    let Some(Record::Address(rests)) = &stored["address/10.0.0.6"] else {
        panic!("{stored:?}");
    };
    assert_eq!(rests.rests_until, Some(Tick(130_000)));
    assert!(!stored.keys().any(|key| key.starts_with("allocation/")));
}

#[test]
fn ipamd_86_an_entry_without_pod_is_kept_for_nothing_can_refute_it() {
    let mut migrated = entry("c5", "", "10.0.0.6");
    migrated.key.network = "_migrated-from-cri".into();
    assert_eq!(
        verdicts(vec![migrated], &node()),
        ["10.0.0.6 of sandbox c5: adopted, on eni-0"]
    );
}

#[test]
fn ipamd_86_a_link_whose_route_was_lost_is_still_a_sandbox() {
    let mut seen = node();
    seen.routes.clear();
    let judged = judge(
        &[(CardIndex(0), vec![entry("c1", "a", "10.0.0.5")])],
        &seen,
        CLOCKS,
    );
    assert!(matches!(&judged[0].verdict, Verdict::Adopted(held) if held.host_veth == "eni-ns.a"));
}

/// The Go daemon drops the entry and gives the address out again a minute later.
#[test]
fn ipamd_87_fault_3_an_address_that_imds_lacks_is_kept_by_its_sandbox() {
    let mut seen = node();
    for eni in &mut seen.enis {
        eni.addresses.truncate(1);
    }
    let files = [(
        CardIndex(0),
        vec![entry("c1", "a", "10.0.0.5"), entry("c2", "b", "10.0.1.5")],
    )];
    let judged = judge(&files, &seen, CLOCKS);
    let home = |at: usize| match &judged[at].verdict {
        Verdict::AdoptedUnplaced(held) => (held.eni.as_str().to_owned(), held.table()),
        other => panic!("{other:?}"),
    };
    assert_eq!(home(0), ("eni-0".to_owned(), TableId::MAIN));
    assert_eq!(home(1), ("eni-1".to_owned(), TableId(2)), "by its rule");
    let stored = stored(&judged, &seen);
    assert!(matches!(
        &stored["address/10.0.1.5"],
        Some(Record::Address(known)) if matches!(known.doubt, Some(Doubt::Imported { .. }))
    ));
    seen.enis.truncate(1);
    let judged = judge_one(entry("c2", "b", "10.0.1.5"), &seen);
    assert!(matches!(&judged, Verdict::AdoptedUnplaced(held) if held.table() == TableId(2)));
}

fn judge_one(entry: Entry, seen: &Witnesses) -> Verdict {
    judge(&[(CardIndex(0), vec![entry])], seen, CLOCKS)
        .remove(0)
        .verdict
}

#[test]
fn an_address_of_a_prefix_is_on_the_enis_that_has_the_prefix() {
    let mut seen = node();
    let address = Ipv4Addr::new(10, 0, 2, 3);
    seen.routes.insert(address.into(), "eni-ns.p".to_owned());
    let verdict = judge_one(entry("c6", "p", "10.0.2.3"), &seen);
    assert!(matches!(&verdict, Verdict::Adopted(held) if held.eni.as_str() == "eni-1"));
}

/// A second address is one of another network card's, or an error; a second claim is an error. Nobody gets either.
#[test]
fn ipamd_85_of_several_claims_the_kernels_own_holds_and_the_others_are_in_doubt() {
    let mut seen = node();
    seen.routes
        .insert(Ipv4Addr::new(10, 0, 0, 6).into(), "eni-ns.a.1".to_owned());
    let mut second = entry("c1", "a", "10.0.0.6");
    second.interfaces = 2;
    let thief = entry("c9", "z", "10.0.0.5");
    let nameless = entry("c8", "", "10.0.1.5");
    let told = verdicts(
        vec![
            thief,
            nameless,
            entry("c1", "a", "10.0.0.5"),
            second,
            entry("c1", "a", "10.0.0.5"),
            entry("c2", "b", "10.0.1.5"),
        ],
        &seen,
    );
    assert_eq!(
        told,
        [
            "10.0.0.5 of pod ns/z, sandbox c9: quarantined: the Go daemon's checkpoint gives it to pod ns/z, sandbox c9, \
             the kernel routes it to eni-ns.a",
            "10.0.1.5 of sandbox c8: quarantined: the Go daemon's checkpoint gives it to sandbox c8, too, besides sandbox \
             c2",
            "10.0.0.5 of pod ns/a, sandbox c1: adopted, on eni-0",
            "10.0.0.6 of pod ns/a, sandbox c1: quarantined: the Go daemon's checkpoint gives it to pod ns/a, sandbox c1 \
             as another of its addresses",
            "10.0.0.5 of pod ns/a, sandbox c1: not taken over: it stands there twice",
            "10.0.1.5 of pod ns/b, sandbox c2: adopted, on eni-1",
        ]
    );
}

#[test]
fn ipamd_95_an_enis_own_address_and_none_at_all_are_nobodys() {
    let mut six = entry("c1", "a", "10.0.0.5");
    six.ipv4 = None;
    assert_eq!(judge_one(six, &node()), Verdict::Left(Left::NoAddress));
    for own in ["10.0.0.4", "10.0.1.4"] {
        assert_eq!(
            judge_one(entry("c1", "a", own), &node()),
            Verdict::Left(Left::EnisOwn)
        );
    }
}

#[test]
fn what_is_adopted_is_exported_as_it_was() {
    let seen = node();
    let entries = vec![entry("c1", "a", "10.0.0.5"), entry("c2", "b", "10.0.1.5")];
    let judged = judge(&[(CardIndex(0), entries.clone())], &seen, CLOCKS);
    let held: Vec<Allocation> = judged
        .into_iter()
        .filter_map(|judged| match judged.verdict {
            Verdict::Adopted(held) => Some(*held),
            _ => None,
        })
        .collect();
    let later = Clocks {
        boot: CLOCKS.boot.after(Duration::from_hours(1)),
        unix_ns: CLOCKS.unix_ns + 3_600_000_000_000,
    };
    assert_eq!(
        export(&held, later),
        BTreeMap::from([(CardIndex(0), entries.clone())])
    );
    let text = checkpoint::write(&entries);
    assert_eq!(checkpoint::read(text.as_bytes()).unwrap().entries, entries);
}

#[test]
fn tables_lead_back_to_their_enis() {
    for (card, device) in [(0, 1), (0, 15), (1, 0), (1, 1), (3, 12)] {
        let (card, device) = (CardIndex(card), DeviceIndex(device));
        assert_eq!(place_of(TableId::of_eni(card, device)), (card, device));
    }
}

/// A pod with an interface on each card, as the Go daemon files it and as it is read back from our own export.
#[test]
fn a_pods_interfaces_on_other_cards_are_taken_over_as_its_own_and_exported_under_its_main_one() {
    let mut seen = node();
    let mut other = eni("eni-2", 3, &["10.0.3.4", "10.0.3.5"], &[]);
    other.card = CardIndex(1);
    seen.enis.push(other);
    let address = Ipv4Addr::new(10, 0, 3, 5);
    seen.routes.insert(address.into(), "eni-ns.a.1".to_owned());
    seen.links.insert("eni-ns.a.1".to_owned());
    let mut first = entry("c1", "a", "10.0.0.5");
    first.interfaces = 2;
    let second = Entry {
        ipv4: Some(address),
        ..first.clone()
    };
    let files = [(CardIndex(0), vec![first]), (CardIndex(1), vec![second])];
    let judged = judge(&files, &seen, CLOCKS);
    let held: Vec<Allocation> = judged
        .iter()
        .map(|judged| match &judged.verdict {
            Verdict::Adopted(held) => Allocation::clone(held),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((held[0].key.ifname.as_str(), &held[0].main), ("eth0", &None));
    assert_eq!(held[1].key.ifname.as_str(), "mNicIf1");
    assert_eq!(held[1].main.as_ref().map(IfName::as_str), Some("eth0"));
    assert_eq!(
        (held[1].card, held[1].address),
        (CardIndex(1), IpAddr::V4(address))
    );
    assert_eq!(export(&held, CLOCKS), BTreeMap::from(files));
}
