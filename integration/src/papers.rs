//! What a node of the lab's own shows, that speaks the protocols by hand: a key, and certificates that control gives it.
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shoal_base::tls::{self, Keeper, Wire};
use shoal_proto::{
    NodeId,
    control::v1::{self as wire, control_client::ControlClient},
    identity::JoinToken,
};
use tonic::transport::{Channel, Endpoint};

use crate::net::Netns;

/// Control answers at once, or there is something wrong.
const BOUND: Duration = Duration::from_secs(5);

/// A key and a certificate.
#[derive(Clone)]
pub struct Papers {
    /// What is shown, and whom it trusts.
    pub keeper: Arc<Keeper>,
    pair: Arc<KeyPair>,
    authorities: Arc<Mutex<Vec<CertificateDer<'static>>>>,
    certificate: Arc<Mutex<Vec<u8>>>,
}

impl Papers {
    /// Joins by a token: the certificate names no cluster yet.
    ///
    /// # Errors
    /// When control can't be reached, or refuses.
    pub async fn join(ns: &Netns, control: SocketAddr, token: &str, node: &NodeId) -> Result<Self> {
        let token: JoinToken = token.parse().context("understand the join token")?;
        let pair = key_of(&token.id, node)?;
        let this = Self { keeper: Keeper::new(), pair, authorities: Arc::default(), certificate: Arc::default() };
        let mut grpc = ControlClient::new(channel(ns, control, Some((&this.keeper, Some(token.ca)))).await?);
        let request =
            wire::JoinRequest { node_id: node.to_string(), signing_request: this.request()?, token: token.reveal() };
        let certified = tokio::time::timeout(BOUND, grpc.join(request)).await.context("no answer to join")??;
        this.take(certified.into_inner())?;
        Ok(this)
    }

    /// Gets a certificate of the cluster that the session's node belongs to.
    ///
    /// # Errors
    /// When control refuses.
    pub async fn certify(&self, grpc: &mut ControlClient<Channel>, session: &[u8]) -> Result<()> {
        let request = wire::CertifyRequest { session: session.to_vec(), signing_request: self.request()? };
        let certified = tokio::time::timeout(BOUND, grpc.certify(request)).await.context("no answer to certify")??;
        self.take(certified.into_inner())
    }

    fn request(&self) -> Result<Vec<u8>> {
        Ok(CertificateParams::default().serialize_request(&*self.pair)?.der().to_vec())
    }

    fn take(&self, certified: wire::Certified) -> Result<()> {
        let authorities: Vec<_> = certified.authorities.into_iter().map(CertificateDer::from).collect();
        ensure!(!authorities.is_empty(), "control names no authority");
        let key = PrivateKeyDer::Pkcs8(self.pair.serialize_der().into());
        *self.certificate.lock().unwrap_or_else(PoisonError::into_inner) = certified.certificate.clone();
        self.keeper.show(vec![CertificateDer::from(certified.certificate)], key)?;
        self.keeper.trust(&authorities)?;
        *self.authorities.lock().unwrap_or_else(PoisonError::into_inner) = authorities;
        Ok(())
    }

    /// The last certificate that it got.
    pub fn certificate(&self) -> Vec<u8> {
        self.certificate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Trusts the same authorities, and shows nothing.
    pub fn stranger(&self) -> Arc<Keeper> {
        let keeper = Keeper::new();
        let authorities = self.authorities.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.trust(&*authorities).expect("they were trusted before");
        keeper
    }
}

/// A node that comes again by the same name has the same key, as one that kept its state.
fn key_of(token: &str, node: &NodeId) -> Result<Arc<KeyPair>> {
    static KEYS: Mutex<BTreeMap<(String, NodeId), Arc<KeyPair>>> = Mutex::new(BTreeMap::new());
    let mut keys = KEYS.lock().unwrap_or_else(PoisonError::into_inner);
    let name = (token.to_owned(), node.clone());
    if let Some(pair) = keys.get(&name) {
        return Ok(pair.clone());
    }
    let pair = Arc::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
    keys.insert(name, pair.clone());
    Ok(pair)
}

/// A channel to control whose connection is made inside the namespace: plain, or secured by a keeper, and pinned when it trusts
/// nobody yet.
///
/// # Errors
/// When it can't be made.
pub async fn channel(
    ns: &Netns,
    control: SocketAddr,
    secured: Option<(&Arc<Keeper>, Option<tls::Pin>)>,
) -> Result<Channel> {
    let ns = ns.clone();
    let config = secured.map(|(keeper, pin)| tls::client(keeper, pin, &[b"h2"]));
    let connect = tower::service_fn(move |_: http::Uri| {
        let (ns, config) = (ns.clone(), config.clone());
        async move {
            let stream = ns.connect(control).await.map_err(std::io::Error::other)?;
            Wire::connect(stream, config).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{control}"))?;
    endpoint.connect_with_connector(connect).await.with_context(|| format!("connect to control at {control}"))
}
