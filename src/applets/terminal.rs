//! Talking to whoever started the applet by hand.

use std::io::Write;
use std::process::ExitCode;

/// The exit status of a wrong command line.
pub(super) const USAGE: u8 = 2;

/// Name, version and origin of this build.
pub fn version_text(applet: &str) -> String {
    format!(
        "{applet} {} (commit {}, {}, {})",
        env!("CARGO_PKG_VERSION"),
        option_env!("AWS_CNI_COMMIT").unwrap_or("unknown"),
        option_env!("AWS_CNI_TARGET").unwrap_or("unknown"),
        option_env!("AWS_CNI_PROFILE").unwrap_or("unknown"),
    )
}

/// Writes a line to stdout; a reader that went away is not an error of ours.
pub(super) fn say(text: &str) {
    writeln!(std::io::stdout().lock(), "{text}").ok();
}

/// Writes a line to stderr.
pub(super) fn complain(text: &str) {
    writeln!(std::io::stderr().lock(), "{text}").ok();
}

/// Parses arguments; on `--help` or a mistake says so and answers the exit status instead.
pub(super) fn parse<T: argh::FromArgs>(applet: &str, args: &[String]) -> Result<T, ExitCode> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    T::from_args(&[applet], &words).map_err(|early| {
        let text = early.output.trim_end();
        if early.status.is_ok() {
            say(text);
            ExitCode::SUCCESS
        } else {
            complain(text);
            ExitCode::from(USAGE)
        }
    })
}
