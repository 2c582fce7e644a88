//! How nodes become members, get their certificates, and lose them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shoal_proto::identity::{Bearer, JoinToken, Subject, Voids};
use shoal_proto::{ClusterId, NodeId};
use tokio::sync::watch;

use super::access::seconds;
use super::authority::micros;
use super::kubernetes::{self, Kubernetes, Unvouched};
use super::{Authority, Follower, Happened, Issued, Metrics, NODE, SigningRequest, entry, now_seconds, unfit_life};
use crate::store::{self, Admission, Identities, JoinTokenFilter, JoinTokenRow, Joining, Member, MemberFilter, Void};

/// How certificates are.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a node's certificate counts. A node has it renewed at two thirds of it.
    pub life: Duration,
    /// Kubernetes clusters whose service accounts may join.
    pub kubernetes: Vec<kubernetes::Config>,
}

impl Default for Config {
    fn default() -> Self {
        Self { life: Duration::from_secs(24 * 3600), kubernetes: Vec::new() }
    }
}

/// What a join token is to be.
#[derive(Debug, Clone)]
pub struct NewJoinToken {
    /// Who joins by it belongs here, whatever its facts say.
    pub cluster: Option<ClusterId>,
    /// Who joins by it may be a seed.
    pub seed: bool,
    /// How long it counts.
    pub life: Duration,
    /// How many nodes may join by it.
    pub uses: u32,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One answer for every token that does not count, so that nobody learns which there are.
    #[error("the join token is not known, or its time or its uses are over")]
    BadToken,
    /// A service account token that does not count.
    #[error(transparent)]
    Unvouched(#[from] Unvouched),
    /// The settings name a cluster that is not there.
    #[error("{at}.cluster: there is no cluster {name:?}")]
    NoCluster {
        /// The key path of the settings.
        at: String,
        /// What they name.
        name: String,
    },
    /// A file that the settings name can't be used; it is named with its key path.
    #[error("{0}")]
    Keys(String),
    /// The node id is a member's, and the key is not.
    #[error(
        "node {0} has joined with another key; if its state was lost, remove the member first (shoalctl member remove)"
    )]
    OtherKey(NodeId),
    /// It was revoked.
    #[error("node {0} was revoked")]
    Revoked(NodeId),
    /// It never joined, or was removed.
    #[error("node {0} is not a member; it needs a join token or a service account token")]
    NoMember(NodeId),
    /// The caller's: the member is not as they saw it. Read it again.
    #[error("member {0} was changed by somebody else at the same time")]
    Overtaken(NodeId),
    /// A bad field.
    #[error("{field}: {reason}")]
    Refused {
        /// Which.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// Ours.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Ours.
    #[error("certify a key")]
    Certify(#[from] rcgen::Error),
}

/// The members and their certificates.
pub struct Identity {
    config: Config,
    kubernetes: Kubernetes,
    authority: Authority,
    store: Arc<dyn Identities>,
    voids: watch::Sender<Arc<Voids>>,
    /// The last moment that was given to a certificate, or to a void; it never goes back, whatever the clock does: what was issued
    /// before a void must look so.
    last: AtomicU64,
    metrics: Metrics,
    follower: Option<Arc<dyn Follower>>,
}

impl Identity {
    /// Reads what is void, and the keys of Kubernetes.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Keys`].
    pub async fn open(
        mut config: Config,
        authority: Authority,
        store: Arc<dyn Identities>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let (mut voids, mut last) = (Voids::default(), 0);
        for void in store.voids(now_seconds()).await? {
            last = void.before.max(last);
            voids.add(void.node, void.before);
        }
        let voids = watch::Sender::new(Arc::new(voids));
        let kubernetes = Kubernetes::open(std::mem::take(&mut config.kubernetes)).await.map_err(Error::Keys)?;
        Ok(Self { config, kubernetes, authority, store, voids, last: AtomicU64::new(last), metrics, follower: None })
    }

    /// Tells somebody what happens to join tokens and members.
    #[must_use]
    pub fn followed(self, follower: Arc<dyn Follower>) -> Self {
        Self { follower: Some(follower), ..self }
    }

    /// A moment after all that were given before, in microseconds since 1970: now, unless the clock was set back.
    fn moment(&self, now: SystemTime) -> u64 {
        let next = |last: u64| Some(micros(now).max(last + 1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        micros(now).max(last + 1)
    }

    /// What is counted.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The authority.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What is void, now and from now on.
    pub fn voids(&self) -> watch::Receiver<Arc<Voids>> {
        self.voids.subscribe()
    }

    /// Makes a join token. Its secret is given once, here.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Store`].
    pub async fn make_token(&self, new: NewJoinToken, by: &str) -> Result<(JoinTokenRow, JoinToken), Error> {
        let NewJoinToken { cluster, seed, life, uses } = new;
        let refused = |field, reason: &str| Err(Error::Refused { field, reason: reason.into() });
        if uses == 0 || uses > 100_000 {
            return refused("uses", "must be 1 to 100000");
        }
        if let Some(why) = unfit_life(life) {
            return refused("ttl", why);
        }
        let (id, secret) = (hex::encode(rand::random::<[u8; 6]>()), rand::random::<[u8; 32]>());
        let created = now_seconds();
        let row = JoinTokenRow {
            id: id.clone(),
            hash: Sha256::digest(secret).into(),
            cluster,
            seed,
            expires: created.saturating_add(life.as_secs()),
            uses_left: uses,
            created,
            created_by: by.to_owned(),
        };
        let audit = entry(by, "join-token.create", &id, None, Some(shown(&row)));
        match self.store.add_join_token(&row, &audit).await {
            Err(store::Error::NoCluster(cluster)) => {
                return refused("cluster", &format!("there is no cluster {cluster}"));
            }
            other => other?,
        }
        tracing::info!(token = id, uses, by, "made a join token");
        self.tell(Happened::JoinTokenMade(row.clone()));
        Ok((row, JoinToken::new(id, secret, self.authority.pin())))
    }

    /// All join tokens, without secrets, oldest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn tokens(&self) -> Result<Vec<JoinTokenRow>, Error> {
        Ok(self.store.join_tokens().await?)
    }

    /// Those of them that a filter leaves.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn tokens_of(&self, filter: &JoinTokenFilter) -> Result<Vec<JoinTokenRow>, Error> {
        Ok(self.store.join_tokens_of(filter).await?)
    }

    /// Removes a join token. Who joined by it stays. `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn remove_token(&self, id: &str, by: &str) -> Result<Option<JoinTokenRow>, Error> {
        let rows = self.store.join_tokens().await?;
        let Some(row) = rows.into_iter().find(|row| row.id == id) else { return Ok(None) };
        let audit = entry(by, "join-token.remove", id, Some(shown(&row)), None);
        if !self.store.remove_join_token(id, &audit).await? {
            return Ok(None);
        }
        self.tell(Happened::JoinTokenRemoved(row.clone()));
        Ok(Some(row))
    }

    /// Makes a node a member by a token, and gives it a certificate without a cluster. A member that comes again with the same key
    /// takes no use.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn join(&self, token: &JoinToken, node: NodeId, request: &SigningRequest) -> Result<Issued, Error> {
        let by = Joining {
            token: token.id.clone(),
            hash: Sha256::digest(token.secret()).into(),
            node: node.clone(),
            key: request.key_hash(),
            now: now_seconds(),
        };
        let after = json!({ "node": node, "token": token.id });
        let audit = entry(&format!("{NODE} {node}"), "member.join", node.as_str(), None, Some(after));
        let admission = self.store.join(&by, &audit).await?;
        self.admitted(admission, node, request)
    }

    /// The same by a Kubernetes service account token. `cluster` knows the id of a cluster by what the settings call it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn join_by_account(
        &self,
        token: &str,
        node: NodeId,
        request: &SigningRequest,
        cluster: impl FnOnce(&str) -> Option<ClusterId>,
    ) -> Result<Issued, Error> {
        let vouched = self.kubernetes.check(token).await?;
        let bound = vouched.by.cluster.as_deref().map(|name| {
            cluster(name).ok_or_else(|| Error::NoCluster { at: vouched.by.at.clone(), name: name.to_owned() })
        });
        let joined_by = format!("kubernetes:{}:{}", vouched.by.name, vouched.account);
        let member = Member {
            node: node.clone(),
            key: request.key_hash(),
            cluster: bound.transpose()?,
            seed: vouched.by.seed,
            joined_by,
            joined: now_seconds(),
            revoked: None,
        };
        let after = json!({
            "node": node,
            "kubernetes": vouched.by.name,
            "service_account": vouched.account,
            "kubernetes_node": vouched.node,
            "pod": vouched.pod,
        });
        let audit = entry(&format!("{NODE} {node}"), "member.join", node.as_str(), None, Some(after));
        let admission = self.store.admit(&member, &audit).await?;
        self.admitted(admission, node, request)
    }

    fn admitted(&self, admission: Admission, node: NodeId, request: &SigningRequest) -> Result<Issued, Error> {
        match admission {
            Admission::Admitted(member) => {
                tracing::info!(%node, by = member.joined_by, seed = member.seed, "node joined");
                self.tell(Happened::Joined(member));
                self.issue(Subject::Newcomer(node), request)
            }
            Admission::Known(member) => {
                tracing::info!(%node, by = member.joined_by, seed = member.seed, "node joined again");
                self.issue(Subject::Newcomer(node), request)
            }
            Admission::BadToken => Err(Error::BadToken),
            Admission::OtherKey => Err(Error::OtherKey(node)),
            Admission::Revoked => Err(Error::Revoked(node)),
        }
    }

    /// Gives a member a certificate by its key alone: it was away for longer than its certificate counted. The request itself
    /// proves that the key is there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn come_back(&self, node: NodeId, request: &SigningRequest) -> Result<Issued, Error> {
        self.member_by(&node, &request.key_hash()).await?;
        self.issue(Subject::Newcomer(node), request)
    }

    /// Certifies a member for a cluster, or for none.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn certify(
        &self,
        node: NodeId,
        cluster: Option<ClusterId>,
        request: &SigningRequest,
    ) -> Result<Issued, Error> {
        self.member_by(&node, &request.key_hash()).await?;
        let subject = match cluster {
            Some(cluster) => Subject::Member(cluster, node),
            None => Subject::Newcomer(node),
        };
        self.issue(subject, request)
    }

    /// The member of that name whose key it is. Another key's certificate does not make anybody this member, although it is not
    /// over: the member may have been removed, and have joined anew.
    ///
    /// # Errors
    /// [`Error::NoMember`], [`Error::Revoked`], [`Error::OtherKey`], [`Error::Store`].
    pub async fn member_by(&self, node: &NodeId, key: &[u8; 32]) -> Result<Member, Error> {
        let member = self.store.member(node).await?.ok_or_else(|| Error::NoMember(node.clone()))?;
        match member {
            Member { revoked: Some(_), .. } => Err(Error::Revoked(node.clone())),
            Member { key: known, .. } if known != *key => Err(Error::OtherKey(node.clone())),
            member => Ok(member),
        }
    }

    fn issue(&self, subject: Subject, request: &SigningRequest) -> Result<Issued, Error> {
        let now = SystemTime::now();
        let issued = self.authority.issue(request, subject, self.config.life, now, self.moment(now))?;
        self.metrics.issued();
        Ok(issued)
    }

    /// A key and a certificate for control itself, and how long it may be shown.
    ///
    /// # Errors
    /// [`Error::Certify`].
    pub fn own(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Duration), Error> {
        let (chain, key) = self.authority.own(self.config.life, SystemTime::now())?;
        Ok((chain, key, self.config.life * 2 / 3))
    }

    /// The same for a host that people reach by these names.
    ///
    /// # Errors
    /// [`Error::Certify`].
    pub fn certify_host(
        &self,
        names: &[String],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Duration), Error> {
        let (chain, key) = self.authority.host(names, self.config.life, SystemTime::now())?;
        Ok((chain, key, self.config.life * 2 / 3))
    }

    /// Whether a certificate was declared void.
    pub fn is_void(&self, bearer: &Bearer) -> bool {
        bearer.id.node().is_some_and(|node| self.voids.borrow().cover(node, bearer.issued))
    }

    /// All members, by id.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        Ok(self.store.members().await?)
    }

    /// Those of them that a filter leaves.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn members_of(&self, filter: &MemberFilter) -> Result<Vec<Member>, Error> {
        Ok(self.store.members_of(filter).await?)
    }

    /// One member, revoked or not.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn member(&self, node: &NodeId) -> Result<Option<Member>, Error> {
        Ok(self.store.member(node).await?)
    }

    /// Revokes a member: its certificates are void at once, and it gets no other. `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn revoke(&self, node: &NodeId, by: &str) -> Result<Option<Member>, Error> {
        self.revoke_seen(node, None, by).await
    }

    /// The same, if the member is still as it was seen.
    ///
    /// # Errors
    /// [`Error::Overtaken`], [`Error::Store`].
    pub async fn revoke_seen(&self, node: &NodeId, seen: Option<&Member>, by: &str) -> Result<Option<Member>, Error> {
        let Some(before) = self.as_seen(node, seen).await? else { return Ok(None) };
        let at = now_seconds();
        let void = self.void_now(node.clone());
        let after = json!({ "revoked": at });
        let audit = entry(by, "member.revoke", node.as_str(), Some(json!({ "revoked": before.revoked })), Some(after));
        if !self.store.revoke(node, seen, at, &void, &audit).await? {
            return self.as_seen(node, seen).await.map(|_| None);
        }
        self.declare(&[void]);
        tracing::warn!(%node, by, "node revoked");
        let after = Member { revoked: before.revoked.or(Some(at)), ..before };
        self.tell(Happened::Revoked(after.clone()));
        Ok(Some(after))
    }

    /// The member, which must be as it was seen if it was.
    async fn as_seen(&self, node: &NodeId, seen: Option<&Member>) -> Result<Option<Member>, Error> {
        match self.store.member(node).await? {
            Some(member) if seen.is_some_and(|seen| *seen != member) => Err(Error::Overtaken(node.clone())),
            found => Ok(found),
        }
    }

    fn tell(&self, what: Happened) {
        if let Some(follower) = &self.follower {
            follower.happened(what);
        }
    }

    /// Forgets a member, so that its id may join anew with another key; certificates that it has are void. `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn remove(&self, node: &NodeId, by: &str) -> Result<Option<Member>, Error> {
        self.remove_seen(node, None, by).await
    }

    /// The same, if the member is still as it was seen.
    ///
    /// # Errors
    /// [`Error::Overtaken`], [`Error::Store`].
    pub async fn remove_seen(&self, node: &NodeId, seen: Option<&Member>, by: &str) -> Result<Option<Member>, Error> {
        let Some(before) = self.as_seen(node, seen).await? else { return Ok(None) };
        let void = self.void_now(node.clone());
        self.store.void(std::slice::from_ref(&void)).await?;
        self.declare(&[void]);
        let shown = json!({ "joined_by": before.joined_by, "revoked": before.revoked });
        let audit = entry(by, "member.remove", node.as_str(), Some(shown), None);
        if !self.store.remove_member(node, seen, &audit).await? {
            return self.as_seen(node, seen).await.map(|_| None);
        }
        self.tell(Happened::Removed(before.clone()));
        Ok(Some(before))
    }

    /// Declares void what nodes were certified for before they were moved.
    ///
    /// # Errors
    /// [`Error::Store`]; it is void in memory all the same.
    pub async fn moved(&self, nodes: &[NodeId]) -> Result<(), Error> {
        let voids: Vec<Void> = nodes.iter().cloned().map(|node| self.void_now(node)).collect();
        self.declare(&voids);
        Ok(self.store.void(&voids).await?)
    }

    fn void_now(&self, node: NodeId) -> Void {
        let now = SystemTime::now();
        Void { node, before: self.moment(now), forget: seconds(now + self.config.life) + 1 }
    }

    fn declare(&self, voids: &[Void]) {
        self.voids.send_modify(|known| {
            let known = Arc::make_mut(known);
            voids.iter().for_each(|void| known.add(void.node.clone(), void.before));
        });
    }
}

