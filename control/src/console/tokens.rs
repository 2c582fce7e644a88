//! Pages of what lets in: join tokens, API tokens, and members.

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Value, json};

use super::ask::{Answer, encoded, text};
use super::guard::{Posted, Signed, Stop};
use super::search::{Search, choice};
use super::view::{self, Cell, Field, Form, Shell};

const HERE: &str = "/console/tokens";
const MEMBERS: &str = "/console/members";

/// What a form did: which, and what the API said.
type Sent<'a> = Option<(&'a Posted, &'a Answer)>;

fn options(values: &[&str]) -> Vec<(String, String)> {
    values.iter().map(|value| ((*value).to_owned(), (*value).to_owned())).collect()
}

/// What a form is answered that takes one away and says not which.
fn nobody_chosen() -> Answer {
    Answer::refused(&[("id", "Nothing is chosen, so nothing was done. Choose which first.".to_owned())])
}

/// The form that takes one of a list away. None is chosen before somebody does: its buttons act at once. `fault`: what was
/// wrong with the choice, or empty.
fn removal(
    me: &Signed,
    heading: &'static str,
    action: &str,
    what: &'static str,
    items: &[Value],
    fault: String,
) -> String {
    if items.is_empty() {
        return String::new();
    }
    let choice = |item: &Value| {
        let id = text(&item["id"], &text(&item["node"], ""));
        (id.clone(), format!("{} ({id})", text(&item["name"], &text(&item["cluster"], "any cluster"))))
    };
    let which = Field::new("select", "id", "Which", "One of this page of the list. It can't be undone.");
    let fields = vec![which.choose(items.iter().map(choice).collect()).fault(fault)];
    let buttons = match what {
        "member" => vec![("revoke", "Revoke its certificates"), ("forget", "Forget it, so that it may join anew")],
        "join" => vec![("delete-join", "Delete this join token")],
        _ => vec![("delete-api", "Delete this API token")],
    };
    Form {
        id: what,
        heading,
        method: "post",
        action: action.to_owned(),
        csrf: me.csrf(),
        fields,
        buttons,
        ..Form::default()
    }
    .html()
}

fn join_form(me: &Signed, sent: Sent) -> String {
    let sent = sent.filter(|(form, answer)| form.get("do") == "make-join" && !answer.status.is_success());
    let value = |name: &str| sent.map_or("", |(form, _)| form.get(name));
    let fault = |name: &str| sent.map(|(_, answer)| answer.fault(name)).unwrap_or_default();
    let field = |kind, name, label, hint| Field::new(kind, name, label, hint).value(value(name)).fault(fault(name));
    let cluster = match me.kept() {
        None => field(
            "text",
            "cluster",
            "Cluster",
            "Nodes belong to it whatever their facts say; empty: their facts decide.",
        ),
        // By their facts they might come to any.
        Some(kept) => {
            let kept = kept.iter().map(|name| (name.clone(), name.clone())).collect();
            field("select", "cluster", "Cluster", "Nodes belong to it whatever their facts say.").choose(kept)
        }
    };
    let fields = vec![
        cluster,
        field("select", "role", "Role", "What they may be.").options(options(&["node", "seed"])),
        field("text", "ttl", "Good for", "Such as 1h, the default."),
        field("number", "uses", "Uses", "How many nodes may join by it; empty: one."),
    ];
    let buttons = vec![("make-join", "Make a join token")];
    Form {
        id: "new-join",
        heading: "New join token",
        method: "post",
        action: HERE.into(),
        csrf: me.csrf(),
        fields,
        buttons,
        ..Form::default()
    }
    .html()
}

fn api_form(me: &Signed, sent: Sent) -> String {
    let sent = sent.filter(|(form, answer)| form.get("do") == "make-api" && !answer.status.is_success());
    let value = |name: &str| sent.map_or("", |(form, _)| form.get(name));
    let fault = |name: &str| sent.map(|(_, answer)| answer.fault(name)).unwrap_or_default();
    let field =
        |kind, name, label, hint, of: &str| Field::new(kind, name, label, hint).value(value(name)).fault(fault(of));
    let fields = vec![
        field("text", "api_name", "Name", "Whose it is; the audit log says it.", "name"),
        field("select", "api_role", "Role", "A viewer reads, an operator changes, an admin makes API tokens.", "role")
            .options(options(&["viewer", "operator", "admin"])),
        field("text", "api_clusters", "Clusters", "Kept to these, separated by commas; empty: all.", "clusters"),
        field("text", "api_ttl", "Good for", "Such as 2160h; empty: without end.", "ttl"),
    ];
    let buttons = vec![("make-api", "Make an API token")];
    Form {
        id: "new-api",
        heading: "New API token",
        method: "post",
        action: HERE.into(),
        csrf: me.csrf(),
        fields,
        buttons,
        ..Form::default()
    }
    .html()
}

