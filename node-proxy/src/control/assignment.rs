//! What the node remembers of itself: its id for good, its last assignment for 24 h (I4).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use shoal_proto::frame::Hello;
use shoal_proto::{ClusterId, NodeId};

use super::ControlError;

/// After this a node whose control has not been seen counts as having no cluster.
const GOOD_FOR: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize, Deserialize)]
struct Assignment {
    node: NodeId,
    cluster: ClusterId,
    cluster_name: String,
    epoch: u64,
    /// Seconds since 1970.
    at: u64,
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether what was written then may be believed now. A clock that was set back meanwhile makes it come from the future.
pub(super) fn is_fresh(at: u64) -> bool {
    now().abs_diff(at) <= GOOD_FOR.as_secs()
}

/// This node's id, made on the first start.
///
/// # Errors
/// [`ControlError`] when the file can't be read, written or understood.
pub fn node_id(state_dir: &Path) -> Result<NodeId, ControlError> {
    let path = state_dir.join("node-id");
    let failed = |action| {
        let path = path.clone();
        move |source| ControlError::State { action, path, source }
    };
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| ControlError::NodeId(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(state_dir).map_err(failed("make the directory of"))?;
            let text = uuid::Uuid::new_v4().to_string();
            replace(&path, text.as_bytes()).map_err(failed("write"))?;
            text.parse().map_err(|_| ControlError::NodeId(path))
        }
        Err(error) => Err(failed("read")(error)),
    }
}

/// The last assignment, if it can still be believed.
pub(super) fn load(state_dir: &Path, node: &NodeId) -> Option<Hello> {
    let text = fs::read(state_dir.join("assignment.json")).ok()?;
    let known: Assignment = serde_json::from_slice(&text).ok()?;
    let good = known.node == *node && is_fresh(known.at);
    good.then_some(Hello { cluster: known.cluster, node: known.node, epoch: known.epoch })
}

/// Remembers an assignment; `None` forgets it.
pub(super) fn save(state_dir: &Path, hello: Option<&Hello>, cluster_name: &str) -> io::Result<()> {
    let path = state_dir.join("assignment.json");
    let Some(hello) = hello else {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    let known = Assignment {
        node: hello.node.clone(),
        cluster: hello.cluster.clone(),
        cluster_name: cluster_name.to_owned(),
        epoch: hello.epoch,
        at: now(),
    };
    replace(&path, &serde_json::to_vec_pretty(&known)?)
}

/// Writes a small file so that after a crash it is the old or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh: PathBuf = path.with_extension("new");
    let mut file = fs::File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_id_and_its_assignment() {
        let dir = tempfile::tempdir().unwrap();
        let node = node_id(dir.path()).unwrap();
        assert_eq!(node_id(dir.path()).unwrap(), node);
        assert!(load(dir.path(), &node).is_none());
        let hello = Hello { cluster: "c1".parse().unwrap(), node: node.clone(), epoch: 3 };
        save(dir.path(), Some(&hello), "east").unwrap();
        assert_eq!(load(dir.path(), &node), Some(hello));
        assert!(load(dir.path(), &"other".parse().unwrap()).is_none());
        save(dir.path(), None, "").unwrap();
        save(dir.path(), None, "").unwrap();
        assert!(load(dir.path(), &node).is_none());
    }

    #[test]
    fn i4_an_assignment_older_than_a_day_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let node: NodeId = "n".parse().unwrap();
        let cluster: ClusterId = "c".parse().unwrap();
        let hours = |hours: i64| hours * 3600;
        for (age, good) in [(0, true), (hours(23), true), (hours(25), false), (hours(-1), true), (hours(-25), false)] {
            let cluster_name = "c".to_owned();
            let known = Assignment {
                node: node.clone(),
                cluster: cluster.clone(),
                cluster_name,
                epoch: 1,
                at: now().saturating_add_signed(-age),
            };
            replace(&dir.path().join("assignment.json"), &serde_json::to_vec(&known).unwrap()).unwrap();
            assert_eq!(load(dir.path(), &node).is_some(), good, "{age}");
        }
    }

    #[test]
    fn names_the_file_that_holds_no_id() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node-id"), "NOT AN ID").unwrap();
        assert!(node_id(dir.path()).unwrap_err().to_string().contains("node-id"));
    }
}
