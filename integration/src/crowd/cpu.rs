//! How much of the machine's processors a run took, and who took it.
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Ticks per second of `/proc`: fixed on Linux for every program.
const TICKS: f64 = 100.0;

/// Processors' time between two looks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuUse {
    /// Share of all processors that was busy, by whomever: 1 means that the machine was the limit.
    pub machine_busy: f64,
    /// Share that the hypervisor took away.
    pub stolen: f64,
    /// Seconds of all `shoal-node`.
    pub nodes_seconds: f64,
    /// Of those: in the kernel.
    pub nodes_system_seconds: f64,
    /// `nodes_seconds` for each GiB that readers got.
    pub nodes_seconds_per_gib: f64,
    /// Seconds of control.
    pub control_seconds: f64,
    /// Seconds of the lab itself: its readers, who hash.
    pub lab_seconds: f64,
    /// One minute's load average before the run.
    pub load_before: f64,
}

/// A look at the counters.
#[derive(Debug, Clone)]
pub(super) struct Look {
    nodes: Times,
    control: Times,
    lab: Times,
    machine: Machine,
    load: f64,
}

/// Seconds of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Times {
    user: f64,
    system: f64,
}

impl Times {
    fn all(self) -> f64 {
        self.user + self.system
    }
}

/// Seconds of all processors together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Machine {
    busy: f64,
    stolen: f64,
    all: f64,
}

impl Look {
    pub(super) fn take(nodes: &[u32], control: Option<u32>) -> Result<Self> {
        let mut sum = Times::default();
        for pid in nodes {
            let one = of_process(*pid)?;
            sum = Times { user: sum.user + one.user, system: sum.system + one.system };
        }
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let load = fs::read_to_string("/proc/loadavg").context("read the load")?;
        Ok(Self {
            nodes: sum,
            control: control.map_or(Ok(Times::default()), of_process)?,
            lab: of_process(std::process::id())?,
            machine: of_machine(&stat).context("/proc/stat has no line of all processors")?,
            load: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        })
    }

    /// What was used since then, while readers got so many bytes.
    pub(super) fn until(&self, now: &Self, bytes: u64) -> CpuUse {
        let all = (now.machine.all - self.machine.all).max(f64::MIN_POSITIVE);
        let nodes = now.nodes.all() - self.nodes.all();
        CpuUse {
            machine_busy: (now.machine.busy - self.machine.busy) / all,
            stolen: (now.machine.stolen - self.machine.stolen) / all,
            nodes_seconds: nodes,
            nodes_system_seconds: now.nodes.system - self.nodes.system,
            nodes_seconds_per_gib: nodes / (bytes as f64 / f64::from(1 << 30)),
            control_seconds: now.control.all() - self.control.all(),
            lab_seconds: now.lab.all() - self.lab.all(),
            load_before: self.load,
        }
    }
}

fn of_process(pid: u32) -> Result<Times> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read the times of {pid}"))?;
    own_times(&text).with_context(|| format!("no times in the stat of {pid}"))
}

/// Fields 14 and 15 of `/proc/<pid>/stat`: user and system time.
fn own_times(stat: &str) -> Option<Times> {
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ').skip(11);
    let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / TICKS);
    Some(Times { user: seconds()?, system: seconds()? })
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn of_machine(stat: &str) -> Option<Machine> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = line.split_whitespace().take(8).filter_map(|text| text.parse().ok()).collect();
    let [user, nice, system, idle, waits, irq, softirq, stolen] = ticks[..] else { return None };
    let busy = user + nice + system + irq + softirq;
    Some(Machine { busy: busy / TICKS, stolen: stolen / TICKS, all: (busy + idle + waits + stolen) / TICKS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_user_and_system_time_whatever_its_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 300 1 1";
        assert_eq!(own_times(stat), Some(Times { user: 2.5, system: 0.5 }));
    }

    #[test]
    fn waiting_for_a_disk_is_not_being_busy() {
        let found = of_machine("cpu  100 0 100 600 100 0 0 100 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n").unwrap();
        assert_eq!(found, Machine { busy: 2.0, stolen: 1.0, all: 10.0 });
    }
}
