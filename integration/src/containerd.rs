//! One containerd: its configuration, its life, and what its log and content store tell of a pull.
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;

pub mod content;
mod ctr;
pub mod edition;
pub mod requests;

pub use ctr::Ctr;

use edition::Edition;

use crate::{
    cri::Cri,
    net::Netns,
    process::{Daemon, command, output, run},
    registry,
    rights::User,
    wait::eventually,
};

/// Programs of one containerd.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `containerd`
    pub containerd: PathBuf,
    /// `ctr`, of the same version.
    pub ctr: PathBuf,
    /// `crictl`
    pub crictl: PathBuf,
    /// Directory of `runc` and the shims.
    pub bin: PathBuf,
}

/// A running containerd.
pub struct Containerd {
    daemon: Daemon,
    programs: Programs,
    ns: Netns,
    config: PathBuf,
    root_ca: PathBuf,
    socket: PathBuf,
    content: PathBuf,
    certs: PathBuf,
    kept: Kept,
    place: Place,
}

/// What its configuration is made of.
#[derive(Debug)]
struct Place {
    version: (u32, u32),
    edition: Edition,
    dir: PathBuf,
    runtime: PathBuf,
}

/// Who keeps its content.
#[derive(Debug, Clone)]
pub enum Kept {
    /// Its own store.
    Stock,
    /// A `shoal-node`: the socket of its content store, and the directory of what that holds.
    Plugin(PathBuf, PathBuf),
}

/// Pulls into one containerd; many may pull at once.
#[derive(Debug, Clone)]
pub struct Puller {
    crictl: PathBuf,
    socket: PathBuf,
}

/// A `crictl pull` that runs by itself. Dropped, it is killed.
pub struct RunningPull(Daemon);

