//! `shoal-node status`: what the daemon on this machine is, holds and does.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::app::local;

/// How often a terminal is brought up to date.
const EVERY: Duration = Duration::from_millis(500);
const BAR: &str = "{prefix:>19} [{bar:30}] {bytes}/{total_bytes} {msg}";

#[derive(Debug, Args)]
pub(super) struct Status {
    /// The daemon's admin address.
    #[arg(long, default_value = "127.0.0.1:5082")]
    admin: SocketAddr,
    /// Print what the daemon says as JSON.
    #[arg(long)]
    json: bool,
    /// Stay, and show flights as they go on, until there are none.
    #[arg(long, conflicts_with = "json")]
    follow: bool,
}

/// What `/debug` says, as far as it is shown here.
#[derive(Debug, Deserialize)]
struct Said {
    node: String,
    version: String,
    mode: String,
    control: Control,
    cluster: Option<Cluster>,
    store: Store,
    flying: Vec<Flying>,
    uploads: Uploads,
}

#[derive(Debug, Deserialize)]
struct Control {
    connected: bool,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Store {
    held_blobs: u64,
    held_bytes: u64,
    shared_blobs: u64,
    shared_bytes: u64,
    claimed_blobs: u64,
    claimed_bytes: u64,
    ingest_bytes: u64,
    partial_bytes: u64,
    quota_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Flying {
    digest: String,
    size: Option<u64>,
    here: u64,
    from_peers: u64,
    from_origin: u64,
    readers: u64,
}

#[derive(Debug, Deserialize)]
struct Uploads {
    now: u64,
    slots: u64,
}

impl Status {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let page = local::page(self.admin, "/debug").await?;
        if self.json {
            println!("{}", String::from_utf8_lossy(&page));
            return Ok(());
        }
        let said: Said = serde_json::from_slice(&page).context("read what the daemon says")?;
        print!("{}", table(&said));
        if !self.follow {
            print!("{}", said.flying.iter().map(Flying::line).collect::<String>());
            return Ok(());
        }
        let bars = Bars::default();
        bars.show(&said.flying);
        loop {
            tokio::time::sleep(EVERY).await;
            let said: Said = serde_json::from_slice(&local::page(self.admin, "/debug").await?)?;
            if said.flying.is_empty() {
                return bars.all.clear().context("leave the terminal");
            }
            bars.show(&said.flying);
        }
    }
}

fn table(said: &Said) -> String {
    let mut out = String::new();
    let store = &said.store;
    let cluster = match (&said.cluster, said.control.connected) {
        (Some(cluster), true) => cluster.id.clone(),
        (Some(cluster), false) => format!("{} (control is away)", cluster.id),
        (None, true) => "none".to_owned(),
        (None, false) => "none (control is away)".to_owned(),
    };
    let quota = match store.quota_bytes {
        0 => "no quota".to_owned(),
        quota => format!("of {}", HumanBytes(quota)),
    };
    let blobs = |count: u64, bytes: u64| format!("{count} blobs, {}", HumanBytes(bytes));
    // Whoever keeps it alive: containerd's images, or nobody, as cache.
    let (kept, kept_blobs, kept_bytes) = match said.mode.as_str() {
        "plugin" => ("containerd's", store.claimed_blobs, store.claimed_bytes),
        _ => ("containerd's too", store.shared_blobs, store.shared_bytes),
    };
    let all = store.held_bytes + store.shared_bytes;
    let (cache_blobs, cache_bytes) = (store.held_blobs.saturating_sub(kept_blobs), all.saturating_sub(kept_bytes));
    for (name, value) in [
        ("node", format!("{} ({})", said.node, said.version)),
        ("containerd", mode(&said.mode).to_owned()),
        ("cluster", cluster),
        (kept, blobs(kept_blobs, kept_bytes)),
        ("cache", blobs(cache_blobs, cache_bytes)),
        ("in part", HumanBytes(store.partial_bytes).to_string()),
        ("being written", HumanBytes(store.ingest_bytes).to_string()),
        ("counted", format!("{} {quota}", HumanBytes(store.held_bytes + store.partial_bytes + store.ingest_bytes))),
        ("uploads", format!("{} of {}", said.uploads.now, said.uploads.slots)),
        ("flights", said.flying.len().to_string()),
    ] {
        let _ = writeln!(out, "{name:<18}{value}");
    }
    out
}

/// Who keeps what is held alive.
fn mode(mode: &str) -> &str {
    match mode {
        "stock" => "keeps its own content; images keep blobs alive, the rest is cache",
        "plugin" => "keeps its content here; what it claims stays, the rest is cache",
        other => other,
    }
}

impl Flying {
    /// `sha256:` and the first digits, as others print it.
    fn name(&self) -> &str {
        self.digest.get(..19).unwrap_or(&self.digest)
    }

