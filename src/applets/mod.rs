//! What can be run: one module per applet, argument parsing and wiring only.
//!
//! The file name of `argv[0]` selects the applet, by exact match and before anything else happens: the plugins live
//! for milliseconds and must not pay for the daemon they share the file with.

mod aws_cni;
mod egress_cni;
mod ipamd;
mod multicall;
mod paths;
mod plugin;
mod support;
mod terminal;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub use terminal::version_text;

/// Something that can be run.
struct Applet {
    name: &'static str,
    summary: &'static str,
    run: fn(&[String]) -> ExitCode,
}

const APPLETS: [Applet; 4] = [
    Applet {
        name: "aws-cni",
        summary: "CNI plugin: gives a pod its VPC address (run by the container runtime)",
        run: aws_cni::run,
    },
    Applet {
        name: "egress-cni",
        summary: "chained CNI plugin: egress in the other address family (run by the container runtime)",
        run: egress_cni::run,
    },
    Applet {
        name: "ipamd",
        summary: "the daemon that owns this node's ENIs and addresses (run by systemd)",
        run: ipamd::run,
    },
    Applet {
        name: "aws-cni-support",
        summary: "shows the state of the daemon, or what is left when it is away",
        run: support::run,
    },
];

fn find(name: &str) -> Option<&'static Applet> {
    APPLETS.iter().find(|applet| applet.name == name)
}

/// Runs the applet that the first word names.
pub fn main(command_line: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words = command_line.map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program)
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let args: Vec<String> = words.collect();
    let Some(applet) = find(&name) else {
        terminal::complain(&format!("{name}: no applet of that name; there are {}", names()));
        return ExitCode::from(terminal::USAGE);
    };
    // Under a runtime the plugin ignores its arguments, as plugins do; without one they are a human's.
    if applet.name == "aws-cni" && !args.is_empty() && std::env::var_os("CNI_COMMAND").is_none() {
        return multicall::run(&args);
    }
    (applet.run)(&args)
}

fn names() -> String {
    APPLETS.map(|applet| applet.name).join(", ")
}
