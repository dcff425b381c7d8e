//! Design invariant 2 as two tables: what is to become of an address, and of an ENI, for everything that EC2, IMDS, the
//! kernel and the store may say of it.
//!
//! Nothing is looked up or changed here: [`super::evidence`] finds the words, [`super::reconcile`] carries the verdict
//! out, and `docs/reconcile.md` is these tables in another form. The first arm that fits decides.

use serde::Serialize;

/// Makes an enum whose variants can be gone through, each with the words it is shown by.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As it is shown to people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.text())
            }
        }
    };
}

words! {
    /// What EC2's Describe says of an address (or prefix) on an ENI.
    Ec2Word {
        /// It is on this ENI.
        Lists = "lists it",
        /// It is on another ENI of ours than the store says.
        Elsewhere = "lists it elsewhere",
        /// A credible answer lacks it.
        Omits = "omits it",
        /// So did every answer for longer than EC2's lists ever lag.
        Insists = "keeps omitting it",
        /// It has not been asked since there was something to ask, and can be.
        Unasked = "not asked yet",
        /// It cannot be asked, or does not answer.
        Unreachable = "cannot be asked",
    }
}

words! {
    /// What EC2's Describe says of an ENI.
    Ec2EniWord {
        /// It is attached to this instance.
        Attached = "attached here",
        /// It exists and is attached nowhere.
        Unattached = "attached nowhere",
        /// A credible answer lacks it.
        Omits = "omits it",
        /// So did every answer for longer than EC2's lists ever lag.
        Insists = "keeps omitting it",
        /// It has not been asked since there was something to ask, and can be.
        Unasked = "not asked yet",
        /// It cannot be asked, or does not answer.
        Unreachable = "cannot be asked",
    }
}

words! {
    /// What IMDS lists.
    ImdsWord {
        /// It is there.
        Lists = "lists it",
        /// It is not.
        Omits = "omits it",
        /// No sweep is recent enough to say anything.
        Silent = "silent",
    }
}

words! {
    /// What the kernel says of an address.
    KernelWord {
        /// A pod route or a rule for pods of ours names it.
        Routed = "routed",
        /// None does, by a reading that is recent enough.
        Unrouted = "unrouted",
        /// No reading is recent enough.
        Unread = "not read",
    }
}

words! {
    /// What the kernel says of an ENI.
    LinkWord {
        /// A link has its hardware address.
        Present = "link",
        /// None has.
        Absent = "no link",
        /// The kernel has not been read.
        Unread = "not read",
    }
}

words! {
    /// What the store says of an address; of a prefix, the first of these that is true of one of its addresses.
    StoreWord {
        /// A sandbox holds it.
        Held = "held",
        /// It rests.
        Resting = "resting",
        /// It is ours, and nobody has it.
        Free = "free",
        /// It is being given back to EC2.
        GivenUp = "being given up",
        /// EC2 is being asked for addresses on its ENI.
        AskedFor = "being asked for",
        /// Nothing.
        Unknown = "unknown",
    }
}

words! {
    /// What the store says of an ENI.
    EniWord {
        /// Sandboxes live on it.
        Carries = "carries pods",
        /// It is ours, and no sandbox lives on it.
        Idle = "idle",
        /// It is being created, attached or configured.
        Coming = "coming",
        /// It is to be deleted.
        GivenUp = "being given up",
        /// Somebody else's: it takes a place.
        Foreign = "not ours",
        /// Nothing.
        Unknown = "unknown",
    }
}

words! {
    /// What is done.
    Act {
        /// Nothing changes.
        Keep = "keep",
        /// Kept, and in the kernel's map as soon as its ENI stands.
        Publish = "publish",
        /// Taken up on the ENI EC2 names; an ENI as what its tags and type make it.
        Adopt = "adopt",
        /// Taken up on IMDS's word: of use only while EC2 cannot be asked.
        AdoptUnverified = "adopt unverified",
        /// EC2 is asked.
        AskEc2 = "ask EC2",
        /// The kernel is read.
        AskKernel = "ask the kernel",
        /// Its place on the ENI is free again; who has or had it stays known.
        Vacate = "vacate its place",
        /// It may be given back to EC2: a proof can be made.
        Release = "release",
        /// There is nothing left to know of it.
        Forget = "forget",
    }
}

