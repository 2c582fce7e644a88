//! Who is signed in: in memory alone, so a restart signs everybody out.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A day's work, no more.
pub(super) const LONGEST: Duration = Duration::from_secs(12 * 3600);
/// Nobody looked for so long: nobody sits there.
const IDLE: Duration = Duration::from_secs(3600);
/// More than there are operators. The one that was used the longest ago gives way.
const MOST: usize = 4096;

/// What a cookie stands for.
#[derive(Clone)]
pub(super) struct Session {
    /// The API token that it was begun with.
    pub(super) token: String,
    /// What its forms show.
    pub(super) csrf: String,
    /// Fires when it ends.
    pub(super) over: CancellationToken,
    since: Instant,
    seen: Instant,
}

/// One that goes on; it ends when this is dropped.
struct Live {
    session: Session,
    _ends: DropGuard,
}

/// All sessions, by the hash of their id, so that the time of a look-up says nothing about an id.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<[u8; 32], Live>>);

fn key(id: &str) -> [u8; 32] {
    Sha256::digest(id.as_bytes()).into()
}

/// 256 random bits, as text.
pub(super) fn secret() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// Whether two texts are equal, in a time that depends on their lengths alone.
pub(super) fn same(a: &str, b: &str) -> bool {
    let different = a.bytes().zip(b.bytes()).fold(0, |different, (a, b)| different | (a ^ b));
    a.len() == b.len() && std::hint::black_box(different) == 0
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= LONGEST || now.duration_since(self.seen) >= IDLE
    }
}

impl Sessions {
    /// Begins one. Its id.
    pub(super) fn begin(&self, token: String) -> String {
        let (id, now) = (secret(), Instant::now());
        let mut all = self.0.lock();
        all.retain(|_, live| !live.session.is_over(now));
        if all.len() >= MOST {
            let oldest = all.iter().min_by_key(|(_, live)| live.session.seen).map(|(key, _)| *key);
            oldest.and_then(|key| all.remove(&key));
        }
        let over = CancellationToken::new();
        let session = Session { token, csrf: secret(), over: over.clone(), since: now, seen: now };
        all.insert(key(&id), Live { session, _ends: over.drop_guard() });
        id
    }

    /// The session of that id, which is used now.
    pub(super) fn find(&self, id: &str) -> Option<Session> {
        let (key, now) = (key(id), Instant::now());
        let mut all = self.0.lock();
        let session = &mut all.get_mut(&key)?.session;
        if session.is_over(now) {
            all.remove(&key);
            return None;
        }
        session.seen = now;
        Some(session.clone())
    }

    /// Ends one.
    pub(super) fn end(&self, id: &str) {
        self.0.lock().remove(&key(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_an_idle_hour_or_twelve_hours() {
        let sessions = Sessions::default();
        let id = sessions.begin("token".into());
        for _ in 0..12 {
            tokio::time::advance(IDLE - Duration::from_secs(1)).await;
            assert!(sessions.find(&id).is_some(), "it is used");
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(sessions.find(&id).is_none(), "twelve hours are over");
        let id = sessions.begin("token".into());
        let over = sessions.find(&id).unwrap().over;
        tokio::time::advance(IDLE).await;
        assert!(!over.is_cancelled());
        assert!(sessions.find(&id).is_none(), "nobody looked for an hour");
        assert!(over.is_cancelled());
        let id = sessions.begin("token".into());
        let over = sessions.find(&id).unwrap().over;
        sessions.end(&id);
        assert!(over.is_cancelled(), "whoever listens is told");
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_bounded_and_the_least_used_gives_way() {
        let sessions = Sessions::default();
        let first = sessions.begin("first".into());
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = sessions.begin("second".into());
        for n in 0..MOST - 1 {
            tokio::time::advance(Duration::from_millis(1)).await;
            sessions.begin(n.to_string());
        }
        assert_eq!(sessions.0.lock().len(), MOST);
        assert!(sessions.find(&first).is_none());
        assert!(sessions.find(&second).is_some());
    }

    #[test]
    fn texts_are_the_same_only_when_all_of_them_is() {
        assert!(same("abc", "abc"));
        for other in ["", "ab", "abd", "abcd"] {
            assert!(!same("abc", other), "{other}");
        }
    }
}
