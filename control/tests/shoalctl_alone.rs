//! `shoalctl` before servers that are none, break off, or are odd, and what it refuses before it asks any.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";
const NO_ADDRESS: &str = r#"{"title":"Not Found","status":404,"detail":"there is nothing at this address"}"#;

/// Answers each request by what `answer` says, given how many came before and the request's first line; nothing: the connection breaks.
/// Its address, and the first lines of all requests.
fn server(answer: impl Fn(usize, &str) -> String + Send + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, seen) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(Mutex::new(Vec::new())));
    let all = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let line = request(&stream);
            let before = {
                let mut all = all.lock().unwrap();
                all.push(line.clone());
                all.len() - 1
            };
            let _ = stream.write_all(answer(before, &line).as_bytes());
        }
    });
    (address, seen)
}

/// Reads a request to its end. Its first line.
fn request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    first.trim().to_owned()
}

fn answered(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn ctl() -> Command {
    let mut ctl = Command::new(env!("CARGO_BIN_EXE_shoalctl"));
    for name in ["SHOAL_TOKEN", "SHOAL_TOKEN_FILE", "SHOAL_SERVER", "SHOAL_CA_FILE"] {
        ctl.env_remove(name);
    }
    ctl.stdin(Stdio::null());
    ctl
}

/// Exit code and what was said on standard error.
fn ended(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn at(server: &str, args: &[&str]) -> (Option<i32>, String) {
    ended(&ctl().args(["--server", server]).args(args).output().unwrap())
}

#[test]
fn what_was_sent_and_not_answered_may_have_been_done_and_what_was_not_sent_was_not() {
    let (address, _) = server(|_, _| String::new());
    let (code, said) = at(&address, &["cluster", "create", "b"]);
    assert!(code == Some(9) && said.contains("may have been done") && said.contains("look before"), "{said}");
    assert!(!said.contains("can't reach"), "{said}");
    let (code, said) = at(&address, &["node", "list"]);
    assert!(code == Some(9) && said.contains("no answer") && !said.contains("may have been done"), "{said}");
    let (code, said) = at(&address, &["cluster", "create", "b", "--dry-run"]);
    assert!(code == Some(9) && !said.contains("may have been done"), "{said}");
    // The answer began and broke off.
    let (half, _) = server(|_, _| "HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\n{".to_owned());
    let (code, said) = at(&half, &["cluster", "create", "b"]);
    assert!(code == Some(9) && said.contains("may have been done"), "{said}");
    let (code, said) = at(NOWHERE, &["cluster", "create", "b"]);
    assert!(code == Some(5) && said.contains("can't reach") && !said.contains("may have been done"), "{said}");
}

#[test]
fn an_argument_that_can_not_be_asked_for_is_refused_and_nothing_is_sent() {
    let (address, seen) = server(|_, _| answered("404 Not Found", NO_ADDRESS));
    for (args, argument) in [
        (vec!["cluster", "delete"], "CLUSTER"),
        (vec!["cluster", "show"], "CLUSTER"),
        (vec!["cluster", "update", "--idc", "x"], "CLUSTER"),
        (vec!["node", "show"], "NODE"),
        (vec!["preheat", "show"], "PREHEAT"),
        (vec!["preheat", "retry"], "PREHEAT"),
        (vec!["blob", "show"], "DIGEST"),
        (vec!["member", "delete"], "NODE"),
        (vec!["join-token", "show"], "ID"),
        (vec!["api-token", "delete"], "TOKEN"),
    ] {
        for bad in ["", ".", ".."] {
            let (code, said) = at(&address, &[&args[..], &[bad]].concat());
            assert!(code == Some(2) && said.contains(argument), "{args:?} {bad:?}: {code:?} {said}");
        }
    }
    assert_eq!(*seen.lock().unwrap(), [""; 0], "nothing was asked");
}

#[test]
fn an_older_control_is_named_and_a_path_in_the_address_that_may_be_wrong_too() {
    let (address, _) = server(|_, _| answered("404 Not Found", NO_ADDRESS));
    let (code, said) = at(&address, &["traffic"]);
    assert!(code == Some(3) && said.contains("an older one") && !said.contains("--server"), "{said}");
    let (code, said) = at(&format!("{address}/shoal"), &["traffic"]);
    assert!(code == Some(3) && said.contains("an older one, or \"/shoal\" does not belong in --server"), "{said}");
}

#[test]
fn a_token_that_is_none_is_refused_by_the_place_that_it_is_in_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "planted-secret\nand another line\n").unwrap();
    let path = file.to_str().unwrap();
    let (code, said) = at(NOWHERE, &["--token-file", path, "node", "list"]);
    assert!(code == Some(2) && said.contains(path) && said.contains("several lines"), "{said}");
    assert!(!said.contains("planted-secret"), "{said}");
    let shown = |token: &str| {
        ended(&ctl().env("SHOAL_TOKEN", token).args(["--server", NOWHERE, "node", "list"]).output().unwrap())
    };
    let (code, said) = shown("planted\nsecret");
    assert!(code == Some(2) && said.contains("SHOAL_TOKEN") && !said.contains("planted"), "{said}");
    assert_eq!(shown("good\n").0, Some(5), "the end of a line is no part of it");
}

