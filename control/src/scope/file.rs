use serde::Deserialize;

use super::check::{ClusterScope, Refusal, Scopes};

/// Why a clusters file is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not TOML, an unknown key, a wrong type: with line and column.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// Understood, and refused.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Refusal>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    cluster: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    idc: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    cidrs: Vec<String>,
}

/// Reads a clusters file: TOML with any number of `[[cluster]]`, the older first, each with `name` and optionally
/// `default`, `idc`, `location` and `cidrs`.
///
/// # Errors
/// See [`FileError`]; refusals come all at once.
pub fn parse_file(text: &str) -> Result<Scopes, FileError> {
    let file: File = toml::from_str(text)?;
    let scopes = (0..).zip(file.cluster).map(|(rank, entry)| {
        let Entry { name, default, idc, location, cidrs } = entry;
        ClusterScope { rank, name, default, idc, location, cidrs }
    });
    Scopes::check(scopes.collect()).map_err(FileError::Refused)
}
