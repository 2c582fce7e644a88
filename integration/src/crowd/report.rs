//! What the crowd bench found: every run, and what they come to.
use std::{collections::BTreeMap, fmt::Write as _, fs};

use serde::{Deserialize, Serialize};

use super::CrowdPlan;
pub use super::{cpu::CpuUse, read::Progress};

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for.
    pub plan: CrowdPlan,
    /// Readers.
    pub nodes: u8,
    /// Rate of every link in bits per second, headers included.
    pub link_bits: u64,
    /// Payload that such a link can carry: what bounds are computed from.
    pub payload_bits: u64,
    /// Where `payload_bits` comes from.
    pub payload_is: String,
    /// What one TCP stream between two nodes really got, in bits per second: to see whether the computed rate is true here.
    pub measured_payload_bits: u64,
    /// By size.
    pub sizes: Vec<SizeReport>,
}

impl Report {
    /// Why runs failed, of all sizes.
    pub fn failed(&self) -> Vec<&str> {
        self.sizes.iter().flat_map(|size| size.failed.iter().map(String::as_str)).collect()
    }
}

/// The machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Processors.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory = text("/proc/meminfo");
        let total = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: total.unwrap_or(0) * 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Median, least and most of some runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The one in the middle; of an even number, the mean of the two there.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of some figures; `None` of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = figures.into_iter().collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let middle = all.len() / 2;
        let median = if all.len() % 2 == 1 { all[middle] } else { f64::midpoint(all[middle - 1], all[middle]) };
        Some(Self { median, least, most })
    }
}

/// All runs of one size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SizeReport {
    /// Bytes of the blob.
    pub blob_bytes: u64,
    /// Slow nodes among the readers.
    pub slow: u8,
    /// Nodes that began at half time.
    pub join: u8,
    /// Median of the time until the last is done over the bound; `None` when no run ended.
    pub factor: Option<f64>,
    /// The same with its spread.
    pub factor_spread: Option<Spread>,
    /// Until the last of those that are neither slow nor late, over what one of them needs alone.
    pub fast_factor: Option<Spread>,
    /// The last of those that began at half time, since then, over what one of them needs alone.
    pub late_factor: Option<Spread>,
    /// Median of bytes read from the registry over the blob's size.
    pub origin_ratio: Option<f64>,
    /// The same with its spread.
    pub origin_spread: Option<Spread>,
    /// Median of the factor without Shoal; `None` when that was not run.
    pub direct_factor: Option<f64>,
    /// The same with its spread.
    pub direct_spread: Option<Spread>,
    /// Every run in which all readers got the right bytes.
    pub runs: Vec<Run>,
    /// Why other runs failed; one is enough to make the bench fail.
    pub failed: Vec<String>,
    /// Every run without Shoal.
    pub direct_runs: Vec<Run>,
}

impl SizeReport {
    pub(super) fn new(blob_bytes: u64, plan: &CrowdPlan) -> Self {
        Self {
            blob_bytes,
            slow: plan.slow,
            join: plan.join,
            factor: None,
            factor_spread: None,
            fast_factor: None,
            late_factor: None,
            origin_ratio: None,
            origin_spread: None,
            direct_factor: None,
            direct_spread: None,
            runs: Vec::new(),
            failed: Vec::new(),
            direct_runs: Vec::new(),
        }
    }

    /// Computes the figures over the runs.
    pub(super) fn sum_up(&mut self) {
        let of = |figure: fn(&Run) -> f64| Spread::of(self.runs.iter().map(figure));
        self.factor_spread = of(|run| run.factor);
        self.fast_factor = of(|run| run.fast_factor);
        self.origin_spread = of(|run| run.origin_ratio);
        self.late_factor = Spread::of(self.runs.iter().filter_map(|run| run.late_factor));
        self.direct_spread = Spread::of(self.direct_runs.iter().map(|run| run.factor));
        self.factor = self.factor_spread.map(|spread| spread.median);
        self.origin_ratio = self.origin_spread.map(|spread| spread.median);
        self.direct_factor = self.direct_spread.map(|spread| spread.median);
    }
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// From the moment when the first began until the last was done.
    pub seconds: f64,
    /// The least that it can take.
    pub bound_seconds: f64,
    /// One over the other.
    pub factor: f64,
    /// Of those alone that are neither slow nor late, over what one of them needs alone.
    pub fast_factor: f64,
    /// Of the slowest of those that began at half time, since then.
    pub late_factor: Option<f64>,
    /// Bytes of the blob that nodes read from the registry, by its log.
    pub origin_bytes: u64,
    /// The same over the blob's size.
    pub origin_ratio: f64,
    /// Processors' time.
    pub cpu: CpuUse,
    /// Each reader.
    pub readers: Vec<Reader>,
    /// Metrics of all nodes together after the run, those that are not 0.
    pub metrics: BTreeMap<String, f64>,
}

