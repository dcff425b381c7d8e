//! Every row about an ENI is carried out by the pool.

use super::*;

fn unreachable_eni(words: EniWords) -> Option<&'static str> {
    if words.store == EniWord::Unknown && words.kernel != LinkWord::Unread {
        return Some("a link whose ENI is not known says nothing");
    }
    let named = matches!(words.ec2, Ec2EniWord::Attached | Ec2EniWord::Unattached);
    let spoken_of = named || words.imds == ImdsWord::Lists;
    (words.store == EniWord::Unknown && !spoken_of).then_some("nobody speaks of it")
}

fn secondary(store: EniWord) -> CloudEni {
    let instance = super::super::world::facts().instance.to_string();
    let mine = ("node.k8s.amazonaws.com/instance_id", instance.as_str());
    let tags = if store == EniWord::Foreign {
        [NOT_OURS]
    } else {
        [mine]
    };
    let mut eni = foreign(1, &tags, 3);
    eni.description = "aws-K8S-i-0123456789abcdef0".to_owned();
    eni
}

/// Brings everything but EC2's word about.
fn arrange_eni(words: EniWords) -> (World, CloudEni) {
    let mut world = World::new(3, 4, unhurried());
    world.subnet_free = 0;
    let eni = secondary(words.store);
    let known = words.store != EniWord::Unknown;
    if known {
        world.links.insert(eni.mac);
        world.enis.insert(eni.id.clone(), eni.clone());
    }
    world.settle();
    world.kernel();
    world.settle();
    if words.store == EniWord::Carries {
        let waiter = world.add(1, PATIENCE);
        assert!(world.granted(waiter).is_some());
    }
    world.advance(LAG);
    world.eager = false;
    if words.kernel == LinkWord::Absent {
        world.links.remove(&eni.mac);
        world.pool.memory.links.remove(&eni.mac);
    }
    match words.store {
        EniWord::Coming => world
            .pool
            .edit_eni(&eni.id, |eni| eni.state = EniState::Attaching),
        EniWord::GivenUp => doom(&mut world.pool, &eni.id, "a test"),
        _ => {}
    }
    world
        .pool
        .memory
        .enis
        .entry(eni.id.clone())
        .or_default()
        .attached_at = None;
    if words.kernel == LinkWord::Unread {
        world.pool.memory.heard.kernel = None;
    }
    world.pool.memory.fresh.clear();
    (world, eni)
}

fn sweep_eni(world: &mut World, eni: &CloudEni, said: ImdsWord) {
    if said == ImdsWord::Silent {
        return;
    }
    world.enis.entry(eni.id.clone()).or_insert_with(|| eni.clone());
    let mut snapshot: ImdsSnapshot = world.imds_snapshot();
    if said == ImdsWord::Omits {
        snapshot.enis.retain(|seen| seen.id != eni.id);
    }
    world.event(Event::Imds(snapshot));
}

fn speak_of_eni(world: &mut World, eni: &CloudEni, words: EniWords) {
    let id = &eni.id;
    let scope = match (words.ec2, words.store) {
        (Ec2EniWord::Unattached, _) | (_, EniWord::GivenUp) => DescribeScope::OursUnattached,
        _ => DescribeScope::Attached,
    };
    match words.ec2 {
        Ec2EniWord::Unasked | Ec2EniWord::Unreachable => {
            silence(world, words.ec2 == Ec2EniWord::Unasked);
            if words.ec2 == Ec2EniWord::Unasked {
                world.pool.memory.ec2 = Ec2View::Answered;
            }
            sweep_eni(world, eni, words.imds);
            if words.kernel == LinkWord::Absent && words.ec2 == Ec2EniWord::Unasked {
                world.event(Event::LinkGone { mac: eni.mac });
            }
            return world.event(Event::Timer);
        }
        _ => sweep_eni(world, eni, words.imds),
    }
    world.enis.remove(id);
    match words.ec2 {
        Ec2EniWord::Attached => {
            world.enis.insert(id.clone(), eni.clone());
        }
        Ec2EniWord::Unattached => {
            let left = CloudEni {
                attachment: None,
                ..eni.clone()
            };
            world.enis.insert(id.clone(), left);
        }
        Ec2EniWord::Insists => {
            let long_ago = Tick(world.now.0 - 60_000);
            let progress = world.pool.memory.progress(id);
            progress.unlisted_since = Some(long_ago);
            progress.delete_sent = true;
        }
        _ => {}
    }
    let said = evidence::of_eni(&world.pool, id, words.ec2, world.now);
    assert_eq!(said, words, "the row is not what was brought about");
    let attached = if words.ec2 == Ec2EniWord::Attached {
        DescribeScope::Attached
    } else {
        scope
    };
    while world.flush() {}
    world.work.clear();
    world.pool.memory.calls.clear();
    describe(world, attached);
}

