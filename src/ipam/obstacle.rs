//! What stands in the way, and until when: back-off for everything that can fail.

use std::time::Duration;

use super::cloud::{CloudFailure, DescribeScope, FailureClass};
use super::ids::{ClientToken, EniId, SubnetId, Tick};

/// What an obstacle stands in the way of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Creating any ENI.
    Create,
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
    /// Deleting an ENI.
    Delete(EniId),
    /// Describing.
    Describe(DescribeScope),
    /// Describing again although nothing new happened, because a doubt stands.
    Doubts,
    /// Asking for the instance type's limits.
    Limits,
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

/// First and longest wait of a doubling back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Pace {
    /// Waits from `first` to `longest` seconds.
    pub const fn secs(first: u64, longest: u64) -> Self {
        Self {
            first: Duration::from_secs(first),
            longest: Duration::from_secs(longest),
        }
    }

    /// How calls that failed so are spaced.
    pub fn of(class: FailureClass) -> Self {
        match class {
            FailureClass::Throttled | FailureClass::NoAnswer | FailureClass::Server => Self::secs(1, 60),
            // Addresses come back when somebody else gives them up, often soon in a busy subnet; in the long run the
            // Go daemon waits as long.
            FailureClass::SubnetFull => Self::secs(10, 120),
            FailureClass::AttachmentLimit => Self::secs(30, 3600),
            FailureClass::AccountLimit | FailureClass::AddressLimit => Self::secs(60, 3600),
            // Somebody who repairs a policy or gives the instance a role looks at the node next; and credentials are
            // missing, too, while the metadata service is away.
            FailureClass::Denied => Self::secs(10, 300),
            FailureClass::Gone | FailureClass::Conflict | FailureClass::Other => Self::secs(5, 300),
        }
    }

    /// The wait after failure number `attempt` (1 is the first), with `dice` adding up to a quarter.
    pub fn wait(self, attempt: u32, dice: u64) -> Duration {
        let doubled = self
            .first
            .saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1).min(20)));
        let base = doubled.min(self.longest);
        let quarter = u64::try_from(base.as_millis() / 4).unwrap_or(0);
        base.saturating_add(Duration::from_millis(
            dice.checked_rem(quarter.saturating_add(1)).unwrap_or(0),
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
}
