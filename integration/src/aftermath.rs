//! What must be true when a fault is over: no wrong byte in any store, and nothing of the lab's left on the machine.
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::{
    node::labelled,
    run::{PREFIX, RUNTIME_ROOT, RunId, runs_dir},
    sweep::loops,
    wait::eventually,
    world::World,
};

/// What a mirror may answer at all (I7): never 408 or 429, never a redirect.
const ANSWERS: [&str; 10] = ["200", "206", "400", "401", "403", "404", "405", "416", "502", "503"];

/// Hashes every held blob of every node again, and every blob in containerd's stores. Looks at what every mirror has answered
/// since it was started, and for a panic of any daemon of Shoal's.
///
/// # Errors
/// The first blob whose bytes are not those of its name; an answer that no mirror may give; a panic.
pub async fn check(world: &mut World) -> Result<()> {
    nobody_panicked(world)?;
    let names: Vec<String> = world.nodes().keys().cloned().collect();
    let mut checked = 0;
    for name in names {
        let node = world.node(&name)?;
        let content = node.containerd.content().to_owned();
        let shoal = node.shoal()?;
        let held = shoal.state.join("store/held");
        // A daemon that a scene has ended tells nothing.
        let metrics = shoal.admin().get_text("/metrics").await.unwrap_or_default();
        for (status, count) in labelled(&metrics, "shoal_mirror_requests_total", "status") {
            ensure!(ANSWERS.contains(&status.as_str()), "the mirror of {name} answered {status}, {count} times");
        }
        checked += tokio::task::spawn_blocking(move || -> Result<usize> {
            let mut checked = 0;
            for (file, digest) in held_files(&held)?.into_iter().chain(content_files(&content)) {
                let Some(found) = hash(&file)? else { continue };
                ensure!(found == digest, "{} holds bytes of sha256:{found}", file.display());
                checked += 1;
            }
            Ok(checked)
        })
        .await?
        .with_context(|| format!("stores of {name}"))?;
    }
    ensure!(checked > 0, "no store holds anything");
    Ok(())
}

/// Looks into the logs of all daemons of Shoal's.
///
/// # Errors
/// The first line of a panic.
pub fn nobody_panicked(world: &mut World) -> Result<()> {
    let mut logs = vec![world.control()?.log().to_owned()];
    for name in world.nodes().keys().cloned().collect::<Vec<_>>() {
        logs.push(world.node(&name)?.shoal()?.log().to_owned());
    }
    for log in logs {
        let text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
        if let Some(line) = String::from_utf8_lossy(&text).lines().find(|line| line.contains("panicked at")) {
            bail!("{}: {line}", log.display());
        }
    }
    Ok(())
}

/// Files of held blobs with the hex of their digests: `held/ab/cdef…`; sidecars have an extension.
pub(crate) fn held_files(held: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for fan in fs::read_dir(held).with_context(|| format!("read {}", held.display()))? {
        let fan = fan?;
        let first = fan.file_name().to_string_lossy().into_owned();
        for file in fs::read_dir(fan.path())? {
            let file = file?;
            let rest = file.file_name().to_string_lossy().into_owned();
            if !rest.contains('.') {
                files.push((file.path(), format!("{first}{rest}")));
            }
        }
    }
    Ok(files)
}

fn content_files(content: &Path) -> Vec<(PathBuf, String)> {
    let Ok(entries) = fs::read_dir(content) else { return Vec::new() };
    entries.flatten().map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned())).collect()
}

/// `None`: it was evicted in between.
fn hash(path: &Path) -> Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(|| format!("read {}", path.display()))? {
            0 => return Ok(Some(hex::encode(hasher.finalize()))),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// What of the lab's is on this machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Ground {
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    loops: BTreeSet<String>,
    directories: BTreeSet<String>,
    processes: BTreeSet<u32>,
    locks: BTreeSet<String>,
    descriptors: usize,
}

