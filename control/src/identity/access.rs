//! API tokens: who may ask REST for what.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shoal_proto::ClusterId;
use tokio::sync::Mutex;

use super::{CONTROL, Follower, Happened, NODE, entry, now_seconds, unfit_life, unfit_name};
use crate::store::{self, ApiTokenRow, AuditFilter, AuditRow, Identities, Role, Seconds};

/// What a secret begins with, so that scanners of logs and repositories know it.
const PREFIX: &str = "shoal-api";

/// Whoever asks, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The API token's id, which no other gets when this one is gone.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it lets them do.
    pub role: Role,
    /// In which clusters; `None`: in all.
    pub clusters: Option<BTreeSet<ClusterId>>,
}

impl Caller {
    /// Whether the cluster is one that they may see and change.
    pub fn reaches(&self, cluster: &ClusterId) -> bool {
        self.clusters.as_ref().is_none_or(|clusters| clusters.contains(cluster))
    }

    /// Whether no cluster is kept from them.
    pub const fn reaches_all(&self) -> bool {
        self.clusters.is_none()
    }
}

/// What an API token is to be.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Unique.
    pub name: String,
    /// What it lets its bearer do.
    pub role: Role,
    /// In which clusters; `None`: in all.
    pub clusters: Option<BTreeSet<ClusterId>>,
    /// How long it counts; `None`: until it is removed.
    pub life: Option<Duration>,
}

/// Why a token was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's.
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
}

/// The API tokens.
pub struct Access {
    store: Arc<dyn Identities>,
    /// By hash; what is asked is answered from here.
    known: ArcSwap<HashMap<[u8; 32], ApiTokenRow>>,
    writing: Mutex<()>,
    follower: Option<Arc<dyn Follower>>,
}

/// What the first start made.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstToken {
    /// There are tokens already.
    None,
    /// It was made here; to be shown once.
    Made(String),
    /// It is the operator's.
    Supplied,
}

impl Access {
    /// Reads the tokens. When there are none it makes the first, for an admin: `supplied`, or a secret of its own.
    ///
    /// # Errors
    /// [`Error`]; a supplied secret must have 32 characters at least.
    pub async fn open(store: Arc<dyn Identities>, supplied: Option<&str>) -> Result<(Self, FirstToken), Error> {
        let access = Self { store, known: ArcSwap::default(), writing: Mutex::default(), follower: None };
        access.read().await?;
        if !access.known.load().is_empty() {
            return Ok((access, FirstToken::None));
        }
        if supplied.is_some_and(|secret| secret.len() < 32) {
            let reason =
                "the token has fewer than 32 characters; head -c 32 /dev/urandom | base64 makes a good one".into();
            return Err(Error::Refused { field: "rest.admin_token_file", reason });
        }
        let new = NewToken { name: "admin".into(), role: Role::Admin, clusters: None, life: None };
        let made = access.create(new, supplied, CONTROL).await?.1;
        Ok((access, supplied.map_or(FirstToken::Made(made), |_| FirstToken::Supplied)))
    }

    /// Tells somebody what happens to API tokens.
    #[must_use]
    pub fn followed(self, follower: Arc<dyn Follower>) -> Self {
        Self { follower: Some(follower), ..self }
    }

    fn tell(&self, what: Happened) {
        if let Some(follower) = &self.follower {
            follower.happened(what);
        }
    }

    async fn read(&self) -> Result<(), store::Error> {
        let rows = self.store.api_tokens().await?;
        self.known.store(Arc::new(rows.into_iter().map(|row| (row.hash, row)).collect()));
        Ok(())
    }

    /// Who has this secret; `None`: nobody, or its time is over.
    pub fn caller(&self, secret: &str) -> Option<Caller> {
        // The hash is what is looked up: how long that takes tells nothing of the secret.
        let known = self.known.load();
        let row = known.get(&hash(secret))?;
        if row.expires.is_some_and(|expires| expires <= now_seconds()) {
            return None;
        }
        Some(Caller { id: row.id.clone(), name: row.name.clone(), role: row.role, clusters: row.clusters.clone() })
    }