#[test]
fn a_password_that_nobody_sends_is_refused() {
    let create = ["preheat", "create", "app", "--cluster", "b", "--user", "robot", "--password-stdin"];
    let (code, said) = at(NOWHERE, &create);
    assert!(code == Some(2) && said.contains("--password-stdin"), "{said}");
}

fn events(of: &[(&str, &str)]) -> String {
    let body: String = of.iter().map(|(id, data)| format!("id: {id}\ndata: {data}\n\n")).collect();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}")
}

#[test]
fn who_follows_events_is_told_that_control_went_away_and_that_some_may_be_missing() {
    let (reset, left) = (r#"{"kind":"reset"}"#, r#"{"kind":"node.left","name":"n1","cluster":"b"}"#);
    // The second process has other numbers than the first, and the third answer goes on where that one broke off.
    let (address, seen) = server(move |before, _| match before {
        0 => events(&[("x-0", reset), ("x-1", left)]),
        1 => answered("503 Service Unavailable", r#"{"detail":"it ends"}"#),
        2 => events(&[("y-0", reset), ("y-1", left)]),
        _ => events(&[("y-2", left)]),
    });
    let output = ctl().args(["--server", &address, "events", "-n", "3"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout.clone()).unwrap().lines().count(), 3, "{output:?}");
    let (code, said) = ended(&output);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].contains("control is away") && lines[2].contains("control is away"), "{said}");
    assert!(lines[1].contains("control is back") && lines[1].contains("may be missing"), "{said}");
    assert_eq!(seen.lock().unwrap().len(), 4);
    assert_eq!(at(NOWHERE, &["events", "-n", "0"]), (Some(0), String::new()), "none are none");
}

#[test]
fn flights_are_of_a_node_that_is_named_by_id_or_name_and_of_no_unknown_one() {
    let (address, seen) = server(|_, line| {
        let nodes = r#"{"items":[{"id":"n1","name":"a1"},{"id":"n10","name":"a10"},{"id":"n2","name":"twin"},{"id":"n3","name":"twin"}],"next":null}"#;
        let flights = r#"{"items":[],"next":null}"#;
        answered("200 OK", if line.contains("/api/v1/nodes?") { nodes } else { flights })
    });
    let asked = |node: &str| {
        let ended = at(&address, &["flight", "list", "--node", node]);
        let last = seen.lock().unwrap().last().cloned().unwrap_or_default();
        (ended, last)
    };
    for node in ["n1", "a1"] {
        let ((code, said), last) = asked(node);
        assert!(code == Some(0) && last.contains("/api/v1/flights?node=n1&"), "{node}: {last} {said}");
    }
    let ((code, said), last) = asked("a");
    assert!(code == Some(3) && said.contains("no live node \"a\"") && !last.contains("flights"), "{said}");
    let ((code, said), _) = asked("twin");
    assert!(code == Some(2) && said.contains("n2, n3"), "{said}");
    assert_eq!(asked("").0.0, Some(2));
}
