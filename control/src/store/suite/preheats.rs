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
    old_preheats_are_forgotten_and_running_ones_are_not
    a_preheat_is_written_with_its_audit_entry
}

fn row(id: &str, ended: Option<u64>) -> PreheatRow {
    PreheatRow { id: id.into(), created: 5, ended, job: json!({ "of": id, "list": [1, "é"] }) }
}

fn ids(rows: &[PreheatRow]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

async fn a_preheat_is_given_back_as_it_was_put(store: &dyn Both) {
    assert_eq!(store.preheat("a").await.unwrap(), None);
    store.put_preheat(&row("a", None), None).await.unwrap();
    assert_eq!(store.preheat("a").await.unwrap(), Some(row("a", None)));
    let ended = PreheatRow { job: json!({ "now": "other" }), ..row("a", Some(9)) };
    store.put_preheat(&ended, None).await.unwrap();
    assert_eq!(store.preheat("a").await.unwrap(), Some(ended));
}

async fn preheats_come_newest_first_page_by_page(store: &dyn Both) {
    for id in ["a", "b", "c", "d"] {
        store.put_preheat(&row(id, Some(6)), None).await.unwrap();
    }
    // A change is no reason to be newer.
    store.put_preheat(&row("a", Some(7)), None).await.unwrap();
    assert_eq!(ids(&store.preheats(None, 3).await.unwrap()), ["d", "c", "b"]);
    assert_eq!(ids(&store.preheats(Some("b"), 3).await.unwrap()), ["a"]);
    assert_eq!(ids(&store.preheats(Some("a"), 3).await.unwrap()), [""; 0]);
    assert_eq!(ids(&store.preheats(Some("unknown"), 3).await.unwrap()), [""; 0]);
}

async fn old_preheats_are_forgotten_and_running_ones_are_not(store: &dyn Both) {
    for (id, ended) in [("a", None), ("b", Some(6)), ("c", None), ("d", Some(6)), ("e", Some(6))] {
        store.put_preheat(&row(id, ended), None).await.unwrap();
    }
    assert_eq!(ids(&store.running_preheats().await.unwrap()), ["a", "c"]);
    assert_eq!(store.prune_preheats(2).await.unwrap(), 1);
    assert_eq!(store.prune_preheats(2).await.unwrap(), 0);
    assert_eq!(ids(&store.preheats(None, 9).await.unwrap()), ["e", "d", "c", "a"]);
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
