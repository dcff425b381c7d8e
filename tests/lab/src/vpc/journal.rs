//! Every version of every ENI, so that a reader may be shown the world as it was some time ago.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ids::EniId;
use super::types::Eni;

/// Versions older than this are forgotten once a newer one exists; no reader may lag further behind.
pub const MAX_LAG: Duration = Duration::from_mins(15);

/// One version of an ENI; `None` once it is deleted.
#[derive(Debug, Clone)]
pub struct Version {
    /// When it became true.
    pub at: Instant,
    /// Its place among all versions of all ENIs.
    pub seq: u64,
    /// How many changes the kernel has to follow before anybody may see this.
    pub readdressed: u64,
    /// What was true.
    pub eni: Option<Arc<Eni>>,
}

/// All ENIs as somebody sees them.
pub type View = BTreeMap<EniId, Arc<Eni>>;

/// The versions of all ENIs.
#[derive(Debug, Default)]
pub struct Journal {
    enis: BTreeMap<EniId, Vec<Version>>,
    seq: u64,
}

impl Journal {
    /// Records what is true from `at` on.
    pub fn record(&mut self, id: &EniId, eni: Option<Arc<Eni>>, at: Instant, readdressed: u64) {
        self.seq += 1;
        let seq = self.seq;
        let versions = self.enis.entry(id.clone()).or_default();
        versions.push(Version {
            at,
            seq,
            readdressed,
            eni,
        });
        let outdated = |version: &Version| at.saturating_duration_since(version.at) > MAX_LAG;
        let superseded = versions.iter().skip(1).take_while(|next| outdated(next)).count();
        versions.drain(..superseded);
    }

    /// The view of a reader to whom `visible` says which versions have reached it.
    pub fn view(&self, visible: impl Fn(&Version) -> bool) -> View {
        self.enis
            .iter()
            .filter_map(|(id, versions)| {
                let latest = versions.iter().rev().find(|version| visible(version))?;
                Some((id.clone(), latest.eni.clone()?))
            })
            .collect()
    }
}
