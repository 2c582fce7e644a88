use std::net::IpAddr;

use shoal_base::drain::{self, Trigger};
use shoal_proto::Digest;
use tokio::sync::watch;

use super::*;
use crate::clusters::{Cluster, ClusterSet, Facts};
use crate::nodes::{self, Joined, Registration};
use crate::store::{Identities as _, MemoryStore, Preheats as _, SqliteStore};

struct Nobody;

impl nodes::Watcher for Nobody {
    fn changed(&self, _: nodes::Change) {}
}

struct Bench {
    nodes: Arc<Nodes>,
    store: Arc<MemoryStore>,
    preheats: Arc<Preheats>,
    clusters: watch::Sender<Arc<ClusterSet>>,
    trigger: Trigger,
}

fn cluster() -> ClusterId {
    "c1".parse().unwrap()
}

fn only() -> Cluster {
    Cluster {
        id: cluster(),
        seq: 0,
        version: 1,
        name: "One".into(),
        default: true,
        idc: String::new(),
        location: String::new(),
        cidrs: Vec::new(),
    }
}

async fn bench() -> Bench {
    let (clusters, set) = watch::channel(Arc::new(ClusterSet::new(1, vec![only()]).unwrap()));
    // Nobody sends heartbeats here.
    let config = nodes::Config { lease: Duration::from_secs(24 * 3600), ..nodes::Config::default() };
    let nodes = Arc::new(Nodes::new(config, set, Arc::new(Nobody), nodes::Metrics::default()));
    let store = Arc::new(MemoryStore::default());
    let (preheats, trigger) = open(&store, &nodes).await;
    Bench { nodes, store, preheats, clusters, trigger }
}

async fn open(store: &Arc<MemoryStore>, nodes: &Arc<Nodes>) -> (Arc<Preheats>, Trigger) {
    let durable = Arc::clone(store) as Arc<dyn store::Preheats>;
    let preheats = Preheats::open(durable, Arc::clone(nodes), Metrics::default()).await.unwrap();
    let (trigger, drain) = drain::channel();
    tokio::spawn(Arc::clone(&preheats).run(drain));
    (preheats, trigger)
}

fn id(number: u8) -> NodeId {
    format!("00000000-0000-4000-8000-0000000000{number:02x}").parse().unwrap()
}

impl Bench {
    fn join(&self, number: u8, role: Role) -> Joined {
        self.join_as(number, role, true)
    }

    async fn cancel(&self, id: &str) -> Result<Job, Error> {
        self.preheats.cancel(id, "admin", |_| Ok::<_, Error>(())).await
    }

    async fn retry(&self, id: &str, login: Option<(String, String)>) -> Result<Job, Error> {
        self.preheats.retry(id, login, "admin", |_| Ok::<_, Error>(())).await
    }

    /// Of a version that knows orders, or of an earlier one.
    fn join_as(&self, number: u8, role: Role, takes_orders: bool) -> Joined {
        let ip: IpAddr = [10, 0, 0, number].into();
        self.nodes.register(Registration {
            node: id(number),
            instance: 1,
            name: format!("n{number}"),
            version: "0".into(),
            facts: Facts::parse(&ip.to_string(), "", "").unwrap(),
            peer_port: 5081,
            pin: None,
            bound: None,
            role,
            takes_orders,
        })
    }
}

fn new(target: Target) -> New {
    New {
        image: "registry.test/app:1".into(),
        platforms: vec!["linux/amd64".into()],
        cluster: cluster(),
        cluster_name: "One".into(),
        target,
        login: Some(("user".into(), "planted-secret".into())),
    }
}

fn all() -> New {
    new(Target::Percent(100))
}

fn manifest() -> Digest {
    Digest::from_bytes([1; 32])
}

fn said(state: State, bytes: u64) -> Said {
    Said {
        state,
        refused: false,
        manifest: Some(manifest()),
        blobs: vec![(Blob { digest: Digest::from_bytes([2; 32]), size: 9 }, bytes)],
    }
}

async fn order(joined: &mut Joined) -> wire::FetchOrder {
    let order = tokio::time::timeout(Duration::from_secs(5), joined.orders.recv()).await;
    *order.expect("an order within five seconds").expect("a session")
}

