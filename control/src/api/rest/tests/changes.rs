//! Changes: that two people do not overwrite each other, and what a change would do before it is made.

use super::*;

async fn without(rest: &Rest, method: Method, path: &str, body: &Value) -> Answer {
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    rest.send(request.body(Body::from(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn a_change_that_does_not_say_on_what_it_was_decided_is_refused_and_changes_nothing() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b"})).await;
    let join = rest.ask(Method::POST, "/api/v1/join-tokens", None, &json!({})).await.json();
    rest.token("ci", "viewer", None).await;
    let join = format!("/api/v1/join-tokens/{}", join["id"].as_str().unwrap());
    rest.admit("n1").await;
    let before = (rest.get("/api/v1/audit").await.json(), rest.get("/api/v1/members/n1").await.json());
    for (method, path, body) in [
        (Method::PUT, CLUSTERS, json!({"clusters": []})),
        (Method::PUT, "/api/v1/clusters/b", json!({"name": "c"})),
        (Method::PATCH, "/api/v1/clusters/b", json!({"name": "c"})),
        (Method::DELETE, "/api/v1/clusters/b", json!(null)),
        (Method::DELETE, &join, json!(null)),
        (Method::DELETE, "/api/v1/api-tokens/ci", json!(null)),
        (Method::POST, "/api/v1/members/n1/revoke", json!(null)),
        (Method::DELETE, "/api/v1/members/n1", json!(null)),
    ] {
        let refused = without(&rest, method.clone(), path, &body).await;
        assert_eq!((refused.status, refused.faults()), (428, vec!["If-Match".to_owned()]), "{method} {path}");
        for stale in ["\"other\"", "\"0\", W/\"1\""] {
            let refused = rest.ask(method.clone(), path, Some(stale), &body).await;
            assert_eq!(
                (refused.status, refused.faults()),
                (412, vec!["If-Match".to_owned()]),
                "{method} {path} {stale}"
            );
        }
        for nonsense in ["1", "\"1", "\"1\" \"2\"", ""] {
            let refused = rest.ask(method.clone(), path, Some(nonsense), &body).await;
            assert_eq!((refused.status, refused.faults()), (400, vec!["If-Match".to_owned()]), "{method} {path}");
        }
    }
    let after = (rest.get("/api/v1/audit").await.json(), rest.get("/api/v1/members/n1").await.json());
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_member_is_revoked_and_forgotten_as_it_was_read_and_not_when_its_name_is_another_s_by_now() {
    let rest = rest().await;
    rest.admit("n1").await;
    let (path, revoke) = ("/api/v1/members/n1", "/api/v1/members/n1/revoke");
    let first = rest.get(path).await.etag.unwrap();
    assert_eq!(rest.ask(Method::DELETE, path, Some(&first), &json!(null)).await.status, 204);
    // The same name, and another key.
    rest.admit("n1").await;
    for (method, path) in [(Method::POST, revoke), (Method::DELETE, path)] {
        let late = rest.ask(method, path, Some(&first), &json!(null)).await;
        assert_eq!((late.status, late.faults()), (412, vec!["If-Match".to_owned()]));
    }
    let second = rest.get(path).await.etag.unwrap();
    let revoked = rest.ask(Method::POST, revoke, Some(&second), &json!(null)).await;
    assert!(revoked.status == 200 && revoked.json()["revoked"].is_string(), "{}", revoked.text);
    assert_eq!(rest.get(path).await.etag, revoked.etag, "the answer has the tag of what it tells");
    assert_eq!(rest.ask(Method::DELETE, path, Some(&second), &json!(null)).await.status, 412, "it was revoked since");
    assert_eq!(rest.ask(Method::POST, revoke, Some("*"), &json!(null)).await.status, 200);
    assert_eq!(rest.ask(Method::DELETE, path, revoked.etag.as_deref(), &json!(null)).await.status, 204);
}

#[tokio::test]
async fn what_was_read_can_be_changed_by_its_etag_once() {
    let rest = rest().await;
    let made = rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b"})).await;
    let tag = made.etag.unwrap();
    let listed = format!("\"77\", {tag}");
    let path = "/api/v1/clusters/b";
    assert_eq!(rest.ask(Method::PATCH, path, Some(&listed), &json!({"idc": "x"})).await.status, 200);
    assert_eq!(rest.ask(Method::DELETE, path, Some(&tag), &json!(null)).await.status, 412);
    let set = rest.get(CLUSTERS).await.etag.unwrap();
    let declared = json!({"clusters": [{"name": "default", "default": true}, {"name": "b", "idc": "y"}]});
    assert_eq!(rest.ask(Method::PUT, CLUSTERS, Some(&set), &declared).await.status, 200);
    assert_eq!(rest.ask(Method::PUT, CLUSTERS, Some(&set), &declared).await.status, 412);

    rest.token("ci", "viewer", None).await;
    let path = "/api/v1/api-tokens/ci";
    let first = rest.get(path).await.etag.unwrap();
    assert_eq!(rest.ask(Method::DELETE, path, Some(&first), &json!(null)).await.status, 204);
    rest.token("ci", "viewer", None).await;
    assert_eq!(
        rest.ask(Method::DELETE, path, Some(&first), &json!(null)).await.status,
        412,
        "another one has its name"
    );
    let second = rest.get(path).await.etag.unwrap();
    assert_eq!(rest.ask(Method::DELETE, path, Some(&second), &json!(null)).await.status, 204);
}

#[tokio::test]
async fn an_etag_is_not_that_of_another_cluster_of_the_same_name() {
    let rest = rest().await;
    let path = "/api/v1/clusters/b";
    let first = rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b"})).await;
    assert_eq!(rest.ask(Method::DELETE, path, first.etag.as_deref(), &json!(null)).await.status, 204);
    let second = rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b"})).await;
    assert_eq!(first.json()["version"], second.json()["version"]);
    for (method, body) in [
        (Method::PUT, json!({"name": "b", "idc": "x"})),
        (Method::PATCH, json!({"idc": "x"})),
        (Method::DELETE, json!(null)),
    ] {
        let refused = rest.ask(method.clone(), path, first.etag.as_deref(), &body).await;
        assert_eq!((refused.status, refused.faults()), (412, vec!["If-Match".to_owned()]), "{method}");
        // As it was before ids were in it: only a number.
        assert_eq!(rest.ask(method, path, Some("\"1\""), &body).await.status, 412);
    }
    let shown = second.json();
    assert_eq!(second.etag, Some(format!("\"{}.1\"", shown["id"].as_str().unwrap())));
    assert_eq!(rest.ask(Method::PATCH, path, second.etag.as_deref(), &json!({"idc": "x"})).await.status, 200);
}

#[tokio::test]
async fn a_dry_run_tells_which_live_nodes_would_move_and_moves_none() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    for (name, idc) in [("n1", "west"), ("n2", "west"), ("n3", "north"), ("n4", "")] {
        rest.join(name, &format!("10.0.0.{}", &name[1..]), idc);
    }
    let before = rest.get(CLUSTERS).await.json();
    let moves = |answer: &Answer| {
        assert_eq!((answer.status, &answer.json()["dry_run"]), (200, &json!(true)), "{}", answer.text);
        let moves = answer.json()["moves"].clone();
        let nodes = moves["nodes"].as_array().unwrap().clone();
        assert_eq!(moves["count"], nodes.len());
        assert!(nodes.iter().all(|moved| !moved["reason"].as_str().unwrap().is_empty()));
        nodes
            .iter()
            .map(|n| format!("{}: {} -> {}", n["node"], n["from"], n["to"]).replace('"', ""))
            .collect::<Vec<_>>()
    };
    // No If-Match is needed to look.
    let body = json!({"idc": "north"});
    let edit = without(&rest, Method::PATCH, "/api/v1/clusters/b?dry_run=true", &body).await;
    assert_eq!(moves(&edit), ["n1: b -> default", "n2: b -> default", "n3: default -> b"]);
    let between = edit.json()["moves"]["between"].clone();
    assert_eq!(
        between,
        json!([{"from": "b", "to": "default", "nodes": 2}, {"from": "default", "to": "b", "nodes": 1}])
    );
    assert_eq!(edit.json()["changes"][0]["after"]["idc"], "north");
    let body = json!({"name": "c", "idc": "north"});
    let create = without(&rest, Method::POST, "/api/v1/clusters?dry_run=true", &body).await;
    assert_eq!(moves(&create), ["n3: default -> c"]);
    let replace = without(&rest, Method::PUT, "/api/v1/clusters/b?dry_run=true", &json!({"name": "bb"})).await;
    assert_eq!(moves(&replace), ["n1: b -> default", "n2: b -> default"]);
    let delete = without(&rest, Method::DELETE, "/api/v1/clusters/default?dry_run=true", &json!(null)).await;
    assert_eq!(moves(&delete), ["n3: default -> null", "n4: default -> null"]);
    let set = json!({"clusters": [{"name": "b", "default": true}]});
    let apply = without(&rest, Method::PUT, "/api/v1/clusters?dry_run=true", &set).await;
    assert_eq!(moves(&apply), ["n3: default -> b", "n4: default -> b"]);
    let refused = without(&rest, Method::PATCH, "/api/v1/clusters/b?dry_run=true", &json!({"idc": "a||b"})).await;
    assert_eq!((refused.status, refused.faults()), (400, vec!["idc".to_owned()]));
    assert_eq!(without(&rest, Method::PATCH, "/api/v1/clusters/x?dry_run=true", &json!({})).await.status, 404);
    assert_eq!(rest.get(CLUSTERS).await.json(), before);
}

#[tokio::test]
async fn a_cluster_that_becomes_the_default_takes_that_from_the_one_that_was() {
    let mut rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    for (name, idc) in [("n1", "west"), ("n2", "north"), ("n3", "")] {
        rest.join(name, &format!("10.0.0.{}", &name[1..]), idc);
    }
    let path = "/api/v1/clusters/b";
    let both = json!([["default", true, false], ["b", false, true]]);
    let defaults = |answer: &Answer| -> Value {
        let of = |change: &Value| json!([change["name"], change["before"]["default"], change["after"]["default"]]);
        answer.json()["changes"].as_array().unwrap().iter().map(of).collect::<Vec<_>>().into()
    };
    for (method, body) in
        [(Method::PATCH, json!({"default": true})), (Method::PUT, json!({"name": "b", "idc": "west", "default": true}))]
    {
        let planned = rest.ask(method, &format!("{path}?dry_run=true"), None, &body).await;
        assert_eq!((planned.status, defaults(&planned)), (200, both.clone()), "{}", planned.text);
        let between = planned.json()["moves"]["between"].clone();
        assert_eq!(between, json!([{"from": "default", "to": "b", "nodes": 2}]));
    }
    let kept = rest.token("b only", "operator", Some(&["b"])).await;
    let admin = std::mem::replace(&mut rest.token, kept);
    for query in ["", "?dry_run=true"] {
        let refused = rest.ask(Method::PATCH, &format!("{path}{query}"), None, &json!({"default": true})).await;
        assert_eq!(refused.status, 403, "{}", refused.text);
    }
    rest.token = admin;
    let tag = rest.get(path).await.etag.unwrap();
    let done = rest.ask(Method::PATCH, path, Some(&tag), &json!({"default": true})).await;
    assert_eq!((done.status, &done.json()["default_from"]), (200, &json!("default")), "{}", done.text);
    assert_eq!(rest.get(path).await.json().get("default_from"), None, "only the change says so");
    assert_eq!(rest.get("/api/v1/clusters/default").await.json()["default"], false);
    let made = rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "c", "default": true})).await;
    assert_eq!((made.status, &made.json()["default_from"]), (201, &json!("b")));
    // Two of one set that both are to be it can't be meant.
    let set = json!({"clusters": [{"name": "b", "default": true}, {"name": "c", "default": true}]});
    assert_eq!(rest.ask(Method::PUT, CLUSTERS, None, &set).await.faults(), ["default"]);
}

