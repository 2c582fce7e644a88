//! What single settings may be, which of them contradict each other, and whether the files that they name can be used.

use std::path::PathBuf;
use std::time::Duration;

use shoal_base::config::Faults;
use shoal_base::limit::LEAST_RATE;
use shoal_base::listen::collide;
use shoal_base::privileges::Needs;

use super::{Config, Raw, origin_config};
use crate::control::{Authority, JoinBy};

/// What control takes of a text.
const LONGEST_TEXT: usize = 1024;
/// The largest piece: a smaller store could not even hold what is asked for at once.
const SMALLEST_QUOTA: u64 = 8 << 20;

impl Config {
    /// What the settings mean, when the files that they name can be used too.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn read(raw: Raw) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let registries = origin_config(&raw.origin, &mut Faults::default()).registries;
        for (registry, settings) in &registries {
            for (leaf, error) in settings.faults(registry) {
                faults.push(format!("origin.registry.\"{registry}\".{leaf}"), error.to_string());
            }
        }
        match Self::try_from(raw) {
            Ok(config) => faults.into_result(config),
            Err(mut all) => {
                all.extend(faults);
                Err(all)
            }
        }
    }
}

impl Config {
    /// What this daemon may not give up.
    pub fn needs(&self) -> Needs {
        let mut files: Vec<PathBuf> =
            self.origin.registries.values().flat_map(|registry| registry.ca.iter().cloned()).collect();
        files.extend(self.origin.docker_config.clone());
        match &self.control.join {
            Some(JoinBy::Token(path)) => files.push(path.clone()),
            Some(JoinBy::ServiceAccount { token, authority }) => {
                files.push(token.clone());
                if let Authority::File(path) = authority {
                    files.push(path.clone());
                }
            }
            None => {}
        }
        Needs {
            listeners: vec![self.mirror_listen, self.peer_listen, self.admin_listen],
            files,
            directories: vec![self.state_dir.clone(), self.store.dir.clone()],
            core_dumps: self.core_dumps,
        }
    }
}

/// Values that can't be, each by itself.
pub(super) fn limits(raw: &Raw, faults: &mut Faults) {
    if raw.state_dir.as_os_str().is_empty() {
        faults.push("state_dir", "is empty");
    }
    for (key, text) in [
        ("node.name", &raw.node.name),
        ("node.idc", &raw.node.idc),
        ("node.location", &raw.node.location),
        ("node.cluster", &raw.node.cluster),
    ] {
        // Control would refuse the node again and again.
        if text.len() > LONGEST_TEXT {
            faults.push(key, format!("has {} bytes, and control takes {LONGEST_TEXT}", text.len()));
        }
    }
    raw.telemetry.check("telemetry", faults);
    if raw.peer.listen.port() == 0 {
        faults.push("peer.listen", "needs a port that peers can be told");
    }
    for (key, value) in [
        ("mirror.max_connections", raw.mirror.max_connections),
        ("peer.max_connections", raw.peer.max_connections),
        ("swarm.streams", raw.swarm.streams),
    ] {
        if value == 0 {
            faults.push(key, "must be at least 1");
        }
    }
    for (key, value) in [
        ("mirror.first_byte_budget", raw.mirror.first_byte_budget),
        ("mirror.origin_byte_budget", raw.mirror.origin_byte_budget),
        ("swarm.silence", raw.swarm.silence),
        ("origin.connect_timeout", raw.origin.connect_timeout),
        ("origin.headers_timeout", raw.origin.headers_timeout),
        ("origin.body_timeout", raw.origin.body_timeout),
    ] {
        if value.is_zero() {
            faults.push(key, "must be above 0");
        }
    }
    for (key, value) in [
        ("limits.upload", raw.limits.upload),
        ("limits.download", raw.limits.download),
        ("limits.origin", raw.limits.origin),
    ] {
        if (1..LEAST_RATE).contains(&value.as_u64()) {
            faults.push(
                key,
                "is below 128KiB per second, too little for a block in the time that a peer waits; 0 means no limit",
            );
        }
    }
    // containerd gives up at 30 s.
    if raw.mirror.origin_byte_budget.as_duration() >= Duration::from_secs(30) {
        faults.push("mirror.origin_byte_budget", "must be below 30s, when containerd gives up");
    }
}

/// Values that can't be together.
pub(super) fn contradictions(raw: &Raw, faults: &mut Faults) {
    let (mirror, peer, admin) = (raw.mirror.listen, raw.peer.listen, raw.admin.listen);
    for (key, one, other_key, other) in [
        ("peer.listen", peer, "mirror.listen", mirror),
        ("admin.listen", admin, "mirror.listen", mirror),
        ("admin.listen", admin, "peer.listen", peer),
    ] {
        if collide(one, other) {
            faults.push(key, format!("{one} is taken by {other_key}, {other}"));
        }
    }
    if (1..SMALLEST_QUOTA).contains(&raw.store.quota.as_u64()) {
        faults.push("store.quota", "is below 8MiB, the largest piece of a blob; 0 means no bound");
    }
    if raw.mirror.origin_byte_budget.as_duration() < raw.mirror.first_byte_budget.as_duration() {
        faults.push("mirror.origin_byte_budget", "must not be below mirror.first_byte_budget");
    }
}
