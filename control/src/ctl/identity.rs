//! `shoalctl join-token`, `member`, `api-token`, `audit`, `ca`, `whoami`.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cli::{
    ApiRole, ApiTokenCommand, ApiTokenFilter, AuditArgs, CreateApiToken, CreateJoinToken, JoinTokenCommand,
    JoinTokenFilter, MemberCommand, MemberFilter, NodeRole, Output,
};
use super::client::Client;
use super::table::Table;
use super::{Error, show, understand};

#[derive(Deserialize)]
struct JoinToken {
    id: String,
    #[serde(default)]
    token: Option<String>,
    cluster: Option<String>,
    role: String,
    expires: String,
    uses_left: u32,
    created_by: String,
}

pub(super) async fn join_token(client: &Client, command: JoinTokenCommand, output: Output) -> Result<String, Error> {
    match command {
        JoinTokenCommand::Create(CreateJoinToken { cluster, role, ttl, uses }) => {
            let body = json!({ "cluster": cluster, "role": role.as_str(), "ttl": ttl, "uses": uses });
            let made = client.request(Method::POST, &["join-tokens"]).json(&body).send().await?;
            // Alone on standard output, so that it can be put into a file.
            show(output, &made, || Ok(understand::<JoinToken>(&made)?.token.unwrap_or_default()))
        }
        JoinTokenCommand::List(JoinTokenFilter { cluster, role, valid }) => {
            let asked =
                [("cluster", cluster.as_deref()), ("role", role.map(NodeRole::as_str)), ("valid", valid.map(truth))];
            let answer = client.list(&["join-tokens"], &given(&asked)).await?;
            show(output, &answer, || Ok(join_tokens(understand(&answer)?)))
        }
        JoinTokenCommand::Show { id } => {
            let answer = client.request(Method::GET, &["join-tokens", &id]).send().await?;
            show(output, &answer, || Ok(join_tokens(vec![understand(&answer)?])))
        }
        JoinTokenCommand::Delete { id } => delete(client, &["join-tokens", &id], output).await,
    }
}

fn join_tokens(tokens: Vec<JoinToken>) -> String {
    let rows = tokens.into_iter().map(|token| {
        let cluster = token.cluster.unwrap_or_else(|| "by facts".into());
        [token.id, cluster, token.role, token.uses_left.to_string(), token.expires, token.created_by]
    });
    table(["id", "cluster", "role", "uses left", "expires", "made by"], rows)
}

#[derive(Deserialize)]
struct Member {
    node: String,
    name: Option<String>,
    live: bool,
    bound_cluster: Option<String>,
    role: String,
    joined: String,
    joined_by: String,
    revoked: Option<String>,
}

pub(super) async fn member(client: &Client, command: MemberCommand, output: Output) -> Result<String, Error> {
    match command {
        MemberCommand::List(MemberFilter { cluster, name, role, live, revoked }) => {
            let asked = [
                ("cluster", cluster.as_deref()),
                ("name", name.as_deref()),
                ("role", role.map(NodeRole::as_str)),
                ("live", live.map(truth)),
                ("revoked", revoked.map(truth)),
            ];
            let answer = client.list(&["members"], &given(&asked)).await?;
            show(output, &answer, || Ok(members(understand(&answer)?)))
        }
        MemberCommand::Show { node } => {
            let answer = client.request(Method::GET, &["members", &node]).send().await?;
            show(output, &answer, || Ok(members(vec![understand(&answer)?])))
        }
        MemberCommand::Revoke { node } => {
            let (_, tag) = client.seen(&["members", &node]).await?;
            let request = client.request(Method::POST, &["members", &node, "revoke"]).if_match(Some(&tag));
            let revoked = request.send().await?;
            show(output, &revoked, || Ok(members(vec![understand(&revoked)?])))
        }
        MemberCommand::Delete { node } => delete(client, &["members", &node], output).await,
    }
}

fn members(members: Vec<Member>) -> String {
    let rows = members.into_iter().map(|member| {
        let state = match (&member.revoked, member.live) {
            (Some(at), _) => format!("revoked {at}"),
            (None, true) => "live".into(),
            (None, false) => "away".into(),
        };
        let bound = member.bound_cluster.unwrap_or_default();
        [member.node, member.name.unwrap_or_default(), state, bound, member.role, member.joined, member.joined_by]
    });
    table(["node", "name", "state", "bound to", "role", "joined", "by"], rows)
}

#[derive(Deserialize)]
struct ApiToken {
    id: String,
    name: String,
    #[serde(default)]
    token: Option<String>,
    role: String,
    clusters: Option<Vec<String>>,
    created: String,
    expires: Option<String>,
}

