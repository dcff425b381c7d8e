//! Ports of the node that lead to pods.

use std::collections::BTreeSet;
use std::time::Duration;

use super::growth::{policy, started};
use super::world::{World, key};
use crate::effect::RefusalKind;
use crate::ids::WaiterId;
use crate::ports::{HostPort, fit};
use crate::records::{Record, decode};

const PATIENCE: Duration = Duration::from_secs(30);

fn ports(texts: &[&str]) -> Vec<HostPort> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn add(world: &mut World, n: u32, name: &str, texts: &[&str]) -> WaiterId {
    world.add_with(key(n), PATIENCE, |request| {
        request.pod.namespace = "default".to_owned();
        request.pod.name = name.to_owned();
        request.ports = ports(texts);
    })
}

fn refused(world: &World, waiter: WaiterId) -> String {
    let refusal = world.refused(waiter).expect("a refusal");
    assert_eq!(refusal.kind, RefusalKind::PortTaken);
    refusal.message.clone()
}

#[test]
fn a_port_that_leads_to_another_pod_is_refused_and_its_owner_named() {
    let mut world = started(1, 8, policy(0));
    let first = add(&mut world, 1, "first", &["tcp:8080:80"]);
    assert!(world.granted(first).is_some());
    for taken in ["tcp:8080:81", "tcp:8080:80:10.0.0.1"] {
        let second = add(&mut world, 2, "second", &["udp:1:1", taken]);
        let message = refused(&world, second);
        assert!(
            message.contains("tcp port 8080") && message.contains("pod default/first"),
            "{message}"
        );
    }
    let other = add(&mut world, 3, "other", &["udp:8080:80", "tcp:8081:80"]);
    assert!(world.granted(other).is_some());
    let one = add(&mut world, 4, "one", &["udp:53:53:10.0.0.1"]);
    let another = add(&mut world, 5, "another", &["udp:53:53:127.0.0.1"]);
    assert!(world.granted(one).is_some() && world.granted(another).is_some());
    // The repeated ADD of a sandbox, and a new sandbox of the same pod whose old one's DEL is late.
    let again = add(&mut world, 1, "first", &["tcp:8080:80"]);
    let anew = add(&mut world, 6, "first", &["tcp:8080:80"]);
    assert!(world.granted(again).is_some() && world.granted(anew).is_some());
}

#[test]
fn a_port_is_free_again_after_a_del_a_gc_and_a_reboot_but_not_after_a_kill() {
    let mut world = started(1, 8, policy(0));
    add(&mut world, 1, "first", &["tcp:8080:80"]);
    world.crash(None, false);
    world.settle();
    let second = add(&mut world, 2, "second", &["tcp:8080:80"]);
    assert!(refused(&world, second).contains("default/first"));
    world.del(1);
    let second = add(&mut world, 2, "second", &["tcp:8080:80"]);
    assert!(world.granted(second).is_some());
    world.gc(&[]);
    let third = add(&mut world, 3, "third", &["tcp:8080:80"]);
    assert!(world.granted(third).is_some());
    world.crash(Some("another-boot"), false);
    world.settle();
    let fourth = add(&mut world, 4, "fourth", &["tcp:8080:80"]);
    assert!(world.granted(fourth).is_some(), "{:?}", world.refused(fourth));
}

/// Both wait for an address; the second is told at once.
#[test]
fn a_port_that_a_waiting_pod_has_asked_for_is_taken() {
    let mut world = started(2, 2, policy(0));
    world.eager = false;
    add(&mut world, 1, "holds", &[]);
    world.settle();
    let first = add(&mut world, 2, "first", &["tcp:8080:80"]);
    let second = add(&mut world, 3, "second", &["tcp:8080:80"]);
    assert!(refused(&world, second).contains("default/first"));
    assert!(world.granted(first).is_none() && world.refused(first).is_none());
    world.eager = true;
    world.settle();
    assert!(world.granted(first).is_some());
}

#[test]
fn ports_are_recorded_and_a_record_without_them_has_none() {
    let mut world = started(1, 8, policy(0));
    let wanted = ["tcp:8080:80", "udp:53:5353:fd00::1"];
    let waiter = add(&mut world, 1, "first", &wanted);
    assert!(world.granted(waiter).is_some());
    let held = world.pool.allocations()[&key(1)].clone();
    assert_eq!(held.ports, ports(&wanted));
    let record = Record::Allocation(Box::new(held.clone()));
    let text = String::from_utf8(record.value()).unwrap();
    assert!(
        text.contains(r#""ports":["tcp:8080:80","udp:53:5353:fd00::1"]"#),
        "{text}"
    );
    let older = text.replace(r#""ports":["tcp:8080:80","udp:53:5353:fd00::1"],"#, "");
    let Ok(Record::Allocation(read)) = decode(&record.key().text(), older.as_bytes()) else {
        panic!("{older}")
    };
    assert!(read.ports.is_empty());
    let released = world.pool.allocations().values().map(|held| held.address);
    assert_eq!(released.collect::<BTreeSet<_>>().len(), 1);
}

#[test]
fn as_many_ports_as_fit_into_a_record_are_taken() {
    let longest = "sctp:65535:65535:ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let many = |count: usize| vec![longest.parse().unwrap(); count];
    assert!(fit(&many(26)) && !fit(&many(27)));
    let usual: Vec<HostPort> = (30_000..30_080)
        .map(|port| format!("udp:{port}:{port}").parse().unwrap())
        .collect();
    assert!(fit(&usual));
}
