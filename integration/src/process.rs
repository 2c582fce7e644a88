//! Programs that the lab runs: daemons inside a namespace, whose end the lab sees to, and commands that must succeed.
use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A daemon with its log file. Dropped, it is killed and waited for.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` in the namespace, with standard output and error appended to `log`.
    ///
    /// # Errors
    /// When the log can't be opened or the program can't be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out =
            File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        let err = out.try_clone().context("share the log file")?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // Its own process group: Ctrl-C reaches the lab alone, which then ends everything in order.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has ended by itself, at most for `bound`; its exit code, `None` after a signal.
    ///
    /// # Errors
    /// When it still runs.
    pub async fn ended(&mut self, bound: Duration) -> Result<Option<i32>> {
        let end = tokio::time::Instant::now() + bound;
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("look at {}", self.name))? {
                return Ok(status.code());
            }
            if tokio::time::Instant::now() >= end {
                bail!("{} still runs after {bound:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets it go on if it was stopped. False: it has ended.
    pub fn resume(&mut self) -> bool {
        self.is_running() && self.signal(Signal::SIGCONT).is_ok()
    }

    /// Fails with the end of the log when the process has ended.
    ///
    /// # Errors
    /// The process is gone.
    pub fn check_running(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        bail!("{} has ended; the end of {}:\n{}", self.name, self.log.display(), self.log_tail(15))
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid_of(&self.child), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Asks the process to end, waits at most `grace`, then kills it. Says whether it ended by itself.
    pub fn stop(&mut self, grace: Duration) -> bool {
        let _ = self.signal(Signal::SIGTERM);
        let end = Instant::now() + grace;
        while Instant::now() < end {
            if !self.is_running() {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        false
    }

    /// Kills the process and waits for it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid fits in pid_t"))
}

/// Runs a command that must succeed and gives its standard output.
///
/// # Errors
/// When it can't be started or fails; the error holds what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command with `input` on its standard input; it must succeed.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    child.stdin.take().context("open standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\ninput was:\n{input}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever the end.
///
/// # Errors
/// When it can't be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))
}

/// A command with arguments. A bare name is looked for in the administrator's directories too.
pub fn command<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let program = program.as_ref();
    let found = program.to_str().filter(|name| !name.contains('/')).and_then(find_program);
    let mut command = Command::new(found.as_deref().map_or(program, Path::as_os_str));
    command.args(args);
    command
}

/// Where `program` is in `PATH`, or in the administrator's directories.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
