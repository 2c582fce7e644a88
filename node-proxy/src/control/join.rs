//! How this node gets its certificates from control, and how it knows that it talks to control.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Uri;
use hyper_util::rt::TokioIo;
use shoal_base::tls::{self, Wire};
use shoal_proto::ClusterId;
use shoal_proto::control::v1 as wire;
use shoal_proto::control::v1::control_client::ControlClient;
use shoal_proto::identity::{Bearer, Subject};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::identity::{Identity, Own};
use super::invitation::Invitation;
use super::{Client, Metrics};

/// Joining writes to control's disk.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Less than a lease: heartbeats wait meanwhile.
const CERTIFY_TIMEOUT: Duration = Duration::from_secs(2);
/// Before a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(30);

/// A lazy channel over mutual TLS: each connection shows the certificate of that moment, and must lead to control.
pub(super) fn channel(endpoint: &Endpoint, identity: Arc<Identity>, metrics: Metrics) -> Channel {
    dial(endpoint, identity, None, metrics)
}

/// A channel to a control that is known by its authority alone; nothing is shown to it.
fn pinned(endpoint: &Endpoint, identity: Arc<Identity>, pin: tls::Pin, metrics: Metrics) -> Channel {
    dial(endpoint, identity, Some(pin), metrics)
}

fn dial(endpoint: &Endpoint, identity: Arc<Identity>, pin: Option<tls::Pin>, metrics: Metrics) -> Channel {
    let connector = tower::service_fn(move |uri: Uri| {
        let (identity, metrics) = (identity.clone(), metrics.clone());
        async move { secure(&uri, &identity, pin, &metrics).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector_lazy(connector)
}

async fn secure(uri: &Uri, identity: &Identity, pin: Option<tls::Pin>, metrics: &Metrics) -> io::Result<Wire> {
    // Said once for each attempt; the session's own line says that control is away.
    let impostor = |why: &str| {
        metrics.impostors.inc();
        tracing::warn!(why, "what answers at control.endpoint is not this installation's control");
        io::Error::new(io::ErrorKind::PermissionDenied, format!("not our control: {why}"))
    };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    let client = tls::client(identity.keeper(), pin, &[b"h2"]);
    let wire = Wire::connect(stream, Some(client)).await.map_err(|error| match tls::Refusal::of(&error) {
        Some(refusal) => impostor(&refusal.to_string()),
        None => error,
    })?;
    let seen = wire.seen().and_then(|seen| seen.ok_or_else(|| "it shows no certificate".into()));
    let seen = seen.map_err(|why| impostor(&why))?;
    let bearer = Bearer::new(&seen.name, &seen.serial).map_err(|unfit| impostor(&unfit.to_string()))?;
    let fits = match identity.domain() {
        Some(domain) => bearer.is_control(&domain).map_err(|unfit| unfit.to_string()),
        // The first contact: the authority was checked by its pin, and tells the domain.
        None if bearer.id.subject == Subject::Control => Ok(()),
        None => Err(format!("its certificate is that of {}", bearer.id)),
    };
    fits.map_err(|why| impostor(&why))?;
    Ok(wire)
}

impl Client {
    /// Makes sure that there is a certificate to begin a session with.
    pub(super) async fn be_member(&self) -> Result<(), Status> {
        let Some(identity) = &self.identity else { return Ok(()) };
        let invitation = match &self.config.join {
            Some(by) => Some(Invitation::read(by).await),
            None => None,
        };
        let known = identity.authority();
        // Whoever put an invitation to another authority there wants the node to join there.
        let elsewhere = matches!(&invitation, Some(Ok(invitation)) if Some(invitation.authority) != known);
        if identity.own().is_some() && !elsewhere {
            return Ok(());
        }
        if let Some(pin) = known.filter(|_| !elsewhere) {
            match self.join(identity, pin, String::new()).await {
                Ok(own) => return self.joined(&own),
                Err(status) if invitation.is_none() || !is_refusal(&status) => return Err(status),
                Err(status) => {
                    tracing::info!(error = status.message(), "not known by the key any more; joins by token")
                }
            }
        }
        let Some(invitation) = invitation else {
            let why = "control.join_token_file, or control.service_account_token_file: is needed to join";
            return Err(Status::failed_precondition(why));
        };
        let Invitation { authority, token } = invitation?;
        let own = self.join(identity, authority, token).await?;
        self.joined(&own)
    }

    fn joined(&self, own: &Own) -> Result<(), Status> {
        tracing::info!(id = %own.bearer.id, "certified by control");
        self.metrics.certified_until(own.ends);
        Ok(())
    }

    async fn join(&self, identity: &Arc<Identity>, pin: tls::Pin, token: String) -> Result<Own, Status> {
        let endpoint = self.endpoint.as_ref().ok_or_else(|| Status::unavailable("no control is configured"))?;
        let mut grpc = ControlClient::new(pinned(endpoint, identity.clone(), pin, self.metrics.clone()));
        let request = wire::JoinRequest { node_id: self.node.to_string(), signing_request: identity.request()?, token };
        let joining = tokio::time::timeout(JOIN_TIMEOUT, grpc.join(request)).await;
        let certified = joining.map_err(|_| Status::deadline_exceeded("control does not answer"))??;
        identity.take(certified.into_inner())
    }

    /// Makes sure that the certificate is of the cluster that the session's node is assigned to.
    pub(super) async fn be_certified(&self, session: &[u8], cluster: Option<&ClusterId>) -> Result<(), Status> {
        let Some(identity) = &self.identity else { return Ok(()) };
        if identity.is_of(cluster) {
            return Ok(());
        }
        let own = self.certify(identity, session).await?;
        if own.bearer.id.cluster() != cluster {
            return Err(Status::aborted(format!("certified as {}, while it was moved again", own.bearer.id)));
        }
        Ok(())
    }

    async fn certify(&self, identity: &Identity, session: &[u8]) -> Result<Own, Status> {
        let mut grpc = self.grpc().ok_or_else(|| Status::unavailable("no control is configured"))?;
        let request = wire::CertifyRequest { session: session.to_vec(), signing_request: identity.request()? };
        let asking = tokio::time::timeout(CERTIFY_TIMEOUT, grpc.certify(request)).await;
        let certified = asking.map_err(|_| Status::deadline_exceeded("control does not answer"))??;
        let own = identity.take(certified.into_inner())?;
        self.joined(&own)?;
        Ok(own)
    }

    /// How long until the certificate is to be renewed; for ever without one.
    pub(super) fn renewal(&self) -> Duration {
        let own = self.identity.as_ref().and_then(|identity| identity.own());
        own.map_or(Duration::MAX, |own| own.renew_in(SystemTime::now()))
    }

    /// Renews the certificate. How long until the next time.
    pub(super) async fn renew(&self, session: &[u8]) -> Duration {
        let Some(identity) = &self.identity else { return Duration::MAX };
        match self.certify(identity, session).await {
            Ok(own) => own.renew_in(SystemTime::now()),
            Err(status) => {
                tracing::warn!(error = status.message(), "can't renew the certificate; tries again in {RENEW_AGAIN:?}");
                RENEW_AGAIN
            }
        }
    }

    /// What control said of who this node is: a certificate that it does not take is dropped.
    pub(super) fn heed(&self, status: &Status) {
        if let Some(identity) = &self.identity
            && status.code() == tonic::Code::Unauthenticated
        {
            identity.forget();
        }
    }
}

/// Whether control was there, and did not want this node.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied)
}
