//! Who may pull what at the lab's registry: users with their passwords, and the repositories that are not for everybody.
//!
//! The token server goes by it when it signs, and the proxy before a registry of Basic when a user asks for another's repository,
//! which `docker-registry` itself can't tell apart. Rights may be taken away while everything runs.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

/// What a password costs to check: the least, for it is checked with each request.
const COST: u32 = 4;

/// A user of the registry.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Password.
    pub password: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({})", self.name)
    }
}

impl User {
    /// A user with a password that nobody guesses, and that is found wherever it was written.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), password: format!("pw-of-{name}-{}", hex::encode(rand::random::<[u8; 12]>())) }
    }

    /// The same, who mistypes.
    #[must_use]
    pub fn mistyped(&self) -> Self {
        Self { name: self.name.clone(), password: format!("not-{}", self.password) }
    }

    /// `name:password`, as `crictl pull --creds` takes it.
    pub fn creds(&self) -> String {
        format!("{}:{}", self.name, self.password)
    }

    /// The value of an `Authorization` header.
    pub fn basic(&self) -> String {
        format!("Basic {}", BASE64.encode(self.creds()))
    }

    /// Reads the value of an `Authorization` header; `None`: it is not Basic.
    pub fn of_basic(header: &str) -> Option<Self> {
        let (kind, text) = header.split_once(' ')?;
        let plain = kind.eq_ignore_ascii_case("basic").then(|| BASE64.decode(text.trim()).ok())??;
        let plain = String::from_utf8(plain).ok()?;
        let (name, password) = plain.split_once(':')?;
        Some(Self { name: name.to_owned(), password: password.to_owned() })
    }

    /// The line of an `htpasswd` file, by bcrypt.
    pub(crate) fn htpasswd(&self) -> Result<String> {
        let hash = bcrypt::hash(&self.password, COST).with_context(|| format!("hash the password of {}", self.name))?;
        Ok(format!("{}:{hash}\n", self.name))
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody in particular.
    Anonymous,
    /// The user of that name.
    User(String),
    /// Who names a user, and not the password.
    Wrong,
}

#[derive(Default)]
struct Table {
    /// Repositories that are for users alone.
    closed: BTreeSet<String>,
    users: BTreeMap<String, Account>,
}

struct Account {
    user: User,
    may_pull: BTreeSet<String>,
}

/// All rights. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Rights(Arc<Mutex<Table>>);

impl Rights {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a repository is for users alone who were given it.
    pub fn close(&self, repository: &str) {
        self.table().closed.insert(repository.to_owned());
    }

    /// Lets a user in.
    pub(crate) fn admit(&self, user: &User, may_pull: &[&str]) {
        let may_pull = may_pull.iter().map(|repository| (*repository).to_owned()).collect();
        self.table().users.insert(user.name.clone(), Account { user: user.clone(), may_pull });
    }

    /// Takes a repository away from a user.
    pub fn take_away(&self, user: &User, repository: &str) {
        if let Some(account) = self.table().users.get_mut(&user.name) {
            account.may_pull.remove(repository);
        }
    }

    /// Who asks with that `Authorization` header.
    pub fn caller(&self, authorization: Option<&str>) -> Caller {
        let Some(shown) = authorization.and_then(User::of_basic) else { return Caller::Anonymous };
        let table = self.table();
        let known = table.users.get(&shown.name).is_some_and(|account| account.user == shown);
        if known { Caller::User(shown.name) } else { Caller::Wrong }
    }

    /// Whether the caller may pull from a repository.
    pub fn may_pull(&self, caller: &Caller, repository: &str) -> bool {
        let table = self.table();
        match caller {
            Caller::Wrong => false,
            _ if !table.closed.contains(repository) => true,
            Caller::Anonymous => false,
            Caller::User(name) => table.users.get(name).is_some_and(|account| account.may_pull.contains(repository)),
        }
    }

    /// Whether a user who is known asks for content of a repository that is not his. Whom it does not know the registry itself
    /// turns away.
    pub(crate) fn denies(&self, authorization: Option<&str>, path: &str) -> bool {
        let caller = self.caller(authorization);
        let repository = path.strip_prefix("/v2/").and_then(|rest| {
            let at = rest.rfind("/manifests/").or_else(|| rest.rfind("/blobs/"))?;
            rest.get(..at)
        });
        matches!(caller, Caller::User(_)) && repository.is_some_and(|name| !self.may_pull(&caller, name))
    }

    /// Every user as a line of an `htpasswd` file.
    pub(crate) fn htpasswd(&self) -> Result<String> {
        self.table().users.values().map(|account| account.user.htpasswd()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_repository_is_for_those_who_were_given_it() {
        let rights = Rights::default();
        let (ann, eve) = (User::new("ann"), User::new("eve"));
        rights.close("lab/private");
        rights.admit(&ann, &["lab/private"]);
        rights.admit(&eve, &[]);
        let may = |header: Option<&str>, repository: &str| rights.may_pull(&rights.caller(header), repository);
        assert!(may(Some(&ann.basic()), "lab/private"));
        assert!(!may(Some(&eve.basic()), "lab/private"));
        assert!(!may(None, "lab/private"));
        assert!(may(None, "lab/open") && may(Some(&eve.basic()), "lab/open"));
        assert!(!may(Some(&ann.mistyped().basic()), "lab/open"), "who mistypes is nobody");
        rights.take_away(&ann, "lab/private");
        assert!(!may(Some(&ann.basic()), "lab/private"));
    }

    #[test]
    fn the_gate_denies_a_known_user_anothers_repository_and_leaves_the_rest_to_the_registry() {
        let rights = Rights::default();
        let (ann, eve) = (User::new("ann"), User::new("eve"));
        rights.close("lab/private");
        rights.admit(&ann, &["lab/private"]);
        rights.admit(&eve, &[]);
        for path in ["/v2/lab/private/manifests/1", "/v2/lab/private/blobs/sha256:ab"] {
            assert!(rights.denies(Some(&eve.basic()), path), "{path}");
            assert!(!rights.denies(Some(&ann.basic()), path), "{path}");
            assert!(!rights.denies(Some(&ann.mistyped().basic()), path), "{path}");
            assert!(!rights.denies(None, path), "{path}");
        }
        assert!(!rights.denies(Some(&eve.basic()), "/v2/"));
    }

    #[test]
    fn a_line_of_htpasswd_is_of_the_password_alone() {
        let ann = User::new("ann");
        let line = ann.htpasswd().unwrap();
        let (name, hash) = line.trim_end().split_once(':').unwrap();
        assert_eq!(name, "ann");
        assert!(bcrypt::verify(&ann.password, hash).unwrap() && !bcrypt::verify("other", hash).unwrap());
        assert_eq!(User::of_basic(&ann.basic()), Some(ann));
        assert_eq!(User::of_basic("Bearer x"), None);
    }
}
