//! Waiting for a preheat: bars on a terminal, a line now and then elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::Value;
use shoal_base::units::Span;
use tokio::time::Instant;

use super::super::client::Client;
use super::super::table::bytes;
use super::super::{Error, understand};
use super::Preheat;

/// How often a preheat is looked at.
const EVERY: Duration = Duration::from_millis(500);
/// The same of one with many nodes: each look is an answer of a line for each node.
const SELDOM: Duration = Duration::from_secs(3);
/// Nodes that have a bar of their own. With more there is one bar for all.
const MOST_BARS: usize = 30;
/// How often a line is printed where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// A server that restarts is back within this.
const GONE: Duration = Duration::from_secs(120);
const BAR: &str = "{prefix:>16} [{bar:30}] {bytes}/{total_bytes} {msg}";

/// Until it has ended. A server that goes away meanwhile may come back: the preheat goes on without us. One that is not there from the
/// start is no reason to wait.
///
/// # Errors
/// [`Error::Failed`] when `timeout` is over, what a server that is away is told by after two minutes of it.
pub(super) async fn wait(client: &Client, id: &str, quiet: bool, timeout: Option<Span>) -> Result<Value, Error> {
    let until = timeout.map(|timeout| Instant::now() + timeout.as_duration());
    let mut shown = Shown::new(quiet);
    let (mut seen, mut gone) = (false, None::<Instant>);
    loop {
        let answer = client.request(Method::GET, &["preheats", id]).send().await;
        let pause = match answer {
            Ok(value) => {
                (seen, gone) = (true, None);
                let preheat: Preheat = understand(&value)?;
                let ended = !matches!(preheat.state.as_str(), "waiting" | "running");
                shown.show(&preheat, ended);
                if ended {
                    return Ok(value);
                }
                if preheat.nodes.len() > MOST_BARS { SELDOM } else { EVERY }
            }
            Err(error) if seen && error.may_pass() => {
                if gone.is_none() {
                    shown.say(&format!("{error}; waits for it, {} s at most", GONE.as_secs()));
                }
                if gone.get_or_insert_with(Instant::now).elapsed() >= GONE {
                    return Err(error);
                }
                EVERY
            }
            Err(error) => return Err(error),
        };
        if let (Some(until), Some(timeout)) = (until, timeout)
            && Instant::now() + pause > until
        {
            return Err(Error::Failed(format!("preheat {id} has not ended after {timeout}; it goes on")));
        }
        tokio::time::sleep(pause).await;
    }
}

/// What somebody who waits sees, on standard error.
enum Shown {
    /// Nothing.
    Quiet,
    /// A bar for each node, or one for all.
    Bars(MultiProgress, HashMap<String, ProgressBar>),
    /// A line now and then: the last one, and when it was printed.
    Lines(String, Option<Instant>),
}

impl Shown {
    fn new(quiet: bool) -> Self {
        match () {
            () if quiet => Self::Quiet,
            () if std::io::stderr().is_terminal() => Self::Bars(MultiProgress::new(), HashMap::new()),
            () => Self::Lines(String::new(), None),
        }
    }

    fn show(&mut self, preheat: &Preheat, ended: bool) {
        match self {
            Self::Quiet => {}
            Self::Bars(bars, known) => {
                let mut set = |key: &str, name: &str, (has, of): (u64, u64), message: String| {
                    let bar = known.entry(key.to_owned()).or_insert_with(|| {
                        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
                        let bar = bars.add(ProgressBar::new(0).with_style(style.progress_chars("#>-")));
                        bar.set_prefix(name.to_owned());
                        bar
                    });
                    bar.set_length(of);
                    bar.set_position(has);
                    bar.set_message(message);
                };
                if preheat.nodes.len() > MOST_BARS {
                    let all = preheat.bytes.saturating_mul(preheat.nodes.len() as u64);
                    set("", "all nodes", (preheat.held, all), counts(preheat));
                } else {
                    for node in &preheat.nodes {
                        let message = node.why.clone().unwrap_or_else(|| node.state.clone());
                        set(&node.id, &node.name, (node.bytes, preheat.bytes), message);
                    }
                }
                if ended {
                    known.values().for_each(ProgressBar::abandon);
                }
            }
            Self::Lines(last, at) => {
                let line = line(preheat);
                if *last != line && (ended || at.is_none_or(|at| at.elapsed() >= LINE)) {
                    eprintln!("{line}");
                    (*last, *at) = (line, Some(Instant::now()));
                }
            }
        }
    }

    fn say(&self, text: &str) {
        match self {
            Self::Bars(bars, _) => _ = bars.println(format!("shoalctl: {text}")),
            _ => eprintln!("shoalctl: {text}"),
        }
    }
}

fn counts(preheat: &Preheat) -> String {
    let count = |state: &str| preheat.nodes.iter().filter(|node| node.state == state).count();
    let failed = match count("failed") {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!("{} of {} nodes{failed}", count("done"), preheat.nodes.len())
}

fn line(preheat: &Preheat) -> String {
    let all = preheat.bytes.saturating_mul(preheat.nodes.len() as u64);
    let share = match preheat.bytes {
        0 => String::new(),
        _ => format!(", {} of {}", bytes(preheat.held), bytes(all)),
    };
    format!("preheat {}: {}, {}{share}", preheat.id, preheat.state, counts(preheat))
}
