//! What the witnesses say of one address, prefix or ENI, read from what the pool remembers of them.

use std::net::{IpAddr, Ipv4Addr};

use super::cidr::Ipv4Cidr;
use super::ids::{EniId, Tick};
use super::memory::Ec2View;
use super::model::{Address, AddressState, EniRole, EniState};
use super::pool::{PlacedAs, Pool};
use super::verdict::{
    AddressWords, Ec2EniWord, Ec2Word, EniWord, EniWords, ImdsWord, KernelWord, LinkWord, StoreWord,
};
use super::witness::{Doubt, ImdsEni, ImdsSnapshot};

/// Everything that is said of a secondary address or prefix on an ENI, EC2's word given.
pub(super) fn of_cidr(pool: &Pool, id: &EniId, cidr: Ipv4Cidr, ec2: Ec2Word, now: Tick) -> AddressWords {
    let is_carried = pool
        .enis()
        .get(id)
        .is_some_and(|eni| eni.cidrs.contains_key(&cidr));
    let words = |address: Ipv4Addr| of_address(pool, address.into(), now);
    let strongest = |(kernel, store): (KernelWord, StoreWord), address| {
        let (its_kernel, its_store) = words(address);
        (kernel.min(its_kernel), store.min(its_store))
    };
    let unknown = (KernelWord::Unread, store_of_strangers(pool, id));
    let read = |address| {
        let (kernel, _) = words(address);
        kernel == KernelWord::Unread
    };
    let (kernel, store) = cidr.addresses().fold(unknown, strongest);
    let placed = pool.enis().get(id).and_then(|eni| eni.cidrs.get(&cidr));
    let is_leaving = placed.is_some_and(|placed| placed.releasing) && store == StoreWord::Free;
    let store = if is_leaving { StoreWord::GivenUp } else { store };
    let is_partly_read = kernel == KernelWord::Unrouted && cidr.addresses().any(read);
    AddressWords {
        ec2,
        imds: imds_of_cidr(pool, id, cidr, is_carried, now),
        kernel: if is_partly_read {
            KernelWord::Unread
        } else {
            kernel
        },
        store,
    }
}

/// Everything that is said of one address of an address or prefix on an ENI: EC2 and IMDS speak of the whole.
pub(super) fn of_member(
    pool: &Pool,
    id: &EniId,
    cidr: Ipv4Cidr,
    address: Ipv4Addr,
    ec2: Ec2Word,
    now: Tick,
) -> AddressWords {
    let is_carried = pool
        .enis()
        .get(id)
        .is_some_and(|eni| eni.cidrs.contains_key(&cidr));
    let (kernel, store) = of_address(pool, address.into(), now);
    AddressWords {
        ec2,
        imds: imds_of_cidr(pool, id, cidr, is_carried, now),
        kernel,
        store,
    }
}

/// The same, of an address that has been looked up already.
pub(super) fn of_placed(
    pool: &Pool,
    address: Ipv4Addr,
    known: &Address,
    placed: Option<PlacedAs<'_>>,
    ec2: Ec2Word,
    now: Tick,
) -> AddressWords {
    let cidr = placed.map_or(Ipv4Cidr::host(address), |(_, cidr, _)| cidr);
    let (kernel, store) = of_known(pool, address.into(), Some(known), now);
    AddressWords {
        ec2,
        imds: imds_of_cidr(pool, &known.eni, cidr, placed.is_some(), now),
        kernel,
        store,
    }
}

/// The kernel's and the store's word on one address.
pub(super) fn of_address(pool: &Pool, address: IpAddr, now: Tick) -> (KernelWord, StoreWord) {
    of_known(pool, address, pool.known(address), now)
}

fn of_known(pool: &Pool, address: IpAddr, known: Option<&Address>, now: Tick) -> (KernelWord, StoreWord) {
    let store = match known.map(|known| known.state(now)) {
        None => known.map_or(StoreWord::Unknown, |_| StoreWord::Free),
        Some(AddressState::Assigned(_)) => StoreWord::Held,
        Some(_) if known.is_some_and(|known| known.rests_until.is_some_and(|until| until >= now)) => {
            StoreWord::Resting
        }
        Some(_) => StoreWord::Free,
    };
    (kernel_of_address(pool, address, known), store)
}

