//! The authority that certifies nodes: its key, and what it signs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use shoal_base::tls;
use shoal_proto::identity::{SpiffeId, Subject, TrustDomain, serial};

use crate::store::{AUTHORITY_CERTIFICATE as CERTIFICATE, AUTHORITY_KEY as KEY};

/// How long an authority that was made here counts.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Clocks of nodes may be behind ours by so much, or be set back. When a certificate was issued its serial number says.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// An authority, in memory with its key.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    trust_domain: TrustDomain,
    ends: SystemTime,
}

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// Who it names.
    pub id: SpiffeId,
    /// The microsecond since 1970 that its serial number holds.
    pub issued: u64,
    /// When it counts no more.
    pub ends: SystemTime,
}

/// What a node wants to have certified: a public key, and the proof that it has the other half.
#[derive(Debug)]
pub struct SigningRequest {
    key: rcgen::PublicKey,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file can't be read or written.
    #[error("{doing} {path}")]
    File {
        /// Verb.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path}: {reason}")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a signing request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// No PKCS#10 request, or its signature is not that of its key.
    #[error("is not a certificate signing request that its own key has signed")]
    Unreadable,
    /// Another kind of key.
    #[error("its key is not an ECDSA key on P-256")]
    Key,
}

impl SigningRequest {
    /// Reads a PKCS#10 request (DER) and checks that it was signed by its key. What it asks for besides is not looked at: control
    /// says what stands in a certificate.
    ///
    /// # Errors
    /// [`BadRequest`].
    pub fn parse(der: &[u8]) -> Result<Self, BadRequest> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
        let key = request.map_err(|_| BadRequest::Unreadable)?.public_key;
        if key.algorithm() == &PKCS_ECDSA_P256_SHA256 { Ok(Self { key }) } else { Err(BadRequest::Key) }
    }

    /// The SHA-256 of the public key: by it a member is known again.
    pub fn key_hash(&self) -> [u8; 32] {
        Sha256::digest(self.key.der_bytes()).into()
    }
}

