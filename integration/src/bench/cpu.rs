//! What a server's processes cost, by the kernel's own account.
use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// CPU time that a process and all that descend from it have had so far (utime and stime of all their threads), those
/// included that have ended and were waited for.
///
/// # Errors
/// When the process is gone.
pub(super) fn spent(pid: u32) -> Result<Duration> {
    let stats: Vec<Stat> = fs::read_dir("/proc")
        .context("read /proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Stat::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect();
    let root = stats.iter().find(|stat| stat.pid == pid).with_context(|| format!("process {pid} is gone"))?;
    Ok(Duration::from_secs_f64(ticks(&stats, root) as f64 / ticks_per_second()?))
}

fn ticks_per_second() -> Result<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).context("ask for the clock's ticks")?;
    Ok(ticks.context("the kernel does not say its ticks")? as f64)
}

fn ticks(all: &[Stat], of: &Stat) -> u64 {
    of.ticks + all.iter().filter(|stat| stat.parent == of.pid).map(|stat| ticks(all, stat)).sum::<u64>()
}

/// A line of `/proc/<pid>/stat`, as proc_pid_stat(5) has it.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// Fields 14 to 17: utime, stime, and the same of children that were waited for.
    ticks: u64,
}

impl Stat {
    fn parse(pid: u32, text: &str) -> Option<Self> {
        // The name, in brackets, may hold blanks and brackets.
        let fields: Vec<&str> = text[text.rfind(')')? + 2..].split(' ').collect();
        let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
        Some(Self { pid, parent: fields.get(1)?.parse().ok()?, ticks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_count_and_strangers_do_not() {
        let line = |parent: u32, utime: u64| {
            format!("9 (a) b) S {parent} 9 9 0 -1 4194304 1 2 3 4 {utime} 2 3 4 20 0 1 0 77 1 2 3\n")
        };
        let stat = |pid, parent, utime| Stat::parse(pid, &line(parent, utime)).unwrap();
        let all = [stat(5, 1, 100), stat(6, 5, 1000), stat(7, 6, 10_000), stat(8, 1, 100_000)];
        assert_eq!(all[0], Stat { pid: 5, parent: 1, ticks: 109 });
        assert_eq!(ticks(&all, &all[0]), 11_127);
    }

    #[test]
    fn work_shows() {
        let before = spent(std::process::id()).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(60) {}
        assert!(spent(std::process::id()).unwrap() > before);
    }
}
