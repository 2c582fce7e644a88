//! Signatures of nodes that are not part of a handshake: made with the key that is shown, checked by the certificate that is to be seen with them.

use std::time::SystemTime;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime, alg_id};
use rustls::server::ParsedCertificate;
use rustls::{Error, SignatureScheme};

use super::{Keeper, Refusal, Seen, read};

/// The one scheme: what every node's key can do.
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// The longest signature that there is (DER of two numbers of 33 bytes).
pub const LONGEST_SIGNATURE: usize = 72;

impl Keeper {
    /// Signs with the key of the certificate that is shown: ECDSA on P-256 with SHA-256, in DER. `None`: nothing is shown, or its key is of
    /// another kind.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let shown = self.shown.load_full()?;
        shown.key.choose_scheme(&[SCHEME])?.sign(message).ok()
    }

    /// The certificate that is shown.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.shown.load().as_ref()?.cert.first().cloned()
    }

    /// Whose signatures a certificate checks, if it leads to a trusted authority and is in its time.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn signatory(&self, certificate: &CertificateDer<'_>, now: SystemTime) -> Result<Signatory, Refusal> {
        let parsed = ParsedCertificate::try_from(certificate).map_err(|_| Refusal::Foreign)?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let algorithms = ring::default_provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots.load_full(),
            &[],
            UnixTime::since_unix_epoch(since),
            algorithms,
        )
        .map_err(|error| Refusal::of_certificate(&error).unwrap_or(Refusal::Foreign))?;
        let seen = read(certificate).map_err(|_| Refusal::Foreign)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| Refusal::Foreign)?;
        Ok(Signatory { seen, key: parsed.public_key().subject_public_key.data.to_vec() })
    }
}

/// Somebody whose signatures can be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signatory {
    /// What the certificate says of its bearer.
    pub seen: Seen,
    /// The point on the curve.
    key: Vec<u8>,
}

impl Signatory {
    /// Whether the time of its certificate is not over, and has begun.
    pub fn counts_at(&self, now: SystemTime) -> bool {
        self.seen.begins <= now && now <= self.seen.ends
    }

    /// Whether it signed that.
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        algorithm().verify_signature(&self.key, message, signature).is_ok()
    }
}

fn algorithm() -> &'static dyn SignatureVerificationAlgorithm {
    let known = ring::default_provider().signature_verification_algorithms;
    let of = known.mapping.iter().find(|(scheme, _)| *scheme == SCHEME).map_or(&[][..], |(_, of)| of);
    // In a handshake of TLS 1.2 the name of the scheme says nothing of the curve, hence the choice.
    let p256 = of.iter().find(|algorithm| algorithm.public_key_alg_id() == alg_id::ECDSA_P256);
    *p256.expect("ring knows P-256")
}

impl Refusal {
    pub(super) fn of_certificate(error: &Error) -> Option<Self> {
        Self::of(&std::io::Error::new(std::io::ErrorKind::InvalidData, error.clone()))
    }
}
