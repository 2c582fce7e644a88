//! Messages that no node and no `shoalctl` sends, to a real control: clear errors, and nothing is left.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, header, uri::PathAndQuery};
use lab::{
    aftermath,
    http::{Client, full},
    liar::Liar,
    memory::own_now,
    messages::Raw,
    papers,
    wait::eventually,
    world::{World, WorldPlan},
};
use prost::Message;
use shoal_proto::control::v1 as wire;
use tonic::{Code, Status, client::Grpc, transport::Channel};

use super::{MIB, descriptors};
use crate::alone;

/// For an answer.
const BOUND: Duration = Duration::from_secs(8);

/// How a stream ended that said these messages: what came back first, or why not.
async fn say(channel: &Channel, method: &str, messages: Vec<Bytes>) -> Result<Result<Bytes, Status>> {
    let mut grpc = Grpc::new(channel.clone());
    let path: PathAndQuery = format!("/shoal.control.v1.Control/{method}").parse()?;
    let talk = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        // The half of a stream stays open: its end would be an answer of its own.
        let open = if method == "WasPublic" { stream::empty().boxed() } else { stream::pending().boxed() };
        let said = stream::iter(messages).chain(open);
        let mut heard = grpc.streaming(tonic::Request::new(said), path, Raw).await?.into_inner();
        let mut last = Err(Status::ok("the stream ended without a word"));
        while let Some(message) = heard.message().await? {
            last = Ok(message);
            if method == "Find" || method == "WasPublic" {
                break;
            }
        }
        last
    };
    tokio::time::timeout(BOUND, talk).await.with_context(|| format!("{method} was not answered"))
}

fn register(change: impl FnOnce(&mut wire::Register)) -> Bytes {
    let mut register = wire::Register {
        node_id: "somebody".into(),
        instance: 1,
        name: "somebody".into(),
        version: "0".into(),
        facts: Some(wire::Facts { ip: "10.77.0.9".into(), ..wire::Facts::default() }),
        peer_port: 5081,
        pinned_cluster: String::new(),
        role: wire::Role::Node.into(),
        takes_blob_orders: false,
    };
    change(&mut register);
    session(wire::session_request::Message::Register(register))
}

fn session(message: wire::session_request::Message) -> Bytes {
    wire::SessionRequest { message: Some(message) }.encode_to_vec().into()
}

fn find(change: impl FnOnce(&mut wire::FindStart)) -> Bytes {
    let mut start = wire::FindStart {
        digest: vec![7; 32],
        session: vec![1; 16],
        registry: "registry.example".into(),
        repository: "a/b".into(),
        kind: wire::Kind::Blob.into(),
        ..wire::FindStart::default()
    };
    change(&mut start);
    wire::FindRequest { message: Some(wire::find_request::Message::Start(start)) }.encode_to_vec().into()
}

/// Method, messages, code, and what the error names.
type Case = (&'static str, Vec<Bytes>, Code, Vec<&'static str>);

