//! Which repositories a node of a cluster could read with an anonymous token, which manifests in them, and when last: for the
//! hours in which the registry is down (I5). In memory only; nodes say it again when control restarts.

use std::collections::HashMap;
use std::time::Duration;

use shoal_proto::{ClusterId, Digest};
use tokio::time::Instant;

/// Older facts are worth nothing (I5).
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Facts kept, over all clusters. A repository above it is not remembered until others are a day old.
const MOST: usize = 65_536;

/// A repository of a registry, or a manifest in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repository {
    /// As `ns=` names it.
    pub registry: String,
    /// Its name.
    pub name: String,
    /// The manifest; `None`: the repository as a whole.
    pub manifest: Option<Digest>,
}

/// What is known. A cluster never hears of another's (I3).
#[derive(Debug, Default)]
pub(super) struct Public(HashMap<(ClusterId, Repository), Instant>);

impl Public {
    /// A node of the cluster read it so long before `now`.
    pub(super) fn saw(&mut self, cluster: ClusterId, repository: Repository, age: Duration, now: Instant) {
        let Some(at) = now.checked_sub(age).filter(|_| age < LIFE) else { return };
        if self.0.len() >= MOST {
            self.0.retain(|_, since| now.saturating_duration_since(*since) < LIFE);
        }
        let key = (cluster, repository);
        if let Some(known) = self.0.get_mut(&key) {
            *known = at.max(*known);
        } else if self.0.len() < MOST {
            self.0.insert(key, at);
        }
    }

    /// How long before `now` somebody of the cluster read it last.
    pub(super) fn age(&self, cluster: &ClusterId, repository: &Repository, now: Instant) -> Option<Duration> {
        let since = self.0.get(&(cluster.clone(), repository.clone()))?;
        Some(now.saturating_duration_since(*since)).filter(|age| *age < LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i5_the_newest_word_counts_for_a_day_and_for_its_cluster_alone() {
        let mut public = Public::default();
        let (a, b): (ClusterId, ClusterId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let app = Repository { registry: "r.example".into(), name: "app".into(), manifest: None };
        let other = Repository { name: "other".into(), ..app.clone() };
        let manifest = Repository { manifest: Some(Digest::from_bytes([7; 32])), ..app.clone() };
        let now = Instant::now() + 3 * LIFE;
        let hour = Duration::from_secs(3600);
        public.saw(a.clone(), app.clone(), hour, now);
        public.saw(a.clone(), app.clone(), 5 * hour, now);
        assert_eq!(public.age(&a, &app, now), Some(hour));
        assert_eq!(public.age(&a, &app, now + hour), Some(2 * hour));
        assert_eq!(public.age(&a, &app, now + 23 * hour), None);
        assert_eq!(public.age(&b, &app, now), None);
        assert_eq!(public.age(&a, &other, now), None);
        assert_eq!(public.age(&a, &manifest, now), None, "who may read a repository does not know what is in it");
        public.saw(a.clone(), other.clone(), LIFE, now);
        assert_eq!(public.age(&a, &other, now), None);
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut public = Public::default();
        let cluster: ClusterId = "a".parse().unwrap();
        let now = Instant::now() + 3 * LIFE;
        for number in 0..MOST + 10 {
            let repository = Repository { registry: "r.example".into(), name: number.to_string(), manifest: None };
            public.saw(cluster.clone(), repository, Duration::ZERO, now);
        }
        assert_eq!(public.0.len(), MOST);
        let late = Repository { registry: "r.example".into(), name: "late".into(), manifest: None };
        public.saw(cluster.clone(), late.clone(), Duration::ZERO, now + LIFE);
        assert_eq!(public.age(&cluster, &late, now + LIFE), Some(Duration::ZERO));
        assert_eq!(public.0.len(), 1);
    }
}