words! {
    /// Why nobody gets it and nobody frees it.
    Why {
        /// The kernel names it for a pod that the store does not know.
        PodRoute = "a pod may be using it",
        /// EC2 does not list it.
        NotInEc2 = "not in EC2",
        /// Its ENI is gone, by EC2 and by the kernel.
        EniLost = "ENI lost",
    }
}

words! {
    /// Two witnesses contradict each other.
    Drift {
        /// IMDS lacks an ENI that EC2 lists.
        ImdsOmitsEni = "imds-omits-eni",
        /// IMDS lacks an address that EC2 lists.
        ImdsOmitsAddress = "imds-omits-address",
        /// IMDS lacks a prefix that EC2 lists.
        ImdsOmitsPrefix = "imds-omits-prefix",
        /// IMDS lists an ENI that EC2 does not.
        ImdsExtraEni = "imds-extra-eni",
        /// IMDS lists an address that EC2 does not.
        ImdsExtraAddress = "imds-extra-address",
        /// IMDS lists a prefix that EC2 does not.
        ImdsExtraPrefix = "imds-extra-prefix",
        /// EC2 lacks an ENI of ours.
        Ec2OmitsEni = "ec2-omits-eni",
        /// EC2 lacks an address of ours.
        Ec2OmitsAddress = "ec2-omits-address",
        /// EC2 lists an ENI that somebody else has attached.
        Ec2ExtraEni = "ec2-extra-eni",
        /// EC2 lists an address that somebody else has assigned.
        Ec2ExtraAddress = "ec2-extra-address",
        /// EC2 lists an address on another ENI.
        Ec2MovedAddress = "ec2-moved-address",
        /// The kernel routes an address to a pod that the store does not know.
        KernelExtraRoute = "kernel-extra-route",
        /// The kernel has no route to an address that a sandbox holds.
        KernelOmitsRoute = "kernel-omits-route",
        /// The kernel has a link of an ENI that EC2 does not list here.
        KernelExtraLink = "kernel-extra-link",
        /// The kernel lacks the link of an ENI that EC2 lists here.
        KernelOmitsLink = "kernel-omits-link",
    }
}

impl Drift {
    /// What others add is welcome, and no reason for an alarm.
    pub const fn is_alarming(self) -> bool {
        !matches!(self, Self::Ec2ExtraEni | Self::Ec2ExtraAddress)
    }
}

/// Everything that is said of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressWords {
    /// By EC2.
    pub ec2: Ec2Word,
    /// By IMDS.
    pub imds: ImdsWord,
    /// By the kernel.
    pub kernel: KernelWord,
    /// By the store.
    pub store: StoreWord,
}

/// Everything that is said of an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EniWords {
    /// By EC2.
    pub ec2: Ec2EniWord,
    /// By IMDS.
    pub imds: ImdsWord,
    /// By the kernel.
    pub kernel: LinkWord,
    /// By the store.
    pub store: EniWord,
}

/// What is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What is done.
    pub act: Act,
    /// Whether it is quarantined from now on, and why; if not, an earlier doubt is lifted.
    pub doubt: Option<Why>,
    /// Why so.
    pub because: &'static str,
}

const fn is(act: Act, because: &'static str) -> Verdict {
    Verdict {
        act,
        doubt: None,
        because,
    }
}

const fn doubted(act: Act, why: Why, because: &'static str) -> Verdict {
    Verdict {
        act,
        doubt: Some(why),
        because,
    }
}

const AGREED: &str = "nothing speaks against what is stored";
const STORE_KEEPS: &str = "a sandbox keeps its address until DEL or GC: no witness takes it away";
const ROUTED: &str =
    "the kernel names it for a pod that nobody has stored: nobody else gets it while it does";
const EC2_ADDS: &str = "EC2's own word puts it into the pool";
const MAY_LAG: &str = "one omission may be lag: it stays where it is, and nobody new gets it";
const CONTRADICTED: &str = "EC2 keeps omitting it, but IMDS or the kernel has it";
const IMDS_ASKS: &str = "IMDS may add knowledge: EC2 is asked for its word";
const IMDS_SERVES: &str = "EC2 cannot be asked: IMDS's word must do, marked as such";
const IMDS_LAGS: &str = "EC2 has been asked since and does not have it";