/// Whether EC2 is being asked for what is not known yet; an ENI that is created comes with what was asked for.
fn store_of_strangers(pool: &Pool, id: &EniId) -> StoreWord {
    match pool.enis().get(id) {
        Some(eni) if eni.assigning.is_some() || eni.state == EniState::Created => StoreWord::AskedFor,
        _ => StoreWord::Unknown,
    }
}

/// Whether EC2's last word on an ENI was a list, which denies what is not known there; while EC2 cannot be asked. Where it
/// will not tell for lack of permission, that word is too old to count against IMDS.
pub(super) fn has_denied_strangers(pool: &Pool, id: &EniId) -> bool {
    let is_silent = match &pool.memory.ec2 {
        Ec2View::Failed(failure) => failure.class.is_hard(),
        Ec2View::Asking | Ec2View::Answered => !pool.policy().ask_ec2,
    };
    !is_silent && pool.enis().get(id).is_some_and(|eni| eni.attachment.is_some())
}

/// Routes come with ADDs and go with DELs: a reading says nothing of a pod that came, or went, after it.
fn kernel_of_address(pool: &Pool, address: IpAddr, known: Option<&Address>) -> KernelWord {
    if pool.memory.is_routed(address) {
        return KernelWord::Routed;
    }
    let Some(read) = pool.memory.heard.kernel else {
        return KernelWord::Unread;
    };
    let holder = known.and_then(|known| known.holder.as_ref());
    let came = holder
        .and_then(|key| pool.allocations().get(key))
        .map(|held| held.since);
    let patience = pool.policy().describe_lag;
    if came.is_some_and(|came| came.after(patience) > read) || pool.memory.is_unproven(address) {
        return KernelWord::Unread;
    }
    KernelWord::Unrouted
}

/// The last word of EC2 on an address that is known, however old: only its next answer can insist on anything.
pub(super) fn standing(pool: &Pool, address: Ipv4Addr, now: Tick) -> Ec2Word {
    pool.known(address).map_or(unheard(pool, now), |known| {
        standing_of(pool, known, pool.placed_as(address, known), now)
    })
}

/// The same, of an address that has been looked up already.
pub(super) fn standing_of(pool: &Pool, known: &Address, placed: Option<PlacedAs<'_>>, now: Tick) -> Ec2Word {
    let omitted = placed.is_some_and(|(_, cidr, _)| pool.memory.unlisted.contains_key(&cidr));
    match (&known.doubt, placed) {
        (Some(Doubt::NotInEc2 | Doubt::EniLost), _) => Ec2Word::Omits,
        _ if omitted => Ec2Word::Omits,
        (_, Some((.., placed))) if placed.verified => Ec2Word::Lists,
        _ => unheard(pool, now),
    }
}

/// EC2's word on what it has not been asked about.
pub(super) fn unheard(pool: &Pool, now: Tick) -> Ec2Word {
    if pool.trusts_imds(now) {
        Ec2Word::Unreachable
    } else {
        Ec2Word::Unasked
    }
}

/// A sweep counts for as long as EC2's own lists may lag; what is older is no evidence of anything now.
pub(super) fn sweep(pool: &Pool, now: Tick) -> Option<(&ImdsSnapshot, Tick)> {
    let at = pool.memory.heard.imds?;
    let is_recent = at.after(pool.policy().describe_lag) >= now;
    Some((pool.memory.imds.as_ref().filter(|_| is_recent)?, at))
}

/// A sweep without the primary ENI omits for another reason than that something is gone.
pub(super) fn is_credible(pool: &Pool, snapshot: &ImdsSnapshot) -> bool {
    let primary = &pool.facts().primary_eni;
    snapshot.enis.iter().any(|eni| eni.id == *primary)
}

fn imds_of_cidr(pool: &Pool, id: &EniId, cidr: Ipv4Cidr, is_carried: bool, now: Tick) -> ImdsWord {
    let Some((snapshot, at)) = sweep(pool, now) else {
        return ImdsWord::Silent;
    };
    let Some(seen) = snapshot.enis.iter().find(|eni| eni.id == *id) else {
        // Of the ENI as a whole there is a word of its own.
        return ImdsWord::Silent;
    };
    if seen.cidrs().any(|listed| listed == cidr) {
        return ImdsWord::Lists;
    }
    // IMDS lags behind EC2, too.
    let named = pool.memory.fresh.get(&cidr);
    let may_lag = named.is_some_and(|named| named.after(pool.policy().describe_lag) > at);
    if may_lag || !is_carried || !is_credible(pool, snapshot) {
        return ImdsWord::Silent;
    }
    ImdsWord::Omits
}

