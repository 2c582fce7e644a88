//! `shoalctl` against a real `shoal-control` on loopback, as an operator types it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

struct Server {
    child: Child,
    url: String,
    state: tempfile::TempDir,
}

const TOKEN: &str = "an admin's token that is long enough";

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ctl_at(url: &str, token: &str, args: &[&str]) -> Output {
    let mut ctl = Command::new(env!("CARGO_BIN_EXE_shoalctl"));
    ctl.env("SHOAL_TOKEN", token).args(["--server", url]).args(args).output().unwrap()
}

impl Server {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(sets: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("admin-token"), TOKEN).unwrap();
        let (child, url) = Self::spawn(&state, sets);
        Self { child, url, state }
    }

    /// As after a crash.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        (self.child, self.url) = Self::spawn(&self.state, &[]);
    }

    fn spawn(state: &tempfile::TempDir, sets: &[&str]) -> (Child, String) {
        let token_file = state.path().join("admin-token");
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal-control"))
            .args(["serve", "--set", "grpc.listen=127.0.0.1:0", "--set", "rest.listen=127.0.0.1:0"])
            .args(["--set", "telemetry.log_format=json", "--set"])
            .arg(format!("state_dir={}", state.path().join("control").display()))
            .arg("--set")
            .arg(format!("rest.admin_token_file={}", token_file.display()))
            .args(sets.iter().flat_map(|set| ["--set", set]))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = lines.find_map(|line| {
            let said: Value = serde_json::from_str(&line.unwrap()).ok()?;
            let rest = said["fields"]["rest"].as_str().or_else(|| said["rest"].as_str())?;
            let tls = said["fields"]["rest_tls"].as_bool().or_else(|| said["rest_tls"].as_bool()).unwrap_or_default();
            Some(format!("{}://{rest}", if tls { "https" } else { "http" }))
        });
        // The pipe must be read on, or the server would wait for it.
        std::thread::spawn(move || lines.for_each(drop));
        (child, url.expect("the server says where it listens"))
    }

    fn ctl(&self, args: &[&str]) -> Output {
        self.ctl_with(TOKEN, args)
    }

    fn ctl_with(&self, token: &str, args: &[&str]) -> Output {
        ctl_at(&self.url, token, args)
    }

    fn well(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and what was said on standard error.
    fn badly(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.ctl(args);
        assert!(output.stdout.is_empty(), "{args:?}");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn an_operator_makes_changes_and_deletes_clusters() {
    let server = Server::start();
    assert!(server.well(&["cluster", "list"]).contains("default"));
    server.well(&["cluster", "create", "b", "--idc", "cluster-2", "--cidr", "10.2.0.0/16,10.3.0.0/16"]);
    let json: Value = serde_json::from_str(&server.well(&["cluster", "show", "b", "--output", "json"])).unwrap();
    assert_eq!(json["cidrs"], serde_json::json!(["10.2.0.0/16", "10.3.0.0/16"]));
    server.well(&["cluster", "update", "b", "--no-cidrs", "--location", "eu|fra"]);
    let table = server.well(&["cluster", "list"]);
    assert!(table.contains("eu|fra") && !table.contains("10.2.0.0/16"), "{table}");
    let said: Value =
        serde_json::from_str(&server.well(&["explain", "--ip", "10.9.9.9", "--idc", "CLUSTER-2", "-o", "json"]))
            .unwrap();
    assert_eq!(said["cluster"], "b");
    server.well(&["cluster", "delete", "b"]);
    assert!(!server.well(&["cluster", "list"]).contains("cluster-2"));
    let nodes: Value = serde_json::from_str(&server.well(&["node", "list", "-o", "json"])).unwrap();
    assert_eq!(nodes, serde_json::json!([]));
}

#[test]
fn each_kind_of_failure_has_its_exit_code_and_names_what_is_wrong() {
    let server = Server::start();
    let (code, said) = server.badly(&["cluster", "create", "b", "--cidr", "10.0.0.0/33"]);
    assert!(code == Some(2) && said.contains("cidrs") && said.contains("10.0.0.0/33"), "{said}");
    let (code, said) = server.badly(&["cluster", "show", "nowhere"]);
    assert!(code == Some(3) && said.contains("nowhere"), "{said}");
    let (code, said) = server.badly(&["cluster", "delete", "default"]);
    assert!(code == Some(4) && said.contains("default"), "{said}");
    assert_eq!(server.badly(&["cluster", "update", "default", "--idc", "x", "--if-version", "99"]).0, Some(4));
    assert_eq!(server.badly(&["cluster", "update", "default"]).0, Some(2));
    // By number, by the tag, and by that of another cluster which had the name.
    let made =
        |_| -> Value { serde_json::from_str(&server.well(&["cluster", "create", "anew", "-o", "json"])).unwrap() };
    let tag = |cluster: &Value| format!("{}.1", cluster["id"].as_str().unwrap());
    let first = made(1);
    server.well(&["cluster", "delete", "anew", "--if-version", "1"]);
    let second = made(2);
    let update =
        |version: &str| ["cluster", "update", "anew", "--idc", "x", "--if-version", version].map(str::to_owned);
    let old = update(&tag(&first));
    assert_eq!(server.badly(&old.each_ref().map(String::as_str)).0, Some(4));
    let new = update(&tag(&second));
    server.well(&new.each_ref().map(String::as_str));
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_shoalctl"));
    let away = nobody.args(["--server", "http://127.0.0.1:1", "node", "list"]).output().unwrap();
    assert_eq!(away.status.code(), Some(5));
}

#[test]
fn the_default_is_handed_over_by_one_command_and_whoever_loses_it_is_named() {
    let server = Server::start();
    server.well(&["cluster", "create", "b", "--idc", "west"]);
    let plan = server.well(&["cluster", "update", "b", "--default", "--dry-run"]);
    for part in ["~ default\n    default: true -> false", "~ b\n    default: false -> true", "nothing was changed"] {
        assert!(plan.contains(part), "{plan}");
    }
    let done = server.ctl(&["cluster", "update", "b", "--default"]);
    assert!(done.status.success());
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(said.trim(), "b is the default now, and default is no more");
    let json: Value = serde_json::from_str(&server.well(&["cluster", "show", "default", "-o", "json"])).unwrap();
    assert_eq!(json["default"], false);
    // What was the default can be deleted now, and what is can't.
    assert!(server.badly(&["cluster", "delete", "b"]).1.contains("cluster update OTHER --default"));
    server.well(&["cluster", "delete", "default"]);

    let file = server.state.path().join("clusters.toml");
    std::fs::write(&file, "[[cluster]]\nname = \"c\"\ndefault = true\n").unwrap();
    server.well(&["cluster", "create", "d"]);
    let applied = server.ctl(&["apply", "-f", file.to_str().unwrap()]);
    let said = String::from_utf8(applied.stderr).unwrap();
    let of = |what: &str| said.lines().filter(|line| line.contains(what)).map(str::to_owned).collect::<Vec<_>>();
    assert!(applied.status.success() && of("left alone")[0].contains("left alone: d ("), "{said}");
    assert!(of("the default no more")[0].contains("no more: b ("), "{said}");
}

/// What lies between `shoalctl` and the server, and does something the moment that a request with that method has arrived, before the
/// server hears of it. Its address.
fn between(server: &Server, method: &'static str, act: impl Fn() + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = format!("http://{}", listener.local_addr().unwrap());
    let there = server.url.strip_prefix("http://").unwrap().to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut caller = stream.unwrap();
            let (mut reader, mut request) = (BufReader::new(caller.try_clone().unwrap()), String::new());
            reader.read_line(&mut request).unwrap();
            let changes = request.starts_with(method);
            // One request a connection.
            request.push_str("connection: close\r\n");
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().unwrap();
                }
                request.push_str(&line);
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            if changes {
                act();
            }
            let mut upstream = TcpStream::connect(&there).unwrap();
            upstream.write_all(request.as_bytes()).unwrap();
            upstream.write_all(&body).unwrap();
            std::io::copy(&mut upstream, &mut caller).unwrap();
        }
    });
    here
}

