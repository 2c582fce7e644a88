//! Names in certificates, and the text that a node joins with. Pure: no keys are made and no certificates are read here.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{ClusterId, NodeId};

/// Whose names the certificates of one installation carry: the authority part of a SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    /// As the SPIFFE-ID standard says in section 2.1: lower case letters, digits, dot, hyphen and underscore, at most 255.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        let good = (1..=255).contains(&text.len()) && text.bytes().all(fine);
        if good { Ok(Self(text.into())) } else { Err(IdentityError::TrustDomain) }
    }
}

/// Who a certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The control service: `/control`.
    Control,
    /// A node that has no cluster yet, or runs alone: `/node/<id>`. No peer talks to it.
    Newcomer(NodeId),
    /// A node of a cluster: `/cluster/<id>/node/<id>`.
    Member(ClusterId, NodeId),
}

/// `spiffe://<trust domain>/…`, the one name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    /// Whose installation.
    pub trust_domain: TrustDomain,
    /// Who.
    pub subject: Subject,
}

impl SpiffeId {
    /// The node that it names, if it names one.
    pub const fn node(&self) -> Option<&NodeId> {
        match &self.subject {
            Subject::Control => None,
            Subject::Newcomer(node) | Subject::Member(_, node) => Some(node),
        }
    }

    /// The cluster that it names, if it names one.
    pub const fn cluster(&self) -> Option<&ClusterId> {
        match &self.subject {
            Subject::Member(cluster, _) => Some(cluster),
            Subject::Control | Subject::Newcomer(_) => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        match &self.subject {
            Subject::Control => f.write_str("/control"),
            Subject::Newcomer(node) => write!(f, "/node/{node}"),
            Subject::Member(cluster, node) => write!(f, "/cluster/{cluster}/node/{node}"),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let rest = text.strip_prefix("spiffe://").ok_or(IdentityError::NotSpiffe)?;
        let (domain, path) = rest.split_once('/').ok_or(IdentityError::Path)?;
        let parts: Vec<&str> = path.split('/').collect();
        let node = |text: &str| text.parse::<NodeId>().map_err(|_| IdentityError::Path);
        let subject = match parts[..] {
            ["control"] => Subject::Control,
            ["node", id] => Subject::Newcomer(node(id)?),
            ["cluster", cluster, "node", id] => {
                Subject::Member(cluster.parse().map_err(|_| IdentityError::Path)?, node(id)?)
            }
            _ => return Err(IdentityError::Path),
        };
        Ok(Self { trust_domain: domain.parse()?, subject })
    }
}

/// Bytes of a certificate's serial number.
pub const SERIAL: usize = 16;

/// The serial number of a certificate that was issued at a microsecond since 1970: the time first, so that all that were issued
/// before another moment can be declared void, then a random number.
pub fn serial(issued: u64, random: u64) -> [u8; SERIAL] {
    let mut serial = [0; SERIAL];
    serial[..8].copy_from_slice(&issued.to_be_bytes());
    serial[8..].copy_from_slice(&random.to_be_bytes());
    serial
}

/// When a certificate was issued, by its serial number as it stands in it (big endian, of any length).
pub fn issued(serial: &[u8]) -> u64 {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    let significant = &serial[zeros..];
    let mut whole = [0; SERIAL];
    let Some(at) = SERIAL.checked_sub(significant.len()) else { return 0 };
    whole[at..].copy_from_slice(significant);
    u64::from_be_bytes(whole[..8].try_into().expect("eight bytes"))
}

/// Certificates that count no more although their time is not over, because their bearer was moved to another cluster or was
/// revoked: of each node those issued before a microsecond since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Voids(HashMap<NodeId, u64>);

impl Voids {
    /// Declares those of a node that were issued before that void; what was void stays so.
    pub fn add(&mut self, node: NodeId, before: u64) {
        let known = self.0.entry(node).or_default();
        *known = before.max(*known);
    }

    /// Whether a node's certificate of that moment is void.
    pub fn cover(&self, node: &NodeId, issued: u64) -> bool {
        self.0.get(node).is_some_and(|before| issued < *before)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, u64)> {
        self.0.iter().map(|(node, before)| (node, *before))
    }
}

/// What a node knows of its installation, to judge certificates by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Whose names count; `None`: nobody's yet.
    pub domain: Option<TrustDomain>,
    /// What counts no more.
    pub voids: Voids,
}

/// The bearer of a certificate that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// Who.
    pub id: SpiffeId,
    /// The microsecond since 1970 at which the certificate was issued.
    pub issued: u64,
}

impl Bearer {
    /// Reads the name and the serial number of a certificate.
    ///
    /// # Errors
    /// [`Unfit::Name`].
    pub fn new(name: &str, serial: &[u8]) -> Result<Self, Unfit> {
        let id = name.parse().map_err(|why| Unfit::Name { name: name.to_owned(), why })?;
        Ok(Self { id, issued: issued(serial) })
    }

