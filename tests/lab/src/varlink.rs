//! One call over a varlink socket, as a test or a human would make it: JSON ended by a NUL byte.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The socket.
    #[error("calling {method}: {error}")]
    Socket {
        /// Which method.
        method: String,
        /// Why not.
        error: io::Error,
    },
    /// The answer is no JSON.
    #[error("the answer to {method} is no JSON: {error}")]
    Malformed {
        /// Which method.
        method: String,
        /// Why not.
        error: serde_json::Error,
    },
    /// The service answered with an error.
    #[error("{method} was answered with {error} {parameters}")]
    Refused {
        /// Which method.
        method: String,
        /// The error's name.
        error: String,
        /// What it says.
        parameters: Value,
    },
}

/// Calls `method` at `socket` and returns the first reply's parameters.
pub fn call(socket: &Path, method: &str, parameters: &Value, within: Duration) -> Result<Value, CallError> {
    let request = json!({ "method": method, "parameters": parameters });
    let reply = exchange(socket, &request, within).map_err(|error| CallError::Socket {
        method: method.to_owned(),
        error,
    })?;
    let mut reply: Value = serde_json::from_slice(&reply).map_err(|error| CallError::Malformed {
        method: method.to_owned(),
        error,
    })?;
    let parameters = reply.get_mut("parameters").map(Value::take).unwrap_or_default();
    match reply.get("error").and_then(Value::as_str) {
        None => Ok(parameters),
        Some(error) => Err(CallError::Refused {
            method: method.to_owned(),
            error: error.to_owned(),
            parameters,
        }),
    }
}

fn exchange(socket: &Path, request: &Value, within: Duration) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(within))?;
    stream.write_all(format!("{request}\0").as_bytes())?;
    let mut reply = Vec::new();
    let _length = BufReader::new(stream).read_until(0, &mut reply)?;
    if reply.pop() == Some(0) {
        Ok(reply)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn answer_with(answer: &'static [u8]) -> Result<Value, CallError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            BufReader::new(&client).read_until(0, &mut request).unwrap();
            client.write_all(answer).unwrap();
            request
        });
        let answer = call(&path, "local.Test.Status", &json!({}), Duration::from_secs(5));
        let request = server.join().unwrap();
        assert_eq!(request, b"{\"method\":\"local.Test.Status\",\"parameters\":{}}\0");
        answer
    }

    #[test]
    fn replies_errors_and_nonsense_are_told_apart() {
        assert_eq!(
            answer_with(b"{\"parameters\":{\"free\":3}}\0").unwrap(),
            json!({ "free": 3 })
        );
        let refused = answer_with(b"{\"error\":\"local.Test.Busy\",\"parameters\":{}}\0");
        assert!(matches!(refused, Err(CallError::Refused { error, .. }) if error == "local.Test.Busy"));
        assert!(matches!(answer_with(b"{}"), Err(CallError::Socket { .. })));
        assert!(matches!(answer_with(b"no\0"), Err(CallError::Malformed { .. })));
    }
}
