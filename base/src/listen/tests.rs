use super::*;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use crate::drain;

const ANY: &str = "127.0.0.1:0";
const BOUND: Duration = Duration::from_secs(20);

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
    let server = tokio::spawn(serve_http(listener, router, drain));
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
    tokio::spawn(serve_http(listener, Router::new(), drain));
    let answer = ask(addr, "GET / HTTP/1.1\r\nhost:").await;
    assert!(!answer.contains("200"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_in_its_body_is_dropped() {
    let router = Router::new().route("/", post(|_: String| async { "never" }));
    let (_trigger, drain) = drain::channel();
    let listener = bind(ANY.parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve_http(listener, router, drain));
    let answer = ask(addr, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await;
    assert!(!answer.contains("never"), "{answer}");
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
