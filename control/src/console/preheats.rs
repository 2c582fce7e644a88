//! Pages of preheats: what runs, how far it is on each node, and the form that begins one.

use axum::extract::Path;
use axum::http::Method;
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Value, json};

use super::ask::{Answer, encoded, text};
use super::guard::{Posted, Signed, Stop};
use super::search::{Search, choice, short};
use super::view::{self, Cell, Field, Form, Shell};

const HERE: &str = "/console/preheats";

fn login(form: &Posted) -> Option<Value> {
    let (user, password) = (form.get("user"), form.get("password"));
    (!user.is_empty() || !password.is_empty()).then(|| json!({"user": user, "password": password}))
}

/// A password is never written back into a page.
fn login_fields(form: Option<&Posted>, fault: &dyn Fn(&str) -> String) -> [Field; 2] {
    // Nor is a user that has one after a colon.
    let user = form.map_or("", |form| form.get("user"));
    let user = if user.contains(':') { "" } else { user };
    [
        Field::new("text", "user", "User of the registry", "Empty: nodes log in with what they have themselves.")
            .value(user)
            .fault(fault("login.user")),
        Field::new("password", "password", "Its password", "Kept in memory alone, while the preheat goes on.")
            .fault(fault("login.password")),
    ]
}

fn form(me: &Signed, sent: Option<(&Posted, &Answer)>) -> String {
    let value = |name: &str| sent.map_or("", |(form, _)| form.get(name));
    let fault = |name: &str| sent.map(|(_, answer)| answer.fault(name)).unwrap_or_default();
    let field = |kind, name, label, hint| Field::new(kind, name, label, hint).value(value(name)).fault(fault(name));
    let targets = [("all", "all nodes"), ("seeds", "its seeds"), ("percent", "a share"), ("nodes", "named nodes")];
    let targets = targets.map(|(value, label)| (value.to_owned(), label.to_owned())).into();
    let mut fields = vec![
        field("text", "image", "Image", "As in a pod, such as registry.example/app:1."),
        field("text", "cluster", "Cluster", "Its name or id."),
        field("text", "platforms", "Platforms", "Such as linux/amd64, separated by commas; empty: all."),
        field("select", "target", "Onto", "Which nodes of the cluster.").options(targets),
        field("number", "percent", "Share in percent", "When it goes onto a share."),
        field("textarea", "nodes", "Nodes", "When it goes onto named nodes: one a line, by name or id."),
    ];
    fields.extend(login_fields(sent.map(|(form, _)| form), &fault));
    let form = Form {
        heading: "New preheat",
        method: "post",
        action: HERE.to_owned(),
        csrf: me.csrf(),
        fields,
        buttons: vec![("make", "Begin")],
        ..Form::default()
    };
    form.html()
}

