//! What outlives the process of who is who: join tokens, members, void certificates, API tokens, and the audit log.

use std::collections::BTreeSet;

use async_trait::async_trait;
use shoal_proto::{ClusterId, NodeId};

use super::Error;

/// The SHA-256 of a secret or of a public key.
pub type Sha256 = [u8; 32];

/// Seconds since 1970.
pub type Seconds = u64;

/// The durable part of who is who. Each call that takes an [`AuditEntry`] writes it with the change, or neither.
#[async_trait]
pub trait Identities: Send + Sync + 'static {
    /// Keeps a new join token.
    ///
    /// # Errors
    /// [`Error::NoCluster`], [`Error::Failed`].
    async fn add_join_token(&self, token: &JoinTokenRow, audit: &AuditEntry) -> Result<(), Error>;

    /// All join tokens, oldest first, used ones included.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn join_tokens(&self) -> Result<Vec<JoinTokenRow>, Error> {
        self.join_tokens_of(&JoinTokenFilter::default()).await
    }

    /// Those of them that a filter leaves, oldest first.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn join_tokens_of(&self, filter: &JoinTokenFilter) -> Result<Vec<JoinTokenRow>, Error>;

    /// Removes a join token. `false`: there is none.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn remove_join_token(&self, id: &str, audit: &AuditEntry) -> Result<bool, Error>;

    /// Makes a node a member by a token, and takes one use of it. A member comes again with the same key for no use.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn join(&self, by: &Joining, audit: &AuditEntry) -> Result<Admission, Error>;

    /// Makes a node a member for which somebody else answers. It comes again with the same key for nothing.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn admit(&self, member: &Member, audit: &AuditEntry) -> Result<Admission, Error>;

    /// A member.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn member(&self, node: &NodeId) -> Result<Option<Member>, Error>;

    /// All members, by id.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn members(&self) -> Result<Vec<Member>, Error> {
        self.members_of(&MemberFilter::default()).await
    }

    /// Those of them that a filter leaves, by id.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn members_of(&self, filter: &MemberFilter) -> Result<Vec<Member>, Error>;

    /// Marks a member as revoked, and all its certificates as void. `false`: there is no such member, or it is not as it was `seen`.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn revoke(
        &self,
        node: &NodeId,
        seen: Option<&Member>,
        at: Seconds,
        void: &Void,
        audit: &AuditEntry,
    ) -> Result<bool, Error>;

    /// Forgets a member, so that its id may join anew with another key. Its void certificates stay void. `false`: as [`Identities::revoke`].
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn remove_member(&self, node: &NodeId, seen: Option<&Member>, audit: &AuditEntry) -> Result<bool, Error>;

    /// Marks certificates as void.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn void(&self, voids: &[Void]) -> Result<(), Error>;

    /// What is void and not over by itself at `now`; the rest is forgotten.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn voids(&self, now: Seconds) -> Result<Vec<Void>, Error>;

    /// Keeps a new API token.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::Failed`].
    async fn add_api_token(&self, token: &ApiTokenRow, audit: &AuditEntry) -> Result<(), Error>;

    /// All API tokens, oldest first.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn api_tokens(&self) -> Result<Vec<ApiTokenRow>, Error>;

    /// Removes an API token by its id. `false`: there is none.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn remove_api_token(&self, id: &str, audit: &AuditEntry) -> Result<bool, Error>;

    /// Entries of the audit log below `before`, newest first, at most `most`.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn audit(&self, before: Option<u64>, most: u32) -> Result<Vec<AuditRow>, Error> {
        self.audit_of(&AuditFilter { before, ..AuditFilter::default() }, most).await
    }

    /// Those that a filter leaves, newest first, at most `most`.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn audit_of(&self, filter: &AuditFilter, most: u32) -> Result<Vec<AuditRow>, Error>;
}

/// Which join tokens are looked for; what is `None` leaves all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinTokenFilter {
    /// Those that bind nodes to this cluster.
    pub cluster: Option<ClusterId>,
    /// Those for seeds, or those for others.
    pub seed: Option<bool>,
    /// Those that count at that moment, or those whose time or uses are over.
    pub valid: Option<(bool, Seconds)>,
}

/// Which members are looked for; what is `None` leaves all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemberFilter {
    /// Those that may be seeds, or the others.
    pub seed: Option<bool>,
    /// Those that were revoked, or the others.
    pub revoked: Option<bool>,
}

/// Which entries of the audit log are looked for; what is `None` leaves all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Older than the one of this number.
    pub before: Option<u64>,
    /// By this one.
    pub who: Option<String>,
    /// An action such as `cluster.create`, or all about such things: `cluster`.
    pub action: Option<String>,
    /// About this one.
    pub subject: Option<String>,
    /// At that second or later.
    pub since: Option<Seconds>,
    /// Earlier than that second.
    pub until: Option<Seconds>,
}

impl JoinTokenFilter {
    /// Whether it leaves that token.
    pub(super) fn leaves(&self, token: &JoinTokenRow) -> bool {
        let counts = |now| token.expires > now && token.uses_left > 0;
        self.cluster.as_ref().is_none_or(|cluster| token.cluster.as_ref() == Some(cluster))
            && self.seed.is_none_or(|seed| token.seed == seed)
            && self.valid.is_none_or(|(valid, now)| counts(now) == valid)
    }
}