/// A page of one of the two lists of tokens; each has its own cursor in the address of the page.
fn part_of(path: &str, cursor: &str) -> String {
    Search::of(&[("limit", "200"), ("after", cursor)]).filled().on(path)
}

/// The address at which one of the two lists goes on, and the other stays; empty: this was the last page.
fn further(query: &Search, list: &str, answer: &Answer) -> String {
    let Some(next) = answer.body["next"].as_str() else { return String::new() };
    let cursors = ["joins", "apis"].map(|name| (name, if name == list { next } else { query.get(name) }));
    Search::of(&cursors).filled().on(HERE)
}

async fn page(me: &Signed, query: &Search, sent: Sent<'_>) -> Result<Response, Stop> {
    let mut parts = Vec::new();
    let fault = |what: &str| {
        sent.filter(|(form, _)| form.get("do") == what).map(|(_, answer)| answer.fault("id")).unwrap_or_default()
    };
    if let Some(token) = sent.and_then(|(_, answer)| answer.body["token"].as_str()) {
        parts.push(view::code("The token, shown this once", token));
    }
    let joins = me.ask(Method::GET, &part_of("/api/v1/join-tokens", query.get("joins")), None, None).await?;
    if joins.status.is_success() {
        let row = |token: &Value| {
            let mut cells: Vec<Cell> = ["id", "cluster", "role", "expires", "uses_left", "created", "created_by"]
                .map(|key| Cell::of(&token[key]))
                .into();
            cells[1] = Cell::new(text(&token["cluster"], "any"));
            cells
        };
        let columns = ["Id", "Cluster", "Role", "Good until", "Uses left", "Made", "By"];
        let (rows, more) = (joins.items().iter().map(row).collect(), further(query, "joins", &joins));
        parts.push(view::list("Join tokens", &columns, rows, &joins.body, more));
        if me.operates() {
            parts.push(removal(me, "Delete a join token", HERE, "join", joins.items(), fault("delete-join")));
            parts.push(join_form(me, sent));
        }
    } else {
        let why = me.unfit("To see and make them", true, false).unwrap_or_else(|| joins.detail());
        parts.push(view::words("Join tokens", &why));
    }
    if let Some(why) = me.unfit("To see and make them", false, true).filter(|_| me.is_admin()) {
        parts.push(view::words("API tokens", &why));
    } else if me.is_admin() {
        let tokens = me.get(&part_of("/api/v1/api-tokens", query.get("apis"))).await?;
        let row = |token: &Value| {
            let clusters: Option<Vec<String>> =
                token["clusters"].as_array().map(|names| names.iter().map(|name| text(name, "")).collect());
            vec![
                Cell::of(&token["name"]),
                Cell::of(&token["role"]),
                Cell::new(clusters.map_or_else(|| "all".to_owned(), |names| names.join(", "))),
                Cell::of(&token["created"]),
                Cell::new(text(&token["expires"], "without end")),
                Cell::of(&token["id"]),
            ]
        };
        let columns = ["Name", "Role", "Clusters", "Made", "Good until", "Id"];
        let (rows, more) = (tokens.items().iter().map(row).collect(), further(query, "apis", &tokens));
        parts.push(view::list("API tokens", &columns, rows, &tokens.body, more));
        let fault = fault("delete-api");
        parts.push(removal(me, "Delete an API token", HERE, "api", tokens.items(), fault));
        parts.push(api_form(me, sent));
    }
    Ok(answered(me, "Tokens", HERE, sent.map(|(_, answer)| answer), parts))
}

fn answered(me: &Signed, title: &str, here: &'static str, said: Option<&Answer>, parts: Vec<String>) -> Response {
    let bad = said.filter(|answer| !answer.status.is_success());
    let shell = Shell { error: bad.map(Answer::detail).unwrap_or_default(), ..me.shell(title, here) };
    (bad.map_or(StatusCode::OK, |answer| answer.status), view::page(shell, parts)).into_response()
}

pub(super) async fn show(me: Signed, query: Search) -> Result<Response, Stop> {
    page(&me, &query, None).await
}

/// Takes away what is at an address, in the state in which it is there.
async fn remove(me: &Signed, path: &str) -> Result<Answer, Stop> {
    act(me, path, Method::DELETE, "").await
}

/// Does something to what is at an address, in the state in which it is there.
async fn act(me: &Signed, path: &str, method: Method, what: &str) -> Result<Answer, Stop> {
    let found = me.ask(Method::GET, path, None, None).await?;
    if !found.status.is_success() {
        return Ok(found);
    }
    me.ask(method, &format!("{path}{what}"), found.etag.as_deref(), None).await
}

