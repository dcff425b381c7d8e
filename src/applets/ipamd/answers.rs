//! From what the pool replies to what the socket says.

use crate::cloud::next_step;
use crate::ipam::cloud::CloudFailure;
use crate::ipam::effect::{Grant, Refusal, RefusalKind, ReleasedAddress, Reply};
use crate::ipam::records::RecordKey;
use crate::ipam::status::{CardStatus as PoolCardStatus, Status as PoolStatus};
use crate::net::layout::RuleLayout;
use crate::rpc::types::{
    Add, Allocation, Assigned, Attachment, AwsFailure, CardStatus, Collected, ErrorKind, Guarded, Released,
    Reply as Answer, ServiceError, Status,
};
use crate::store::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// What an allocation's record has besides the words of its request.
const RECORD_FRAME: usize = 512;

/// Why an ADD's words cannot be stored, when they are longer than any runtime's.
pub(super) fn too_long(add: &Add) -> Option<ServiceError> {
    let key = RecordKey::Allocation(add.key()).text().len();
    let words = serde_json::to_vec(add).map_or(usize::MAX, |words| words.len());
    let most = MAX_VALUE_BYTES - RECORD_FRAME;
    let message = if key > MAX_KEY_BYTES {
        format!("network, container id and interface name take {key} bytes, more than {MAX_KEY_BYTES}")
    } else if words > most {
        format!("the request takes {words} bytes, more than the {most} that an allocation may have")
    } else {
        return None;
    };
    Some(ServiceError::new(ErrorKind::BadRequest, message).with_next_step("use shorter names"))
}

/// What is said on the socket for a reply of the pool.
pub(super) fn answer(reply: Reply, layout: RuleLayout) -> Result<Answer, Box<ServiceError>> {
    Ok(match reply {
        Reply::Assigned(grant) => Answer::Assigned(assigned(grant, layout)),
        Reply::Durable => Answer::Durable,
        Reply::Refused(refusal) => return Err(Box::new(refused(refusal))),
        Reply::Released { addresses, known } => Answer::Released(Released {
            addresses: addresses.into_iter().map(|held| released(held, layout)).collect(),
            known,
        }),
        Reply::Settled => Answer::Settled,
        Reply::Collected(held) => Answer::Collected(Collected {
            released: held
                .into_iter()
                .map(|held| Attachment {
                    container_id: held.key.container,
                    ifname: held.key.ifname,
                })
                .collect(),
        }),
    })
}

fn assigned(grant: Grant, layout: RuleLayout) -> Assigned {
    Assigned {
        allocation: Allocation {
            address: grant.address,
            eni_table: grant.table,
            device: grant.device,
            card: grant.card,
            eni: grant.eni,
            eni_primary: Some(grant.eni_primary),
            layout,
            host_veth: String::new(),
        },
        repeated: grant.repeated,
    }
}

fn released(held: ReleasedAddress, layout: RuleLayout) -> crate::rpc::types::ReleasedAddress {
    crate::rpc::types::ReleasedAddress {
        address: held.address,
        eni_table: held.table,
        device: held.device,
        host_veth: held.host_veth,
        layout,
        host_ports: held.ports,
    }
}

fn refused(refusal: Refusal) -> ServiceError {
    let kind = match refusal.kind {
        RefusalKind::TryAgain | RefusalKind::Cancelled => ErrorKind::TryAgain,
        RefusalKind::Exhausted => ErrorKind::Exhausted,
        RefusalKind::SubnetFull => ErrorKind::SubnetFull,
        RefusalKind::Denied => ErrorKind::Denied,
        RefusalKind::Throttled => ErrorKind::Throttled,
        RefusalKind::DiskFull => ErrorKind::DiskFull,
        RefusalKind::Deadline => ErrorKind::Deadline,
        RefusalKind::PortTaken => ErrorKind::PortTaken,
    };
    // What to do about EC2's error depends on its code, which the pool does not look at.
    let by_code = refusal.aws.as_ref().and_then(next_step);
    let next_step = by_code.unwrap_or(refusal.next_step);
    let mut error = ServiceError::new(kind, refusal.message).with_next_step(next_step);
    if let Some(failure) = refusal.aws {
        error = error.with_aws(aws(failure));
    }
    error.limit = refusal.limit.map(|limit| limit.to_string());
    error.retry_after_ms = refusal.retry_after_ms;
    error
}

fn aws(failure: CloudFailure) -> AwsFailure {
    AwsFailure {
        action: failure.action,
        code: failure.code.unwrap_or_default(),
        request_id: failure.request_id.unwrap_or_default(),
    }
}

fn card_status(has: PoolCardStatus) -> CardStatus {
    CardStatus {
        enis: has.enis.into(),
        free: has.free.into(),
        assigned: has.assigned.into(),
        cooling: has.cooling.into(),
        quarantined: has.quarantined.into(),
        coming: has.coming.into(),
    }
}

/// The pool's own account, as the socket tells it.
pub(super) fn status(status: PoolStatus) -> Status {
    Status {
        serving: status.serving,
        existing_affected: false,
        reasons: status.reasons,
        free: status.free,
        assigned: status.assigned.into(),
        cooling: status.cooling.into(),
        quarantined: status.quarantined.into(),
        coming: status.coming.into(),
        waiting: status.waiting.into(),
        enis: status.enis.into(),
        cordoned: status.cordoned,
        drift: status
            .drift
            .into_iter()
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect(),
        cards: status
            .cards
            .into_iter()
            .map(|(card, has)| (card, card_status(has)))
            .collect(),
        guarded: Guarded::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
