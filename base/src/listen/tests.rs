use super::*;
use axum::routing::{get, post};
use tokio::sync::Notify;

use crate::drain;

const ANY: &str = "127.0.0.1:0";
/// Longer than whatever the server waits for, where time is paused.
const BOUND: Duration = Duration::from_secs(60);

async fn ask(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(BOUND, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
    answer
}

#[tokio::test]
async fn binds_free_ports_and_the_same_port_again() {
    let first = bind(ANY.parse().unwrap()).unwrap();
    let addr = first.local_addr().unwrap();
    assert_ne!(addr.port(), 0);
    let client = TcpStream::connect(addr).await.unwrap();
    let (served, _) = first.accept().await.unwrap();
    drop((served, first));
    bind(addr).expect("the port of a connection that just ended");
    drop(client);
}

#[tokio::test]
async fn the_unspecified_ipv6_address_listens_on_ipv4_too() {
    let listener = match bind("[::]:0".parse().unwrap()) {
        Ok(listener) => listener,
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => return,
        Err(error) => panic!("{error}"),
    };
    let port = listener.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
}

#[test]
fn open_files_are_raised_to_the_hard_limit() {
    let limit = raise_open_files().unwrap();
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, limit));
}

#[tokio::test]
async fn serves_and_ends_after_the_request_in_hand() {
    let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let router = Router::new().route("/slow", {
        let (entered, leave) = (Arc::clone(&entered), Arc::clone(&leave));
        get(move |ConnectInfo(client): ConnectInfo<SocketAddr>| async move {
            entered.notify_one();
            leave.notified().await;
            format!("bye {}", client.ip())
        })
    });
    let (trigger, drain) = drain::channel();
    let listener = bind(ANY.parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(Http::new(router).serve(listener, drain));
    let request = tokio::spawn(async move { ask(addr, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await });
    entered.notified().await;
    trigger.fire();
    leave.notify_one();
    let answer = request.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("bye 127.0.0.1"), "{answer}");
    tokio::time::timeout(BOUND, server).await.expect("it did not end").unwrap();
    assert!(trigger.drained(BOUND).await);
    assert!(TcpStream::connect(addr).await.is_err(), "it still listens");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_headers_is_dropped() {
    let (_trigger, drain) = drain::channel();
    let listener = bind(ANY.parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(Http::new(Router::new()).serve(listener, drain));
    let answer = ask(addr, "GET / HTTP/1.1\r\nhost:").await;
    assert!(!answer.contains("200"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_in_its_body_is_dropped() {
    let router = Router::new().route("/", post(|_: String| async { "never" }));
    let (_trigger, drain) = drain::channel();
    let listener = bind(ANY.parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(Http::new(router).serve(listener, drain));
    let answer = ask(addr, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await;
    assert!(!answer.contains("never"), "{answer}");
}

/// A server with counters, until the trigger is dropped.
fn counted(http: Http) -> (SocketAddr, Metrics, drain::Trigger) {
    let (trigger, drain) = drain::channel();
    let listener = bind(ANY.parse().unwrap()).unwrap();
    let (addr, metrics) = (listener.local_addr().unwrap(), Metrics::default());
    tokio::spawn(http.counted(metrics.clone()).serve(listener, drain));
    (addr, metrics, trigger)
}

fn greeting() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_counted() {
    let router = greeting().route("/long", get(std::future::pending::<String>));
    let (addr, metrics, _trigger) = counted(Http { most: 2, ..Http::new(router) });
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        kept.push(stream);
    }
    for refused in 1..4 {
        let answer = ask(addr, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert_eq!(metrics.refusals(Reason::Connections), refused);
    }
    drop(kept);
    let start = std::time::Instant::now();
    while !ask(addr, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ends_with("hello") {
        assert!(start.elapsed() < BOUND, "nobody is let in any more");
    }
}

#[tokio::test]
async fn clients_that_say_nothing_keep_nobody_out() {
    let (addr, metrics, _trigger) = counted(Http { most: 4, ..Http::new(greeting()) });
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    let answer = ask(addr, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("hello"), "{answer}");
    assert_eq!(metrics.refusals(Reason::Connections), 0);
}

#[tokio::test]
async fn one_header_too_many_or_one_that_is_too_long_is_refused_and_counted() {
    let (addr, metrics, _trigger) = counted(Http::new(greeting()));
    let with = |headers: String| format!("GET / HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
    // With the one above.
    let most = |count: usize| with((1..count).map(|n| format!("h{n}: x\r\n")).collect());
    assert!(ask(addr, &most(MOST_HEADERS)).await.starts_with("HTTP/1.1 200"));
    assert!(ask(addr, &most(MOST_HEADERS + 1)).await.starts_with("HTTP/1.1 431"));
    // What is left unread resets the connection, so the answer may be lost.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let _ = stream.write_all(with(format!("h: {}\r\n", "x".repeat(4 * LONGEST_HEADERS))).as_bytes()).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("it stays open");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"));
    assert_eq!(metrics.refusals(Reason::Headers), 2);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_counted() {
    let router = Router::new().route("/", post(|body: String| async move { body.len().to_string() }));
    let (addr, metrics, _trigger) = counted(Http::new(router.layer(axum::extract::DefaultBodyLimit::max(8))));
    let send = |len: usize| {
        format!("POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{}", "x".repeat(len))
    };
    assert!(ask(addr, &send(8)).await.ends_with('8'));
    assert!(ask(addr, &send(9)).await.starts_with("HTTP/1.1 413"));
    assert_eq!(metrics.refusals(Reason::Body), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_answered_ends_and_is_counted() {
    let router = Router::new().route("/", get(std::future::pending::<&'static str>));
    let (addr, metrics, _trigger) = counted(Http::new(router));
    let answer = ask(addr, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(metrics.refusals(Reason::Slow), 1);
}

#[tokio::test]
async fn with_tls_who_speaks_plainly_gets_nothing_and_is_counted() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&pair).unwrap();
    let keeper = crate::tls::Keeper::new();
    keeper
        .show(vec![made.der().clone()], rustls::pki_types::PrivateKeyDer::Pkcs8(pair.serialize_der().into()))
        .unwrap();
    let tls = crate::tls::public(&keeper, &[b"http/1.1"]);
    let (addr, metrics, _trigger) = counted(Http::new(greeting()).tls(Some(tls)));
    let answer = TcpStream::connect(addr).await.unwrap();
    let client = crate::tls::client(&crate::tls::Keeper::new(), Some(crate::tls::pin(made.der())), &[b"http/1.1"]);
    // The one certificate is its own authority, which this client does not take: it is enough that TLS is spoken.
    let refused = Wire::connect(answer, Some(client)).await.unwrap_err();
    assert!(crate::tls::Refusal::of(&refused).is_some(), "{refused}");
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
    let start = std::time::Instant::now();
    while metrics.refusals(Reason::Handshake) < 2 {
        assert!(start.elapsed() < BOUND);
        tokio::task::yield_now().await;
    }
}

#[test]
fn two_listeners_collide_on_one_port_of_one_address_or_of_all() {
    let collide = |one: &str, other: &str| collide(one.parse().unwrap(), other.parse().unwrap());
    assert!(collide("127.0.0.1:80", "127.0.0.1:80"));
    assert!(collide("0.0.0.0:80", "127.0.0.1:80"));
    assert!(collide("127.0.0.1:80", "[::]:80"));
    assert!(!collide("127.0.0.1:80", "127.0.0.1:81"));
    assert!(!collide("127.0.0.1:80", "127.0.0.2:80"));
    assert!(!collide("0.0.0.0:0", "0.0.0.0:0"));
}