fn grpc_cases() -> Vec<Case> {
    use wire::session_request::Message;
    let garbage = || Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    // Field 1, a message that says it has 2 GiB.
    let short = || Bytes::from_static(b"\x0a\xff\xff\xff\xff\x07abc");
    let giant = || Bytes::from(vec![0; 2 << 20]);
    let long = "x".repeat(2000);
    let fine = || register(|_| ());
    let held = |digest: usize, root: usize, media_type: &str| {
        let held = wire::Held {
            digest: vec![1; digest],
            size: 1,
            root: vec![2; root],
            media_type: media_type.into(),
            signature: Vec::new(),
        };
        session(Message::Announce(wire::Announce { held: vec![held], ..wire::Announce::default() }))
    };
    let public = wire::PublicRepository {
        repository: Some(wire::Repository { registry: String::new(), name: long.clone(), manifest: vec![7] }),
        seconds_ago: 1,
    };
    let all_wrong = register(|register| {
        register.node_id = "NOT AN ID".into();
        register.name = long.clone();
        register.version = long.clone();
        register.pinned_cluster = long.clone();
        register.facts = Some(wire::Facts { ip: "here".into(), idc: "a|b".into(), location: "a||b".into() });
        register.peer_port = 70_000;
        register.role = 77;
    });
    let named = vec![
        "node_id",
        "name",
        "version",
        "pinned_cluster",
        "facts.ip",
        "facts.idc",
        "facts.location",
        "peer_port",
        "role",
    ];
    let start_wrong = find(|start| {
        start.digest = vec![7; 31];
        start.registry.clone_from(&long);
        start.repository.clone_from(&long);
        start.kind = 99;
        start.blocks_held = 1 << 20;
    });
    vec![
        ("Session", vec![garbage()], Code::Internal, vec!["decode"]),
        ("Session", vec![short()], Code::Internal, vec!["decode"]),
        ("Session", vec![giant()], Code::OutOfRange, vec!["too large"]),
        ("Session", vec![Bytes::new()], Code::InvalidArgument, vec!["register"]),
        (
            "Session",
            vec![session(Message::Heartbeat(wire::Heartbeat::default()))],
            Code::InvalidArgument,
            vec!["register"],
        ),
        ("Session", vec![all_wrong], Code::InvalidArgument, named),
        (
            "Session",
            vec![register(|register| register.node_id = String::new())],
            Code::InvalidArgument,
            vec!["node_id"],
        ),
        ("Session", vec![register(|register| register.facts = None)], Code::InvalidArgument, vec!["facts.ip"]),
        ("Session", vec![register(|register| register.peer_port = 0)], Code::InvalidArgument, vec!["peer_port"]),
        ("Session", vec![fine(), fine()], Code::InvalidArgument, vec!["register"]),
        ("Session", vec![fine(), held(31, 32, "")], Code::InvalidArgument, vec!["held.digest"]),
        ("Session", vec![fine(), held(32, 33, "")], Code::InvalidArgument, vec!["held.root"]),
        ("Session", vec![fine(), held(32, 32, &long)], Code::InvalidArgument, vec!["held.media_type"]),
        (
            "Session",
            vec![fine(), session(Message::Public(wire::Public { repositories: vec![public] }))],
            Code::InvalidArgument,
            vec!["repository"],
        ),
        ("Session", vec![fine(), garbage()], Code::Ok, vec![]),
        ("Session", vec![], Code::DeadlineExceeded, vec!["first message"]),
        ("Find", vec![garbage()], Code::Internal, vec!["decode"]),
        ("Find", vec![giant()], Code::OutOfRange, vec!["too large"]),
        ("Find", vec![Bytes::new()], Code::InvalidArgument, vec!["start"]),
        (
            "Find",
            vec![start_wrong],
            Code::InvalidArgument,
            vec!["digest", "registry", "repository", "kind", "blocks_held"],
        ),
        ("Find", vec![], Code::DeadlineExceeded, vec!["first message"]),
        ("WasPublic", vec![garbage()], Code::Internal, vec!["decode"]),
        ("WasPublic", vec![Bytes::new()], Code::InvalidArgument, vec!["repository"]),
        ("Nonsense", vec![fine()], Code::Unimplemented, vec![]),
    ]
}