#[test]
fn every_row_about_an_eni_is_carried_out_by_the_pool() {
    let mut driven = 0;
    for words in eni_rows().filter(|words| unreachable_eni(*words).is_none()) {
        let (mut world, cloud) = arrange_eni(words);
        let id = cloud.id.clone();
        let before = world.pool.enis().get(&id).map(|eni| eni.state.clone());
        speak_of_eni(&mut world, &cloud, words);
        while world.flush() {}
        let verdict = eni(words);
        let after = world.pool.enis().get(&id);
        let state = after.map(|eni| eni.state.clone());
        let doubts = || world.pool.addresses().values().filter(|known| known.eni == id);
        match (verdict.act, verdict.doubt) {
            (Act::Keep, None) => assert_eq!(state, before, "{words:?}"),
            (Act::Keep, Some(Why::NotInEc2)) => {
                assert_eq!(state, before, "{words:?}");
                assert!(
                    doubts().all(|known| known.doubt == Some(Doubt::NotInEc2)),
                    "{words:?}"
                );
            }
            (Act::Keep, Some(_)) => {
                assert_eq!(state, Some(EniState::Lost), "{words:?}");
                assert!(
                    doubts().all(|known| known.doubt == Some(Doubt::EniLost)),
                    "{words:?}"
                );
            }
            (Act::Adopt, _) if words.ec2 == Ec2EniWord::Unattached => assert!(after.is_some(), "{words:?}"),
            (Act::Adopt, _) => {
                let here = matches!(state, Some(EniState::Attached | EniState::Ready));
                assert!(here, "{words:?} {state:?}");
            }
            (Act::AdoptUnverified, _) => {
                let placed = after.unwrap().cidrs.values();
                assert!(
                    placed.len() == 3 && placed.clone().all(|placed| !placed.verified),
                    "{words:?}"
                );
            }
            (Act::AskEc2, _) => {
                assert_eq!(state, before, "{words:?}");
                assert!(is_asking_ec2(&world), "{words:?}");
            }
            (Act::Forget, _) => assert_eq!(state, None, "{words:?}"),
            (Act::Release, _) => {}
            other => panic!("{words:?}: no row says {other:?}"),
        }
        let deletes = |work: &Work| matches!(work, Work::Call(_, CloudCall::DeleteEni { .. }));
        let is_deleting = world.work.iter().any(deletes);
        assert_eq!(is_deleting, verdict.act == Act::Release, "{words:?}");
        if words.store == EniWord::Carries {
            assert_eq!(world.pool.allocations()[&key(1)].eni, id, "{words:?}");
        }
        let heard = !matches!(words.ec2, Ec2EniWord::Unasked | Ec2EniWord::Unreachable);
        if heard && eni_drifts(words).next().is_some() {
            assert!(!world.pool.status(world.now).drift.is_empty(), "{words:?}");
        }
        driven += 1;
    }
    assert!(driven > 250, "{driven} rows can come about");
}
