//! The kernel's answers, one by one and all together.

use nix::libc::{IFLA_IFNAME, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_NEWRULE, RTNLGRP_LINK};
use proptest::prelude::*;

use super::super::testing::in_fresh_netns;
use super::*;

fn link_named(name: &str) -> Body {
    let mut body = Body::new(&[0; 16]);
    body.str(IFLA_IFNAME, name);
    body
}

#[test]
fn each_message_of_a_batch_gets_its_own_outcome() {
    in_fresh_netns(|| {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut batch = Batch::new();
        batch
            .push(RTM_DELLINK, NlmF::empty(), "delete link a", &link_named("a"))
            .push(RTM_NEWLINK, NlmF::empty(), "set link lo", &link_named("lo"))
            .push(RTM_DELLINK, NlmF::empty(), "delete link b", &link_named("b"))
            .push(RTM_NEWLINK, NlmF::empty(), "set link lo", &link_named("lo"));
        let outcomes = socket.run(&batch).unwrap();
        let errnos: Vec<_> = outcomes
            .iter()
            .map(|o| o.as_ref().err().map(|e| e.errno))
            .collect();
        assert_eq!(errnos, [Some(Errno::ENODEV), None, Some(Errno::ENODEV), None]);
        assert_eq!(
            outcomes[2].as_ref().unwrap_err().to_string(),
            "delete link b: no such device"
        );
        assert_eq!(socket.run_all(&batch).unwrap_err().op, "delete link a");
        // The socket stays in step after errors.
        assert!(
            socket
                .get(RTM_GETLINK, "get lo", &link_named("lo"))
                .unwrap()
                .is_some()
        );
    });
}

#[test]
fn a_failing_last_message_ends_the_batch_too() {
    in_fresh_netns(|| {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut batch = Batch::new();
        batch.push(RTM_DELLINK, NlmF::empty(), "delete link a", &link_named("a"));
        assert!(socket.run(&batch).unwrap()[0].is_err());
        assert!(socket.run(&Batch::new()).unwrap().is_empty());
    });
}

#[test]
fn the_kernels_own_sentence_is_kept() {
    in_fresh_netns(|| {
        let mut socket = Socket::open(Family::Route).unwrap();
        // A rule for an address family that has no rules.
        let mut batch = Batch::new();
        batch.push(
            RTM_NEWRULE,
            NlmF::CREATE,
            "add rule",
            &Body::new(&[77, 32, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        );
        let error = socket.run_all(&batch).unwrap_err();
        assert!(error.ext_ack.is_some(), "{error:?}");
    });
}

#[test]
fn dumps_and_subscriptions() {
    in_fresh_netns(|| {
        let mut watch = Socket::subscribe(Family::Route, &[RTNLGRP_LINK]).unwrap();
        let mut socket = Socket::open(Family::Route).unwrap();
        let links = socket
            .dump(RTM_GETLINK, "list links", &Body::new(&[0; 16]))
            .unwrap();
        assert!(!links.is_empty());
        assert!(links.iter().all(|link| link.kind == RTM_NEWLINK));
        assert!(watch.drain().unwrap().is_empty());
        let mut up = [0; 16];
        up[4] = 1; // lo
        up[8] = 1; // IFF_UP
        up[12] = 1;
        let mut batch = Batch::new();
        batch.push(RTM_NEWLINK, NlmF::empty(), "set lo up", &Body::new(&up));
        socket.run_all(&batch).unwrap();
        assert!(!watch.drain().unwrap().is_empty());
    });
}

#[test]
fn too_long_a_message_is_refused_before_the_send() {
    in_fresh_netns(|| {
        let mut body = Body::new(&[0; 16]);
        body.bytes(1, &vec![0; 70_000]);
        let mut batch = Batch::new();
        batch.push(RTM_NEWLINK, NlmF::empty(), "add a monster", &body);
        let error = Socket::open(Family::Route).unwrap().run(&batch).unwrap_err();
        assert_eq!(
            (error.errno, error.op.as_str()),
            (Errno::EMSGSIZE, "add a monster")
        );
    });
}

#[test]
fn a_batch_larger_than_the_default_send_buffer_travels_whole() {
    if !crate::testing::is_real_root() {
        println!("SKIPPED: only the machine's root may raise a send buffer beyond wmem_max");
        return;
    }
    in_fresh_netns(|| {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut batch = Batch::new();
        for _ in 0..6_000 {
            batch.push(RTM_NEWLINK, NlmF::empty(), "set link lo", &link_named("lo"));
        }
        assert!(batch.byte_len() > 212_992);
        assert_eq!(socket.run(&batch).unwrap().len(), 6_000);
    });
}

proptest! {
    #[test]
    fn hostile_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        if let Some((message, _)) = Received::split(&bytes) {
            let _seen = (message.verdict("x"), message.to_reply());
        }
    }
}