impl Containerd {
    /// Starts containerd in the namespace and waits until CRI answers. `hosts_toml` is what its `certs.d` says of the origin;
    /// without, it asks the origin itself.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start(
        programs: &Programs,
        edition: Edition,
        ns: &Netns,
        (dir, runtime): (&Path, &Path),
        root_ca: &Path,
        hosts_toml: Option<&str>,
        kept: &Kept,
    ) -> Result<Self> {
        let certs = dir.join("certs.d");
        fs::create_dir_all(certs.join(registry::HOST)).with_context(|| format!("create {}", certs.display()))?;
        fs::create_dir_all(runtime).with_context(|| format!("create {}", runtime.display()))?;
        if let Some(text) = hosts_toml {
            fs::write(certs.join(registry::HOST).join("hosts.toml"), text)?;
        } else {
            // An empty directory would mask nothing here, but say nothing either.
            fs::remove_dir(certs.join(registry::HOST))?;
        }
        let place = Place {
            version: version(&programs.containerd)?,
            edition,
            dir: dir.to_owned(),
            runtime: runtime.to_owned(),
        };
        let socket = runtime.join("containerd.sock");
        let config = dir.join("config.toml");
        fs::write(&config, config_text(&place, &certs, kept))?;
        let mut containerd = Self {
            daemon: spawn(programs, ns, &config, root_ca, &dir.join("containerd.log"))?,
            programs: programs.clone(),
            ns: ns.clone(),
            config,
            root_ca: root_ca.to_owned(),
            socket,
            certs,
            content: dir.join("root/io.containerd.content.v1.content/blobs/sha256"),
            kept: kept.clone(),
            place,
        };
        containerd.wait_ready().await?;
        Ok(containerd)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let up = eventually(Duration::from_secs(30), "containerd's CRI", || async {
            Cri::connect(&self.socket).await?.version().await
        });
        if let Err(error) = up.await {
            self.daemon.check_running()?;
            let (log, tail) = (self.daemon.log().display(), self.daemon.log_tail(10));
            return Err(error.context(format!("the end of {log}:\n{tail}")));
        }
        Ok(())
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Ends it by SIGTERM and says whether it ended by itself within `grace`.
    pub async fn stop(&mut self, grace: Duration) -> bool {
        tokio::task::block_in_place(|| self.daemon.stop(grace))
    }

    /// Kills it, if it runs, and starts it again on the same state.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.daemon = spawn(&self.programs, &self.ns, &self.config, &self.root_ca, self.daemon.log())?;
        self.wait_ready().await
    }

    /// Starts it again if it has ended, and lets it go on if it was stopped.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn revive(&mut self) -> Result<()> {
        if self.daemon.resume() { Ok(()) } else { self.restart().await }
    }

    /// Adds tables to its configuration and starts it again with them.
    ///
    /// # Errors
    /// When it does not come up with them.
    pub async fn reconfigure(&mut self, more: &str) -> Result<()> {
        let text = fs::read_to_string(&self.config).with_context(|| format!("read {}", self.config.display()))?;
        fs::write(&self.config, format!("{text}\n{more}\n"))?;
        self.restart().await
    }

    /// Has it keep its content elsewhere from the next start on.
    ///
    /// # Errors
    /// When its configuration can't be written.
    pub fn keep_in(&mut self, kept: Kept) -> Result<()> {
        fs::write(&self.config, config_text(&self.place, &self.certs, &kept))
            .with_context(|| format!("write {}", self.config.display()))?;
        self.kept = kept;
        Ok(())
    }

    /// Its root directory, as `--root` of containerd.
    pub fn root(&self) -> PathBuf {
        self.place.dir.join("root")
    }

    /// What each of its goroutines does, as it writes into its log when it is sent SIGUSR1.
    ///
    /// # Errors
    /// When it has ended, or writes nothing within ten seconds.
    pub async fn stacks(&self) -> Result<String> {
        let before = fs::read_to_string(self.log())?.len();
        self.daemon.signal(Signal::SIGUSR1)?;
        eventually(Duration::from_secs(10), "containerd to write its stacks", || async {
            let log = fs::read_to_string(self.log())?;
            let written = log.get(before..).filter(|written| written.contains("END goroutine stack dump"));
            written.map(ToOwned::to_owned).context("not yet")
        })
        .await
    }

    /// Its configuration as it understood it, defaults included.
    ///
    /// # Errors
    /// When it can't be run, or prints no TOML.
    pub fn config_dump(&self) -> Result<toml::Table> {
        let mut dump = Command::new(&self.programs.containerd);
        let text = run(dump.arg("--config").arg(&self.config).args(["config", "dump"]))?;
        text.parse().context("parse what `containerd config dump` printed")
    }

    /// Name and version as CRI tells them.
    ///
    /// # Errors
    /// When CRI is not served.
    pub async fn version(&self) -> Result<String> {
        Cri::connect(&self.socket).await?.version().await
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        self.daemon.log()
    }

    /// The directory that tells it of registries.
    pub fn certs(&self) -> &Path {
        &self.certs
    }

    /// The directory with the blobs of its content store.
    pub fn content(&self) -> &Path {
        &self.content
    }

    /// The directory with what its content store has not finished: one entry a blob.
    pub fn ingests(&self) -> PathBuf {
        // Beside `blobs/sha256`.
        self.content.ancestors().nth(2).unwrap_or(&self.content).join("ingest")
    }

    /// Bytes of the largest blob that it is writing.
    pub fn ingesting(&self) -> u64 {
        let Ok(entries) = fs::read_dir(self.ingests()) else { return 0 };
        let sizes = entries.flatten().filter_map(|entry| fs::metadata(entry.path().join("data")).ok());
        sizes.map(|meta| meta.len()).max().unwrap_or(0)
    }

    /// Who pulls into it.
    pub fn puller(&self) -> Puller {
        Puller { crictl: self.programs.crictl.clone(), socket: self.socket.clone() }
    }

    /// `ctr` at another socket than containerd's own, which speaks for the namespace that kubelet's images are in.
    pub fn ctr(&self, socket: &Path) -> Ctr {
        Ctr {
            program: self.programs.ctr.clone(),
            ns: self.ns.clone(),
            socket: socket.to_owned(),
            root_ca: self.root_ca.clone(),
        }
    }

    /// Who pulls by another socket than containerd's own.
    pub fn puller_at(&self, socket: &Path) -> Puller {
        Puller { socket: socket.to_owned(), ..self.puller() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Pulls with the real `crictl`; several pulls may run at once.
    ///
    /// # Errors
    /// What `crictl` printed.
    pub async fn crictl_pull(&self, image: &str) -> Result<String> {
        self.puller().pull(image).await
    }

    /// When containerd began to ask for the manifest of the newest pull of `repository`: seconds since the epoch, from its
    /// own log line about the HEAD.
    ///
    /// # Errors
    /// When the log has no such line.
    pub fn first_head(&self, repository: &str, since: f64) -> Result<f64> {
        let log = fs::read_to_string(self.daemon.log())?;
        first_head(&log, repository, since)
            .ok_or_else(|| anyhow!("{} has no line of a HEAD for {repository}", self.daemon.log().display()))
    }

    /// When the last byte of the last of the blobs, which are all committed, was written to the content store: seconds since the epoch. The
    /// change time of the file would not do: `shoal-node` links to what containerd holds, and that changes it.
    ///
    /// # Errors
    /// When one is not there.
    pub fn last_commit<'a>(&self, digests: impl IntoIterator<Item = &'a str>) -> Result<f64> {
        let mut last = 0.0_f64;
        for digest in digests {
            let file = self.blob(digest);
            let meta = fs::metadata(&file).with_context(|| format!("containerd's store lacks {digest}"))?;
            last = last.max(meta.mtime() as f64 + meta.mtime_nsec() as f64 / 1e9);
        }
        Ok(last)
    }

    /// The file of a blob that it has.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        match &self.kept {
            Kept::Stock => self.content.join(hex),
            Kept::Plugin(_, held) => held.join(&hex[..2]).join(&hex[2..]),
        }
    }

    /// Digests that its own content store holds.
    pub fn held(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(&self.content) else { return BTreeSet::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|hex| format!("sha256:{hex}"))
            .collect()
    }
}