    fn from(&self) -> String {
        let mut parts = Vec::new();
        for (bytes, source) in [(self.from_peers, "peers"), (self.from_origin, "registry")] {
            if bytes > 0 {
                parts.push(format!("{} from {source}", HumanBytes(bytes)));
            }
        }
        if self.readers == 0 {
            parts.push("ahead".to_owned());
        }
        parts.join(", ")
    }

    /// A bar that does not move.
    fn line(&self) -> String {
        const WIDTH: u64 = 30;
        let total = self.size.unwrap_or(0);
        let full = if total == 0 {
            0
        } else {
            (u128::from(self.here.min(total)) * u128::from(WIDTH) / u128::from(total)) as usize
        };
        let size = self.size.map_or_else(|| "?".to_owned(), |size| HumanBytes(size).to_string());
        let bar = format!("{}{}", "#".repeat(full), "-".repeat(WIDTH as usize - full));
        format!("{:>19} [{bar}] {}/{size} {}\n", self.name(), HumanBytes(self.here), self.from())
    }
}

/// Bars on a terminal, one a flight.
struct Bars {
    all: MultiProgress,
    bars: std::cell::RefCell<HashMap<String, ProgressBar>>,
}

impl Default for Bars {
    fn default() -> Self {
        let all = MultiProgress::new();
        if !std::io::stderr().is_terminal() {
            all.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Self { all, bars: Default::default() }
    }
}

impl Bars {
    fn show(&self, flying: &[Flying]) {
        let mut bars = self.bars.borrow_mut();
        bars.retain(|digest, bar| {
            let flies = flying.iter().any(|flight| flight.digest == *digest);
            if !flies {
                bar.finish_and_clear();
            }
            flies
        });
        for flight in flying {
            let bar = bars.entry(flight.digest.clone()).or_insert_with(|| {
                let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = self.all.add(ProgressBar::new(0).with_style(style.progress_chars("#>-")));
                bar.set_prefix(flight.name().to_owned());
                bar
            });
            bar.set_length(flight.size.unwrap_or(0));
            bar.set_position(flight.here);
            bar.set_message(flight.from());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flying(size: Option<u64>, here: u64) -> Flying {
        let digest = format!("sha256:{}", "ab".repeat(32));
        Flying { digest, size, here, from_peers: here / 2, from_origin: 0, readers: 1 }
    }

    #[test]
    fn a_bar_is_as_full_as_the_blob_is_here() {
        let line = flying(Some(4 << 20), 2 << 20).line();
        assert!(line.contains(&format!("[{}{}]", "#".repeat(15), "-".repeat(15))), "{line}");
        assert!(
            line.starts_with("sha256:abababababab") && line.contains("2.00 MiB/4.00 MiB 1.00 MiB from peers"),
            "{line}"
        );
        assert!(flying(None, 0).line().contains("0 B/?"), "nobody has said its size");
        assert!(flying(Some(5), 9).line().contains(&"#".repeat(30)), "more than it says");
    }

    #[test]
    fn the_table_says_who_keeps_what_alive() {
        let said = Said {
            node: "n1".into(),
            version: "0.1.0".into(),
            mode: "stock".into(),
            control: Control { connected: false },
            cluster: Some(Cluster { id: "c1".into() }),
            store: Store {
                held_blobs: 5,
                held_bytes: 1 << 20,
                shared_blobs: 3,
                shared_bytes: 3 << 20,
                claimed_blobs: 0,
                claimed_bytes: 0,
                ingest_bytes: 0,
                partial_bytes: 0,
                quota_bytes: 1 << 30,
            },
            flying: Vec::new(),
            uploads: Uploads { now: 1, slots: 64 },
        };
        let table = table(&said);
        for line in [
            "cache             2 blobs, 1.00 MiB",
            "containerd's too  3 blobs, 3.00 MiB",
            "counted           1.00 MiB of 1.00 GiB",
            "cluster           c1 (control is away)",
        ] {
            assert!(table.contains(line), "{line:?} is not in\n{table}");
        }
    }
}
