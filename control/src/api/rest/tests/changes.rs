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
    let before = rest.get("/api/v1/audit").await.json();
    let join = format!("/api/v1/join-tokens/{}", join["id"].as_str().unwrap());
    for (method, path, body) in [
        (Method::PUT, CLUSTERS, json!({"clusters": []})),
        (Method::PUT, "/api/v1/clusters/b", json!({"name": "c"})),
        (Method::PATCH, "/api/v1/clusters/b", json!({"name": "c"})),
        (Method::DELETE, "/api/v1/clusters/b", json!(null)),
        (Method::DELETE, &join, json!(null)),
        (Method::DELETE, "/api/v1/api-tokens/ci", json!(null)),
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
    assert_eq!(rest.get("/api/v1/audit").await.json(), before);
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
