//! nginx with sendfile: what people serve files with, and so what serving is measured beside.
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{net::Netns, process::Daemon, wait::eventually};

const PORT: u16 = 8080;

/// A running nginx: one master, one worker, files below one directory.
pub(super) struct Nginx {
    daemon: Daemon,
    pub(super) at: SocketAddr,
}

impl Nginx {
    /// Serves the files below `root` at the namespace's address.
    pub(super) async fn start(program: &Path, ns: &Netns, dir: &Path, root: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let at = SocketAddr::new(ns.address.into(), PORT);
        let config = dir.join("nginx.conf");
        fs::write(&config, config_text(dir, root, at)).with_context(|| format!("write {}", config.display()))?;
        let mut command = ns.command(program);
        command.arg("-c").arg(&config).arg("-p").arg(dir).arg("-e").arg(dir.join("error.log"));
        let mut nginx = Self { daemon: Daemon::spawn("nginx", command, &dir.join("nginx.log"))?, at };
        let up = eventually(Duration::from_secs(10), "nginx", || async { ns.connect(at).await.map(drop) }).await;
        if up.is_err() {
            nginx.daemon.check_running()?;
        }
        up.map(|()| nginx)
    }

    /// Its master.
    pub(super) fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The worker ends with its master only if the master is asked to.
        self.daemon.stop(Duration::from_secs(5));
    }
}

/// The settings that serve large files best, as its manual gives them; one worker, for one connection uses one only.
fn config_text(dir: &Path, root: &Path, at: SocketAddr) -> String {
    let paths: Vec<String> = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("    {what}_temp_path {};\n", quoted(&dir.join(what))))
        .collect();
    format!(
        "daemon off;\nworker_processes 1;\nuser root root;\npid {pid};\nevents {{ worker_connections 64; }}\nhttp {{\n\
         {paths}    access_log off;\n    sendfile on;\n    tcp_nopush on;\n    default_type application/octet-stream;\n    \
         server {{ listen {at}; root {root}; }}\n}}\n",
        pid = quoted(&dir.join("pid")),
        paths = paths.concat(),
        root = quoted(root),
    )
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// The path of a held blob's file below the store's `held`.
pub(super) fn held_path(digest: &str) -> Result<PathBuf> {
    let hex = digest.strip_prefix("sha256:").context("a digest of another kind")?;
    Ok(Path::new(&hex[..2]).join(&hex[2..]))
}