impl Authority {
    /// Reads the authority from `ca.pem` and `ca.key` in a directory, and makes both, the key for the owner alone, if neither is
    /// there.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn open(dir: &Path, trust_domain: TrustDomain) -> Result<Self, AuthorityError> {
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        if !certificate.exists() && !key.exists() {
            make(&certificate, &key, &trust_domain)?;
            tracing::info!(certificate = %certificate.display(), %trust_domain, "made the authority for nodes");
        }
        Self::supplied(&certificate, &key, trust_domain)
    }

    /// Reads an authority that the operator supplies: a certificate (PEM) and its key (PEM, PKCS#8, ECDSA on P-256).
    ///
    /// # Errors
    /// [`AuthorityError`]; also when others than the owner may read the key.
    pub fn supplied(certificate: &Path, key: &Path, trust_domain: TrustDomain) -> Result<Self, AuthorityError> {
        let unusable = |path: &Path, reason: String| AuthorityError::Unusable { path: path.to_owned(), reason };
        let read = |path: &Path| {
            fs::read(path).map_err(|source| AuthorityError::File { doing: "read", path: path.to_owned(), source })
        };
        let mode = fs::metadata(key).map(|meta| meta.permissions().mode() & 0o777);
        if mode.as_ref().is_ok_and(|mode| mode & 0o077 != 0) {
            let mode = mode.unwrap_or_default();
            return Err(unusable(key, format!("others than its owner may use the key (mode {mode:o}); say chmod 600")));
        }
        let chain = CertificateDer::from_pem_slice(&read(certificate)?);
        let authority =
            chain.map_err(|error| unusable(certificate, format!("holds no certificate in PEM: {error}")))?;
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?);
        let secret = secret.map_err(|error| unusable(key, format!("holds no private key in PEM: {error}")))?;
        let pair = KeyPair::from_der_and_sign_algo(&secret, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| unusable(key, "is not an ECDSA key on P-256".into()))?;
        let ends = check(&authority, &pair).map_err(|reason| unusable(certificate, reason))?;
        let issuer = Issuer::from_ca_cert_der(&authority, pair)
            .map_err(|error| unusable(certificate, format!("can't certify: {error}")))?;
        Ok(Self { certificate: authority, issuer, trust_domain, ends })
    }

    /// Its certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What join tokens carry.
    pub fn pin(&self) -> tls::Pin {
        tls::pin(&self.certificate)
    }

    /// Whose names it certifies.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Certifies a key, for no longer than the authority itself counts. `issued` is what the serial number says of the moment, in
    /// microseconds since 1970.
    ///
    /// # Errors
    /// What the library says; nobody's fault but ours.
    pub fn issue(
        &self,
        request: &SigningRequest,
        subject: Subject,
        life: Duration,
        now: SystemTime,
        issued: u64,
    ) -> Result<Issued, rcgen::Error> {
        let (params, id) = self.params(subject, life, now, issued)?;
        let certificate = params.signed_by(&request.key, &self.issuer)?.der().clone();
        Ok(Issued { certificate, id, issued, ends: self.end(life, now) })
    }

    /// A key and a certificate for the control service itself, as [`tls::Keeper::show`] takes them.
    ///
    /// # Errors
    /// What the library says.
    pub fn own(
        &self,
        life: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), rcgen::Error> {
        let pair = KeyPair::generate()?;
        let (params, _) = self.params(Subject::Control, life, now, micros(now))?;
        let certificate = params.signed_by(&pair, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        Ok((vec![certificate, self.certificate.clone()], key))
    }

    /// A key and a certificate for a host that people reach by these names and addresses. It names nobody among nodes.
    ///
    /// # Errors
    /// What the library says; a name may be none.
    pub fn host(
        &self,
        names: &[String],
        life: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), rcgen::Error> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&serial(micros(now), rand::random())));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = ((now - BACKDATED).into(), self.end(life, now).into());
        let certificate = params.signed_by(&pair, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        Ok((vec![certificate, self.certificate.clone()], key))
    }

    fn end(&self, life: Duration, now: SystemTime) -> SystemTime {
        (now + life).min(self.ends)
    }

    fn params(
        &self,
        subject: Subject,
        life: Duration,
        now: SystemTime,
        issued: u64,
    ) -> Result<(CertificateParams, SpiffeId), rcgen::Error> {
        let id = SpiffeId { trust_domain: self.trust_domain.clone(), subject };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.serial_number = Some(SerialNumber::from_slice(&serial(issued, rand::random())));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = ((now - BACKDATED).into(), self.end(life, now).into());
        Ok((params, id))
    }
}

/// Microseconds since 1970.
pub(super) fn micros(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// Whether a certificate is that of an authority with this key, in its time. When it ends.
fn check(certificate: &CertificateDer<'_>, pair: &KeyPair) -> Result<SystemTime, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| format!("is no certificate: {error}"))?;
    if !parsed.is_ca() {
        return Err("is not the certificate of an authority (basic constraints CA:TRUE)".into());
    }
    if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
        return Err("is not the certificate of the key".into());
    }
    let seconds = |at: x509_parser::time::ASN1Time| Duration::from_secs(at.timestamp().try_into().unwrap_or(0));
    let validity = parsed.validity();
    let (begins, ends) = (UNIX_EPOCH + seconds(validity.not_before), UNIX_EPOCH + seconds(validity.not_after));
    let now = SystemTime::now();
    if now < begins || ends <= now {
        return Err(format!("does not count now: from {} to {}", validity.not_before, validity.not_after));
    }
    Ok(ends)
}

