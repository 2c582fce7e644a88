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

fn parse(text: &str) -> Option<u64> {
    let value = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some(value("VmHWM:")?.saturating_sub(value("RssFile:")?))
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
