//! What this node shows of itself: its key, its certificate, whom it trusts, and whose certificates count no more.
//!
//! Kept in `identity.json` in the state directory, for the owner alone. The key is made on the first start and never leaves the node.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use shoal_base::tls::{self, Keeper, Secured};
use shoal_proto::control::v1 as wire;
use shoal_proto::identity::{Bearer, Known, TrustDomain};
use shoal_proto::{ClusterId, NodeId};
use tokio::sync::watch;

use super::ControlError;

const FILE: &str = "identity.json";

#[derive(Serialize, Deserialize, Clone, Default)]
#[serde(default)]
struct File {
    /// PKCS#8, base64, as all that follows.
    key: String,
    certificate: Option<String>,
    authorities: Vec<String>,
    trust_domain: Option<String>,
    voids: BTreeMap<NodeId, u64>,
}

/// A certificate of this node.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) bearer: Bearer,
    pub(super) ends: SystemTime,
}

/// However short a certificate counts, it is not renewed more often.
const RENEW_AT_MOST_EVERY: Duration = Duration::from_secs(1);

impl Own {
    /// How long until it is to be renewed: at two thirds of its time since it was issued. When it begins to count says nothing:
    /// that lies before, for clocks that are behind.
    pub(super) fn renew_in(&self, now: SystemTime) -> Duration {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_micros(self.bearer.issued);
        let life = self.ends.duration_since(issued).unwrap_or_default();
        (issued + life * 2 / 3).duration_since(now).unwrap_or_default().max(RENEW_AT_MOST_EVERY)
    }
}

/// This node's identity. One for the whole process.
pub(super) struct Identity {
    path: PathBuf,
    pair: KeyPair,
    keeper: Arc<Keeper>,
    known: watch::Sender<Arc<Known>>,
    state: Mutex<State>,
}

struct State {
    file: File,
    own: Option<Own>,
}

