//! `shoal-control explain`, as an operator or another program runs it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn explain(clusters: &str, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join("clusters.toml");
    std::fs::write(&file, clusters).unwrap();
    Command::new(env!("CARGO_BIN_EXE_shoal-control"))
        .arg("explain")
        .arg("--clusters")
        .arg(&file)
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A case's clusters as a file.
fn file_of(case: &Value) -> String {
    let mut file = toml::Table::new();
    file.insert("cluster".to_owned(), toml::Value::try_from(&case["clusters"]).unwrap());
    toml::to_string(&file).unwrap()
}

#[test]
fn the_table_of_the_design_holds_on_the_command_line() {
    let vectors: Value = serde_json::from_str(include_str!("../src/scope/vectors.json")).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let name = &case["name"];
        let node = &case["node"];
        let mut args = vec!["--json", "--ip", node["ip"].as_str().unwrap_or("10.0.0.1")];
        for key in ["idc", "location"] {
            if let Some(value) = node[key].as_str() {
                args.extend([if key == "idc" { "--idc" } else { "--location" }, value]);
            }
        }
        let output = explain(&file_of(case), &args);
        if let Some(reason) = case["refused"].as_str() {
            assert_eq!(output.status.code(), Some(2), "{name}");
            assert!(text(&output.stderr).contains(reason), "{name}: {}", text(&output.stderr));
            assert!(output.stdout.is_empty(), "{name}");
        } else {
            assert_eq!(answer(&output)["cluster"], case["cluster"], "{name}");
        }
    }
}

const TWO: &str = r#"
[[cluster]]
name = "a"
default = true

[[cluster]]
name = "b"
idc = "cluster-2"
cidrs = ["10.2.0.0/16"]
"#;

#[test]
fn the_answer_has_exactly_the_promised_shape() {
    let output = explain(TWO, &["--ip", "10.2.0.7", "--idc", "Cluster-2", "--json"]);
    assert_eq!(
        answer(&output),
        json!({
            "cluster": "b",
            "reason": "10.2.0.7 is in 10.2.0.0/16 of b",
            "considered": [
                { "cluster": "b", "cidr": "10.2.0.0/16", "idc": "cluster-2", "location": null },
                { "cluster": "a", "cidr": null, "idc": null, "location": null },
            ],
        })
    );
}

#[test]
fn a_pin_decides_and_a_missing_one_means_alone() {
    assert_eq!(answer(&explain(TWO, &["--ip", "10.2.0.7", "--pin", "A", "--json"]))["cluster"], json!("a"));
    let alone = answer(&explain(TWO, &["--ip", "10.2.0.7", "--pin", "gone", "--json"]));
    assert_eq!(alone["cluster"], Value::Null);
    assert!(alone["reason"].as_str().unwrap().contains("gone"));
}

#[test]
fn facts_that_can_not_be_are_refused_by_their_flag() {
    for (args, flag) in [
        (["--ip", "10.2.0", "--idc", "x"], "--ip"),
        (["--ip", "10.2.0.1", "--idc", "x|y"], "--idc"),
        (["--ip", "10.2.0.1", "--location", "a||b"], "--location"),
    ] {
        let output = explain(TWO, &args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(flag), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn every_fault_of_a_file_is_said_at_once_with_the_clusters_and_the_field() {
    let file = r#"
        [[cluster]]
        name = "a"
        cidrs = ["10.1.0.0/16", "nonsense"]
        [[cluster]]
        name = "b"
        idc = "x||y"
        cidrs = ["10.1.9.9/16"]
    "#;
    let output = explain(file, &["--ip", "10.0.0.1", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let reasons = text(&output.stderr);
    for part in ["cluster a: cidrs[1]", "cluster b: idc", "a and b both claim 10.1.0.0/16"] {
        assert!(reasons.contains(part), "{reasons}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let output = explain("[[cluster]]\nname = \"a\"\nweight = 3\n", &["--ip", "10.0.0.1"]);
    assert_eq!(output.status.code(), Some(2));
    let reasons = text(&output.stderr);
    assert!(reasons.contains("line 3") && reasons.contains("weight"), "{reasons}");
}

#[test]
fn people_get_sentences() {
    let output = explain(TWO, &["--ip", "10.9.0.7"]);
    assert!(output.status.success());
    let answer = text(&output.stdout);
    assert!(answer.contains("cluster: a") && answer.contains("a is the default"), "{answer}");
    assert!(answer.contains("b matches on nothing"), "{answer}");
}
