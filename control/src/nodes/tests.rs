use crate::clusters::Cluster;

use super::*;

#[derive(Default)]
struct Seen(Mutex<Vec<Change>>);

impl Watcher for Seen {
    fn changed(&self, change: Change) {
        self.0.lock().push(change);
    }
}

impl Seen {
    fn take(&self) -> Vec<Change> {
        std::mem::take(&mut self.0.lock())
    }
}

fn cluster(id: &str, seq: u64, default: bool, idc: &str) -> Cluster {
    let (location, cidrs) = (String::new(), Vec::new());
    Cluster {
        id: id.parse().unwrap(),
        seq,
        version: 1,
        name: id.to_uppercase(),
        default,
        idc: idc.into(),
        location,
        cidrs,
    }
}

fn set(idc: &str) -> Arc<ClusterSet> {
    Arc::new(ClusterSet::new(1, vec![cluster("a", 0, true, ""), cluster("b", 1, false, idc)]).unwrap())
}

fn who(node: &str, instance: u64, idc: &str) -> Registration {
    Registration {
        node: node.parse().unwrap(),
        instance,
        name: format!("host-{node}"),
        version: "0.1.0".into(),
        facts: Facts::parse("10.0.0.7", idc, "").unwrap(),
        peer_port: 5081,
        pin: None,
        bound: None,
        role: Role::Node,
        takes_orders: true,
    }
}

struct Bench {
    nodes: Arc<Nodes>,
    seen: Arc<Seen>,
    clusters: watch::Sender<Arc<ClusterSet>>,
    _trigger: shoal_base::drain::Trigger,
}

fn bench() -> Bench {
    let (clusters, receiver) = watch::channel(set("west"));
    let seen = Arc::new(Seen::default());
    let watcher: Arc<dyn Watcher> = seen.clone();
    let nodes = Arc::new(Nodes::new(Config::default(), receiver, watcher, Metrics::default()));
    let (trigger, drain) = shoal_base::drain::channel();
    tokio::spawn(nodes.clone().run(drain));
    Bench { nodes, seen, clusters, _trigger: trigger }
}

fn home(joined: &Joined) -> String {
    joined.assignment.borrow().cluster.as_ref().map_or(String::new(), |(id, _)| id.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_gone_when_its_lease_ends_and_heartbeats_renew_it() {
    let bench = bench();
    let joined = bench.nodes.register(who("n", 1, ""));
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(bench.nodes.heartbeat_of(&joined.session, Load::default()));
    }
    bench.seen.take();
    // A broken stream does not end the lease, silence does.
    bench.nodes.disconnected(&joined.session, false);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.nodes.list().len(), 1);
    assert!(!bench.nodes.list()[0].connected);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.nodes.list().len(), 0);
    assert_eq!(bench.seen.take(), [Change::Left { node: "n".parse().unwrap() }]);
    assert!(joined.over.is_cancelled());
    assert!(!bench.nodes.heartbeat_of(&joined.session, Load::default()));
    assert_eq!(bench.nodes.node_of(&joined.session), None);
}

#[tokio::test(start_paused = true)]
async fn traffic_is_what_came_since_a_node_was_heard_of_and_nothing_twice() {
    let bench = bench();
    let says = |joined: &Joined, origin: u64| {
        let load = Load { bytes_from_origin: origin, bytes_local: origin / 2, ..Load::default() };
        assert!(bench.nodes.heartbeat_of(&joined.session, load));
    };
    let sum = || bench.nodes.traffic(STEPS, |_| true).iter().map(|bytes| bytes.origin + bytes.local).sum::<u64>();
    // What it fetched before control knew it is not of this hour.
    let first = bench.nodes.register(who("n", 1, ""));
    says(&first, 1000);
    assert_eq!(sum(), 0);
    says(&first, 1100);
    assert_eq!(sum(), 150);
    // A session that breaks, of the same process; then of another.
    let second = bench.nodes.register(who("n", 1, ""));
    says(&second, 1200);
    assert_eq!(sum(), 300);
    let third = bench.nodes.register(who("n", 2, ""));
    says(&third, 40);
    assert_eq!(sum(), 360);
    // In the cluster that it is in.
    let of = |name: &str| bench.nodes.traffic(1, |of| of == Some(&name.parse().unwrap()))[0].origin;
    assert_eq!((of("a"), of("b")), (240, 0));
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        says(&third, 40);
    }
    let fourth = bench.nodes.register(who("n", 2, ""));
    says(&fourth, 41);
    assert_eq!(bench.nodes.traffic(2, |_| true).iter().map(|bytes| bytes.origin).collect::<Vec<_>>(), [240, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_second_session_takes_the_place_of_the_first() {
    let bench = bench();
    let first = bench.nodes.register(who("n", 1, ""));
    let second = bench.nodes.register(who("n", 2, ""));
    assert!(first.over.is_cancelled() && !second.over.is_cancelled());
    assert_ne!(first.session, second.session);
    assert_eq!(bench.nodes.node_of(&first.session), None);
    assert_eq!(bench.nodes.node_of(&second.session), Some("n".parse().unwrap()));
    // The first stream's end does not end the second session.
    bench.nodes.disconnected(&first.session, true);
    assert_eq!(bench.nodes.list().len(), 1);
    let restarts: Vec<bool> = bench
        .seen
        .take()
        .into_iter()
        .filter_map(|change| if let Change::Registered { restarted, .. } = change { Some(restarted) } else { None })
        .collect();
    assert_eq!(restarts, [false, true]);
    assert_eq!(first.assignment.borrow().epoch, second.assignment.borrow().epoch);
    bench.nodes.disconnected(&second.session, true);
    assert_eq!(bench.nodes.list().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_changed_scope_moves_live_nodes_at_once_and_only_those_that_it_concerns() {
    let bench = bench();
    let mut moves = bench.nodes.register(who("moves", 1, "north"));
    let stays = bench.nodes.register(who("stays", 1, ""));
    assert_eq!((home(&moves), home(&stays)), ("a".into(), "a".into()));
    let epoch = moves.assignment.borrow_and_update().epoch;
    bench.seen.take();
    bench.clusters.send_replace(set("west|north"));
    tokio::time::timeout(Duration::from_millis(100), moves.assignment.changed()).await.unwrap().unwrap();
    assert_eq!(home(&moves), "b");
    assert_eq!(moves.assignment.borrow().epoch, epoch + 1);
    assert!(!stays.assignment.has_changed().unwrap());
    let (node, cluster) = ("moves".parse().unwrap(), Some("b".parse().unwrap()));
    assert_eq!(bench.seen.take(), [Change::Moved { node, cluster }]);
    assert_eq!(bench.nodes.count_of(&"b".parse().unwrap()), 1);
    let view = &bench.nodes.list()[0];
    assert_eq!((view.name.as_str(), view.cluster_name.as_deref()), ("host-moves", Some("B")));
    assert_eq!(view.peer_addr.to_string(), "10.0.0.7:5081");
}