impl Puller {
    /// Pulls with the real `crictl`.
    ///
    /// # Errors
    /// What `crictl` printed.
    pub async fn pull(&self, image: &str) -> Result<String> {
        self.run(image, self.command(image)).await
    }

    /// The same with a user's name and password, as kubelet gives those of a pull secret.
    ///
    /// # Errors
    /// What `crictl` printed.
    pub async fn pull_as(&self, image: &str, user: &User) -> Result<String> {
        self.run(image, self.crictl(&["pull", "--creds", &user.creds(), image])).await
    }

    async fn run(&self, image: &str, mut crictl: Command) -> Result<String> {
        let output = tokio::task::spawn_blocking(move || output(&mut crictl)).await??;
        if !output.status.success() {
            bail!("crictl pull {image}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a pull that can be interrupted; what `crictl` says goes to `log`.
    ///
    /// # Errors
    /// When `crictl` can't be started.
    pub fn start(&self, image: &str, log: &Path) -> Result<RunningPull> {
        Ok(RunningPull(Daemon::spawn("crictl", self.command(image), log)?))
    }

    /// Removes an image, and with it the blobs that no other image needs, as soon as containerd collects them.
    ///
    /// # Errors
    /// What `crictl` printed.
    pub async fn remove(&self, image: &str) -> Result<()> {
        let mut crictl = self.crictl(&["rmi", image]);
        let output = tokio::task::spawn_blocking(move || output(&mut crictl)).await??;
        if !output.status.success() {
            bail!("crictl rmi {image}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn command(&self, image: &str) -> Command {
        self.crictl(&["pull", image])
    }

    fn crictl(&self, args: &[&str]) -> Command {
        let endpoint = format!("unix://{}", self.socket.display());
        let mut crictl = command(&self.crictl, ["--config", "/dev/null", "--timeout", "10m"]);
        crictl.args(["--image-endpoint", &endpoint, "--runtime-endpoint", &endpoint]).args(args);
        crictl
    }
}

impl RunningPull {
    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.0.is_running()
    }

    /// Ctrl-C.
    ///
    /// # Errors
    /// When it is over.
    pub fn interrupt(&mut self) -> Result<()> {
        self.0.signal(nix::sys::signal::Signal::SIGINT)
    }

    /// Waits for its end, at most ten seconds.
    ///
    /// # Errors
    /// When it still runs then.
    pub async fn ended(&mut self) -> Result<()> {
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while self.is_running() {
            if tokio::time::Instant::now() > end {
                bail!("crictl runs on");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

fn spawn(programs: &Programs, ns: &Netns, config: &Path, root_ca: &Path, log: &Path) -> Result<Daemon> {
    let mut start = ns.command(&programs.containerd);
    // The lab's root stands where a real node has it: among the system's.
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.bin.display());
    start.arg("--config").arg(config).env("PATH", path).env("SSL_CERT_FILE", root_ca);
    Daemon::spawn(&format!("containerd of {}", ns.name), start, log)
}

/// Major and minor version of a containerd.
///
/// # Errors
/// When it can't be run, or says something else.
pub fn version(containerd: &Path) -> Result<(u32, u32)> {
    let text = run(Command::new(containerd).arg("--version"))?;
    parse_version(&text).ok_or_else(|| anyhow!("no version in {text:?}"))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        Some((major, minor))
    })
}

fn first_head(log: &str, repository: &str, since: f64) -> Option<f64> {
    let path = format!("/v2/{repository}/manifests/");
    log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(|line| {
        let asks = line["request.method"] == "HEAD" && line["url"].as_str()?.contains(&path);
        let at = parse_time(line["time"].as_str()?)?;
        (asks && at >= since).then_some(at)
    })
}

/// Seconds since the epoch of an RFC 3339 time, with its fraction.
pub(crate) fn parse_time(text: &str) -> Option<f64> {
    let (date, rest) = text.split_once('T')?;
    let zone = rest.rfind(['Z', '+', '-'])?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = rest[..zone].split(':');
    let hours: f64 = clock.next()?.parse().ok()?;
    let minutes: f64 = clock.next()?.parse().ok()?;
    let seconds: f64 = clock.next()?.parse().ok()?;
    let offset = match &rest[zone..] {
        "Z" => 0.0,
        shift => {
            let (h, m) = shift[1..].split_once(':')?;
            let sign = if shift.starts_with('-') { -1.0 } else { 1.0 };
            sign * (h.parse::<f64>().ok()? * 3600.0 + m.parse::<f64>().ok()? * 60.0)
        }
    };
    // Days since 1970-01-01 in the Gregorian calendar (years begin in March, so that the leap day is last).
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days as f64 * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds - offset)
}

/// Bytes of a chunk with `concurrent_layer_fetch_buffer`: several in every layer of the lab's.
const CHUNK: u32 = 1 << 20;

/// Only what pulls need: no sandboxes are run. Versions before 2.0 read format 2, later ones format 3. Those would all make one
/// NRI socket in `/var/run`, and whoever finds it taken ends.
fn config_text(place: &Place, certs: &Path, kept: &Kept) -> String {
    let Place { version, edition, dir, runtime } = place;
    let (root, state) = (dir.join("root"), runtime.join("state"));
    let (socket, cni) = (runtime.join("containerd.sock"), dir.join("cni"));
    let certs = certs.display();
    let cri = if version.0 >= 2 {
        let chunk = if edition.buffer { CHUNK } else { 0 };
        format!(
            "[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = {}\nconcurrent_layer_fetch_buffer = {chunk}\n\
             [plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"{certs}\"\n\
             [plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = \"{certs}\"\n\
             concurrent_layer_fetch_buffer = {chunk}\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nconf_dir = \"{1}\"\nbin_dirs = [\"{1}\"]\n\
             [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n",
            edition.local,
            cni.display()
        )
    } else {
        format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{certs}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"{0}\"\nbin_dir = \"{0}\"\n",
            cni.display()
        )
    };
    // A plugin beside its own store would leave it to chance which is used (CONTAINERD 23).
    let (disabled, proxy) = match kept {
        Kept::Stock => ("", String::new()),
        Kept::Plugin(socket, _) => (
            ", \"io.containerd.content.v1.content\"",
            format!("[proxy_plugins.shoal]\ntype = \"content\"\naddress = \"{}\"\n", socket.display()),
        ),
    };
    format!(
        "version = {}\nroot = \"{}\"\nstate = \"{}\"\n\
         disabled_plugins = [\"io.containerd.internal.v1.opt\", \"io.containerd.tracing.processor.v1.otlp\"{disabled}]\n\
         [grpc]\naddress = \"{}\"\n[debug]\nlevel = \"debug\"\nformat = \"json\"\n{cri}{proxy}",
        if version.0 >= 2 { 3 } else { 2 },
        root.display(),
        state.display(),
        socket.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_kinds_of_builds_are_read() {
        assert_eq!(
            parse_version("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1"),
            Some((1, 6))
        );
        assert_eq!(parse_version("containerd github.com/containerd/containerd/v2 v2.3.4 abcdef"), Some((2, 3)));
        assert_eq!(parse_version("no version"), None);
    }

    #[test]
    fn times_of_the_log_are_read_with_their_zone() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z"), Some(1.5));
        assert_eq!(parse_time("2024-02-29T12:00:00Z"), Some(1_709_208_000.0));
        assert_eq!(parse_time("2024-02-29T13:30:00.25+01:30"), Some(1_709_208_000.25));
    }

    #[test]
    fn the_first_head_of_a_pull_is_found_among_older_ones() {
        let line = |second: u32, url: &str| {
            format!(
                "{{\"level\":\"debug\",\"msg\":\"do request\",\"request.method\":\"HEAD\",\"time\":\"1970-01-01T00:00:{second:02}Z\",\"url\":\"{url}\"}}\n"
            )
        };
        let url = "http://127.0.0.1:5080/v2/lab/demo/manifests/1?ns=registry.shoal.test";
        let log = [line(1, url), line(5, "http://x/v2/lab/other/manifests/1"), line(7, url), line(9, url)].concat();
        assert_eq!(first_head(&log, "lab/demo", 3.0), Some(7.0));
        assert_eq!(first_head(&log, "lab/none", 0.0), None);
    }
}
