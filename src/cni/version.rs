//! Versions of the CNI specification.

use serde::Deserialize;

use super::error::{CniError, Code};

/// A version this plugin speaks, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0, and what a configuration without a version means.
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, which brought CHECK
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0, which brought STATUS and GC
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The versions whose results have the same shape as this one's.
    pub fn same_shape(self) -> &'static [&'static str] {
        match self {
            Self::V0_1_0 | Self::V0_2_0 => &["", "0.1.0", "0.2.0"],
            Self::V0_3_0 | Self::V0_3_1 | Self::V0_4_0 => &["0.3.0", "0.3.1", "0.4.0"],
            Self::V1_0_0 | Self::V1_1_0 => &["1.0.0", "1.1.0"],
        }
    }

    /// The version a configuration asks for; none or an empty one is 0.1.0.
    ///
    /// # Errors
    /// Code 6 when the configuration can't be read, code 1 when the version is not spoken.
    pub fn of_config(stdin: &[u8]) -> Result<Self, CniError> {
        let text = asked_for(stdin)?;
        Self::parse(&text).ok_or_else(|| {
            CniError::new(Code::IncompatibleVersion, "incompatible CNI versions").with_details(format!(
                "config is {text:?}, plugin supports [{}]",
                Self::ALL.map(|version| format!("{:?}", version.text())).join(" ")
            ))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.text() == text)
    }
}

/// The version's text as the configuration has it, spoken or not.
///
/// # Errors
/// Code 6.
pub fn asked_for(stdin: &[u8]) -> Result<String, CniError> {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(rename = "cniVersion", default)]
        cni_version: String,
    }
    let read: Versioned = serde_json::from_slice(stdin).map_err(|error| {
        CniError::new(
            Code::Decoding,
            format!("decoding version from network config: {error}"),
        )
    })?;
    if read.cni_version.is_empty() {
        return Ok(Version::V0_1_0.text().to_owned());
    }
    Ok(read.cni_version)
}

/// Whether the text is a version of at least `floor`, also one that is not spoken here.
///
/// # Errors
/// Code 6 when it is no version.
pub fn at_least(text: &str, floor: Version) -> Result<bool, CniError> {
    Ok(numbers(text)? >= numbers(floor.text())?)
}

fn numbers(text: &str) -> Result<Vec<u64>, CniError> {
    let parts: Result<Vec<u64>, _> = text.splitn(3, '.').map(str::parse).collect();
    parts.map_err(|_| CniError::new(Code::Decoding, format!("invalid version number {text:?}")))
}

/// The answer to VERSION: one line.
pub fn answer() -> String {
    let all = Version::ALL
        .map(|version| format!("{:?}", version.text()))
        .join(",");
    format!(
        "{{\"cniVersion\":{:?},\"supportedVersions\":[{all}]}}\n",
        Version::V1_1_0.text()
    )
}

/// The versions for humans.
pub fn list() -> String {
    Version::ALL.map(Version::text).join(", ")
}