#[tokio::test]
async fn a_token_that_is_kept_to_a_cluster_moves_and_sees_no_nodes_of_others() {
    let mut rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "c", "idc": "south"})).await;
    for (name, ip, idc) in [("n1", "10.0.0.1", "west"), ("n2", "10.0.0.2", "north"), ("n3", "10.0.0.3", "north")] {
        rest.join(name, ip, idc);
    }
    let kept = rest.token("b only", "operator", Some(&["b"])).await;
    let two = rest.token("b and c", "operator", Some(&["b", "c"])).await;
    let before = rest.get(CLUSTERS).await.json();
    rest.token = kept;
    for (method, query, body, nodes) in [
        (Method::PATCH, "", json!({"idc": "west|north"}), 2),
        (Method::PUT, "", json!({"name": "b", "idc": "west|north"}), 2),
        (Method::PATCH, "", json!({"idc": "north"}), 3),
        // Out of its own, into one that it does not reach.
        (Method::PATCH, "", json!({"idc": "east"}), 1),
        (Method::DELETE, "force=true&", json!(null), 1),
    ] {
        for dry in ["", "dry_run=true"] {
            let path = format!("/api/v1/clusters/b?{query}{dry}");
            let refused = rest.ask(method.clone(), &path, None, &body).await;
            assert_eq!((refused.status, refused.faults()), (403, vec![]), "{method} {path}: {}", refused.text);
            assert!(refused.text.contains(&format!("move {nodes} live node(s)")), "{}", refused.text);
            for name in ["host-n", "n2", "10.0.0", "default"] {
                assert!(!refused.text.contains(name), "{}", refused.text);
            }
        }
    }
    // What moves nobody, and what moves nodes between clusters of its own.
    let path = "/api/v1/clusters/b?dry_run=true";
    let none = rest.ask(Method::PATCH, path, None, &json!({"idc": "west|east"})).await;
    assert_eq!((none.status, &none.json()["moves"]["count"]), (200, &json!(0)), "{}", none.text);
    rest.token = two;
    let own =
        rest.ask(Method::PATCH, "/api/v1/clusters/c?dry_run=true", None, &json!({"cidrs": ["10.0.0.1/32"]})).await;
    assert_eq!((own.status, &own.json()["moves"]["nodes"][0]["name"]), (200, &json!("host-n1")), "{}", own.text);
    rest.token = ADMIN.into();
    assert_eq!(rest.get(CLUSTERS).await.json(), before);
    assert_eq!(rest.ask(Method::PATCH, "/api/v1/clusters/b", None, &json!({"idc": "north"})).await.status, 200);
}

