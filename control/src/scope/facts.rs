use std::fmt;
use std::net::IpAddr;

use super::text::{fold, parts};

/// Longest IDC or location that a node may send, in bytes: far above any real one, and little enough to keep for ten
/// thousand nodes.
const MAX_TEXT: usize = 1024;

/// What a node knows of its own place, checked and in the form that compares. `Clone` costs the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub(super) ip: IpAddr,
    idc: String,
    location: String,
    pub(super) idc_key: String,
    pub(super) path: Path,
}

/// A fact that a node can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct BadFact {
    /// `ip`, `idc` or `location`.
    pub field: &'static str,
    /// What is wrong with it, the value included.
    pub reason: String,
}

impl Facts {
    /// Facts as a node states them; empty `idc` or `location` means that it has none.
    ///
    /// # Errors
    /// All fields that are wrong, at once: an `ip` that is no address, a bar in `idc`, an empty element in `location`.
    pub fn parse(ip: &str, idc: &str, location: &str) -> Result<Self, Vec<BadFact>> {
        let mut bad = Vec::new();
        let mut refuse = |field, reason| bad.push(BadFact { field, reason });
        let ip = match ip.trim().parse::<IpAddr>() {
            Ok(ip) => Some(ip.to_canonical()),
            Err(_) => {
                refuse("ip", format!("{:?} is not an IP address", shorten(ip)));
                None
            }
        };
        if idc.len() > MAX_TEXT {
            refuse("idc", format!("longer than {MAX_TEXT} bytes"));
        } else if idc.contains('|') {
            refuse("idc", format!("{idc:?} has a bar in it, but a node is in one IDC"));
        }
        let path = if location.len() > MAX_TEXT {
            refuse("location", format!("longer than {MAX_TEXT} bytes"));
            None
        } else {
            let path = Path::parse(location);
            if path.is_none() {
                refuse("location", format!("{location:?} has an empty element"));
            }
            path
        };
        match (ip, path) {
            (Some(ip), Some(path)) if bad.is_empty() => {
                let idc = idc.trim().to_owned();
                Ok(Self { ip, idc_key: fold(&idc).into_owned(), idc, location: path.shown.clone(), path })
            }
            _ => Err(bad),
        }
    }

    /// The address; IPv4 when it was written as IPv4-mapped IPv6.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// As written, trimmed; empty for none.
    pub fn idc(&self) -> &str {
        &self.idc
    }

    /// As written, its elements trimmed; empty for none.
    pub fn location(&self) -> &str {
        &self.location
    }
}

/// The start of a text that nobody promised to keep short.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// A location: elements from the widest to the narrowest.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Path {
    /// As written, trimmed, joined by bars.
    pub(super) shown: String,
    /// The same in the form that compares. Elements can't hold a bar, so a joined prefix stands for a prefix of
    /// elements.
    pub(super) key: String,
    /// Where in `key` each element ends, so that every prefix is a slice.
    ends: Vec<usize>,
}

impl Path {
    /// `None` when an element is empty; a path without elements when the text is.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut path = Self::none();
        for (i, part) in parts(text)?.into_iter().enumerate() {
            if i > 0 {
                path.shown.push('|');
                path.key.push('|');
            }
            path.shown.push_str(part);
            path.key.push_str(&fold(part));
            path.ends.push(path.key.len());
        }
        Some(path)
    }

    /// A path without elements.
    pub(super) fn none() -> Self {
        Self { shown: String::new(), key: String::new(), ends: Vec::new() }
    }

    /// Count of elements.
    pub(super) fn depth(&self) -> usize {
        self.ends.len()
    }

    /// Every prefix that has at least one element, the longest first.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().rev().map(|&end| &self.key[..end])
    }

    /// Whether this path leads to `other` or to something around it. A path without elements leads nowhere.
    pub(super) fn is_prefix_of(&self, other: &Path) -> bool {
        let Some(end) = self.depth().checked_sub(1).and_then(|last| other.ends.get(last)) else { return false };
        other.key[..*end] == self.key
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}
