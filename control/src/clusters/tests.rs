//! The live set over a real store: what is accepted, what is refused, and what watchers see.

use super::*;
use crate::store::MemoryStore;
use shoal_proto::ClusterId;
use std::sync::Arc;

async fn open(default_cluster: &str) -> Clusters {
    let config = Config { default_cluster: default_cluster.to_owned() };
    Clusters::open(Arc::new(MemoryStore::default()), &config, Metrics::default()).await.unwrap()
}

fn spec(name: &str, idc: &str, cidrs: &[&str]) -> ClusterSpec {
    let cidrs = cidrs.iter().map(ToString::to_string).collect();
    ClusterSpec { name: name.into(), idc: idc.into(), cidrs, ..ClusterSpec::default() }
}

fn names(clusters: &Clusters) -> Vec<String> {
    clusters.current().clusters().iter().map(|cluster| cluster.name.clone()).collect()
}

fn nobody(_: &ClusterId) -> usize {
    0
}

#[tokio::test]
async fn the_first_start_makes_the_default_cluster_and_later_ones_do_not() {
    let store = Arc::new(MemoryStore::default());
    let config = |name: &str| Config { default_cluster: name.to_owned() };
    let clusters = Clusters::open(store.clone(), &config("default"), Metrics::default()).await.unwrap();
    assert_eq!(names(&clusters), ["default"]);
    assert!(clusters.current().clusters()[0].default);
    clusters.by("test").delete("default", None, true, &nobody).await.unwrap();
    let again = Clusters::open(store, &config("default"), Metrics::default()).await.unwrap();
    assert!(names(&again).is_empty(), "an operator deleted it");
    assert!(names(&open("").await).is_empty());
}

#[tokio::test]
async fn a_change_is_published_to_whoever_watches() {
    let clusters = open("default").await;
    let mut watch = clusters.watch();
    watch.borrow_and_update();
    let made = clusters.by("test").create(spec("b", "west", &[])).await.unwrap().cluster;
    assert!(watch.has_changed().unwrap());
    assert_eq!(watch.borrow_and_update().find("b").unwrap().id, made.id);
    let before = clusters.current().generation();
    let same = Edit { idc: Some("west".into()), ..Edit::default() };
    let unchanged = clusters.by("test").update("b", None, same).await.unwrap().cluster;
    assert_eq!((unchanged.version, clusters.current().generation()), (made.version, before), "nothing was written");
    assert!(!watch.has_changed().unwrap());
}

#[tokio::test]
async fn a_refused_change_names_both_clusters_and_the_field_and_changes_nothing() {
    let clusters = open("default").await;
    clusters.by("test").create(spec("b", "", &["10.1.0.0/16"])).await.unwrap();
    for (bad, field, text) in [
        (spec("c", "", &["10.1.2.3/16"]), "cidrs", "10.1.0.0/16"),
        (spec("c", "", &["10.0.0.0/33"]), "cidrs[0]", "10.0.0.0/33"),
        (spec("c", "a||b", &[]), "idc", "empty"),
        (spec(" B ", "", &[]), "name", "name"),
    ] {
        let Err(Error::Refused(refusals)) = clusters.by("test").create(bad.clone()).await else {
            panic!("{bad:?} was accepted")
        };
        assert_eq!(refusals[0].field, field, "{bad:?}");
        assert!(refusals[0].to_string().contains(text), "{}", refusals[0]);
        assert_eq!(names(&clusters), ["default", "b"]);
    }
}

#[tokio::test]
async fn the_default_is_handed_over_in_one_write_and_both_changes_are_audited() {
    let store = Arc::new(MemoryStore::default());
    let config = Config { default_cluster: "default".to_owned() };
    let clusters = Clusters::open(store.clone(), &config, Metrics::default()).await.unwrap();
    clusters.by("test").create(spec("b", "west", &[])).await.unwrap();
    let to_b = || Edit { default: Some(true), ..Edit::default() };
    let planned = clusters.by("test").plan(&Planned::Update("b".into(), to_b())).await.unwrap();
    let defaults = |changes: &[Change]| {
        let of = |change: &Change| match change {
            Change::Updated { before, after } => (after.name.clone(), before.default, after.default),
            other => panic!("{other:?}"),
        };
        changes.iter().map(of).collect::<Vec<_>>()
    };
    let both = vec![("default".to_owned(), true, false), ("b".to_owned(), false, true)];
    assert_eq!(defaults(&planned.changes), both);
    assert!(clusters.current().named("default").unwrap().default, "it was only thought through");

    let generation = clusters.current().generation();
    let changed = clusters.by("test").update("b", None, to_b()).await.unwrap();
    assert_eq!((changed.cluster.default, changed.default_from.unwrap().name.as_str()), (true, "default"));
    assert_eq!(clusters.current().generation(), generation + 1, "one write");
    assert!(!clusters.current().named("default").unwrap().default);
    let log = crate::store::Identities::audit(&*store, None, 2).await.unwrap();
    let mut said: Vec<_> = log
        .iter()
        .map(|row| {
            let default = |value: &Option<serde_json::Value>| value.as_ref().unwrap()["default"] == true;
            (row.entry.subject.as_str(), default(&row.entry.before), default(&row.entry.after))
        })
        .collect();
    said.sort_unstable();
    assert_eq!(said, [("b", false, true), ("default", true, false)]);

    let made = clusters.by("test").create(ClusterSpec { default: true, ..spec("c", "", &[]) }).await.unwrap();
    assert_eq!(made.default_from.unwrap().name, "b");
    let again = clusters.by("test").update("c", None, to_b()).await.unwrap();
    assert_eq!((again.cluster.version, again.default_from), (1, None), "it has it already: nothing is written");
    let left = Edit { default: Some(false), ..Edit::default() };
    assert_eq!(clusters.by("test").update("c", None, left).await.unwrap().default_from, None);
    assert!(clusters.current().clusters().iter().all(|cluster| !cluster.default));
}