/// Everything that is said of an ENI, EC2's word given.
pub(super) fn of_eni(pool: &Pool, id: &EniId, ec2: Ec2EniWord, now: Tick) -> EniWords {
    let known = pool.enis().get(id);
    let carries = || {
        pool.allocations()
            .values()
            .any(|allocation| allocation.eni == *id)
    };
    let store = match known.map(|eni| (eni.role, &eni.state)) {
        None => EniWord::Unknown,
        Some((EniRole::Unmanaged, _)) => EniWord::Foreign,
        Some((_, EniState::Created | EniState::Attaching)) => EniWord::Coming,
        Some((_, EniState::Discarding { .. } | EniState::Detaching)) => EniWord::GivenUp,
        // One that drains is attached, and used as long as sandboxes are on it.
        Some(_) if carries() => EniWord::Carries,
        Some(_) => EniWord::Idle,
    };
    let kernel = match known {
        _ if pool.memory.heard.kernel.is_none() => LinkWord::Unread,
        Some(eni) if pool.memory.links.contains_key(&eni.mac) => LinkWord::Present,
        Some(_) => LinkWord::Absent,
        None => LinkWord::Unread,
    };
    let imds = imds_of_eni(pool, id, now);
    EniWords {
        ec2,
        imds,
        kernel,
        store,
    }
}

fn imds_of_eni(pool: &Pool, id: &EniId, now: Tick) -> ImdsWord {
    let Some((snapshot, at)) = sweep(pool, now) else {
        return ImdsWord::Silent;
    };
    let lists = |seen: &ImdsEni| seen.id == *id;
    if snapshot.enis.iter().any(lists) {
        return ImdsWord::Lists;
    }
    let attached = pool.memory.enis.get(id).and_then(|progress| progress.attached_at);
    let may_lag = attached.is_some_and(|since| since.after(pool.policy().describe_lag) > at);
    if may_lag || !is_credible(pool, snapshot) {
        return ImdsWord::Silent;
    }
    ImdsWord::Omits
}

/// The last word of EC2 on an ENI that is known.
pub(super) fn standing_of_eni(pool: &Pool, id: &EniId) -> Ec2EniWord {
    let progress = pool.memory.enis.get(id);
    if progress.is_some_and(|progress| progress.unlisted_since.is_some()) {
        return Ec2EniWord::Omits;
    }
    match &pool.memory.ec2 {
        Ec2View::Answered => Ec2EniWord::Attached,
        Ec2View::Asking => Ec2EniWord::Unasked,
        Ec2View::Failed(_) => Ec2EniWord::Unreachable,
    }
}

/// Every witness's word on an address or prefix, with its age, for the log.
pub(super) fn tell_cidr(pool: &Pool, words: AddressWords, now: Tick) -> String {
    let AddressWords {
        ec2,
        imds,
        kernel,
        store,
    } = words;
    let [by_ec2, by_imds, by_kernel] = ages(pool, now);
    format!("EC2 {ec2} ({by_ec2}), IMDS {imds} ({by_imds}), kernel: {kernel} ({by_kernel}), store: {store}")
}

/// Every witness's word on an ENI, with its age, for the log.
pub(super) fn tell_eni(pool: &Pool, words: EniWords, now: Tick) -> String {
    let EniWords {
        ec2,
        imds,
        kernel,
        store,
    } = words;
    let [by_ec2, by_imds, by_kernel] = ages(pool, now);
    format!("EC2: {ec2} ({by_ec2}), IMDS {imds} ({by_imds}), kernel: {kernel} ({by_kernel}), store: {store}")
}

fn ages(pool: &Pool, now: Tick) -> [String; 3] {
    let heard = &pool.memory.heard;
    [heard.ec2, heard.imds, heard.kernel].map(|at| match at {
        Some(at) => format!("{} s ago", now.since(at).as_secs()),
        None => "never heard".to_owned(),
    })
}
