//! From the SDK's errors to a [`CloudFailure`]: who failed, whether the effect may have happened, and EC2's own words.

use std::error::Error;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::RequestId;

use super::convert::BadAnswer;
use super::errors::classify;
use super::http::CaBundleError;
use crate::ipam::cloud::{CloudFailure, FailureClass};

/// `UnauthorizedOperation` carries kilobytes of encoded message; this much is enough to read.
const MESSAGE_CHARS: usize = 600;

/// The failure behind an SDK error.
pub(super) fn failure<E>(action: &'static str, error: &SdkError<E, HttpResponse>) -> CloudFailure
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let response = error.raw_response();
    let request_id = error
        .request_id()
        .map(str::to_owned)
        .or_else(|| response.and_then(request_id_of_body));
    let retry_after = response.and_then(retry_after);
    let status = response.map_or(0, |response| response.status().as_u16());
    let (class, code, message) = match error {
        SdkError::ServiceError(service) if service.err().code().is_some_and(|code| !code.is_empty()) => {
            let code = service.err().code();
            let message = service.err().message().unwrap_or_default().to_owned();
            (classify(action, code, status), code.map(str::to_owned), message)
        }
        // An answer came, but not one of EC2's: a proxy's page, a broken body. After 2xx the effect has happened.
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            let class = if status < 400 {
                FailureClass::NoAnswer
            } else {
                classify(action, None, status)
            };
            (class, None, format!("HTTP status {status}: {}", causes(error)))
        }
        SdkError::TimeoutError(_) => (FailureClass::NoAnswer, None, "no answer in time".to_owned()),
        _ => {
            let class = credentials_class(error).unwrap_or(match error {
                SdkError::DispatchFailure(dispatch) if !dispatch.is_user() => FailureClass::NoAnswer,
                _ => FailureClass::Other,
            });
            (class, None, causes(error))
        }
    };
    CloudFailure {
        class,
        action: action.to_owned(),
        code,
        message: shorten(&message),
        request_id,
        retry_after,
    }
}

/// The failure behind an answer that makes no sense. The effect has happened.
pub(super) fn bad_answer(action: &'static str, error: &BadAnswer) -> CloudFailure {
    plain(FailureClass::NoAnswer, action, error.to_string())
}

/// The failure behind a client that cannot be built.
pub(super) fn setup_failure(action: &'static str, error: &CaBundleError) -> CloudFailure {
    plain(FailureClass::Other, action, error.to_string())
}

fn plain(class: FailureClass, action: &'static str, message: String) -> CloudFailure {
    CloudFailure {
        class,
        action: action.to_owned(),
        code: None,
        message,
        request_id: None,
        retry_after: None,
    }
}

fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Without credentials nothing was sent; which kind of lack it was decides whether it can pass by itself.
fn credentials_class<E: Error + 'static>(error: &SdkError<E, HttpResponse>) -> Option<FailureClass> {
    sources(error)
        .find_map(|source| source.downcast_ref::<CredentialsError>())
        .map(|error| match error {
            CredentialsError::ProviderTimedOut(_) => FailureClass::NoAnswer,
            _ => FailureClass::Denied,
        })
}

/// The whole chain of causes in one line, without the SDK's repetitions.
fn causes<E: Error + 'static>(error: &SdkError<E, HttpResponse>) -> String {
    let mut said: Vec<String> = Vec::new();
    for source in sources(error) {
        let text = source.to_string();
        if !said.iter().any(|earlier| earlier.contains(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}

/// EC2 names the request in a header and again in the body of a fault.
fn request_id_of_body(response: &HttpResponse) -> Option<String> {
    let body = std::str::from_utf8(response.body().bytes()?).ok()?;
    let (_, rest) = body.split_once("<RequestID>")?;
    let (id, _) = rest.split_once("</RequestID>")?;
    Some(id.trim().chars().take(64).collect())
}

fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let text = response.headers().get("retry-after")?;
    text.trim().parse().ok().map(Duration::from_secs)
}

fn shorten(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}
