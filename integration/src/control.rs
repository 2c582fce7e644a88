//! The control service and `shoalctl`.
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http::StatusCode;
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::{
    conditions::Conditions,
    http::Client,
    net::Netns,
    process::{Daemon, output},
    tools::ShoalPrograms,
    wait::eventually,
};

/// Where nodes connect.
pub const GRPC_PORT: u16 = 6080;
const REST_PORT: u16 = 6081;

/// A node in control's list, as much of it as the lab looks at.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeEntry {
    /// What the node calls itself in messages and traces.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its cluster; `None` when it is alone.
    pub cluster: Option<String>,
    /// Its id.
    pub cluster_id: Option<String>,
    /// Whether its session is open.
    pub connected: bool,
    /// Blobs that it holds.
    pub held_blobs: u64,
}

/// A running `shoal-control`.
pub struct Control {
    daemon: Daemon,
    programs: ShoalPrograms,
    config: PathBuf,
    rest: Client,
    ns: Netns,
    conditions: Conditions,
    /// Holds an admin's API token.
    token_file: PathBuf,
}

/// Nodes that may join by one token of the lab's.
const USES: &str = "1000";

impl Control {
    /// Starts it in the namespace and waits until it is ready. Without TLS nodes need no token.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start(programs: &ShoalPrograms, ns: &Netns, dir: &Path, tls: bool) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let (config, token_file) = (dir.join("shoal-control.toml"), dir.join("admin-token"));
        let token = hex::encode(rand::random::<[u8; 32]>());
        fs::write(&token_file, &token)?;
        let tls = if tls { "" } else { "tls = \"off\"\n" };
        fs::write(
            &config,
            format!(
                "state_dir = \"{}\"\n{tls}[grpc]\nlisten = \"0.0.0.0:{GRPC_PORT}\"\nallow = [\"10.77.0.0/16\"]\n\
                 [rest]\nlisten = \"{}:{REST_PORT}\"\ntls = \"off\"\nadmin_token_file = \"{}\"\n\
                 [telemetry]\nlog = \"info\"\nlog_format = \"json\"\notlp_endpoint = \"http://{1}:{}\"\n",
                dir.join("state").display(),
                ns.address,
                token_file.display(),
                crate::otlp::PORT
            ),
        )?;
        let conditions = Conditions::default();
        let daemon = spawn(programs, &config, ns, &conditions, &dir.join("shoal-control.log"))?;
        let rest = Client::plain(ns, SocketAddr::new(ns.address.into(), REST_PORT)).bearing(&token);
        let (programs, ns) = (programs.clone(), ns.clone());
        let mut control = Self { daemon, programs, config, rest, ns, conditions, token_file };
        control.wait_ready().await?;
        Ok(control)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let up = eventually(Duration::from_secs(20), "shoal-control to be ready", || async {
            let answer = self.rest.get("/readyz").await?;
            if answer.status != StatusCode::OK {
                bail!("/readyz says {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
            }
            Ok(())
        })
        .await;
        if up.is_err() {
            self.daemon.check_running()?;
        }
        up.with_context(|| format!("the end of {}:\n{}", self.daemon.log().display(), self.daemon.log_tail(10)))
    }

    /// Kills it and starts it again on the same state.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.start_again().await
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// An admin's API token.
    ///
    /// # Errors
    /// When its file can't be read.
    pub fn token(&self) -> Result<String> {
        fs::read_to_string(&self.token_file).context("read the admin's token")
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        self.daemon.log()
    }

