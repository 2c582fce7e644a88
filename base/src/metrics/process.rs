//! What the kernel says about this process. Source: proc(5).

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Linux shows times to programs in hundredths of a second on all architectures that we build for (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let facts = Facts::read();
        if let Some(seconds) = facts.cpu_seconds {
            let metric = ConstCounter::new(seconds);
            let help = "User and system CPU time spent.";
            metric.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, metric.metric_type())?)?;
        }
        for (name, help, value) in [
            ("process_start_time_seconds", "When the process started, since 1970.", facts.start_seconds),
            ("process_resident_memory_bytes", "Resident memory.", facts.resident),
            ("process_resident_anonymous_bytes", "Resident memory without pages of files.", facts.anonymous),
            ("process_open_fds", "Open file descriptors.", facts.open_fds),
            ("process_max_fds", "Most file descriptors that may be open.", facts.max_fds),
            ("process_threads", "Threads.", facts.threads),
        ] {
            if let Some(value) = value {
                let metric = ConstGauge::new(value);
                metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
            }
        }
        Ok(())
    }
}

/// A fact that can't be read is left out rather than shown as 0.
#[derive(Debug, Default)]
struct Facts {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident: Option<f64>,
    anonymous: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    threads: Option<f64>,
}

impl Facts {
    fn read() -> Self {
        let mut facts = Self::default();
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            // The program's name is in brackets and may hold anything, so count from the last bracket: field 3 is first.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
            facts.cpu_seconds = ticks(14).zip(ticks(15)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
            facts.start_seconds = ticks(22).zip(boot_time()).map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND);
        }
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            facts.resident = field(&status, "VmRSS:").map(|kib| kib * 1024.0);
            facts.anonymous = field(&status, "RssAnon:").map(|kib| kib * 1024.0);
            facts.threads = field(&status, "Threads:");
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of open files is small")]
        {
            // The directory that is read is open itself.
            facts.open_fds = fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count().saturating_sub(1) as f64);
        }
        facts.max_fds =
            fs::read_to_string("/proc/self/limits").ok().and_then(|limits| field(&limits, "Max open files"));
        facts
    }
}

fn boot_time() -> Option<f64> {
    field(&fs::read_to_string("/proc/stat").ok()?, "btime")
}

/// The first number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
