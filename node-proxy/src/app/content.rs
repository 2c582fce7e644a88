//! `shoal-node content adopt | release`: containerd's content on its way from its own store to this node's, and back.
//!
//! What always holds: nothing is removed, on neither side; a blob that is moved was hashed on its way in, or is held. What was done
//! stays done when it is interrupted, and is passed over when it is done again.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use shoal_proto::Digest;

use crate::config::Config;
use crate::containerd::content::media_type;
use crate::control;
use crate::store::{self, Adopted, Disk, Store as _};

/// Blobs between two lines of progress.
const LINES: usize = 100;

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Into this node's store.
    Adopt,
    /// Into containerd's.
    Release,
}

/// What was done.
#[derive(Debug, Default)]
struct Tally {
    blobs: usize,
    linked: u64,
    copied: u64,
    already: usize,
    wrong: usize,
}

impl Tally {
    fn add(&mut self, adopted: Adopted) {
        self.blobs += 1;
        match adopted {
            Adopted::Already => self.already += 1,
            Adopted::Linked(bytes) => self.linked += bytes,
            Adopted::Copied(bytes) => self.copied += bytes,
            Adopted::Wrong => self.wrong += 1,
        }
    }

    fn say(&self, of: usize) {
        let Self { blobs, linked, copied, already, wrong } = self;
        println!("{blobs} of {of} blobs: {linked} bytes linked, {copied} copied; {already} were there, {wrong} wrong");
    }
}

/// Moves everything between containerd's directory and the store, and says what containerd needs to know of the socket then. False: some of it was
/// wrong, and was named.
pub(super) async fn moved(
    config: &Config,
    (root, socket): (&Path, &Path),
    direction: Direction,
) -> anyhow::Result<bool> {
    let content = root.join("io.containerd.content.v1.content");
    let blobs = content.join("blobs/sha256");
    if direction == Direction::Adopt && !blobs.is_dir() {
        bail!("{} is not there: name containerd's root with --root", blobs.display());
    }
    tokio::fs::create_dir_all(&config.state_dir)
        .await
        .with_context(|| format!("make {}", config.state_dir.display()))?;
    // Whatever is there is containerd's, and the quota is no reason to let it go now.
    let store = store::Config { claims: true, quota: 0, ..config.store.clone() };
    let store = Disk::open(store).await.context("open the store; end the daemon first")?;
    let tally = match direction {
        Direction::Adopt => adopt(&store, &blobs, config).await?,
        Direction::Release => release(&store, &blobs, &content).await?,
    };
    println!("{}", next(direction, socket));
    Ok(tally.wrong == 0)
}

async fn adopt(store: &Disk, blobs: &Path, config: &Config) -> anyhow::Result<Tally> {
    let me = control::node_id(&config.state_dir)?;
    let found = files(blobs)?;
    let mut tally = Tally::default();
    for (digest, path) in &found {
        let adopted = store.adopt(digest, path, &me, media_type).await;
        let adopted = adopted.with_context(|| format!("adopt {}", path.display()))?;
        if adopted == Adopted::Wrong {
            eprintln!("shoal-node: {} has another SHA-256 than its name says, and is left out", path.display());
        }
        tally.add(adopted);
        if tally.blobs.is_multiple_of(LINES) {
            tally.say(found.len());
        }
    }
    tally.say(found.len());
    Ok(tally)
}

async fn release(store: &Disk, blobs: &Path, aside: &Path) -> anyhow::Result<Tally> {
    std::fs::create_dir_all(blobs).with_context(|| format!("make {}", blobs.display()))?;
    let held = store.list();
    let mut tally = Tally::default();
    for (digest, _) in &held {
        let to = blobs.join(digest.hex());
        let released = store.release(digest, &to, aside).await.with_context(|| format!("release {}", to.display()))?;
        tally.add(released.with_context(|| format!("{digest} vanished"))?);
        if tally.blobs.is_multiple_of(LINES) {
            tally.say(held.len());
        }
    }
    tally.say(held.len());
    Ok(tally)
}

/// The files that are called as a SHA-256.
fn files(blobs: &Path) -> anyhow::Result<Vec<(Digest, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(blobs).with_context(|| format!("read {}", blobs.display()))? {
        let path = entry.with_context(|| format!("read {}", blobs.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(digest) = format!("sha256:{name}").parse() {
            found.push((digest, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What containerd's configuration must say now. It is the same in version 2 (containerd 1.6 and later) and 3 (2.0 and later).
fn next(direction: Direction, socket: &Path) -> String {
    let socket = socket.display();
    match direction {
        Direction::Adopt => format!(
            "Now set containerd.content = \"plugin\", start shoal-node, and let containerd's config.toml (version 2 or 3) say:\n\n\
             disabled_plugins = [\"io.containerd.content.v1.content\"]   # beside what is disabled already\n\n\
             [proxy_plugins.shoal]\n  type = \"content\"\n  address = \"{socket}\"\n\n\
             Then restart containerd. Its own store is left as it is."
        ),
        Direction::Release => "Now take [proxy_plugins.shoal] and \"io.containerd.content.v1.content\" in disabled_plugins out of \
             containerd's config.toml (version 2 or 3),\nset containerd.content = \"stock\", start shoal-node, and restart \
             containerd. Its GC removes what it does not know.\nThis node keeps what it has, as cache."
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::config::Raw;

    fn put(blobs: &Path, bytes: &[u8]) -> PathBuf {
        let path = blobs.join(hex::encode(Sha256::digest(bytes)));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[tokio::test]
    async fn content_goes_over_and_comes_back_and_both_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let raw = Raw { state_dir: dir.path().join("state"), ..Raw::default() };
        let config = Config::try_from(raw).unwrap();
        let (root, socket) = (dir.path().join("containerd"), Path::new("/run/content.sock"));
        assert!(moved(&config, (&root, socket), Direction::Adopt).await.is_err(), "there is no such store");
        let content = root.join("io.containerd.content.v1.content");
        let blobs = content.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let paths = [put(&blobs, b"one"), put(&blobs, &[7; 400_000])];
        std::fs::write(blobs.join("README"), "mine").unwrap();
        for _ in 0..2 {
            assert!(moved(&config, (&root, socket), Direction::Adopt).await.unwrap());
        }
        // Something between the two is not what its name says.
        let wrong = blobs.join("ab".repeat(32));
        std::fs::write(&wrong, "other").unwrap();
        assert!(!moved(&config, (&root, socket), Direction::Adopt).await.unwrap());
        std::fs::remove_dir_all(&blobs).unwrap();
        for _ in 0..2 {
            assert!(moved(&config, (&root, socket), Direction::Release).await.unwrap());
        }
        assert_eq!(std::fs::read(&paths[0]).unwrap(), b"one");
        assert_eq!(std::fs::read(&paths[1]).unwrap(), [7; 400_000]);
        assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn while_the_daemon_runs_nothing_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let raw = Raw { state_dir: dir.path().join("state"), ..Raw::default() };
        let config = Config::try_from(raw).unwrap();
        let _daemon = Disk::open(config.store.clone()).await.unwrap();
        let refused = moved(&config, (dir.path(), dir.path()), Direction::Release).await.unwrap_err();
        assert!(format!("{refused:#}").contains("another shoal-node uses this store"), "{refused:#}");
    }
}
