//! Pages of clusters: what there is, what a change would move, and how nodes join.

use axum::extract::Path;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Value, json};

use super::ask::{Answer, encoded, text};
use super::guard::{Posted, Signed, Stop};
use super::search::Search;
use super::view::{self, Cell, Field, Form, Shell};

const HERE: &str = "/console/clusters";

/// What a form says of a cluster.
#[derive(Default)]
struct Draft {
    name: String,
    default: bool,
    idc: String,
    location: String,
    cidrs: Vec<String>,
}

impl Draft {
    fn posted(form: &Posted) -> Self {
        Self {
            name: form.get("name").to_owned(),
            default: form.get("default") == "true",
            idc: form.get("idc").to_owned(),
            location: form.get("location").to_owned(),
            cidrs: form.list("cidrs"),
        }
    }

    fn of(cluster: &Value) -> Self {
        let cidrs = cluster["cidrs"].as_array().into_iter().flatten();
        Self {
            name: text(&cluster["name"], ""),
            default: cluster["default"] == true,
            idc: text(&cluster["idc"], ""),
            location: text(&cluster["location"], ""),
            cidrs: cidrs.map(|cidr| text(cidr, "")).collect(),
        }
    }

    fn body(&self) -> Value {
        let Self { name, default, idc, location, cidrs } = self;
        json!({"name": name, "default": default, "idc": idc, "location": location, "cidrs": cidrs})
    }

    /// The form that says it. `version`: the one that it is a change of.
    fn form(&self, me: &Signed, action: String, version: Option<&str>, faults: Option<&Answer>) -> String {
        let fault = |field: &str| faults.map(|answer| answer.fault(field)).unwrap_or_default();
        let mut fields = vec![
            Field::new("text", "name", "Name", "Unique without regard to case.").value(&self.name).fault(fault("name")),
            Field::new("text", "idc", "Data centres", "Alternatives separated by bars, such as w1|w2.")
                .value(&self.idc)
                .fault(fault("idc")),
            Field::new("text", "location", "Location", "A path separated by bars, the widest first, such as eu|fr.")
                .value(&self.location)
                .fault(fault("location")),
            Field::new("textarea", "cidrs", "Networks", "One a line, such as 10.1.0.0/16.")
                .value(self.cidrs.join("\n"))
                .fault(fault("cidrs")),
        ];
        if me.reaches_all() {
            let hint = "Nodes that match nothing come here. Whichever cluster has this loses it.";
            let field = Field::new("checkbox", "default", "Default cluster", hint).value(self.default.to_string());
            fields.push(field.fault(fault("default")));
        } else {
            // It would take it from a cluster that they do not reach, or leave nodes alone that they do not see.
            fields.push(Field::hidden("default", self.default.to_string()));
        }
        fields.extend(version.map(|version| Field::hidden("version", version)));
        Form {
            heading: "What it is",
            method: "post",
            action,
            csrf: me.csrf(),
            fields,
            buttons: vec![("preview", "Preview which nodes move"), ("save", "Save")],
            live: true,
            target: "preview",
            ..Form::default()
        }
        .html()
    }
}

fn address(cluster: &Value) -> String {
    format!("{HERE}/{}", encoded(&text(&cluster["id"], "")))
}

/// Which nodes a change would move, or why it can't be.
fn preview(answer: &Answer) -> String {
    if !answer.status.is_success() {
        return view::fresh("preview", &[view::words("Preview", &format!("Not possible: {}", answer.detail()))]);
    }
    let moves = &answer.body["moves"];
    let count = moves["count"].as_u64().unwrap_or(0);
    let said = match count {
        0 => "No live node would move.".to_owned(),
        1 => "1 live node would move.".to_owned(),
        many => format!("{many} live nodes would move."),
    };
    let rows = moves["nodes"].as_array().into_iter().flatten().map(|node| {
        let place = |key: &str| Cell::new(text(&node[key], "alone"));
        vec![Cell::of(&node["name"]), Cell::of(&node["ip"]), place("from"), place("to"), Cell::of(&node["reason"])]
    });
    let columns = ["Node", "Address", "From", "To", "Why"];
    let all = json!({ "total": count });
    let table = view::list("Nodes that would move", &columns, rows.collect(), &all, String::new());
    let parts = [
        view::words("Preview", &said),
        changes(&answer.body["changes"]),
        if count == 0 { String::new() } else { table },
    ];
    view::fresh("preview", &parts)
}