async fn page(me: &Signed, query: &Search, sent: Option<(&Posted, &Answer)>) -> Result<Response, Stop> {
    let answer = me.ask(Method::GET, &query.on("/api/v1/preheats"), None, None).await?;
    let row = |preheat: &Value| {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let nodes = &preheat["nodes"];
        let all = number(&preheat["bytes"]).saturating_mul(number(&nodes["all"]));
        let failed = match number(&nodes["failed"]) {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        vec![
            Cell::link(text(&preheat["image"], ""), format!("{HERE}/{}", encoded(&text(&preheat["id"], "")))),
            Cell::new(text(&preheat["cluster"], "gone")),
            Cell::of(&preheat["target"]),
            Cell::of(&preheat["state"]),
            Cell::new(format!("{} of {}{failed}", number(&nodes["done"]), number(&nodes["all"]))),
            Cell::progress(number(&preheat["held"]), all),
            Cell::of(&preheat["created"]),
            Cell::of(&preheat["created_by"]),
        ]
    };
    let columns = ["Image", "Cluster", "Onto", "State", "Nodes", "Progress", "Begun", "By"];
    let rows = answer.items().iter().map(row).collect();
    let table = view::table("Preheats, the newest first", &columns, rows, query.next(HERE, &answer));
    let field =
        |kind, name, label, hint| Field::new(kind, name, label, hint).value(query.get(name)).fault(answer.fault(name));
    let states = choice(&["waiting", "running", "done", "failed", "cancelled"]);
    let filter = Form {
        id: "filter",
        heading: "Filter",
        method: "get",
        action: HERE.to_owned(),
        fields: vec![
            field("text", "cluster", "Cluster", "Its name or id."),
            field("select", "state", "State", "How far they are.").options(states),
        ],
        buttons: vec![("filter", "Filter")],
        ..Form::default()
    };
    // The filter is beside what it filters.
    let mut parts = if me.operates() { vec![form(me, sent)] } else { Vec::new() };
    parts.push(filter.html());
    let said = sent.map(|(_, answer)| answer).or(Some(&answer).filter(|answer| !answer.status.is_success()));
    let error = said.map(Answer::detail).unwrap_or_default();
    let status = sent.map_or(answer.status, |(_, answer)| answer.status);
    let shell = Shell { error, ..me.shell("Preheats", HERE) };
    Ok((status, view::live(shell, parts, vec![table], 2)).into_response())
}

pub(super) async fn list(me: Signed, query: Search) -> Result<Response, Stop> {
    page(&me, &query, None).await
}

/// What was filled in for another target than the one that is chosen: fields, and what is wrong with them. It would be left
/// out, and the preheat would go onto nodes that nobody meant.
fn contradictions(target: &str, percent: &str, nodes: &[String]) -> Vec<(&'static str, String)> {
    let chosen = match target {
        "" | "all" => "all nodes",
        "seeds" => "its seeds",
        "percent" => "a share",
        "nodes" => "named nodes",
        other => return vec![("target", format!("{other:?} is none of all, seeds, percent and nodes"))],
    };
    let mut faults = Vec::new();
    if target != "percent" && !percent.is_empty() {
        let why =
            format!("is {percent}, and \"Onto\" says {chosen}: choose \"a share\" there, or leave the share empty");
        faults.push(("percent", format!("Share in percent {why}.")));
    }
    if target != "nodes" && !nodes.is_empty() {
        let why = format!(
            "name {}, and \"Onto\" says {chosen}: choose \"named nodes\" there, or leave the nodes empty",
            nodes.join(", ")
        );
        faults.push(("nodes", format!("Nodes {why}.")));
    }
    faults
}

pub(super) async fn create(query: Search, form: Posted) -> Result<Response, Stop> {
    let faults = contradictions(form.get("target"), form.get("percent"), &form.list("nodes"));
    if !faults.is_empty() {
        let answer = Answer::refused(&faults);
        return page(&form.me, &query, Some((&form, &answer))).await;
    }
    let mut body =
        json!({"image": form.get("image"), "cluster": form.get("cluster"), "platforms": form.list("platforms")});
    match form.get("target") {
        "seeds" => body["seeds"] = json!(true),
        // What is no number is sent as it is, so that the API says what is wrong with it.
        "percent" => {
            body["percent"] =
                form.get("percent").parse::<u64>().map_or_else(|_| json!(form.get("percent")), |percent| json!(percent))
        }
        "nodes" => body["nodes"] = json!(form.list("nodes")),
        _ => {}
    }
    if let Some(login) = login(&form) {
        body["login"] = login;
    }
    let answer = form.me.ask(Method::POST, "/api/v1/preheats", None, Some(body)).await?;
    if answer.status.is_success() {
        return Ok(Redirect::to(&format!("{HERE}/{}", encoded(&text(&answer.body["id"], "")))).into_response());
    }
    page(&form.me, &query, Some((&form, &answer))).await
}

async fn one(me: &Signed, id: &str, failed: Option<&Answer>) -> Result<Response, Stop> {
    let answer = me.get(&format!("/api/v1/preheats/{}", encoded(id))).await?;
    let preheat = &answer.body;
    let platforms: Vec<String> = preheat["platforms"].as_array().into_iter().flatten().map(|p| text(p, "")).collect();
    let facts = vec![
        ("State", text(&preheat["state"], "")),
        ("Why", text(&preheat["why"], "nothing is wrong")),
        ("Cluster", text(&preheat["cluster"], "gone")),
        ("Onto", text(&preheat["target"], "")),
        ("Platforms", if platforms.is_empty() { "all".to_owned() } else { platforms.join(", ") }),
        ("Manifest", text(&preheat["manifest"], "not known yet")),
        ("Begun", format!("{} by {}", text(&preheat["created"], ""), text(&preheat["created_by"], ""))),
        ("Ended", text(&preheat["ended"], "not yet")),
    ];
    let blobs = preheat["blobs"].as_array().map_or(&[][..], Vec::as_slice);
    let mut columns = vec!["Node".to_owned(), "State".to_owned(), "Try".to_owned(), "All of it".to_owned()];
    columns.extend(blobs.iter().map(|blob| short(&text(&blob["digest"], ""))));
    let row = |node: &Value| {
        let id = text(&node["id"], "");
        let state = text(&node["state"], "");
        let state = node["why"].as_str().map_or_else(|| state.clone(), |why| format!("{state}: {why}"));
        let mut cells = vec![
            Cell::link(text(&node["name"], &id), format!("/console/nodes/{id}")),
            Cell::new(state),
            Cell::of(&node["attempt"]),
            Cell::progress(node["bytes"].as_u64().unwrap_or(0), preheat["bytes"].as_u64().unwrap_or(0)),
        ];
        let of = |(at, blob): (usize, &Value)| {
            Cell::progress(node["blobs"][at].as_u64().unwrap_or(0), blob["size"].as_u64().unwrap_or(0))
        };
        cells.extend(blobs.iter().enumerate().map(of));
        cells
    };
    let rows = preheat["nodes"].as_array().into_iter().flatten().map(row).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut live =
        vec![view::facts("Now", facts), view::table("Progress by node and layer", &columns, rows, String::new())];
    if !blobs.is_empty() {
        let ask = json!({"blobs": blobs, "cluster": preheat["cluster_id"]});
        let share = me.ask(Method::POST, "/api/v1/images/share", None, Some(ask)).await?;
        live.push(super::images::share(&share));
    }
    if me.operates() {
        let mut form = Form {
            heading: "Change",
            method: "post",
            action: format!("{HERE}/{}", encoded(id)),
            csrf: me.csrf(),
            fields: vec![Field::hidden("version", answer.etag.clone().unwrap_or_default())],
            ..Form::default()
        };
        match preheat["state"].as_str() {
            Some("waiting" | "running") => form.buttons = vec![("cancel", "Cancel")],
            Some("failed" | "cancelled") => {
                form.fields
                    .extend(login_fields(None, &|name| failed.map(|answer| answer.fault(name)).unwrap_or_default()));
                form.buttons = vec![("retry", "Retry what failed")];
            }
            _ => {}
        }
        if !form.buttons.is_empty() {
            // What can be done changes with the state, and so does the version of it that is shown.
            live.insert(1, form.html());
        }
    }
    let error = failed.map(Answer::detail).unwrap_or_default();
    let status = failed.map_or(answer.status, |failed| failed.status);
    let shell = Shell { error, ..me.shell(&format!("Preheat of {}", text(&preheat["image"], "")), HERE) };
    Ok((status, view::live(shell, Vec::new(), live, 1)).into_response())
}

pub(super) async fn show(me: Signed, Path(id): Path<String>) -> Result<Response, Stop> {
    one(&me, &id, None).await
}

pub(super) async fn change(Path(id): Path<String>, form: Posted) -> Result<Response, Stop> {
    let action = if form.get("do") == "retry" { "retry" } else { "cancel" };
    let retry = || login(&form).map_or_else(|| json!({}), |login| json!({ "login": login }));
    let body = (action == "retry").then(retry);
    let path = format!("/api/v1/preheats/{}/{action}", encoded(&id));
    let answer = form.me.ask(Method::POST, &path, Some(form.get("version")), body).await?;
    if answer.status.is_success() {
        return Ok(Redirect::to(&format!("{HERE}/{}", encoded(&id))).into_response());
    }
    one(&form.me, &id, Some(&answer)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_for_another_target_is_refused_by_its_field() {
        let named = ["a1".to_owned()];
        let cases: [(&str, &str, &[String], &[&str]); 11] = [
            ("all", "", &[], &[]),
            ("", "", &[], &[]),
            ("seeds", "", &[], &[]),
            ("percent", "20", &[], &[]),
            ("nodes", "", &named, &[]),
            ("all", "20", &[], &["percent"]),
            ("", "20", &[], &["percent"]),
            ("seeds", "20", &named, &["percent", "nodes"]),
            ("percent", "20", &named, &["nodes"]),
            ("nodes", "20", &named, &["percent"]),
            ("al", "", &[], &["target"]),
        ];
        for (target, percent, nodes, wrong) in cases {
            let faults = contradictions(target, percent, nodes);
            let fields: Vec<&str> = faults.iter().map(|(field, _)| *field).collect();
            assert_eq!(fields, wrong, "{target:?} {percent:?} {nodes:?}");
        }
        let said = contradictions("all", "20", &[]).remove(0).1;
        assert!(said.contains("is 20") && said.contains("says all nodes"), "{said}");
    }
}