/// The verdict on an address, or on a prefix.
#[rustfmt::skip]
#[allow(clippy::enum_glob_use, clippy::match_same_arms, reason = "a table is read by its words")]
pub const fn address(words: AddressWords) -> Verdict {
    use {Act::*, Ec2Word::*, ImdsWord as Imds, KernelWord::*, StoreWord::*, Why::*};
    let AddressWords { ec2, imds, kernel, store } = words;
    match (ec2, imds, kernel, store) {
        // EC2 has it where the store has it.
        (Lists, _, _,                 Held)               => is(Publish, STORE_KEEPS),
        (Lists, _, Routed,            Resting | Free)     => doubted(Publish, PodRoute, ROUTED),
        (Lists, _, Unrouted | Unread, Resting | Free)     => is(Publish, AGREED),
        (Lists, _, Routed,            AskedFor | Unknown) => doubted(Adopt, PodRoute, ROUTED),
        (Lists, _, Unrouted | Unread, AskedFor | Unknown) => is(Adopt, EC2_ADDS),
        // Only here may anything go back: EC2 has it, the kernel has been read and names it for nobody, the store agrees.
        (Lists, _, Unrouted, GivenUp) => is(Release, "EC2, kernel and store agree that nobody uses it"),
        (Lists, _, Routed,   GivenUp) => doubted(Publish, PodRoute, ROUTED),
        (Lists, _, Unread,   GivenUp) => is(AskKernel, "the kernel has not been heard, and nothing is freed without it"),
        // EC2 has it on another ENI of ours.
        (Elsewhere, _, _,                 Held)                     => doubted(Keep, NotInEc2, STORE_KEEPS),
        (Elsewhere, _, Routed,            Resting | Free | GivenUp) => doubted(Adopt, PodRoute, ROUTED),
        (Elsewhere, _, Unrouted | Unread, Resting | Free | GivenUp) => is(Adopt, "EC2 says where it is now, and nobody has it"),
        (Elsewhere, _, _,                 AskedFor | Unknown)       => is(Keep, AGREED),
        // EC2 does not have it.
        (Omits, _, _,        Held | Resting | Free) => doubted(Keep, NotInEc2, MAY_LAG),
        (Omits, _, Routed,   GivenUp)               => doubted(Keep, NotInEc2, MAY_LAG),
        (Omits | Insists, _, Unrouted | Unread, GivenUp) => is(Forget, "it was to be given back, and EC2 has it no longer; it rests for as long as lists lag"),
        (Omits | Insists, Imds::Lists, _, AskedFor | Unknown)                => is(Keep, IMDS_LAGS),
        (Omits | Insists, Imds::Omits | Imds::Silent, _, AskedFor | Unknown) => is(Keep, AGREED),
        // EC2 has not had it for long.
        (Insists, Imds::Lists, _, Held | Resting | Free) | (Insists, Imds::Lists, Routed, GivenUp) => doubted(Keep, NotInEc2, CONTRADICTED),
        (Insists, Imds::Omits | Imds::Silent, Routed, Held | Resting | Free | GivenUp)
            => doubted(Keep, NotInEc2, CONTRADICTED),
        (Insists, Imds::Omits | Imds::Silent, Unread, Held | Resting | Free)
            => doubted(AskKernel, NotInEc2, "EC2 keeps omitting it; the kernel has to be heard first"),
        (Insists, Imds::Omits | Imds::Silent, Unrouted, Held | Resting)
            => doubted(Vacate, NotInEc2, "EC2 keeps omitting it and no pod is wired to it: its place can be filled, but who has or had it stays known"),
        (Insists, Imds::Omits | Imds::Silent, Unrouted, Free)
            => is(Forget, "EC2, kernel and store agree that it is gone"),
        // EC2 has not been heard.
        (Unasked,     Imds::Lists, _,                 AskedFor | Unknown) => is(AskEc2, IMDS_ASKS),
        (Unreachable, Imds::Lists, Routed,            AskedFor | Unknown) => doubted(AdoptUnverified, PodRoute, ROUTED),
        (Unreachable, Imds::Lists, Unrouted | Unread, AskedFor | Unknown) => is(AdoptUnverified, IMDS_SERVES),
        (Unasked | Unreachable, Imds::Omits | Imds::Silent, _, AskedFor | Unknown) => is(Keep, AGREED),
        (Unasked | Unreachable, _, _,                 Held)                     => is(Keep, STORE_KEEPS),
        (Unasked | Unreachable, _, Routed,            Resting | Free | GivenUp) => doubted(Keep, PodRoute, ROUTED),
        (Unasked | Unreachable, _, Unrouted | Unread, Resting | Free)           => is(Keep, AGREED),
        (Unasked | Unreachable, _, Unrouted | Unread, GivenUp) => is(Keep, "nothing is freed without EC2's word"),
    }
}

