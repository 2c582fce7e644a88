//! SIGHUP to a real `shoal-node`: limits change while it runs, and settings with a fault change nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The daemon; it is killed at the end.
struct Node {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now and that nobody is given by chance: it lies below those of outgoing connections (a client that asks
/// a port of that range on loopback until somebody listens can even be connected to itself), and is not tried twice.
fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + u16::try_from(std::process::id() % 15_000).unwrap();
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}

impl Node {
    fn start(dir: &Path, config: &Path) -> Self {
        let admin = free();
        let path = dir.join("log");
        let log = File::create(&path).unwrap();
        let set = |key: &str, value: String| ["--set".to_owned(), format!("{key}={value}")];
        let child = Command::new(env!("CARGO_BIN_EXE_shoal-node"))
            .env_clear()
            .args(["run", "--config"])
            .arg(config)
            .args(set("state_dir", dir.join("state").display().to_string()))
            .args(set("admin.listen", admin.to_string()))
            .args(set("mirror.listen", free().to_string()))
            .args(set("peer.listen", free().to_string()))
            // Where daemons listen by default, the other test's daemon does too.
            .args(set("containerd.listen", dir.join("containerd.sock").display().to_string()))
            .args(set("containerd.content_listen", dir.join("content.sock").display().to_string()))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, admin, log: path }
    }

    fn hang_up(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    }

    fn limits(&self) -> Option<serde_json::Value> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"GET /debug HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let body: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
        Some(body["limits"].clone())
    }

    fn limits_become(&mut self, upload: u64, origin: u64) {
        let wanted = serde_json::json!({"upload": upload, "download": 0, "origin": origin});
        let end = Instant::now() + Duration::from_secs(60);
        while self.limits().as_ref() != Some(&wanted) {
            let said = || std::fs::read_to_string(&self.log).unwrap();
            assert!(Instant::now() < end, "never {wanted}; the daemon said:\n{}", said());
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended ({ended:?}) and said:\n{}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn eventually(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_hangup_changes_limits_and_a_fault_changes_nothing_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (config, log) = (dir.path().join("node.toml"), dir.path().join("log"));
    let said = |text: &str| std::fs::read_to_string(&log).unwrap().contains(text);
    std::fs::write(&config, "[limits]\nupload = '3MiB'\n").unwrap();
    let mut node = Node::start(dir.path(), &config);
    node.limits_become(3 << 20, 0);
    std::fs::write(&config, "grace = '9s'\n[limits]\nupload = '5MiB'\norigin = '1MiB'\n").unwrap();
    node.hang_up();
    node.limits_become(5 << 20, 1 << 20);
    eventually("what holds later is named", || {
        said("changed settings that hold at the next start only") && said("grace")
    });
    std::fs::write(&config, "[limits]\nupload = '7MiB'\norigin = '12KiB'\n").unwrap();
    node.hang_up();
    eventually("the fault is named", || said("nothing was changed") && said("limits.origin"));
    node.limits_become(5 << 20, 1 << 20);
}

#[test]
fn the_daemon_has_given_up_what_it_does_not_need() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("node.toml");
    std::fs::write(&config, "").unwrap();
    let mut node = Node::start(dir.path(), &config);
    node.limits_become(0, 0);
    let line = |status: &str, name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap().trim().to_owned()
    };
    // CAP_SETPCAP: without it nobody may change the bounding set.
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    let may = u64::from_str_radix(&line(&ours, "CapEff"), 16).unwrap() & (1 << 8) != 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", node.child.id())).unwrap() {
        // A thread may have ended meanwhile.
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        for name in ["CapEff", "CapPrm", "CapInh", "CapAmb"].into_iter().chain(may.then_some("CapBnd")) {
            assert_eq!(line(&status, name), "0000000000000000", "{name}");
        }
        assert_eq!(line(&status, "NoNewPrivs"), "1");
    }
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("privileges kept") && !log.contains("could not be given up"), "{log}");
}
