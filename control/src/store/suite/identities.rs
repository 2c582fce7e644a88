//! What every store must do with tokens, members and the audit log.

use std::collections::BTreeSet;

use serde_json::json;
use shoal_proto::NodeId;

use super::*;

macro_rules! suite {
    ($($name:ident)*) => {
        mod on_memory { $(#[tokio::test] async fn $name() { super::$name(&*super::memory().await.store).await })* }
        mod on_sqlite { $(#[tokio::test] async fn $name() { super::$name(&*super::sqlite().await.store).await })* }
    };
}

suite! {
    a_join_token_is_kept_until_it_is_removed
    a_join_token_of_a_cluster_that_is_not_there_is_refused_and_goes_with_it
    a_token_admits_as_many_nodes_as_it_has_uses
    a_token_that_is_over_or_wrong_admits_nobody_and_writes_nothing
    a_member_is_known_by_its_key
    who_is_answered_for_is_admitted_once_and_known_by_its_key
    a_revoked_member_stays_revoked_and_its_certificates_void
    a_member_that_is_not_as_it_was_seen_is_neither_revoked_nor_removed
    what_is_void_is_forgotten_when_it_is_over_anyway_and_never_shrinks
    api_tokens_have_names_of_their_own
    the_audit_log_is_read_from_its_end
    the_audit_log_is_narrowed_by_who_what_about_what_and_when
    join_tokens_and_members_are_narrowed
    a_change_of_clusters_and_its_audit_are_written_together_or_not_at_all
}

fn node(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn entry(subject: &str) -> AuditEntry {
    let (who, action) = ("admin".to_owned(), "test".to_owned());
    AuditEntry { at: 7, who, action, subject: subject.into(), before: Some(json!({"a": [1, "é"]})), after: None }
}

fn token(id: &str, uses_left: u32) -> JoinTokenRow {
    JoinTokenRow {
        id: id.into(),
        hash: [7; 32],
        cluster: None,
        seed: true,
        expires: 100,
        uses_left,
        created: 10,
        created_by: "admin".into(),
    }
}

fn joining(token: &str, name: &str) -> Joining {
    Joining { token: token.into(), hash: [7; 32], node: node(name), key: [9; 32], now: 50 }
}

fn void(name: &str, before: u64, forget: u64) -> Void {
    Void { node: node(name), before, forget }
}

async fn subjects(store: &dyn Both) -> Vec<String> {
    store.audit(None, 100).await.unwrap().into_iter().map(|row| row.entry.subject).collect()
}

async fn a_join_token_is_kept_until_it_is_removed(store: &dyn Both) {
    store.add_join_token(&JoinTokenRow { created: 11, ..token("b", 2) }, &entry("made b")).await.unwrap();
    store.add_join_token(&token("a", 1), &entry("made a")).await.unwrap();
    let kept = store.join_tokens().await.unwrap();
    assert_eq!(kept, [token("a", 1), JoinTokenRow { created: 11, ..token("b", 2) }], "oldest first");
    assert!(store.remove_join_token("a", &entry("removed a")).await.unwrap());
    assert!(!store.remove_join_token("a", &entry("removed a again")).await.unwrap());
    assert_eq!(store.join_tokens().await.unwrap().len(), 1);
    assert_eq!(subjects(store).await, ["removed a", "made a", "made b"]);
}

async fn a_join_token_of_a_cluster_that_is_not_there_is_refused_and_goes_with_it(store: &dyn Both) {
    let bound = JoinTokenRow { cluster: Some(id("c")), ..token("a", 1) };
    let refused = store.add_join_token(&bound, &entry("x")).await;
    assert!(matches!(refused, Err(Error::NoCluster(gone)) if gone == id("c")));
    assert!(subjects(store).await.is_empty());
    store.change_clusters(0, &[insert("c")], &[]).await.unwrap();
    store.add_join_token(&bound, &entry("x")).await.unwrap();
    assert_eq!(store.join_tokens().await.unwrap(), [bound]);
    store.change_clusters(1, &[ClusterChange::Delete { id: id("c") }], &[]).await.unwrap();
    assert!(store.join_tokens().await.unwrap().is_empty());
}

async fn a_token_admits_as_many_nodes_as_it_has_uses(store: &dyn Both) {
    store.change_clusters(0, &[insert("c")], &[]).await.unwrap();
    store.add_join_token(&JoinTokenRow { cluster: Some(id("c")), ..token("t", 2) }, &entry("t")).await.unwrap();
    let member = Member {
        node: node("n1"),
        key: [9; 32],
        cluster: Some(id("c")),
        seed: true,
        joined_by: "t".into(),
        joined: 50,
        revoked: None,
    };
    let admitted = store.join(&joining("t", "n1"), &entry("n1")).await.unwrap();
    assert_eq!(admitted, Admission::Admitted(member.clone()));
    // Again, with the same key: no use is taken, and nothing is written.
    let later = Joining { now: 60, ..joining("t", "n1") };
    assert_eq!(store.join(&later, &entry("n1 again")).await.unwrap(), Admission::Known(member.clone()));
    assert!(matches!(store.join(&joining("t", "n2"), &entry("n2")).await.unwrap(), Admission::Admitted(_)));
    assert_eq!(store.join(&joining("t", "n3"), &entry("n3")).await.unwrap(), Admission::BadToken);
    assert_eq!(store.join_tokens().await.unwrap()[0].uses_left, 0);
    assert_eq!(subjects(store).await, ["n2", "n1", "t"]);
    assert_eq!(store.member(&node("n1")).await.unwrap(), Some(member));
    let members = store.members().await.unwrap();
    assert_eq!(members.iter().map(|member| member.node.as_str()).collect::<Vec<_>>(), ["n1", "n2"]);
}

async fn a_token_that_is_over_or_wrong_admits_nobody_and_writes_nothing(store: &dyn Both) {
    store.add_join_token(&token("t", 2), &entry("t")).await.unwrap();
    for bad in [
        Joining { hash: [8; 32], ..joining("t", "n1") },
        Joining { now: 100, ..joining("t", "n1") },
        joining("other", "n1"),
    ] {
        assert_eq!(store.join(&bad, &entry("n1")).await.unwrap(), Admission::BadToken, "{bad:?}");
    }
    assert!(store.members().await.unwrap().is_empty());
    assert_eq!((store.join_tokens().await.unwrap()[0].uses_left, subjects(store).await.len()), (2, 1));
}

async fn a_member_is_known_by_its_key(store: &dyn Both) {
    store.add_join_token(&token("t", 9), &entry("t")).await.unwrap();
    store.join(&joining("t", "n1"), &entry("n1")).await.unwrap();
    let other = Joining { key: [1; 32], ..joining("t", "n1") };
    assert_eq!(store.join(&other, &entry("n1")).await.unwrap(), Admission::OtherKey);
    assert!(store.remove_member(&node("n1"), None, &entry("removed")).await.unwrap());
    assert!(!store.remove_member(&node("n1"), None, &entry("removed")).await.unwrap());
    assert!(matches!(store.join(&other, &entry("n1")).await.unwrap(), Admission::Admitted(_)));
    assert_eq!(store.member(&node("n1")).await.unwrap().unwrap().key, [1; 32]);
    assert_eq!(store.member(&node("n2")).await.unwrap(), None);
}

async fn who_is_answered_for_is_admitted_once_and_known_by_its_key(store: &dyn Both) {
    let member = Member {
        node: node("n1"),
        key: [9; 32],
        cluster: Some(id("c")),
        seed: true,
        joined_by: "kubernetes:k:ns:name".into(),
        joined: 50,
        revoked: None,
    };
    assert_eq!(store.admit(&member, &entry("n1")).await.unwrap(), Admission::Admitted(member.clone()));
    let again = Member { cluster: None, seed: false, joined: 60, ..member.clone() };
    assert_eq!(store.admit(&again, &entry("n1 again")).await.unwrap(), Admission::Known(member.clone()));
    let other = Member { key: [1; 32], ..member.clone() };
    assert_eq!(store.admit(&other, &entry("other")).await.unwrap(), Admission::OtherKey);
    assert_eq!(store.member(&node("n1")).await.unwrap(), Some(member.clone()));
    assert!(store.revoke(&node("n1"), None, 70, &void("n1", 1, 99), &entry("revoked")).await.unwrap());
    assert_eq!(store.admit(&member, &entry("n1")).await.unwrap(), Admission::Revoked);
    assert_eq!(subjects(store).await, ["revoked", "n1"]);
}

async fn a_revoked_member_stays_revoked_and_its_certificates_void(store: &dyn Both) {
    store.add_join_token(&token("t", 9), &entry("t")).await.unwrap();
    let nobody = store.revoke(&node("n1"), None, 60, &void("n1", 1, 99), &entry("nobody")).await.unwrap();
    assert!(!nobody && store.voids(0).await.unwrap().is_empty());
    store.join(&joining("t", "n1"), &entry("n1")).await.unwrap();
    assert!(store.revoke(&node("n1"), None, 60, &void("n1", 1, 99), &entry("revoked")).await.unwrap());
    assert!(store.revoke(&node("n1"), None, 70, &void("n1", 2, 99), &entry("revoked again")).await.unwrap());
    assert_eq!(store.member(&node("n1")).await.unwrap().unwrap().revoked, Some(60));
    assert_eq!(store.voids(0).await.unwrap(), [void("n1", 2, 99)]);
    assert_eq!(store.join(&joining("t", "n1"), &entry("n1")).await.unwrap(), Admission::Revoked);
    assert_eq!(subjects(store).await, ["revoked again", "revoked", "n1", "t"]);
}

async fn a_member_that_is_not_as_it_was_seen_is_neither_revoked_nor_removed(store: &dyn Both) {
    store.add_join_token(&token("t", 9), &entry("t")).await.unwrap();
    store.join(&joining("t", "n1"), &entry("joined")).await.unwrap();
    let seen = store.member(&node("n1")).await.unwrap().unwrap();
    // Somebody removes it, and the name joins anew with another key, within the same second.
    assert!(store.remove_member(&node("n1"), Some(&seen), &entry("removed")).await.unwrap());
    store.join(&Joining { key: [1; 32], ..joining("t", "n1") }, &entry("joined anew")).await.unwrap();
    assert!(!store.remove_member(&node("n1"), Some(&seen), &entry("late")).await.unwrap());
    assert!(!store.revoke(&node("n1"), Some(&seen), 60, &void("n1", 1, 99), &entry("late")).await.unwrap());
    let now = store.member(&node("n1")).await.unwrap().unwrap();
    assert_eq!((now.key, now.revoked), ([1; 32], None));
    assert!(store.voids(0).await.unwrap().is_empty());
    assert!(store.revoke(&node("n1"), Some(&now), 60, &void("n1", 1, 99), &entry("revoked")).await.unwrap());
    assert!(!store.remove_member(&node("n1"), Some(&now), &entry("late")).await.unwrap(), "it was revoked since");
    assert!(!store.remove_member(&node("n2"), Some(&now), &entry("nobody")).await.unwrap());
    assert_eq!(subjects(store).await, ["revoked", "joined anew", "removed", "joined", "t"]);
}

async fn what_is_void_is_forgotten_when_it_is_over_anyway_and_never_shrinks(store: &dyn Both) {
    store.void(&[void("n1", 5, 99), void("n2", 6, 100)]).await.unwrap();
    store.void(&[void("n1", 4, 98)]).await.unwrap();
    assert_eq!(store.voids(98).await.unwrap(), [void("n1", 5, 99), void("n2", 6, 100)]);
    assert_eq!(store.voids(99).await.unwrap(), [void("n2", 6, 100)]);
    assert_eq!(store.voids(0).await.unwrap(), [void("n2", 6, 100)], "what was forgotten stays so");
}

async fn api_tokens_have_names_of_their_own(store: &dyn Both) {
    let row = |id: &str, name: &str, hash: u8| ApiTokenRow {
        id: id.into(),
        name: name.into(),
        hash: [hash; 32],
        role: Role::Operator,
        clusters: Some(BTreeSet::from([super::id("a"), super::id("b")])),
        created: 10,
        expires: Some(20),
    };
    let all = ApiTokenRow { clusters: None, expires: None, role: Role::Admin, created: 9, ..row("2", "two", 2) };
    store.add_api_token(&row("1", "one", 1), &entry("one")).await.unwrap();
    store.add_api_token(&all, &entry("two")).await.unwrap();
    let taken = store.add_api_token(&row("3", "one", 3), &entry("three")).await;
    assert!(matches!(taken, Err(Error::NameTaken(name)) if name == "one"));
    assert_eq!(store.api_tokens().await.unwrap(), [all, row("1", "one", 1)]);
    assert!(store.remove_api_token("1", &entry("removed")).await.unwrap());
    assert!(!store.remove_api_token("1", &entry("removed")).await.unwrap());
    assert_eq!(subjects(store).await, ["removed", "two", "one"]);
}

async fn the_audit_log_is_read_from_its_end(store: &dyn Both) {
    for subject in ["a", "b", "c", "d"] {
        store.add_join_token(&token(subject, 1), &entry(subject)).await.unwrap();
    }
    let newest = store.audit(None, 2).await.unwrap();
    assert_eq!(newest.iter().map(|row| row.entry.clone()).collect::<Vec<_>>(), [entry("d"), entry("c")]);
    let older = store.audit(Some(newest[1].seq), 9).await.unwrap();
    assert_eq!(older.iter().map(|row| row.entry.subject.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert!(store.audit(Some(older[1].seq), 9).await.unwrap().is_empty());
}

async fn the_audit_log_is_narrowed_by_who_what_about_what_and_when(store: &dyn Both) {
    let log = [
        (10, "ada", "cluster.create", "west"),
        (20, "ada", "cluster.update", "west"),
        (30, "bo", "cluster.update", "east"),
        (40, "bo", "clusters", "west"),
        (50, "ada", "member.revoke", "west"),
        // The clock was set back.
        (25, "ada", "cluster.delete", "west"),
    ];
    for (n, (at, who, action, subject)) in log.iter().enumerate() {
        let (at, who, action, subject) = (*at, (*who).to_owned(), (*action).to_owned(), (*subject).to_owned());
        let entry = AuditEntry { at, who, action, subject, before: None, after: None };
        store.add_join_token(&token(&n.to_string(), 1), &entry).await.unwrap();
    }
    let all = store.audit(None, 100).await.unwrap();
    let seq = |n: usize| all[all.len() - 1 - n].seq;
    let some = |text: &str| Some(text.to_owned());
    let any = AuditFilter::default;
    for (filter, found) in [
        (any(), vec![5, 4, 3, 2, 1, 0]),
        (AuditFilter { who: some("bo"), ..any() }, vec![3, 2]),
        (AuditFilter { who: some("BO"), ..any() }, vec![]),
        (AuditFilter { action: some("cluster.update"), ..any() }, vec![2, 1]),
        (AuditFilter { action: some("cluster"), ..any() }, vec![5, 2, 1, 0]),
        (AuditFilter { action: some("cluster."), ..any() }, vec![]),
        (AuditFilter { action: some("%"), ..any() }, vec![]),
        (AuditFilter { subject: some("east"), ..any() }, vec![2]),
        (AuditFilter { since: Some(25), ..any() }, vec![5, 4, 3, 2]),
        (AuditFilter { until: Some(25), ..any() }, vec![1, 0]),
        (AuditFilter { since: Some(20), until: Some(30), ..any() }, vec![5, 1]),
        (AuditFilter { who: some("ada"), action: some("cluster"), subject: some("west"), ..any() }, vec![5, 1, 0]),
        (AuditFilter { who: some("ada"), before: Some(seq(4)), ..any() }, vec![1, 0]),
        (AuditFilter { before: Some(u64::MAX), since: Some(u64::MAX), ..any() }, vec![]),
    ] {
        let rows = store.audit_of(&filter, 100).await.unwrap();
        let found: Vec<u64> = found.into_iter().map(seq).collect();
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), found, "{filter:?}");
        let first = store.audit_of(&filter, 1).await.unwrap();
        assert_eq!(first.len(), found.len().min(1), "{filter:?}");
        assert_eq!(first.first(), rows.first(), "{filter:?}");
    }
}

async fn join_tokens_and_members_are_narrowed(store: &dyn Both) {
    store.change_clusters(0, &[insert("c")], &[]).await.unwrap();
    let bound = JoinTokenRow { cluster: Some(id("c")), ..token("bound", 3) };
    let plain = JoinTokenRow { seed: false, ..token("plain", 3) };
    for token in [bound, plain, token("used", 0), JoinTokenRow { expires: 60, ..token("over", 3) }] {
        store.add_join_token(&token, &entry(&token.id)).await.unwrap();
    }
    let any = JoinTokenFilter::default;
    for (filter, found) in [
        (any(), vec!["bound", "over", "plain", "used"]),
        (JoinTokenFilter { cluster: Some(id("c")), ..any() }, vec!["bound"]),
        (JoinTokenFilter { cluster: Some(id("d")), ..any() }, vec![]),
        (JoinTokenFilter { seed: Some(false), ..any() }, vec!["plain"]),
        (JoinTokenFilter { valid: Some((true, 60)), ..any() }, vec!["bound", "plain"]),
        (JoinTokenFilter { valid: Some((false, 60)), ..any() }, vec!["over", "used"]),
        (JoinTokenFilter { valid: Some((true, 59)), seed: Some(true), ..any() }, vec!["bound", "over"]),
    ] {
        let rows = store.join_tokens_of(&filter).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), found, "{filter:?}");
    }
    for (by, node) in [("bound", "n1"), ("plain", "n2"), ("bound", "n3")] {
        assert!(matches!(store.join(&joining(by, node), &entry(node)).await.unwrap(), Admission::Admitted(_)));
    }
    store.revoke(&node("n3"), None, 60, &void("n3", 1, 99), &entry("revoked")).await.unwrap();
    for (seed, revoked, found) in [
        (None, None, vec!["n1", "n2", "n3"]),
        (Some(true), None, vec!["n1", "n3"]),
        (Some(false), None, vec!["n2"]),
        (None, Some(true), vec!["n3"]),
        (Some(true), Some(false), vec!["n1"]),
    ] {
        let rows = store.members_of(&MemberFilter { seed, revoked }).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.node.as_str()).collect::<Vec<_>>(), found, "{seed:?} {revoked:?}");
    }
}

async fn a_change_of_clusters_and_its_audit_are_written_together_or_not_at_all(store: &dyn Both) {
    let refused = store.change_clusters(7, &[insert("a")], &[entry("conflict")]).await;
    assert!(matches!(refused, Err(Error::Conflict)));
    let gone = [insert("a"), ClusterChange::Delete { id: id("gone") }];
    assert!(store.change_clusters(0, &gone, &[entry("gone")]).await.is_err());
    assert!(subjects(store).await.is_empty());
    store.change_clusters(0, &[insert("a")], &[entry("one"), entry("two")]).await.unwrap();
    assert_eq!(subjects(store).await, ["two", "one"]);
}
