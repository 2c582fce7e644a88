//! What every store must do, run on each implementation.

use super::*;

mod identities;
mod preheats;

/// Whatever a store of control must be.
trait Both: Store + Identities + Preheats {}

impl<T: Store + Identities + Preheats> Both for T {}

/// A store and what must outlive it.
struct Subject {
    store: Box<dyn Both>,
    _dir: Option<tempfile::TempDir>,
}

async fn memory() -> Subject {
    Subject { store: Box::new(MemoryStore::default()), _dir: None }
}

async fn sqlite() -> Subject {
    let dir = tempfile::tempdir().unwrap();
    Subject { store: Box::new(SqliteStore::open(dir.path()).await.unwrap()), _dir: Some(dir) }
}

macro_rules! suite {
    ($($name:ident)*) => {
        mod on_memory { $(#[tokio::test] async fn $name() { super::$name(&*super::memory().await.store).await })* }
        mod on_sqlite { $(#[tokio::test] async fn $name() { super::$name(&*super::sqlite().await.store).await })* }
    };
}

suite! {
    starts_empty_at_generation_zero
    gives_back_what_was_written
    a_write_on_an_older_generation_is_a_conflict_and_changes_nothing
    an_update_replaces_all_fields_and_counts_versions
    an_age_is_never_used_twice
    one_bad_change_undoes_all_of_the_call
    a_name_is_unique
    a_deleted_name_can_be_taken_in_the_same_call
    an_update_of_a_cluster_that_is_gone_is_refused
    can_be_probed
    keeps_text_that_looks_like_sql
}

fn id(text: &str) -> ClusterId {
    text.parse().unwrap()
}

fn spec(name: &str) -> ClusterSpec {
    ClusterSpec { name: name.into(), ..ClusterSpec::default() }
}

fn insert(name: &str) -> ClusterChange {
    ClusterChange::Insert { id: id(name), spec: spec(name) }
}

fn names(table: &ClusterTable) -> Vec<&str> {
    table.clusters.iter().map(|cluster| cluster.name.as_str()).collect()
}

async fn starts_empty_at_generation_zero(store: &dyn Store) {
    assert_eq!(store.clusters().await.unwrap(), ClusterTable::default());
}

async fn gives_back_what_was_written(store: &dyn Store) {
    let full = ClusterSpec {
        name: "Größe".into(),
        default: true,
        idc: "a|b".into(),
        location: "cn|zj".into(),
        cidrs: vec!["10.2.0.0/16".into(), "10.1.0.0/16".into(), "2001:db8::/32".into()],
    };
    let changes = [ClusterChange::Insert { id: id("one"), spec: full.clone() }, insert("two")];
    let written = store.change_clusters(0, &changes, &[]).await.unwrap();
    assert_eq!(written.generation, 1);
    assert_eq!(written.clusters[0].spec(), full);
    assert_eq!((written.clusters[0].id.clone(), written.clusters[0].version), (id("one"), 1));
    assert_eq!(names(&written), ["Größe", "two"]);
    assert_eq!(store.clusters().await.unwrap(), written);
}

async fn a_write_on_an_older_generation_is_a_conflict_and_changes_nothing(store: &dyn Store) {
    let before = store.change_clusters(0, &[insert("a")], &[]).await.unwrap();
    for generation in [0, 2] {
        let refused = store.change_clusters(generation, &[insert("b")], &[]).await;
        assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    }
    assert_eq!(store.clusters().await.unwrap(), before);
}

async fn an_update_replaces_all_fields_and_counts_versions(store: &dyn Store) {
    let first = ClusterSpec { cidrs: vec!["10.0.0.0/8".into(), "11.0.0.0/8".into()], idc: "x".into(), ..spec("a") };
    store.change_clusters(0, &[ClusterChange::Insert { id: id("a"), spec: first }], &[]).await.unwrap();
    let second = ClusterSpec { cidrs: vec!["12.0.0.0/8".into()], location: "l".into(), default: true, ..spec("b") };
    let update = ClusterChange::Update { id: id("a"), spec: second.clone() };
    let table = store.change_clusters(1, &[update], &[]).await.unwrap();
    assert_eq!(table.clusters[0].spec(), second);
    assert_eq!(table.clusters[0].version, 2);
    assert_eq!(store.clusters().await.unwrap(), table);
}

async fn an_age_is_never_used_twice(store: &dyn Store) {
    let first = store.change_clusters(0, &[insert("a"), insert("b")], &[]).await.unwrap();
    store.change_clusters(1, &[ClusterChange::Delete { id: id("b") }], &[]).await.unwrap();
    let third = store.change_clusters(2, &[insert("c")], &[]).await.unwrap();
    assert_eq!(names(&third), ["a", "c"]);
    assert!(third.clusters[1].seq > first.clusters[1].seq);
}

async fn one_bad_change_undoes_all_of_the_call(store: &dyn Store) {
    let before = store.change_clusters(0, &[insert("a")], &[]).await.unwrap();
    let changes =
        [ClusterChange::Delete { id: id("a") }, insert("b"), ClusterChange::Update { id: id("gone"), spec: spec("c") }];
    assert!(matches!(store.change_clusters(1, &changes, &[]).await, Err(Error::NoCluster(gone)) if gone == id("gone")));
    assert_eq!(store.clusters().await.unwrap(), before);
    // The generation did not move either.
    store.change_clusters(1, &[insert("b")], &[]).await.unwrap();
}

async fn a_name_is_unique(store: &dyn Store) {
    store.change_clusters(0, &[insert("a"), insert("b")], &[]).await.unwrap();
    let again = ClusterChange::Insert { id: id("other"), spec: spec("a") };
    assert!(matches!(store.change_clusters(1, &[again], &[]).await, Err(Error::NameTaken(name)) if name == "a"));
    let rename = ClusterChange::Update { id: id("b"), spec: spec("a") };
    assert!(matches!(store.change_clusters(1, &[rename], &[]).await, Err(Error::NameTaken(name)) if name == "a"));
}

async fn a_deleted_name_can_be_taken_in_the_same_call(store: &dyn Store) {
    store.change_clusters(0, &[insert("a")], &[]).await.unwrap();
    let successor = ClusterChange::Insert { id: id("new"), spec: spec("a") };
    let table = store.change_clusters(1, &[successor, ClusterChange::Delete { id: id("a") }], &[]).await.unwrap();
    assert_eq!((names(&table), table.clusters[0].id.clone()), (vec!["a"], id("new")));
}

async fn an_update_of_a_cluster_that_is_gone_is_refused(store: &dyn Store) {
    for change in [ClusterChange::Update { id: id("a"), spec: spec("a") }, ClusterChange::Delete { id: id("a") }] {
        assert!(matches!(store.change_clusters(0, &[change], &[]).await, Err(Error::NoCluster(_))));
    }
}

async fn can_be_probed(store: &dyn Store) {
    store.probe().await.unwrap();
    store.probe().await.unwrap();
}

async fn keeps_text_that_looks_like_sql(store: &dyn Store) {
    let name = "a'; DROP TABLE clusters; --";
    let table =
        store.change_clusters(0, &[ClusterChange::Insert { id: id("a"), spec: spec(name) }], &[]).await.unwrap();
    assert_eq!(names(&table), [name]);
}

mod sqlite_alone {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn clusters_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        let table = store.change_clusters(0, &[insert("a")], &[]).await.unwrap();
        drop(store);
        assert_eq!(SqliteStore::open(dir.path()).await.unwrap().clusters().await.unwrap(), table);
    }

    #[tokio::test]
    async fn files_are_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("control.db"), []).unwrap();
        std::fs::set_permissions(state.join("control.db"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let store = SqliteStore::open(&state).await.unwrap();
        store.change_clusters(0, &[insert("a")], &[]).await.unwrap();
        let files: Vec<_> = std::fs::read_dir(&state).unwrap().map(Result::unwrap).collect();
        assert!(files.len() >= 3, "database, journal and lock: {files:?}");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_made_is_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        SqliteStore::open(&state).await.unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test]
    async fn a_second_process_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SqliteStore::open(dir.path()).await.unwrap();
        let second = SqliteStore::open(dir.path()).await.unwrap_err();
        assert!(matches!(second, Error::Locked { .. }), "{second}");
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        store.forge_later_schema(9001).await;
        store.close().await;
        drop(store);
        let refused = SqliteStore::open(dir.path()).await.unwrap_err();
        assert!(matches!(refused, Error::NewerSchema { found: 9001, known: 5, .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("control.db") && text.contains("9001") && text.contains("later release"), "{text}");
    }

    #[tokio::test]
    async fn a_database_that_was_removed_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        store.probe().await.unwrap();
        std::fs::remove_file(dir.path().join("control.db")).unwrap();
        assert!(matches!(store.probe().await, Err(Error::Replaced { .. })));
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("control.db"), vec![b'x'; 4096]).unwrap();
        let refused = SqliteStore::open(dir.path()).await.unwrap_err();
        assert!(refused.to_string().contains("control.db"), "{refused}");
    }

    #[tokio::test]
    async fn a_backup_is_made_while_others_write_and_is_of_one_moment() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let store = std::sync::Arc::new(SqliteStore::open(&state).await.unwrap());
        let writing = tokio::spawn({
            let store = store.clone();
            async move {
                for n in 0..60_u64 {
                    // Two in each write: a copy with an odd number is of no moment.
                    let changes = [insert(&format!("a{n}")), insert(&format!("b{n}"))];
                    store.change_clusters(n, &changes, &[]).await.unwrap();
                }
            }
        });
        let mut sizes = Vec::new();
        for n in 0..6 {
            let copy = dir.path().join(format!("copy{n}"));
            std::fs::create_dir(&copy).unwrap();
            crate::store::backup(&state, &copy.join("control.db")).await.unwrap();
            assert_eq!(std::fs::metadata(copy.join("control.db")).unwrap().permissions().mode() & 0o777, 0o600);
            let restored = SqliteStore::open(&copy).await.unwrap().clusters().await.unwrap();
            assert_eq!(restored.clusters.len() as u64, 2 * restored.generation);
            sizes.push(restored.generation);
        }
        writing.await.unwrap();
        assert!(sizes.is_sorted(), "{sizes:?}");
        let last = dir.path().join("last");
        crate::store::backup(&state, &last).await.unwrap();
        std::fs::create_dir(dir.path().join("restored")).unwrap();
        std::fs::rename(&last, dir.path().join("restored/control.db")).unwrap();
        let restored = SqliteStore::open(&dir.path().join("restored")).await.unwrap();
        assert_eq!(restored.clusters().await.unwrap(), store.clusters().await.unwrap());
    }

    #[tokio::test]
    async fn a_backup_overwrites_nothing_and_leaves_nothing_behind_when_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        std::fs::write(&there, "precious").unwrap();
        let state = dir.path().join("state");
        let missing = crate::store::backup(&state, &dir.path().join("copy")).await.unwrap_err();
        assert!(matches!(missing, Error::NoDatabase { .. }), "{missing}");
        SqliteStore::open(&state).await.unwrap().close().await;
        let taken = crate::store::backup(&state, &there).await.unwrap_err();
        assert!(matches!(taken, Error::Exists { .. }), "{taken}");
        assert_eq!(std::fs::read_to_string(&there).unwrap(), "precious");
        std::fs::write(state.join("control.db"), vec![7; 8192]).unwrap();
        let damaged = crate::store::backup(&state, &dir.path().join("copy")).await.unwrap_err();
        assert!(matches!(damaged, Error::Damaged { .. }), "{damaged}");
        assert!(!dir.path().join("copy").exists());
    }

    #[tokio::test]
    async fn a_damaged_database_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        for n in 0..200 {
            store.change_clusters(n, &[insert(&format!("cluster-{n}"))], &[]).await.unwrap();
        }
        store.close().await;
        drop(store);
        let path = dir.path().join("control.db");
        let whole = std::fs::read(&path).unwrap();
        // Not a database at all; the middle overwritten; the end lost.
        let mut middle = whole.clone();
        middle[8192..16384].fill(0xa5);
        for (what, bytes) in
            [("other", b"nonsense".repeat(1000)), ("middle", middle), ("short", whole[..12_000].to_vec())]
        {
            std::fs::write(&path, &bytes).unwrap();
            let refused = SqliteStore::open(dir.path()).await.unwrap_err();
            let text = refused.to_string();
            assert!(matches!(refused, Error::Damaged { .. }), "{what}: {text}");
            assert!(text.contains("control.db") && text.contains("backup"), "{text}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "{what}: it is left as it was");
            for beside in ["control.db-wal", "control.db-shm"] {
                let _ = std::fs::remove_file(dir.path().join(beside));
            }
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(SqliteStore::open(dir.path()).await.unwrap().clusters().await.unwrap().clusters.len(), 200);
    }

    #[tokio::test]
    async fn an_empty_database_beside_an_authority_is_no_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        // As a first start leaves it that broke off.
        std::fs::write(&path, "").unwrap();
        SqliteStore::open(dir.path()).await.unwrap().close().await;
        for authority in ["ca.key", "ca.pem"] {
            std::fs::write(&path, "").unwrap();
            std::fs::write(dir.path().join(authority), "an authority").unwrap();
            let refused = SqliteStore::open(dir.path()).await.unwrap_err();
            let text = refused.to_string();
            assert!(matches!(refused, Error::Emptied { .. }), "{text}");
            for part in
                ["control.db is damaged", authority, "put a backup in its place", "move the whole directory away"]
            {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "it is left as it was");
            let copy = crate::store::backup(dir.path(), &dir.path().join("copy")).await.unwrap_err();
            assert!(matches!(copy, Error::Emptied { .. }), "{copy}");
            std::fs::remove_file(dir.path().join(authority)).unwrap();
        }
    }

    #[tokio::test]
    async fn a_schema_step_that_is_another_than_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        store.forge_checksum(2).await;
        store.close().await;
        drop(store);
        let refused = SqliteStore::open(dir.path()).await.unwrap_err();
        assert!(matches!(refused, Error::OtherSchema { version: 2, .. }), "{refused}");
        assert!(refused.to_string().contains("control.db"), "{refused}");
    }

    #[tokio::test]
    async fn a_database_that_can_not_be_written_says_so_and_goes_on_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        store.query_only(true).await;
        let probe = store.probe().await.unwrap_err();
        assert!(matches!(&probe, Error::ReadOnly { path, .. } if path.ends_with("control.db")), "{probe}");
        assert!(probe.to_string().contains("can't be written"), "{probe}");
        store.query_only(false).await;
        store.probe().await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_refuses_writes_and_says_so_and_all_goes_on_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        let before = store.clusters().await.unwrap();
        let large = |name: &str| {
            let cidrs = (0..4000).map(|number| format!("10.{}.{}.0/24", number / 250, number % 250)).collect();
            let spec = ClusterSpec { name: name.into(), cidrs, ..ClusterSpec::default() };
            [ClusterChange::Insert { id: name.parse().unwrap(), spec }]
        };
        store.run_out(true).await;
        let refused = store.change_clusters(before.generation, &large("big"), &[]).await.err();
        assert!(matches!(&refused, Some(Error::Full { doing }) if doing.contains("write cluster")), "it was taken");
        assert!(refused.unwrap().to_string().contains("full"));
        assert_eq!(store.clusters().await.unwrap(), before);
        store.run_out(false).await;
        // On each connection: none of them may be left behind in the transaction that SQLite rolled back.
        for _ in 0..10 {
            store.probe().await.unwrap();
        }
        let after = store.change_clusters(before.generation, &large("big"), &[]).await.unwrap();
        assert_eq!(after.clusters.len(), before.clusters.len() + 1);
    }
}
