//! `shoal-control` as a child process on loopback.
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    http::{Answer, Client, full},
    process::Daemon,
    tools::ShoalPrograms,
    wait::eventually,
};

/// A running control.
pub(super) struct Child {
    daemon: Daemon,
    rest: Client,
    pub(super) grpc: SocketAddr,
}

/// A port that nobody has at this moment.
fn free() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    listener.local_addr().context("read a port")
}

/// A network in which no simulated node is.
pub(super) fn nowhere(cluster: usize) -> String {
    format!("10.{}.{}.0/24", 128 + cluster / 256, cluster % 256)
}

impl Child {
    /// Starts it on a new database.
    pub(super) async fn start(dir: &Path, sessions: usize) -> Result<Self> {
        let programs = ShoalPrograms::locate()?;
        let (grpc, rest) = (free()?, free()?);
        let token = hex::encode(rand::random::<[u8; 32]>());
        let token_file = super::write(dir, "token", &token)?;
        let config = format!(
            "state_dir = \"{}\"\ntls = \"off\"\n[grpc]\nlisten = \"{grpc}\"\nmax_connections = {}\n\
             [rest]\nlisten = \"{rest}\"\nadmin_token_file = \"{}\"\n[telemetry]\nlog = \"warn\"\n",
            dir.join("state").display(),
            sessions + 1024,
            token_file.display(),
        );
        let config = super::write(dir, "shoal-control.toml", &config)?;
        let mut command = Command::new(&programs.control);
        command.arg("serve").arg("--config").arg(config);
        let mut daemon = Daemon::spawn("shoal-control", command, &dir.join("log"))?;
        let rest = Client::here(rest).bearing(&token);
        let up = eventually(Duration::from_secs(20), "shoal-control to be ready", || async {
            let answer = rest.get("/readyz").await?;
            ensure!(answer.status == StatusCode::OK, "/readyz says {}", answer.status);
            Ok(())
        });
        if let Err(error) = up.await {
            daemon.check_running()?;
            return Err(error);
        }
        Ok(Self { daemon, rest, grpc })
    }

    pub(super) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    async fn change(&self, method: Method, path: &str, body: &Value) -> Result<Answer> {
        let request = Request::builder().method(method).uri(format!("/api/v1/{path}"));
        let request = request.header(header::CONTENT_TYPE, "application/json").header(header::IF_MATCH, "*");
        let answer = self.rest.send(request.body(full(body.to_string()))?).await?;
        ensure!(answer.status.is_success(), "{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        Ok(answer)
    }

    /// So many clusters, the default one among them; no node belongs to another.
    pub(super) async fn make_clusters(&self, count: usize) -> Result<()> {
        let one = |number: usize| json!({ "name": format!("c{number}"), "cidrs": [nowhere(number)], "idc": format!("dc{number}") });
        let all: Vec<Value> = (1..count).map(one).collect();
        self.change(Method::PUT, "clusters", &json!({ "clusters": all })).await.map(drop)
    }

    /// Gives a cluster another network, or only says what that would change. How long it took.
    pub(super) async fn rescope(&self, cluster: usize, network: &str, dry: bool) -> Result<Duration> {
        let since = Instant::now();
        let path = format!("clusters/c{cluster}?dry_run={dry}");
        self.change(Method::PATCH, &path, &json!({ "cidrs": [network] })).await?;
        Ok(since.elapsed())
    }

    /// That no session ended, and no lease.
    pub(super) async fn has_all(&self, sessions: u64) -> Result<()> {
        let text = self.rest.get_text("/metrics").await?;
        let of = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("control counts no {name}"))?.trim().parse()?)
        };
        let (live, begun) = (of("shoal_nodes_sessions")?, of("shoal_nodes_registrations_total")?);
        ensure!(live == sessions && begun == sessions, "{live} sessions live of {begun} that began");
        Ok(())
    }

    /// Waits until it knows of so many holdings. It is not asked often: with ten thousand connections its metrics cost milliseconds.
    pub(super) async fn holds(&self, wanted: u64) -> Result<()> {
        let begin = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let text = self.rest.get_text("/metrics").await?;
            let known = text.lines().find_map(|line| line.strip_prefix("shoal_swarm_holdings "));
            let known: u64 = known.context("control counts no holdings")?.trim().parse()?;
            if known == wanted {
                return Ok(());
            }
            ensure!(begin.elapsed() < Duration::from_secs(180), "it knows of {known} of {wanted} holdings");
        }
    }
}
