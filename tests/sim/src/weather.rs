//! What goes wrong at present, and until when.

use std::collections::BTreeMap;

use aws_cni_ipam::cloud::FailureClass;

use crate::dice::Dice;
use crate::script::{DiskTrouble, How, Lie, Trouble, Which};

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// What EC2 makes of it.
    Fair,
    /// It is refused.
    Refused(FailureClass),
    /// It never arrives.
    LostBefore,
    /// Its answer never arrives.
    LostAfter,
    /// It takes effect late.
    Slow,
}

impl From<How> for Fate {
    fn from(how: How) -> Self {
        Self::Refused(match how {
            How::Throttled => FailureClass::Throttled,
            How::SubnetFull => FailureClass::SubnetFull,
            How::AddressLimit => FailureClass::AddressLimit,
            How::AttachmentLimit => FailureClass::AttachmentLimit,
            How::AccountLimit => FailureClass::AccountLimit,
            How::Denied => FailureClass::Denied,
            How::Gone => FailureClass::Gone,
            How::Conflict => FailureClass::Conflict,
            How::Server => FailureClass::Server,
            How::Other => FailureClass::Other,
            How::LostBefore => return Self::LostBefore,
            How::LostAfter => return Self::LostAfter,
            How::Slow => return Self::Slow,
        })
    }
}

/// Everything that goes wrong at present.
#[derive(Debug, Default)]
pub struct Weather {
    next: Vec<(Which, How, u32)>,
    outages: Vec<(Which, How, u64)>,
    lag: (u64, u64),
    describe: Vec<(Lie, u64)>,
    imds: Vec<(Lie, u64)>,
    kernel: BTreeMap<Trouble, u64>,
    disk: BTreeMap<DiskTrouble, u64>,
    /// When the last of it will be over.
    pub clears_at: u64,
    /// Until when Describe has been lying at least.
    pub describe_lied_at: u64,
    /// Until when EC2's own word may be wrong or not be had.
    pub ec2_doubtful_until: u64,
}

impl Weather {
    fn until(&mut self, until: u64) -> u64 {
        self.clears_at = self.clears_at.max(until);
        until
    }

    /// The next calls of a kind.
    pub fn next_calls(&mut self, which: Which, how: How, times: u32, now: u64) {
        self.ec2_doubtful_until = self.ec2_doubtful_until.max(now + 300_000 * u64::from(times));
        self.next.push((which, how, times));
    }

    /// All calls of a kind.
    pub fn outage(&mut self, which: Which, how: How, until: u64) {
        let until = self.until(until);
        self.ec2_doubtful_until = self.ec2_doubtful_until.max(until);
        self.outages.push((which, how, until));
    }

    /// Describe is late.
    pub fn late(&mut self, by: u64, until: u64) {
        self.ec2_doubtful_until = self.ec2_doubtful_until.max(until);
        self.lag = (by, self.until(until));
    }

    /// Describe lies.
    pub fn describe(&mut self, lie: Lie, until: u64) {
        let until = self.until(until);
        self.describe_lied_at = self.describe_lied_at.max(until);
        self.ec2_doubtful_until = self.ec2_doubtful_until.max(until);
        self.describe.push((lie, until));
    }

    /// IMDS lies.
    pub fn imds(&mut self, lie: Lie, until: u64) {
        let until = self.until(until);
        self.imds.push((lie, until));
    }

    /// The kernel disobeys.
    pub fn kernel(&mut self, trouble: Trouble, until: u64) {
        let until = self.until(until);
        self.kernel.insert(trouble, until);
    }

    /// The disk disobeys.
    pub fn disk(&mut self, trouble: DiskTrouble, until: u64) {
        let until = self.until(until);
        self.disk.insert(trouble, until);
    }

    /// Something else is wrong until then.
    pub fn trouble_until(&mut self, until: u64) {
        self.until(until);
    }

    /// What becomes of a call made now.
    pub fn fate(&mut self, which: Which, now: u64) -> Fate {
        let meant = |about: Which| about == Which::Any || about == which;
        self.outages.retain(|(_, _, until)| *until > now);
        if let Some((_, how, _)) = self.outages.iter().find(|(about, ..)| meant(*about)) {
            return (*how).into();
        }
        let Some(found) = self.next.iter_mut().find(|(about, ..)| meant(*about)) else {
            return Fate::Fair;
        };
        let how = found.1;
        found.2 = found.2.saturating_sub(1);
        self.next.retain(|(_, _, times)| *times > 0);
        how.into()
    }

    /// How late Describe is for one thing.
    pub fn lateness(&self, now: u64, dice: &mut Dice) -> u64 {
        let (by, until) = self.lag;
        if until > now {
            return dice.between(by / 2, by);
        }
        match dice.below(100) {
            0..=4 => dice.between(2000, 10_000),
            5..=19 => dice.between(0, 2000),
            _ => 0,
        }
    }

    /// How Describe lies now.
    pub fn describe_lie(&self, now: u64) -> Option<Lie> {
        self.describe
            .iter()
            .find(|(_, until)| *until > now)
            .map(|(lie, _)| *lie)
    }

    /// How IMDS lies now.
    pub fn imds_lie(&self, now: u64) -> Option<Lie> {
        self.imds
            .iter()
            .find(|(_, until)| *until > now)
            .map(|(lie, _)| *lie)
    }

    /// Until when the kernel disobeys so, if it does now.
    pub fn kernel_until(&self, trouble: Trouble, now: u64) -> Option<u64> {
        self.kernel.get(&trouble).copied().filter(|until| *until > now)
    }

    /// Whether the disk disobeys so now.
    pub fn has_disk(&self, trouble: DiskTrouble, now: u64) -> bool {
        self.disk.get(&trouble).is_some_and(|until| *until > now)
    }

    /// Nothing goes wrong any more.
    pub fn clear(&mut self, now: u64) {
        *self = Self {
            clears_at: self.clears_at.min(now),
            ec2_doubtful_until: self.ec2_doubtful_until.min(now),
            ..Self::default()
        };
    }
}
