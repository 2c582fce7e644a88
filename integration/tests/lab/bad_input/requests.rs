//! Requests that no containerd sends, to the mirror of a real node: clear answers, and no way through it to anywhere else.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Redirect},
    routing::get,
};
use lab::{
    aftermath,
    http::Client,
    image::{Image, Plan},
    memory::own_now,
    raw::{Trap, exchange},
    registry,
    wait::eventually,
    world::{World, WorldPlan},
};

use super::{MIB, descriptors};
use crate::alone;

/// So long without a byte means that the mirror waits for us.
const QUIET: Duration = Duration::from_millis(400);
/// Where nobody may be led: a listener on the node's loopback that is not Shoal's, and the admin page.
const TRAP: u16 = 5999;
const ADMIN: u16 = 5082;
/// A registry that leads elsewhere.
const MISLEADING: &str = "misleading.shoal.test:5000";

fn mirror() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 5080))
}

/// A request, and what may be answered: any of these statuses, in this order.
struct Case {
    what: String,
    bytes: Vec<u8>,
    answers: Vec<Vec<u16>>,
}

fn case(what: &str, bytes: impl Into<Vec<u8>>, answers: &[&[u16]]) -> Case {
    Case { what: what.to_owned(), bytes: bytes.into(), answers: answers.iter().map(|one| one.to_vec()).collect() }
}

fn request(first: &str, headers: &str) -> String {
    format!("{first} HTTP/1.1\r\nHost: 127.0.0.1:5080\r\n{headers}Connection: close\r\n\r\n")
}

fn paths(digest: &str) -> Vec<Case> {
    let ns = format!("?ns={}", registry::HOST);
    let long = "a".repeat(300);
    let huge = "a".repeat(100_000);
    let wanted: Vec<(String, u16)> = vec![
        ("/".into(), 404),
        ("/v1/".into(), 404),
        ("//v2/".into(), 404),
        ("/v2".into(), 200),
        ("/v2/".into(), 200),
        ("/v2x/".into(), 404),
        ("/v2/../../etc/passwd".into(), 404),
        (format!("/v2/../../blobs/{digest}{ns}"), 400),
        (format!("/v2/%2e%2e/blobs/{digest}{ns}"), 400),
        (format!("/v2/LAB/blobs/{digest}{ns}"), 400),
        (format!("/v2/lab//before/blobs/{digest}{ns}"), 400),
        (format!("/v2/{long}/blobs/{digest}{ns}"), 400),
        (format!("/v2/lab/before/blobs/{ns}"), 400),
        (format!("/v2/lab/before/blobs/{digest}%00{ns}"), 400),
        (format!("/v2/lab/before/blobs/{}{ns}", digest.to_uppercase()), 400),
        (format!("/v2/lab/before/blobs/{}{ns}", &digest[..digest.len() - 1]), 400),
        (format!("/v2/lab/before/blobs/{digest}0{ns}"), 400),
        (format!("/v2/lab/before/blobs/sha256:{}{ns}", "z".repeat(64)), 400),
        (format!("/v2/lab/before/blobs/sha512:{}{ns}", "a".repeat(128)), 404),
        (format!("/v2/lab/before/blobs/sha256:{}{ns}", "A".repeat(64)), 400),
        (format!("/v2/lab/before/manifests/.hidden{ns}"), 400),
        (format!("/v2/lab/before/manifests/{}{ns}", "t".repeat(129)), 400),
        (format!("/v2/lab/before/tags/list{ns}"), 404),
        (format!("/v2/_catalog{ns}"), 404),
        ("/debug".into(), 404),
        ("/metrics".into(), 404),
    ];
    let mut cases: Vec<Case> =
        wanted.iter().map(|(path, status)| case(path, request(&format!("GET {path}"), ""), &[&[*status]])).collect();
    cases.push(case("a path of 100 KB", request(&format!("GET /v2/{huge}"), ""), &[&[414, 431]]));
    let bytes = [b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec()].concat();
    cases.push(case("a path that is no text", bytes, &[&[400, 404]]));
    cases
}

