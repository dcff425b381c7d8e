//! Why the commit thread could not write.

use std::sync::Arc;

use super::engine::EngineError;
use super::error::CommitError;
use super::{Condition, OpenError};
use crate::causes::chain;

/// Why an attempt failed; shared by everyone who waited for it.
pub(super) enum Failure {
    DiskFull,
    Engine(Arc<EngineError>),
    Repair(Arc<OpenError>),
}

impl Failure {
    pub(super) fn from_repair(error: OpenError) -> Self {
        if error.is_disk_full() {
            Self::DiskFull
        } else {
            Self::Repair(Arc::new(error))
        }
    }

    pub(super) fn condition(&self) -> Condition {
        match self {
            Self::DiskFull => Condition::DiskFull,
            Self::Engine(error) => Condition::Failing {
                reason: chain(error.as_ref()),
            },
            Self::Repair(error) => Condition::Failing {
                reason: chain(error.as_ref()),
            },
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        if error.is_disk_full() {
            Self::DiskFull
        } else {
            Self::Engine(Arc::new(error))
        }
    }
}

impl From<&Failure> for CommitError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::DiskFull => Self::DiskFull,
            Failure::Engine(source) => Self::Engine {
                source: Arc::clone(source),
            },
            Failure::Repair(source) => Self::Repair {
                source: Arc::clone(source),
            },
        }
    }
}