    /// Whether it is the node that it says it is, and of that cluster (DESIGN I3).
    ///
    /// # Errors
    /// Why not.
    pub fn is_peer(&self, known: &Known, cluster: &ClusterId, node: &NodeId) -> Result<(), Unfit> {
        self.is_of(known.domain.as_ref())?;
        let Subject::Member(of, name) = &self.id.subject else { return Err(Unfit::NoMember(self.id.clone())) };
        if of != cluster {
            return Err(Unfit::Cluster { found: of.clone(), expected: cluster.clone() });
        }
        if name != node {
            return Err(Unfit::Node { found: name.clone(), said: node.clone() });
        }
        if known.voids.cover(name, self.issued) { Err(Unfit::Void(name.clone())) } else { Ok(()) }
    }

    /// Whether it is the control service of that installation.
    ///
    /// # Errors
    /// Why not.
    pub fn is_control(&self, domain: &TrustDomain) -> Result<(), Unfit> {
        self.is_of(Some(domain))?;
        if self.id.subject == Subject::Control { Ok(()) } else { Err(Unfit::NotControl(self.id.clone())) }
    }

    fn is_of(&self, domain: Option<&TrustDomain>) -> Result<(), Unfit> {
        if Some(&self.id.trust_domain) == domain { Ok(()) } else { Err(Unfit::Domain(self.id.trust_domain.clone())) }
    }
}

/// Why a certificate that was verified does not make its bearer somebody to talk to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Its name is none of ours.
    #[error("its certificate names {name:?}: {why}")]
    Name {
        /// What it names.
        name: String,
        /// What is wrong with it.
        why: IdentityError,
    },
    /// Of another installation.
    #[error("its certificate is of the trust domain {0}")]
    Domain(TrustDomain),
    /// Not that of a node in a cluster.
    #[error("its certificate is that of {0}, not of a node in a cluster")]
    NoMember(SpiffeId),
    /// Of another cluster.
    #[error("its certificate is of cluster {found}, not of {expected}")]
    Cluster {
        /// What it names.
        found: ClusterId,
        /// Which it should.
        expected: ClusterId,
    },
    /// Of another node.
    #[error("it says that it is node {said}, and its certificate names {found}")]
    Node {
        /// What it names.
        found: NodeId,
        /// Who it says that it is.
        said: NodeId,
    },
    /// Declared void.
    #[error("the certificate of node {0} was declared void: it was revoked, or moved to another cluster")]
    Void(NodeId),
    /// Not control's.
    #[error("its certificate is that of {0}, not of the control service")]
    NotControl(SpiffeId),
}

/// Why a text is not a name or a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of that scheme.
    #[error("a name in a certificate begins with spiffe://")]
    NotSpiffe,
    /// A path that names neither control nor a node.
    #[error("the path is neither /control nor /node/<id> nor /cluster/<id>/node/<id>")]
    Path,
    /// Not a trust domain.
    #[error("a trust domain has 1 to 255 characters out of a-z, 0-9, dot, hyphen and underscore")]
    TrustDomain,
    /// Not a join token.
    #[error("a join token is shoal-join.<id>.<secret>.<hash of the CA>, as shoalctl join-token create prints it")]
    JoinToken,
}

/// What a node joins with: which token it is, the secret, and the SHA-256 of control's CA certificate (DER), so that the first
/// contact can't be intercepted.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token where the secret must not be seen.
    pub id: String,
    secret: [u8; Self::SECRET],
    /// SHA-256 of the CA certificate.
    pub ca: [u8; 32],
}

impl JoinToken {
    const SECRET: usize = 32;
    const PREFIX: &str = "shoal-join";

    /// Puts a token together. The id must be 1 to 64 characters out of a-z, 0-9 and the hyphen.
    pub const fn new(id: String, secret: [u8; 32], ca: [u8; 32]) -> Self {
        Self { id, secret, ca }
    }

