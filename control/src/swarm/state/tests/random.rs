//! What holds after any sequence of events.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Join {
        node: u8,
        cluster: u8,
        restarted: bool,
        seed: bool,
    },
    Move {
        node: u8,
        cluster: u8,
    },
    Leave {
        node: u8,
    },
    Announce {
        node: u8,
        digest: u8,
        root: u8,
        held: bool,
    },
    Reset {
        node: u8,
    },
    Find {
        node: u8,
        digest: u8,
        may_read: bool,
        blocks: u32,
        old_permit: bool,
    },
    End {
        finder: usize,
        clean: bool,
    },
    Headers {
        finder: usize,
        blocks: u64,
    },
    Hashes {
        finder: usize,
        first: u32,
        hash: u8,
    },
    Failed {
        finder: usize,
        why: Trouble,
    },
    Progress {
        finder: usize,
        blocks: u32,
    },
    Done {
        finder: usize,
        root: u8,
    },
    Lied {
        finder: usize,
        node: u8,
    },
    Lost {
        finder: usize,
        node: u8,
    },
    Mismatch {
        finder: usize,
        node: u8,
    },
    /// What a seed says of one of its orders, and whether it comes.
    Reply {
        order: usize,
        reply: Reply,
        comes: bool,
    },
    Wait {
        millis: u64,
    },
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        Just(Trouble::Unreachable),
        Just(Trouble::NotFound),
        Just(Trouble::Denied),
        Just(Trouble::Abandoned),
        (0u64..4000).prop_map(|millis| Trouble::Busy(ms(millis))),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![3 => Just(Reply::Begins), 1 => Just(Reply::Holds), 1 => Just(Reply::Refuses), 1 => Just(Reply::Untold)]
}

fn step() -> impl Strategy<Value = Step> {
    let (node, digest, finder) = (0u8..5, 0u8..2, 0usize..8);
    prop_oneof![
        2 => (node.clone(), 0u8..3, any::<bool>(), any::<bool>())
            .prop_map(|(node, cluster, restarted, seed)| Step::Join { node, cluster, restarted, seed }),
        1 => (node.clone(), 0u8..3).prop_map(|(node, cluster)| Step::Move { node, cluster }),
        1 => node.clone().prop_map(|node| Step::Leave { node }),
        2 => (node.clone(), digest.clone(), 0u8..2, any::<bool>())
            .prop_map(|(node, digest, root, held)| Step::Announce { node, digest, root, held }),
        1 => node.clone().prop_map(|node| Step::Reset { node }),
        6 => (node.clone(), digest, any::<bool>(), 0u32..3, any::<bool>()).prop_map(
            |(node, digest, may_read, blocks, old_permit)| Step::Find { node, digest, may_read, blocks, old_permit }
        ),
        2 => (finder.clone(), any::<bool>()).prop_map(|(finder, clean)| Step::End { finder, clean }),
        3 => (finder.clone(), 3u64..5).prop_map(|(finder, blocks)| Step::Headers { finder, blocks }),
        3 => (finder.clone(), 0u32..5, 0u8..2).prop_map(|(finder, first, hash)| Step::Hashes { finder, first, hash }),
        2 => (finder.clone(), trouble()).prop_map(|(finder, why)| Step::Failed { finder, why }),
        2 => (finder.clone(), 0u32..5).prop_map(|(finder, blocks)| Step::Progress { finder, blocks }),
        1 => (finder.clone(), 0u8..2).prop_map(|(finder, root)| Step::Done { finder, root }),
        1 => (finder.clone(), node.clone()).prop_map(|(finder, node)| Step::Lied { finder, node }),
        2 => (finder.clone(), node.clone()).prop_map(|(finder, node)| Step::Lost { finder, node }),
        1 => (finder.clone(), node).prop_map(|(finder, node)| Step::Mismatch { finder, node }),
        3 => (finder.clone(), reply(), any::<bool>()).prop_map(|(order, reply, comes)| Step::Reply { order, reply, comes }),
        2 => (1u64..600).prop_map(|millis| Step::Wait { millis }),
        4 => (1u64..25_000).prop_map(|millis| Step::Wait { millis }),
    ]
}

