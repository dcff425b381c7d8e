//! EC2's token buckets.

use std::collections::BTreeMap;
use std::time::Instant;

/// Size and refill of a bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Calls that may come at once.
    pub burst: f64,
    /// Calls a second in the long run.
    pub refill: f64,
}

impl Bucket {
    /// A bucket of so many calls, refilled by so many a second.
    pub const fn new(burst: f64, refill: f64) -> Self {
        Self { burst, refill }
    }

    /// EC2's default for an action, which every account and region has a bucket of its own for
    /// (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html>). A describe without ids, filters
    /// and pages has a smaller one.
    pub fn published(action: &str, unfiltered: bool) -> Self {
        match action {
            "CreateTags" => Self::new(100.0, 10.0),
            "CreateNetworkInterface"
            | "DeleteNetworkInterface"
            | "AssignPrivateIpAddresses"
            | "UnassignPrivateIpAddresses"
            | "AssignIpv6Addresses"
            | "UnassignIpv6Addresses"
            | "ModifyNetworkInterfaceAttribute" => Self::new(100.0, 5.0),
            "DescribeNetworkInterfaces" | "DescribeSecurityGroups" | "DescribeInstances" if unfiltered => {
                Self::new(50.0, 10.0)
            }
            describe if describe.starts_with("Describe") => Self::new(100.0, 20.0),
            _ => Self::new(50.0, 5.0),
        }
    }
}

/// The fill of all buckets.
#[derive(Debug, Clone, Default)]
pub(super) struct Levels(BTreeMap<String, (f64, Instant)>);

impl Levels {
    /// Takes a token if there is one.
    pub(super) fn take(&mut self, key: &str, bucket: Bucket, now: Instant) -> bool {
        let (level, since) = self.0.entry(key.to_owned()).or_insert((bucket.burst, now));
        let grown = *level + bucket.refill * now.saturating_duration_since(*since).as_secs_f64();
        *since = now;
        *level = grown.min(bucket.burst);
        if *level < 1.0 {
            return false;
        }
        *level -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn burst_then_refill() {
        let mut levels = Levels::default();
        let bucket = Bucket::published("CreateNetworkInterface", false);
        let start = Instant::now();
        let taken = (0..120).filter(|_| levels.take("x", bucket, start)).count();
        assert_eq!(taken, 100);
        let later = start + Duration::from_secs(2);
        assert_eq!((0..50).filter(|_| levels.take("x", bucket, later)).count(), 10);
        assert!(levels.take("y", bucket, start), "another key, another bucket");
    }
}
