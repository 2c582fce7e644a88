//! Databases that earlier versions wrote, opened by this one. Each is kept as the text of a dump below `tests/data`;
//! none is ever changed, and a new migration adds one.

use std::path::Path;

use sha2::Digest as _;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use super::*;

/// Written by 0.1.0: see the head of the file.
const SCHEMA_1: &str = include_str!("../../tests/data/schema-1.sql");
/// Before preheats: see the head of the file.
const SCHEMA_2: &str = include_str!("../../tests/data/schema-2.sql");
/// Before lists had columns and indices of their own: see the head of the file.
pub(crate) const SCHEMA_3: &str = include_str!("../../tests/data/schema-3.sql");

/// Makes the database that the dump is of.
pub(crate) async fn restore(dump: &'static str, dir: &Path) {
    let options = SqliteConnectOptions::new().filename(dir.join("control.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql(dump).execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test]
async fn a_database_of_schema_1_is_opened_with_all_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    restore(SCHEMA_1, dir.path()).await;
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let table = store.clusters().await.unwrap();
    let cluster = |seq, version, name: &str, default, idc: &str, location: &str, cidrs: &[&str]| {
        let stored = table.clusters.iter().find(|cluster| cluster.name == name).unwrap();
        let spec = ClusterSpec {
            name: name.into(),
            default,
            idc: idc.into(),
            location: location.into(),
            cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        };
        assert_eq!((stored.seq, stored.version, stored.spec()), (seq, version, spec));
    };
    assert_eq!(table.clusters.len(), 3);
    cluster(1, 1, "default", true, "", "", &[]);
    cluster(3, 2, "west", false, "w1|w2", "eu|fr", &["10.2.0.0/16", "fd00:2::/32"]);
    cluster(4, 1, "Köln", false, "", "eu|de|köln", &["192.168.7.0/24"]);

    // It goes on counting where the other stopped: the second cluster was deleted, and its age is not used again.
    let id: ClusterId = "new".parse().unwrap();
    let spec = ClusterSpec { name: "new".into(), ..ClusterSpec::default() };
    let after = store.change_clusters(table.generation, &[ClusterChange::Insert { id, spec }], &[]).await.unwrap();
    assert_eq!(after.generation, table.generation + 1);
    assert_eq!(after.clusters[..3], table.clusters[..]);
    assert_eq!(after.clusters[3].seq, 5);
    store.probe().await.unwrap();
    drop(store);
    assert_eq!(SqliteStore::open(dir.path()).await.unwrap().clusters().await.unwrap(), after);
}

#[tokio::test]
async fn a_database_of_schema_2_is_opened_with_all_that_it_has_and_takes_preheats() {
    let dir = tempfile::tempdir().unwrap();
    restore(SCHEMA_2, dir.path()).await;
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let table = store.clusters().await.unwrap();
    let west: ClusterId = "c706d283-a459-4918-97ba-63eef3011757".parse().unwrap();
    assert_eq!((table.generation, table.clusters.len()), (4, 2));
    assert_eq!((&table.clusters[1].id, table.clusters[1].version), (&west, 3));
    assert_eq!(table.clusters[1].cidrs, ["10.2.0.0/16", "fd00:2::/32"]);

    let hash = |text: &str| -> [u8; 32] { sha2::Sha256::digest(text).into() };
    let joins = store.join_tokens().await.unwrap();
    let (one, two) = (&joins[0], &joins[1]);
    assert_eq!((one.id.as_str(), one.hash, one.seed, one.uses_left), ("jt1", hash("join one"), true, 7));
    assert_eq!((one.cluster.as_ref(), two.cluster.as_ref(), two.uses_left), (Some(&west), None, 0));
    let members = store.members().await.unwrap();
    let member = |at: usize| (members[at].node.as_str(), members[at].key, members[at].seed, members[at].revoked);
    assert_eq!(member(0), ("node-1", hash("key one"), true, None));
    assert_eq!(member(1), ("node-2", hash("key two"), false, Some(1_795_680_400)));
    let voids = store.voids(1_795_680_500).await.unwrap();
    assert_eq!((voids.len(), voids[0].node.as_str(), voids[0].before), (1, "node-2", 1_795_680_400_000_000));
    let tokens = store.api_tokens().await.unwrap();
    assert_eq!(tokens.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["root", "west-viewer"]);
    assert_eq!((tokens[0].hash, tokens[0].role, &tokens[0].clusters), (hash("root token"), Role::Admin, &None));
    assert_eq!((tokens[1].role, tokens[1].clusters.clone()), (Role::Viewer, Some([west.clone()].into())));
    let audit = store.audit(None, 10).await.unwrap();
    let said: Vec<_> = audit.iter().map(|row| (row.seq, row.entry.action.as_str())).collect();
    assert_eq!(said, [(2, "member.revoke"), (1, "cluster.create")]);

    // What came with schema 3 works on it.
    assert!(store.running_preheats().await.unwrap().is_empty());
    let (short, job) = (serde_json::json!({ "id": "p1" }), serde_json::json!({ "id": "p1", "nodes": {} }));
    let row = PreheatRow { id: "p1".into(), created: 7, ended: None, cluster: west.clone(), short, job };
    store.put_preheat(&row, None).await.unwrap();
    drop(store);
    let again = SqliteStore::open(dir.path()).await.unwrap();
    assert_eq!(again.running_preheats().await.unwrap(), [row]);
    assert_eq!(again.clusters().await.unwrap(), table);
}

#[tokio::test]
async fn a_database_of_schema_3_is_opened_with_all_that_it_has_and_its_audit_log_is_narrowed() {
    let dir = tempfile::tempdir().unwrap();
    restore(SCHEMA_3, dir.path()).await;
    let store = SqliteStore::open(dir.path()).await.unwrap();
    assert_eq!(store.clusters().await.unwrap().clusters.len(), 2);
    assert_eq!((store.members().await.unwrap().len(), store.api_tokens().await.unwrap().len()), (2, 2));
    assert_eq!(store.running_preheats().await.unwrap().len(), 1);
    let filter = AuditFilter { who: Some("ci".into()), action: Some("preheat".into()), ..AuditFilter::default() };
    let rows = store.audit_of(&filter, 9).await.unwrap();
    assert_eq!(rows.iter().map(|row| (row.seq, row.entry.subject.as_str())).collect::<Vec<_>>(), [(3, "p-done")]);
    let filter = AuditFilter { until: Some(1_795_680_400), ..AuditFilter::default() };
    assert_eq!(store.audit_of(&filter, 9).await.unwrap()[0].seq, 1);
    store.probe().await.unwrap();
}
