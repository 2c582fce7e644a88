//! What the cluster holds, for somebody who knows a digest and no registry.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::Digest;
use tokio::time::{Instant, timeout};

use super::flight::Flight;
use super::{Engine, Kind, Opened, ReadError};
use crate::swarm::{Ask, FindError, News, Sighting};

/// Control names holders within this, or there are none.
const NAMES_WITHIN: Duration = Duration::from_millis(500);
/// With control away, peers that it named before say within this whether they hold a blob.
const KNOWN_SAY_WITHIN: Duration = Duration::from_secs(2);

impl Engine {
    /// Opens content that this node or a peer of its cluster holds; the registry is not asked, neither for bytes nor for leave.
    /// Whoever calls answers for the reader (I10).
    ///
    /// # Errors
    /// [`ReadError::NotFound`] within a second, or two with control away, when nobody holds it; [`ReadError`].
    pub async fn open_in_cluster(&self, digest: Digest) -> Result<Opened, ReadError> {
        self.refuse_shunned(&digest)?;
        let since = Instant::now();
        for _ in 0..2 {
            if let Some(held) = self.open_held(&digest).await? {
                return Ok(Opened::held(digest, held, Arc::clone(&self.0), since));
            }
            let flying = self.0.flights.lock().get(&digest).filter(|flight| !flight.is_over()).cloned();
            let flight = match flying {
                Some(flight) => flight,
                None if self.is_somewhere(digest).await => self.join_in_cluster(digest),
                None => return Err(ReadError::NotFound(digest)),
            };
            match Opened::flight(Arc::clone(&self.0), flight, since).await {
                Some(opened) => return opened,
                None => continue,
            }
        }
        Err(ReadError::Failed(digest, "its flight ended while it was joined".into()))
    }

    fn join_in_cluster(&self, digest: Digest) -> Arc<Flight> {
        let mut flights = self.0.flights.lock();
        match flights.get(&digest).filter(|flight| !flight.is_over()) {
            Some(flight) => Arc::clone(flight),
            None => self.0.start(&mut flights, Flight::in_cluster(digest, Kind::Blob)),
        }
    }

    /// Whether a peer holds it, as control says; with control away, as the peers say that it named before.
    async fn is_somewhere(&self, digest: Digest) -> bool {
        let ask = Ask {
            digest,
            size: None,
            registry: String::new(),
            repository: String::new(),
            kind: Kind::Blob,
            may_read_origin: false,
            blocks_held: 0,
            permit: None,
            takes_runs: false,
        };
        match self.0.source.find(ask).await {
            Ok(mut finding) => {
                let named = async {
                    while let Some(news) = finding.news.recv().await {
                        match news {
                            News::Parents(parents) if parents.is_empty() => {}
                            News::Parents(_) => return true,
                            News::NotFound | News::Alone => return false,
                            _ => {}
                        }
                    }
                    false
                };
                timeout(NAMES_WITHIN, named).await.unwrap_or(false)
            }
            Err(FindError::Alone(_)) => false,
            Err(FindError::Unreachable(_)) => {
                let mut known = self.0.source.known();
                known.retain(|parent| !self.0.liars.is_parent(&parent.node, self.0.config.shun));
                let sighting = timeout(KNOWN_SAY_WITHIN, self.0.peers.locate(digest, known)).await;
                matches!(sighting, Ok(Sighting::Whole(_)))
            }
        }
    }
}
