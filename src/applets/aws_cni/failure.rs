//! Turns what the daemon or the socket says into what the runtime and its log reader see.

use crate::cni::error::{CniError, Code};
use crate::rpc::client::ClientError;
use crate::rpc::types::{ErrorKind, ServiceError};

/// The start of every refused ADD; alerts are written on it.
pub(super) const NO_ADDRESS: &str = "add cmd: failed to assign an IP address to container";

/// An ADD that got no address.
pub(super) fn of_add(error: &ClientError) -> CniError {
    match error {
        ClientError::Service(error) => of_service(NO_ADDRESS, error),
        ClientError::Deadline(_) => away(NO_ADDRESS, error),
        ClientError::Connect { .. } => away("add cmd: failed to connect to backend server", error),
        ClientError::Frame(_) => CniError::new(
            Code::Internal,
            format!(
                "add cmd: Error received from AddNetwork gRPC call: {error}; next: install plugin and daemon of \
                 the same release"
            ),
        ),
        ClientError::Send(_) | ClientError::Receive(_) | ClientError::Closed => {
            away("add cmd: Error received from AddNetwork gRPC call", error)
        }
    }
}

/// Any other verb that the daemon did not serve.
pub(super) fn of_client(prefix: &str, error: &ClientError) -> CniError {
    match error {
        ClientError::Service(error) => of_service(prefix, error),
        _ => away(prefix, error),
    }
}

/// The daemon's own words, its AWS call, the limit and the advice, behind a prefix people search for.
pub(super) fn of_service(prefix: &str, error: &ServiceError) -> CniError {
    let code = match error.kind {
        kind if kind.can_pass() => Code::TryAgainLater,
        ErrorKind::NotFound => Code::UnknownContainer,
        _ => Code::Internal,
    };
    let mut details = Vec::new();
    if let Some(after) = error.retry_after_ms {
        details.push(format!("next attempt in {:.1} s", seconds(after)));
    }
    if !error.supported.is_empty() {
        details.push(format!("the daemon speaks {}", error.supported.join(", ")));
    }
    CniError::new(code, format!("{prefix}: {}", explain(error))).with_details(details.join("; "))
}

/// One line: what, the AWS call behind it, the limit, and what to do.
pub(super) fn explain(error: &ServiceError) -> String {
    let mut parts = vec![format!("{} ({})", error.message, error.kind.name())];
    if let Some(aws) = &error.aws {
        let request = match aws.request_id.as_str() {
            "" => String::new(),
            id => format!(", request id {id}"),
        };
        parts.push(format!("AWS {}: {}{request}", aws.action, aws.code));
    }
    parts.extend(error.limit.iter().map(|limit| format!("limit: {limit}")));
    if !error.next_step.is_empty() {
        parts.push(format!("next: {}", error.next_step));
    }
    parts.join("; ")
}

/// The daemon may be back in a moment: the runtime should simply retry.
fn away(prefix: &str, error: &ClientError) -> CniError {
    CniError::new(
        Code::TryAgainLater,
        format!("{prefix}: {error}; next: see `systemctl status ipamd` and its journal"),
    )
}

fn seconds(millis: u64) -> f64 {
    std::time::Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::types::AwsFailure;

    /// Conformance: dataplane case 71, with the cause that upstream leaves out.
    #[test]
    fn dataplane_71_ipamd_103_a_refused_add_names_cause_call_limit_and_next_step() {
        let mut error = ServiceError::new(ErrorKind::SubnetFull, "subnet-1a2b has no free address")
            .with_next_step("add a subnet or free addresses in subnet-1a2b")
            .with_aws(AwsFailure {
                action: "AssignPrivateIpAddresses".to_owned(),
                code: "InsufficientFreeAddressesInSubnet".to_owned(),
                request_id: "r-1".to_owned(),
            });
        error.limit = Some("subnet-1a2b: 251 addresses".to_owned());
        let cni = of_add(&ClientError::Service(Box::new(error)));
        assert_eq!(cni.code.number(), 999);
        assert_eq!(
            cni.message,
            "add cmd: failed to assign an IP address to container: subnet-1a2b has no free address (SubnetFull); \
             AWS AssignPrivateIpAddresses: InsufficientFreeAddressesInSubnet, request id r-1; \
             limit: subnet-1a2b: 251 addresses; next: add a subnet or free addresses in subnet-1a2b"
        );
    }

    #[test]
    fn what_can_come_is_code_11_and_what_cannot_is_not() {
        for kind in ErrorKind::ALL {
            let error = of_add(&ClientError::Service(Box::new(ServiceError::new(kind, "why"))));
            let expected = match kind {
                ErrorKind::TryAgain
                | ErrorKind::Throttled
                | ErrorKind::Starting
                | ErrorKind::DiskFull
                | ErrorKind::Deadline => 11,
                ErrorKind::NotFound => 3,
                _ => 999,
            };
            assert_eq!(error.code.number(), expected, "{kind:?}");
            assert!(error.message.starts_with(NO_ADDRESS), "{error}");
        }
        assert_eq!(of_add(&ClientError::Closed).code, Code::TryAgainLater);
        assert_eq!(
            of_add(&ClientError::Deadline(std::time::Duration::ZERO)).code,
            Code::TryAgainLater
        );
    }
}
