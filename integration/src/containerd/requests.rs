//! The requests of a containerd and the answers that it got, from its own log (level debug).
use crate::containerd::parse_time;

/// A request and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// When it was sent: seconds since the epoch.
    pub at: f64,
    /// `GET` or `HEAD`.
    pub method: String,
    /// Whom and what.
    pub url: String,
    /// The `Range` that was asked for.
    pub range: Option<String>,
    /// Status of the answer, and when its headers came; `None`: there was none, or none yet.
    pub answer: Option<(u16, f64)>,
}

impl Exchange {
    /// Whether it went to the node's mirror; else it went to the registry.
    pub fn at_us(&self) -> bool {
        self.url.contains("://127.0.0.1:5080/")
    }

    /// The path, without host and query: the same at every host.
    pub fn path(&self) -> &str {
        let from = self.url.find("/v2/").unwrap_or(0);
        self.url[from..].split('?').next().unwrap_or_default()
    }

    /// Status of the answer.
    pub fn status(&self) -> Option<u16> {
        self.answer.map(|(status, _)| status)
    }
}

/// Reads exchanges out of a log, in the order in which they were sent. Several requests for one URL at once are given their
/// answers in that order.
pub fn exchanges(log: &str) -> Vec<Exchange> {
    let mut found: Vec<Exchange> = Vec::new();
    for line in log.lines() {
        let Ok(said) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let (Some(url), Some(at)) = (said["url"].as_str(), said["time"].as_str().and_then(parse_time)) else {
            continue;
        };
        let text = |key: &str| said[key].as_str().map(str::to_owned);
        if let Some(method) = text("request.method") {
            let range = text("request.header.range");
            found.push(Exchange { at, method, url: url.to_owned(), range, answer: None });
        } else if let Some(status) = text("response.status") {
            let status = status.split(' ').next().and_then(|status| status.parse().ok());
            let open = found.iter_mut().find(|exchange| exchange.answer.is_none() && exchange.url == url);
            if let (Some(open), Some(status)) = (open, status) {
                open.answer = Some((status, at));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_given_to_their_requests() {
        let us = "http://127.0.0.1:5080/v2/lab/a/blobs/sha256:ab?ns=registry.shoal.test";
        let registry = "https://registry.shoal.test/v2/lab/a/blobs/sha256:ab";
        let asks = |second, url: &str, range: &str| {
            format!(
                "{{\"msg\":\"do request\",\"request.method\":\"GET\",\"request.header.range\":\"{range}\",\
                 \"time\":\"1970-01-01T00:00:0{second}Z\",\"url\":\"{url}\"}}\n"
            )
        };
        let answers = |second, url: &str, status: &str| {
            format!(
                "{{\"msg\":\"fetch response received\",\"response.status\":\"{status}\",\
                 \"time\":\"1970-01-01T00:00:0{second}Z\",\"url\":\"{url}\"}}\n"
            )
        };
        let log = [
            asks(1, us, "bytes=0-"),
            answers(2, us, "503 Service Unavailable"),
            asks(3, registry, "bytes=0-"),
            asks(4, us, "bytes=9-"),
            answers(5, registry, "206 Partial Content"),
            "no JSON\n".to_owned(),
        ]
        .concat();
        let found = exchanges(&log);
        let shown: Vec<_> = found.iter().map(|one| (one.at_us(), one.answer, one.range.as_deref())).collect();
        let wanted = [
            (true, Some((503, 2.0)), Some("bytes=0-")),
            (false, Some((206, 5.0)), Some("bytes=0-")),
            (true, None, Some("bytes=9-")),
        ];
        assert_eq!(shown, wanted);
        assert!(found.iter().all(|one| one.path() == "/v2/lab/a/blobs/sha256:ab"));
    }
}