/// The verdict on an ENI. The primary ENI is never asked about: it goes with the instance.
#[rustfmt::skip]
#[allow(clippy::enum_glob_use, clippy::match_same_arms, reason = "a table is read by its words")]
pub const fn eni(words: EniWords) -> Verdict {
    use {Act::*, Ec2EniWord::*, EniWord::*, ImdsWord as Imds, LinkWord::*, Why::*};
    let EniWords { ec2, imds, kernel, store } = words;
    match (ec2, imds, kernel, store) {
        // It is attached here.
        (Attached, _, _, Carries | Idle)   => is(Keep, "attached, whatever IMDS and the kernel show yet; without its link it serves nobody"),
        (Attached, _, _, Coming | GivenUp) => is(Adopt, "EC2 has it attached: whatever was to become of it, it is here"),
        (Attached, _, _, Unknown)          => is(Adopt, EC2_ADDS),
        (_, _, Present | Unread, Foreign)  => is(Keep, "somebody else's: it takes a place and nothing more"),
        (Attached | Unattached | Unasked | Unreachable, _, Absent, Foreign)
                                           => is(Keep, "somebody else's: it takes a place and nothing more"),
        (Omits | Insists, _, Absent, Foreign) => is(Forget, "EC2 and kernel agree that its place is free; nothing of ours was on it"),
        // It is attached nowhere.
        (Unattached, _, _, Carries | Idle) => is(AskEc2, "what was attached is asked about in the list of what is"),
        (Unattached, _, _, Coming)         => is(Keep, "attaching it is next"),
        (Unattached, _, Absent, GivenUp)   => is(Release, "EC2, kernel and store agree that nobody uses it"),
        (Unattached, _, Present | Unread, GivenUp) => is(Keep, "the kernel does not confirm that it is gone"),
        (Unattached, _, _, Unknown)        => is(Adopt, "created for this node and left over, by its tags"),
        // EC2 does not have it.
        (Omits | Insists, _, Present | Unread, Carries | Idle) => doubted(Keep, NotInEc2, "its link contradicts EC2: pods there are left alone"),
        (Omits,   _, Absent, Carries | Idle)                   => doubted(Keep, EniLost, "gone by EC2 and by the kernel: it serves nobody, and is kept until EC2 insists"),
        (Insists, _, Absent, Carries)                          => doubted(Keep, EniLost, STORE_KEEPS),
        (Insists, Imds::Lists, Absent, Idle)                   => doubted(Keep, EniLost, CONTRADICTED),
        (Insists, Imds::Omits | Imds::Silent, Absent, Idle)    => is(Forget, "EC2, kernel and store agree that it is gone"),
        (Omits | Insists, _, _, Coming)                        => is(Keep, "EC2's lists lag behind what it has just been asked for"),
        (Omits,   _, _, GivenUp)                               => is(Keep, MAY_LAG),
        (Insists, _, Present | Unread, GivenUp)                => is(Keep, CONTRADICTED),
        (Insists, _, Absent, GivenUp)                          => is(Forget, "EC2, kernel and store agree that it is gone"),
        (Omits | Insists, Imds::Lists, _, Unknown)             => is(Keep, IMDS_LAGS),
        (Omits | Insists, Imds::Omits | Imds::Silent, _, Unknown) => is(Keep, AGREED),
        // EC2 has not been heard.
        (Unasked,     Imds::Lists, _, Unknown)      => is(AskEc2, IMDS_ASKS),
        (Unreachable, Imds::Lists, _, Unknown)      => is(AdoptUnverified, IMDS_SERVES),
        (Unasked | Unreachable, Imds::Omits | Imds::Silent, _, Unknown) => is(Keep, AGREED),
        (Unasked, _, Absent, Carries | Idle)        => is(AskEc2, "its link is gone: EC2 is asked why"),
        (Unasked, _, Present | Unread, Carries | Idle) | (Unreachable, _, _, Carries | Idle) => is(Keep, AGREED),
        (Unasked | Unreachable, _, _, Coming)       => is(Keep, AGREED),
        (Unasked | Unreachable, _, _, GivenUp)      => is(Keep, "nothing is freed without EC2's word"),
    }
}

