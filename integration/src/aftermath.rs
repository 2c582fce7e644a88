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
    run::{PREFIX, RunId, runs_dir},
    sweep::loops,
    wait::eventually,
    world::World,
};

/// Hashes every held blob of every node again, and every blob in containerd's stores.
///
/// # Errors
/// The first blob whose bytes are not those of its name.
pub async fn check(world: &mut World) -> Result<()> {
    let names: Vec<String> = world.nodes().keys().cloned().collect();
    let mut checked = 0;
    for name in names {
        let node = world.node(&name)?;
        let content = node.containerd.content().to_owned();
        let held = node.shoal()?.state.join("store/held");
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
    processes: BTreeSet<u32>,
    descriptors: usize,
}

impl Ground {
    /// Looks now.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn take() -> Result<Self> {
        let ours = |name: &str| {
            let run = name.strip_prefix(PREFIX).and_then(RunId::parse);
            run.is_some_and(|run| run.owner_lives())
        };
        let names = |dir: &str| -> BTreeSet<String> {
            let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let namespaces = names("/run/netns").into_iter().filter(|name| ours(name)).collect();
        let runs = runs_dir().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").context("read mounts")?;
        let mounts = mounts.lines().filter(|line| line.contains(&runs)).map(str::to_owned).collect();
        let below = |(device, file): (String, PathBuf)| file.starts_with(runs_dir()).then_some(device);
        let loops = loops()?.into_iter().filter_map(below).collect();
        let mut processes = BTreeSet::new();
        for name in names("/proc") {
            let Ok(pid) = name.parse::<u32>() else { continue };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&runs) {
                processes.insert(pid);
            }
        }
        let descriptors = names("/proc/self/fd").len();
        Ok(Self { namespaces, mounts, loops, processes, descriptors })
    }

    /// Waits until everything that came since then is gone.
    ///
    /// # Errors
    /// What is left after 10 s.
    pub async fn is_restored(&self) -> Result<()> {
        eventually(Duration::from_secs(10), "the ground to be as before", || async {
            let now = Self::take()?;
            let left =
                |what: &str, now: &BTreeSet<String>, before: &BTreeSet<String>| match now.difference(before).next() {
                    Some(left) => bail!("{what} is left: {left}"),
                    None => Ok(()),
                };
            left("a namespace", &now.namespaces, &self.namespaces)?;
            left("a mount", &now.mounts, &self.mounts)?;
            left("a loop device", &now.loops, &self.loops)?;
            if let Some(pid) = now.processes.difference(&self.processes).next() {
                bail!("the process {pid} is left");
            }
            // The runtime itself may have opened a few.
            ensure!(
                now.descriptors <= self.descriptors + 8,
                "{} descriptors before, {} now",
                self.descriptors,
                now.descriptors
            );
            Ok(())
        })
        .await
    }
}