pub(super) async fn change(query: Search, form: Posted) -> Result<Response, Stop> {
    let me = &form.me;
    let id = encoded(form.get("id"));
    let put = |body: &mut Value, key: &str, field: &str| {
        if !form.get(field).is_empty() {
            body[key] = json!(form.get(field));
        }
    };
    let answer = match form.get("do") {
        "make-join" => {
            let mut body = json!({"role": form.get("role")});
            put(&mut body, "cluster", "cluster");
            put(&mut body, "ttl", "ttl");
            put(&mut body, "uses", "uses");
            if let Ok(uses) = form.get("uses").parse::<u64>() {
                body["uses"] = json!(uses);
            }
            me.ask(Method::POST, "/api/v1/join-tokens", None, Some(body)).await?
        }
        "make-api" => {
            let mut body = json!({"name": form.get("api_name"), "role": form.get("api_role")});
            put(&mut body, "ttl", "api_ttl");
            let clusters = form.list("api_clusters");
            if !clusters.is_empty() {
                body["clusters"] = json!(clusters);
            }
            me.ask(Method::POST, "/api/v1/api-tokens", None, Some(body)).await?
        }
        "delete-join" | "delete-api" if id.is_empty() => nobody_chosen(),
        "delete-join" => remove(me, &format!("/api/v1/join-tokens/{id}")).await?,
        "delete-api" => remove(me, &format!("/api/v1/api-tokens/{id}")).await?,
        _ => return Ok(me.failed(StatusCode::BAD_REQUEST, "There is no such change.")),
    };
    page(me, &query, Some((&form, &answer))).await
}

async fn member_page(me: &Signed, query: &Search, said: Option<&Answer>) -> Result<Response, Stop> {
    let answer = me.ask(Method::GET, &query.on("/api/v1/members"), None, None).await?;
    if !answer.status.is_success() && answer.status != StatusCode::BAD_REQUEST {
        return Ok(me.failed(answer.status, &answer.detail()));
    }
    let field =
        |kind, name, label, hint| Field::new(kind, name, label, hint).value(query.get(name)).fault(answer.fault(name));
    let yes_or_no =
        || vec![(String::new(), "any".to_owned()), ("true".into(), "yes".into()), ("false".into(), "no".into())];
    let filter = Form {
        id: "filter",
        heading: "Filter",
        method: "get",
        action: MEMBERS.to_owned(),
        fields: vec![
            field("text", "cluster", "Cluster", "Bound to it, or live in it and bound to none."),
            field("text", "name", "Name", "How the id begins, or the host name of one that is live."),
            field("select", "role", "Role", "What it may be.").options(choice(&["node", "seed"])),
            field("select", "live", "Live", "It has a session, or a lease.").options(yes_or_no()),
            field("select", "revoked", "Revoked", "It is given no certificate.").options(yes_or_no()),
        ],
        buttons: vec![("filter", "Filter")],
        ..Form::default()
    };
    let said = said.or(Some(&answer).filter(|answer| !answer.status.is_success()));
    let row = |member: &Value| {
        let node = text(&member["node"], "");
        vec![
            Cell::link(node.clone(), format!("/console/nodes/{node}")),
            Cell::new(text(&member["name"], "not live")),
            Cell::of(&member["live"]),
            Cell::new(text(&member["bound_cluster"], "by its facts")),
            Cell::of(&member["role"]),
            Cell::of(&member["joined"]),
            Cell::of(&member["joined_by"]),
            Cell::new(text(&member["revoked"], "no")),
        ]
    };
    let columns = ["Id", "Name", "Live", "Bound to", "Role", "Joined", "By", "Revoked"];
    let rows = answer.items().iter().map(row).collect();
    let mut parts =
        vec![filter.html(), view::list("Members", &columns, rows, &answer.body, query.next(MEMBERS, &answer))];
    if me.operates() {
        let fault = said.map(|said| said.fault("id")).unwrap_or_default();
        parts.push(removal(me, "Take a node out", MEMBERS, "member", answer.items(), fault));
    }
    parts.extend(me.unfit("To take a node out", true, false).map(|why| view::hint(&why)));
    Ok(answered(me, "Members", MEMBERS, said, parts))
}

pub(super) async fn members(me: Signed, query: Search) -> Result<Response, Stop> {
    member_page(&me, &query, None).await
}

pub(super) async fn change_member(query: Search, form: Posted) -> Result<Response, Stop> {
    let me = &form.me;
    let path = format!("/api/v1/members/{}", encoded(form.get("id")));
    let answer = match form.get("do") {
        "revoke" | "forget" if form.get("id").is_empty() => nobody_chosen(),
        "revoke" => act(me, &path, Method::POST, "/revoke").await?,
        "forget" => remove(me, &path).await?,
        _ => return Ok(me.failed(StatusCode::BAD_REQUEST, "There is no such change.")),
    };
    if answer.status.is_success() {
        return Ok(Redirect::to(MEMBERS).into_response());
    }
    member_page(me, &query, Some(&answer)).await
}
