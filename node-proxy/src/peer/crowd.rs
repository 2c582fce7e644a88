//! The children of one blob, who are shown it as one crowd.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use shoal_proto::frame::Run;
use shoal_proto::{BlockSet, Digest, Layout};
use tokio::sync::watch;

use super::Peer;
use super::show::{Child, Opening, Show};

/// What the uploads of one blob share. It ends with the last of them.
#[derive(Debug)]
pub(super) struct Crowd {
    layout: Layout,
    show: Mutex<Show>,
    /// Changes when what one child did lets others be shown more.
    changed: watch::Sender<()>,
}

/// One child's place in its crowd, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    child: Child,
    /// It ended as the protocol says. Else what the child got may be gone with it.
    pub(super) closed: bool,
}

impl Peer {
    /// A place among the children of a blob.
    pub(super) fn place(&self, digest: Digest, layout: Layout, opening: Opening) -> Place {
        let mut crowds = self.crowds.lock();
        crowds.retain(|_, crowd| crowd.strong_count() > 0);
        let known = crowds.get(&digest).and_then(Weak::upgrade).filter(|crowd| crowd.layout == layout);
        let crowd = known.unwrap_or_else(|| {
            let show = Mutex::new(Show::new(layout, self.config.have_every));
            let crowd = Arc::new(Crowd { layout, show, changed: watch::Sender::new(()) });
            crowds.insert(digest, Arc::downgrade(&crowd));
            crowd
        });
        drop(crowds);
        let child = crowd.show.lock().join(opening, Instant::now());
        Place { crowd, child, closed: false }
    }
}

impl Place {
    /// What to show the child now, and when to look again although nothing has changed.
    pub(super) fn show(&self, have: &BlockSet, first_hand: Option<&BlockSet>) -> (Vec<Run>, Option<Instant>) {
        let mut show = self.crowd.show.lock();
        let first_hand = first_hand.or_else(|| show.lends_all().then_some(have));
        (show.show(self.child, have, first_hand, Instant::now()), show.due(self.child))
    }

    pub(super) fn wanted(&self, run: Run) {
        self.crowd.show.lock().wanted(self.child, run, Instant::now());
    }

    pub(super) fn gave(&self, run: Run) {
        if self.crowd.show.lock().gave_run(self.child, run, Instant::now()) {
            self.crowd.changed.send_replace(());
        }
    }

    /// How many blocks to send in one go.
    pub(super) fn at_once(&self) -> u32 {
        self.crowd.show.lock().at_once(self.child)
    }

    /// Changes when what another child did lets this one be shown more.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.crowd.changed.subscribe()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.crowd.show.lock().leave(self.child, !self.closed, Instant::now()) {
            self.crowd.changed.send_replace(());
        }
    }
}
