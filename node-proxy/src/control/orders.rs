//! What control orders this node to fetch, and how far that is.

use std::collections::{BTreeSet, HashMap, VecDeque};

use parking_lot::Mutex;
use shoal_proto::control::v1 as wire;
use shoal_proto::{Digest, Kind};
use tokio::sync::{Notify, mpsc};
use wire::order_progress::State;
use wire::session_request::Message as Say;

use super::session::send;
use super::{Client, Outbox};

/// Orders that wait to be looked at. More are said again by control.
const WAITING: usize = 64;
/// Orders that control is told of after a reconnect; the oldest are forgotten.
const REMEMBERED: usize = 256;

/// What control wants.
#[derive(Debug)]
pub enum Order {
    /// All of an image is to be held.
    Image(ImageOrder),
    /// One blob or manifest that somebody of the cluster looks for is to be held.
    Blob(BlobOrder),
    /// What was ordered under this id is not wanted any more.
    Cancel(String),
}

/// An image, as control names it: nothing of it is checked yet.
#[derive(Clone)]
pub struct ImageOrder {
    /// The order's.
    pub id: String,
    /// As `ns=` names it.
    pub registry: String,
    /// Its path.
    pub repository: String,
    /// A tag or a digest.
    pub reference: String,
    /// `os/architecture[/variant]`; empty for all images of an index.
    pub platforms: Vec<String>,
    /// User and password for the registry.
    pub login: Option<(String, String)>,
}

impl std::fmt::Debug for ImageOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageOrder({} of {}/{}:{})", self.id, self.registry, self.repository, self.reference)
    }
}

/// A blob or manifest, as control names it: where it is, is not checked yet.
#[derive(Debug, Clone)]
pub struct BlobOrder {
    /// The order's.
    pub id: String,
    /// The content.
    pub digest: Digest,
    /// Which of the two.
    pub kind: Kind,
    /// As `ns=` names it.
    pub registry: String,
    /// Its path.
    pub repository: String,
}

/// How far an order is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Running,
    /// All of it is held.
    Done,
    /// Why not.
    Failed(String),
    /// Why not, and that any other node would hear the same of the registry.
    Refused(String),
    /// It was taken back.
    Cancelled,
}

/// What control is told of an order.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The order's.
    pub id: String,
    /// How far it is.
    pub outcome: Outcome,
    /// What the reference led to.
    pub manifest: Option<Digest>,
    /// Digest, size and bytes that came, of each blob.
    pub blobs: Vec<(Digest, u64, u64)>,
}

impl Progress {
    fn failed(id: String, why: &str) -> Self {
        Self { id, outcome: Outcome::Failed(why.into()), manifest: None, blobs: Vec::new() }
    }

    fn into_wire(self) -> wire::OrderProgress {
        let refused = matches!(self.outcome, Outcome::Refused(_));
        let (state, detail) = match self.outcome {
            Outcome::Running => (State::Running, String::new()),
            Outcome::Done => (State::Done, String::new()),
            Outcome::Failed(why) | Outcome::Refused(why) => (State::Failed, why),
            Outcome::Cancelled => (State::Cancelled, String::new()),
        };
        let blob = |(digest, size, bytes): (Digest, u64, u64)| wire::BlobProgress {
            digest: digest.as_bytes().to_vec(),
            size,
            bytes,
        };
        wire::OrderProgress {
            order_id: self.id,
            state: state.into(),
            detail,
            manifest: self.manifest.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default(),
            blobs: self.blobs.into_iter().map(blob).collect(),
            refused,
        }
    }
}

/// Between the session and whoever carries orders out.
pub(super) struct Orders {
    given: mpsc::Sender<Order>,
    taken: Mutex<Option<mpsc::Receiver<Order>>>,
    told: Mutex<Told>,
    news: Notify,
}

#[derive(Default)]
struct Told {
    latest: HashMap<String, wire::OrderProgress>,
    oldest_first: VecDeque<String>,
    unsaid: BTreeSet<String>,
    /// Of what is not remembered.
    once: Vec<wire::OrderProgress>,
}

impl Default for Orders {
    fn default() -> Self {
        let (given, taken) = mpsc::channel(WAITING);
        Self { given, taken: Mutex::new(Some(taken)), told: Mutex::default(), news: Notify::new() }
    }
}

impl Orders {
    /// Hands on what came. What there is no room for is dropped: control says it again.
    pub(super) fn heard(&self, order: wire::FetchOrder) {
        let kind = order.kind();
        let wire::FetchOrder { order_id: id, registry, repository, .. } = order;
        let order = match order.image {
            _ if order.cancelled => Order::Cancel(id),
            Some(image) => {
                let wire::OrderedImage { reference, platforms, user, password } = image;
                let login = (!user.is_empty()).then_some((user, password));
                Order::Image(ImageOrder { id, registry, repository, reference, platforms, login })
            }
            None => {
                let kind = match kind {
                    wire::Kind::Blob => Some(Kind::Blob),
                    wire::Kind::Manifest => Some(Kind::Manifest),
                    wire::Kind::Unspecified => None,
                };
                let Some((digest, kind)) = Digest::try_from(order.digest.as_slice()).ok().zip(kind) else {
                    return self.tell(Progress::failed(id, "this version knows no such order"));
                };
                Order::Blob(BlobOrder { id, digest, kind, registry, repository })
            }
        };
        tracing::debug!(?order, "control orders");
        match self.given.try_send(order) {
            Ok(()) => {}
            // Said once: control goes elsewhere.
            Err(mpsc::error::TrySendError::Full(Order::Blob(order))) => {
                self.tell_once(Progress::failed(order.id, "too many orders at once"));
            }
            Err(_) => tracing::debug!("an order waits until control says it again"),
        }
    }

