//! `shoal-node config check` on settings that can't be, as an operator runs it: every fault at once, with its key and where it was
//! set, and exit code 2.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

/// What was said on standard error, and the exit code.
fn check(file: Option<&Path>, env: &[(&str, &str)], args: &[&str]) -> (Vec<String>, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-node"));
    command.env_clear().envs(env.iter().copied()).args(["config", "check"]).args(args);
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (said.lines().map(str::to_owned).collect(), output.status.code().unwrap())
}

/// The faults that a file has, without the file's name.
fn faults(text: &str, env: &[(&str, &str)], args: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shoal-node.toml");
    std::fs::write(&file, text).unwrap();
    let (said, code) = check(Some(&file), env, args);
    assert_eq!(code, 2, "{said:#?}");
    assert_eq!(said[0], "shoal-node: the settings have faults:");
    let place = format!(" (in {})", file.display());
    let bare = |line: &String| line.replace(&place, " (in the file)").replace(&file.display().to_string(), "the file");
    said[1..].iter().map(bare).collect()
}

#[test]
fn wrong_types_units_and_keys_are_all_named_at_once() {
    let found = faults(
        "stat_dir = '/x'\nstate_dir = 3\ngrace = 5\n[mirror]\nlisten = 'here'\nfirst_byte_budget = '5 parsecs'\n\
         look_ahead = -1\nmax_connections = 5000000000\nallow = 'a'\n[peer]\nupload_slots = '64'\nlistn = 1\n\
         [store]\nquota = '50GB'\n[node]\nrole = 'king'\n[nodes]\nname = 'x'\n[telemetry]\nlog_format = 'xml'\n\
         otlp_sample_ratio = 1.5\n[origin.registry.'r.example']\nca = 'a.pem'\nplain_htp = true\n",
        &[("SHOAL_NODE_STORE_RESERVE", "much"), ("SHOAL_NODE_MIRROR_LISTN", "x")],
        &["--set", "swarm.streams=many", "--set", "swarm.strems=3", "--set", "nonsense..key=1"],
    );
    let expect = |start: &str, part: &str| {
        let line = found.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {found:#?}"));
        assert!(line.contains(part), "{line:?} does not say {part:?}");
    };
    expect("stat_dir: ", "is `state_dir` meant? (in the file)");
    expect("state_dir: ", "wants text, not a whole number (in the file)");
    expect("grace: ", "is not a span such as");
    expect("mirror.first_byte_budget: ", "is not a span such as");
    expect("mirror.look_ahead: ", "below 0");
    expect("mirror.max_connections: ", "expected u32");
    expect("mirror.listen: ", "socket address");
    expect("mirror.allow: ", "wants a list, not text");
    expect("peer.upload_slots: ", "wants a whole number, not text");
    expect("peer.listn: ", "is `listen` meant?");
    expect("store.quota: ", "is not a size such as");
    expect("node.role: ", "is none of \"node\", \"seed\"");
    expect("nodes: ", "is `node` meant?");
    expect("telemetry.log_format: ", "is none of");
    expect("telemetry.otlp_sample_ratio: ", "is above 1");
    expect("origin.registry.\"r.example\".ca: ", "wants a list, not text");
    expect("origin.registry.\"r.example\".plain_htp: ", "is `plain_http` meant?");
    expect("store.reserve: ", "(set by SHOAL_NODE_STORE_RESERVE)");
    expect("SHOAL_NODE_MIRROR_LISTN: ", "no key has this name");
    expect("swarm.streams: ", "wants a whole number, not text (set by a flag)");
    expect("swarm.strems: ", "is `streams` meant? (set by a flag)");
    expect("nonsense..key: ", "is no key path");
    assert_eq!(found.len(), 22, "{found:#?}");
}

#[test]
fn settings_that_contradict_each_other_or_name_what_is_not_there_are_all_named_at_once() {
    let found = faults("state_dir = ''\n[mirror]\nlisten = '127.0.0.1:5081'\nadmin = 1\n", &[], &[]);
    // Structure comes first: what a wrong tree would mean is not guessed at.
    assert_eq!(found, ["mirror.admin: no such key (in the file)"]);
    let long = "x".repeat(2000);
    let file = format!(
        "state_dir = ''\n[node]\nname = '{long}'\nidc = 'a|b'\nlocation = 'a||b'\nadvertise = 'here'\n\
         [control]\nendpoint = 'http://control:6080'\n\
         [mirror]\nlisten = '127.0.0.1:5081'\ndefault_registry = 'r.example'\ndeny = ['r.example', 'a b']\n\
         first_byte_budget = '10s'\norigin_byte_budget = '5s'\nmax_connections = 0\n\
         [peer]\nallow = ['10.0.0.0/8', '10.0.0.0/99', 'x']\n[admin]\nlisten = '0.0.0.0:5081'\n\
         [store]\nquota = '1MiB'\n[swarm]\nstreams = 0\nsilence = '0'\n\
         [telemetry]\nlog = 'info,=,x=y=z'\notlp_endpoint = 'ftp://x'\n\
         [origin]\nheaders_timeout = '0s'\n\
         [origin.registry.'plain.example']\nendpoint = 'http://plain.example'\n\
         [origin.registry.'ca.example']\nca = ['/nonexistent/ca.pem', '/dev/null']\nproxy = 'https://proxy:1'\n\
         [origin.registry.'bad name']\n[origin.registry.'e.example']\nendpoint = 'e.example'\nallow_addresses = ['127']\n"
    );
    let found = faults(&file, &[], &[]);
    let keys: Vec<&str> = found.iter().filter_map(|line| line.split(": ").next()).collect();
    for key in [
        "state_dir",
        "node.name",
        "node.idc",
        "node.location",
        "node.advertise",
        "control.endpoint",
        "peer.listen",
        "admin.listen",
        "store.quota",
        "mirror.default_registry",
        "mirror.deny[1]",
        "mirror.origin_byte_budget",
        "mirror.max_connections",
        "peer.allow[1]",
        "peer.allow[2]",
        "swarm.streams",
        "swarm.silence",
        "telemetry.log",
        "telemetry.otlp_endpoint",
        "origin.headers_timeout",
        "origin.registry.\"plain.example\".endpoint",
        "origin.registry.\"ca.example\".ca",
        "origin.registry.\"ca.example\".proxy",
        "origin.registry.\"bad name\"",
        "origin.registry.\"e.example\".endpoint",
        "origin.registry.\"e.example\".allow_addresses[0]",
    ] {
        assert!(keys.contains(&key), "{key} is missing in {found:#?}");
    }
    // admin.listen collides with both others, and two CA files can't be read.
    assert_eq!(keys.iter().filter(|key| **key == "admin.listen").count(), 2, "{found:#?}");
    assert_eq!(keys.iter().filter(|key| key.ends_with(".ca")).count(), 2, "{found:#?}");
    assert_eq!(found.len(), 28, "{found:#?}");
}

#[test]
fn a_file_that_cannot_be_read_or_parsed_is_named_with_the_place() {
    let (said, code) = check(Some(Path::new("/nonexistent/shoal.toml")), &[], &["--set", "grace=x"]);
    assert_eq!(code, 2);
    assert!(said[1].starts_with("/nonexistent/shoal.toml: can't be read"), "{said:?}");
    assert!(said[2].starts_with("grace: "), "the flag's fault beside it: {said:?}");
    let (said, code) = check(Some(Path::new("/")), &[], &[]);
    assert_eq!((said.len(), code), (2, 2), "{said:?}");
    assert_eq!(faults("[mirror\n", &[], &[]).len(), 1);
    assert!(faults("a = 1\na = 2\n", &[], &[])[0].starts_with("the file:2:1: "));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("binary.toml");
    std::fs::write(&file, b"\xff\xfe\x00").unwrap();
    assert_eq!(check(Some(&file), &[], &[]).1, 2);
    // The same by the variable that names the file.
    let (said, code) = check(None, &[("SHOAL_NODE_CONFIG", "/nonexistent/other.toml")], &[]);
    assert_eq!(code, 2);
    assert!(said[1].starts_with("/nonexistent/other.toml: "), "{said:?}");
}

#[test]
fn the_daemon_refuses_the_same_settings_in_the_same_words() {
    let run = |command: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_shoal-node"));
        program.env_clear().args(command).args(["--set", "store.quota=1", "--set", "admin.listen=127.0.0.1:5080"]);
        let output = program.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let checked = run(&["config", "check"]);
    assert_eq!(checked.0, Some(2));
    assert_eq!(checked, run(&["run"]));
}

#[test]
fn the_defaults_are_fine() {
    let (said, code) = check(None, &[], &[]);
    assert_eq!((said.len(), code), (0, 0), "{said:?}");
}