/// Makes an authority. The key is on disk before the certificate is, and neither is there in half.
fn make(certificate: &Path, key: &Path, trust_domain: &TrustDomain) -> Result<(), AuthorityError> {
    let internal =
        |error: rcgen::Error| AuthorityError::Unusable { path: certificate.to_owned(), reason: error.to_string() };
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(internal)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Shoal authority of {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - BACKDATED).into(), (now + LIFE).into());
    let made = params.self_signed(&pair).map_err(internal)?;
    write(key, pair.serialize_pem().as_bytes(), 0o600)?;
    write(certificate, made.pem().as_bytes(), 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let fresh = path.with_extension("new");
    let written = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(|source| AuthorityError::File { doing: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn domain() -> TrustDomain {
        "shoal".parse().unwrap()
    }

    fn request(pair: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(pair).unwrap().der().to_vec()
    }

    #[test]
    fn it_is_made_once_and_its_key_is_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = Authority::open(dir.path(), domain()).unwrap();
        let mode = fs::metadata(dir.path().join(KEY)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(Authority::open(dir.path(), domain()).unwrap().pin(), made.pin());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_certificate_names_what_control_says_and_nothing_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), domain()).unwrap();
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://shoal/control".try_into().unwrap())];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = SigningRequest::parse(params.serialize_request(&pair).unwrap().der()).unwrap();
        let subject = Subject::Member("c1".parse().unwrap(), "n1".parse().unwrap());
        let now = SystemTime::now();
        let issued = authority.issue(&request, subject, DAY, now, 42).unwrap();
        let seen = tls::read(&issued.certificate).unwrap();
        assert_eq!(seen.name, "spiffe://shoal/cluster/c1/node/n1");
        assert_eq!((shoal_proto::identity::issued(&seen.serial), issued.issued), (42, 42));
        assert!(seen.begins < now && now + DAY - Duration::from_secs(2) < seen.ends && seen.ends <= now + DAY);
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
        assert!(!parsed.is_ca());
    }

    #[test]
    fn requests_that_prove_nothing_are_refused() {
        let pair = KeyPair::generate().unwrap();
        let mut forged = request(&pair);
        *forged.last_mut().unwrap() ^= 1;
        for bad in [&b""[..], b"x", &forged] {
            assert_eq!(SigningRequest::parse(bad).unwrap_err(), BadRequest::Unreadable);
        }
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(SigningRequest::parse(&request(&other)).unwrap_err(), BadRequest::Key);
        let (one, again) = (request(&pair), request(&pair));
        let hash = |der: &[u8]| SigningRequest::parse(der).unwrap().key_hash();
        assert_eq!(hash(&one), hash(&again));
        assert_ne!(hash(&one), hash(&request(&KeyPair::generate().unwrap())));
    }

    #[test]
    fn what_the_operator_supplies_is_checked_and_the_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let good = Authority::open(dir.path(), domain()).unwrap();
        let (certificate, key) = (dir.path().join(CERTIFICATE), dir.path().join(KEY));
        let fault = || Authority::supplied(&certificate, &key, domain()).unwrap_err().to_string();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(fault().contains("ca.key") && fault().contains("chmod 600"), "{}", fault());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Authority::supplied(&certificate, &key, domain()).unwrap().pin(), good.pin());

        let pem = fs::read(&certificate).unwrap();
        fs::write(&certificate, "nothing").unwrap();
        assert!(fault().contains("ca.pem: holds no certificate"), "{}", fault());
        // A leaf, and then the authority of another key.
        let pair = KeyPair::from_pem(&fs::read_to_string(&key).unwrap()).unwrap();
        let leaf = CertificateParams::default().self_signed(&pair).unwrap();
        fs::write(&certificate, leaf.pem()).unwrap();
        assert!(fault().contains("not the certificate of an authority"), "{}", fault());
        let other = tempfile::tempdir().unwrap();
        Authority::open(other.path(), domain()).unwrap();
        fs::copy(other.path().join(CERTIFICATE), &certificate).unwrap();
        assert!(fault().contains("not the certificate of the key"), "{}", fault());
        fs::write(&certificate, pem).unwrap();
        fs::write(&key, "nothing").unwrap();
        assert!(fault().contains("ca.key: holds no private key"), "{}", fault());
        fs::remove_file(&key).unwrap();
        assert!(
            fault().contains("read") && fault().contains("ca.key"),
            "a key that is gone is not made anew: {}",
            fault()
        );
    }

    #[test]
    fn nothing_counts_longer_than_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), domain()).unwrap();
        let request = SigningRequest::parse(&request(&KeyPair::generate().unwrap())).unwrap();
        let subject = Subject::Newcomer("n1".parse().unwrap());
        let issued = authority.issue(&request, subject, LIFE * 2, SystemTime::now(), 1).unwrap();
        assert!(issued.ends <= authority.ends);
    }
}
