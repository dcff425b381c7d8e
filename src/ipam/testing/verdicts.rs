//! Every row of the two tables of [`crate::verdict`]: what no row may say, and that the pool does what each one says.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::conformance::{NOT_OURS, foreign};
use super::growth::{PATIENCE, policy};
use super::world::{Work, World, failure, key};
use crate::cidr::Ipv4Cidr;
use crate::cloud::{Amount, CloudCall, CloudEni, DescribeScope, FailureClass};
use crate::event::Event;
use crate::evidence;
use crate::ids::{EniId, Tick};
use crate::lifecycle::doom;
use crate::memory::Ec2View;
use crate::model::EniState;
use crate::policy::Policy;
use crate::verdict::*;
use crate::witness::{Doubt, Ec2Says, ImdsSnapshot, LocalEvidence, Proof};

mod addresses;
mod enis;

pub(super) fn address_rows() -> impl Iterator<Item = AddressWords> {
    let stores = |ec2, imds, kernel| {
        let row = move |store: &StoreWord| AddressWords {
            ec2,
            imds,
            kernel,
            store: *store,
        };
        StoreWord::ALL.iter().map(row)
    };
    let kernels = move |ec2, imds| {
        KernelWord::ALL
            .iter()
            .flat_map(move |kernel| stores(ec2, imds, *kernel))
    };
    let imds = move |ec2| ImdsWord::ALL.iter().flat_map(move |imds| kernels(ec2, *imds));
    Ec2Word::ALL.iter().flat_map(move |ec2| imds(*ec2))
}

pub(super) fn eni_rows() -> impl Iterator<Item = EniWords> {
    let stores = |ec2, imds, kernel| {
        let row = move |store: &EniWord| EniWords {
            ec2,
            imds,
            kernel,
            store: *store,
        };
        EniWord::ALL.iter().map(row)
    };
    let kernels = move |ec2, imds| {
        LinkWord::ALL
            .iter()
            .flat_map(move |kernel| stores(ec2, imds, *kernel))
    };
    let imds = move |ec2| ImdsWord::ALL.iter().flat_map(move |imds| kernels(ec2, *imds));
    Ec2EniWord::ALL.iter().flat_map(move |ec2| imds(*ec2))
}

const AWAY: [Act; 3] = [Act::Release, Act::Forget, Act::Vacate];

#[test]
fn there_are_324_rows_each() {
    assert_eq!((address_rows().count(), eni_rows().count()), (324, 324));
}

#[test]
fn what_kernel_or_store_says_is_used_is_never_released_nor_forgotten() {
    for words in address_rows() {
        let act = address(words).act;
        if words.kernel == KernelWord::Routed {
            assert!(!AWAY.contains(&act), "{words:?} {act}");
        }
        if words.store == StoreWord::Held {
            assert!(![Act::Release, Act::Forget].contains(&act), "{words:?} {act}");
        }
        // Only a proof may lead there, and only from what was given up before.
        if act == Act::Release {
            assert_eq!(
                (words.ec2, words.kernel, words.store),
                (Ec2Word::Lists, KernelWord::Unrouted, StoreWord::GivenUp)
            );
        }
    }
    for words in eni_rows() {
        let act = eni(words).act;
        if words.kernel != LinkWord::Absent || words.store == EniWord::Carries {
            assert!(!AWAY.contains(&act), "{words:?} {act}");
        }
    }
}

#[test]
fn imds_alone_only_adds_or_asks() {
    let allowed = [Act::Keep, Act::AdoptUnverified, Act::AskEc2];
    for words in address_rows() {
        let unheard = matches!(words.ec2, Ec2Word::Unasked | Ec2Word::Unreachable);
        if unheard {
            assert!(allowed.contains(&address(words).act), "{words:?}");
        }
        // Its omission changes nothing that its silence would not.
        let silent = AddressWords {
            imds: ImdsWord::Silent,
            ..words
        };
        if words.imds == ImdsWord::Omits {
            assert_eq!(address(words), address(silent), "{words:?}");
        }
    }
    for words in eni_rows() {
        let unheard = matches!(words.ec2, Ec2EniWord::Unasked | Ec2EniWord::Unreachable);
        if unheard {
            assert!(allowed.contains(&eni(words).act), "{words:?}");
        }
        let silent = EniWords {
            imds: ImdsWord::Silent,
            ..words
        };
        if words.imds == ImdsWord::Omits {
            assert_eq!(eni(words), eni(silent), "{words:?}");
        }
    }
}

#[test]
fn what_ec2_omits_once_is_never_freed() {
    for words in address_rows().filter(|words| words.ec2 == Ec2Word::Omits) {
        // What was to be given back is away by our own doing.
        let act = address(words).act;
        assert!(
            !AWAY.contains(&act) || words.store == StoreWord::GivenUp,
            "{words:?}"
        );
    }
    for words in eni_rows().filter(|words| words.ec2 == Ec2EniWord::Omits) {
        // Of somebody else's ENI only its place is known, and the kernel confirms that it is free.
        let act = eni(words).act;
        assert!(
            !AWAY.contains(&act) || words.store == EniWord::Foreign,
            "{words:?}"
        );
    }
}