#[tokio::test]
async fn a_cluster_gets_no_name_that_can_not_be_asked_for_or_passes_for_an_id() {
    let rest = rest().await;
    let id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    for name in [".", " .. ", id, "a\u{200b}b", "\u{202e}b", "a\u{feff}"] {
        let made = json!({ "name": name });
        for (method, path, body) in [
            (Method::POST, CLUSTERS.to_owned(), made.clone()),
            (Method::POST, format!("{CLUSTERS}?dry_run=true"), made.clone()),
            (Method::PUT, format!("{CLUSTERS}/default"), made.clone()),
            (Method::PATCH, format!("{CLUSTERS}/default"), made.clone()),
            (Method::PUT, CLUSTERS.to_owned(), json!({"clusters": [{"name": "fine"}, made]})),
        ] {
            let refused = rest.ask(method.clone(), &path, None, &body).await;
            assert_eq!((refused.status, refused.faults()), (400, vec!["name".to_owned()]), "{method} {path} {name:?}");
        }
    }
    assert_eq!(rest.get(CLUSTERS).await.json()["total"], 1, "nothing was made");
}

#[tokio::test]
async fn a_cluster_that_has_such_a_name_from_before_keeps_it_and_can_be_changed() {
    use crate::store::{ClusterChange, ClusterSpec, Store as _};
    let store = Arc::new(MemoryStore::default());
    let old = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let spec = ClusterSpec { name: old.into(), ..ClusterSpec::default() };
    store.change_clusters(0, &[ClusterChange::Insert { id: "c1".parse().unwrap(), spec }], &[]).await.unwrap();
    let rest = rest_on(store).await;
    let path = format!("{CLUSTERS}/c1");
    assert_eq!(rest.get(&path).await.json()["name"], old);
    assert_eq!(rest.ask(Method::PATCH, &path, None, &json!({"idc": "west"})).await.status, 200);
    assert_eq!(rest.ask(Method::PUT, &path, None, &json!({"name": old, "idc": "east"})).await.status, 200);
    let set = json!({"clusters": [{"name": old, "idc": "north"}]});
    let applied = rest.ask(Method::PUT, CLUSTERS, None, &set).await;
    assert_eq!(applied.status, 200, "{}", applied.text);
    assert_eq!(rest.ask(Method::PATCH, &path, None, &json!({"name": "mended"})).await.status, 200);
}
