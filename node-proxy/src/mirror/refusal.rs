//! Errors before the first byte, and what the origin's and the engine's errors become for containerd.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use shoal_proto::Kind;

use crate::blob::ReadError;
use crate::origin::OriginError;

/// Error codes of the OCI distribution spec 1.1, "Error Codes", and `UNAVAILABLE` for 502 and 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    ManifestUnknown,
    ManifestInvalid,
    DigestInvalid,
    NameInvalid,
    NameUnknown,
    Denied,
    Unauthorized,
    Unsupported,
    Unavailable,
}

impl Code {
    /// For content that is not there.
    pub(super) const fn unknown(kind: Kind) -> Self {
        match kind {
            Kind::Blob => Self::BlobUnknown,
            Kind::Manifest => Self::ManifestUnknown,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::Denied => "DENIED",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unsupported => "UNSUPPORTED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// An error before the first byte.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: Code,
    pub(super) message: String,
    /// Boxed: a map of headers is large, and most refusals have none.
    pub(super) headers: Box<HeaderMap>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        let mut headers = HeaderMap::new();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        Self { status, code, message: message.into(), headers: Box::new(headers) }
    }

    /// Says it: what sends containerd past us to the registry is something that an operator wants to know.
    pub(super) fn log(&self) {
        let (status, error) = (self.status.as_u16(), &self.message);
        if self.status.is_server_error() {
            tracing::warn!(status, error, "gave nothing; containerd asks the registry itself");
        } else {
            tracing::debug!(status, error, "refused");
        }
    }

    /// 416 for content of `size` bytes.
    pub(super) fn range(size: Option<u64>) -> Self {
        let mut refusal = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::Unsupported, "the range lies outside");
        if let Some(size) = size
            && let Ok(value) = HeaderValue::try_from(format!("bytes */{size}"))
        {
            refusal.headers.insert(header::CONTENT_RANGE, value);
        }
        refusal
    }

    /// A manifest whose Content-Type nobody knows: containerd fails on a guess, and asks the next host on an error.
    pub(super) fn untyped() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, Code::ManifestInvalid, "the registry gave the manifest no Content-Type")
    }

    /// What the origin's word becomes for containerd, which goes on at the next host after any of these.
    pub(super) fn origin(error: &OriginError, unknown: Code) -> Self {
        let text = error.to_string();
        match error {
            OriginError::Unauthorized { challenges, .. } => {
                let mut refusal = Self::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, text);
                for challenge in challenges {
                    refusal.headers.append(header::WWW_AUTHENTICATE, challenge.clone());
                }
                refusal
            }
            OriginError::Denied { .. } => Self::new(StatusCode::FORBIDDEN, Code::Denied, text),
            OriginError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, unknown, text),
            OriginError::Range => Self::range(None),
            // Never 429: containerd repeats it on us at once, five or six times.
            OriginError::Busy { .. }
            | OriginError::Unreachable { .. }
            | OriginError::Stalled { .. }
            | OriginError::Silent { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, text),
            OriginError::Refused { .. } => Self::new(StatusCode::FORBIDDEN, Code::Denied, text),
            OriginError::Nonsense { .. } => Self::new(StatusCode::BAD_GATEWAY, Code::Unavailable, text),
        }
    }

    pub(super) fn read(error: &ReadError, unknown: Code) -> Self {
        match error {
            ReadError::Mismatched(_) | ReadError::NotFound(_) => {
                Self::new(StatusCode::NOT_FOUND, unknown, error.to_string())
            }
            ReadError::Origin(_, origin) => Self::origin(origin, unknown),
            ReadError::Slow { .. } | ReadError::NotKept(..) | ReadError::Failed(..) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, error.to_string())
            }
        }
    }
}
