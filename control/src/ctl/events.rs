//! `shoalctl events`: what happens, line by line. A stream that breaks is taken up where it stopped.

use std::io::Write as _;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::Error;
use super::cli::{EventsArgs, Output};
use super::client::Client;

/// Before a stream that broke is taken up again.
const PAUSE: Duration = Duration::from_secs(1);
/// A stream that says nothing for so long is broken: the server says every 5 s that it is there.
const SILENCE: Duration = Duration::from_secs(20);
/// An event is a few hundred bytes; what is longer is none.
const LONGEST: usize = 1 << 20;

pub(super) async fn follow(client: &Client, args: &EventsArgs, output: Output) -> Result<String, Error> {
    let query = [("cluster", args.cluster.as_deref()), ("about", args.about.map(|about| about.as_str()))];
    let query: Vec<(&str, &str)> = query.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect();
    let (mut last, mut left, mut began, mut away) = (None::<String>, args.count, false, false);
    if left == Some(0) {
        return Ok(String::new());
    }
    loop {
        let opened = client.request(Method::GET, &["events"]).query(&query).stream(last.as_deref()).await;
        let mut response = match opened {
            Ok(response) => response,
            // What was there once comes back; what never was is wrong.
            Err(error) if began && error.may_pass() => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        began = true;
        let mut back = std::mem::take(&mut away);
        let mut events = Events::default();
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, response.chunk()).await {
            events.feed(&chunk)?;
            while let Some(event) = events.next() {
                let reset = event.data["kind"] == "reset";
                // The very first says only that it begins.
                if reset && (back || last.is_some()) {
                    let why = if back { "control is back" } else { "more happened than this could take" };
                    eprintln!("shoalctl: {why}; events may be missing here");
                }
                back = false;
                last = event.id.or(last);
                // It is the server's word to programs that keep a list.
                if reset && output == Output::Table {
                    continue;
                }
                let line = match output {
                    Output::Json => event.data.to_string(),
                    Output::Table => line(&event.data),
                };
                if writeln!(std::io::stdout(), "{line}").is_err() {
                    return Ok(String::new());
                }
                left = left.map(|left| left.saturating_sub(1));
                if left == Some(0) {
                    return Ok(String::new());
                }
            }
        }
        eprintln!("shoalctl: the stream of events broke off: control is away; tries until it is back");
        away = true;
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Debug, PartialEq)]
struct Event {
    id: Option<String>,
    data: Value,
}

/// Reads server-sent events (HTML standard, section 9.2), as much of them as the server uses.
#[derive(Default)]
struct Events(Vec<u8>);

impl Events {
    fn feed(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.0.extend_from_slice(chunk);
        if self.0.len() > LONGEST {
            return Err(Error::Failed("the server's events are not understood".to_owned()));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            let end = self.0.windows(2).position(|two| two == b"\n\n")?;
            let rest = self.0.split_off(end + 2);
            let text = String::from_utf8_lossy(&std::mem::replace(&mut self.0, rest)).into_owned();
            let field =
                |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim_start());
            // Comments keep the stream alive.
            if let Some(data) = field("data:").and_then(|data| serde_json::from_str(data).ok()) {
                return Some(Event { id: field("id:").map(str::to_owned), data });
            }
        }
    }
}

/// An event as people read it; what would drive a terminal is escaped, as names come from nodes.
fn line(event: &Value) -> String {
    let text = |key: &str| match &event[key] {
        Value::String(text) => text.escape_debug().to_string(),
        Value::Null => "(alone)".to_owned(),
        other => other.to_string(),
    };
    let kind = text("kind");
    let rest = match kind.as_str() {
        "node.moved" => format!("{} {} -> {}", text("name"), text("from"), text("to")),
        "node.joined" | "node.left" => format!("{} {}", text("name"), text("cluster")),
        "flight.began" => format!("{} {} {}", text("name"), text("cluster"), text("digest")),
        "flight.ended" => {
            let how = if event["complete"] == true { "complete" } else { "not complete" };
            format!("{} {} {} {how}", text("name"), text("cluster"), text("digest"))
        }
        "preheat.began" => format!("{} {} {}", text("id"), text("cluster"), text("image")),
        "preheat.ended" => {
            let why = if event["why"].is_null() { String::new() } else { format!(": {}", text("why")) };
            format!("{} {} {} {}{why}", text("id"), text("cluster"), text("image"), text("state"))
        }
        "api-token.created" | "api-token.deleted" => format!("{} {}", text("name"), text("id")),
        "join-token.created" | "join-token.deleted" => {
            let cluster = if event["cluster"].is_null() { "(by facts)".to_owned() } else { text("cluster") };
            format!("{} {cluster}", text("id"))
        }
        "member.joined" | "member.revoked" | "member.deleted" => {
            let cluster = if event["cluster"].is_null() { "(none)".to_owned() } else { text("cluster") };
            format!("{} {cluster}", text("node"))
        }
        _ => text("cluster"),
    };
    format!("{kind:<18} {rest}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = ": alive\n\nevent: node.left\nid: x-7\ndata: {\"kind\":\"node.left\",\"name\":\"a\"}\n\ndata: {\"kind\":\"reset\"}\n\n";
        for size in [1, 3, 1000] {
            let (mut events, mut seen) = (Events::default(), Vec::new());
            for chunk in stream.as_bytes().chunks(size) {
                events.feed(chunk).unwrap();
                seen.extend(std::iter::from_fn(|| events.next()));
            }
            let first = Event { id: Some("x-7".into()), data: json!({"kind": "node.left", "name": "a"}) };
            assert_eq!(seen, [first, Event { id: None, data: json!({"kind": "reset"}) }]);
        }
    }

    #[test]
    fn a_line_says_who_and_where_and_can_not_drive_the_terminal() {
        let moved = json!({"kind": "node.moved", "name": "a\u{1b}[31m", "from": "b", "to": null});
        assert_eq!(line(&moved), "node.moved         a\\u{1b}[31m b -> (alone)");
        let ended = json!({"kind": "preheat.ended", "id": "p", "image": "r/a:1", "cluster": "west", "state": "failed", "why": "1 of 2 nodes"});
        assert_eq!(line(&ended), "preheat.ended      p west r/a:1 failed: 1 of 2 nodes");
    }
}
