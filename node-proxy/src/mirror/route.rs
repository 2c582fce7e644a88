//! What a request names: method, path and `ns`. Pure.

use http::{Method, StatusCode, Uri};
use shoal_proto::{Digest, DigestError};

use super::refusal::{Code, Refusal};
use crate::origin::{Reference, Repository};

/// A request for content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Manifest(Reference),
    Blob(Digest),
}

/// A request that this mirror answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`: is this a registry?
    Ping,
    Pull {
        head: bool,
        ns: Option<String>,
        repository: Repository,
        content: Content,
    },
}

impl Route {
    pub(super) fn of(method: &Method, uri: &Uri) -> Result<Self, Refusal> {
        let head = match *method {
            Method::GET => false,
            Method::HEAD => true,
            _ => {
                let text = format!("{method} is not allowed: this mirror only gives");
                return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, text));
            }
        };
        let not_found = |text: &str| Refusal::new(StatusCode::NOT_FOUND, Code::Unsupported, text);
        let Some(rest) = uri.path().strip_prefix("/v2") else {
            return Err(not_found("the path does not start with /v2/"));
        };
        if rest.is_empty() || rest == "/" {
            return Ok(Self::Ping);
        }
        let rest = rest.strip_prefix('/').ok_or_else(|| not_found("the path does not start with /v2/"))?;
        // A repository may itself be called manifests or blobs, so the last but one segment decides.
        let (front, last) = rest.rsplit_once('/').ok_or_else(|| not_found("the path names nothing to pull"))?;
        let (repository, kind) = front.rsplit_once('/').ok_or_else(|| not_found("the path names nothing to pull"))?;
        if !matches!(kind, "manifests" | "blobs") {
            return Err(not_found("only manifests and blobs are given"));
        }
        let repository: Repository = repository.parse().map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, Code::NameInvalid, format!("repository: {error}"))
        })?;
        let content = match (kind, last.contains(':')) {
            ("manifests", false) => {
                let tag = last.parse().map_err(|error| {
                    Refusal::new(StatusCode::BAD_REQUEST, Code::ManifestInvalid, format!("reference: {error}"))
                })?;
                Content::Manifest(Reference::Tag(tag))
            }
            ("manifests", true) => Content::Manifest(Reference::Digest(digest(last)?)),
            _ => Content::Blob(digest(last)?),
        };
        Ok(Self::Pull { head, ns: ns(uri)?, repository, content })
    }

    /// The digest that is named, if one is.
    pub(super) fn digest(&self) -> Option<Digest> {
        match self {
            Self::Pull { content: Content::Blob(digest) | Content::Manifest(Reference::Digest(digest)), .. } => {
                Some(*digest)
            }
            _ => None,
        }
    }
}

fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error| match error {
        // Well formed and not served: containerd asks the registry.
        DigestError::Algorithm(_) => Refusal::new(StatusCode::NOT_FOUND, Code::BlobUnknown, format!("digest: {error}")),
        DigestError::Malformed => {
            Refusal::new(StatusCode::BAD_REQUEST, Code::DigestInvalid, format!("digest: {error}"))
        }
    })
}

/// The value of `ns`, percent-decoded. Given twice with different values it is refused.
fn ns(uri: &Uri) -> Result<Option<String>, Refusal> {
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, Code::NameInvalid, text);
    let mut found: Option<String> = None;
    for (key, value) in uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
        if key != "ns" {
            continue;
        }
        let value = decode(value).ok_or_else(|| bad("ns: not percent-encoded UTF-8"))?;
        if found.as_ref().is_some_and(|known| *known != value) {
            return Err(bad("ns: given twice"));
        }
        found = Some(value);
    }
    Ok(found)
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let mut decoded = [0];
                hex::decode_to_slice(digits, &mut decoded).ok()?;
                bytes.push(decoded[0]);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(path: &str) -> Result<Route, StatusCode> {
        Route::of(&Method::GET, &path.parse().unwrap()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn reads_what_containerd_asks() {
        let hex = "a".repeat(64);
        assert_eq!(route("/v2/"), Ok(Route::Ping));
        assert_eq!(route("/v2"), Ok(Route::Ping));
        let pull = |path: &str| match route(path) {
            Ok(Route::Pull { ns, repository, content, .. }) => (ns, repository.to_string(), content),
            other => panic!("{path}: {other:?}"),
        };
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        let (ns, repository, content) = pull(&format!("/v2/lab/app/blobs/sha256:{hex}?ns=registry.example%3A5000"));
        assert_eq!(
            (ns.as_deref(), repository.as_str(), content),
            (Some("registry.example:5000"), "lab/app", Content::Blob(digest))
        );
        let (ns, repository, content) = pull("/v2/a/manifests/blobs/manifests/1.0");
        assert_eq!((ns, repository.as_str()), (None, "a/manifests/blobs"));
        assert_eq!(content, Content::Manifest(Reference::Tag("1.0".parse().unwrap())));
        let (_, _, content) = pull(&format!("/v2/a/manifests/sha256:{hex}?x=1&ns=b&ns=b"));
        assert_eq!(content, Content::Manifest(Reference::Digest(digest)));
    }

    #[test]
    fn refuses_the_rest_with_the_right_status() {
        let hex = "a".repeat(64);
        for (path, status) in [
            ("/", 404),
            ("/v1/x", 404),
            ("/v2x", 404),
            ("/v2/a", 404),
            ("/v2/a/tags/list", 404),
            (&format!("/v2/a/referrers/sha256:{hex}"), 404),
            (&format!("/v2/a/blobs/sha512:{hex}{hex}"), 404),
            (&format!("/v2/a/blobs/sha256:{}", &hex[1..]), 400),
            ("/v2/a/blobs/latest", 400),
            ("/v2/A/manifests/x", 400),
            ("/v2/a//b/manifests/x", 400),
            ("/v2/../x/manifests/x", 400),
            ("/v2/a/manifests/.x", 400),
            (&format!("/v2/a/blobs/sha256:{hex}?ns=a&ns=b"), 400),
            (&format!("/v2/a/blobs/sha256:{hex}?ns=%ff"), 400),
        ] {
            assert_eq!(route(path).unwrap_err().as_u16(), status, "{path}");
        }
        let refused = Route::of(&Method::POST, &"/v2/a/blobs/uploads/".parse().unwrap()).unwrap_err();
        assert_eq!(refused.status.as_u16(), 405);
    }

    proptest! {
        #[test]
        fn never_panics(path in "/v2/[ -~]{0,80}") {
            if let Ok(uri) = path.parse::<Uri>() {
                let _ = Route::of(&Method::GET, &uri);
            }
        }
    }
}