/// One open stream as its node sees it.
#[derive(Debug, Clone)]
struct Stream {
    id: FinderId,
    node: NodeId,
    cluster: ClusterId,
    digest: Digest,
    permit: Option<u64>,
    parents: Vec<ParentSaid>,
    waits: bool,
    done: bool,
    liars: Vec<NodeId>,
}

/// The world as the nodes see it: only what they did and what they were told.
#[derive(Default)]
struct World {
    bench: Bench,
    home: HashMap<NodeId, Option<ClusterId>>,
    streams: Vec<Stream>,
    /// The permit that a node last read under.
    old: HashMap<(NodeId, Digest), u64>,
}

fn name(number: u8) -> String {
    format!("n{number}")
}

fn place(number: u8) -> Option<ClusterId> {
    (number > 0).then(|| cluster(&format!("c{number}")))
}

impl World {
    fn pick(&self, finder: usize) -> Option<Stream> {
        (!self.streams.is_empty()).then(|| self.streams[finder % self.streams.len()].clone())
    }

    fn tell(&mut self, finder: FinderId, tell: Tell) {
        self.bench.tell(finder, tell);
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Join { node: number, cluster, restarted, seed } => {
                let (node, cluster) = (node(&name(number)), place(cluster));
                self.home.insert(node.clone(), cluster.clone());
                let addr = ([10, 0, 0, number], 5081).into();
                let member = Member { node, cluster, addr, location: Vec::new(), seed, orders: number != 4 };
                self.bench.apply(Event::Registered { member, restarted });
            }
            Step::Move { node: number, cluster } => {
                let (node, cluster) = (node(&name(number)), place(cluster));
                if let Some(home) = self.home.get_mut(&node) {
                    home.clone_from(&cluster);
                }
                self.bench.apply(Event::Moved { node, cluster });
            }
            Step::Leave { node: number } => {
                self.home.remove(&node(&name(number)));
                self.bench.apply(Event::Left { node: node(&name(number)) });
            }
            Step::Announce { node, digest: number, root, held: true } => self.bench.hold(&name(node), number, root),
            Step::Announce { node, digest: number, held: false, .. } => {
                let what = Announced { dropped: vec![digest(number)], ..Announced::default() };
                self.bench.announce(&name(node), what);
            }
            Step::Reset { node } => {
                let what = Announced { reset: true, complete: true, ..Announced::default() };
                self.bench.announce(&name(node), what);
            }
            Step::Reply { order, reply, comes } => {
                let given = self.bench.orders.iter().filter(|(_, _, back)| !back).cloned();
                let Some((seed, Order { number, digest, .. }, _)) = given.rev().nth(order) else { return };
                self.bench.apply(Event::Answered { seed: seed.clone(), number, digest, answer: reply });
                if comes {
                    let (node, digest) = (seed.as_str()[1..].parse().unwrap(), digest.as_bytes()[0]);
                    return self.act(Step::Find { node, digest, may_read: true, blocks: 0, old_permit: false });
                }
            }
            Step::Find { node: number, digest: wanted, may_read, blocks, old_permit } => {
                let (node, digest) = (node(&name(number)), digest(wanted));
                let old = self.old.get(&(node.clone(), digest)).copied().filter(|_| old_permit);
                let permit = whole(old.unwrap_or(0));
                let ask = Ask { may_read_origin: may_read, blocks, permit, ..want(wanted) };
                // One flight per node and digest: an older stream of it is not listened to any more.
                self.streams.retain(|stream| stream.node != node || stream.digest != digest);
                let id = self.bench.ask(node.as_str(), ask);
                if let Some(Some(cluster)) = self.home.get(&node).cloned() {
                    let (parents, liars) = (Vec::new(), Vec::new());
                    let (permit, waits, done) = (None, false, false);
                    self.streams.push(Stream { id, node, cluster, digest, permit, parents, waits, done, liars });
                } else {
                    assert!(matches!(self.bench.take(id)[..], [Say::Stop(Stop::Alone | Stop::NoSession)]));
                }
            }
            Step::Wait { millis } => self.bench.wait(ms(millis)),
            step => self.talk(step),
        }
        self.hear();
    }

    /// What is said on a stream.
    fn talk(&mut self, step: Step) {
        let finder = match &step {
            Step::End { finder, .. }
            | Step::Headers { finder, .. }
            | Step::Hashes { finder, .. }
            | Step::Failed { finder, .. }
            | Step::Progress { finder, .. }
            | Step::Done { finder, .. }
            | Step::Lied { finder, .. }
            | Step::Lost { finder, .. }
            | Step::Mismatch { finder, .. } => *finder,
            _ => return,
        };
        let Some(stream) = self.pick(finder) else { return };
        let (id, permit) = (stream.id, stream.permit.unwrap_or(0));
        let mine = self.streams.iter_mut().find(|stream| stream.id == id).unwrap();
        match step {
            Step::End { clean, .. } => {
                self.streams.retain(|stream| stream.id != id);
                self.bench.apply(Event::Ended { finder: id, clean });
            }
            Step::Headers { blocks, .. } => {
                self.tell(
                    id,
                    Tell::Headers {
                        permit,
                        size: blocks * BLOCK,
                        media_type: String::new(),
                        signature: Signature::new(),
                    },
                );
            }
            Step::Hashes { first, hash, .. } => self.bench.hashes(id, first, &[hash]),
            Step::Failed { why, .. } => {
                mine.permit = None;
                self.bench.failed(id, permit, why);
            }
            Step::Progress { blocks, .. } => {
                self.tell(id, Tell::Progress { blocks, origin_bytes: u64::from(blocks) * BLOCK, fed: Vec::new() });
            }
            Step::Done { root, .. } => {
                (mine.done, mine.permit) = (true, None);
                self.tell(id, Tell::Done(meta(root), Signature::new()));
            }
            Step::Lied { node: liar, .. } => {
                mine.liars.push(node(&name(liar)));
                self.tell(id, Tell::Lied { node: node(&name(liar)), block: 0 });
            }
            Step::Lost { node: parent, .. } => self.tell(id, Tell::Lost { node: node(&name(parent)) }),
            Step::Mismatch { node: author, .. } => self.tell(id, Tell::Mismatch { author: node(&name(author)) }),
            _ => {}
        }
    }

    /// Takes what was said, and holds the words themselves against the rules.
    fn hear(&mut self) {
        let home = &self.home;
        let mut said = std::mem::take(&mut self.bench.said);
        self.streams.retain_mut(|stream| {
            for say in said.remove(&stream.id).unwrap_or_default() {
                assert!(
                    !stream.done || say.is_last() || say == Say::Stop(Stop::Revoked),
                    "{say:?} to one that is done"
                );
                match say {
                    Say::Parents(parents) => {
                        assert!(parents.len() <= 16);
                        for parent in &parents {
                            assert_ne!(parent.node, stream.node);
                            assert!(!stream.liars.contains(&parent.node), "a liar is named");
                            let theirs = home.get(&parent.node);
                            assert_eq!(theirs, Some(&Some(stream.cluster.clone())), "another cluster is named");
                        }
                        stream.parents = parents;
                    }
                    Say::Permit(grant) => {
                        stream.permit = Some(grant.id);
                        self.old.insert((stream.node.clone(), stream.digest), grant.id);
                    }
                    Say::Waiting(_) => stream.waits = true,
                    Say::Stop(Stop::Revoked) => stream.permit = None,
                    Say::Stop(_) => return false,
                    Say::Author { .. } | Say::Head { .. } | Say::Hashes { .. } | Say::Sealed { .. } => {}
                }
            }
            true
        });
    }

    fn check(&self) {
        let state = &self.bench.state;
        let mut readers: HashMap<(&ClusterId, &Digest), u32> = HashMap::new();
        for stream in &self.streams {
            *readers.entry((&stream.cluster, &stream.digest)).or_default() += u32::from(stream.permit.is_some());
            let known = stream.done || stream.waits || stream.permit.is_some() || !stream.parents.is_empty();
            assert!(known, "{stream:?} was told nothing");
            assert!(state.finders.contains_key(&stream.id), "{stream:?} is forgotten");
        }
        assert!(readers.values().all(|readers| *readers <= 1), "two read one blob: {:?}", self.streams);
        let finders: usize = state.blobs.values().map(|blob| blob.finders.len()).sum();
        assert_eq!(finders, state.finders.len());
        assert_eq!(state.nodes.values().map(|node| node.finders.len()).sum::<usize>(), finders);
        assert_eq!(state.blobs.values().map(|blob| blob.permits.len()).sum::<usize>(), state.counts().permits);
        assert_eq!(state.nodes.values().map(|node| node.held.len()).sum::<usize>(), state.counts().holdings);
        for ((cluster, digest), blob) in &state.blobs {
            assert!(!blob.is_over());
            state.look(&(cluster.clone(), *digest), self.bench.now, |blob, around| blob.check(around));
            for holder in &blob.whole {
                assert_eq!(state.nodes[holder].cluster.as_ref(), Some(cluster));
                assert!(state.nodes[holder].held.contains(digest));
            }
        }
        for (key, rest) in &state.rest {
            assert!(!state.blobs.contains_key(key) && !rest.holders().is_empty() && rest.holders().is_sorted());
            for holder in rest.holders() {
                assert_eq!(state.nodes[holder].cluster.as_ref(), Some(&key.0));
                assert!(state.nodes[holder].held.contains(&key.1));
            }
        }
        self.check_orders();
        let timers: usize = state.timers.values().map(BTreeSet::len).sum();
        assert_eq!(timers, state.blobs.values().filter(|blob| blob.wake.is_some()).count());
    }

    /// Only live seeds of the very cluster that take orders are asked; what a blob notes of it, and what is noted of seeds, are the same.
    fn check_orders(&self) {
        let state = &self.bench.state;
        let mut awaited = BTreeSet::new();
        for (key, blob) in &state.blobs {
            let Some(seed) = blob.awaited() else { continue };
            assert!(self.bench.now >= STARTING, "I4");
            assert_eq!(self.home.get(seed), Some(&Some(key.0.clone())), "a seed of another cluster (I3)");
            assert!(state.nodes[seed].seed && state.nodes[seed].orders);
            awaited.insert((seed.clone(), key.clone()));
        }
        assert_eq!(state.seeds.asked(), awaited);
        let seeds = state.nodes.values().filter(|node| node.seed && node.orders && node.cluster.is_some()).count();
        assert_eq!(state.counts().seeds, seeds);
    }

    /// Nobody says anything any more: a permit must not stay with a node whose stream is gone, nor be out with nobody
    /// while somebody would read.
    fn check_rest(&mut self) {
        self.bench.wait(ms(200_000));
        self.hear();
        self.check();
        for blob in self.bench.state.blobs.values() {
            for permit in &blob.permits {
                assert!(permit.finder.is_some_and(|finder| blob.finders.contains_key(&finder)), "{blob:?}");
            }
            if !blob.permits.is_empty() {
                continue;
            }
            let stuck = |finder: &&Finder| {
                let whole = blob.whole.iter().any(|holder| *holder != finder.node && !finder.liars.contains(holder));
                finder.may_read && !finder.denied && !finder.done && !whole
            };
            assert_eq!(blob.finders.values().filter(stuck).count(), 0, "{blob:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn one_reader_no_finder_in_the_dark_no_stranger_named_and_no_permit_stuck(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut world = World::default();
        for number in 0..4 {
            let seed = number == 0 || number == 3;
            world.act(Step::Join { node: number, cluster: 1 + number / 3, restarted: false, seed });
        }
        for step in steps {
            world.act(step);
            world.check();
        }
        world.check_rest();
    }

    #[test]
    fn the_same_events_have_the_same_effects(steps in proptest::collection::vec(step(), 1..40)) {
        let run = || {
            let mut world = World::default();
            for step in steps.clone() {
                world.act(step);
            }
            (format!("{:?}", world.streams), world.bench.notices)
        };
        prop_assert_eq!(run(), run());
    }
}
