//! EC2's error answers: codes, messages and HTTP status as EC2 gives them.
//!
//! Codes: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>. Messages as quoted in public
//! bug reports where such exist, since clients have been seen to take ids out of them.

use std::borrow::Cow;
use std::fmt::Display;

/// An EC2 error answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// EC2's code.
    pub code: Cow<'static, str>,
    /// EC2's message.
    pub message: String,
    /// HTTP status.
    pub status: u16,
}

/// What an operation of the model returns.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// Any code, with the HTTP status EC2 sends it with.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let code = code.into();
        let status = status_of(&code);
        Self {
            code,
            message: message.into(),
            status,
        }
    }

    /// An id of the right form that names nothing.
    pub fn eni_not_found(ids: &str) -> Self {
        Self::new(
            "InvalidNetworkInterfaceID.NotFound",
            format!("The networkInterface ID '{ids}' does not exist"),
        )
    }

    /// No such instance.
    pub fn instance_not_found(id: impl Display) -> Self {
        Self::new(
            "InvalidInstanceID.NotFound",
            format!("The instance ID '{id}' does not exist"),
        )
    }

    /// No such subnet.
    pub fn subnet_not_found(id: impl Display) -> Self {
        Self::new(
            "InvalidSubnetID.NotFound",
            format!("The subnet ID '{id}' does not exist"),
        )
    }

    /// No such VPC.
    pub fn vpc_not_found(id: impl Display) -> Self {
        Self::new(
            "InvalidVpcID.NotFound",
            format!("The vpc ID '{id}' does not exist"),
        )
    }

    /// No such security group, as the network interface calls say it.
    pub fn group_not_found(id: impl Display) -> Self {
        Self::new(
            "InvalidSecurityGroupID.NotFound",
            format!("The securityGroup ID '{id}' does not exist"),
        )
    }

    /// No such attachment.
    pub fn attachment_not_found(id: impl Display) -> Self {
        Self::new(
            "InvalidAttachmentID.NotFound",
            format!("The interface attachment ID '{id}' does not exist"),
        )
    }

    /// An id that can't be one.
    pub fn malformed(code: &'static str, id: impl Display, prefix: &str) -> Self {
        Self::new(code, format!("Invalid id: \"{id}\" (expecting \"{prefix}...\")"))
    }

    /// A parameter with a value that makes no sense.
    pub fn invalid_value(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterValue", message)
    }

    /// Parameters that exclude each other.
    pub fn combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    /// A required parameter that isn't there.
    pub fn missing(parameter: &str) -> Self {
        Self::new(
            "MissingParameter",
            format!("The request must contain the parameter {parameter}"),
        )
    }

    /// The subnet hasn't that many free addresses.
    pub fn subnet_full() -> Self {
        Self::new(
            "InsufficientFreeAddressesInSubnet",
            "The specified subnet does not have enough free addresses to satisfy the request.",
        )
    }

    /// The subnet hasn't that many wholly free aligned blocks.
    pub fn no_cidr_block() -> Self {
        Self::new(
            "InsufficientCidrBlocks",
            "The specified subnet does not have enough free cidr blocks to satisfy the request.",
        )
    }

    /// The ENI would carry more addresses than its instance type allows.
    pub fn too_many_addresses() -> Self {
        Self::new(
            "PrivateIpAddressLimitExceeded",
            "Number of private addresses will exceed limit.",
        )
    }
}

fn status_of(code: &str) -> u16 {
    match code {
        "AuthFailure" | "SignatureDoesNotMatch" => 401,
        "UnauthorizedOperation" | "MissingAuthenticationToken" | "OptInRequired" => 403,
        "DryRunOperation" => 412,
        "InternalError" | "InternalFailure" | "InsufficientInstanceCapacity" => 500,
        "RequestLimitExceeded"
        | "Unavailable"
        | "ServiceUnavailable"
        | "Server.InsufficientInstanceCapacity" => 503,
        _ => 400,
    }
}