#[test]
fn what_somebody_else_changes_between_reading_and_writing_is_not_overwritten() {
    let server = Server::start();
    server.well(&["cluster", "create", "b", "--idc", "west", "--cidr", "10.1.0.0/16"]);
    let count = Arc::new(AtomicUsize::new(0));
    let meddle = || {
        let (url, count) = (server.url.clone(), count.clone());
        move || {
            let n = count.fetch_add(1, Ordering::Relaxed).to_string();
            assert!(ctl_at(&url, TOKEN, &["cluster", "update", "b", "--location", &n]).status.success());
        }
    };
    let (patch, delete) = (between(&server, "PATCH", meddle()), between(&server, "DELETE", meddle()));
    for (through, args) in [
        (&patch, &["cluster", "update", "b", "--idc", "mine"][..]),
        (&patch, &["cluster", "update", "b", "--add-cidr", "10.2.0.0/16", "--remove-cidr", "10.1.0.0/16"]),
        (&delete, &["cluster", "delete", "b"]),
    ] {
        let output = ctl_at(through, TOKEN, args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{args:?}: {said}");
        assert!(said.contains("nothing was done") && said.contains("run this again"), "{said}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 3);
    let json = || -> Value { serde_json::from_str(&server.well(&["cluster", "show", "b", "-o", "json"])).unwrap() };
    let now = json();
    assert_eq!((&now["idc"], &now["location"], &now["cidrs"][0]), (&"west".into(), &"2".into(), &"10.1.0.0/16".into()));
    // Whoever says `*` means it.
    let any = ctl_at(&patch, TOKEN, &["cluster", "update", "b", "--idc", "mine", "--if-version", "*"]);
    assert!(any.status.success(), "{any:?}");
    assert_eq!((json()["idc"].clone(), json()["location"].clone()), ("mine".into(), "3".into()));
    server.well(&["cluster", "update", "b", "--add-cidr", "10.2.0.0/16", "--remove-cidr", "10.1.2.3/16"]);
    assert_eq!(json()["cidrs"], serde_json::json!(["10.2.0.0/16"]));
    let (code, said) = server.badly(&["cluster", "update", "b", "--remove-cidr", "10.9.0.0/16"]);
    assert!(code == Some(2) && said.contains("it has 10.2.0.0/16"), "{said}");
}

#[test]
fn what_was_planned_is_applied_and_nothing_else() {
    let server = Server::start();
    let file = server.state.path().join("clusters.toml");
    let write = |idc: &str| {
        let text =
            format!("[[cluster]]\nname = \"default\"\ndefault = true\n[[cluster]]\nname = \"b\"\nidc = \"{idc}\"\n");
        std::fs::write(&file, text).unwrap();
    };
    write("west");
    let file = file.to_str().unwrap();
    let plan = ["apply", "-f", file, "--dry-run", "--detailed-exitcode"];
    let differs = server.ctl(&plan);
    let said = String::from_utf8(differs.stdout).unwrap();
    assert_eq!(differs.status.code(), Some(8), "{said}");
    assert_eq!(server.ctl(&plan[..4]).status.code(), Some(0), "only who asks for it is told so");
    let version = said.lines().last().unwrap().rsplit(' ').next().unwrap().to_owned();
    let json: Value = serde_json::from_str(&server.well(&["apply", "-f", file, "--dry-run", "-o", "json"])).unwrap();
    assert_eq!(json["version"], version.as_str());

    // Somebody is faster.
    server.well(&["cluster", "create", "c"]);
    for dry in [&[][..], &["--dry-run"]] {
        let (code, said) = server.badly(&[&["apply", "-f", file, "--if-version", &version], dry].concat());
        assert!(code == Some(4) && said.contains("changed since"), "{dry:?}: {said}");
    }
    assert_eq!(server.badly(&["cluster", "show", "b"]).0, Some(3));
    let json: Value = serde_json::from_str(&server.well(&["apply", "-f", file, "--dry-run", "-o", "json"])).unwrap();
    server.well(&["apply", "-f", file, "--if-version", json["version"].as_str().unwrap()]);
    assert_eq!(server.ctl(&plan).status.code(), Some(0), "no difference any more");
    assert_eq!(server.badly(&["apply", "-f", file, "--detailed-exitcode"]).0, Some(2), "it is about a dry run");

    let planned = server.well(&["cluster", "create", "d", "--default", "--dry-run"]);
    assert!(planned.starts_with("~ default") && planned.contains("+ d"), "{planned}");
    assert!(planned.trim().ends_with("nothing was changed (--dry-run)"), "{planned}");
    assert_eq!(server.badly(&["cluster", "show", "d"]).0, Some(3));
}

#[test]
fn everything_there_is_can_be_listed_and_shown() {
    let server = Server::start();
    let json =
        |args: &[&str]| -> Value { serde_json::from_str(&server.well(&[args, &["-o", "json"]].concat())).unwrap() };
    server.well(&["join-token", "create", "--uses", "2"]);
    let id = json(&["join-token", "list"])[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(json(&["join-token", "show", &id])["uses_left"], 2);
    assert_eq!(json(&["api-token", "show", "admin"])["role"], "admin");
    assert_eq!(server.badly(&["api-token", "show", "nobody"]).0, Some(3));
    for list in
        [vec!["blob", "list"], vec!["flight", "list"], vec!["member", "list"], vec!["node", "list", "--role", "seed"]]
    {
        assert_eq!(json(&list), serde_json::json!([]), "{list:?}");
        server.well(&list);
    }
    let summary = json(&["summary", "--cluster", "default"]);
    assert_eq!((&summary["clusters"], &summary["nodes"]), (&1.into(), &0.into()));
    assert!(server.well(&["summary"]).contains("live nodes"));
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(server.badly(&["blob", "show", &digest]).0, Some(3));
    assert_eq!(server.badly(&["node", "show", "n1"]).0, Some(3));
    assert_eq!(server.badly(&["member", "show", "n1"]).0, Some(3));
    assert!(server.badly(&["node", "list", "--cluster", "nowhere"]).1.contains("nowhere"));
    let manifest = server.state.path().join("manifest.json");
    let text = format!(r#"{{"config": {{"digest": "{digest}", "size": 7}}, "layers": []}}"#);
    std::fs::write(&manifest, text).unwrap();
    let share = json(&["image", "share", "--manifest", manifest.to_str().unwrap()]);
    assert_eq!((&share["blobs"], &share["bytes"], &share["nodes"]), (&1.into(), &7.into(), &serde_json::json!([])));
    assert_eq!(server.badly(&["image", "share", "sha256:x"]).0, Some(2));
    let plan = server.well(&["cluster", "update", "default", "--idc", "x", "--dry-run"]);
    assert!(plan.contains("~ default") && plan.contains("nothing was changed"), "{plan}");
    assert_eq!(json(&["cluster", "show", "default"])["idc"], "");
}

#[test]
fn events_are_printed_as_they_happen() {
    let server = Server::start();
    let mut follow = Command::new(env!("CARGO_BIN_EXE_shoalctl"))
        .env("SHOAL_TOKEN", TOKEN)
        .args(["--server", &server.url, "events", "-o", "json", "-n", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let kind = |line: Option<std::io::Result<String>>| -> Value {
        serde_json::from_str::<Value>(&line.unwrap().unwrap()).unwrap()["kind"].clone()
    };
    assert_eq!(kind(lines.next()), "reset");
    server.well(&["cluster", "create", "b"]);
    assert_eq!(kind(lines.next()), "cluster.created");
    assert!(follow.wait().unwrap().success());
    assert_eq!(server.ctl_with("", &["events"]).status.code(), Some(6));
}

#[test]
fn a_completion_is_printed_for_each_shell_without_a_server() {
    for shell in ["bash", "zsh", "fish"] {
        let printed = Command::new(env!("CARGO_BIN_EXE_shoalctl")).args(["completion", shell]).output().unwrap();
        let text = String::from_utf8(printed.stdout).unwrap();
        assert!(printed.status.success() && text.contains("join-token") && text.contains("completion"), "{shell}");
    }
}

#[test]
fn a_backup_is_made_of_a_control_that_runs() {
    let server = Server::start();
    server.well(&["cluster", "create", "b"]);
    let (state, copy) = (server.state.path().join("control"), server.state.path().join("copy.db"));
    let backup = || {
        let mut control = Command::new(env!("CARGO_BIN_EXE_shoal-control"));
        control.args(["backup", copy.to_str().unwrap(), "--state-dir", state.to_str().unwrap()]).output().unwrap()
    };
    let made = backup();
    assert!(made.status.success(), "{made:?}");
    assert!(std::fs::read(&copy).unwrap().starts_with(b"SQLite format 3"));
    let again = backup();
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is there already"),
        "{again:?}"
    );
    server.well(&["cluster", "create", "c"]);
}

#[test]
fn who_has_lost_the_admin_s_token_makes_another_on_the_machine_of_control() {
    let mut server = Server::start();
    let state = server.state.path().join("control");
    let make = |state: &std::path::Path, more: &[&str]| {
        let mut control = Command::new(env!("CARGO_BIN_EXE_shoal-control"));
        let output = control.args(["admin-token", "--state-dir", state.to_str().unwrap()]).args(more).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (well, token, said) = make(&state, &[]);
    assert!(!well && token.is_empty() && said.contains("is locked") && said.contains("stop it first"), "{said}");
    server.kill();
    let (well, token, said) = make(&state, &[]);
    assert!(well && token.starts_with("shoal-api.") && said.is_empty(), "{said}");
    let (well, none, said) = make(&state, &[]);
    assert!(!well && none.is_empty() && said.contains("--name: is that of another API token"), "{said}");
    let (well, second, _) = make(&state, &["--name", "ada"]);
    assert!(well && second != token);
    let empty = server.state.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let (well, _, said) = make(&empty, &[]);
    assert!(!well && said.contains("is the state directory right?"), "{said}");
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0, "nothing was made there");

    server.start_again();
    let whoami = server.ctl_with(&token, &["whoami"]);
    assert_eq!(String::from_utf8(whoami.stdout).unwrap().trim(), "admin-recovered: admin of all clusters");
    assert!(server.ctl_with(&second, &["api-token", "delete", "admin"]).status.success(), "the lost one is put out");
    assert_eq!(server.ctl(&["whoami"]).status.code(), Some(6));
    let log = server.ctl_with(&token, &["audit", "--who", "shoal-control", "--action", "api-token", "-o", "json"]);
    let log: Vec<Value> = serde_json::from_slice(&log.stdout).unwrap();
    let made: Vec<&Value> = log.iter().map(|entry| &entry["subject"]).collect();
    assert_eq!(made, ["ada", "admin-recovered", "admin"]);
}

#[test]
fn a_second_apply_prints_no_difference() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clusters.toml");
    let text = "[[cluster]]\nname = \"default\"\ndefault = true\n[[cluster]]\nname = \"b\"\nidc = \"cluster-2\"\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    assert!(server.well(&["apply", "-f", file, "--dry-run"]).contains("nothing was changed"));
    assert!(server.well(&["apply", "-f", file]).starts_with("+ b"));
    assert_eq!(server.well(&["apply", "-f", file]).trim(), "no difference");
    std::fs::write(file, text.replace("cluster-2", "a||b")).unwrap();
    let (code, said) = server.badly(&["apply", "-f", file]);
    assert!(code == Some(2) && said.contains("idc") && said.contains('b'), "{said}");
}

#[test]
fn tokens_are_made_shown_once_and_taken_away() {
    let server = Server::start();
    let printed = server.well(&["api-token", "create", "ci", "--role", "viewer", "--ttl", "24h"]);
    let token = printed.trim();
    assert!(token.starts_with("shoal-api.") && !server.well(&["api-token", "list"]).contains(token));
    let whoami = server.ctl_with(token, &["whoami"]);
    assert_eq!(String::from_utf8(whoami.stdout).unwrap().trim(), "ci: viewer of all clusters");
    let refused = server.ctl_with(token, &["cluster", "create", "b"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(String::from_utf8(refused.stderr).unwrap().contains("operator"));
    server.well(&["api-token", "delete", "ci"]);
    assert_eq!(server.ctl_with(token, &["whoami"]).status.code(), Some(6));
    let nobody = server.ctl_with("", &["cluster", "list"]);
    assert!(nobody.status.code() == Some(6) && String::from_utf8(nobody.stderr).unwrap().contains("SHOAL_TOKEN"));

    let join = server.well(&["join-token", "create", "--cluster", "default", "--uses", "3"]);
    assert!(join.starts_with("shoal-join."));
    let listed: Value = serde_json::from_str(&server.well(&["join-token", "list", "-o", "json"])).unwrap();
    assert_eq!((&listed[0]["cluster"], &listed[0]["uses_left"]), (&"default".into(), &3.into()));
    assert_eq!(listed[0].get("token"), None);
    server.well(&["join-token", "delete", listed[0]["id"].as_str().unwrap()]);
    assert_eq!(server.badly(&["join-token", "create", "--uses", "0"]).0, Some(2));
    assert_eq!(server.badly(&["member", "revoke", "nobody"]).0, Some(3));
    assert!(server.well(&["ca"]).contains("BEGIN CERTIFICATE"));
    let log = server.well(&["audit"]);
    for action in ["join-token.remove", "join-token.create", "api-token.remove", "api-token.create", "cluster.create"] {
        assert!(log.contains(action), "{log}");
    }
    assert!(!log.contains(token) && !log.contains(join.trim()) && !log.contains(TOKEN));
    let narrow = |args: &[&str]| -> Vec<String> {
        let text = server.well(&[&["audit", "-o", "json"], args].concat());
        let all: Vec<Value> = serde_json::from_str(&text).unwrap();
        all.iter().map(|entry| format!("{} {}", entry["action"], entry["subject"]).replace('"', "")).collect()
    };
    assert_eq!(narrow(&["--action", "api-token", "--subject", "ci"]), ["api-token.remove ci", "api-token.create ci"]);
    assert_eq!(narrow(&["--who", "admin", "--until", "2020-01-01T00:00:00Z"]), Vec::<String>::new());
    assert_eq!(narrow(&["--action", "cluster.create", "--since", "2020-01-01T00:00:00Z"]), ["cluster.create default"]);
    let (code, said) = server.badly(&["audit", "--since", "yesterday"]);
    assert!(code == Some(2) && said.contains("since"), "{said}");
    for list in [
        vec!["join-token", "list", "--cluster", "default", "--role", "node", "--valid"],
        vec!["member", "list", "--revoked", "--live", "false", "--name", "x", "--role", "seed"],
        vec!["api-token", "list", "--role", "viewer", "--valid", "false", "--name", "x", "--cluster", "default"],
    ] {
        let text = server.well(&[&list[..], &["-o", "json"]].concat());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), serde_json::json!([]), "{list:?}");
    }
}

#[test]
fn over_tls_a_server_is_known_by_its_authority_and_a_token_is_shown_to_nobody_else() {
    let (server, other) = (Server::start_with(&["rest.tls=on"]), Server::start_with(&["rest.tls=on"]));
    assert!(server.url.starts_with("https://127.0.0.1:"), "{}", server.url);
    let ca = |server: &Server| server.state.path().join("control/ca.pem").to_str().unwrap().to_owned();
    assert!(server.well(&["--ca-file", &ca(&server), "whoami"]).starts_with("admin"));
    let (code, said) = server.badly(&["--ca-file", &ca(&other), "whoami"]);
    assert!(code == Some(5) && said.contains("can't reach"), "{said}");
    assert_eq!(server.badly(&["whoami"]).0, Some(5), "the system knows nothing of it");
    let authority = ca(&server);
    let mut plain = server;
    plain.url = plain.url.replace("https", "http");
    assert_eq!(plain.badly(&["whoami"]).0, Some(9), "there is a connection, and what comes is no HTTP");
    let (code, said) = plain.badly(&["--ca-file", &authority, "whoami"]);
    assert!(code == Some(2) && said.contains("https://"), "{said}");
    let (code, said) = other.badly(&["--ca-file", "/nowhere", "whoami"]);
    assert!(code == Some(2) && said.contains("--ca-file"), "{said}");
}

#[test]
fn the_first_start_prints_a_token_once() {
    let state = tempfile::tempdir().unwrap();
    let start = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal-control"))
            .args(["serve", "--set", "grpc.listen=127.0.0.1:0", "--set", "rest.listen=127.0.0.1:0", "--set"])
            .arg(format!("state_dir={}", state.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            let ready = line.contains("ready");
            said.push(line);
            if ready {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        said.into_iter().filter(|line| line.trim().starts_with("shoal-api.")).collect::<Vec<_>>()
    };
    assert_eq!(start().len(), 1);
    assert_eq!(start().len(), 0);
}

#[test]
fn the_daemon_has_given_up_what_it_does_not_need() {
    let server = Server::start();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |status: &str, name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap().trim().to_owned()
    };
    // CAP_SETPCAP: without it nobody may change the bounding set.
    let may = u64::from_str_radix(&line(&ours, "CapEff"), 16).unwrap() & (1 << 8) != 0;
    let mut threads = 0;
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for name in ["CapEff", "CapPrm", "CapInh", "CapAmb"].into_iter().chain(may.then_some("CapBnd")) {
            assert_eq!(line(&status, name), "0000000000000000", "{name}");
        }
        assert_eq!(line(&status, "NoNewPrivs"), "1");
        threads += 1;
    }
    assert!(threads > 1, "the threads that work were looked at too");
}
