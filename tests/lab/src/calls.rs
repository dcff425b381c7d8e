//! The log of all calls to EC2 and IMDS, for assertions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::vpc::InstanceId;

/// Which of the two servers was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// The EC2 API.
    Ec2,
    /// The instance metadata service.
    Imds,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded and was answered.
    Ok,
    /// It was refused and answered; for EC2 the code, for IMDS the HTTP status.
    Error(String),
    /// The connection was closed without an answer; `happened` tells whether the effect took place.
    Lost {
        /// Whether the effect took place.
        happened: bool,
    },
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number, counted over both services.
    pub seq: u64,
    /// Which server.
    pub service: Service,
    /// When it arrived.
    pub at: Instant,
    /// How long it took until the answer was ready to be sent.
    pub took: Duration,
    /// Where it came from.
    pub source: IpAddr,
    /// The node it came from, where that is known.
    pub instance: Option<InstanceId>,
    /// The EC2 action, or the path below `/latest/` of an IMDS request; its method is a parameter.
    pub action: String,
    /// Parameters without credentials.
    pub params: BTreeMap<String, String>,
    /// How it ended.
    pub outcome: Outcome,
    /// The request id it was answered with; empty for IMDS.
    pub request_id: String,
}

impl Call {
    /// A parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    /// Whether it was answered with success.
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }
}

#[derive(Debug, Default)]
struct Log {
    calls: Vec<Call>,
    seq: u64,
}

/// The log; clones share it.
#[derive(Debug, Clone, Default)]
pub struct CallLog(Arc<Mutex<Log>>);

impl CallLog {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a call that just arrived.
    pub(crate) fn next_seq(&self) -> u64 {
        let mut log = self.log();
        log.seq += 1;
        log.seq
    }

    pub(crate) fn record(&self, call: Call) {
        self.log().calls.push(call);
    }

    /// A point to which [`Self::since`] looks back.
    pub fn mark(&self) -> u64 {
        self.log().seq
    }

    /// All finished calls that arrived after the mark, in the order they ended.
    pub fn since(&self, mark: u64) -> Vec<Call> {
        self.select(|call| call.seq > mark)
    }

    /// All finished calls, in the order they ended.
    pub fn all(&self) -> Vec<Call> {
        self.select(|_| true)
    }

    /// All calls of an EC2 action.
    pub fn of(&self, action: &str) -> Vec<Call> {
        self.select(|call| call.service == Service::Ec2 && call.action == action)
    }

    /// All calls that satisfy a condition.
    pub fn select(&self, condition: impl Fn(&Call) -> bool) -> Vec<Call> {
        self.log()
            .calls
            .iter()
            .filter(|call| condition(call))
            .cloned()
            .collect()
    }

    /// How many finished calls of an EC2 action there were.
    pub fn count(&self, action: &str) -> usize {
        self.of(action).len()
    }

    /// Calls by action or path since the mark.
    pub fn counters(&self, service: Service, mark: u64) -> BTreeMap<String, usize> {
        let mut counters = BTreeMap::new();
        for call in &self.log().calls {
            if call.service == service && call.seq > mark {
                *counters.entry(call.action.clone()).or_insert(0) += 1;
            }
        }
        counters
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.log().calls.clear();
    }
}