#[test]
fn contradictions_are_quarantined_or_kept_and_told() {
    for words in address_rows() {
        let verdict = address(words);
        let known = !matches!(words.store, StoreWord::Unknown | StoreWord::AskedFor);
        let used = words.kernel == KernelWord::Routed || words.store == StoreWord::Held;
        let told = address_drifts(words).any(Drift::is_alarming);
        let missing = matches!(words.ec2, Ec2Word::Omits | Ec2Word::Insists);
        if known && used && (missing || words.ec2 == Ec2Word::Elsewhere) {
            assert!(verdict.doubt.is_some(), "{words:?} {verdict:?}");
        }
        let stray = words.kernel == KernelWord::Routed && words.store != StoreWord::Held;
        if known && stray {
            assert!(verdict.doubt.is_some(), "{words:?} {verdict:?}");
        }
        let imds_differs = match words.imds {
            ImdsWord::Lists => missing,
            ImdsWord::Omits => words.ec2 == Ec2Word::Lists && known,
            ImdsWord::Silent => false,
        };
        let kernel_differs = words.kernel == KernelWord::Unrouted && words.store == StoreWord::Held;
        if imds_differs || kernel_differs {
            assert!(told, "{words:?}");
        }
        if imds_differs && missing && words.store != StoreWord::GivenUp {
            assert!(!AWAY.contains(&verdict.act), "{words:?} {verdict:?}");
        }
    }
    for words in eni_rows() {
        let missing = matches!(words.ec2, Ec2EniWord::Omits | Ec2EniWord::Insists);
        let ours = matches!(words.store, EniWord::Carries | EniWord::Idle);
        if missing && ours {
            let verdict = eni(words);
            assert!(eni_drifts(words).any(Drift::is_alarming), "{words:?}");
            assert!(verdict.doubt.is_some() || verdict.act == Act::Forget, "{words:?}");
        }
    }
}

/// Adopting gives nobody an address that somebody may be using.
#[test]
fn nothing_is_adopted_without_doubt_while_the_kernel_routes_it() {
    for words in address_rows() {
        let verdict = address(words);
        let adopted = matches!(verdict.act, Act::Adopt | Act::AdoptUnverified);
        if adopted && words.kernel == KernelWord::Routed {
            assert_eq!(verdict.doubt, Some(Why::PodRoute), "{words:?}");
        }
    }
}

/// The table says "release" exactly where the module of proofs makes one.
#[test]
fn an_eni_is_released_exactly_where_there_is_a_proof() {
    for words in eni_rows().filter(|words| words.store == EniWord::GivenUp) {
        let says = match words.ec2 {
            Ec2EniWord::Attached => Ec2Says::Attached,
            Ec2EniWord::Unattached => Ec2Says::Unattached,
            Ec2EniWord::Omits | Ec2EniWord::Insists => Ec2Says::Missing,
            Ec2EniWord::Unasked | Ec2EniWord::Unreachable => Ec2Says::Unasked,
        };
        let local = LocalEvidence {
            link: words.kernel != LinkWord::Absent,
            pod_routes: 0,
            allocations: 0,
        };
        let proof = Proof::unused_eni(&EniId::from("eni-1"), says, local);
        assert_eq!(proof.is_ok(), eni(words).act == Act::Release, "{words:?}");
    }
}

const LAG: Duration = Duration::from_secs(61);

/// Nothing rests out during a test, and nothing is fetched in advance.
fn unhurried() -> Policy {
    Policy {
        cooldown: Duration::from_secs(100_000),
        ..policy(0)
    }
}

fn other_eni() -> CloudEni {
    foreign(2, &[], 0)
}

/// A primary ENI with three addresses, a second ENI, everything settled and long past.
fn quiet() -> World {
    let mut world = World::with_addresses(3, 4, unhurried(), 3);
    let other = other_eni();
    world.links.insert(other.mac);
    world.enis.insert(other.id.clone(), other);
    world.settle();
    world.kernel();
    world.advance(LAG);
    world
}

/// Sends EC2 the question, whatever else is under way, and delivers the answer.
fn describe(world: &mut World, scope: DescribeScope) {
    world.pool.memory.obstacles.clear();
    world.pool.memory.describe.insert(scope);
    world.event(Event::Timer);
    while world.flush() {}
    let asks = |work: &Work| matches!(work, Work::Call(_, CloudCall::DescribeEnis { scope: asked, .. }) if *asked == scope);
    let ask = world.work.iter().position(asks).expect("EC2 is asked");
    world.deliver(ask);
}

fn is_asking_ec2(world: &World) -> bool {
    let asks = |work: &Work| matches!(work, Work::Call(_, CloudCall::DescribeEnis { .. }));
    let waiting = |tail: &crate::effect::Effect| {
        matches!(
            tail,
            crate::effect::Effect::Call {
                request: CloudCall::DescribeEnis { .. },
                ..
            }
        )
    };
    world.work.iter().any(asks)
        || !world.pool.memory.describe.is_empty()
        || world.commits.iter().any(|(_, _, tail)| tail.iter().any(waiting))
}

/// Makes EC2 silent: not asked since the daemon started, or not to be reached.
fn silence(world: &mut World, is_reachable: bool) {
    world.work.clear();
    world.pool.memory.calls.clear();
    world.pool.memory.describe.clear();
    world.pool.memory.started = world.now;
    world.pool.memory.ec2 = if is_reachable {
        Ec2View::Asking
    } else {
        Ec2View::Failed(failure(FailureClass::NoAnswer, "outage"))
    };
}
