//! Who is at the other end of a connection, and what they may call.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use shoal_base::sparse::Sparse;
use shoal_base::tls;
use shoal_proto::identity::{Bearer, Unfit};
use tonic::{Request, Status};

use super::inbound::From;
use crate::identity::kubernetes::Unvouched;
use crate::identity::{Error, Identity, Reason};
use crate::swarm::Certificate;

/// One of ours has some 500 bytes.
const LONGEST_CERTIFICATE: usize = 4096;

/// Whoever connected.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// There is no TLS, and no telling.
    Anyone,
    /// Without a certificate: may join.
    Stranger,
    /// With one that leads to our authority.
    Bearer(Shown),
}

/// A certificate that was shown.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// Who it names.
    pub(super) bearer: Bearer,
    /// Of its public key.
    pub(super) key: [u8; 32],
}

/// What nodes must show; without it anybody in a listed network is who they say.
#[derive(Clone)]
pub struct Gate {
    secured: Option<Secured>,
    /// Of lines about nodes that were refused.
    lines: Arc<Sparse<Option<Reason>>>,
}

#[derive(Clone)]
struct Secured {
    identity: Arc<Identity>,
    config: Arc<rustls::ServerConfig>,
}

impl Gate {
    /// No TLS: for labs, and for networks where nobody else is.
    pub fn open() -> Self {
        Self { secured: None, lines: Arc::default() }
    }

    /// TLS, with what `keeper` shows and trusts.
    pub fn secured(identity: Arc<Identity>, keeper: &Arc<tls::Keeper>) -> Self {
        let config = tls::server(keeper, false, &[b"h2"]);
        Self { secured: Some(Secured { identity, config }), lines: Arc::default() }
    }

    pub(super) fn identity(&self) -> Option<&Arc<Identity>> {
        self.secured.as_ref().map(|secured| &secured.identity)
    }

    pub(super) fn config(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.secured.as_ref().map(|secured| secured.config.clone())
    }

    /// Counts that somebody was refused, and logs it unless that happens too often.
    pub(super) fn refuse(&self, reason: Option<Reason>, why: &str, from: &str) {
        if let Some((identity, reason)) = self.identity().zip(reason) {
            identity.metrics().refused(reason);
        }
        if let Some(left_out) = self.lines.next(reason) {
            tracing::warn!(from, why, left_out, "refused a node");
        }
    }

    /// By what the caller's signatures are to be checked, which must be its own certificate; `None` where there is no TLS, or it shows none.
    /// Whether it counts is for those to say who are told of it.
    pub(super) fn certificate(&self, shown: Option<&Shown>, der: Vec<u8>) -> Result<Option<Certificate>, Status> {
        let Some(shown) = shown.filter(|_| !der.is_empty()) else { return Ok(None) };
        let bad = |why: &str| Status::invalid_argument(format!("certificate: {why}"));
        if der.len() > LONGEST_CERTIFICATE {
            return Err(bad(&format!("longer than {LONGEST_CERTIFICATE} bytes")));
        }
        let der = CertificateDer::from(der);
        let seen = tls::read(&der).map_err(|why| bad(&why))?;
        let bearer = Bearer::new(&seen.name, &seen.serial).map_err(|unfit| bad(&unfit.to_string()))?;
        if bearer.id.node() != shown.bearer.id.node() || seen.key != shown.key {
            return Err(bad("it is not the caller's"));
        }
        Ok(Some(Certificate { der: der.to_vec().into(), issued: bearer.issued }))
    }

    /// The node that calls; `None` where there is no TLS.
    pub(super) fn node<T>(&self, request: &Request<T>) -> Result<Option<Shown>, Status> {
        let Some(identity) = self.identity() else { return Ok(None) };
        let from = request.extensions().get::<From>();
        let (caller, from) = from.map_or((&Caller::Anyone, "unknown"), |from| (&from.caller, from.addr.as_str()));
        match caller {
            Caller::Bearer(Shown { bearer, .. }) if bearer.id.trust_domain != *identity.authority().trust_domain() => {
                let unfit = Unfit::Domain(bearer.id.trust_domain.clone());
                self.refuse(Some(Reason::of_unfit(&unfit)), &unfit.to_string(), from);
                Err(Status::unauthenticated(unfit.to_string()))
            }
            Caller::Bearer(shown) if shown.bearer.id.node().is_some() => Ok(Some(shown.clone())),
            Caller::Bearer(Shown { bearer, .. }) => {
                let why = format!("the certificate is that of {}, not of a node", bearer.id);
                self.refuse(Some(Reason::Name), &why, from);
                Err(Status::permission_denied(why))
            }
            Caller::Stranger | Caller::Anyone => {
                let why = "a certificate is needed; join first";
                self.refuse(Some(Reason::NoCertificate), why, from);
                Err(Status::unauthenticated(why))
            }
        }
    }
}

/// What a node is told when it is not made a member, or not certified.
pub(super) fn status(error: &Error) -> Status {
    let text = error.to_string();
    match error {
        Error::Unvouched(Unvouched::Keys) => Status::unavailable(text),
        Error::BadToken | Error::Unvouched(_) | Error::NoMember(_) => Status::unauthenticated(text),
        Error::OtherKey(_) | Error::Revoked(_) => Status::permission_denied(text),
        Error::Refused { .. } => Status::invalid_argument(text),
        Error::NoCluster { .. } => Status::failed_precondition(text),
        Error::Overtaken(_) => Status::aborted(text),
        Error::Keys(_) | Error::Store(_) | Error::Certify(_) => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(error = text, cause, "can't say who a node is");
            Status::unavailable(text)
        }
    }
}
