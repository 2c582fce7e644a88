//! Mutual TLS 1.3 inside one installation: what this process shows, whom it trusts, and why somebody was refused.
//!
//! Owns the rustls settings of every connection between daemons. Does not own names: what a certificate calls its bearer is
//! given back as text ([`Seen`]), and the caller decides whether that is somebody to talk to. Certificates and trusted
//! authorities can be exchanged while connections live ([`Keeper`]); a connection keeps what it was made with.
//!
//! What always holds: TLS 1.3 only; a certificate must lead to one of the trusted authorities, be in its time, and its bearer must
//! have its key; no session is resumed, so that each connection was looked at by today's rules.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error,
    RootCertStore, ServerConfig, SignatureScheme,
};
use sha2::{Digest as _, Sha256};

mod signature;
#[cfg(test)]
mod tests;
mod wire;

pub use signature::{LONGEST_SIGNATURE, Signatory};
pub use wire::{Reader, Wire, Writer};

/// Whether daemons show each other certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They do.
    #[default]
    On,
    /// They do not: whoever is in a listed network is who they say.
    Off,
}

/// The SHA-256 of a certificate (DER).
pub type Pin = [u8; 32];

/// The pin of a certificate.
pub fn pin(certificate: &CertificateDer<'_>) -> Pin {
    Sha256::digest(certificate).into()
}

/// What this process shows of itself, and whom it trusts; both may change while it runs.
#[derive(Debug)]
pub struct Keeper {
    shown: ArcSwapOption<CertifiedKey>,
    roots: ArcSwap<RootCertStore>,
    /// How often it was said who is trusted.
    trusted: AtomicU64,
}

impl Keeper {
    /// Shows nothing and trusts nobody.
    pub fn new() -> Arc<Self> {
        let roots = ArcSwap::from_pointee(RootCertStore::empty());
        Arc::new(Self { shown: ArcSwapOption::empty(), roots, trusted: AtomicU64::new(0) })
    }

    /// Shows this certificate from now on: the bearer's first, then those that lead to the authority.
    ///
    /// # Errors
    /// The key is of a kind that is not known, or not that of the certificate.
    pub fn show(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), Error> {
        let shown = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        self.shown.store(Some(Arc::new(shown)));
        Ok(())
    }

    /// Trusts these authorities from now on, and no others.
    ///
    /// # Errors
    /// One of them is no certificate.
    pub fn trust<'a>(&self, authorities: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.clone())?;
        }
        self.roots.store(Arc::new(roots));
        self.trusted.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Another number whenever other authorities are trusted: what was found out about certificates before counts no more.
    pub fn trusts(&self) -> u64 {
        self.trusted.load(Ordering::Acquire)
    }

    /// Whether there is a certificate to show.
    pub fn is_shown(&self) -> bool {
        self.shown.load().is_some()
    }
}

/// What a room needs to speak TLS: what is shown and trusted, and what else it must know of those who show something.
#[derive(Debug, Clone)]
pub struct Secured<K> {
    /// What is shown and trusted.
    pub keeper: Arc<Keeper>,
    /// Whatever the room checks names against; it may change.
    pub known: tokio::sync::watch::Receiver<Arc<K>>,
}

impl ResolvesServerCert for Keeper {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.load_full()
    }
}

impl ResolvesClientCert for Keeper {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.shown.load_full()
    }

    fn has_certs(&self) -> bool {
        self.is_shown()
    }
}

/// What encrypts: AES with keys of 128 bits first, which TLS 1.3 asks of everybody (RFC 8446, 9.1) and which costs least per byte.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// Settings of a listener. `required`: a client without a certificate is refused; else it is let in without a name. `alpn` may be
/// empty.
pub fn server(keeper: &Arc<Keeper>, required: bool, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(Check { keeper: keeper.clone(), required, pinned: None, provider: provider.clone() });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring knows TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(keeper.clone());
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// Settings of a listener for people: it shows a certificate and asks for none.
pub fn public(keeper: &Arc<Keeper>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring knows TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(keeper.clone());
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// Settings of a client. With a pin, the server must show an authority with that pin, and be certified by it; nothing is shown to
/// it. Without, the server must be certified by a trusted authority.
pub fn client(keeper: &Arc<Keeper>, pinned: Option<Pin>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(Check { keeper: keeper.clone(), required: true, pinned, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match pinned {
        Some(_) => config.with_no_client_auth(),
        None => config.with_client_cert_resolver(keeper.clone()),
    };
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// What a connection needs for a server name: names are in the certificate, not here.
pub fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into())
}

/// The checks of both sides: the chain and the time, not the name.
#[derive(Debug)]
struct Check {
    keeper: Arc<Keeper>,
    required: bool,
    pinned: Option<Pin>,
    provider: Arc<CryptoProvider>,
}

impl Check {
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let Some(pinned) = self.pinned else { return Ok(self.keeper.roots.load_full()) };
        let authority = shown.iter().find(|certificate| pin(certificate) == pinned);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        Ok(Arc::new(roots))
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Check {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &*self.roots(between)?, between, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Check {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let roots = self.roots(between)?;
        if roots.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, self.provider.clone()).build();
        let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_client_cert(certificate, between, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a certificate says of its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its one URI name.
    pub name: String,
    /// Big endian, as in the certificate.
    pub serial: Vec<u8>,
    /// The SHA-256 of the public key, without what says of which kind it is.
    pub key: [u8; 32],
    /// The first second in which it counts.
    pub begins: SystemTime,
    /// The last second in which it counts.
    pub ends: SystemTime,
}

/// Reads a certificate.
///
/// # Errors
/// What is wrong with it: it is none, or has not exactly one URI name.
pub fn read(certificate: &CertificateDer<'_>) -> Result<Seen, String> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| format!("it is no certificate: {error}"))?;
    let names = parsed.subject_alternative_name().map_err(|error| format!("its names can't be read: {error}"))?;
    let mut names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err("it has not exactly one URI name".into());
    };
    let at =
        |time: x509_parser::time::ASN1Time| UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap_or(0));
    let validity = parsed.validity();
    Ok(Seen {
        name,
        serial: parsed.raw_serial().to_vec(),
        key: Sha256::digest(&parsed.public_key().subject_public_key.data).into(),
        begins: at(validity.not_before),
        ends: at(validity.not_after),
    })
}

/// What the other side of a connection showed, after the handshake. `None`: no certificate.
///
/// # Errors
/// As [`read`].
pub fn seen(connection: &CommonState) -> Result<Option<Seen>, String> {
    connection.peer_certificates().and_then(<[_]>::first).map(read).transpose()
}

/// Why there is no connection, as metrics and logs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It showed no certificate.
    NoCertificate,
    /// Certified by an authority that is not trusted here.
    Foreign,
    /// Its certificate's time is over, or has not begun.
    Expired,
    /// The other side ended the handshake: it refuses us.
    Refused,
    /// It does not speak TLS 1.3.
    NotTls,
}

impl Refusal {
    /// Why a handshake failed. `None`: the connection broke, or something that is nobody's fault.
    pub fn of(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })
            | Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                Self::Expired
            }
            Error::InvalidCertificate(_) => Self::Foreign,
            Error::AlertReceived(_) => Self::Refused,
            Error::InvalidMessage(_) | Error::PeerIncompatible(_) | Error::PeerMisbehaved(_) => Self::NotTls,
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "it showed no certificate",
            Self::Foreign => "its certificate is not from an authority that is trusted here",
            Self::Expired => "its certificate's time is over, or has not begun",
            Self::Refused => "it refuses this node's certificate",
            Self::NotTls => "it does not speak TLS 1.3",
        })
    }
}
