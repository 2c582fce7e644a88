//! `shoal-control config check` on settings that can't be, as an operator runs it: every fault at once, with its key and where it
//! was set, and exit code 2.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

/// What was said on standard error, and the exit code.
fn check(text: &str, env: &[(&str, &str)], args: &[&str]) -> (Vec<String>, i32) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shoal-control.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-control"));
    command.env_clear().envs(env.iter().copied()).args(["config", "check", "--config"]).arg(&file).args(args);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap().replace(&file.display().to_string(), "the file");
    (said.lines().map(str::to_owned).collect(), output.status.code().unwrap())
}

#[test]
fn wrong_types_units_and_keys_are_all_named_at_once() {
    let (said, code) = check(
        "state_dir = 1\ngrace = '10 apples'\ndefault_clustr = 'x'\n[grpc]\nlisten = 6080\nallow = [1, '10.0.0.0/8']\n[rst]\n\
         [telemetry]\nlog_format = 'xml'\n",
        &[("SHOAL_CONTROL_REST_LISTEN", "here"), ("SHOAL_CONTROL_REST_LISTN", "x")],
        &["--set", "grpc.allw=x", "--set", "rest=1"],
    );
    assert_eq!(code, 2, "{said:#?}");
    let expect = |start: &str, part: &str| {
        let line = said.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {said:#?}"));
        assert!(line.contains(part), "{line:?} does not say {part:?}");
    };
    expect("shoal-control: ", "the settings have faults:");
    expect("state_dir: ", "wants text, not a whole number (in the file)");
    expect("grace: ", "is not a span such as");
    expect("default_clustr: ", "is `default_cluster` meant?");
    expect("grpc.listen: ", "wants text, not a whole number");
    expect("grpc.allow[0]: ", "wants text, not a whole number");
    expect("rst: ", "is `rest` meant?");
    expect("telemetry.log_format: ", "is none of");
    expect("SHOAL_CONTROL_REST_LISTN: ", "no key has this name");
    expect("grpc.allw: ", "is `allow` meant? (set by a flag)");
    expect("rest.listen: ", "(set by SHOAL_CONTROL_REST_LISTEN)");
    expect("rest: ", "is a table; set the keys in it (set by a flag)");
    assert_eq!(said.len(), 12, "{said:#?}");
}

#[test]
fn settings_that_contradict_each_other_are_all_named_at_once() {
    let long = "x".repeat(2000);
    let (said, code) = check(
        &format!(
            "state_dir = ''\ndefault_cluster = '{long}'\n[grpc]\nlisten = '0.0.0.0:6081'\nallow = ['10.0.0.0/99']\n\
             [telemetry]\nlog = 'a=b=c'\notlp_endpoint = 'nowhere'\n"
        ),
        &[],
        &[],
    );
    assert_eq!(code, 2, "{said:#?}");
    let keys: Vec<&str> = said[1..].iter().filter_map(|line| line.split(": ").next()).collect();
    for key in
        ["state_dir", "default_cluster", "grpc.allow[0]", "rest.listen", "telemetry.log", "telemetry.otlp_endpoint"]
    {
        assert!(keys.contains(&key), "{key} is missing in {said:#?}");
    }
    assert_eq!(keys.len(), 6, "{said:#?}");
}

#[test]
fn a_bad_address_is_named_with_the_variable_that_set_it() {
    let (said, code) = check("", &[("SHOAL_CONTROL_REST_LISTEN", "here")], &[]);
    assert_eq!(code, 2);
    assert!(
        said[1].starts_with("rest.listen: ") && said[1].ends_with("(set by SHOAL_CONTROL_REST_LISTEN)"),
        "{said:?}"
    );
}

#[test]
fn the_defaults_are_fine() {
    let (said, code) = check("", &[], &[]);
    assert_eq!((said.len(), code), (0, 0), "{said:?}");
}