pub(super) async fn api_token(client: &Client, command: ApiTokenCommand, output: Output) -> Result<String, Error> {
    match command {
        ApiTokenCommand::Create(CreateApiToken { name, role, clusters, ttl }) => {
            let clusters = (!clusters.is_empty()).then_some(clusters);
            let body = json!({ "name": name, "role": role.as_str(), "clusters": clusters, "ttl": ttl });
            let made = client.request(Method::POST, &["api-tokens"]).json(&body).send().await?;
            show(output, &made, || Ok(understand::<ApiToken>(&made)?.token.unwrap_or_default()))
        }
        ApiTokenCommand::List(ApiTokenFilter { name, role, cluster, valid }) => {
            let asked = [
                ("name", name.as_deref()),
                ("role", role.map(ApiRole::as_str)),
                ("cluster", cluster.as_deref()),
                ("valid", valid.map(truth)),
            ];
            let answer = client.list(&["api-tokens"], &given(&asked)).await?;
            show(output, &answer, || Ok(api_tokens(understand(&answer)?)))
        }
        ApiTokenCommand::Show { token } => {
            let answer = client.request(Method::GET, &["api-tokens", &token]).send().await?;
            show(output, &answer, || Ok(api_tokens(vec![understand(&answer)?])))
        }
        ApiTokenCommand::Delete { token } => delete(client, &["api-tokens", &token], output).await,
    }
}

fn api_tokens(tokens: Vec<ApiToken>) -> String {
    let rows = tokens.into_iter().map(|token| {
        let clusters = token.clusters.map_or_else(|| "all".into(), |clusters| clusters.join(","));
        let expires = token.expires.unwrap_or_else(|| "never".into());
        [token.id, token.name, token.role, clusters, token.created, expires]
    });
    table(["id", "name", "role", "clusters", "made", "expires"], rows)
}

#[derive(Deserialize)]
struct Entry {
    seq: u64,
    at: String,
    who: String,
    action: String,
    subject: String,
    before: Option<Value>,
    after: Option<Value>,
}

pub(super) async fn audit(client: &Client, args: &AuditArgs, output: Output) -> Result<String, Error> {
    let AuditArgs { limit, before, who, action, subject, since, until } = args;
    let (limit, before) = (limit.to_string(), before.map(|before| before.to_string()));
    let asked = [
        ("limit", Some(limit.as_str())),
        ("before", before.as_deref()),
        ("who", who.as_deref()),
        ("action", action.as_deref()),
        ("subject", subject.as_deref()),
        ("since", since.as_deref()),
        ("until", until.as_deref()),
    ];
    let answer = client.request(Method::GET, &["audit"]).query(&given(&asked)).send().await?;
    show(output, &answer["items"], || {
        let entries: Vec<Entry> = understand(&answer["items"])?;
        let rows = entries.into_iter().map(|entry| {
            let text = |value: Option<Value>| value.map(|value| value.to_string()).unwrap_or_default();
            let change = [text(entry.before), text(entry.after)];
            let change = change.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" -> ");
            [entry.seq.to_string(), entry.at, entry.who, entry.action, entry.subject, change]
        });
        Ok(table(["seq", "at", "who", "action", "subject", "change"], rows))
    })
}

#[derive(Deserialize)]
struct Authority {
    trust_domain: String,
    sha256: String,
    certificate: String,
}

pub(super) async fn authority(client: &Client, output: Output) -> Result<String, Error> {
    let answer = client.request(Method::GET, &["ca"]).send().await?;
    show(output, &answer, || {
        let Authority { trust_domain, sha256, certificate } = understand(&answer)?;
        let lines: Vec<&str> =
            certificate.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        let pem = lines.join("\n");
        Ok(format!(
            "# trust domain {trust_domain}, sha256 {sha256}\n-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----"
        ))
    })
}

#[derive(Deserialize)]
struct Whoami {
    name: String,
    role: String,
    clusters: Option<Vec<String>>,
}

pub(super) async fn whoami(client: &Client, output: Output) -> Result<String, Error> {
    let answer = client.request(Method::GET, &["whoami"]).send().await?;
    show(output, &answer, || {
        let Whoami { name, role, clusters } = understand(&answer)?;
        let clusters = clusters.map_or_else(|| "all clusters".into(), |clusters| clusters.join(", "));
        Ok(format!("{name}: {role} of {clusters}"))
    })
}

/// What was asked for, of all that could be.
fn given<'a>(asked: &[(&'a str, Option<&'a str>)]) -> Vec<(&'a str, &'a str)> {
    asked.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect()
}

const fn truth(yes: bool) -> &'static str {
    if yes { "true" } else { "false" }
}

fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new(&header);
    rows.for_each(|row| table.row(row));
    table.print()
}

/// Deletes what is there, in the state in which it is there.
async fn delete(client: &Client, path: &[&str], output: Output) -> Result<String, Error> {
    let (_, tag) = client.seen(path).await?;
    client.request(Method::DELETE, path).if_match(Some(&tag)).send().await?;
    let what = path.last().copied().unwrap_or_default();
    show(output, &json!({ "deleted": what }), || Ok(format!("deleted {what}")))
}
