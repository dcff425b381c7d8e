//! Where witnesses contradict each other over a /80 or an address of it: counted and told as for IPv4. EC2 and IMDS speak
//! of the /80 as a whole, the kernel and the store of each address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use super::word::{held, known, lists};
use crate::cidr6::Ipv6Cidr;
use crate::drift::Subject;
use crate::evidence;
use crate::ids::{EniId, Tick};
use crate::memory::Ec2View;
use crate::outbox::Outbox;
use crate::pool::Pool;
use crate::reconcile::{self, Contradiction};
use crate::verdict::{self, AddressWords, Drift, Ec2Word, ImdsWord, KernelWord, StoreWord};

/// Counts what is contradictory about an address that is known.
pub(super) fn of_address(
    pool: &mut Pool,
    address: Ipv6Addr,
    words: AddressWords,
    now: Tick,
    out: &mut Outbox,
) {
    let Some(on) = pool.known(address).map(|known| known.eni.clone()) else {
        return;
    };
    let own = AddressWords {
        ec2: match pool.placed(address) {
            Some(_) => Ec2Word::Lists,
            None => words.ec2,
        },
        ..words
    };
    let contradiction = Contradiction {
        on,
        subject: Subject::Address(address),
        is_quarantined: true,
        words,
    };
    reconcile::note(pool, &contradiction, verdict::address_drifts(own), now, out);
}

/// The kernel routes addresses to pods that are of no /80 here, as far as EC2 has told.
pub(super) fn strays(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.policy().is_six() && pool.memory.ec2 == Ec2View::Answered {
        let is_stray = |address: &Ipv6Addr| !pool.knows(*address);
        let strays: Vec<Ipv6Addr> = routed(pool).filter(is_stray).collect();
        for address in strays {
            let words = AddressWords {
                ec2: Ec2Word::Omits,
                imds: ImdsWord::Silent,
                kernel: KernelWord::Routed,
                store: StoreWord::Unknown,
            };
            let contradiction = Contradiction {
                on: pool.facts().primary_eni.clone(),
                subject: Subject::Address(address),
                is_quarantined: false,
                words,
            };
            reconcile::note(pool, &contradiction, verdict::address_drifts(words), now, out);
        }
    }
    forget_what_is_gone(pool, now);
}

pub(super) fn routed(pool: &Pool) -> impl Iterator<Item = Ipv6Addr> {
    pool.memory.pod_routes.keys().filter_map(|address| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    })
}

/// Counts what is contradictory about each ENI's /80.
pub(crate) fn of_blocks(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let blocks = pool.enis().iter().filter_map(|(id, eni)| {
        let block = eni.block.as_ref()?;
        Some((id.clone(), block.prefix, block.verified))
    });
    for (on, prefix, is_verified) in blocks.collect::<Vec<_>>() {
        let ec2 = if pool.memory.words.is_unlisted(&on) {
            Ec2Word::Omits
        } else if is_verified {
            Ec2Word::Lists
        } else {
            evidence::unheard(pool, now)
        };
        let words = words_on(pool, &on, prefix, ec2, now);
        let of_whole = verdict::address_drifts(words).filter_map(|kind| match kind {
            Drift::ImdsOmitsAddress => Some(Drift::ImdsOmitsPrefix),
            Drift::ImdsExtraAddress => Some(Drift::ImdsExtraPrefix),
            Drift::KernelExtraRoute | Drift::KernelOmitsRoute => None,
            other => Some(other),
        });
        let contradiction = Contradiction {
            on,
            subject: Subject::Block(prefix),
            is_quarantined: true,
            words,
        };
        reconcile::note(pool, &contradiction, of_whole, now, out);
    }
    forget_what_is_gone(pool, now);
}

/// Every witness's word on a /80: the kernel's and the store's strongest on any address of it.
fn words_on(pool: &Pool, id: &EniId, prefix: Ipv6Cidr, ec2: Ec2Word, now: Tick) -> AddressWords {
    let of = |address: Ipv6Addr| evidence::of_address(pool, address.into(), now);
    let kernel = known(pool, prefix).into_iter().map(|address| of(address).0);
    let store = if held(pool, prefix) > 0 {
        StoreWord::Held
    } else {
        StoreWord::Free
    };
    AddressWords {
        ec2,
        imds: imds_on(pool, id, prefix, now),
        kernel: kernel.min().unwrap_or(KernelWord::Unread),
        store,
    }
}

fn imds_on(pool: &Pool, id: &EniId, prefix: Ipv6Cidr, now: Tick) -> ImdsWord {
    let Some((snapshot, at)) = evidence::sweep(pool, now) else {
        return ImdsWord::Silent;
    };
    if lists(snapshot, id, prefix) {
        return ImdsWord::Lists;
    }
    let lists_eni = snapshot.enis.iter().any(|eni| eni.id == *id);
    let may_lag = pool
        .memory
        .words
        .named(id)
        .is_some_and(|named| named.after(pool.policy().describe_lag) > at);
    if lists_eni && !may_lag && evidence::is_credible(pool, snapshot) {
        ImdsWord::Omits
    } else {
        ImdsWord::Silent
    }
}

/// Of a /80 that no ENI has, and an address that neither store nor kernel names, nobody says anything any more.
fn forget_what_is_gone(pool: &mut Pool, now: Tick) {
    let is_gone = |subject: &Subject| match subject {
        Subject::Eni(_) | Subject::Cidr(_) => false,
        Subject::Block(prefix) => {
            let mut blocks = pool.enis().values().filter_map(|eni| eni.block.as_ref());
            !blocks.any(|block| block.prefix == *prefix)
        }
        Subject::Address(address) => !pool.knows(*address) && !pool.memory.is_routed(*address),
    };
    let gone: BTreeSet<Subject> = pool.memory.drifts.subjects().filter(is_gone).collect();
    for subject in gone {
        pool.memory.drifts.note(&subject, std::iter::empty(), now);
    }
}
