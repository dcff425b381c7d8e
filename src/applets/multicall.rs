//! `aws-cni` called by a human: naming applets, installing links, running an applet by its name.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::FromArgs;

use super::terminal::{USAGE, complain, parse, say, version_text};
use super::{APPLETS, find, names};

/// VPC networking for bare EC2 workers, in one binary. The name it is called by selects the applet;
/// `aws-cni <applet> …` works too, and --list names them all.
#[derive(FromArgs)]
struct Arguments {
    /// print the applets' names, one per line
    #[argh(switch)]
    list: bool,
    /// make a link for every applet in this directory
    #[argh(option, arg_name = "dir")]
    install: Option<PathBuf>,
    /// with --install: symbolic links instead of hard ones
    #[argh(switch)]
    symbolic: bool,
    /// print the version
    #[argh(switch)]
    version: bool,
}

pub(super) fn run(args: &[String]) -> ExitCode {
    if let Some((first, rest)) = args.split_first()
        && !first.starts_with('-')
    {
        if let Some(applet) = find(first) {
            return (applet.run)(rest);
        }
        complain(&format!("aws-cni: {first:?} is no applet; there are {}", names()));
        return ExitCode::from(USAGE);
    }
    match parse::<Arguments>("aws-cni", args) {
        Ok(arguments) => execute(&arguments),
        Err(status) => {
            if status == ExitCode::SUCCESS {
                say(&summaries());
            }
            status
        }
    }
}

fn summaries() -> String {
    let lines = APPLETS.map(|applet| format!("  {:<17} {}", applet.name, applet.summary));
    format!("\nApplets:\n{}", lines.join("\n"))
}

fn execute(arguments: &Arguments) -> ExitCode {
    if arguments.version {
        say(&version_text("aws-cni"));
        return ExitCode::SUCCESS;
    }
    if arguments.list {
        say(&APPLETS.map(|applet| applet.name).join("\n"));
        return ExitCode::SUCCESS;
    }
    let Some(folder) = &arguments.install else {
        complain("aws-cni: --symbolic needs --install");
        return ExitCode::from(USAGE);
    };
    match install(folder, arguments.symbolic) {
        Ok(lines) => {
            for line in lines {
                say(&line);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("aws-cni: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Why links could not be made.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    #[error("cannot find out where this binary is: {0}")]
    OwnPath(io::Error),
    #[error("cannot look at {0}: {1}")]
    Look(PathBuf, io::Error),
    #[error("{0} exists and is not ours; move it away first")]
    Foreign(PathBuf),
    #[error("{0} is on another file system; use --symbolic")]
    OtherFileSystem(PathBuf),
    #[error("cannot make the link {0}: {1}")]
    Link(PathBuf, io::Error),
}

/// Found in every build of this binary, so that an older one is told from somebody else's file.
static OURS: &[u8] = b"aws-cni multicall binary 4f1d0d6e-5a0b";

/// Everything is looked at before anything is changed, so that a refusal leaves the directory as it was.
fn install(folder: &Path, symbolic: bool) -> Result<Vec<String>, InstallError> {
    let own = std::env::current_exe().map_err(InstallError::OwnPath)?;
    let mut wanted = Vec::new();
    for applet in &APPLETS {
        let link = folder.join(applet.name);
        match look(&link, &own)? {
            Found::ThisBinary => {}
            Found::Nothing | Found::OlderBinary => wanted.push(link),
            Found::Foreign => return Err(InstallError::Foreign(link)),
        }
    }
    let mut done = Vec::new();
    for link in wanted {
        replace(&link, &own, symbolic)?;
        done.push(format!("{} -> {}", link.display(), own.display()));
    }
    Ok(done)
}

enum Found {
    Nothing,
    ThisBinary,
    OlderBinary,
    Foreign,
}

fn look(link: &Path, own: &Path) -> Result<Found, InstallError> {
    let failed = |error| InstallError::Look(link.to_owned(), error);
    let here = fs::metadata(own).map_err(failed)?;
    let there = match fs::metadata(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A symbolic link to nowhere serves nobody, whoever made it.
            return Ok(Found::Nothing);
        }
        there => there.map_err(failed)?,
    };
    if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
        return Ok(Found::ThisBinary);
    }
    if !there.is_file() {
        return Ok(Found::Foreign);
    }
    let bytes = fs::read(link).map_err(failed)?;
    let marked = bytes.windows(OURS.len()).any(|window| window == OURS);
    Ok(if marked {
        Found::OlderBinary
    } else {
        Found::Foreign
    })
}

/// A link under a temporary name, renamed over the old one: a runtime that starts the plugin meanwhile finds either.
fn replace(link: &Path, own: &Path, symbolic: bool) -> Result<(), InstallError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::CrossesDevices => InstallError::OtherFileSystem(link.to_owned()),
        _ => InstallError::Link(link.to_owned(), error),
    };
    let temporary = link.with_extension(format!("new{}", std::process::id()));
    let made = if symbolic {
        symlink(own, &temporary)
    } else {
        fs::hard_link(own, &temporary)
    };
    made.map_err(failed)?;
    fs::rename(&temporary, link).map_err(|error| {
        fs::remove_file(&temporary).ok();
        failed(error)
    })
}