    /// Whether somebody who was let in may go on: the token is there (not another of its name), lets its bearer do the same, and its time
    /// is not over.
    pub fn counts(&self, caller: &Caller) -> bool {
        let known = self.known.load();
        let row = known.values().find(|row| row.id == caller.id);
        row.is_some_and(|row| {
            row.role == caller.role
                && row.clusters == caller.clusters
                && row.expires.is_none_or(|expires| expires > now_seconds())
        })
    }

    /// All tokens, without secrets, oldest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(&self) -> Result<Vec<ApiTokenRow>, Error> {
        Ok(self.store.api_tokens().await?)
    }

    /// Makes a token. Its secret is given once, here.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn make(&self, new: NewToken, by: &str) -> Result<(ApiTokenRow, String), Error> {
        self.create(new, None, by).await
    }

    async fn create(&self, new: NewToken, supplied: Option<&str>, by: &str) -> Result<(ApiTokenRow, String), Error> {
        let NewToken { name, role, clusters, life } = new;
        let refused = |field, reason: &str| Err(Error::Refused { field, reason: reason.into() });
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) || name.trim() != name {
            return refused("name", "has 1 to 64 bytes, no control characters, and no space at its ends");
        }
        if let Some(why) = unfit_name(&name).or_else(|| poses(&name)) {
            return refused("name", why);
        }
        if let Some(why) = life.and_then(unfit_life) {
            return refused("ttl", why);
        }
        if clusters.as_ref().is_some_and(BTreeSet::is_empty) {
            return refused("clusters", "is empty; leave it out for all clusters");
        }
        let _writing = self.writing.lock().await;
        if self.known.load().values().any(|row| row.id == name) {
            return refused("name", "is the id of another API token");
        }
        let id = hex::encode(rand::random::<[u8; 6]>());
        let secret = supplied
            .map_or_else(|| format!("{PREFIX}.{id}.{}", hex::encode(rand::random::<[u8; 32]>())), str::to_owned);
        let created = now_seconds();
        let expires = life.map(|life| created.saturating_add(life.as_secs()));
        let row = ApiTokenRow { id, name, hash: hash(&secret), role, clusters, created, expires };
        let audit = entry(by, "api-token.create", &row.name, None, Some(shown(&row)));
        match self.store.add_api_token(&row, &audit).await {
            Err(store::Error::NameTaken(_)) => return refused("name", "is that of another API token"),
            other => other?,
        }
        tracing::info!(token = row.name, role = role.as_str(), by, "made an API token");
        self.read().await?;
        self.tell(Happened::ApiTokenMade(row.clone()));
        Ok((row, secret))
    }

    /// Entries of the audit log that a filter leaves, newest first, at most `most`.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn audit(&self, filter: &AuditFilter, most: u32) -> Result<Vec<AuditRow>, Error> {
        Ok(self.store.audit_of(filter, most).await?)
    }

    /// Removes a token, named by id or name. `None`: there is none.
    ///
    /// # Errors
    /// [`Error`]; the last admin's token stays, or nobody could make another.
    pub async fn remove(&self, id_or_name: &str, by: &str) -> Result<Option<ApiTokenRow>, Error> {
        let _writing = self.writing.lock().await;
        let rows = self.store.api_tokens().await?;
        let Some(row) = rows.iter().find(|row| row.id == id_or_name || row.name == id_or_name) else { return Ok(None) };
        let rules = |row: &&ApiTokenRow| row.role == Role::Admin && row.clusters.is_none() && row.expires.is_none();
        if rules(&row) && rows.iter().filter(rules).count() == 1 {
            let reason =
                "is the last one of an admin that reaches all clusters and does not expire; make another first".into();
            return Err(Error::Refused { field: "token", reason });
        }
        let audit = entry(by, "api-token.remove", &row.name, Some(shown(row)), None);
        let removed = self.store.remove_api_token(&row.id, &audit).await?;
        self.read().await?;
        if !removed {
            return Ok(None);
        }
        tracing::info!(token = row.name, by, "removed an API token");
        self.tell(Happened::ApiTokenRemoved(row.clone()));
        Ok(Some(row.clone()))
    }
}

/// Why the audit log would tell what the bearer does as somebody else's; `None`: it would not. Case and kinds of space are not told apart
/// by people.
fn poses(name: &str) -> Option<&'static str> {
    let mut words = name.split_whitespace();
    let is = |word: Option<&str>, known: &str| word.is_some_and(|word| word.eq_ignore_ascii_case(known));
    match (words.next(), words.next()) {
        (first, None) if is(first, CONTROL) => Some("is how the audit log names this service itself"),
        (first, Some(_)) if is(first, NODE) => Some("begins as the audit log names nodes"),
        _ => None,
    }
}

