//! The ground under all other scenarios: the parts work together when Shoal is not there, and what a crash left goes away.
use std::{fs, os::unix::process::CommandExt, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    aftermath::Ground,
    disk::Disk,
    image::{Image, Plan},
    registry::reads_by_digest,
    run::{RunDirs, lab_dir},
    sweep::sweep,
    wait::eventually,
    world::{World, WorldPlan},
};
use nix::fcntl::{Flock, FlockArg};

use crate::alone;

#[test]
fn containerd_alone_pulls_from_the_origin_with_an_anonymous_token() {
    alone(async {
        let mut world = World::start(WorldPlan { shoal: false, ..WorldPlan::two_clusters().only(2) }).await?;
        let image = Image::obtain(&Plan::small())?;
        world.registry.push(&image, "lab/small", "1").await?;
        world.start_nodes().await?;
        for node in ["a1", "a2"] {
            let timing = world.node(node)?.pull("lab/small", "1", &image).await?;
            let seconds = timing.seconds();
            // 24 MiB through 100 Mbit/s: the link is shaped, and the clock is right.
            let fastest = image.size() as f64 * 8.0 / 105e6;
            ensure!(seconds > fastest && seconds < fastest * 4.0, "{node}: {seconds} s, the link allows {fastest} s");
        }
        let log = world.registry.access_log()?;
        let reads = reads_by_digest(&log, |address| world.name_of(address));
        for blob in image.blobs() {
            let by_node = reads.get(&blob.digest).with_context(|| format!("nobody read {}", blob.digest))?;
            ensure!(by_node.len() == 2 && by_node.values().all(|reads| reads.bytes == blob.size), "{by_node:?}");
        }
        ensure!(log.iter().any(|line| line.status == 401), "the origin never challenged");
        ensure!(world.net.pair_counts()?.iter().all(|pair| pair.packets == 0), "nodes spoke to each other");
        Ok(())
    });
}

/// What a run leaves that was killed while a node had a disk of its own: a mount, and a loop device that no mount frees.
#[test]
fn disks_of_a_killed_run_are_removed() {
    alone(async {
        let dir = lab_dir().join("run/1t1n0");
        let at = dir.join("mounted");
        fs::create_dir_all(&at)?;
        // Neither is dropped: that is the crash.
        std::mem::forget(Disk::ext4(&at, &dir.join("disk.img"), 16 << 20)?);
        fs::write(at.join("open"), "something")?;
        fs::File::create(dir.join("other.img"))?.set_len(1 << 20)?;
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(dir.join("other.img")).output()?;
        ensure!(attached.status.success(), "losetup failed: {}", String::from_utf8_lossy(&attached.stderr));
        sweep()?;
        ensure!(!dir.exists(), "the directory is still there");
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains("run/1t1n0"), "a mount is left:\n{mounts}");
        for device in fs::read_dir("/sys/block")? {
            let file = device?.path().join("loop/backing_file");
            let backing = fs::read_to_string(file).unwrap_or_default();
            ensure!(!backing.contains("run/1t1n0"), "a loop device is left: {backing}");
        }
        Ok(())
    });
}

/// What a run leaves that was killed: the names of a dead process, with a live process of its own inside.
#[test]
fn leftovers_of_a_killed_run_are_removed_and_nothing_else() {
    alone(async {
        let dead = "shoal-1t1n0-a1";
        let foreign = "other-1t1n0-a1";
        let ip = |args: &[&str]| -> Result<()> {
            let done = Command::new("ip").args(args).status().context("run ip: run `make tools`")?;
            ensure!(done.success(), "ip {args:?} failed: the lab needs root (make test)");
            Ok(())
        };
        ip(&["netns", "add", dead])?;
        ip(&["netns", "add", foreign])?;
        let mut inside = Command::new("ip").args(["netns", "exec", dead, "sleep", "1000"]).spawn()?;
        eventually(Duration::from_secs(10), "the process to be inside", || async {
            let pids = Command::new("ip").args(["netns", "pids", dead]).output().context("run ip")?;
            ensure!(!pids.stdout.is_empty(), "nobody is in {dead}");
            Ok(())
        })
        .await?;
        fs::create_dir_all("/run/shoal-lab/1t1n0")?;
        let swept = sweep();
        ip(&["netns", "delete", foreign]).context("the foreign namespace was removed too")?;
        swept?;
        ensure!(!fs::exists(format!("/run/netns/{dead}"))?, "the namespace is still there");
        ensure!(!fs::exists("/run/shoal-lab/1t1n0")?, "the directory is still there");
        ensure!(!inside.wait()?.success(), "the process inside was left alone");
        Ok(())
    });
}

#[test]
fn whatever_a_scenario_leaves_is_found() {
    alone(async {
        let ground = Ground::take()?;
        let finds = |what: &str| match ground.nothing_is_left() {
            Err(error) if error.to_string().starts_with(what) => Ok(()),
            found => bail!("{found:?} instead of {what}"),
        };
        ground.nothing_is_left()?;
        let dirs = RunDirs::create()?;
        let name = format!("shoal-{}-left", dirs.id);
        let netns = |does: &str| Command::new("ip").args(["netns", does, &name]).status();
        ensure!(netns("add")?.success(), "ip netns add failed: the lab needs root (make test)");
        let found = finds("a namespace is left");
        ensure!(netns("delete")?.success(), "ip netns delete failed");
        found?;
        if std::env::var_os("SHOAL_LAB_KEEP").is_none() {
            finds("a directory is left")?;
        }
        let (locked, program) = (fs::File::create(dirs.state.join("lock"))?, dirs.state.join("program"));
        drop(dirs);
        let lock = Flock::lock(locked, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        finds("a lock is left")?;
        drop(lock);
        let mut process = Command::new("sleep").arg0(program).arg("1000").spawn()?;
        // What it is called shows when the kernel has started it.
        let found =
            eventually(Duration::from_secs(5), "the process to be seen", || async { finds("the process") }).await;
        process.kill()?;
        process.wait()?;
        found?;
        ground.nothing_is_left()
    });
}
