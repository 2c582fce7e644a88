//! Databases that earlier versions wrote, opened by this one. Each is kept as the text of a dump below `tests/data`;
//! none is ever changed, and a new migration adds one.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use super::*;

/// Written by 0.1.0: see the head of the file.
const SCHEMA_1: &str = include_str!("../../tests/data/schema-1.sql");

/// Makes the database that the dump is of.
async fn restore(dump: &'static str, dir: &Path) {
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