fn ranges(digest: &str, size: u64) -> Vec<Case> {
    let path = format!("GET /v2/lab/before/blobs/{digest}?ns={}", registry::HOST);
    let mut cases = Vec::new();
    for (range, status) in [
        ("bytes=0-0", 206),
        ("bytes=-1", 206),
        ("bytes=0-", 200),
        ("bytes=5-2", 416),
        ("bytes=-0", 416),
        ("bytes=99999999999999999999999999-", 416),
        ("bytes=0-99999999999999999999999999", 206),
        ("bytes=0-1,3-4", 200),
        ("bytes=1-2-3", 200),
        ("bytes=a-b", 200),
        ("lines=1-2", 200),
        ("bytes", 200),
        ("", 200),
    ] {
        cases.push(case(range, request(&path, &format!("Range: {range}\r\n")), &[&[status]]));
    }
    cases.push(case("a start past the end", request(&path, &format!("Range: bytes={size}-\r\n")), &[&[416]]));
    let twice = "Range: bytes=0-0\r\nRange: bytes=1-1\r\n";
    cases.push(case("two ranges in two headers", request(&path, twice), &[&[200]]));
    cases.push(case(
        "a range of 10 KB",
        request(&path, &format!("Range: bytes={}-\r\n", "9".repeat(10_000))),
        &[&[416]],
    ));
    cases
}

fn forms() -> Vec<Case> {
    let ping = "GET /v2/ HTTP/1.1\r\nHost: x\r\n";
    let last = "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let many: String = (0..70).map(|at| format!("X-{at}: y\r\n")).collect();
    let mut cases = vec![
        case("70 headers", request("GET /v2/", &many), &[&[431]]),
        case("a header of 1 MB", request("GET /v2/", &format!("X: {}\r\n", "y".repeat(1 << 20))), &[&[431, 0]]),
        case("a header without a colon", request("GET /v2/", "nonsense\r\n"), &[&[400]]),
        case("a header with a zero byte", request("GET /v2/", "X: a\0b\r\n"), &[&[400]]),
        case("two hosts", request("GET /v2/", "Host: other\r\n"), &[&[200, 400]]),
        case("no host", "GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n", &[&[200, 400]]),
        case("an absolute URL of the admin page", request("GET http://127.0.0.1:5082/metrics", ""), &[&[404]]),
        case("an absolute URL of another host", request("GET http://10.77.0.2/v2/", ""), &[&[200]]),
        case("CONNECT", request("CONNECT 127.0.0.1:5082", ""), &[&[405]]),
        case("OPTIONS *", request("OPTIONS *", ""), &[&[405]]),
        case("HTTP/1.0", "GET /v2/ HTTP/1.0\r\n\r\n", &[&[200]]),
        case("HTTP/0.9", "GET /v2/\r\n", &[&[400, 0]]),
        case("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[&[400, 405, 505, 0]]),
        case("HTTP/3.7", "GET /v2/ HTTP/3.7\r\nHost: x\r\n\r\n", &[&[400, 505, 0]]),
        case("an upgrade", request("GET /v2/", "Upgrade: h2c\r\n"), &[&[200]]),
    ];
    for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"] {
        cases.push(case(method, request(&format!("{method} /v2/"), ""), &[&[405]]));
    }
    // Where a body is said to end must be where the next request is read from.
    for (what, bytes) in [
        (
            "a GET with a chunked body, and another",
            format!("{ping}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{last}"),
        ),
        ("a GET with a body, and another", format!("{ping}Content-Length: 5\r\n\r\nhello{last}")),
        ("two at once", format!("{ping}\r\n{last}")),
    ] {
        cases.push(case(what, bytes, &[&[200], &[200]]));
    }
    let both = format!("{ping}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{last}");
    cases.push(case("a length and chunks", both, &[&[200, 400], &[200, 0]]));
    let twice = format!("{ping}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello{last}");
    cases.push(case("two lengths", twice, &[&[400]]));
    let broken = format!("{ping}Transfer-Encoding: chunked\r\n\r\nzz\r\n{last}");
    cases.push(case("a broken chunk, and another", broken, &[&[200, 400], &[0]]));
    cases.push(case("50 at once", format!("{}{last}", format!("{ping}\r\n").repeat(49)), &[&[200_u16][..]; 50]));
    cases
}

