//! Asking again while the daemon restarts.
//!
//! Where systemd holds the socket a request waits in it until the next daemon accepts; only what the last one had
//! accepted and not answered is lost with it, and is asked again: every request is idempotent by its sandbox. Without
//! socket activation a restart shows as a refused connection, which is waited out for a moment.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::client::ClientError;

/// A request that is lost this often with its connection may itself be what ends the daemon.
const MOST_LOST: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long one request is asked again.
#[derive(Debug)]
pub struct Retry {
    patience: Duration,
    failed: bool,
    until: Instant,
    absent_until: Instant,
    pause: Duration,
    lost: u32,
}

impl Retry {
    /// For `patience` in all, but only for `absence` while nobody listens at all.
    pub fn new(patience: Duration, absence: Duration) -> Self {
        let now = Instant::now();
        Self {
            patience,
            failed: false,
            until: now + patience,
            absent_until: now + absence.min(patience),
            pause: FIRST_PAUSE,
            lost: 0,
        }
    }

    /// What is left of the patience: all of it for the first attempt.
    pub fn remaining(&self) -> Duration {
        if !self.failed {
            return self.patience;
        }
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whether an accepted request was lost: the daemon may have acted on it.
    pub fn was_lost(&self) -> bool {
        self.lost > 0
    }

    /// Whether to ask again after this failure; waits a moment when so.
    pub fn again(&mut self, error: &ClientError) -> bool {
        self.failed = true;
        let until = match error {
            ClientError::Connect { source, .. } if is_absence(source) => self.absent_until,
            ClientError::Send(_) | ClientError::Receive(_) | ClientError::Closed => {
                self.lost = self.lost.saturating_add(1);
                self.until
            }
            _ => return false,
        };
        if self.lost > MOST_LOST || Instant::now() + self.pause >= until {
            return false;
        }
        tracing::debug!(%error, "asking again");
        sleep(self.pause);
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
        true
    }

    /// Asks, with what is left of the patience, until there is an answer or no more hope for one.
    ///
    /// # Errors
    /// The last attempt's.
    pub fn ask<T>(
        mut self,
        mut attempt: impl FnMut(Duration) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        loop {
            match attempt(self.remaining()) {
                Err(error) if self.again(&error) => {}
                outcome => return outcome,
            }
        }
    }
}

/// Nobody listens, or the socket is just being made.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::types::{ErrorKind, ServiceError};

    fn attempts(patience: Duration, absence: Duration, error: impl Fn() -> ClientError) -> u32 {
        let mut count = 0;
        let outcome: Result<(), _> = Retry::new(patience, absence).ask(|_| {
            count += 1;
            Err(error())
        });
        assert!(outcome.is_err());
        count
    }

    fn refused() -> ClientError {
        ClientError::Connect {
            path: "/run/x".to_owned(),
            source: io::ErrorKind::ConnectionRefused.into(),
        }
    }

    #[test]
    fn an_absent_daemon_is_waited_for_only_as_long_as_allowed() {
        let long = Duration::from_mins(1);
        assert_eq!(attempts(long, Duration::ZERO, refused), 1);
        let some = attempts(long, Duration::from_millis(100), refused);
        assert!((2..10).contains(&some), "{some}");
    }

    #[test]
    fn a_lost_request_is_asked_again_but_not_for_ever() {
        let some = attempts(Duration::from_mins(1), Duration::ZERO, || ClientError::Closed);
        assert_eq!(some, MOST_LOST + 1);
    }

    #[test]
    fn an_answer_and_a_passed_deadline_are_final() {
        let minute = Duration::from_mins(1);
        let answer = || ClientError::Service(Box::new(ServiceError::new(ErrorKind::TryAgain, "later")));
        assert_eq!(attempts(minute, minute, answer), 1);
        assert_eq!(attempts(minute, minute, || ClientError::Deadline(minute)), 1);
        assert_eq!(attempts(Duration::ZERO, minute, || ClientError::Closed), 1);
    }
}