impl Identity {
    /// Reads the identity, and makes a key on the first start.
    pub(super) fn open(dir: &Path) -> Result<Self, ControlError> {
        let path = dir.join(FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| ControlError::State { action, path, source }
        };
        let unusable = |reason: String| ControlError::Identity { path: path.clone(), reason };
        let file = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair =
                    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| unusable(error.to_string()))?;
                let file = File { key: BASE64.encode(pair.serialize_der()), ..File::default() };
                write(&path, &file).map_err(failed("write"))?;
                file
            }
            Err(error) => return Err(failed("read")(error)),
        };
        let der = BASE64.decode(&file.key).map_err(|error| unusable(format!("key: {error}")))?;
        let key = PrivateKeyDer::try_from(der).map_err(|error| unusable(format!("key: {error}")))?;
        let pair = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
        let pair = pair.map_err(|error| unusable(format!("key: {error}")))?;
        let this = Self {
            path: path.clone(),
            pair,
            keeper: Keeper::new(),
            known: watch::Sender::default(),
            state: Mutex::new(State { file: file.clone(), own: None }),
        };
        // What can't be used is left; the node joins anew.
        if let Err(reason) = this.restore(&file) {
            tracing::warn!(path = %path.display(), reason, "the certificate on disk is of no use");
        }
        Ok(this)
    }

    fn restore(&self, file: &File) -> Result<(), String> {
        let decode = |text: &String| BASE64.decode(text).map(CertificateDer::from).map_err(|error| error.to_string());
        let authorities = file.authorities.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        self.keeper.trust(&authorities).map_err(|error| error.to_string())?;
        let domain = file.trust_domain.as_ref().map(|text| text.parse::<TrustDomain>()).transpose();
        let domain = domain.map_err(|error| error.to_string())?;
        self.known.send_modify(|known| {
            let known = Arc::make_mut(known);
            known.domain = domain;
            file.voids.iter().for_each(|(node, before)| known.voids.add(node.clone(), *before));
        });
        if let Some(certificate) = file.certificate.as_ref().map(decode).transpose()? {
            self.show(certificate)?;
        }
        Ok(())
    }

    fn show(&self, certificate: CertificateDer<'static>) -> Result<Own, String> {
        let seen = tls::read(&certificate)?;
        let bearer = Bearer::new(&seen.name, &seen.serial).map_err(|unfit| unfit.to_string())?;
        let key = PrivateKeyDer::Pkcs8(self.pair.serialize_der().into());
        self.keeper
            .show(vec![certificate], key)
            .map_err(|error| format!("it is not that of this node's key: {error}"))?;
        let own = Own { bearer, ends: seen.ends };
        self.state.lock().own = Some(own.clone());
        Ok(own)
    }

    /// What connections of this node are made with.
    pub(super) fn secured(&self) -> Secured<Known> {
        Secured { keeper: self.keeper.clone(), known: self.known.subscribe() }
    }

    pub(super) const fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// What certificates are judged by now.
    pub(super) fn known(&self) -> Arc<Known> {
        self.known.borrow().clone()
    }

    pub(super) fn domain(&self) -> Option<TrustDomain> {
        self.known.borrow().domain.clone()
    }

    /// The certificate, while its time is not over.
    pub(super) fn own(&self) -> Option<Own> {
        self.state.lock().own.clone().filter(|own| SystemTime::now() < own.ends)
    }

    /// Whether the certificate is of that cluster, or of none, and was not declared void.
    pub(super) fn is_of(&self, cluster: Option<&ClusterId>) -> bool {
        let Some(own) = self.own() else { return false };
        let id = &own.bearer.id;
        let void = id.node().is_none_or(|node| self.known.borrow().voids.cover(node, own.bearer.issued));
        id.cluster() == cluster && !void
    }

    /// The pin of an authority that is known from before.
    pub(super) fn authority(&self) -> Option<tls::Pin> {
        let state = self.state.lock();
        let der = BASE64.decode(state.file.authorities.first()?).ok()?;
        Some(tls::pin(&CertificateDer::from(der)))
    }

    /// A request for a certificate (PKCS#10, DER). What is to stand in it control says.
    pub(super) fn request(&self) -> Result<Vec<u8>, tonic::Status> {
        let request = CertificateParams::default().serialize_request(&self.pair);
        let request = request.map_err(|error| tonic::Status::internal(format!("sign a request: {error}")))?;
        Ok(request.der().to_vec())
    }

    /// Takes a certificate that control gave over a connection that was verified.
    pub(super) fn take(&self, certified: wire::Certified) -> Result<Own, tonic::Status> {
        let bad = |reason: String| tonic::Status::internal(format!("control gave a certificate of no use: {reason}"));
        let wire::Certified { certificate, authorities, trust_domain } = certified;
        let domain: TrustDomain = trust_domain.parse().map_err(|error| bad(format!("trust_domain: {error}")))?;
        let trusted: Vec<CertificateDer<'static>> = authorities.into_iter().map(CertificateDer::from).collect();
        if trusted.is_empty() {
            return Err(bad("it names no authority".into()));
        }
        let certificate = CertificateDer::from(certificate);
        let own = self.show(certificate.clone()).map_err(bad)?;
        if own.bearer.id.trust_domain != domain {
            return Err(bad(format!("it is of trust domain {}, not {domain}", own.bearer.id.trust_domain)));
        }
        self.keeper.trust(&trusted).map_err(|error| bad(error.to_string()))?;
        self.known.send_modify(|known| Arc::make_mut(known).domain = Some(domain.clone()));
        let mut state = self.state.lock();
        state.file.certificate = Some(BASE64.encode(&certificate));
        state.file.authorities = trusted.iter().map(|authority| BASE64.encode(authority)).collect();
        state.file.trust_domain = Some(domain.to_string());
        self.keep(&state.file);
        Ok(own)
    }

    /// The certificate is of no use to control any more: join anew.
    pub(super) fn forget(&self) {
        self.state.lock().own = None;
    }

    /// Takes what control declares void; `reset`: that is all there is.
    pub(super) fn void(&self, voided: wire::Voided) {
        let voids: Vec<(NodeId, u64)> = voided
            .nodes
            .into_iter()
            .filter_map(|void| Some((void.node_id.parse().ok()?, void.issued_before)))
            .collect();
        if voids.is_empty() && !voided.reset {
            return;
        }
        self.known.send_modify(|known| {
            let known = Arc::make_mut(known);
            if voided.reset {
                known.voids = Default::default();
            }
            voids.iter().for_each(|(node, before)| known.voids.add(node.clone(), *before));
        });
        let mut state = self.state.lock();
        let now = self.known.borrow().voids.iter().map(|(node, before)| (node.clone(), before)).collect();
        if state.file.voids != now {
            state.file.voids = now;
            self.keep(&state.file);
        }
    }

    fn keep(&self, file: &File) {
        if let Err(error) = write(&self.path, file) {
            tracing::warn!(path = %self.path.display(), %error, "remember the identity");
        }
    }
}

