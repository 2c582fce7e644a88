//! The lab's certificate authority: one root, made anew for each run, and leaves for the registry and its token server.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate and its key.
pub struct Leaf {
    /// Certificate in DER.
    pub der: CertificateDer<'static>,
    /// Key in PKCS #8, PEM.
    pub key_pem: String,
    key_der: Vec<u8>,
}

/// The authority. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    root: CertificateDer<'static>,
    /// The root's certificate in a file, PEM.
    pub root_file: PathBuf,
}

impl Authority {
    /// Makes a root and writes its certificate to `dir/ca.pem`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "shoal lab root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("make the root's key")?;
        let root = params.self_signed(&key).context("sign the root")?;
        let root_file = dir.join("ca.pem");
        fs::write(&root_file, root.pem()).with_context(|| format!("write {}", root_file.display()))?;
        Ok(Self { root: root.der().clone(), issuer: Arc::new(Issuer::new(params, key)), root_file })
    }

    /// Makes a certificate for a server that answers to `name`.
    ///
    /// # Errors
    /// When the name is no host name.
    pub fn leaf(&self, name: &str) -> Result<Leaf> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).context("name a certificate")?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.signed_by(&key, self.issuer.as_ref()).context("sign a certificate")?;
        Ok(Leaf { der: certificate.der().clone(), key_pem: key.serialize_pem(), key_der: key.serialize_der() })
    }

    /// How a client that trusts this root alone speaks TLS.
    ///
    /// # Errors
    /// Never in practice: the root was made here.
    pub fn client(&self) -> Result<Arc<rustls::ClientConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).context("trust the lab's root")?;
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

impl Leaf {
    /// Writes certificate and key as `NAME.pem` and `NAME.key`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(&self.der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
        let files = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        fs::write(&files.0, pem).with_context(|| format!("write {}", files.0.display()))?;
        fs::write(&files.1, &self.key_pem).with_context(|| format!("write {}", files.1.display()))?;
        Ok(files)
    }

    /// How a server with this certificate speaks TLS.
    ///
    /// # Errors
    /// When key and certificate do not match.
    pub fn server(&self) -> Result<Arc<rustls::ServerConfig>> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)?;
        Ok(Arc::new(config))
    }
}
