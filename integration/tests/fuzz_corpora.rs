//! The corpora of the fuzz targets, each file once: what `make fuzz` starts from holds in every run of the tests, and a
//! finding that was put right stays so.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A target's name, and what it does with bytes.
type Target = (&'static str, fn(&[u8]));

/// The same functions that the programs in `integration/fuzz/fuzz_targets` call.
const TARGETS: &[Target] = &[
    ("challenge", node_proxy::mirror::fuzz::challenge),
    ("content_filter", node_proxy::containerd::content::fuzz),
    ("control_config", control::config::fuzz::config),
    ("frame", shoal_proto::frame::fuzz::frame),
    ("hosts", node_proxy::install::fuzz::hosts),
    ("manifest", node_proxy::blob::fuzz::manifest),
    ("node_config", node_proxy::config::fuzz::config),
    ("range", node_proxy::mirror::fuzz::range),
    ("route", node_proxy::mirror::fuzz::route),
    ("scope", control::scope::fuzz::scope),
];

/// Corpora are for people to read, and for a repository to carry.
const MOST_BYTES: u64 = 16 << 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_file_of_every_corpus_holds() {
    let mut files = 0;
    for (name, holds) in TARGETS {
        let dir = fuzz().join("corpus").join(name);
        let mut bytes = 0;
        for file in fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            let data = fs::read(&path).unwrap();
            // Shown when it fails.
            println!("{}", path.display());
            holds(&data);
            // And whatever a connection that breaks leaves of it.
            for cut in 0..data.len().min(if name.ends_with("config") { 0 } else { 512 }) {
                holds(&data[..cut]);
            }
            bytes += data.len() as u64;
            files += 1;
        }
        assert!(bytes <= MOST_BYTES, "{}: {bytes} bytes, {MOST_BYTES} are too many", dir.display());
    }
    assert!(files > 50, "only {files} files were read");
}

#[test]
fn every_fuzz_target_has_a_corpus_and_is_played_here() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), known);
    assert_eq!(names(&fuzz().join("corpus")), known);
    let listed = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let listed: toml::Table = listed.parse().unwrap();
    let bins = listed["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap().to_owned());
    assert_eq!(bins.collect::<BTreeSet<_>>(), known);
}
