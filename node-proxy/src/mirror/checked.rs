//! A body from past the store, checked as it flows.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use shoal_proto::Digest;

use crate::origin::{Body, OriginError};

/// Content that is streamed from the origin. A whole one is hashed on its way, and its last bytes are given only if the digest is
/// the right one, so that wrong bytes never make a complete body (I7). Of a part nobody can say more than how long it is.
pub(super) struct Checked {
    body: Body,
    whole: Option<Whole>,
}

struct Whole {
    wanted: Digest,
    hasher: Sha256,
    /// The latest bytes. They are the last ones as long as nothing comes after them.
    latest: Option<Bytes>,
    registry: String,
}

impl Checked {
    /// `body` is content of `registry`, none of which was read yet, and `digest` what the whole of it is.
    pub(super) fn new(body: Body, digest: Digest, registry: String) -> Self {
        let whole = (!body.partial).then(|| Whole { wanted: digest, hasher: Sha256::new(), latest: None, registry });
        Self { body, whole }
    }

    /// The next bytes; `None` after the last. It ends with an error.
    ///
    /// # Errors
    /// Those of [`Body::next`], and [`OriginError::Nonsense`] in place of the last bytes when the digest is another one.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        while let Some(whole) = &mut self.whole {
            match self.body.next().await {
                Some(Ok(bytes)) => {
                    whole.hasher.update(&bytes);
                    if let Some(before) = whole.latest.replace(bytes) {
                        return Some(Ok(before));
                    }
                }
                Some(Err(error)) => {
                    self.whole = None;
                    return Some(Err(error));
                }
                None => return self.whole.take().and_then(Whole::end),
            }
        }
        self.body.next().await
    }
}

impl Whole {
    /// The last bytes, if they and those before are the content.
    fn end(self) -> Option<Result<Bytes, OriginError>> {
        let got = Digest::from_bytes(self.hasher.finalize().into());
        if got == self.wanted {
            return self.latest.map(Ok);
        }
        let why = format!("content with the digest {got} for {}", self.wanted);
        Some(Err(OriginError::Nonsense { registry: self.registry, why }))
    }
}
