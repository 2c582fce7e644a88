//! The registry's access log, in Apache's combined format: what the origin itself saw.
use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLine {
    /// Who asked.
    pub from: IpAddr,
    /// Method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// The asker's `User-Agent`.
    pub agent: String,
}

impl AccessLine {
    /// Parses a line; `None` for the registry's other log lines.
    pub fn parse(line: &str) -> Option<Self> {
        let mut quoted = line.split('"');
        let from = quoted.next()?.split(' ').next()?;
        let mut request = quoted.next()?.split(' ');
        let mut numbers = quoted.next()?.split_whitespace();
        let _referrer = quoted.next()?;
        let _blank = quoted.next()?;
        let agent = quoted.next()?;
        let method = request.next()?.to_owned();
        let path = request.next()?.split('?').next()?.to_owned();
        Some(Self {
            from: from.parse().ok()?,
            method,
            path,
            status: numbers.next()?.parse().ok()?,
            // A dash stands for none.
            bytes: numbers.next().and_then(|text| text.parse().ok()).unwrap_or(0),
            agent: agent.to_owned(),
        })
    }

    /// The digest when content was asked for by one: a blob or a manifest.
    pub fn digest(&self) -> Option<&str> {
        let (head, last) = self.path.rsplit_once('/')?;
        let content = head.ends_with("/blobs") || head.ends_with("/manifests");
        (content && last.starts_with("sha256:")).then_some(last)
    }

    /// Whether bytes of content were given.
    pub fn is_read(&self) -> bool {
        self.method == "GET" && matches!(self.status, 200 | 206) && self.digest().is_some()
    }

    /// Whether it was about a blob, not a manifest.
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/sha256:")
    }
}

/// How one asker read one digest.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reads {
    /// Answers with content.
    pub requests: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Reads by digest and asker; askers without a name are left out (the lab's own pushes come from the registry's address).
pub fn reads_by_digest(
    log: &[AccessLine],
    name_of: impl Fn(IpAddr) -> Option<String>,
) -> BTreeMap<String, BTreeMap<String, Reads>> {
    let mut by_digest: BTreeMap<String, BTreeMap<String, Reads>> = BTreeMap::new();
    for line in log.iter().filter(|line| line.is_read()) {
        let (Some(digest), Some(name)) = (line.digest(), name_of(line.from)) else { continue };
        let reads = by_digest.entry(digest.to_owned()).or_default().entry(name).or_default();
        reads.requests += 1;
        reads.bytes += line.bytes;
    }
    by_digest
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"10.77.1.1 - - [05/Nov/2026:12:00:00 +0000] "GET /v2/lab/demo/blobs/sha256:ab?x=y HTTP/1.1" 200 1024 "" "shoal/0.1""#;

    #[test]
    fn a_line_of_the_access_log_is_understood() {
        let line = AccessLine::parse(LINE).unwrap();
        assert_eq!((line.status, line.bytes, line.digest()), (200, 1024, Some("sha256:ab")));
        assert!(line.is_read() && line.is_blob());
        assert_eq!(line.agent, "shoal/0.1");
    }

    #[test]
    fn other_lines_and_challenges_are_no_reads() {
        assert_eq!(AccessLine::parse(r#"time="x" level=warning msg="some "quoted" words" go.version=go1.19"#), None);
        assert!(!AccessLine::parse(&LINE.replace(" 200 ", " 401 ")).unwrap().is_read());
        assert!(!AccessLine::parse(&LINE.replace("GET", "HEAD")).unwrap().is_read());
        assert!(!AccessLine::parse(&LINE.replace("sha256:ab", "uploads/1")).unwrap().is_read());
    }

    #[test]
    fn reads_are_counted_by_who_asked() {
        let log = [AccessLine::parse(LINE).unwrap(), AccessLine::parse(LINE).unwrap()];
        let reads = reads_by_digest(&log, |_| Some("a1".into()));
        assert_eq!(reads["sha256:ab"]["a1"], Reads { requests: 2, bytes: 2048 });
        assert!(reads_by_digest(&log, |_| None).is_empty());
    }
}
