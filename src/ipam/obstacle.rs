//! What stands in the way, and until when: back-off for everything that can fail.

use std::time::Duration;

use super::cloud::{CloudFailure, DescribeScope};
use super::ids::{ClientToken, EniId, SubnetId, Tick};
use super::upkeep::Upkeep;

/// What an obstacle stands in the way of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Creating any ENI.
    Create,
    /// Creating an ENI in a subnet.
    CreateIn(SubnetId),
    /// Setting groups or tags of one ENI.
    Upkeep(Upkeep, EniId),
    /// Setting groups or tags at all: EC2 does not permit it.
    Denied(Upkeep),
    /// Asking for the subnets.
    Subnets,
    /// Taking addresses from a subnet.
    Subnet(SubnetId),
    /// Taking blocks of 16 addresses from a subnet.
    Blocks(SubnetId),
    /// Repeating one creation.
    Creation(ClientToken),
    /// Attaching an ENI.
    Attach(EniId),
    /// Setting delete-on-termination.
    Termination(EniId),
    /// Asking for addresses for an ENI.
    Assign(EniId),
    /// Waiting for an ENI's link.
    Link(EniId),
    /// Configuring an ENI's link.
    Configure(EniId),
    /// Publishing an ENI's addresses.
    Publish(EniId),
    /// Giving anything back.
    Shrink,
    /// Giving back an ENI, or something on it.
    Release(EniId),
    /// Looking whether an ENI is detached.
    Detached(EniId),
    /// Deleting an ENI.
    Delete(EniId),
    /// Describing.
    Describe(DescribeScope),
    /// Describing again although nothing new happened, because a doubt stands.
    Doubts,
    /// Asking for the instance type's limits.
    Limits,
    /// Looking for ENIs that others have left, and deleting them.
    Leaks,
    /// Sweeping IMDS.
    Imds,
    /// Reading the kernel.
    Kernel,
    /// Writing the store.
    Store,
}

impl Topic {
    /// Whether it is about this ENI alone.
    pub fn concerns(&self, id: &EniId) -> bool {
        match self {
            Self::Attach(eni)
            | Self::Termination(eni)
            | Self::Assign(eni)
            | Self::Link(eni)
            | Self::Configure(eni)
            | Self::Publish(eni)
            | Self::Upkeep(_, eni)
            | Self::Release(eni)
            | Self::Detached(eni)
            | Self::Delete(eni) => eni == id,
            _ => false,
        }
    }
}

/// Something that failed and is not tried again before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// How often in a row.
    pub attempt: u32,
    /// Not before this.
    pub until: Tick,
    /// What EC2 said, when it was EC2.
    pub failure: Option<CloudFailure>,
}

/// How much of a wait is left to chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jitter {
    /// Up to a quarter more: the others who wait, if any, did not begin together, and the last of them should not wait
    /// twice as long as the first.
    Quarter,
    /// Anything between the first wait and twice what doubling says: many nodes meet the same limit at the same moment,
    /// and only spreading them over the whole wait keeps them from meeting again
    /// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>, "full jitter"). Not from nothing, as
    /// there: a retry at once is what the limit is against.
    Full,
}

/// First and longest wait of a doubling back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The first wait.
    pub first: Duration,
    /// The longest wait; a quarter more with [`Jitter::Quarter`].
    pub longest: Duration,
    /// How much of it is left to chance.
    pub jitter: Jitter,
}

impl Pace {
    /// Waits from `first` to `longest` seconds.
    pub const fn secs(first: u64, longest: u64) -> Self {
        Self {
            first: Duration::from_secs(first),
            longest: Duration::from_secs(longest),
            jitter: Jitter::Quarter,
        }
    }

    /// The same with full jitter.
    #[must_use]
    pub const fn jittered(self) -> Self {
        Self {
            jitter: Jitter::Full,
            ..self
        }
    }

    /// The wait after failure number `attempt` (1 is the first), with `dice` for chance.
    pub fn wait(self, attempt: u32, dice: u64) -> Duration {
        let doubled = |times: u32| {
            let factor = 2_u32.saturating_pow(times.min(20));
            self.first.saturating_mul(factor).min(self.longest)
        };
        let (least, span) = match self.jitter {
            Jitter::Quarter => {
                let base = doubled(attempt.saturating_sub(1));
                (base, base / 4)
            }
            Jitter::Full => (self.first, doubled(attempt).saturating_sub(self.first)),
        };
        let span = u64::try_from(span.as_millis()).unwrap_or(0);
        least.saturating_add(Duration::from_millis(
            dice.checked_rem(span.saturating_add(1)).unwrap_or(0),
        ))
    }
}

/// One step of splitmix64 (Steele, Lea, Flood 2014): spreads a counter over all bits.
pub fn spread(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_jitter_only_adds() {
        let pace = Pace::secs(1, 60);
        assert_eq!(pace.wait(1, 0), Duration::from_secs(1));
        assert_eq!(pace.wait(4, 0), Duration::from_secs(8));
        assert_eq!(pace.wait(u32::MAX, 0), pace.longest);
        for dice in [0, 1, 999_999, u64::MAX] {
            let wait = pace.wait(3, dice);
            assert!(wait >= Duration::from_secs(4) && wait <= Duration::from_secs(5));
        }
    }

    #[test]
    fn full_jitter_reaches_from_the_first_wait_to_all_that_doubling_allows() {
        let pace = Pace::secs(1, 60).jittered();
        assert_eq!(pace.wait(1, 0), Duration::from_secs(1));
        assert_eq!(pace.wait(9, 0), Duration::from_secs(1));
        assert_eq!(pace.wait(9, 59_000), pace.longest);
        let waits: Vec<Duration> = (0..1000).map(|n| pace.wait(3, spread(n))).collect();
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*least < Duration::from_millis(1100), "{least:?}");
        assert!(
            *most > Duration::from_millis(7900) && *most <= Duration::from_secs(8),
            "{most:?}"
        );
    }
}
