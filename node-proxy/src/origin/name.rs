//! Names by the grammar of the OCI distribution spec, parsed once at the edge.

use std::fmt;
use std::str::FromStr;

use shoal_proto::{Digest, DigestError};

/// The host (and port) of a registry as containerd names it in `ns=`: `docker.io`, `registry.example:5000`. Lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Registry(String);

/// A repository's path, by the grammar of the OCI distribution spec.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Repository(String);

/// A tag, by the grammar of the OCI distribution spec.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tag(String);

/// What a manifest request names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// By tag.
    Tag(Tag),
    /// By digest.
    Digest(Digest),
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `host[:port]`.
    #[error("a registry is host or host:port")]
    Registry,
    /// Not a path of lower-case components.
    #[error("a repository is a path of components out of a-z, 0-9 and single separators, at most 255 characters")]
    Repository,
    /// Not a tag.
    #[error("a tag has 1 to 128 characters out of A-Z, a-z, 0-9, _, . and -, and starts with none of the last two")]
    Tag,
    /// A digest, but not one that is served.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// OCI distribution spec 1.1, "Pulling manifests": most registries take 255 characters for host and name together.
const LONGEST_NAME: usize = 255;

impl FromStr for Registry {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(NameError::Registry)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| NameError::Registry)?;
            match port {
                "" => (None, None),
                port => (None, Some(port.strip_prefix(':').ok_or(NameError::Registry)?)),
            }
        } else {
            match text.split_once(':') {
                Some((host, port)) => (Some(host), Some(port)),
                None => (Some(text), None),
            }
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let host_fine = host.is_none_or(|host| host.len() <= 253 && host.split('.').all(label));
        let port_fine = port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if host_fine && port_fine { Ok(Self(text.to_ascii_lowercase())) } else { Err(NameError::Registry) }
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= LONGEST_NAME && text.split('/').all(is_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Repository)
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !text.bytes().all(|b| is_word(b) || b"._-".contains(&b)) {
        return false;
    }
    let mut separators = text.split(|c: char| c.is_ascii_alphanumeric());
    let at_the_ends = !text.bytes().next().is_some_and(is_word) || !text.bytes().last().is_some_and(is_word);
    !at_the_ends && separators.all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fine = (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            && !text.starts_with(['.', '-']);
        if fine { Ok(Self(text.to_owned())) } else { Err(NameError::Tag) }
    }
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // A tag has no colon, a digest always has one.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

macro_rules! text {
    ($($name:ident),*) => {
        $(
            impl $name {
                /// The text.
                pub fn as_str(&self) -> &str {
                    &self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(&self.0)
                }
            }
        )*
    };
}

text!(Registry, Repository, Tag);

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_the_names_of_the_spec() {
        for name in ["a", "library/debian", "a/b/c", "a.b_c__d-e---f", "manifests/blobs", "0"] {
            assert_eq!(name.parse::<Repository>().unwrap().as_str(), name);
        }
        let too_long = "a".repeat(256);
        for bad in ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "-a", "a-", "a.", "ä", "a b", "a._b", &too_long]
        {
            assert_eq!(bad.parse::<Repository>(), Err(NameError::Repository), "{bad:?}");
        }
        for tag in ["latest", "v1.2.3", "_x", "A-b_c.d"] {
            assert_eq!(tag.parse::<Tag>().unwrap().as_str(), tag);
        }
        for bad in ["", ".a", "-a", "a b", "a/b", &too_long] {
            assert_eq!(bad.parse::<Tag>(), Err(NameError::Tag), "{bad:?}");
        }
    }

    #[test]
    fn takes_registries_with_and_without_port() {
        for name in ["docker.io", "localhost:5000", "10.0.0.1", "10.0.0.1:1", "[::1]:5000", "[fd00::1]", "a-b.example"]
        {
            assert_eq!(name.parse::<Registry>().unwrap().as_str(), name);
        }
        assert_eq!("Docker.IO".parse::<Registry>().unwrap().as_str(), "docker.io");
        for bad in [
            "", ":5000", "a:", "a:0", "a:65536", "a:b", "a:+1", "a/b", "u@a", "::1", "[::1", "[x]", "a..b", "a?b", "-a",
        ] {
            assert_eq!(bad.parse::<Registry>(), Err(NameError::Registry), "{bad:?}");
        }
    }

    #[test]
    fn tells_a_digest_from_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        let other = format!("sha512:{}", "a".repeat(128)).parse::<Reference>();
        assert!(matches!(other, Err(NameError::Digest(DigestError::Algorithm(_)))));
    }

    proptest! {
        #[test]
        fn never_panics_and_keeps_what_it_took(text in ".{0,40}") {
            if let Ok(name) = text.parse::<Repository>() { prop_assert_eq!(name.as_str(), &text); }
            if let Ok(tag) = text.parse::<Tag>() { prop_assert_eq!(tag.as_str(), &text); }
            if let Ok(registry) = text.parse::<Registry>() { prop_assert!(registry.as_str().parse::<http::uri::Authority>().is_ok()); }
        }
    }
}
