use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use shoal_base::tls;
use shoal_proto::identity::Unfit;

use super::Error;
use super::kubernetes::Unvouched;

/// `shoal_identity_*`. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    issued: Counter,
    refused: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: Reason,
}

/// Why somebody was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Reason {
    /// No certificate, where one is needed.
    NoCertificate,
    /// Of an authority that is not ours.
    Foreign,
    /// Not in its time.
    Expired,
    /// It is another node's, or nobody's that may ask this.
    Name,
    /// It was revoked, or is void.
    Revoked,
    /// A join token or a service account token that does not count.
    BadToken,
    /// A node id that is another key's.
    OtherKey,
    /// It is not, or no more, a member.
    NoMember,
    /// Not TLS 1.3.
    NotTls,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("certificates", "Certificates that were issued", metrics.issued.clone());
        registry.register("refused", "Nodes that were refused for who they are, by reason", metrics.refused.clone());
        metrics
    }

    pub(super) fn issued(&self) {
        self.issued.inc();
    }

    /// Counts a refusal.
    pub fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&Labels { reason }).inc();
    }

    /// How many were refused for that.
    pub fn refusals(&self, reason: Reason) -> u64 {
        self.refused.get_or_create(&Labels { reason }).get()
    }
}

impl Reason {
    /// Why a handshake failed; `None`: for no such reason.
    pub fn of_handshake(refusal: tls::Refusal) -> Option<Self> {
        match refusal {
            tls::Refusal::NoCertificate => Some(Self::NoCertificate),
            tls::Refusal::Foreign => Some(Self::Foreign),
            tls::Refusal::Expired => Some(Self::Expired),
            tls::Refusal::NotTls => Some(Self::NotTls),
            tls::Refusal::Refused => None,
        }
    }

    /// Why a certificate does not fit.
    pub const fn of_unfit(unfit: &Unfit) -> Self {
        match unfit {
            Unfit::Domain(_) => Self::Foreign,
            Unfit::Void(_) => Self::Revoked,
            Unfit::Name { .. }
            | Unfit::NoMember(_)
            | Unfit::Cluster { .. }
            | Unfit::Node { .. }
            | Unfit::NotControl(_) => Self::Name,
        }
    }

    /// Why a node was not made a member, or not certified; `None`: for no fault of its own.
    pub const fn of_error(error: &Error) -> Option<Self> {
        match error {
            Error::BadToken => Some(Self::BadToken),
            Error::Unvouched(Unvouched::Keys) => None,
            Error::Unvouched(_) => Some(Self::BadToken),
            Error::OtherKey(_) => Some(Self::OtherKey),
            Error::Revoked(_) => Some(Self::Revoked),
            Error::NoMember(_) => Some(Self::NoMember),
            Error::Refused { .. }
            | Error::NoCluster { .. }
            | Error::Overtaken(_)
            | Error::Keys(_)
            | Error::Store(_)
            | Error::Certify(_) => None,
        }
    }
}