impl Ground {
    /// Looks now.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn take() -> Result<Self> {
        // Runs of other processes come and go as they like.
        let run_of = |text: &str| RunId::parse(text).filter(RunId::is_of_this_process);
        let ours = |name: &str| name.strip_prefix(PREFIX).and_then(run_of).is_some();
        let names = |dir: &str| -> BTreeSet<String> {
            let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let namespaces = names("/run/netns").into_iter().filter(|name| ours(name)).collect();
        let roots = [runs_dir().display().to_string(), RUNTIME_ROOT.to_owned()];
        let below_a_run = |text: &str| {
            let mut below =
                roots.iter().flat_map(|root| text.match_indices(root).map(|(at, _)| &text[at + root.len()..]));
            below.any(|rest| run_of(rest.trim_start_matches('/').split(['/', ' ']).next().unwrap_or("")).is_some())
        };
        let mounts = fs::read_to_string("/proc/self/mounts").context("read mounts")?;
        let below = |(device, file): (String, PathBuf)| below_a_run(&file.display().to_string()).then_some(device);
        let loops = loops()?.into_iter().filter_map(below).collect();
        let mounts = mounts.lines().filter(|line| below_a_run(line)).map(str::to_owned).collect();
        let mut processes = BTreeSet::new();
        for name in names("/proc") {
            let Ok(pid) = name.parse::<u32>() else { continue };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // Arguments end with a zero byte each.
            if below_a_run(&String::from_utf8_lossy(&line).replace('\0', " ")) {
                processes.insert(pid);
            }
        }
        let locks = locks(|pid| processes.contains(&pid) || pid == std::process::id())?;
        let directories = [runs_dir(), RUNTIME_ROOT.into()]
            .iter()
            .flat_map(|root| names(&root.display().to_string()))
            .collect::<Vec<_>>();
        let directories = directories.into_iter().filter(|name| run_of(name).is_some()).collect();
        let descriptors = names("/proc/self/fd").len();
        Ok(Self { namespaces, mounts, loops, directories, processes, locks, descriptors })
    }

    /// Waits until everything that came since then is gone.
    ///
    /// # Errors
    /// What is left after 10 s.
    pub async fn is_restored(&self) -> Result<()> {
        eventually(Duration::from_secs(10), "the ground to be as before", || async { self.nothing_is_left() }).await
    }

    /// Looks for what came since then.
    ///
    /// # Errors
    /// The first thing that is left.
    pub fn nothing_is_left(&self) -> Result<()> {
        let now = Self::take()?;
        let left = |what: &str, now: &BTreeSet<String>, before: &BTreeSet<String>| match now.difference(before).next() {
            Some(left) => bail!("{what} is left: {left}"),
            None => Ok(()),
        };
        left("a namespace", &now.namespaces, &self.namespaces)?;
        left("a mount", &now.mounts, &self.mounts)?;
        left("a loop device", &now.loops, &self.loops)?;
        // Whoever asked to keep the state gets it.
        if std::env::var_os("SHOAL_LAB_KEEP").is_none() {
            left("a directory", &now.directories, &self.directories)?;
        }
        if let Some(pid) = now.processes.difference(&self.processes).next() {
            bail!("the process {pid} is left");
        }
        left("a lock", &now.locks, &self.locks)?;
        let (before, now) = (self.descriptors, now.descriptors);
        // The runtime itself may have opened a few.
        ensure!(now <= before + 8, "{before} descriptors before, {now} now");
        Ok(())
    }
}

/// Locks on files that the processes hold: kind, process, and device with inode.
fn locks(of: impl Fn(u32) -> bool) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/locks").context("read locks")?;
    let held = text.lines().filter_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 708 08:01:1234 0 EOF"; a waiter has an arrow after the number.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, _, _, pid, file, ..] = words[..] else { return None };
        of(pid.parse().ok()?).then(|| format!("{kind} of process {pid} on {file}"))
    });
    Ok(held.collect())
}