/// Writes it for the owner alone, so that after a crash it is the old or the new one.
fn write(path: &Path, file: &File) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    out.write_all(&serde_json::to_vec_pretty(file)?)?;
    out.sync_all()?;
    fs::rename(&fresh, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer, SanType, SerialNumber};
    use rustls_pki_types::CertificateSigningRequestDer;
    use shoal_proto::identity::serial;

    use super::*;

    /// What control does with a request.
    pub(in super::super) struct Authority(Issuer<'static, KeyPair>, Vec<u8>);

    impl Authority {
        pub(in super::super) fn new() -> Self {
            let pair = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&pair).unwrap().der().to_vec();
            Self(Issuer::new(params, pair), certificate)
        }

        pub(in super::super) fn certify(&self, request: &[u8], name: &str, life: Duration) -> wire::Certified {
            let request =
                CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request)).unwrap();
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
            let now = SystemTime::now();
            let issued = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64;
            params.serial_number = Some(SerialNumber::from_slice(&serial(issued, 1)));
            (params.not_before, params.not_after) = ((now - DAY).into(), (now + life).into());
            let certificate = params.signed_by(&request.public_key, &self.0).unwrap().der().to_vec();
            wire::Certified { certificate, authorities: vec![self.1.clone()], trust_domain: "shoal".into() }
        }
    }

    pub(in super::super) const DAY: Duration = Duration::from_secs(24 * 3600);
    const NAME: &str = "spiffe://shoal/cluster/c1/node/n1";

    #[test]
    fn the_key_is_made_once_and_kept_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let public = |identity: &Identity| identity.pair.public_key_raw().to_vec();
        let made = Identity::open(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(made.own().is_none() && made.authority().is_none());
        assert_eq!(public(&Identity::open(dir.path()).unwrap()), public(&made));
    }

    #[test]
    fn a_certificate_outlives_the_process_until_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let (identity, authority) = (Identity::open(dir.path()).unwrap(), Authority::new());
        let own = identity.take(authority.certify(&identity.request().unwrap(), NAME, DAY)).unwrap();
        assert_eq!(own.bearer.id.to_string(), NAME);
        let left = own.renew_in(SystemTime::now());
        assert!(DAY * 2 / 3 - Duration::from_secs(5) < left && left <= DAY * 2 / 3, "{left:?}");
        identity.void(wire::Voided {
            reset: true,
            nodes: vec![wire::VoidCertificates { node_id: "n2".into(), issued_before: 7 }],
        });
        let again = Identity::open(dir.path()).unwrap();
        let (cluster, other): (ClusterId, ClusterId) = ("c1".parse().unwrap(), "c2".parse().unwrap());
        assert!(again.is_of(Some(&cluster)) && !again.is_of(Some(&other)) && !again.is_of(None));
        assert!(again.known.borrow().voids.cover(&"n2".parse().unwrap(), 6));
        assert_eq!(again.domain().unwrap().as_str(), "shoal");
        assert!(again.authority().is_some());
        let its_own = vec![wire::VoidCertificates { node_id: "n1".into(), issued_before: own.bearer.issued + 1 }];
        again.void(wire::Voided { reset: false, nodes: its_own });
        assert!(!again.is_of(Some(&cluster)), "its own was declared void");
        again.void(wire::Voided { reset: true, nodes: Vec::new() });
        assert!(!Identity::open(dir.path()).unwrap().known.borrow().voids.cover(&"n2".parse().unwrap(), 6));
        again.take(authority.certify(&again.request().unwrap(), NAME, Duration::ZERO)).unwrap();
        assert!(again.own().is_none() && !Identity::open(dir.path()).unwrap().is_of(Some(&cluster)));
    }

    #[test]
    fn a_certificate_of_another_key_or_domain_is_not_taken() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (identity, other) = (Identity::open(dir.path()).unwrap(), Identity::open(other.path()).unwrap());
        let authority = Authority::new();
        let foreign = authority.certify(&other.request().unwrap(), NAME, DAY);
        assert!(identity.take(foreign).unwrap_err().message().contains("key"));
        let request = identity.request().unwrap();
        let elsewhere = authority.certify(&request, "spiffe://other/node/n1", DAY);
        assert!(identity.take(elsewhere).unwrap_err().message().contains("trust domain"));
        let nobody = wire::Certified { authorities: Vec::new(), ..authority.certify(&request, NAME, DAY) };
        assert!(identity.take(nobody).unwrap_err().message().contains("authority"));
    }

    #[test]
    fn a_file_that_is_no_identity_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["nonsense", "{}", r#"{"key": "AAAA"}"#] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = Identity::open(dir.path()).map(drop).unwrap_err().to_string();
            assert!(error.contains("identity.json"), "{error}");
        }
    }
}
