//! What a live node is told to fetch.

use shoal_proto::control::v1::FetchOrder;
use shoal_proto::{ClusterId, NodeId};

use super::{Nodes, Record, SessionId};

/// Whether a node can be given an order of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is not live, or its session broke off: it may come back.
    Away,
    /// It is there.
    Here(SessionId),
    /// It is live and is not to have it.
    Unfit {
        /// Its session, if it is connected.
        session: Option<SessionId>,
        /// Why not, for people.
        why: String,
    },
}

impl Nodes {
    /// How nodes stand to orders of that cluster, in their order, all at one moment. An order does not follow whoever has moved, and a
    /// node of before there were orders would not answer.
    pub fn standing<'a>(&self, cluster: &ClusterId, nodes: impl Iterator<Item = &'a NodeId>) -> Vec<Standing> {
        let inner = self.inner.lock();
        nodes.map(|node| inner.nodes.get(node).map_or(Standing::Away, |record| record.standing(cluster))).collect()
    }

    /// The session of a live node that is connected.
    #[cfg(test)]
    pub fn session_of(&self, node: &NodeId) -> Option<SessionId> {
        let inner = self.inner.lock();
        inner.nodes.get(node).filter(|record| record.connected).map(|record| record.session)
    }

    /// Tells a live node to fetch something. False: it is not there, or has not taken earlier orders yet.
    pub fn order(&self, node: &NodeId, order: FetchOrder) -> bool {
        let inner = self.inner.lock();
        inner.nodes.get(node).is_some_and(|record| record.connected && record.orders.try_send(Box::new(order)).is_ok())
    }
}

impl Record {
    fn standing(&self, cluster: &ClusterId) -> Standing {
        let session = self.connected.then_some(self.session);
        let why = match self.assignment.borrow().cluster.as_ref() {
            Some((now, _)) if now != cluster => "it is in another cluster now".to_owned(),
            None => "it is in no cluster now".to_owned(),
            Some(_) if !self.who.takes_orders => format!(
                "its shoal-node, version {}, is an older one that takes no orders: upgrade it, then retry",
                self.who.version
            ),
            Some(_) => return session.map_or(Standing::Away, Standing::Here),
        };
        Standing::Unfit { session, why }
    }
}
