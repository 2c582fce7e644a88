//! Metrics of the process, and the registry in which every room registers its own.
//!
//! A room's metrics are called `shoal_<room>_<what>_<unit>`. What describes the process itself has the names that every
//! dashboard knows already: `process_*`.

mod process;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry;

/// All metrics of one daemon. Filled while the daemon is put together, then only read.
#[derive(Debug)]
pub struct Registry {
    root: registry::Registry,
    prefix: &'static str,
}

/// The media type of [`Registry::encode`]'s answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Registry {
    /// An empty registry whose rooms' metrics start with `prefix`, e.g. `shoal`.
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self { root: registry::Registry::default(), prefix }
    }

    /// Where a room registers: what is called `x` there is called `<prefix>_<room>_x` outside.
    pub fn sub(&mut self, room: &str) -> &mut registry::Registry {
        self.root.sub_registry_with_prefix(format!("{}_{room}", self.prefix))
    }

    /// Adds `<prefix>_build_info`, which says what runs.
    pub fn build_info(&mut self, binary: &'static str, version: &'static str) {
        let info = Info::new(vec![("binary", binary), ("version", version)]);
        self.root.sub_registry_with_prefix(self.prefix).register("build", "What runs", info);
    }

    /// Adds `process_*`, read from the kernel at every scrape.
    pub fn process(&mut self) {
        self.root.register_collector(Box::new(process::Process));
    }

    /// The OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.root) {
            tracing::error!(%error, "can't write metrics");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn a_room_s_counter_appears_under_its_full_name() {
        let mut registry = Registry::new("shoal");
        let reads: Counter = Counter::default();
        registry.sub("mirror").register("read_bytes", "Bytes given to readers", reads.clone());
        registry.build_info("shoal-node", "1.2.3");
        reads.inc_by(7);
        let text = registry.encode();
        assert!(text.contains("shoal_mirror_read_bytes_total 7\n"), "{text}");
        assert!(text.contains(r#"shoal_build_info{binary="shoal-node",version="1.2.3"} 1"#), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn the_process_describes_itself() {
        let mut registry = Registry::new("shoal");
        registry.process();
        let text = registry.encode();
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")))
                .unwrap_or_else(|| panic!("{name} is missing in {text}"));
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - value("process_start_time_seconds")).abs() < 3600.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_resident_anonymous_bytes") > 0.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