/// What the audit log keeps of a token.
fn shown(row: &ApiTokenRow) -> serde_json::Value {
    json!({ "id": row.id, "name": row.name, "role": row.role, "clusters": row.clusters, "expires": row.expires })
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Seconds since 1970.
pub(super) fn seconds(at: SystemTime) -> Seconds {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const SUPPLIED: &str = "0123456789abcdef0123456789abcdef";

    async fn opened(supplied: Option<&str>) -> (Arc<MemoryStore>, Access, FirstToken) {
        let store = Arc::new(MemoryStore::default());
        let (access, first) = Access::open(store.clone(), supplied).await.unwrap();
        (store, access, first)
    }

    fn new(name: &str, role: Role) -> NewToken {
        NewToken { name: name.into(), role, clusters: None, life: None }
    }

    #[tokio::test]
    async fn the_first_start_makes_one_admin_and_the_second_none() {
        let (store, access, first) = opened(None).await;
        let FirstToken::Made(secret) = first else { panic!("{first:?}") };
        assert!(secret.starts_with("shoal-api.") && secret.len() > 64);
        assert_eq!(access.caller(&secret).unwrap().role, Role::Admin);
        let (again, first) = Access::open(store, None).await.unwrap();
        assert_eq!(first, FirstToken::None);
        assert!(again.caller(&secret).is_some());
    }

    #[tokio::test]
    async fn the_operator_may_supply_the_first_but_no_short_one() {
        let (store, access, first) = opened(Some(SUPPLIED)).await;
        assert_eq!(first, FirstToken::Supplied);
        assert!(access.caller(SUPPLIED).is_some());
        // It is taken once: a token that was removed does not come back.
        drop(access);
        let (_, first) = Access::open(store, Some("another one that is long enough, really")).await.unwrap();
        assert_eq!(first, FirstToken::None);
        let error = Access::open(Arc::new(MemoryStore::default()), Some("short")).await.map(drop).unwrap_err();
        assert!(error.to_string().starts_with("rest.admin_token_file"), "{error}");
    }

    #[tokio::test]
    async fn nobody_gets_in_by_another_text() {
        let (_, access, _) = opened(Some(SUPPLIED)).await;
        for wrong in ["", " ", &SUPPLIED[1..], &SUPPLIED.to_uppercase(), &format!("{SUPPLIED} ")] {
            assert_eq!(access.caller(wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn only_the_hash_is_kept_and_the_audit_log_has_no_secret() {
        let (store, access, _) = opened(Some(SUPPLIED)).await;
        let (row, secret) = access.make(new("ci", Role::Viewer), "admin").await.unwrap();
        assert_eq!(row.hash, <[u8; 32]>::from(Sha256::digest(&secret)));
        access.remove("ci", "admin").await.unwrap().unwrap();
        assert_eq!(access.caller(&secret), None);
        let log = store.audit(None, 10).await.unwrap();
        let told: Vec<(&str, &str, &str)> = log
            .iter()
            .map(|row| (row.entry.who.as_str(), row.entry.action.as_str(), row.entry.subject.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("admin", "api-token.remove", "ci"),
                ("admin", "api-token.create", "ci"),
                ("shoal-control", "api-token.create", "admin")
            ]
        );
        let text = format!("{log:?}");
        assert!(!text.contains(&secret) && !text.contains(SUPPLIED) && !text.contains(&hex::encode(row.hash)));
    }

    fn lives(seconds: u64) -> NewToken {
        NewToken { life: Some(Duration::from_secs(seconds)), ..new(&format!("t{seconds}"), Role::Viewer) }
    }

    #[tokio::test]
    async fn a_token_ends_with_its_time() {
        let (store, access, _) = opened(Some(SUPPLIED)).await;
        let (row, well) = access.make(lives(3600), "admin").await.unwrap();
        let over = ApiTokenRow {
            id: "over".into(),
            name: "over".into(),
            hash: hash("over"),
            expires: Some(now_seconds()),
            ..row
        };
        store.add_api_token(&over, &entry("admin", "api-token.create", "over", None, None)).await.unwrap();
        let (access, _) = Access::open(store, None).await.unwrap();
        assert!(access.caller("over").is_none() && access.caller(&well).is_some());
    }

    #[tokio::test]
    async fn a_time_that_is_none_or_without_end_is_refused() {
        let (_, access, _) = opened(Some(SUPPLIED)).await;
        for seconds in [0, 366 * 24 * 3600 + 1, u64::MAX] {
            let error = access.make(lives(seconds), "admin").await.unwrap_err();
            assert!(matches!(error, Error::Refused { field: "ttl", .. }), "{seconds}: {error}");
        }
        access.make(lives(1), "admin").await.unwrap();
        access.make(lives(366 * 24 * 3600), "admin").await.unwrap();
    }

    #[tokio::test]
    async fn no_token_passes_for_a_node_or_for_control_in_the_audit_log_or_for_another_s_id() {
        let (_, access, _) = opened(Some(SUPPLIED)).await;
        let other = access.make(new("ci", Role::Viewer), "admin").await.unwrap().0.id;
        let id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        for name in
            ["shoal-control", "Shoal-Control", "node n1", "NODE n1", "node\u{a0}n1", ".", "..", id, &other, "a\u{200b}"]
        {
            let error = access.make(new(name, Role::Viewer), "admin").await.unwrap_err();
            assert!(matches!(error, Error::Refused { field: "name", .. }), "{name:?}: {error}");
        }
        for name in ["node", "nodes of ci", "node-7", "shoal-control of mine"] {
            access.make(new(name, Role::Viewer), "admin").await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_token_that_was_made_under_such_a_name_still_counts() {
        let (store, access, _) = opened(Some(SUPPLIED)).await;
        let row = access.make(new("ci", Role::Viewer), "admin").await.unwrap().0;
        let old = ApiTokenRow { id: "old".into(), name: "node n1".into(), hash: hash("old"), ..row };
        store.add_api_token(&old, &entry("admin", "api-token.create", "node n1", None, None)).await.unwrap();
        let (access, _) = Access::open(store, None).await.unwrap();
        assert_eq!(access.caller("old").unwrap().name, "node n1");
        assert!(access.remove("node n1", "admin").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn whoever_was_let_in_does_not_go_on_with_another_token_of_that_name() {
        let (_, access, _) = opened(Some(SUPPLIED)).await;
        let (_, secret) = access.make(new("ci", Role::Viewer), "admin").await.unwrap();
        let caller = access.caller(&secret).unwrap();
        assert!(access.counts(&caller));
        access.remove("ci", "admin").await.unwrap().unwrap();
        assert!(!access.counts(&caller));
        let (_, second) = access.make(new("ci", Role::Viewer), "admin").await.unwrap();
        assert!(!access.counts(&caller), "the token that was shown is gone");
        assert!(access.counts(&access.caller(&second).unwrap()));
    }

    #[tokio::test]
    async fn bad_names_are_refused_and_the_field_is_named() {
        let (_, access, _) = opened(Some(SUPPLIED)).await;
        for name in ["", " x", "x\n", &"x".repeat(65), "admin"] {
            let error = access.make(new(name, Role::Viewer), "admin").await.unwrap_err();
            assert!(matches!(error, Error::Refused { field: "name", .. }), "{name:?}: {error}");
        }
        let nowhere = NewToken { clusters: Some(BTreeSet::new()), ..new("x", Role::Viewer) };
        let error = access.make(nowhere, "admin").await.unwrap_err();
        assert!(matches!(error, Error::Refused { field: "clusters", .. }), "{error}");
    }

    #[tokio::test]
    async fn the_last_admin_stays() {
        let (_, access, _) = opened(Some(SUPPLIED)).await;
        assert!(access.remove("admin", "admin").await.unwrap_err().to_string().contains("last one"));
        let limited =
            NewToken { clusters: Some(BTreeSet::from(["a".parse().unwrap()])), ..new("limited", Role::Admin) };
        access.make(limited, "admin").await.unwrap();
        assert!(access.remove("admin", "admin").await.is_err(), "the other one does not reach all clusters");
        access.make(new("second", Role::Admin), "admin").await.unwrap();
        assert!(access.remove("admin", "second").await.unwrap().is_some());
        assert!(access.remove("admin", "second").await.unwrap().is_none());
    }
}
