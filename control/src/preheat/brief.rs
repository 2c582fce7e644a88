//! A job as lists show it: without its nodes and blobs, of which there may be thousands.

use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, Digest};

use super::job::{Image, Job, State, Target};
use crate::store::Seconds;

/// A job in short. It is kept beside the job, so that a list reads no more than this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// The job's.
    pub id: String,
    /// What is fetched.
    pub image: Image,
    /// `os/architecture[/variant]`; empty: all images of an index.
    pub platforms: Vec<String>,
    /// Where.
    pub cluster: ClusterId,
    /// The cluster's name when the job was made; empty in a job of 0.1.0.
    pub cluster_name: String,
    /// Onto which nodes of it.
    pub target: Target,
    /// How far it is.
    pub state: State,
    /// When it was made.
    pub created: Seconds,
    /// By which API token.
    pub created_by: String,
    /// When the last of its nodes was settled.
    pub ended: Option<Seconds>,
    /// As [`Job::version`].
    pub version: u64,
    /// What the reference led to.
    pub manifest: Option<Digest>,
    /// Bytes of the image.
    pub size: u64,
    /// Bytes of it that all nodes together have.
    pub has: u64,
    /// How many nodes it is for.
    pub nodes: u64,
    /// How many of them have all of it.
    pub done: u64,
    /// How many of them failed.
    pub failed: u64,
}

impl Job {
    /// The job in short.
    pub fn brief(&self) -> Brief {
        let count = |which: fn(&State) -> bool| self.nodes.values().filter(|work| which(&work.state)).count() as u64;
        Brief {
            id: self.id.clone(),
            image: self.image.clone(),
            platforms: self.platforms.clone(),
            cluster: self.cluster.clone(),
            cluster_name: self.cluster_name.clone(),
            target: self.target.clone(),
            state: self.state(),
            created: self.created,
            created_by: self.created_by.clone(),
            ended: self.ended,
            version: self.version,
            manifest: self.manifest,
            size: self.size(),
            has: self.nodes.values().fold(0, |sum, work| sum.saturating_add(self.bytes_of(work))),
            nodes: self.nodes.len() as u64,
            done: count(|state| *state == State::Done),
            failed: count(|state| matches!(state, State::Failed(_))),
        }
    }
}