    /// The secret. Neither logged nor kept by anyone: what control keeps is its hash.
    pub const fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The text, secret included. There is no `Display`, so that it is not printed by accident.
    pub fn reveal(&self) -> String {
        format!("{}.{}.{}.{}", Self::PREFIX, self.id, hex::encode(self.secret), hex::encode(self.ca))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let bytes = |text: &str| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text, &mut bytes).map(|()| bytes).map_err(|_| IdentityError::JoinToken)
        };
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [Self::PREFIX, id, secret, ca] = parts[..] else { return Err(IdentityError::JoinToken) };
        let _: NodeId = id.parse().map_err(|_| IdentityError::JoinToken)?;
        Ok(Self { id: id.to_owned(), secret: bytes(secret)?, ca: bytes(ca)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["spiffe://shoal/control", "spiffe://a.b-c_1/node/n1", "spiffe://shoal/cluster/c1/node/n1"] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
        let id: SpiffeId = "spiffe://shoal/cluster/c1/node/n1".parse().unwrap();
        assert_eq!((id.cluster().unwrap().as_str(), id.node().unwrap().as_str()), ("c1", "n1"));
    }

    #[test]
    fn other_names_are_refused() {
        for (text, why) in [
            ("https://shoal/control", IdentityError::NotSpiffe),
            ("SPIFFE://shoal/control", IdentityError::NotSpiffe),
            ("spiffe://shoal", IdentityError::Path),
            ("spiffe://shoal/", IdentityError::Path),
            ("spiffe://shoal/control/", IdentityError::Path),
            ("spiffe://shoal/cluster/c1/node/", IdentityError::Path),
            ("spiffe://shoal/cluster/c1/node/n1/x", IdentityError::Path),
            ("spiffe://shoal/cluster/C1/node/n1", IdentityError::Path),
            ("spiffe://shoal/node/n%31", IdentityError::Path),
            ("spiffe://Shoal/control", IdentityError::TrustDomain),
            ("spiffe://user@shoal/control", IdentityError::TrustDomain),
            ("spiffe://shoal:1/control", IdentityError::TrustDomain),
            ("spiffe:///control", IdentityError::TrustDomain),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(why), "{text}");
        }
    }

    #[test]
    fn a_token_is_read_as_it_is_written_and_does_not_show_its_secret() {
        let token = JoinToken::new("t-1".into(), [7; 32], [9; 32]);
        let text = token.reveal();
        assert_eq!(text.parse::<JoinToken>(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse::<JoinToken>(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "JoinToken(t-1)");
        let fault = Err(IdentityError::JoinToken);
        for bad in ["", "x", &text[1..], &text[..text.len() - 1], &format!("{text}.x"), &text.replace("t-1", "T 1")] {
            assert_eq!(bad.parse::<JoinToken>(), fault, "{bad}");
        }
    }

    #[test]
    fn a_serial_number_says_when_it_was_issued_however_it_is_written() {
        for at in [0, 1, 0xff, 1_764_201_600_000_000, u64::MAX] {
            let whole = serial(at, 7);
            assert_eq!(issued(&whole), at);
            let zeros = whole.iter().take_while(|byte| **byte == 0).count();
            assert_eq!(issued(&whole[zeros..]), at, "without the zeros that DER leaves out");
            assert_eq!(issued(&[&[0], &whole[..]].concat()), at, "with the zero that keeps it positive");
        }
        assert_eq!(issued(&[1; 17]), 0, "not one of ours");
        assert_eq!(issued(&[]), 0);
    }

    fn bearer(name: &str, at: u64) -> Bearer {
        Bearer::new(name, &serial(at, 1)).unwrap()
    }

    #[test]
    fn i3_only_the_node_that_it_says_it_is_and_of_the_same_cluster_is_a_peer() {
        let (cluster, node) = ("c1".parse().unwrap(), "n1".parse::<NodeId>().unwrap());
        let mut known = Known::default();
        let check = |name: &str, known: &Known| bearer(name, 100).is_peer(known, &cluster, &node);
        assert!(matches!(check("spiffe://shoal/cluster/c1/node/n1", &known), Err(Unfit::Domain(_))));
        known.domain = Some("shoal".parse().unwrap());
        assert_eq!(check("spiffe://shoal/cluster/c1/node/n1", &known), Ok(()));
        assert!(matches!(check("spiffe://other/cluster/c1/node/n1", &known), Err(Unfit::Domain(_))));
        assert!(matches!(check("spiffe://shoal/cluster/c2/node/n1", &known), Err(Unfit::Cluster { .. })));
        assert!(matches!(check("spiffe://shoal/cluster/c1/node/n2", &known), Err(Unfit::Node { .. })));
        assert!(matches!(check("spiffe://shoal/node/n1", &known), Err(Unfit::NoMember(_))));
        assert!(matches!(check("spiffe://shoal/control", &known), Err(Unfit::NoMember(_))));
        known.voids.add("n2".parse().unwrap(), u64::MAX);
        known.voids.add(node.clone(), 100);
        assert_eq!(check("spiffe://shoal/cluster/c1/node/n1", &known), Ok(()), "issued at that moment");
        known.voids.add(node.clone(), 101);
        known.voids.add(node.clone(), 5);
        assert_eq!(check("spiffe://shoal/cluster/c1/node/n1", &known), Err(Unfit::Void(node.clone())));
    }

    #[test]
    fn only_control_of_the_same_installation_is_control() {
        let domain = "shoal".parse().unwrap();
        assert_eq!(bearer("spiffe://shoal/control", 1).is_control(&domain), Ok(()));
        assert!(matches!(bearer("spiffe://other/control", 1).is_control(&domain), Err(Unfit::Domain(_))));
        assert!(matches!(bearer("spiffe://shoal/node/control", 1).is_control(&domain), Err(Unfit::NotControl(_))));
        assert!(matches!(Bearer::new("https://x", &[]), Err(Unfit::Name { .. })));
    }
}