    /// Starts it again on the same state and under the same conditions, after it was killed.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn start_again(&mut self) -> Result<()> {
        self.daemon = spawn(&self.programs, &self.config, &self.ns, &self.conditions, self.daemon.log())?;
        self.wait_ready().await
    }

    /// Kills it and starts it again under other conditions, which hold until [`Control::revive`].
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart_under(&mut self, conditions: Conditions) -> Result<()> {
        self.kill();
        self.conditions = conditions;
        self.start_again().await
    }

    /// Ends it by SIGTERM, and starts other programs on the same state.
    ///
    /// # Errors
    /// When it does not end, or the others do not come up.
    pub async fn replace(&mut self, programs: &ShoalPrograms) -> Result<()> {
        if !self.stop(Duration::from_secs(20)).await {
            bail!("shoal-control did not end by itself");
        }
        self.programs = programs.clone();
        self.start_again().await
    }

    /// Starts it where it can't start, and gives what it said of that.
    ///
    /// # Errors
    /// When it runs all the same, or ends as if nothing was wrong.
    pub async fn refuses_to_start(&mut self) -> Result<String> {
        self.refused_of(&self.programs.clone()).await
    }

    /// The same of other programs, which are tried this once.
    ///
    /// # Errors
    /// As [`Control::refuses_to_start`].
    pub async fn refused_of(&mut self, programs: &ShoalPrograms) -> Result<String> {
        let log = self.daemon.log().to_owned();
        let before = fs::read_to_string(&log).unwrap_or_default().len();
        self.daemon = spawn(programs, &self.config, &self.ns, &self.conditions, &log)?;
        let code = self.daemon.ended(Duration::from_secs(10)).await.context("shoal-control should not start")?;
        let said = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?.split_off(before);
        if code == Some(0) {
            bail!("shoal-control ended as if nothing was wrong: {said}");
        }
        Ok(said.trim().to_owned())
    }

    /// Where its state is.
    ///
    /// # Errors
    /// When its settings are nowhere.
    pub fn state(&self) -> Result<PathBuf> {
        Ok(self.config.parent().context("the settings are in a directory")?.join("state"))
    }

    /// Starts it again if it has ended, and lets it go on if it was stopped; under usual conditions.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn revive(&mut self) -> Result<()> {
        if !self.conditions.are_usual() {
            self.kill();
            self.conditions = Conditions::default();
        }
        if self.daemon.resume() { Ok(()) } else { self.start_again().await }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.signal(signal)
    }

    /// Ends it by SIGTERM and says whether it ended by itself within `grace`.
    pub async fn stop(&mut self, grace: Duration) -> bool {
        tokio::task::block_in_place(|| self.daemon.stop(grace))
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Its REST endpoint.
    pub fn rest(&self) -> &Client {
        &self.rest
    }

    /// A file with a token that all nodes of a lab join by, and, with `seeds`, may be seeds.
    ///
    /// # Errors
    /// As [`Control::ctl`].
    pub async fn invite(&self, seeds: bool) -> Result<PathBuf> {
        let role = if seeds { "seed" } else { "node" };
        let token = self.ctl(&["join-token", "create", "--uses", USES, "--ttl", "24h", "--role", role]).await?;
        let path = self.token_file.with_file_name("join-token");
        fs::write(&path, token).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Runs `shoalctl` with the arguments and gives what it printed.
    ///
    /// # Errors
    /// When it fails: what it said.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        self.ctl_of(&self.programs, args).await
    }

    /// The same by the `shoalctl` of other programs.
    ///
    /// # Errors
    /// As [`Control::ctl`].
    pub async fn ctl_of(&self, programs: &ShoalPrograms, args: &[&str]) -> Result<String> {
        let mut command = self.ns.command(&programs.ctl);
        command.arg("--server").arg(format!("http://{}:{REST_PORT}", self.ns.address));
        command.arg("--token-file").arg(&self.token_file).args(args);
        let output = tokio::task::spawn_blocking(move || output(&mut command)).await??;
        if !output.status.success() {
            bail!("shoalctl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `shoalctl … --output json` and parses the answer.
    ///
    /// # Errors
    /// As [`Control::ctl`], or when the answer is no JSON.
    pub async fn ctl_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.ctl(&[args, &["--output", "json"]].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("parse the answer of shoalctl {}", args.join(" ")))
    }

    /// Live nodes, as `shoalctl node list` tells.
    ///
    /// # Errors
    /// As [`Control::ctl_json`].
    pub async fn nodes(&self) -> Result<Vec<NodeEntry>> {
        serde_json::from_value(self.ctl_json(&["node", "list"]).await?).context("understand shoalctl's list of nodes")
    }
}

fn spawn(programs: &ShoalPrograms, config: &Path, ns: &Netns, conditions: &Conditions, log: &Path) -> Result<Daemon> {
    let config = config.to_str().context("the lab's path is no text")?;
    let command = conditions.command(ns, &programs.control, &["serve", "--config", config]);
    Daemon::spawn("shoal-control", command, log)
}
