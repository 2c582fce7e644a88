//! Who is who: the authority of the nodes, join tokens, service accounts of Kubernetes, certificates that are void, and API tokens.
//!
//! Owns keys and what is issued with them. [`crate::store`] keeps tokens as hashes, and the audit log. Decides nothing about
//! clusters: whoever asks for a certificate says of which one it is to be.
//!
//! What always holds: a node becomes a member by a token, its own or Kubernetes', or with the key that it joined with, and by nothing
//! else; no secret is
//! kept, logged or told again; every change is in the audit log.

mod access;
mod authority;
mod join;
pub mod kubernetes;
mod metrics;
mod name;

use std::time::{Duration, SystemTime};

pub use crate::store::{
    ApiTokenRow, AuditEntry, AuditFilter, AuditRow, JoinTokenFilter, JoinTokenRow, Member, MemberFilter, Role,
};
pub use access::{Access, Caller, Error as AccessError, FirstToken, NewToken};
pub use authority::{Authority, AuthorityError, BadRequest, Issued, SigningRequest};
pub use join::{Config, Error, Identity, NewJoinToken};
pub use metrics::{Metrics, Reason};
pub use name::unfit_name;

/// Who is named in the audit log when no token was shown.
pub const CONTROL: &str = "shoal-control";

/// What is named there before a node's id, for what the node did itself.
const NODE: &str = "node";

/// How long a token counts at most, a year: one that nobody remembers ends by itself.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Why a token can't count for so long; `None`: it can.
fn unfit_life(life: Duration) -> Option<&'static str> {
    (life.as_secs() == 0 || life > LONGEST).then_some("must be 1s to 8784h")
}

/// What happened to tokens and members. It is stored by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// A join token was made.
    JoinTokenMade(JoinTokenRow),
    /// A join token was removed.
    JoinTokenRemoved(JoinTokenRow),
    /// An API token was made.
    ApiTokenMade(ApiTokenRow),
    /// An API token was removed.
    ApiTokenRemoved(ApiTokenRow),
    /// A node became a member. One that comes again does not.
    Joined(Member),
    /// A member was revoked, perhaps once more.
    Revoked(Member),
    /// A member was forgotten.
    Removed(Member),
}

/// Whoever wants to know. It is told in the midst of a request, and must not wait.
pub trait Follower: Send + Sync + 'static {
    /// Something happened.
    fn happened(&self, what: Happened);
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> u64 {
    access::seconds(SystemTime::now())
}

/// An entry of the audit log, of now.
pub(crate) fn entry(
    who: &str,
    action: &str,
    subject: &str,
    before: Option<serde_json::Value>,
    after: Option<serde_json::Value>,
) -> AuditEntry {
    AuditEntry {
        at: now_seconds(),
        who: who.to_owned(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        before,
        after,
    }
}
