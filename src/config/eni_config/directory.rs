//! ENIConfigs of a directory's files.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::document;
use super::{EniConfigProblem, EniConfigSource, EniConfigs, Lost};

/// An ENIConfig has a few hundred bytes; this holds a thousand.
const LONGEST: u64 = 256 << 10;
const MOST_FILES: usize = 256;

/// A directory with `*.yaml`, `*.yml` and `*.json`.
#[derive(Debug, Clone)]
pub struct EniConfigDirectory {
    path: PathBuf,
}

impl EniConfigDirectory {
    /// The directory need not be there; it has no ENIConfigs then.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl EniConfigSource for EniConfigDirectory {
    fn read(&self) -> EniConfigs {
        let mut all = EniConfigs::default();
        let files = match files(&self.path) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return all,
            Err(error) => {
                all.problems.push(unread(&self.path, error.to_string()));
                return all;
            }
        };
        if files.len() > MOST_FILES {
            let what = format!("{} files; only the first {MOST_FILES} are read", files.len());
            all.problems.push(unread(&self.path, what));
        }
        for file in files.iter().take(MOST_FILES) {
            if is_document(file) {
                match text(file) {
                    Ok(text) => document::read(&text, &file.display().to_string(), &mut all),
                    Err(error) => all.problems.push(unread(file, error.to_string())),
                }
            } else {
                all.problems.push(EniConfigProblem {
                    origin: file.display().to_string(),
                    what: "not read, as its name ends in neither .yaml nor .yml nor .json".to_owned(),
                    lost: Lost::Nothing,
                });
            }
        }
        all
    }
}

fn unread(path: &Path, what: String) -> EniConfigProblem {
    EniConfigProblem {
        origin: path.display().to_string(),
        what,
        lost: Lost::Unknown,
    }
}

/// Everything but hidden files, which editors and configuration management leave behind, in the order of the names.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn is_document(file: &Path) -> bool {
    let endings = ["yaml", "yml", "json"].map(OsStr::new);
    file.extension().is_some_and(|ending| endings.contains(&ending))
}

fn text(file: &Path) -> io::Result<String> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    let at_most = LONGEST.saturating_add(1);
    std::fs::File::open(file)?.take(at_most).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LONGEST) {
        return Err(io::Error::other(format!("longer than {LONGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8"))
}