#[tokio::test]
async fn who_does_not_reach_the_default_does_not_take_it() {
    let clusters = open("default").await;
    let b = clusters.by("test").create(spec("b", "west", &[])).await.unwrap().cluster.id.clone();
    let (has, beyond) = (|id: &ClusterId| *id == b, |_: &ClusterSet| 0);
    let by = clusters.by("test").within(Reach { has: &has, beyond: &beyond });
    let to_b = || Edit { default: Some(true), idc: Some("east".into()), ..Edit::default() };
    assert!(matches!(by.update("b", None, to_b()).await, Err(Error::Foreign)));
    assert!(matches!(by.plan(&Planned::Update("b".into(), to_b())).await, Err(Error::Foreign)));
    assert_eq!(clusters.current().named("b").unwrap().idc, "west", "nothing of it was done");
    by.update("b", None, Edit { idc: Some("east".into()), ..Edit::default() }).await.unwrap();
    // With the default in nobody's hands there is nothing to take from others.
    clusters.by("test").delete("default", None, true, &nobody).await.unwrap();
    assert!(by.update("b", None, to_b()).await.unwrap().cluster.default);
}

#[tokio::test]
async fn a_version_that_was_overtaken_is_stale() {
    let clusters = open("default").await;
    let made = clusters.by("test").create(spec("b", "west", &[])).await.unwrap().cluster;
    let rename = |name: &str| Edit { name: Some(name.into()), ..Edit::default() };
    let renamed = clusters.by("test").update("b", Some(made.version), rename("c")).await.unwrap().cluster;
    assert_eq!((renamed.id.clone(), renamed.name.as_str()), (made.id.clone(), "c"));
    let late = clusters.by("test").update(made.id.as_str(), Some(made.version), rename("d")).await;
    assert!(matches!(late, Err(Error::Stale { expected, found, .. }) if expected == made.version && found > expected));
    assert!(matches!(
        clusters.by("test").delete("c", Some(made.version), false, &nobody).await,
        Err(Error::Stale { .. })
    ));
    assert!(
        matches!(clusters.by("test").update("b", None, rename("x")).await, Err(Error::NotFound(name)) if name == "b")
    );
}

#[tokio::test]
async fn neither_the_default_nor_a_cluster_in_use_goes_without_force() {
    let clusters = open("default").await;
    clusters.by("test").create(spec("b", "west", &[])).await.unwrap();
    let two = |_: &ClusterId| 2;
    assert!(matches!(clusters.by("test").delete("b", None, false, &two).await, Err(Error::InUse { nodes: 2, .. })));
    assert!(matches!(clusters.by("test").delete("default", None, false, &nobody).await, Err(Error::IsDefault { .. })));
    clusters.by("test").delete("b", None, true, &two).await.unwrap();
    assert_eq!(names(&clusters), ["default"]);
}

#[tokio::test]
async fn applying_twice_changes_nothing_the_second_time() {
    let clusters = open("default").await;
    let declared = || vec![spec("b", "west", &["10.1.0.0/16"]), ClusterSpec { default: true, ..spec("a", "", &[]) }];
    let mode = ApplyMode::default();
    let dry = clusters.by("test").apply(declared(), ApplyMode { dry_run: true, ..mode }, &nobody).await.unwrap();
    assert_eq!((dry.changes.len(), names(&clusters)), (3, vec!["default".to_owned()]), "a dry run writes nothing");
    let first = clusters.by("test").apply(declared(), mode, &nobody).await.unwrap();
    assert_eq!(first.changes.len(), 3, "two made, and one is no default any more");
    assert_eq!(first.undeclared.iter().map(|cluster| cluster.name.as_str()).collect::<Vec<_>>(), ["default"]);
    let generation = clusters.current().generation();
    let second = clusters.by("test").apply(declared(), mode, &nobody).await.unwrap();
    assert!(second.changes.is_empty() && clusters.current().generation() == generation);
    let prune = ApplyMode { prune: true, ..mode };
    let in_use = clusters.by("test").apply(declared(), prune, &|_: &ClusterId| 1).await;
    assert!(matches!(in_use, Err(Error::InUse { name, .. }) if name == "default"));
    let pruned = clusters.by("test").apply(declared(), prune, &nobody).await.unwrap();
    assert!(matches!(pruned.changes.as_slice(), [Change::Deleted(gone)] if gone.name == "default"));
}
