//! A port of the node leads to one pod.

use super::effect::{Refusal, RefusalKind};
use super::event::AddRequest;
use super::ids::{PodRef, SandboxKey};
use super::pool::Pool;
use super::ports::HostPort;

/// Why an ADD cannot have its ports: another pod has one of them, or waits with it. A new sandbox of the same pod takes
/// them over, like the pod's link: the old one's DEL is late.
pub(super) fn refusal(pool: &Pool, request: &AddRequest) -> Option<Refusal> {
    if request.ports.is_empty() {
        return None;
    }
    let held = pool.allocations().values();
    let held = held.map(|held| (&held.key, &held.pod, &held.ports));
    let waiting = pool.memory.waiters.values();
    let waiting = waiting.map(|other| (&other.key, &other.pod, &other.ports));
    let mut others = held
        .chain(waiting)
        .filter(|(key, pod, _)| !is_same(request, key, pod));
    others.find_map(|(key, pod, theirs)| {
        let taken = request.ports.iter().find(|port| overlap(port, theirs))?;
        Some(taken_by(taken, key, pod))
    })
}

fn overlap(port: &HostPort, theirs: &[HostPort]) -> bool {
    theirs.iter().any(|other| other.overlaps(port))
}

fn is_same(request: &AddRequest, key: &SandboxKey, pod: &PodRef) -> bool {
    let of_pod =
        !pod.name.is_empty() && pod.name == request.pod.name && pod.namespace == request.pod.namespace;
    *key == request.key || of_pod
}

fn taken_by(port: &HostPort, key: &SandboxKey, pod: &PodRef) -> Refusal {
    let owner = if pod.name.is_empty() {
        format!("sandbox {key}")
    } else {
        format!("pod {}/{}", pod.namespace, pod.name)
    };
    Refusal {
        kind: RefusalKind::PortTaken,
        message: format!("hostPort: {} of the node leads to {owner}", port.place()),
        next_step: format!(
            "delete {owner}, choose another hostPort, or have the pods placed on different nodes"
        ),
        aws: None,
        limit: None,
        retry_after_ms: None,
    }
}
