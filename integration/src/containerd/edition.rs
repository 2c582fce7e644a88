//! Which containerd a node runs, and how it pulls.
use std::{fmt, str::FromStr};

use anyhow::{Context, Result, anyhow, bail};

/// Where a containerd comes from, which says its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// The machine's own release: 1.6 on bookworm.
    Own,
    /// 1.7, Debian trixie's.
    V1_7,
    /// 2.1, Debian sid's; it moves.
    V2_1,
    /// 2.3, built from the pinned module.
    V2_3,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Own, Self::V1_7, Self::V2_1, Self::V2_3];
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own",
            Self::V1_7 => "1.7",
            Self::V2_1 => "2.1",
            Self::V2_3 => "2.3",
        })
    }
}

/// A containerd and its way of pulling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edition {
    /// Its version.
    pub version: Version,
    /// CRI pulls by itself instead of through the transfer service (2.x only; 1.x has no other way).
    pub local: bool,
    /// With `concurrent_layer_fetch_buffer` (2.1 and later): layers come in open-ended ranges.
    pub buffer: bool,
}

impl Edition {
    /// The machine's own.
    pub const OWN: Self = Self { version: Version::Own, local: false, buffer: false };

    /// Every edition that is tested in full.
    pub const FULL: [Self; 9] = [
        Self { version: Version::V1_7, local: false, buffer: false },
        Self { version: Version::V2_1, local: false, buffer: false },
        Self { version: Version::V2_1, local: false, buffer: true },
        Self { version: Version::V2_1, local: true, buffer: false },
        Self { version: Version::V2_1, local: true, buffer: true },
        Self { version: Version::V2_3, local: false, buffer: false },
        Self { version: Version::V2_3, local: false, buffer: true },
        Self { version: Version::V2_3, local: true, buffer: false },
        Self { version: Version::V2_3, local: true, buffer: true },
    ];

    /// Where the whole table of faults is played without being asked: the newest, as it comes. On the others `make test` plays
    /// what is about containerd itself, and `make test-all` everything.
    pub const USUAL: [Self; 1] = [Self { version: Version::V2_3, local: false, buffer: false }];

    /// One of each way in which containerd takes an answer: the old client, the client of 2.x, the transfer service; layers
    /// in one stream or in ranges. Where scenes about answers are played without being asked.
    pub const APART: [Self; 5] = [
        Self::OWN,
        Self { version: Version::V1_7, local: false, buffer: false },
        Self { version: Version::V2_1, local: true, buffer: true },
        Self { version: Version::V2_3, local: false, buffer: false },
        Self { version: Version::V2_3, local: false, buffer: true },
    ];

    /// One of each release that is tested in full, as it comes: where something is played on every release without being asked.
    pub const RELEASES: [Self; 3] = [
        Self { version: Version::V1_7, local: false, buffer: false },
        Self { version: Version::V2_1, local: false, buffer: false },
        Self { version: Version::V2_3, local: false, buffer: false },
    ];

    /// Every edition: those that are tested in full, and the machine's own.
    pub fn all() -> Vec<Self> {
        [Self::OWN].into_iter().chain(Self::FULL).collect()
    }

    /// What `SHOAL_LAB_CONTAINERD` names, separated by commas (`all`: every one); without it, `usual`.
    ///
    /// # Errors
    /// When a name is not known.
    pub fn from_env(usual: &[Self]) -> Result<Vec<Self>> {
        match std::env::var("SHOAL_LAB_CONTAINERD") {
            Ok(names) if !names.trim().is_empty() => Self::named(&names).context("SHOAL_LAB_CONTAINERD"),
            _ => Ok(usual.to_vec()),
        }
    }

    /// Editions of a list, each once, in the list's order.
    fn named(names: &str) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for name in names.split(',').map(str::trim) {
            let these = if name == "all" { Self::all() } else { vec![name.parse()?] };
            for edition in these {
                if !found.contains(&edition) {
                    found.push(edition);
                }
            }
        }
        Ok(found)
    }
}

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        f.write_str(if self.local { "-local" } else { "" })?;
        f.write_str(if self.buffer { "-buffer" } else { "" })
    }
}

impl FromStr for Edition {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('-');
        let version = match parts.next() {
            Some("own") => Version::Own,
            Some("1.7") => Version::V1_7,
            Some("2.1") => Version::V2_1,
            Some("2.3") => Version::V2_3,
            _ => return Err(anyhow!("{text:?} names no containerd: own, 1.7, 2.1 or 2.3, with -local and -buffer")),
        };
        let mut edition = Self { version, local: false, buffer: false };
        for part in parts {
            let field = match part {
                "local" => &mut edition.local,
                "buffer" => &mut edition.buffer,
                other => bail!("{text:?}: {other:?} is neither local nor buffer"),
            };
            *field = true;
        }
        if matches!(version, Version::Own | Version::V1_7) && (edition.local || edition.buffer) {
            bail!("{text:?}: 1.x pulls in one way only");
        }
        Ok(edition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for edition in Edition::FULL.into_iter().chain([Edition::OWN]) {
            assert_eq!(edition.to_string().parse::<Edition>().unwrap(), edition);
        }
        assert_eq!("2.1-buffer-local".parse::<Edition>().unwrap(), "2.1-local-buffer".parse().unwrap());
        assert_eq!(Edition::named("2.3, all").unwrap().len(), 10, "each once");
        assert_eq!(Edition::named("2.3, all").unwrap()[..2], [Edition::USUAL[0], Edition::OWN]);
        assert!(Edition::named("all,2.9").is_err());
        for bad in ["", "1.6", "3.0", "2.1-fast", "1.7-local", "own-buffer"] {
            assert!(bad.parse::<Edition>().is_err(), "{bad}");
        }
    }
}
