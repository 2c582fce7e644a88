//! `shoalctl` against a real `shoal-control` on loopback, as an operator types it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

struct Server {
    child: Child,
    url: String,
    _state: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal-control"))
            .args(["serve", "--set", "grpc.listen=127.0.0.1:0", "--set", "rest.listen=127.0.0.1:0"])
            .args(["--set", "telemetry.log_format=json", "--set"])
            .arg(format!("state_dir={}", state.path().join("control").display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = lines.find_map(|line| {
            let said: Value = serde_json::from_str(&line.unwrap()).ok()?;
            let rest = said["fields"]["rest"].as_str().or_else(|| said["rest"].as_str())?;
            Some(format!("http://{rest}"))
        });
        // The pipe must be read on, or the server would wait for it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url: url.expect("the server says where it listens"), _state: state }
    }

    fn ctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_shoalctl")).args(["--server", &self.url]).args(args).output().unwrap()
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
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_shoalctl"));
    let away = nobody.args(["--server", "http://127.0.0.1:1", "node", "list"]).output().unwrap();
    assert_eq!(away.status.code(), Some(5));
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