async fn ended(preheats: &Preheats, id: &str) -> Job {
    for _ in 0..1000 {
        let job = preheats.get(id).await.unwrap();
        // On disk too.
        if job.ended.is_some() && preheats.inner.lock().live.is_empty() {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("preheat {id} does not end: {:?}", preheats.get(id).await);
}

#[tokio::test(start_paused = true)]
async fn one_node_finds_the_manifest_and_the_others_are_ordered_that() {
    let bench = bench().await;
    let (mut one, mut two) = (bench.join(1, Role::Node), bench.join(2, Role::Node));
    let mut changes = bench.preheats.watch();
    let job = bench.preheats.create(all(), "admin").await.unwrap();
    let first = order(&mut one).await;
    let image = first.image.unwrap();
    assert_eq!((first.registry.as_str(), first.repository.as_str()), ("registry.test", "app"));
    assert_eq!((image.reference.as_str(), image.user.as_str()), ("1", "user"));
    assert_eq!((image.password.as_str(), image.platforms), ("planted-secret", vec!["linux/amd64".to_owned()]));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(two.orders.try_recv().is_err(), "it waits for what the tag is");
    bench.preheats.heard(&id(1), &first.order_id, said(State::Running, 3));
    let second = order(&mut two).await;
    assert_eq!(second.image.unwrap().reference, manifest().to_string());
    let now = bench.preheats.get(&job.id).await.unwrap();
    assert_eq!((now.state(), now.bytes_of(&now.nodes[&id(1)])), (State::Running, 3));
    bench.preheats.heard(&id(1), &first.order_id, said(State::Done, 9));
    bench.preheats.heard(&id(2), &second.order_id, said(State::Failed("disk full".into()), 4));
    let job = ended(&bench.preheats, &job.id).await;
    assert_eq!(job.state(), State::Failed("1 of 2 nodes".into()));
    assert_eq!(job.nodes[&id(2)].state, State::Failed("disk full".into()));
    assert!(changes.try_recv().is_ok());
    // Again, for the one that failed.
    let again = bench.retry(&job.id, None).await.unwrap();
    assert_eq!((again.state(), again.ended), (State::Running, None));
    let third = order(&mut two).await;
    assert_ne!(third.order_id, second.order_id);
    assert_eq!(third.image.unwrap().user, "", "a login is not kept for a retry");
    assert!(one.orders.try_recv().is_err(), "what is done is not done again");
    bench.preheats.heard(&id(2), &third.order_id, said(State::Done, 9));
    let job = ended(&bench.preheats, &job.id).await;
    assert_eq!((job.state(), job.bytes_of(&job.nodes[&id(2)])), (State::Done, 9));
    let refused = bench.retry(&job.id, None).await.unwrap_err();
    assert!(refused.to_string().contains("nothing of it failed"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn i9_a_password_is_in_memory_alone() {
    let bench = bench().await;
    let _one = bench.join(1, Role::Node);
    let job = bench.preheats.create(all(), "admin").await.unwrap();
    bench.cancel(&job.id).await.unwrap();
    let kept = bench.store.preheat(&job.id).await;
    let short = bench.store.preheats(&PreheatFilter::default(), None, 9).await;
    let rows = format!("{kept:?} {short:?} {:?}", bench.store.audit(None, 9).await);
    assert!(rows.contains("preheat.create") && rows.contains("preheat.cancel"), "{rows}");
    assert!(!rows.contains("planted-secret") && !format!("{:?}", all()).contains("planted-secret"), "{rows}");
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_after_a_restart_of_control() {
    let bench = bench().await;
    let mut one = bench.join(1, Role::Seed);
    let _two = bench.join(2, Role::Node);
    let job = bench.preheats.create(new(Target::Seeds), "admin").await.unwrap();
    assert_eq!(job.nodes.keys().collect::<Vec<_>>(), [&id(1)]);
    let first = order(&mut one).await;
    bench.preheats.heard(&id(1), &first.order_id, said(State::Running, 3));
    while bench.store.preheat(&job.id).await.unwrap().unwrap().job["manifest"].is_null() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.trigger.fire();
    let (preheats, _trigger) = open(&bench.store, &bench.nodes).await;
    // The node registers with the new one, and is told again.
    let mut one = bench.join(1, Role::Seed);
    let again = order(&mut one).await;
    assert_eq!(again.order_id, first.order_id);
    assert_eq!(again.image.unwrap().reference, manifest().to_string());
    preheats.heard(&id(1), &again.order_id, said(State::Done, 9));
    assert_eq!(ended(&preheats, &job.id).await.state(), State::Done);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_or_says_nothing_has_failed_in_time() {
    let bench = bench().await;
    let (mut old, gone) = (bench.join(1, Role::Node), bench.join(2, Role::Node));
    let digest = New { image: format!("registry.test/app@{}", manifest()), ..all() };
    let job = bench.preheats.create(digest, "admin").await.unwrap();
    order(&mut old).await;
    bench.nodes.disconnected(&gone.session, true);
    let since = Instant::now();
    let job = ended(&bench.preheats, &job.id).await;
    let why = |number| match &job.nodes[&id(number)].state {
        State::Failed(why) => why.clone(),
        other => panic!("{other:?}"),
    };
    assert!(why(1).contains("does not answer"), "{}", why(1));
    assert!(why(2).contains("away"), "{}", why(2));
    assert!((Duration::from_secs(60)..Duration::from_secs(70)).contains(&since.elapsed()), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_too_old_for_orders_fail_at_once_and_can_be_tried_again() {
    let bench = bench().await;
    let mut old: Vec<Joined> = (1..=200).map(|number| bench.join_as(number, Role::Node, false)).collect();
    let why = |job: &Job, number| match &job.nodes[&id(number)].state {
        State::Failed(why) => why.clone(),
        other => panic!("{other:?}"),
    };
    // All of them: the job has ended when it is made, and is on disk so.
    let job = bench.preheats.create(all(), "admin").await.unwrap();
    assert_eq!(job.state(), State::Failed("200 of 200 nodes".into()));
    assert!(why(&job, 7).contains("version 0,") && why(&job, 7).contains("takes no orders"), "{}", why(&job, 7));
    let since = Instant::now();
    let job = ended(&bench.preheats, &job.id).await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert!(old.iter_mut().all(|node| node.orders.try_recv().is_err()), "what they don't know is not asked of them");

    // One is upgraded, and does its part.
    let mut one = bench.join(1, Role::Node);
    let again = bench.retry(&job.id, None).await.unwrap();
    assert_eq!(again.nodes.values().filter(|work| !work.state.is_settled()).count(), 1);
    let first = order(&mut one).await;
    bench.preheats.heard(&id(1), &first.order_id, said(State::Done, 9));
    let job = ended(&bench.preheats, &job.id).await;
    assert_eq!((job.state(), job.nodes[&id(1)].state.clone()), (State::Failed("199 of 200 nodes".into()), State::Done));

    // One is taken back in the middle of its part.
    let job = bench.preheats.create(new(Target::Nodes(vec!["n1".into()])), "admin").await.unwrap();
    order(&mut one).await;
    let mut one = bench.join_as(1, Role::Node, false);
    let job = ended(&bench.preheats, &job.id).await;
    assert!(why(&job, 1).contains("takes no orders"), "{}", why(&job, 1));
    assert!(one.orders.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_job_does_not_follow_a_node_to_another_cluster() {
    let bench = bench().await;
    let (_trigger, drain) = drain::channel();
    tokio::spawn(Arc::clone(&bench.nodes).run(drain));
    let (mut stays, mut moves) = (bench.join(1, Role::Node), bench.join(2, Role::Node));
    let mut told = bench.join(3, Role::Node);
    let job = bench.preheats.create(new(Target::Nodes(vec!["n3".into()])), "admin").await.unwrap();
    let running = order(&mut told).await;
    let both = bench.preheats.create(new(Target::Nodes(vec!["n1".into(), "n2".into()])), "admin").await.unwrap();
    let first = order(&mut stays).await;

    let cidrs = vec!["10.0.0.2/31".into()];
    let other = Cluster { id: "c2".parse().unwrap(), seq: 1, name: "Two".into(), default: false, cidrs, ..only() };
    bench.clusters.send_replace(Arc::new(ClusterSet::new(2, vec![only(), other]).unwrap()));
    while bench.nodes.cluster_of(&id(2)) == Some(cluster()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.preheats.heard(&id(1), &first.order_id, said(State::Done, 9));
    let elsewhere = State::Failed("it is in another cluster now".into());
    let withdrawn = order(&mut told).await;
    assert!(withdrawn.cancelled && withdrawn.order_id == running.order_id);
    let both = ended(&bench.preheats, &both.id).await;
    assert_eq!((&both.nodes[&id(1)].state, &both.nodes[&id(2)].state), (&State::Done, &elsewhere));
    assert_eq!(ended(&bench.preheats, &job.id).await.nodes[&id(3)].state, elsewhere);

    // Nor when it is tried again, until the node is back.
    let again = bench.retry(&both.id, new(Target::Seeds).login).await.unwrap();
    assert_eq!(again.nodes[&id(2)].state, elsewhere);
    ended(&bench.preheats, &both.id).await;
    assert!(moves.orders.try_recv().is_err(), "nothing was sent to it");
    bench.clusters.send_replace(Arc::new(ClusterSet::new(3, vec![only()]).unwrap()));
    while bench.nodes.cluster_of(&id(2)) != Some(cluster()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.retry(&both.id, None).await.unwrap();
    assert!(!order(&mut moves).await.cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_the_registry_refuses_ends_the_job_at_the_first_node() {
    let bench = bench().await;
    let mut all_nodes: Vec<Joined> = (1..=200).map(|number| bench.join(number, Role::Node)).collect();
    let job = bench.preheats.create(all(), "admin").await.unwrap();
    let first = order(&mut all_nodes[0]).await;
    let since = Instant::now();
    let no = Said { refused: true, manifest: None, blobs: Vec::new(), ..said(State::Failed("404".into()), 0) };
    bench.preheats.heard(&id(1), &first.order_id, no);
    let job = ended(&bench.preheats, &job.id).await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!(job.state(), State::Failed("200 of 200 nodes".into()));
    let others = &job.nodes[&id(200)].state;
    assert_eq!(*others, State::Failed("not asked: n1 was refused: 404".into()));
    assert!(all_nodes[1..].iter_mut().all(|node| node.orders.try_recv().is_err()), "nobody else was asked");
    // It is on disk so, and lists say it in short.
    let listed = bench.preheats.list(&PreheatFilter::default(), None, 9).await.unwrap();
    assert_eq!(listed, [job.brief()]);
    assert_eq!((listed[0].nodes, listed[0].failed), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_went_away_before_it_knew_the_tag_does_not_keep_the_others_waiting() {
    let bench = bench().await;
    let (one, mut two) = (bench.join(1, Role::Node), bench.join(2, Role::Node));
    bench.nodes.disconnected(&one.session, false);
    let since = Instant::now();
    let job = bench.preheats.create(new(Target::Percent(100)), "admin").await.unwrap();
    let second = order(&mut two).await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    bench.preheats.heard(&id(2), &second.order_id, said(State::Done, 9));
    let mut one = bench.join(1, Role::Node);
    let first = order(&mut one).await;
    assert_eq!(first.image.unwrap().reference, manifest().to_string());
    bench.preheats.heard(&id(1), &first.order_id, said(State::Done, 9));
    assert_eq!(ended(&bench.preheats, &job.id).await.state(), State::Done);
}

#[tokio::test(start_paused = true)]
async fn who_changes_a_job_sees_it_as_it_is_then_and_may_refuse() {
    let bench = bench().await;
    let _one = bench.join(1, Role::Node);
    let job = bench.preheats.create(all(), "admin").await.unwrap();
    let no = |version| {
        move |job: &Job| match job.version == version {
            true => Ok(()),
            false => Err(Error::Refused(format!("it is at {}", job.version))),
        }
    };
    let late = bench.preheats.cancel(&job.id, "admin", no(7)).await.unwrap_err();
    assert!(late.to_string().contains("it is at 1"), "{late}");
    assert_eq!(bench.preheats.get(&job.id).await.unwrap(), job);
    assert_eq!(bench.preheats.cancel(&job.id, "admin", no(1)).await.unwrap().version, 2);
    assert!(bench.preheats.retry(&job.id, None, "admin", no(1)).await.is_err());
    assert_eq!(bench.preheats.retry(&job.id, None, "admin", no(2)).await.unwrap().version, 3);
}

#[tokio::test(start_paused = true)]
async fn who_is_cancelled_is_told_and_who_runs_what_nobody_wants_too() {
    let bench = bench().await;
    let mut one = bench.join(1, Role::Node);
    let job = bench.preheats.create(all(), "admin").await.unwrap();
    let first = order(&mut one).await;
    bench.preheats.heard(&id(1), &first.order_id, said(State::Running, 1));
    assert_eq!(bench.cancel(&job.id).await.unwrap().state(), State::Cancelled);
    let told = order(&mut one).await;
    assert!(told.cancelled && told.order_id == first.order_id);
    // It had not heard.
    bench.preheats.heard(&id(1), &first.order_id, said(State::Running, 5));
    assert!(order(&mut one).await.cancelled);
    bench.preheats.heard(&id(1), &first.order_id, said(State::Cancelled, 5));
    assert!(one.orders.try_recv().is_err());
    let refused = bench.cancel(&job.id).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    assert!(matches!(bench.preheats.get("unknown").await, Err(Error::Unknown(_))));
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_named_by_its_field() {
    let bench = bench().await;
    let _one = bench.join(1, Role::Node);
    let cases = [
        (New { image: "UPPER/Case:x y".into(), ..all() }, "image"),
        (New { image: String::new(), ..all() }, "image"),
        (New { image: "a".repeat(2000), ..all() }, "image"),
        (New { platforms: vec!["linux".into()], ..all() }, "platforms"),
        (New { platforms: vec!["linux/amd64/v8/x".into()], ..all() }, "platforms"),
        (New { platforms: vec!["linux/amd64".into(); 17], ..all() }, "platforms"),
        (new(Target::Percent(0)), "target"),
        (new(Target::Percent(101)), "target"),
        (new(Target::Nodes(Vec::new())), "target"),
        (New { login: Some(("a:b".into(), "p".into())), ..all() }, "login.user"),
        (New { login: Some((String::new(), "p".into())), ..all() }, "login.user"),
        (New { login: Some(("u".into(), "p\n".into())), ..all() }, "login.password"),
        (new(Target::Seeds), "seeds"),
        (new(Target::Nodes(vec!["n1".into(), "nobody".into()])), "nodes[1]"),
    ];
    for (new, field) in cases {
        match bench.preheats.create(new.clone(), "admin").await {
            Err(Error::Bad { field: named, .. }) => assert_eq!(named, field, "{new:?}"),
            other => panic!("{new:?}: {other:?}"),
        }
    }
    let elsewhere = New { cluster: "c9".parse().unwrap(), ..all() };
    assert!(matches!(bench.preheats.create(elsewhere, "admin").await, Err(Error::Refused(_))));
    // Somebody may have written a password there.
    let image = New { image: "ci:planted-secret@registry.test/a b".into(), ..all() };
    let refused = bench.preheats.create(image, "admin").await.unwrap_err().to_string();
    assert!(!refused.contains("planted-secret"), "{refused}");
    assert!(bench.store.preheats(&PreheatFilter::default(), None, 9).await.unwrap().is_empty());
    // What images are called in pods.
    let short = bench.preheats.create(New { image: "alpine".into(), ..all() }, "admin").await.unwrap();
    let Image { registry, repository, reference } = short.image;
    assert_eq!((registry.as_str(), repository.as_str(), reference.as_str()), ("docker.io", "library/alpine", "latest"));
}

#[tokio::test]
async fn preheats_of_schema_3_are_listed_in_short_as_this_version_would_have_written_them() {
    let dir = tempfile::tempdir().unwrap();
    store::upgrade::restore(store::upgrade::SCHEMA_3, dir.path()).await;
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let listed = store.preheats(&PreheatFilter::default(), None, 9).await.unwrap();
    assert_eq!(
        listed.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(),
        ["p-runs", "p-cancelled", "p-failed", "p-done"]
    );
    for row in &listed {
        let whole = store.preheat(&row.id).await.unwrap().unwrap();
        let job: Job = serde_json::from_value(whole.job.clone()).unwrap();
        let brief: Brief = serde_json::from_value(row.short.clone()).unwrap();
        assert_eq!(brief, job.brief(), "{}", row.id);
        assert_eq!((&whole.cluster, whole.ended.map(|(at, _)| at)), (&job.cluster, job.ended));
    }
    let ended = async |outcome| {
        let filter = PreheatFilter { standing: Stored::Ended(outcome), ..PreheatFilter::default() };
        store.preheats(&filter, None, 9).await.unwrap().into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ended(Outcome::Done).await, ["p-done"]);
    assert_eq!(ended(Outcome::Failed).await, ["p-failed"]);
    assert_eq!(ended(Outcome::Cancelled).await, ["p-cancelled"]);
    let running = store.running_preheats().await.unwrap();
    assert_eq!(running.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["p-runs"]);
    // A new one is newer than all of them.
    let row = PreheatRow { id: "p-new".into(), ..running[0].clone() };
    store.put_preheat(&row, None).await.unwrap();
    assert_eq!(store.preheats(&PreheatFilter::default(), None, 1).await.unwrap()[0].id, "p-new");
}