impl Run {
    /// In one line.
    pub fn line(&self) -> String {
        let cpu = &self.cpu;
        let mut line = format!("{:.2} s, factor {:.2}, fast {:.2}", self.seconds, self.factor, self.fast_factor);
        if let Some(late) = self.late_factor {
            let _ = write!(line, ", late {late:.2}");
        }
        let _ = write!(
            line,
            ", origin {:.3}, machine busy {:.0} %, nodes {:.2} CPU s/GiB, load before {:.1}",
            self.origin_ratio,
            cpu.machine_busy * 100.0,
            cpu.nodes_seconds_per_gib,
            cpu.load_before
        );
        line
    }
}

/// One reader in a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reader {
    /// Its node.
    pub name: String,
    /// Whether its link has a quarter of the rate.
    pub slow: bool,
    /// Whether it was to begin at half time.
    pub late: bool,
    /// When it asked for the blob: seconds since the first did.
    pub began: f64,
    /// Its own time over what it needs alone.
    pub factor: f64,
    /// How it went.
    pub progress: Progress,
    /// Bytes that its node got from the registry.
    pub from_origin: u64,
    /// Bytes that its node got from peers.
    pub from_peers: u64,
    /// Bytes that its node gave to peers.
    pub served: u64,
}

/// The report as a table.
pub fn table(report: &Report) -> String {
    let mut out = format!(
        "{} nodes, links of {:.0} Mbit/s ({:.1} of payload computed, {:.1} measured), {} TLS; {} runs\n\
         MiB   slow  late  factor (least to most)   fast (least to most)     late  origin  without  busy  CPU s/GiB\n",
        report.nodes,
        report.link_bits as f64 / 1e6,
        report.payload_bits as f64 / 1e6,
        report.measured_payload_bits as f64 / 1e6,
        if report.plan.tls { "with" } else { "without" },
        report.plan.runs,
    );
    for size in &report.sizes {
        let spread = |it: Option<Spread>| {
            it.map_or("-".to_owned(), |it| format!("{:.2} ({:.2} to {:.2})", it.median, it.least, it.most))
        };
        let or_dash = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.2}"));
        let cpu =
            |figure: fn(&CpuUse) -> f64| Spread::of(size.runs.iter().map(|run| figure(&run.cpu))).unwrap_or_default();
        let _ = writeln!(
            out,
            "{:<5.0} {:<5} {:<5} {:<24} {:<24} {:<5} {:<7} {:<8} {:<5.0} {:.2}",
            size.blob_bytes as f64 / f64::from(1 << 20),
            size.slow,
            size.join,
            spread(size.factor_spread),
            spread(size.fast_factor),
            or_dash(size.late_factor.map(|late| late.median)),
            size.origin_ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
            or_dash(size.direct_factor),
            cpu(|cpu| cpu.machine_busy * 100.0).median,
            cpu(|cpu| cpu.nodes_seconds_per_gib).median,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_without_a_run_that_ended_has_no_figure() {
        let plan =
            CrowdPlan { mebibytes: vec![4], runs: 1, direct_runs: 0, slow: 0, join: 0, holders: 0, seed: 1, tls: true };
        let mut size = SizeReport::new(4 << 20, &plan);
        size.failed.push("run 1".to_owned());
        size.sum_up();
        assert_eq!((size.factor, size.origin_ratio, size.direct_factor), (None, None, None));
    }

    #[test]
    fn the_median_of_runs_is_in_the_middle_whatever_their_order() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }
}
