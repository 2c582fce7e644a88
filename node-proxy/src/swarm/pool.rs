//! Connections that rest between two blobs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use shoal_proto::NodeId;
use shoal_proto::frame::Hello;

use super::wire::Connection;
use super::{Config, Parent, ParentAddr};

#[derive(Debug)]
struct Resting {
    connection: Connection,
    node: NodeId,
    since: Instant,
}

/// At most `pool_per_parent` connections for each address; none older than `pool_idle`, none with another hello than ours is now.
#[derive(Debug, Default)]
pub(super) struct Pool {
    resting: HashMap<ParentAddr, Vec<Resting>>,
}

impl Pool {
    /// A connection to that node at that address, if one rests.
    pub(super) fn take(&mut self, parent: &Parent, me: &Hello, config: &Config) -> Option<Connection> {
        self.sweep(Some(me), config);
        let resting = self.resting.get_mut(&parent.addr)?;
        while let Some(mut one) = resting.pop() {
            if one.node == parent.node && one.connection.is_fit(config) && one.connection.is_quiet() {
                return Some(one.connection);
            }
        }
        None
    }

    /// Lays a connection to rest, or drops it when enough rest there.
    pub(super) fn give(&mut self, parent: &Parent, connection: Connection, config: &Config) {
        let resting = self.resting.entry(parent.addr).or_default();
        if resting.len() < config.pool_per_parent {
            resting.push(Resting { connection, node: parent.node.clone(), since: Instant::now() });
        }
    }

    /// Drops what rested too long, or was made when this node was of another cluster or epoch.
    pub(super) fn sweep(&mut self, me: Option<&Hello>, config: &Config) {
        self.resting.retain(|_, resting| {
            resting.retain(|one| {
                let said: &Arc<Hello> = &one.connection.said;
                one.since.elapsed() < config.pool_idle && me == Some(&**said)
            });
            !resting.is_empty()
        });
    }

    /// How many connections rest.
    pub(super) fn len(&self) -> usize {
        self.resting.values().map(Vec::len).sum()
    }
}