/// What the audit log keeps of a token.
fn shown(row: &JoinTokenRow) -> serde_json::Value {
    json!({ "cluster": row.cluster, "seed": row.seed, "expires": row.expires, "uses_left": row.uses_left })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use shoal_base::tls;

    use super::*;
    use crate::store::MemoryStore;

    async fn opened() -> (tempfile::TempDir, Arc<MemoryStore>, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), "shoal".parse().unwrap()).unwrap();
        let store = Arc::new(MemoryStore::default());
        let identity = Identity::open(Config::default(), authority, store.clone(), Metrics::default()).await.unwrap();
        (dir, store, identity)
    }

    fn request() -> SigningRequest {
        let pair = KeyPair::generate().unwrap();
        SigningRequest::parse(CertificateParams::default().serialize_request(&pair).unwrap().der()).unwrap()
    }

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn new(uses: u32) -> NewJoinToken {
        NewJoinToken { cluster: None, seed: false, life: Duration::from_secs(60), uses }
    }

    fn bearer(issued: &Issued) -> Bearer {
        let seen = tls::read(&issued.certificate).unwrap();
        Bearer::new(&seen.name, &seen.serial).unwrap()
    }

    #[tokio::test]
    async fn a_token_admits_as_many_nodes_as_it_says_and_a_member_again_for_nothing() {
        let (_dir, _, identity) = opened().await;
        let (_, token) = identity.make_token(new(1), "admin").await.unwrap();
        assert_eq!(token.ca, identity.authority().pin());
        let one = request();
        let issued = identity.join(&token, node("n1"), &one).await.unwrap();
        assert_eq!(bearer(&issued).id.to_string(), "spiffe://shoal/node/n1");
        identity.join(&token, node("n1"), &one).await.unwrap();
        assert!(matches!(identity.join(&token, node("n2"), &request()).await, Err(Error::BadToken)));
        assert!(matches!(identity.join(&token, node("n1"), &request()).await, Err(Error::OtherKey(_))));
    }

    #[tokio::test]
    async fn a_token_that_does_not_count_says_no_more_than_that() {
        let (_dir, _, identity) = opened().await;
        let (_, token) = identity.make_token(new(9), "admin").await.unwrap();
        let wrong = JoinToken::new(token.id.clone(), [0; 32], token.ca);
        let unknown = JoinToken::new("other".into(), *token.secret(), token.ca);
        for bad in [&wrong, &unknown] {
            assert!(matches!(identity.join(bad, node("n1"), &request()).await, Err(Error::BadToken)));
        }
        assert!(identity.remove_token(&token.id, "admin").await.unwrap().is_some());
        assert!(matches!(identity.join(&token, node("n1"), &request()).await, Err(Error::BadToken)));
        assert!(identity.members().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_service_account_makes_members_and_a_node_id_stays_bound_to_its_key() {
        use super::super::kubernetes::tests::{claims, config, ec, publish};
        let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
        let (signer, file) = (ec("k"), dir.path().join("jwks"));
        publish(&file, &[&signer]);
        let authority = Authority::open(dir.path(), "shoal".parse().unwrap()).unwrap();
        let bound = kubernetes::Config { cluster: Some("north".into()), seed: true, ..config(&file) };
        let config = Config { kubernetes: vec![bound], ..Config::default() };
        let identity = Identity::open(config, authority, store.clone(), Metrics::default()).await.unwrap();
        let (token, own) = (signer.sign(&claims()), request());
        let north = |name: &str| (name == "north").then(|| "c7".parse().unwrap());
        let issued = identity.join_by_account(&token, node("n1"), &own, north).await.unwrap();
        assert_eq!(bearer(&issued).id.to_string(), "spiffe://shoal/node/n1");
        identity
            .join_by_account(&token, node("n1"), &own, north)
            .await
            .expect("the same token again, and the same key");
        identity.join_by_account(&token, node("n2"), &request(), north).await.expect("for another node");
        let stolen = identity.join_by_account(&token, node("n1"), &request(), north).await;
        assert!(matches!(stolen, Err(Error::OtherKey(_))));
        let member = identity.members().await.unwrap().remove(0);
        assert_eq!(member.joined_by, "kubernetes:prod:shoal:shoal-node");
        assert!(member.seed && member.cluster == Some("c7".parse().unwrap()));
        let log = store.audit(None, 10).await.unwrap();
        let told: Vec<_> = log.iter().map(|row| (row.entry.action.as_str(), row.entry.subject.as_str())).collect();
        assert_eq!(told, [("member.join", "n2"), ("member.join", "n1")]);
        assert_eq!(log[0].entry.after.as_ref().unwrap()["kubernetes_node"], "worker-1");
        assert!(!format!("{log:?}").contains(&token));
        let gone = identity.join_by_account(&token, node("n3"), &request(), |_| None).await.unwrap_err();
        assert_eq!(gone.to_string(), "identity.kubernetes[0].cluster: there is no cluster \"north\"");
        identity.revoke(&node("n1"), "admin").await.unwrap().unwrap();
        let revoked = identity.join_by_account(&token, node("n1"), &own, north).await;
        assert!(matches!(revoked, Err(Error::Revoked(_))));
    }

    #[tokio::test]
    async fn a_member_comes_back_with_its_key_and_with_no_other() {
        let (_dir, _, identity) = opened().await;
        let (_, token) = identity.make_token(new(1), "admin").await.unwrap();
        let own = request();
        assert!(matches!(identity.come_back(node("n1"), &own).await, Err(Error::NoMember(_))));
        identity.join(&token, node("n1"), &own).await.unwrap();
        identity.come_back(node("n1"), &own).await.unwrap();
        assert!(matches!(identity.come_back(node("n1"), &request()).await, Err(Error::OtherKey(_))));
        let cluster = Some("c1".parse().unwrap());
        let issued = identity.certify(node("n1"), cluster.clone(), &own).await.unwrap();
        assert_eq!(bearer(&issued).id.to_string(), "spiffe://shoal/cluster/c1/node/n1");
        assert!(matches!(identity.certify(node("n1"), cluster, &request()).await, Err(Error::OtherKey(_))));
    }

    #[tokio::test]
    async fn what_is_revoked_is_void_at_once_and_stays_so_over_a_restart() {
        let (dir, store, identity) = opened().await;
        let (_, token) = identity.make_token(new(1), "admin").await.unwrap();
        let own = request();
        let issued = identity.join(&token, node("n1"), &own).await.unwrap();
        let mut voids = identity.voids();
        voids.mark_unchanged();
        assert!(!identity.is_void(&bearer(&issued)));
        assert!(identity.revoke(&node("other"), "admin").await.unwrap().is_none());
        assert!(identity.revoke(&node("n1"), "admin").await.unwrap().unwrap().revoked.is_some());
        assert!(voids.has_changed().unwrap() && identity.is_void(&bearer(&issued)));
        for refused in [identity.join(&token, node("n1"), &own).await, identity.come_back(node("n1"), &own).await] {
            assert!(matches!(refused, Err(Error::Revoked(_))));
        }
        let authority = Authority::open(dir.path(), "shoal".parse().unwrap()).unwrap();
        let again = Identity::open(Config::default(), authority, store, Metrics::default()).await.unwrap();
        assert!(again.is_void(&bearer(&issued)));
        // Removed, it may join anew; what it had stays void.
        assert!(again.remove(&node("n1"), "admin").await.unwrap().is_some());
        let (_, token) = again.make_token(new(1), "admin").await.unwrap();
        let fresh = again.join(&token, node("n1"), &request()).await.unwrap();
        assert!(again.is_void(&bearer(&issued)) && !again.is_void(&bearer(&fresh)));
    }

    #[tokio::test]
    async fn a_node_that_was_moved_has_only_what_it_got_after() {
        let (_dir, _, identity) = opened().await;
        let (_, token) = identity.make_token(new(1), "admin").await.unwrap();
        let own = request();
        identity.join(&token, node("n1"), &own).await.unwrap();
        let before = identity.certify(node("n1"), Some("a".parse().unwrap()), &own).await.unwrap();
        identity.moved(&[node("n1")]).await.unwrap();
        let after = identity.certify(node("n1"), Some("b".parse().unwrap()), &own).await.unwrap();
        assert!(identity.is_void(&bearer(&before)) && !identity.is_void(&bearer(&after)));
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_does_not_make_void_what_is_issued_later_nor_spare_what_was_before() {
        let (_dir, _, identity) = opened().await;
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let (first, second, third) = (identity.moment(now), identity.moment(now - hour), identity.moment(now - hour));
        assert!(first < second && second < third);
        assert_eq!(identity.moment(now + hour), micros(now + hour));
    }

    #[tokio::test]
    async fn bad_tokens_are_not_made_and_the_field_is_named() {
        let (_dir, _, identity) = opened().await;
        let bad = [
            ("uses", new(0)),
            ("uses", new(100_001)),
            ("ttl", NewJoinToken { life: Duration::ZERO, ..new(1) }),
            ("ttl", NewJoinToken { life: Duration::from_secs(400 * 24 * 3600), ..new(1) }),
            ("cluster", NewJoinToken { cluster: Some("gone".parse().unwrap()), ..new(1) }),
        ];
        for (expected, new) in bad {
            let error = identity.make_token(new, "admin").await.unwrap_err();
            assert!(matches!(error, Error::Refused { field, .. } if field == expected), "{expected}: {error}");
        }
        assert!(identity.tokens().await.unwrap().is_empty());
    }
}
