//! What nodes say of piece lists, signed: what this node says itself, and whether what control relays of others is theirs.
//!
//! What always holds: with certificates no hash and no root reaches a flight without a signature of the node that is named, whose certificate
//! leads to this node's authority, is in its time, of this node's cluster and not void (DESIGN I1); without them nothing is signed and nothing is
//! checked. A certificate is looked at once, and its time and whether it is void each time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelValue;
use rustls_pki_types::CertificateDer;
use shoal_base::tls::{self, Refusal, Signatory};
use shoal_proto::control::v1 as wire;
use shoal_proto::identity::{Bearer, Unfit};
use shoal_proto::statement::{Says, Statement};
use shoal_proto::{ClusterId, Digest, Hash, Layout, NodeId};
use wire::find_response::Message as Hear;

use super::Holding;
use super::identity::Identity;
use super::metrics::Metrics;

/// Certificates of authors that are remembered; when there are more all are looked at again. A cluster of ten thousand has fewer authors at a time.
const MOST_AUTHORS: usize = 1024;
/// Authors in one list: a blob is read by a few nodes, and sealed by one.
const MOST_WRITERS: usize = 256;
/// One line about refused lists in this time; the metric counts all.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Why what control relayed is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Why {
    /// No signature, or no certificate to check it by.
    Unsigned,
    /// The certificate is of no authority that is trusted here.
    Foreign,
    /// Its time is over, or has not begun.
    Expired,
    /// It is of another cluster, or of none.
    Cluster,
    /// It is another node's.
    Author,
    /// It was declared void.
    Void,
    /// The signature is not the author's, or not over this.
    Signature,
}

impl From<Unfit> for Why {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Name { .. } | Unfit::NotControl(_) | Unfit::Node { .. } => Self::Author,
            Unfit::Domain(_) => Self::Foreign,
            Unfit::NoMember(_) | Unfit::Cluster { .. } => Self::Cluster,
            Unfit::Void(_) => Self::Void,
        }
    }
}

/// Signs in this node's name.
#[derive(Clone)]
pub(super) struct Signs {
    pub(super) identity: Arc<Identity>,
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
}

impl Signs {
    /// By what to check it, DER.
    pub(super) fn certificate(&self) -> Vec<u8> {
        self.identity.keeper().certificate().map(|certificate| certificate.to_vec()).unwrap_or_default()
    }

    /// Empty: it can't be signed, and nobody will believe it.
    pub(super) fn sign(&self, digest: Digest, size: u64, says: Says<'_>) -> Vec<u8> {
        let Ok(layout) = Layout::of(size) else { return Vec::new() };
        let statement = Statement { cluster: &self.cluster, author: &self.node, digest, layout, says };
        self.identity.keeper().sign(&statement.bytes()).unwrap_or_default()
    }
}

/// A holding as control is told of it; `signs`: where there are certificates.
pub(super) fn held(holding: Holding, signs: Option<&Signs>) -> wire::Held {
    let Holding { digest, size, root, media_type } = holding;
    let says = Says::Whole { root: &root, media_type: &media_type };
    let signature = signs.map(|signs| signs.sign(digest, size, says)).unwrap_or_default();
    wire::Held { digest: digest.as_bytes().to_vec(), size, root: root.to_vec(), media_type, signature }
}

/// An author whose certificate leads to our authority.
struct Author {
    signatory: Signatory,
    bearer: Bearer,
}

#[derive(Default)]
struct Seen {
    /// Whom the keeper trusted when these were looked at.
    trusts: u64,
    authors: HashMap<tls::Pin, Arc<Author>>,
    logged: Option<Instant>,
}

/// Judges what others signed. One for the whole process.
pub(super) struct Authors {
    identity: Arc<Identity>,
    metrics: Metrics,
    seen: Mutex<Seen>,
}

impl Authors {
    pub(super) fn new(identity: Arc<Identity>, metrics: Metrics) -> Self {
        Self { identity, metrics, seen: Mutex::default() }
    }

    fn author(&self, certificate: &CertificateDer<'_>, now: SystemTime) -> Result<Arc<Author>, Why> {
        let keeper = self.identity.keeper();
        let (trusts, pin) = (keeper.trusts(), tls::pin(certificate));
        {
            let mut seen = self.seen.lock();
            if seen.trusts != trusts {
                seen.authors.clear();
                seen.trusts = trusts;
            }
            if let Some(author) = seen.authors.get(&pin) {
                return if author.signatory.counts_at(now) { Ok(author.clone()) } else { Err(Why::Expired) };
            }
        }
        let signatory = keeper.signatory(certificate, now).map_err(|refusal| match refusal {
            Refusal::Expired => Why::Expired,
            _ => Why::Foreign,
        })?;
        let bearer = Bearer::new(&signatory.seen.name, &signatory.seen.serial).map_err(Why::from)?;
        let author = Arc::new(Author { signatory, bearer });
        let mut seen = self.seen.lock();
        if seen.authors.len() >= MOST_AUTHORS {
            seen.authors.clear();
        }
        if seen.trusts == trusts {
            seen.authors.insert(pin, author.clone());
        }
        Ok(author)
    }