/// Registries by which one could hope to reach this machine, and what is answered.
fn namespaces() -> Vec<(String, u16)> {
    let mut all = Vec::new();
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[::]",
        "0.0.0.0",
        "loop.shoal.test",
        "mapped.shoal.test",
    ] {
        for port in [TRAP, ADMIN] {
            all.push((format!("{host}:{port}"), 403));
        }
    }
    // Loopback as the resolver would read it. TLS takes no such name, so nothing is looked up.
    for host in ["2130706433", "0x7f.1", "0177.0.0.1", "127.1"] {
        all.push((format!("{host}:{TRAP}"), 503));
        all.push((format!("{host}:{ADMIN}"), 503));
    }
    for host in
        ["169.254.169.254", "metadata.shoal.test", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200", "224.0.0.1"]
    {
        all.push((host.to_owned(), 403));
    }
    for bad in [
        "",
        "%zz",
        "a%2fb",
        "user@127.0.0.1:5999",
        "registry.shoal.test/../x",
        "registry.shoal.test:99999",
        "http://127.0.0.1:5999",
        "127.0.0.1:5999%23",
        "a%00b",
        "%ff",
        "::1",
        "a..b",
    ] {
        all.push((bad.to_owned(), 400));
    }
    all
}

fn fits(case: &Case, got: &[u16]) -> bool {
    // 0: no answer at all, only the end.
    let optional = case.answers.iter().filter(|one| one.contains(&0)).count();
    let enough = got.len() + optional >= case.answers.len() && got.len() <= case.answers.len();
    enough && got.iter().zip(&case.answers).all(|(got, wanted)| wanted.contains(got))
}

async fn world() -> Result<World> {
    let name = |ip: IpAddr, name: &str| (ip, name.to_owned());
    let mut plan = WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(1).without_tls() }
        .with_guest("x1", Ipv4Addr::new(10, 77, 1, 200))
        .with_setting(&format!("origin.registry.\"{MISLEADING}\".plain_http"), "true");
    plan.hosts = vec![
        name(Ipv4Addr::LOCALHOST.into(), "loop.shoal.test"),
        name(Ipv4Addr::new(169, 254, 169, 254).into(), "metadata.shoal.test"),
        name(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1).into(), "mapped.shoal.test"),
        name(Ipv4Addr::new(10, 77, 1, 200).into(), "misleading.shoal.test"),
    ];
    let mut world = World::start(plan).await?;
    let image = Image::obtain(&Plan::small())?;
    world.registry.push(&image, "lab/before", "1").await?;
    world.registry.push(&image, "lab/after", "1").await?;
    world.start_nodes().await?;
    world.node("a1")?.pull("lab/before", "1", &image).await?;
    Ok(world)
}