/// Which witnesses contradict each other over an address.
pub fn address_drifts(words: AddressWords) -> impl Iterator<Item = Drift> {
    let AddressWords {
        ec2,
        imds,
        kernel,
        store,
    } = words;
    let known = !matches!(store, StoreWord::AskedFor | StoreWord::Unknown);
    let missing = matches!(ec2, Ec2Word::Omits | Ec2Word::Insists);
    let by_ec2 = match ec2 {
        Ec2Word::Omits | Ec2Word::Insists if known && store != StoreWord::GivenUp => {
            Some(Drift::Ec2OmitsAddress)
        }
        Ec2Word::Elsewhere if known => Some(Drift::Ec2MovedAddress),
        Ec2Word::Lists if store == StoreWord::Unknown => Some(Drift::Ec2ExtraAddress),
        _ => None,
    };
    let by_imds = match imds {
        ImdsWord::Omits if known && ec2 == Ec2Word::Lists => Some(Drift::ImdsOmitsAddress),
        ImdsWord::Lists if missing => Some(Drift::ImdsExtraAddress),
        _ => None,
    };
    let by_kernel = match (kernel, store) {
        (KernelWord::Routed, StoreWord::Free | StoreWord::GivenUp) => Some(Drift::KernelExtraRoute),
        (KernelWord::Routed, StoreWord::Unknown) if ec2 != Ec2Word::Unasked => Some(Drift::KernelExtraRoute),
        (KernelWord::Unrouted, StoreWord::Held) => Some(Drift::KernelOmitsRoute),
        _ => None,
    };
    [by_ec2, by_imds, by_kernel].into_iter().flatten()
}

/// Which witnesses contradict each other over an ENI.
pub fn eni_drifts(words: EniWords) -> impl Iterator<Item = Drift> {
    let EniWords {
        ec2,
        imds,
        kernel,
        store,
    } = words;
    let ours = matches!(store, EniWord::Carries | EniWord::Idle);
    let missing = matches!(ec2, Ec2EniWord::Omits | Ec2EniWord::Insists);
    let by_ec2 = match ec2 {
        Ec2EniWord::Omits | Ec2EniWord::Insists if ours => Some(Drift::Ec2OmitsEni),
        Ec2EniWord::Attached if store == EniWord::Unknown => Some(Drift::Ec2ExtraEni),
        _ => None,
    };
    let by_imds = match imds {
        ImdsWord::Omits if ours && ec2 == Ec2EniWord::Attached => Some(Drift::ImdsOmitsEni),
        ImdsWord::Lists if missing && store != EniWord::Coming => Some(Drift::ImdsExtraEni),
        _ => None,
    };
    let elsewhere = missing || ec2 == Ec2EniWord::Unattached;
    let by_kernel = match kernel {
        LinkWord::Absent if ours && ec2 == Ec2EniWord::Attached => Some(Drift::KernelOmitsLink),
        LinkWord::Present if elsewhere && !matches!(store, EniWord::Coming | EniWord::Unknown) => {
            Some(Drift::KernelExtraLink)
        }
        _ => None,
    };
    [by_ec2, by_imds, by_kernel].into_iter().flatten()
}
