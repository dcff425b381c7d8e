//! What EC2's errors mean to us, and what a human can do about them.
//!
//! Codes: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>.

use crate::ipam::cloud::{CloudFailure, FailureClass};

/// `EC2`'s error code, in the light of the action that got it and the HTTP status.
pub(super) fn classify(action: &str, code: Option<&str>, status: u16) -> FailureClass {
    code.and_then(|code| by_action(action, code).or_else(|| by_code(code)))
        .unwrap_or_else(|| by_status(status))
}

/// Codes too general to mean something without the action.
fn by_action(action: &str, code: &str) -> Option<FailureClass> {
    match (action, code) {
        // "Instance already has an interface attached at device index N", "Some of [addresses] are not assigned to
        // interface", "Network interface is currently in use": our view is behind, or the detach not through.
        (
            "AttachNetworkInterface" | "DeleteNetworkInterface" | "UnassignPrivateIpAddresses",
            "InvalidParameterValue",
        ) => Some(FailureClass::Conflict),
        _ => None,
    }
}

fn by_code(code: &str) -> Option<FailureClass> {
    let class = match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "EC2ThrottledException"
        | "SlowDown"
        | "PriorRequestNotComplete" => FailureClass::Throttled,
        "InsufficientFreeAddressesInSubnet" | "InsufficientCidrBlocks" => FailureClass::SubnetFull,
        "PrivateIpAddressLimitExceeded" => FailureClass::AddressLimit,
        "AttachmentLimitExceeded" => FailureClass::AttachmentLimit,
        "NetworkInterfaceLimitExceeded"
        | "SecurityGroupsPerInterfaceLimitExceeded"
        | "SecurityGroupsPerInstanceLimitExceeded"
        | "ResourceLimitExceeded"
        | "TagLimitExceeded" => FailureClass::AccountLimit,
        "UnauthorizedOperation"
        | "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "Blocked"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "NotAuthorized"
        | "OperationNotPermitted"
        | "OptInRequired"
        | "PendingVerification"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => FailureClass::Denied,
        "ConcurrentModification"
        | "DependencyViolation"
        | "IdempotentParameterMismatch"
        | "IncorrectInstanceState"
        | "IncorrectState"
        | "InvalidState"
        | "Resource.AlreadyAssigned"
        | "Resource.AlreadyAssociated"
        | "ResourceAlreadyAssigned"
        | "TaskInProgress" => FailureClass::Conflict,
        "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" => FailureClass::Server,
        _ if code.starts_with("Invalid") && code.ends_with(".NotFound") => FailureClass::Gone,
        _ if code.ends_with(".InUse") => FailureClass::Conflict,
        _ => return None,
    };
    Some(class)
}

fn by_status(status: u16) -> FailureClass {
    match status {
        401 | 403 => FailureClass::Denied,
        429 => FailureClass::Throttled,
        500..=599 => FailureClass::Server,
        _ => FailureClass::Other,
    }
}

/// What to do about a failure, for the one who reads it; `None` where waiting is all there is.
pub fn next_step(failure: &CloudFailure) -> Option<String> {
    let action = &failure.action;
    Some(match (failure.class, failure.code.as_deref()) {
        (FailureClass::Denied, Some("UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException")) => {
            format!("allow ec2:{action} in the policy of the instance role, on the resources this node uses")
        }
        (FailureClass::Denied, Some("RequestExpired" | "AuthFailure" | "SignatureDoesNotMatch")) => {
            "check the node's clock (chronyc tracking) and its credentials".to_owned()
        }
        (FailureClass::Denied, None) => {
            "give the instance a role (instance profile), or the daemon other AWS credentials, and make sure the \
             instance metadata service answers"
                .to_owned()
        }
        (FailureClass::Denied, Some(_)) => format!("check the credentials and that they may call ec2:{action}"),
        (FailureClass::SubnetFull, Some("InsufficientCidrBlocks")) if failure.action == "AssignIpv6Addresses" => {
            "the subnet has no /80 left: give it an IPv6 network, free prefixes in it, or use another subnet".to_owned()
        }
        (FailureClass::SubnetFull, Some("InsufficientCidrBlocks")) => {
            "the subnet has no contiguous /28 left: reserve a prefix range in it (subnet CIDR reservation) or use \
             another subnet"
                .to_owned()
        }
        (FailureClass::SubnetFull, _) => "free addresses in the subnet or use another one".to_owned(),
        (FailureClass::AccountLimit, _) => {
            format!("raise the account's limit behind {}", failure.code.as_deref().unwrap_or("this error"))
        }
        (FailureClass::NoAnswer, _) => {
            "check the route from this node to the EC2 endpoint: NAT gateway or VPC endpoint, security groups, proxy, \
             DNS, AWS_CA_BUNDLE"
                .to_owned()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conformance: ipamd 4.12.
    #[test]
    fn codes_have_classes() {
        use FailureClass::*;
        for (code, status, class) in [
            ("RequestLimitExceeded", 503, Throttled),
            ("Throttling", 400, Throttled),
            ("InsufficientFreeAddressesInSubnet", 400, SubnetFull),
            ("InsufficientCidrBlocks", 400, SubnetFull),
            ("PrivateIpAddressLimitExceeded", 400, AddressLimit),
            ("AttachmentLimitExceeded", 400, AttachmentLimit),
            ("NetworkInterfaceLimitExceeded", 400, AccountLimit),
            ("UnauthorizedOperation", 403, Denied),
            ("AuthFailure", 401, Denied),
            ("InvalidNetworkInterfaceID.NotFound", 400, Gone),
            ("InvalidAttachmentID.NotFound", 400, Gone),
            ("InvalidSubnetID.NotFound", 400, Gone),
            ("InvalidGroup.NotFound", 400, Gone),
            ("InvalidNetworkInterface.InUse", 400, Conflict),
            ("InvalidIPAddress.InUse", 400, Conflict),
            ("IncorrectState", 400, Conflict),
            ("InternalError", 500, Server),
            ("Unavailable", 503, Server),
            ("NeverHeardOf", 502, Server),
            ("NeverHeardOf", 400, Other),
            ("InvalidParameterValue", 400, Other),
        ] {
            assert_eq!(
                classify("DescribeNetworkInterfaces", Some(code), status),
                class,
                "{code}"
            );
        }
        assert_eq!(
            classify("AttachNetworkInterface", Some("InvalidParameterValue"), 400),
            Conflict
        );
        assert_eq!(classify("CreateNetworkInterface", None, 503), Server);
        assert_eq!(classify("CreateNetworkInterface", None, 429), Throttled);
    }

    #[test]
    fn a_denial_names_the_permission() {
        let failure = CloudFailure {
            class: FailureClass::Denied,
            action: "AttachNetworkInterface".into(),
            code: Some("UnauthorizedOperation".into()),
            message: String::new(),
            request_id: None,
            retry_after: None,
        };
        assert!(
            next_step(&failure)
                .unwrap()
                .contains("ec2:AttachNetworkInterface")
        );
    }
}