    /// What control hears now or never: it waits for it no longer than a session lives.
    fn tell_once(&self, progress: Progress) {
        let mut told = self.told.lock();
        if told.once.len() < REMEMBERED {
            told.once.push(progress.into_wire());
        }
        drop(told);
        self.news.notify_one();
    }

    fn tell(&self, progress: Progress) {
        let mut told = self.told.lock();
        let id = progress.id.clone();
        if told.latest.insert(id.clone(), progress.into_wire()).is_none() {
            told.oldest_first.push_back(id.clone());
            if told.oldest_first.len() > REMEMBERED
                && let Some(oldest) = told.oldest_first.pop_front()
            {
                told.latest.remove(&oldest);
                told.unsaid.remove(&oldest);
            }
        }
        told.unsaid.insert(id);
        drop(told);
        self.news.notify_one();
    }

    /// Ready when there is something that control was not told.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    fn take(&self, everything: bool) -> Vec<wire::OrderProgress> {
        let mut told = self.told.lock();
        let unsaid = std::mem::take(&mut told.unsaid);
        let ids: Vec<&String> = if everything { told.oldest_first.iter().collect() } else { unsaid.iter().collect() };
        let mut all: Vec<_> = ids.into_iter().filter_map(|id| told.latest.get(id).cloned()).collect();
        let once = std::mem::take(&mut told.once);
        if !everything {
            all.extend(once);
        }
        all
    }
}

impl Client {
    /// What control orders, for the one who carries it out; `None`: somebody has it.
    pub fn orders(&self) -> Option<mpsc::Receiver<Order>> {
        self.orders.taken.lock().take()
    }

    /// Control is told this of an order, now or when there is a session again. Does not wait.
    pub fn tell_order(&self, progress: Progress) {
        self.orders.tell(progress);
    }

    /// Control is told this of an order of a blob, in this session or not at all. Does not wait.
    pub fn tell_blob_order(&self, id: &str, outcome: Outcome) {
        self.orders.tell_once(Progress { id: id.to_owned(), outcome, manifest: None, blobs: Vec::new() });
    }

    pub(super) async fn tell_orders(
        &self,
        out: &Outbox<wire::SessionRequest>,
        everything: bool,
    ) -> Result<(), tonic::Status> {
        for progress in self.orders.take(everything) {
            send(out, Say::Order(progress)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(id: &str, outcome: Outcome) -> Progress {
        Progress { id: id.into(), outcome, manifest: None, blobs: Vec::new() }
    }

    #[tokio::test]
    async fn the_latest_word_alone_is_told_and_all_of_them_to_a_new_session() {
        let orders = Orders::default();
        orders.tell(progress("a", Outcome::Running));
        orders.tell(progress("b", Outcome::Refused("no".into())));
        orders.tell(progress("a", Outcome::Done));
        orders.news().await;
        let told = orders.take(false);
        assert_eq!(told.iter().map(|one| one.order_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(told[0].state(), State::Done);
        assert_eq!((told[1].state(), told[1].detail.as_str(), told[1].refused), (State::Failed, "no", true));
        assert!(!told[0].refused);
        assert!(orders.take(false).is_empty());
        assert_eq!(orders.take(true).len(), 2);
        for number in 0..2 * REMEMBERED {
            orders.tell(progress(&number.to_string(), Outcome::Done));
        }
        assert_eq!(orders.take(true).len(), REMEMBERED);
    }

    #[test]
    fn orders_come_as_they_were_said_and_no_password_is_shown() {
        let orders = Orders::default();
        let mut taken = orders.taken.lock().take().unwrap();
        let image = wire::OrderedImage {
            reference: "1".into(),
            platforms: vec!["linux/amd64".into()],
            user: "u".into(),
            password: "secret".into(),
        };
        let order = wire::FetchOrder {
            order_id: "x".into(),
            registry: "r.test".into(),
            repository: "a/b".into(),
            image: Some(image),
            ..wire::FetchOrder::default()
        };
        orders.heard(order.clone());
        orders.heard(wire::FetchOrder { cancelled: true, ..order });
        let came = taken.try_recv().unwrap();
        assert!(!format!("{came:?}").contains("secret"));
        assert!(matches!(came, Order::Image(image) if image.login == Some(("u".into(), "secret".into()))));
        assert!(matches!(taken.try_recv().unwrap(), Order::Cancel(id) if id == "x"));
        let blob = wire::FetchOrder { order_id: "y".into(), digest: vec![1; 32], ..wire::FetchOrder::default() };
        orders.heard(wire::FetchOrder { kind: wire::Kind::Manifest.into(), ..blob.clone() });
        assert!(matches!(taken.try_recv().unwrap(), Order::Blob(BlobOrder { kind: Kind::Manifest, .. })));
        // A kind of order that a later control may know.
        orders.heard(blob.clone());
        assert_eq!(orders.take(false)[0].state(), State::Failed);
        // More than anybody takes: the last is refused, and that is not remembered.
        for _ in 0..=WAITING {
            orders.heard(wire::FetchOrder { kind: wire::Kind::Blob.into(), order_id: "z".into(), ..blob.clone() });
        }
        let told = orders.take(false);
        assert_eq!((told.len(), told[0].order_id.as_str(), told[0].state()), (1, "z", State::Failed));
        assert!(orders.take(true).iter().all(|one| one.order_id == "y"));
    }
}