#[test]
fn messages_that_make_no_sense_get_clear_errors_from_control() {
    alone(async {
        let mut world =
            World::start(WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(1).without_tls() }).await?;
        world.start_nodes().await?;
        let from = world.net.namespace("a1")?;
        let pid = world.control()?.pid();
        let channel = papers::channel(&from, world.grpc(), None).await?;
        // The first connection makes buffers that stay.
        let _ = say(&channel, "Session", vec![Bytes::new()]).await?;
        let (files, memory) = (descriptors(pid)?, own_now(pid)?);
        let mut wrong = Vec::new();
        for (at, (method, messages, code, named)) in grpc_cases().into_iter().enumerate() {
            let lengths: Vec<usize> = messages.iter().map(Bytes::len).collect();
            let ended = say(&channel, method, messages).await.with_context(|| format!("case {at}"))?;
            let (got, text) = match &ended {
                Ok(message) => (Code::Ok, format!("{} bytes", message.len())),
                Err(status) => (status.code(), status.message().to_owned()),
            };
            if got != code || !named.iter().all(|name| text.contains(name)) {
                wrong.push(format!("{at}: {method} of {lengths:?}: {got:?} {text:?}, not {code:?} naming {named:?}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        let ended = say(&channel, "Find", vec![find(|_| ())]).await?;
        let stop = ended.map(wire::FindResponse::decode)??;
        let Some(wire::find_response::Message::Stop(stop)) = stop.message else { anyhow::bail!("{stop:?}") };
        ensure!(stop.reason() == wire::stop::Reason::NoSession, "a session that nobody has: {stop:?}");
        let asked = wire::WasPublicRequest {
            session: vec![9; 16],
            repository: Some(wire::Repository {
                registry: "registry.example".into(),
                name: "a/b".into(),
                manifest: Vec::new(),
            }),
        };
        let ended = say(&channel, "WasPublic", vec![asked.encode_to_vec().into()]).await?;
        ensure!(ended.as_ref().is_err_and(|status| status.code() == Code::NotFound), "{ended:?}");
        many_sessions(&world).await?;
        rest(&mut world).await?;
        drop(channel);
        eventually(Duration::from_secs(20), "descriptors to come back", || async {
            let now = descriptors(pid)?;
            ensure!(now <= files + 4, "{files} descriptors before, {now} after");
            Ok(())
        })
        .await?;
        let own = own_now(pid)?;
        println!("memory of control's own {} > {} KiB", memory >> 10, own >> 10);
        ensure!(own < memory + 24 * MIB, "{memory} bytes before, {own} after");
        let nodes = world.control()?.nodes().await?;
        ensure!(nodes.len() == 1 && nodes[0].connected, "somebody is left, or a1 was lost: {nodes:?}");
        aftermath::nobody_panicked(&mut world)
    });
}

/// One node id, again and again: nothing piles up.
async fn many_sessions(world: &World) -> Result<()> {
    for _ in 0..20 {
        let liar = Liar::join(&world.net.namespace("registry")?, world.grpc(), "again", None).await?;
        liar.leave().await?;
    }
    Ok(())
}

/// Method, path, content type, body, status, and what the problem names.
type RestCase = (Method, String, &'static str, Vec<u8>, u16, &'static str);

fn rest_cases() -> Vec<RestCase> {
    const JSON: &str = "application/json";
    let long = "x".repeat(5000);
    let cluster = |body: &str| body.as_bytes().to_vec();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    vec![
        (Method::POST, "/api/v1/clusters".into(), JSON, cluster("{"), 400, ""),
        (Method::POST, "/api/v1/clusters".into(), JSON, cluster("[]"), 400, ""),
        (Method::POST, "/api/v1/clusters".into(), JSON, cluster("null"), 400, ""),
        (Method::POST, "/api/v1/clusters".into(), JSON, Vec::new(), 400, ""),
        (Method::POST, "/api/v1/clusters".into(), JSON, b"\xff\xfe{}".to_vec(), 400, ""),
        (Method::POST, "/api/v1/clusters".into(), JSON, deep.into_bytes(), 400, ""),
        (Method::POST, "/api/v1/clusters".into(), JSON, cluster("{\"name\":3}"), 400, "name"),
        (Method::POST, "/api/v1/clusters".into(), JSON, cluster("{\"name\":\"a\",\"colour\":1}"), 400, "colour"),
        (Method::POST, "/api/v1/clusters".into(), JSON, cluster("{\"name\":\"\"}"), 400, "name"),
        (Method::POST, "/api/v1/clusters".into(), JSON, format!("{{\"name\":\"{long}\"}}").into_bytes(), 400, "name"),
        (
            Method::POST,
            "/api/v1/clusters".into(),
            JSON,
            cluster("{\"name\":\"a\",\"cidrs\":[\"10.0.0.0/99\"]}"),
            400,
            "cidrs",
        ),
        (Method::POST, "/api/v1/clusters".into(), "text/plain", cluster("{\"name\":\"a\"}"), 415, ""),
        (Method::POST, "/api/v1/clusters".into(), JSON, vec![b' '; 2 << 20], 413, ""),
        (Method::PUT, "/api/v1/clusters?dry_run=perhaps".into(), JSON, cluster("{\"clusters\":[]}"), 400, "dry_run"),
        (Method::PUT, "/api/v1/clusters?colour=1".into(), JSON, cluster("{\"clusters\":[]}"), 400, "colour"),
        (Method::PATCH, "/api/v1/clusters/nobody".into(), JSON, cluster("{\"name\":\"b\"}"), 404, ""),
        (Method::DELETE, format!("/api/v1/clusters/{long}"), JSON, Vec::new(), 404, ""),
        (Method::DELETE, "/api/v1/clusters/%00%ff".into(), JSON, Vec::new(), 400, ""),
        (Method::GET, "/api/v1/explain".into(), JSON, Vec::new(), 400, "ip"),
        (Method::GET, "/api/v1/explain?ip=here".into(), JSON, Vec::new(), 400, "ip"),
        (Method::GET, "/api/v1/explain?ip=10.0.0.1&idc=a%7Cb".into(), JSON, Vec::new(), 400, "idc"),
        (Method::GET, "/api/v1/nothing".into(), JSON, Vec::new(), 404, ""),
        (Method::GET, "/api/v1/../../etc/passwd".into(), JSON, Vec::new(), 404, ""),
        (Method::TRACE, "/api/v1/clusters".into(), JSON, Vec::new(), 405, ""),
        (Method::POST, "/metrics".into(), JSON, Vec::new(), 405, ""),
    ]
}

async fn rest(world: &mut World) -> Result<()> {
    let client: Client = world.control()?.rest().clone();
    let mut wrong = Vec::new();
    for (method, path, kind, body, wanted, named) in rest_cases() {
        let what = format!("{method} {} with {} bytes", &path[..path.len().min(60)], body.len());
        let request =
            Request::builder().method(method).uri(&path).header(header::CONTENT_TYPE, kind).body(full(body))?;
        let answer = tokio::time::timeout(BOUND, client.send(request)).await.with_context(|| what.clone())?;
        let answer = answer.with_context(|| what.clone())?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let typed = answer.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
        if answer.status != wanted || !text.contains(named) || !typed {
            wrong.push(format!("{what}: {} {text:?}, not {wanted} naming {named:?}", answer.status));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