/// The clusters that would be other than they are, field by field; empty: none.
fn changes(changes: &Value) -> String {
    let mut rows = Vec::new();
    for change in changes.as_array().into_iter().flatten() {
        let (before, after) = (described(&change["before"]), described(&change["after"]));
        let name = || Cell::of(&change["name"]);
        match change["action"].as_str() {
            Some("create") => {
                rows.push(vec![name(), Cell::new("all of it"), Cell::new("not there"), Cell::new("made")])
            }
            Some("delete") => rows.push(vec![name(), Cell::new("all of it"), Cell::new("there"), Cell::new("deleted")]),
            _ => {
                // A count of nodes and a version are not what somebody says of a cluster.
                let said =
                    before.into_iter().zip(after).filter(|((key, _), _)| !["Version", "Live nodes"].contains(key));
                let other = said.filter(|((_, old), (_, new))| old != new);
                rows.extend(
                    other.map(|((key, old), (_, new))| vec![name(), Cell::new(key), Cell::new(old), Cell::new(new)]),
                );
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    view::table("Clusters that would change", &["Cluster", "What", "Is", "Would be"], rows, String::new())
}

fn no_preview() -> String {
    view::fresh("preview", &[view::words("Preview", "Change something to see which nodes would move.")])
}

pub(super) fn described(cluster: &Value) -> Vec<(&'static str, String)> {
    let Draft { name, default, idc, location, cidrs } = Draft::of(cluster);
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    vec![
        ("Name", name),
        ("Version", text(&cluster["version"], "")),
        ("Data centres", or_none(idc)),
        ("Location", or_none(location)),
        ("Networks", or_none(cidrs.join(", "))),
        ("Default", if default { "yes" } else { "no" }.to_owned()),
        ("Live nodes", text(&cluster["nodes"], "0")),
    ]
}

/// The table of a page of clusters.
pub(super) fn table(page: &Answer, more: String) -> String {
    let row = |cluster: &Value| {
        let facts = described(cluster);
        let mut cells: Vec<Cell> = facts.into_iter().map(|(_, value)| Cell::new(value)).collect();
        cells[0] = Cell::link(text(&cluster["name"], ""), address(cluster));
        cells
    };
    let columns = ["Name", "Version", "Data centres", "Location", "Networks", "Default", "Live nodes"];
    view::list("Clusters", &columns, page.items().iter().map(row).collect(), &page.body, more)
}

pub(super) async fn list(me: Signed, query: Search) -> Result<Response, Stop> {
    let answer = me.get(&query.on("/api/v1/clusters")).await?;
    let parts = vec![match me.unfit("To make a cluster", true, true) {
        None => view::way("New cluster", "/console/clusters/new"),
        Some(why) => view::hint(&why),
    }];
    let table = table(&answer, query.next(HERE, &answer));
    Ok(view::live(me.shell("Clusters", HERE), parts, vec![table], 10).into_response())
}

pub(super) async fn new(me: Signed) -> Response {
    if let Some(why) = me.unfit("To make a cluster", true, true) {
        return me.failed(StatusCode::FORBIDDEN, &why);
    }
    let form = Draft::default().form(&me, HERE.to_owned(), None, None);
    me.page("New cluster", HERE, vec![form, no_preview()]).into_response()
}

pub(super) async fn create(form: Posted) -> Result<Response, Stop> {
    let (draft, me) = (Draft::posted(&form), &form.me);
    let saves = form.get("do") == "save";
    let path = if saves { "/api/v1/clusters" } else { "/api/v1/clusters?dry_run=true" };
    let answer = me.ask(Method::POST, path, None, Some(draft.body())).await?;
    if saves && answer.status.is_success() {
        return Ok(Redirect::to(&format!("{}/join", address(&answer.body))).into_response());
    }
    let shown = draft.form(me, HERE.to_owned(), None, Some(&answer));
    Ok(again(me, "New cluster", &answer, vec![shown, preview(&answer)]))
}

/// The form once more, with what is wrong with it if something is.
fn again(me: &Signed, title: &str, answer: &Answer, parts: Vec<String>) -> Response {
    let error = if answer.status.is_success() { String::new() } else { answer.detail() };
    let shell = Shell { error, ..me.shell(title, HERE) };
    (answer.status, view::page(shell, parts)).into_response()
}

async fn cluster(me: &Signed, id: &str) -> Result<Answer, Stop> {
    me.get(&format!("/api/v1/clusters/{}", encoded(id))).await
}

fn tag(answer: &Answer) -> String {
    answer.etag.clone().unwrap_or_default()
}

pub(super) async fn show(me: Signed, Path(id): Path<String>) -> Result<Response, Stop> {
    let answer = cluster(&me, &id).await?;
    let at = address(&answer.body);
    let name = text(&answer.body["name"], "");
    let of = Search::of(&[("cluster", &id)]);
    let nodes = me.get(&of.on("/api/v1/nodes")).await?;
    let mut parts = Vec::new();
    if me.operates() {
        parts.push(Draft::of(&answer.body).form(&me, at.clone(), Some(&tag(&answer)), None));
        parts.push(no_preview());
        parts.push(view::way("How nodes join it", &format!("{at}/join")));
        parts.push(view::way("Delete it", &format!("{at}/delete")));
        let limit = me.unfit("To make it the default, or to move nodes from or to other clusters,", true, true);
        parts.extend(limit.map(|why| view::hint(&why)));
    }
    parts.extend(me.unfit("To change it", true, false).map(|why| view::hint(&why)));
    let nodes = super::nodes::table(&nodes, of.next("/console/nodes", &nodes));
    let live = vec![view::facts("Now", described(&answer.body)), nodes];
    Ok(view::live_first(me.shell(&format!("Cluster {name}"), HERE), live, parts, 5).into_response())
}

pub(super) async fn change(Path(id): Path<String>, form: Posted) -> Result<Response, Stop> {
    let (draft, me) = (Draft::posted(&form), &form.me);
    let path = format!("/api/v1/clusters/{}", encoded(&id));
    let at = format!("{HERE}/{}", encoded(&id));
    let version = form.get("version");
    if form.get("do") != "save" {
        let answer = me.ask(Method::PUT, &format!("{path}?dry_run=true"), None, Some(draft.body())).await?;
        let shown = draft.form(me, at, Some(version), Some(&answer));
        return Ok(again(me, &format!("Cluster {}", draft.name), &answer, vec![shown, preview(&answer)]));
    }
    let answer = me.ask(Method::PUT, &path, Some(version), Some(draft.body())).await?;
    if answer.status.is_success() {
        return Ok(Redirect::to(&at).into_response());
    }
    let title = format!("Cluster {}", draft.name);
    if answer.status != StatusCode::PRECONDITION_FAILED {
        return Ok(again(me, &title, &answer, vec![draft.form(me, at, Some(version), Some(&answer)), no_preview()]));
    }
    let theirs = cluster(me, &id).await?;
    let error = format!(
        "Somebody else changed this cluster since you opened it (you: version {}, now: version {}). Nothing was saved.",
        version.trim_matches('"').rsplit('.').next().unwrap_or_default(),
        text(&theirs.body["version"], "?")
    );
    let parts = vec![
        view::facts("As it is now, changed by somebody else", described(&theirs.body)),
        view::words("Your change", "Saving the form below now replaces what is above."),
        draft.form(me, at, Some(&tag(&theirs)), None),
        no_preview(),
    ];
    let shell = Shell { error, ..me.shell(&title, HERE) };
    Ok((StatusCode::PRECONDITION_FAILED, view::page(shell, parts)).into_response())
}

/// Asks once more, and says what becomes of its nodes.
async fn confirmation(me: &Signed, id: &str, failed: Option<&Answer>) -> Result<Response, Stop> {
    let answer = cluster(me, id).await?;
    let planned = format!("/api/v1/clusters/{}?dry_run=true", encoded(id));
    let planned = me.ask(Method::DELETE, &planned, None, None).await?;
    let at = address(&answer.body);
    let form = Form {
        heading: "Confirm",
        method: "post",
        action: format!("{at}/delete"),
        csrf: me.csrf(),
        fields: vec![
            Field::hidden("version", tag(&answer)),
            Field::new(
                "checkbox",
                "force",
                "Even if it has nodes or is the default",
                "Its nodes are decided again at once. Those that are bound to it run alone afterwards, and must join anew.",
            ),
        ],
        buttons: vec![("delete", "Delete this cluster")],
        ..Form::default()
    };
    let mut parts = vec![view::facts("What is deleted", described(&answer.body)), preview(&planned)];
    // Where the preview says that it can't be, no form asks for it.
    if planned.status.is_success() {
        parts.push(form.html());
    }
    parts.push(view::way("Back, and keep it", &at));
    let error = failed.map(Answer::detail).unwrap_or_default();
    let shell = Shell { error, ..me.shell(&format!("Delete cluster {}", text(&answer.body["name"], "")), HERE) };
    let status = failed.map_or(StatusCode::OK, |answer| answer.status);
    Ok((status, view::page(shell, parts)).into_response())
}

pub(super) async fn confirm(me: Signed, Path(id): Path<String>) -> Result<Response, Stop> {
    confirmation(&me, &id, None).await
}

pub(super) async fn delete(Path(id): Path<String>, form: Posted) -> Result<Response, Stop> {
    let force = form.get("force") == "true";
    let path = format!("/api/v1/clusters/{}?force={force}", encoded(&id));
    let answer = form.me.ask(Method::DELETE, &path, Some(form.get("version")), None).await?;
    if answer.status.is_success() {
        return Ok(Redirect::to(HERE).into_response());
    }
    confirmation(&form.me, &id, Some(&answer)).await
}

/// Of nodes that join by a token that was made for a cluster.
const BOUND: &str = "A node that joins with this token is bound to this cluster: it stays here whatever its facts and the scopes say, \
                     until it is deleted as a member and joins anew. If the cluster is deleted, it runs alone.";

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The config of a node that belongs to a cluster.
fn node_config((host, port): (&str, u16), cluster: &Value, secured: bool) -> String {
    let Draft { name, idc, location, cidrs, default: _ } = Draft::of(cluster);
    let value = |text: &str| toml::Value::from(text).to_string();
    let mut lines = Vec::new();
    if !secured {
        lines.push("tls = \"off\"   # as control has it".to_owned());
    }
    lines.push("[node]".to_owned());
    // Nothing else would bring a node here: no token binds it, and no scope is there to match.
    if !secured && idc.is_empty() && location.is_empty() && cidrs.is_empty() {
        lines.push(format!("cluster = {}   # whatever its facts and the scopes say", value(&name)));
    }
    let idcs: Vec<&str> = idc.split('|').map(str::trim).filter(|part| !part.is_empty()).collect();
    match idcs.as_slice() {
        [] => {}
        [one] => lines.push(format!("idc = {}", value(one))),
        [first, ..] => {
            lines.push(format!("# Its own data centre, one of {}.", idcs.join(", ")));
            lines.push(format!("idc = {}", value(first)));
        }
    }
    if !location.is_empty() {
        lines.push(format!("location = {}", value(&location)));
    }
    if !cidrs.is_empty() {
        lines.push(format!("# Its address must be in {}.", cidrs.join(" or ")));
    }
    lines.push("[control]".to_owned());
    let scheme = if secured { "https" } else { "http" };
    lines.push(format!(
        "endpoint = {}   # the address of gRPC, if it is another",
        value(&format!("{scheme}://{host}:{port}"))
    ));
    if secured {
        lines.push("join_token_file = \"/etc/shoal/join-token\"".to_owned());
    } else {
        lines.push("[peer]".to_owned());
        lines.push(
            "# Without certificates peers are let in from these networks alone; from loopback, if none is named."
                .to_owned(),
        );
        lines.push(format!("allow = {}", toml::Value::from(cidrs)));
    }
    lines.join("\n")
}

/// What makes a join token, where somebody has `shoalctl` and an API token.
fn token_command(me: &Signed, cluster: &str) -> String {
    let (scheme, ca) = if me.console.secure { ("https", " --ca-file ca.pem") } else { ("http", "") };
    let mut lines = vec![
        "# Where shoalctl is, with an operator's API token in a file; copy what it makes to the node.".to_owned(),
        format!(
            "shoalctl --server {} --token-file api-token{ca} \\",
            quoted(&format!("{scheme}://{}", me.authority()))
        ),
        format!("  join-token create --cluster {} > join-token", quoted(cluster)),
    ];
    if me.console.secure {
        lines.insert(
            1,
            "# ca.pem is in the state directory of shoal-control; leave it out if the system trusts its certificate."
                .into(),
        );
    }
    lines.join("\n")
}

async fn join_page(me: &Signed, id: &str, made: Option<&Answer>) -> Result<Response, Stop> {
    let answer = cluster(me, id).await?;
    let name = text(&answer.body["name"], "");
    let secured = me.ask(Method::GET, "/api/v1/ca", None, None).await?.status.is_success();
    let config = node_config((me.host(), me.console.nodes), &answer.body, secured);
    let mut parts = Vec::new();
    if let Some(token) = made.and_then(|made| made.body["token"].as_str()) {
        parts.push(view::code("The join token, shown this once", token));
    }
    parts.push(view::code("1. /etc/shoal/node.toml on each node", &config));
    if secured {
        parts.push(view::hint(BOUND));
        parts.push(view::code("2. A join token, in /etc/shoal/join-token on each node", &token_command(me, &name)));
        if me.operates() {
            let form = Form {
                heading: "Or make one here",
                method: "post",
                action: format!("{}/join", address(&answer.body)),
                csrf: me.csrf(),
                buttons: vec![("token", "Make a join token for one node, good for one hour")],
                ..Form::default()
            };
            parts.push(form.html());
        }
    }
    let commands = "mkdir -p /etc/containerd/certs.d/_default\n\
                    shoal-node hosts-toml > /etc/containerd/certs.d/_default/hosts.toml\n\
                    shoal-node run --config /etc/shoal/node.toml";
    parts.push(view::code("Then: containerd asks it, and it runs", commands));
    parts.push(view::way("The cluster", &address(&answer.body)));
    let error = made.filter(|made| !made.status.is_success()).map(Answer::detail).unwrap_or_default();
    let status = made.filter(|made| !made.status.is_success()).map_or(StatusCode::OK, |made| made.status);
    let shell = Shell { error, ..me.shell(&format!("Join nodes to {name}"), HERE) };
    Ok((status, view::page(shell, parts)).into_response())
}

pub(super) async fn join(me: Signed, Path(id): Path<String>) -> Result<Response, Stop> {
    join_page(&me, &id, None).await
}

pub(super) async fn join_token(Path(id): Path<String>, form: Posted) -> Result<Response, Stop> {
    let body = json!({"cluster": id, "role": "node"});
    let made = form.me.ask(Method::POST, "/api/v1/join-tokens", None, Some(body)).await?;
    join_page(&form.me, &id, Some(&made)).await
}
