//! What a node of IPv6 pods says of its addresses: a /80 is never nearly empty, so there is no number to wait for.

use super::cursor;
use crate::ids::Tick;
use crate::model::Eni;
use crate::plan::Report;
use crate::pool::Pool;

/// What there is.
pub(crate) fn now(pool: &Pool, report: &Report, now: Tick) -> String {
    let blocks: Vec<String> = pool.enis().values().filter_map(of_eni).collect();
    let blocks = if blocks.is_empty() {
        "No ENI has a /80 for pods".to_owned()
    } else {
        blocks.join("; ")
    };
    format!(
        "{blocks}; {} with pods, {} at rest and {} in quarantine; {} left that no pod has had.",
        report.assigned,
        report.cooling,
        report.quarantined,
        cursor::count_free(pool, now),
    )
}

fn of_eni(eni: &Eni) -> Option<String> {
    let block = eni.block.as_ref()?;
    let by = if block.verified { "EC2" } else { "IMDS alone" };
    let excluded = if eni.excluded {
        ", where no new pod goes"
    } else {
        ""
    };
    Some(format!("{} has {}, by {by}{excluded}", eni.id, block.prefix))
}

/// What is wanted.
pub(crate) fn wanted(report: &Report) -> String {
    let is_enough = if report.short == 0 {
        "it is there or on its way"
    } else {
        "it is missing"
    };
    format!("ENABLE_IPv6 asks for one /80 and holds nothing more ready: {is_enough}.")
}
