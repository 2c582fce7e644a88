//! The certificate that REST shows: the operator's, read again when it was renewed, or one of control's own authority.
//!
//! What always holds: REST shows a certificate that belongs to its key, or the one before. One of our own authority has host names and no name of
//! a node or of control (SPIFFE), so that no node takes it for control's.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use shoal_base::drain::Drain;
use shoal_base::tls::{self, Keeper};

use crate::identity::Identity;

/// How often files are looked at. A renewed certificate is needed within hours, not at once.
const AGAIN: Duration = Duration::from_secs(10);
/// Before certifying anew is tried again.
const PAUSE: Duration = Duration::from_secs(60);

/// Where the certificate comes from.
#[derive(Clone)]
pub enum Source {
    /// PEM files of the operator: the certificate and those that lead to its authority, and the key.
    Files {
        /// `rest.cert_file`.
        certificate: PathBuf,
        /// `rest.key_file`.
        key: PathBuf,
    },
    /// Our own authority, for these host names and addresses.
    Authority {
        /// Who certifies.
        identity: Arc<Identity>,
        /// For whom.
        names: Vec<String>,
    },
}

/// The certificate, kept up to date by [`Certificate::run`].
pub struct Certificate {
    source: Source,
    keeper: Arc<Keeper>,
    /// What the files held when they were shown.
    read: Option<(Vec<u8>, Vec<u8>)>,
    expires: Gauge,
    /// How long until it is to be looked after.
    next: Duration,
}

impl Certificate {
    /// Shows the first one.
    ///
    /// # Errors
    /// Why there is none, with the setting that is at fault.
    pub fn open(source: Source, registry: &mut Registry) -> Result<Self, String> {
        let expires = Gauge::default();
        let help = "When the certificate of REST ends, in seconds since 1970";
        registry.register("certificate_expiry_timestamp_seconds", help, expires.clone());
        let mut this = Self { source, keeper: Keeper::new(), read: None, expires, next: AGAIN };
        this.refresh()?;
        Ok(this)
    }

    /// What the listener speaks.
    pub fn server(&self) -> Arc<ServerConfig> {
        tls::public(&self.keeper, &[b"http/1.1"])
    }

    /// Looks after it until drained.
    pub async fn run(mut self, drain: Drain) {
        let mut said = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.next) => {}
                () = drain.signalled() => return,
            }
            // Reads two small files, or signs once a day.
            match self.refresh() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!("REST shows a new certificate");
                    said = None;
                }
                Err(why) => {
                    if said.as_ref() != Some(&why) {
                        tracing::error!(why, "REST goes on with the certificate that it has");
                    }
                    said = Some(why);
                    if matches!(self.source, Source::Authority { .. }) {
                        self.next = PAUSE;
                    }
                }
            }
        }
    }

    /// Whether another one is shown now.
    fn refresh(&mut self) -> Result<bool, String> {
        match &self.source {
            Source::Files { certificate, key } => {
                let read = |at: &str, path: &PathBuf| {
                    std::fs::read(path).map_err(|error| format!("{at}: read {}: {error}", path.display()))
                };
                let now = (read("rest.cert_file", certificate)?, read("rest.key_file", key)?);
                if self.read.as_ref() == Some(&now) {
                    return Ok(false);
                }
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&now.0).collect();
                let chain = chain.map_err(|error| format!("rest.cert_file: {}: {error}", certificate.display()))?;
                let secret = PrivateKeyDer::from_pem_slice(&now.1);
                let secret = secret.map_err(|error| format!("rest.key_file: {}: {error}", key.display()))?;
                if chain.is_empty() {
                    return Err(format!("rest.cert_file: {} holds no certificate in PEM", certificate.display()));
                }
                self.show(chain, secret).map_err(|why| format!("rest.cert_file, rest.key_file: {why}"))?;
                self.read = Some(now);
            }
            Source::Authority { identity, names } => {
                let certified = identity.certify_host(names);
                let (chain, key, until) = certified.map_err(|error| format!("rest.names: {error}"))?;
                self.next = until;
                self.show(chain, key)?;
            }
        }
        Ok(true)
    }

    fn show(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|error| error.to_string())?;
        let ends = parsed.validity().not_after.timestamp();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if u64::try_from(ends).is_ok_and(|ends| ends <= now) {
            return Err(format!("the certificate's time was over at {}", parsed.validity().not_after));
        }
        self.keeper.show(chain, key).map_err(|error| error.to_string())?;
        self.expires.set(ends);
        Ok(())
    }
}
