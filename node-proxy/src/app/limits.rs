//! The limits on bytes per second, which can be changed while the daemon runs: SIGHUP makes it read its settings again.
//!
//! What always holds: settings with a fault change nothing; of settings without one the limits hold at once, and what else has
//! changed is named and holds at the next start.

use prometheus_client::registry::Registry;
use serde_json::json;
use shoal_base::config::{Faults, differing};
use shoal_base::drain::Hangups;
use shoal_base::limit::Limiter;

use crate::config::{Config, Rates, Raw};

/// Where in the settings the limits are.
const SECTION: &str = "limits.";

/// One limiter for each direction. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) upload: Limiter,
    pub(super) download: Limiter,
    pub(super) origin: Limiter,
}

/// Reads the settings again, as they were read at the start: file, environment, flags.
pub struct Reread {
    /// What the daemon runs with, but for the limits.
    running: Raw,
    load: Box<dyn Fn() -> Result<Raw, Faults> + Send>,
}

impl Reread {
    /// `running`: the settings of the start; `load` gives those of now.
    pub fn new(running: Raw, load: impl Fn() -> Result<Raw, Faults> + Send + 'static) -> Self {
        Self { running, load: Box::new(load) }
    }

    /// The limits of now, and the keys of other settings that are not those of the start any more.
    fn now(&self) -> Result<(Rates, Vec<String>), Faults> {
        let raw = (self.load)()?;
        let mut changed = differing(&self.running, &raw);
        changed.retain(|key| !key.starts_with(SECTION));
        Ok((Config::read(raw)?.limits, changed))
    }
}

impl Limits {
    pub(super) fn new(rates: Rates) -> Self {
        let Rates { upload, download, origin } = rates;
        Self { upload: Limiter::new(upload), download: Limiter::new(download), origin: Limiter::new(origin) }
    }

    fn each(&self) -> [(&'static str, &Limiter); 3] {
        [("upload", &self.upload), ("download", &self.download), ("origin", &self.origin)]
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        for (what, limiter) in self.each() {
            limiter.register(what, registry);
        }
    }

    /// For `/debug`, in bytes per second.
    pub(super) fn describe(&self) -> serde_json::Value {
        let rates = self.each().map(|(what, limiter)| (what.to_owned(), json!(limiter.rate())));
        serde_json::Value::Object(rates.into_iter().collect())
    }

    /// Reads the settings at each SIGHUP.
    pub(super) async fn follow(self, mut hangups: Hangups, reread: Reread) {
        loop {
            hangups.next().await;
            self.apply(reread.now());
        }
    }

    fn apply(&self, read: Result<(Rates, Vec<String>), Faults>) {
        let (rates, changed) = match read {
            Ok(read) => read,
            Err(faults) => return tracing::error!(%faults, "the settings have faults; nothing was changed"),
        };
        let rates_of_each = [rates.upload, rates.download, rates.origin];
        for ((what, limiter), rate) in self.each().into_iter().zip(rates_of_each) {
            let before = limiter.rate();
            if rate != before {
                limiter.set(rate);
                tracing::info!(limit = what, before, rate, "limit changed");
            }
        }
        if !changed.is_empty() {
            tracing::warn!(settings = ?changed, "changed settings that hold at the next start only");
        }
        tracing::info!("settings were read again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Raw {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn limits_change_and_what_else_changed_is_named() {
        let limits = Limits::new(Rates { upload: 0, download: 1 << 20, origin: 0 });
        let reread = Reread::new(raw(""), || Ok(raw("limits.upload = '2MiB'\ngrace = '7s'\nmirror.look_ahead = 5")));
        let read = reread.now().unwrap();
        assert_eq!(read.1, ["grace", "mirror.look_ahead"]);
        limits.apply(Ok(read));
        assert_eq!(limits.describe(), json!({"upload": 2 << 20, "download": 0, "origin": 0}));
    }

    #[test]
    fn a_fault_names_its_key_and_changes_nothing() {
        let limits = Limits::new(Rates { upload: 1 << 20, download: 0, origin: 0 });
        let reread = Reread::new(raw(""), || Ok(raw("limits.upload = '2MiB'\nlimits.origin = '100KiB'")));
        let read = reread.now();
        assert_eq!(read.as_ref().unwrap_err().iter().next().unwrap().key, "limits.origin");
        limits.apply(read);
        assert_eq!(limits.upload.rate(), 1 << 20);
    }
}
