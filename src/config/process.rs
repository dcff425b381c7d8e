//! The configuration of this very process: its environment and the file that names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::problem::ConfigErrors;
use super::types::Config;
use super::{DEFAULT_FILE, config_path};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is there but cannot be read, or was named and is not there.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Settings that cannot be used.
    #[error(transparent)]
    Settings(#[from] ConfigErrors),
}

/// Reads the process environment and the configuration file; only the default file may be missing.
pub fn from_process() -> Result<Config, LoadError> {
    // A value that is not UTF-8 gets replacement characters, which no setting accepts, and is so reported by name.
    let env: BTreeMap<String, String> = std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect();
    let path = config_path(&env);
    let file = match std::fs::read(&path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.as_os_str() == DEFAULT_FILE => {
            None
        }
        Err(source) => return Err(LoadError::File { path, source }),
    };
    Ok(Config::load(&env, file.as_deref())?)
}