    fn check(
        &self,
        statement: &Statement<'_>,
        certificate: Option<&CertificateDer<'_>>,
        signature: &[u8],
        now: SystemTime,
    ) -> Result<(), Why> {
        let certificate = certificate.filter(|_| !signature.is_empty()).ok_or(Why::Unsigned)?;
        let author = self.author(certificate, now)?;
        author.bearer.is_peer(&self.identity.known(), statement.cluster, statement.author)?;
        if author.signatory.signed(&statement.bytes(), signature) { Ok(()) } else { Err(Why::Signature) }
    }

    fn refused(&self, digest: Digest, author: &NodeId, why: Why, first: bool) {
        self.metrics.unproven_list(why);
        let mut seen = self.seen.lock();
        if first && seen.logged.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
            seen.logged = Some(Instant::now());
            tracing::warn!(%digest, %author, ?why, "a piece list as control gave it does not prove to be its author's; it is not believed");
        }
    }
}

/// Judges what control says on one Find stream.
pub(super) struct Judge {
    /// `None`: nothing is signed.
    authors: Option<Arc<Authors>>,
    cluster: ClusterId,
    digest: Digest,
    certificates: HashMap<NodeId, CertificateDer<'static>>,
    /// Of the list that grows: by its head, when that is believed; or by what this node says itself, when it is the author, who is told of no head.
    layout: Option<Layout>,
    refused: HashSet<NodeId>,
}

/// What is to be done with what control said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The flight is told.
    Believed,
    /// Nobody needs to know.
    Nothing,
    /// The flight is told that it is not believed.
    Refused {
        /// Whose word it should be.
        author: NodeId,
        /// The first of that author: control is told.
        first: bool,
    },
}

impl Judge {
    /// `size`: the blob's, as far as the flight knows.
    pub(super) fn new(authors: Option<Arc<Authors>>, cluster: ClusterId, digest: Digest, size: Option<u64>) -> Self {
        let layout = size.and_then(|size| Layout::of(size).ok());
        Self { authors, cluster, digest, certificates: HashMap::new(), layout, refused: HashSet::new() }
    }

    /// This node reads the blob itself, and the origin said how large it is.
    pub(super) fn reads(&mut self, size: u64) {
        self.layout = self.layout.or_else(|| Layout::of(size).ok());
    }

    pub(super) fn hear(&mut self, message: &Hear, now: SystemTime) -> Verdict {
        let Some(authors) = self.authors.clone() else {
            return if matches!(message, Hear::Author(_)) { Verdict::Nothing } else { Verdict::Believed };
        };
        let (author, size, says, signature) = match message {
            Hear::Author(author) => {
                if let Ok(node) = author.node_id.parse()
                    && (self.certificates.len() < MOST_WRITERS || self.certificates.contains_key(&node))
                {
                    self.certificates.insert(node, author.certificate.clone().into());
                }
                return Verdict::Nothing;
            }
            Hear::Head(head) => {
                self.layout = None;
                let says = Says::Head { media_type: &head.media_type };
                (&head.author, head.size, says, &head.signature)
            }
            Hear::List(part) => {
                // Of a head that is not believed nothing else is either.
                let Some(layout) = self.layout else { return Verdict::Nothing };
                let says = Says::Part { first: part.first_block, hashes: &part.hashes };
                (&part.author, layout.size(), says, &part.signature)
            }
            Hear::Sealed(sealed) => {
                let Ok(root) = <&Hash>::try_from(sealed.root.as_slice()) else { return Verdict::Nothing };
                let says = Says::Whole { root, media_type: &sealed.media_type };
                (&sealed.author, sealed.size, says, &sealed.signature)
            }
            _ => return Verdict::Believed,
        };
        // An author without a name or a blob without a layout makes no sense, signed or not.
        let author = if author.is_empty() { "unnamed" } else { author.as_str() };
        let (Ok(author), Ok(layout)) = (author.parse::<NodeId>(), Layout::of(size)) else { return Verdict::Nothing };
        let statement = Statement { cluster: &self.cluster, author: &author, digest: self.digest, layout, says };
        match authors.check(&statement, self.certificates.get(&author), signature, now) {
            Ok(()) => {
                if matches!(says, Says::Head { .. }) {
                    self.layout = Some(layout);
                }
                Verdict::Believed
            }
            Err(why) => {
                let first = self.refused.len() < MOST_WRITERS && self.refused.insert(author.clone());
                authors.refused(self.digest, &author, why, first);
                Verdict::Refused { author, first }
            }
        }
    }
}

#[cfg(test)]
mod tests;
