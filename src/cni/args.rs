//! `CNI_ARGS`: who the pod is.

use crate::ipam::ids::PodRef;

/// Why `CNI_ARGS` can't be used; the texts are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// Not `key=value`.
    #[error("ARGS: invalid pair {0:?}")]
    Pair(String),
    /// `IgnoreUnknown` is no boolean.
    #[error("ARGS: error parsing value of pair {pair:?}: boolean unmarshal error: invalid input {value}")]
    Boolean {
        /// The whole pair.
        pair: String,
        /// Its right side.
        value: String,
    },
    /// Keys nobody knows, without the permission to ignore them.
    #[error("ARGS: unknown args [{}]", quoted(.0))]
    Unknown(Vec<String>),
}

fn quoted(pairs: &[String]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|pair| format!("{pair:?}")).collect();
    pairs.join(" ")
}

/// The pod that `CNI_ARGS` names; an empty text names none.
///
/// # Errors
/// [`ArgsError`].
pub fn parse(text: &str) -> Result<PodRef, ArgsError> {
    let mut pod = PodRef::default();
    let mut ignore_unknown = false;
    let mut unknown = Vec::new();
    if text.is_empty() {
        return Ok(pod);
    }
    for pair in text.split(';') {
        let (key, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| ArgsError::Pair(pair.to_owned()))?;
        match key {
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            // The runtime's sandbox id once more; CNI_CONTAINERID is the one that counts.
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => ignore_unknown = boolean(pair, value)?,
            _ => unknown.push(pair.to_owned()),
        }
    }
    if unknown.is_empty() || ignore_unknown {
        return Ok(pod);
    }
    Err(ArgsError::Unknown(unknown))
}

fn boolean(pair: &str, value: &str) -> Result<bool, ArgsError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(ArgsError::Boolean {
            pair: pair.to_owned(),
            value: value.to_owned(),
        }),
    }
}
