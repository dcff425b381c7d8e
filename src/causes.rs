//! An error and what is behind it, on one line.

use std::error::Error;

/// The error's text and that of each of its causes, for types whose text leaves the cause to `source`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
