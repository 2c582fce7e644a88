//! Content that nobody on this node asked for, brought here because another node of the cluster did.

use tokio::time::{Duration, Instant};

use super::{Engine, ReadError, Want};
use crate::origin::Who;

/// What says nothing for so long is given up: whoever looks for it has gone elsewhere by then.
const PATIENCE: Duration = Duration::from_secs(60);

impl Engine {
    /// Fetches content until it is held. `own`: what an anonymous token can't read is read with this node's own credentials. Who is
    /// given it is asked of the registry then, as for all that is held (I10). Dropping the call lets the flight linger.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn fetch(&self, want: Want, own: bool) -> Result<(), ReadError> {
        let mut heard = Instant::now();
        loop {
            match self.read_all(&want, own, &mut heard).await {
                Err(ReadError::Slow { .. }) if heard.elapsed() < PATIENCE => {}
                ended => return ended,
            }
        }
    }

    async fn read_all(&self, want: &Want, own: bool, heard: &mut Instant) -> Result<(), ReadError> {
        self.refuse_shunned(&want.digest)?;
        if self.0.store.held(&want.digest).is_some() {
            return Ok(());
        }
        self.join(&Want { who: Who::Anybody, ..want.clone() }, None);
        if own {
            self.join(&Want { who: Who::Own, ..want.clone() }, None);
        }
        let opened = self.open(want.clone(), Instant::now()).await?;
        let mut reading = opened.read(0..opened.size());
        while let Some(part) = reading.next_part().await {
            part?;
            *heard = Instant::now();
        }
        Ok(())
    }
}
