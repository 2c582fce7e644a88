//! Blobs that are read in many small parts stay open: an unpacking client asks for 32 KiB a call (CONTAINERD 30).

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::ReadWriteFlags;
use shoal_proto::Digest;

use crate::store::{self, Held, StoreError};

/// Layers that are unpacked at once, and some.
const KEPT: usize = 16;
/// Longer than an unpacking client thinks between two calls.
const IDLE: Duration = Duration::from_secs(10);

/// Open blobs, the one used last at the end. An open blob stays on disk, so none is kept that nobody reads.
#[derive(Default)]
pub(super) struct Opened(Mutex<VecDeque<Kept>>);

/// A blob, and when it was read last.
type Kept = (Digest, Arc<dyn Held>, Instant);

impl Opened {
    /// `None`: it is not held.
    pub(super) async fn open(
        &self,
        store: &dyn store::Content,
        digest: &Digest,
    ) -> Result<Option<Arc<dyn Held>>, StoreError> {
        if let Some(held) = self.find(digest, Instant::now()) {
            return Ok(Some(held));
        }
        let opened = store.open(digest).await?;
        if let Some(held) = &opened {
            let mut open = self.0.lock();
            if open.len() >= KEPT {
                open.pop_front();
            }
            open.push_back((*digest, Arc::clone(held), Instant::now()));
        }
        Ok(opened)
    }

    fn find(&self, digest: &Digest, now: Instant) -> Option<Arc<dyn Held>> {
        let mut open = self.0.lock();
        let at = open.iter().position(|(there, ..)| there == digest)?;
        let (_, held, _) = open.remove(at)?;
        open.push_back((*digest, Arc::clone(&held), now));
        Some(held)
    }

    pub(super) fn close(&self, digest: &Digest) {
        self.0.lock().retain(|(there, ..)| there != digest);
    }

    /// Closes what nobody has read for a while.
    pub(super) fn close_idle(&self, now: Instant) {
        self.0.lock().retain(|(.., used)| now.duration_since(*used) < IDLE);
    }

    /// Closes idle blobs as long as it is polled.
    pub(super) async fn keep_tidy(&self) {
        loop {
            tokio::time::sleep(IDLE).await;
            self.close_idle(Instant::now());
        }
    }
}

/// Reads a part that lies in the blob. What is in the page cache is read at once: a thread would cost more than the read.
pub(super) async fn read(held: &Arc<dyn Held>, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let Some(file) = held.file() else {
        return Ok(held.read_at(offset, len).await?.to_vec());
    };
    let mut bytes = vec![0; len];
    match rustix::io::preadv2(&*file, &mut [IoSliceMut::new(&mut bytes)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) if read == len => return Ok(bytes),
        _ => {}
    }
    let io = |source| StoreError::Io { action: "read", path: "a held blob".into(), source };
    let reading = tokio::task::spawn_blocking(move || file.read_exact_at(&mut bytes, offset).map(|()| bytes));
    reading.await.map_err(|ended| io(ended.into()))?.map_err(io)
}
