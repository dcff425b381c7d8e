//! STATUS: can an ADD be served?

use super::{PATIENCE, Session};
use crate::cni::error::{CniError, Code};
use crate::rpc::client::Client;
use crate::rpc::types::Status;

pub(super) fn run(session: &Session<'_>) -> Result<String, CniError> {
    let status = session
        .connect(PATIENCE)
        .and_then(Client::status)
        .map_err(|error| {
            CniError::new(
                Code::NotAvailable,
                format!("plugin not available: {error}; next: see `systemctl status ipamd` and its journal"),
            )
        })?;
    judge(&status).map(|()| String::new())
}

fn judge(status: &Status) -> Result<(), CniError> {
    if status.serving {
        return Ok(());
    }
    let code = if status.existing_affected {
        Code::LimitedConnectivity
    } else {
        Code::NotAvailable
    };
    let reasons = if status.reasons.is_empty() {
        "the daemon gives no reason".to_owned()
    } else {
        status.reasons.join("; ")
    };
    let counts = format!(
        "{} free, {} assigned, {} cooling, {} on their way, {} pods waiting",
        status.free, status.assigned, status.cooling, status.coming, status.waiting
    );
    Err(CniError::new(code, format!("plugin not available: {reasons}")).with_details(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_the_cause_and_tells_50_from_51() {
        assert_eq!(
            judge(&Status {
                serving: true,
                ..Status::default()
            }),
            Ok(())
        );
        for (existing_affected, number) in [(false, 50), (true, 51)] {
            let error = judge(&Status {
                existing_affected,
                reasons: vec!["subnet-1 is full".to_owned()],
                ..Status::default()
            })
            .unwrap_err();
            assert_eq!(error.code.number(), number);
            assert!(error.message.contains("subnet-1 is full"));
        }
    }
}
