//! How much memory a process took.
use std::fs;

use anyhow::{Context, Result};

/// The most that the process ever had resident (`VmHWM`), less the pages of files that it has mapped now (`RssFile`): what it took
/// from the machine for itself. Bytes.
///
/// # Errors
/// When the process is gone.
pub fn peak_without_files(pid: u32) -> Result<u64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("read the status of {pid}"))?;
    parse(&text).with_context(|| format!("no VmHWM and RssFile in the status of {pid}"))
}

/// What the process has resident now, less the pages of files (`VmRSS` less `RssFile`). Bytes.
///
/// # Errors
/// When the process is gone.
pub fn own_now(pid: u32) -> Result<u64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("read the status of {pid}"))?;
    let own = value(&text, "VmRSS:").zip(value(&text, "RssFile:"));
    let (all, files) = own.with_context(|| format!("no VmRSS and RssFile in the status of {pid}"))?;
    Ok(all.saturating_sub(files))
}

fn parse(text: &str) -> Option<u64> {
    Some(value(text, "VmHWM:")?.saturating_sub(value(text, "RssFile:")?))
}

fn value(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_pages_are_taken_off_the_peak() {
        assert_eq!(parse("Name:\tx\nVmHWM:\t   5000 kB\nRssAnon:\t 900 kB\nRssFile:\t   1000 kB\n"), Some(4000 * 1024));
        assert_eq!(parse("VmHWM:\t5000 kB\n"), None);
    }
}