#[test]
fn requests_that_make_no_sense_get_clear_answers_and_leave_nothing() {
    alone(async {
        let mut world = world().await?;
        let image = Image::obtain(&Plan::small())?;
        let blob = image.layers.last().context("an image has layers")?;
        let ns = world.net.namespace("a1")?;
        let pid = world.node("a1")?.shoal()?.pid();
        let cases: Vec<Case> =
            paths(&blob.digest).into_iter().chain(ranges(&blob.digest, blob.size)).chain(forms()).collect();
        let (files, memory) = (descriptors(pid)?, own_now(pid)?);
        let mut wrong = Vec::new();
        for case in &cases {
            let said = exchange(&ns, mirror(), &case.bytes, QUIET).await?;
            let got = said.statuses();
            if !fits(case, &got) {
                wrong.push(format!("{}: {got:?}, not {:?}", case.what, case.answers));
            }
            // A refusal is one that containerd understands: JSON, as the distribution specification has it.
            let text = String::from_utf8_lossy(&said.bytes);
            if got.first().is_some_and(|status| matches!(status, 400 | 404 | 405 | 416) && text.contains("\r\n\r\n{")) {
                ensure!(text.contains("\"errors\"") && text.contains("\"code\""), "{}: {text}", case.what);
            }
        }
        ensure!(wrong.is_empty(), "{} of {} were answered otherwise:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        println!("{} requests that make no sense were answered as they should be", cases.len());
        nothing_left(pid, files, memory).await?;
        world.node("a1")?.pull("lab/after", "1", &image).await?;
        aftermath::nobody_panicked(&mut world)
    });
}

async fn nothing_left(pid: u32, files: usize, memory: u64) -> Result<()> {
    eventually(Duration::from_secs(20), "descriptors to come back", || async {
        let now = descriptors(pid)?;
        ensure!(now <= files + 4, "{files} descriptors before, {now} after");
        Ok(())
    })
    .await?;
    let now = own_now(pid)?;
    ensure!(now < memory + 16 * MIB, "{memory} bytes before, {now} after");
    Ok(())
}

/// A registry on the nodes' network whose every way out leads to the node itself.
fn misleading(trap: u16) -> Router {
    let way = move |how: &str| match how {
        "redirect" => format!("http://127.0.0.1:{trap}/v2/"),
        "name" => format!("http://loop.shoal.test:{trap}/v2/"),
        "mapped" => format!("http://[::ffff:127.0.0.1]:{trap}/v2/"),
        _ => "http://169.254.169.254/latest/meta-data/".to_owned(),
    };
    let answer = move |Path((how, _rest)): Path<(String, String)>| async move {
        match how.strip_prefix("realm-") {
            Some(how) => {
                let challenge = format!("Bearer realm=\"{}\",service=\"x\"", way(how));
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
            }
            None => Redirect::temporary(&way(&how)).into_response(),
        }
    };
    Router::new().route("/v2/{how}/{*rest}", get(answer))
}

#[test]
fn the_mirror_is_no_way_to_loopback_or_metadata_addresses() {
    alone(async {
        let mut world = world().await?;
        let image = Image::obtain(&Plan::small())?;
        let digest = format!("sha256:{}", "0".repeat(64));
        let ns = world.net.namespace("a1")?;
        let client = Client::plain(&ns, mirror());
        let trap = Trap::set(&ns, SocketAddr::from((Ipv4Addr::LOCALHOST, TRAP)))?;
        let mut wrong = Vec::new();
        for (name, wanted) in namespaces() {
            for path in [format!("blobs/{digest}"), "manifests/latest".to_owned()] {
                let answer = client.get(&format!("/v2/lab/before/{path}?ns={name}")).await?;
                if answer.status.as_u16() != wanted {
                    let body = String::from_utf8_lossy(&answer.body).into_owned();
                    wrong.push(format!("ns={name} {path}: {} instead of {wanted}: {body}", answer.status));
                }
            }
        }
        let guest = world.net.namespace("x1")?.bind(5000)?;
        let server = tokio::spawn(async move { axum::serve(guest, misleading(TRAP)).await });
        for how in ["redirect", "name", "mapped", "metadata"] {
            for how in [how.to_owned(), format!("realm-{how}")] {
                for path in [format!("blobs/{digest}"), "manifests/latest".to_owned()] {
                    let answer = client.get(&format!("/v2/{how}/{path}?ns={MISLEADING}")).await?;
                    let body = String::from_utf8_lossy(&answer.body).into_owned();
                    if answer.status != 403 || !body.contains("not allowed") {
                        wrong.push(format!("{how} {path}: {} {body}", answer.status));
                    }
                }
            }
        }
        server.abort();
        ensure!(wrong.is_empty(), "{} were answered otherwise:\n{}", wrong.len(), wrong.join("\n"));
        ensure!(trap.caught().await == 0, "the mirror connected to a listener on loopback");
        // Given twice, it is refused; without the mirror's say nobody chooses.
        let twice = client.get(&format!("/v2/lab/before/blobs/{digest}?ns=a&ns=b")).await?;
        ensure!(twice.status == 400, "{}", twice.status);
        world.node("a1")?.pull("lab/after", "1", &image).await?;
        aftermath::nobody_panicked(&mut world)
    });
}
