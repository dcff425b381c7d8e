//! EC2's request token buckets, for each action, account and region
//! (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html>).

use std::collections::BTreeMap;

use crate::script::Which;

/// Capacity and tokens a second of an action. Attach and Detach are not listed, so they are in the general class of
/// mutating actions; Describes are filtered and paginated here, which gives them the greater bucket.
const fn published(which: Which) -> (u64, u64) {
    match which {
        Which::Attach | Which::Detach => (50, 5),
        Which::Tag => (100, 10),
        Which::Describe => (100, 20),
        _ => (100, 5),
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    thousandths: u64,
    filled_at: u64,
}

/// The buckets of an account in a region.
#[derive(Debug, Default)]
pub struct Buckets {
    buckets: BTreeMap<Which, Bucket>,
}

impl Buckets {
    /// Takes a token of an action, if there is one.
    pub fn take(&mut self, which: Which, now: u64) -> bool {
        let (capacity, a_second) = published(which);
        let full = capacity * 1000;
        let bucket = self.buckets.entry(which).or_insert(Bucket {
            thousandths: full,
            filled_at: now,
        });
        // One token a second is one thousandth of a token a millisecond.
        let gained = now.saturating_sub(bucket.filled_at).saturating_mul(a_second);
        bucket.thousandths = bucket.thousandths.saturating_add(gained).min(full);
        bucket.filled_at = now;
        let there = bucket.thousandths >= 1000;
        if there {
            bucket.thousandths -= 1000;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let mut buckets = Buckets::default();
        let at_once = (0..200).filter(|_| buckets.take(Which::Create, 0)).count();
        let later = (0..200).filter(|_| buckets.take(Which::Create, 2000)).count();
        assert_eq!((at_once, later), (100, 10));
        assert!(buckets.take(Which::Attach, 0));
    }
}
