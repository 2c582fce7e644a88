//! What every store must do with preheat jobs.

use serde_json::json;

use super::*;

macro_rules! suite {
    ($($name:ident)*) => {
        mod on_memory { $(#[tokio::test] async fn $name() { super::$name(&*super::memory().await.store).await })* }
        mod on_sqlite { $(#[tokio::test] async fn $name() { super::$name(&*super::sqlite().await.store).await })* }
    };
}

suite! {
    a_preheat_is_given_back_as_it_was_put
    preheats_come_newest_first_page_by_page
    preheats_are_found_by_cluster_and_by_how_they_ended
    old_preheats_are_forgotten_and_running_ones_are_not
    a_preheat_is_written_with_its_audit_entry
}

fn row(id: &str, ended: Option<u64>) -> PreheatRow {
    PreheatRow {
        id: id.into(),
        created: 5,
        ended: ended.map(|at| (at, Outcome::Failed)),
        cluster: "c1".parse().unwrap(),
        short: json!({ "short": id }),
        job: json!({ "of": id, "list": [1, "é"] }),
    }
}

fn ids(rows: &[PreheatRow]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

/// Ids of a page, each with what lists show of it.
async fn page(store: &dyn Both, filter: PreheatFilter, before: Option<&str>, most: u32) -> Vec<String> {
    let rows = store.preheats(&filter, before, most).await.unwrap();
    assert!(rows.iter().all(|row| row.short == json!({ "short": row.id })), "{rows:?}");
    rows.into_iter().map(|row| row.id).collect()
}

async fn a_preheat_is_given_back_as_it_was_put(store: &dyn Both) {
    assert_eq!(store.preheat("a").await.unwrap(), None);
    store.put_preheat(&row("a", None), None).await.unwrap();
    assert_eq!(store.preheat("a").await.unwrap(), Some(row("a", None)));
    let (short, job) = (json!({ "brief": 1 }), json!({ "now": "other" }));
    let ended = PreheatRow { short, job, ..row("a", Some(9)) };
    store.put_preheat(&ended, None).await.unwrap();
    assert_eq!(store.preheat("a").await.unwrap(), Some(ended));
}

async fn preheats_come_newest_first_page_by_page(store: &dyn Both) {
    for id in ["a", "b", "c", "d"] {
        store.put_preheat(&row(id, Some(6)), None).await.unwrap();
    }
    // A change is no reason to be newer.
    store.put_preheat(&row("a", Some(7)), None).await.unwrap();
    let all = PreheatFilter::default;
    assert_eq!(page(store, all(), None, 3).await, ["d", "c", "b"]);
    assert_eq!(page(store, all(), Some("b"), 3).await, ["a"]);
    assert_eq!(page(store, all(), Some("a"), 3).await, [""; 0]);
    assert_eq!(page(store, all(), Some("unknown"), 3).await, [""; 0]);
}

async fn preheats_are_found_by_cluster_and_by_how_they_ended(store: &dyn Both) {
    let two = "c2".parse().unwrap();
    let outcomes =
        [("a", Some(Outcome::Done)), ("b", None), ("c", Some(Outcome::Cancelled)), ("d", Some(Outcome::Done))];
    for (id, outcome) in outcomes {
        store
            .put_preheat(&PreheatRow { ended: outcome.map(|outcome| (6, outcome)), ..row(id, None) }, None)
            .await
            .unwrap();
    }
    store.put_preheat(&PreheatRow { cluster: two, ..row("e", None) }, None).await.unwrap();
    let standing = |standing| PreheatFilter { clusters: None, standing };
    let of = |clusters: &[&str]| {
        let clusters = clusters.iter().map(|id| id.parse().unwrap()).collect();
        PreheatFilter { clusters: Some(clusters), standing: Standing::Any }
    };
    assert_eq!(page(store, standing(Standing::Open), None, 9).await, ["e", "b"]);
    assert_eq!(page(store, standing(Standing::Ended(Outcome::Done)), None, 9).await, ["d", "a"]);
    assert_eq!(page(store, standing(Standing::Ended(Outcome::Done)), Some("d"), 9).await, ["a"]);
    assert_eq!(page(store, standing(Standing::Ended(Outcome::Failed)), None, 9).await, [""; 0]);
    assert_eq!(page(store, of(&["c2"]), None, 9).await, ["e"]);
    assert_eq!(page(store, of(&["c1", "c2"]), None, 2).await, ["e", "d"]);
    assert_eq!(page(store, of(&[]), None, 9).await, [""; 0]);
    let both = PreheatFilter { standing: Standing::Open, ..of(&["c1"]) };
    assert_eq!(page(store, both, None, 9).await, ["b"]);
    // It ends, and then it goes on again.
    store.put_preheat(&row("b", Some(8)), None).await.unwrap();
    assert_eq!(page(store, standing(Standing::Ended(Outcome::Failed)), None, 9).await, ["b"]);
    store.put_preheat(&row("b", None), None).await.unwrap();
    assert_eq!(page(store, standing(Standing::Open), None, 9).await, ["e", "b"]);
}

async fn old_preheats_are_forgotten_and_running_ones_are_not(store: &dyn Both) {
    for (id, ended) in [("a", None), ("b", Some(6)), ("c", None), ("d", Some(6)), ("e", Some(6))] {
        store.put_preheat(&row(id, ended), None).await.unwrap();
    }
    assert_eq!(ids(&store.running_preheats().await.unwrap()), ["a", "c"]);
    assert_eq!(store.prune_preheats(2).await.unwrap(), 1);
    assert_eq!(store.prune_preheats(2).await.unwrap(), 0);
    assert_eq!(page(store, PreheatFilter::default(), None, 9).await, ["e", "d", "c", "a"]);
}

async fn a_preheat_is_written_with_its_audit_entry(store: &dyn Both) {
    let entry = AuditEntry {
        at: 7,
        who: "admin".into(),
        action: "preheat.create".into(),
        subject: "a".into(),
        before: None,
        after: Some(json!({ "image": "x" })),
    };
    store.put_preheat(&row("a", None), Some(&entry)).await.unwrap();
    store.put_preheat(&row("a", None), None).await.unwrap();
    let audit = store.audit(None, 10).await.unwrap();
    assert_eq!(audit.iter().map(|row| row.entry.clone()).collect::<Vec<_>>(), [entry]);
}
