//! An answer that ends too early is no answer.
//!
//! The SDK's XML reader takes the end of the text for the end of every element that is open. So a list of ENIs that a
//! proxy cut short, or a connection without a length that broke, reads as a shorter list, or as an empty one, and what
//! is missing there would look deleted.

use aws_sdk_ec2::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_ec2::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ec2::error::BoxError;

/// Refuses a success whose body does not end with the end of its outermost element.
#[derive(Debug)]
pub(super) struct WholeAnswersOnly;

impl Intercept for WholeAnswersOnly {
    fn name(&self) -> &'static str {
        "whole answers only"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        // The body of a failure may be a proxy's page; its status says enough.
        if !response.status().is_success() || response.body().bytes().is_some_and(is_whole) {
            return Ok(());
        }
        Err("EC2's answer was cut short".into())
    }
}

/// Whether the last thing is the end of an element called `…Response`, as all of EC2's answers are.
fn is_whole(body: &[u8]) -> bool {
    let Some(body) = body.trim_ascii_end().strip_suffix(b"Response>") else {
        return false;
    };
    let name = body
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_alphanumeric())
        .count();
    body.get(..body.len().saturating_sub(name))
        .is_some_and(|rest| rest.ends_with(b"</"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_is_an_end() {
        for whole in [
            "<XResponse></XResponse>",
            "<XResponse></XResponse>\r\n ",
            "</Response>",
        ] {
            assert!(is_whole(whole.as_bytes()), "{whole}");
        }
        for cut in [
            "",
            "Response>",
            "<XResponse>",
            "<XResponse></XResponse",
            "<a></a>",
            "<XResponse/>",
            "x</ XResponse>",
        ] {
            assert!(!is_whole(cut.as_bytes()), "{cut}");
        }
    }
}
