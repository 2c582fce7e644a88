//! Certificates that control would not give: of an authority that nobody trusts, and of the real one by whoever stole its key.
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, SerialNumber};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shoal_base::tls::Keeper;
use shoal_proto::identity::serial;

const HOUR: Duration = Duration::from_secs(3600);

/// Whose certificates are made.
pub struct Forge {
    issuer: Issuer<'static, KeyPair>,
    authority: CertificateDer<'static>,
}

/// When a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Since an hour ago, for another.
    Now,
    /// It was over an hour ago.
    Over,
}

impl Forge {
    /// An authority of the forger's own.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn own() -> Result<Self> {
        let key = KeyPair::generate().context("make an authority's key")?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).context("sign an authority")?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), authority })
    }

    /// The authority whose files lie in control's state directory.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn stolen(state: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = state.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let (certificate, key) = (read("ca.pem")?, read("ca.key")?);
        let key = KeyPair::from_pem(&key).context("read the authority's key")?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).context("read the authority's certificate")?;
        let mut shown = rustls_pem(&certificate)?;
        Ok(Self { issuer, authority: shown.pop().context("the authority's file is empty")? })
    }

    /// The authority's certificate.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// Lets a keeper show a new key with a certificate for a name (`spiffe://…`), and behind it `behind`.
    ///
    /// # Errors
    /// When the name is none.
    pub fn arm(&self, keeper: &Arc<Keeper>, name: &str, time: Time, behind: &[CertificateDer<'static>]) -> Result<()> {
        let pair = KeyPair::generate().context("make a key")?;
        let now = SystemTime::now();
        let end = match time {
            Time::Now => now + HOUR,
            Time::Over => now - HOUR,
        };
        let micros = now.duration_since(UNIX_EPOCH)?.as_micros();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
        params.serial_number = Some(SerialNumber::from_slice(&serial(u64::try_from(micros)?, rand::random())));
        (params.not_before, params.not_after) = ((end - 2 * HOUR).into(), end.into());
        let certificate = params.signed_by(&pair, &self.issuer).context("sign a certificate")?.der().clone();
        let chain = [certificate].into_iter().chain(behind.iter().cloned()).collect();
        keeper.show(chain, PrivateKeyDer::Pkcs8(pair.serialize_der().into())).context("show a certificate")
    }
}

fn rustls_pem(text: &str) -> Result<Vec<CertificateDer<'static>>> {
    use rustls::pki_types::pem::PemObject;
    let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>();
    all.context("read certificates in PEM")
}
