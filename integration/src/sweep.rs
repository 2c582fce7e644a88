//! Removes what crashed runs left: namespaces, the processes in them, name resolution, mounts and state.
//!
//! Only what carries the lab's prefix and a run whose owner is dead is touched.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{
    net::remove_namespace,
    process::{command, run},
    run::{PREFIX, RUNTIME_ROOT, RunId, runs_dir},
};

/// Removes the leftovers of dead runs and says what it removed.
///
/// # Errors
/// When something can't be removed.
pub fn sweep() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let namespaces = names_in(Path::new("/run/netns")).into_iter().chain(names_in(Path::new("/etc/netns")));
    for name in namespaces {
        let Some(id) = name.strip_prefix(PREFIX).and_then(RunId::parse) else { continue };
        if !id.owner_lives() {
            remove_namespace(&name)?;
            removed.push(format!("namespace {name}"));
        }
    }
    for root in [PathBuf::from(RUNTIME_ROOT), runs_dir()] {
        for name in names_in(&root) {
            let Some(id) = RunId::parse(&name) else { continue };
            if id.owner_lives() {
                continue;
            }
            let dir = root.join(&name);
            unmount_below(&dir)?;
            detach_below(&dir)?;
            fs::remove_dir_all(&dir)?;
            removed.push(dir.display().to_string());
        }
    }
    Ok(removed)
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Takes down mounts below a run's directory, the deepest first.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut below: Vec<&str> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(dir)).collect();
    below.sort_by_key(|at| std::cmp::Reverse(at.len()));
    for at in below {
        run(&mut command("umount", ["-l", at]))?;
    }
    Ok(())
}

/// Frees loop devices of files below a run's directory: a mount of one frees it by itself, unless the crash came before.
fn detach_below(dir: &Path) -> Result<()> {
    for (device, file) in loops()? {
        if file.starts_with(dir) {
            run(&mut command("losetup", ["-d", &device]))?;
        }
    }
    Ok(())
}

/// Loop devices in use, with their files.
pub(crate) fn loops() -> Result<Vec<(String, PathBuf)>> {
    let mut loops = Vec::new();
    for device in names_in(Path::new("/sys/block")) {
        let Ok(file) = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file")) else { continue };
        // The kernel marks a file that was removed.
        let file = file.trim_end().trim_end_matches(" (deleted)").to_owned();
        loops.push((format!("/dev/{device}"), PathBuf::from(file)));
    }
    Ok(loops)
}
