//! A blob of which permits cover runs.

use super::*;
use crate::store::{Held, Notes, Partial, Resumed, StoreError};

/// Ten blocks.
const LEN: usize = 10 * BLOCK;

#[tokio::test]
async fn i6_of_a_run_no_more_is_read_than_it_covers_and_every_byte_once() {
    let lab = Lab::new();
    lab.cluster.run.store(3, Ordering::SeqCst);
    let bytes = content(LEN, 1);
    let digest = lab.publish(&bytes);
    let (read, _) = read(&lab.node("a"), digest).await.unwrap();
    assert_eq!(read, bytes);
    // Its size is not known before the first answer, which is the whole; it is left at the end of the run.
    assert_eq!(lab.reads(), 4);
    let from_registry = lab.registry.bytes.load(Ordering::SeqCst);
    assert!((LEN..LEN + BLOCK).contains(&from_registry), "{from_registry} bytes from the registry");
    assert_eq!(*lab.cluster.take_runs.lock(), [true]);
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_read_to_the_end_by_one_request() {
    let lab = Lab::new();
    lab.cluster.run.store(3, Ordering::SeqCst);
    lab.registry.ignores_ranges.store(true, Ordering::SeqCst);
    let node = lab.node("a");
    let bytes = content(LEN, 1);
    let digest = lab.publish(&bytes);
    let (got, _) = read(&node, digest).await.unwrap();
    assert_eq!(got, bytes);
    // The first run, the second that turns out to bring the first along, and the rest, which does so for the last time.
    assert_eq!(lab.reads(), 3);
    assert_eq!(*lab.cluster.take_runs.lock(), [true, false], "it gave its permit back, and asks for one to the end");
    let other = content(LEN, 2);
    let digest = lab.publish(&other);
    assert_eq!(read(&node, digest).await.unwrap().0, other);
    assert_eq!(lab.reads(), 4, "it is remembered");
    assert_eq!(*lab.cluster.take_runs.lock(), [true, false, false]);
}

/// A partial blob whose writes wait.
struct Late {
    partial: Arc<dyn Partial>,
    go: tokio::sync::Notify,
}

#[async_trait::async_trait]
impl Partial for Late {
    fn resumed(&self) -> Option<&Resumed> {
        self.partial.resumed()
    }

    async fn write(&self, block: u32, bytes: Bytes) -> Result<(), StoreError> {
        self.go.notified().await;
        self.partial.write(block, bytes).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.partial.read_at(offset, len).await
    }

    async fn checkpoint(&self, notes: &Notes) -> Result<(), StoreError> {
        self.partial.checkpoint(notes).await
    }

    async fn retract(&self, blocks: &[u32]) -> Result<(), StoreError> {
        self.partial.retract(blocks).await
    }

    async fn commit(&self, notes: &Notes) -> Result<Arc<dyn Held>, StoreError> {
        self.partial.commit(notes).await
    }

    async fn discard(&self) -> Result<(), StoreError> {
        self.partial.discard().await
    }
}

/// Two read the origin, and the first one's list comes while a block of the second is being written. Without its hash that block would
/// look like a contradiction when the list is sealed, and the pull would break.
#[tokio::test]
async fn i1_a_block_that_is_written_while_another_author_begins_keeps_its_hash() {
    let bytes = content(2 * BLOCK, 1);
    let (digest, layout) = (Digest::from_bytes([1; 32]), Layout::of(bytes.len() as u64).unwrap());
    let partial = Memory::new(0).partial(&digest, layout).await.unwrap();
    let late = Arc::new(Late { partial, go: tokio::sync::Notify::new() });
    let flight = Arc::new(flight::Flight::new(want(digest)));
    flight.begin(layout, "".into(), "me".parse().unwrap(), late.clone());
    let block = bytes.slice(..BLOCK);
    let hash = PieceList::hash(&block);
    flight.change(|body| body.list.set(0, hash).unwrap());
    let put = tokio::spawn({
        let flight = Arc::clone(&flight);
        async move { flight.put(0, block, flight::From::Origin).await }
    });
    tokio::task::yield_now().await;
    // As `take_author` does: of the old list only what is here stays, and that is nothing yet.
    flight.change(|body| (body.list, body.author) = (PieceList::new(layout), "other".parse().unwrap()));
    late.go.notify_one();
    put.await.unwrap().unwrap();
    let (list, has) = flight.body(|body| (body.list.get(0).copied(), body.have.contains(0))).unwrap();
    assert_eq!((list, has), (Some(hash), true));

    // The other author's list says another: the block is not taken.
    flight.change(|body| body.list.set(1, hash).unwrap());
    let put = tokio::spawn({
        let (flight, block) = (Arc::clone(&flight), bytes.slice(BLOCK..));
        async move { flight.put(1, block, flight::From::Peer).await }
    });
    tokio::task::yield_now().await;
    flight.change(|body| {
        body.list = PieceList::new(layout);
        body.list.set(1, [7; 32]).unwrap();
    });
    late.go.notify_one();
    assert!(matches!(put.await.unwrap(), Err(ReadError::Failed(..))));
    assert!(!flight.body(|body| body.have.contains(1)).unwrap());
}

/// A list takes another's place, and says other bytes than those that are here: the next flight must not take them for right.
#[tokio::test]
async fn i1_what_another_list_contradicts_is_not_resumed_from_disk() {
    let (bytes, digest) = (content(3 * BLOCK, 1), Digest::from_bytes([1; 32]));
    let layout = Layout::of(bytes.len() as u64).unwrap();
    let store = Memory::new(0);
    let flight = Arc::new(flight::Flight::new(want(digest)));
    flight.begin(layout, "".into(), "liar".parse().unwrap(), store.partial(&digest, layout).await.unwrap());
    let mut list = PieceList::new(layout);
    for block in 0..3 {
        let block_bytes = bytes.slice(block as usize * BLOCK..(block as usize + 1) * BLOCK);
        list.set(block, PieceList::hash(&block_bytes)).unwrap();
        flight.change(|body| body.list.set(block, PieceList::hash(&block_bytes)).unwrap());
        flight.put(block, block_bytes, flight::From::Peer).await.unwrap();
    }
    let mut other = PieceList::new(layout);
    for block in [0, 2] {
        other.set(block, *list.get(block).unwrap()).unwrap();
    }
    other.set(1, [7; 32]).unwrap();
    let replaced = flight.replace_list(&other, Some("honest".parse().unwrap())).await;
    assert!(matches!(replaced, Ok(true)));
    let (have, author, known) =
        flight.body(|body| (body.have.clone(), body.author.clone(), body.list.get(1).copied())).unwrap();
    assert_eq!((have.runs().len(), have.len(), have.contains(1)), (2, 2, false));
    assert_eq!((author, known), ("honest".parse().unwrap(), Some([7; 32])));
    flight.release();
    let left = store.partial(&digest, layout).await.unwrap();
    assert_eq!(left.resumed().unwrap().have, have);

    // A reader has bytes of the other: then the flight is over.
    flight.begin(layout, "".into(), "liar".parse().unwrap(), left);
    let reader = flight.reader_comes(0);
    flight.reader_moves(reader, BLOCK as u64);
    let mut third = PieceList::new(layout);
    (0..3).for_each(|block| third.set(block, [8; 32]).unwrap());
    assert!(matches!(flight.replace_list(&third, None).await, Err(flight::Contradicted::Read)));
}
