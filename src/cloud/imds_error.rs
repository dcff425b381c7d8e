//! Why the instance metadata service did not tell, and what to do about it.

use std::time::Duration;

use crate::ipam::ids::Mac;

/// What went wrong when the instance metadata service was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImdsError {
    /// The configured endpoint is no address.
    #[error("AWS_EC2_METADATA_SERVICE_ENDPOINT={endpoint:?} is not of the form http://host:port")]
    Endpoint {
        /// As configured.
        endpoint: String,
    },
    /// Nobody took the connection.
    #[error(
        "the instance metadata service at {endpoint} does not take connections ({cause}); check that it is enabled \
         for this instance and that no firewall rule of the host drops the address"
    )]
    Connect {
        /// Host and port.
        endpoint: String,
        /// What the kernel said.
        cause: String,
    },
    /// The token did not come. Its packets carry the hop limit as their TTL, so behind a bridge they are lost.
    #[error(
        "the instance metadata service at {endpoint} gave no session token within {waited:?}; check that it is enabled \
         and, when the daemon runs behind a bridge, that the instance's HttpPutResponseHopLimit is at least 2"
    )]
    NoToken {
        /// Host and port.
        endpoint: String,
        /// How long was waited.
        waited: Duration,
    },
    /// An answer did not come in time or broke off.
    #[error("the instance metadata service at {endpoint} did not answer {path}: {cause}")]
    NoAnswer {
        /// Host and port.
        endpoint: String,
        /// What was asked.
        path: String,
        /// What happened instead.
        cause: String,
    },
    /// Switched off for this instance.
    #[error(
        "the instance metadata service refused {path} with HTTP status {status}; enable it: aws ec2 \
         modify-instance-metadata-options --http-endpoint enabled --http-tokens required"
    )]
    Refused {
        /// What was asked.
        path: String,
        /// HTTP status.
        status: u16,
    },
    /// An answer that is neither a value nor a "no such value".
    #[error(
        "the instance metadata service answered {path} with HTTP status {status}; it may recover by itself"
    )]
    Status {
        /// What was asked.
        path: String,
        /// HTTP status.
        status: u16,
    },
    /// Not HTTP, or too much of it.
    #[error("what answers {path} at {endpoint} is not the instance metadata service: {what}")]
    Protocol {
        /// Host and port.
        endpoint: String,
        /// What was asked.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A value that must be there is not.
    #[error("the instance metadata service has no {path}")]
    Missing {
        /// What was asked.
        path: String,
    },
    /// A value that is not what it should be.
    #[error("the instance metadata service has {text:?} as {path}, which is not {expected}")]
    Invalid {
        /// What was asked.
        path: String,
        /// The beginning of what was read.
        text: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// The list of ENIs is empty, which on an instance is always a lie.
    #[error("the instance metadata service lists no network interface; the answer is not believed")]
    NoInterfaces,
    /// The list of ENIs lacks the one the instance was born with.
    #[error("the instance metadata service does not list the primary network interface {mac}")]
    NoPrimary {
        /// Its address.
        mac: Mac,
    },
}