impl MemberFilter {
    /// Whether it leaves that member.
    pub(super) fn leaves(&self, member: &Member) -> bool {
        self.seed.is_none_or(|seed| member.seed == seed)
            && self.revoked.is_none_or(|revoked| member.revoked.is_some() == revoked)
    }
}

impl AuditFilter {
    /// Whether it leaves the entry of that number.
    pub(super) fn leaves(&self, seq: u64, entry: &AuditEntry) -> bool {
        let about = |action: &String| {
            entry.action == *action
                || entry.action.strip_prefix(action.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        self.before.is_none_or(|before| seq < before)
            && self.who.as_ref().is_none_or(|who| entry.who == *who)
            && self.action.as_ref().is_none_or(about)
            && self.subject.as_ref().is_none_or(|subject| entry.subject == *subject)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}

/// A join token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRow {
    /// Named where the secret must not be.
    pub id: String,
    /// Of the secret.
    pub hash: Sha256,
    /// Who joins by it belongs here, whatever its facts say.
    pub cluster: Option<ClusterId>,
    /// Who joins by it is a seed.
    pub seed: bool,
    /// When it counts no more.
    pub expires: Seconds,
    /// How many nodes may still join.
    pub uses_left: u32,
    /// When it was made.
    pub created: Seconds,
    /// By which API token.
    pub created_by: String,
}

/// A node that wants to become a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    /// The token's id.
    pub token: String,
    /// Of the secret that was shown.
    pub hash: Sha256,
    /// Who.
    pub node: NodeId,
    /// Of its public key.
    pub key: Sha256,
    /// When.
    pub now: Seconds,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is a member now.
    Admitted(Member),
    /// It was a member before, by the same key.
    Known(Member),
    /// There is no such token, or the secret is another, or its time or its uses are over: one answer for all, so that nobody learns
    /// which tokens there are.
    BadToken,
    /// A member with this id has another key.
    OtherKey,
    /// It is a member that was revoked.
    Revoked,
}

/// A node that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Of its public key.
    pub key: Sha256,
    /// The cluster that what it joined by binds it to.
    pub cluster: Option<ClusterId>,
    /// Whether it may be a seed.
    pub seed: bool,
    /// The id of its token, or `kubernetes:ISSUER:NAMESPACE:NAME` for a service account.
    pub joined_by: String,
    /// When.
    pub joined: Seconds,
    /// When it was revoked.
    pub revoked: Option<Seconds>,
}

/// Certificates of a node that count no more, although their time is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Void {
    /// Whose.
    pub node: NodeId,
    /// Those issued before this microsecond since 1970.
    pub before: u64,
    /// When the last of them is over by itself.
    pub forget: Seconds,
}

/// What an API token lets its bearer do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Viewer,
    /// And change clusters, nodes and jobs.
    Operator,
    /// And tokens.
    Admin,
}

impl Role {
    /// The text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// An API token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiTokenRow {
    /// Never changes.
    pub id: String,
    /// For people, unique.
    pub name: String,
    /// Of the secret.
    pub hash: Sha256,
    /// What it lets its bearer do.
    pub role: Role,
    /// In which clusters; `None`: in all.
    pub clusters: Option<BTreeSet<ClusterId>>,
    /// When it was made.
    pub created: Seconds,
    /// When it counts no more.
    pub expires: Option<Seconds>,
}

/// Who did what to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Seconds,
    /// The API token's name, or `node <id>`, or `shoal-control`.
    pub who: String,
    /// Such as `cluster.create`.
    pub action: String,
    /// Such as a cluster's name.
    pub subject: String,
    /// What it was, without secrets.
    pub before: Option<serde_json::Value>,
    /// What it is, without secrets.
    pub after: Option<serde_json::Value>,
}

/// An entry, and its number in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Grows by at least one each time.
    pub seq: u64,
    /// What was kept.
    pub entry: AuditEntry,
}

/// Whether a token admits a node; pure. `Ok(true)`: it becomes a member by one use, `Ok(false)`: it is one already.
pub(super) fn admits(by: &Joining, token: Option<&JoinTokenRow>, member: Option<&Member>) -> Result<bool, Admission> {
    match token {
        Some(token) if token.hash == by.hash && token.expires > by.now => {}
        _ => return Err(Admission::BadToken),
    }
    match is_new(member, &by.key) {
        Ok(true) if token.is_none_or(|token| token.uses_left == 0) => Err(Admission::BadToken),
        other => other,
    }
}

/// Whether a node with this key would be a new member; pure.
pub(super) fn is_new(member: Option<&Member>, key: &Sha256) -> Result<bool, Admission> {
    match member {
        Some(member) if member.revoked.is_some() => Err(Admission::Revoked),
        Some(member) if member.key != *key => Err(Admission::OtherKey),
        Some(_) => Ok(false),
        None => Ok(true),
    }
}

impl Joining {
    /// The member that it becomes by that token.
    pub(super) fn member(&self, token: &JoinTokenRow) -> Member {
        Member {
            node: self.node.clone(),
            key: self.key,
            cluster: token.cluster.clone(),
            seed: token.seed,
            joined_by: token.id.clone(),
            joined: self.now,
            revoked: None,
        }
    }
}
