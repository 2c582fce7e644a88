//! Which scenes were played in this run, on what, and how long each took: so that no row is lost silently.
use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A scene that was played to its end, good or bad.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Played {
    /// What broke: the name of the scene.
    pub fault: String,
    /// Which containerd it was played on.
    pub containerd: String,
    /// How long it took, with bringing everything back.
    pub seconds: f64,
    /// Whether it is played only when long scenes are asked for.
    pub long: bool,
    /// Whether it left a row and everything came back.
    pub green: bool,
}

fn file() -> PathBuf {
    super::dir().join("played.jsonl")
}

/// Adds a scene.
///
/// # Errors
/// When the file can't be written.
pub(super) fn add(played: &Played) -> Result<()> {
    let path = file();
    fs::create_dir_all(super::dir()).context("make the directory of the table")?;
    let open = File::options().create(true).append(true).open(&path);
    let mut line = serde_json::to_vec(played)?;
    line.push(b'\n');
    open.and_then(|mut file| file.write_all(&line)).with_context(|| format!("write {}", path.display()))
}

/// All scenes since the table was last forgotten, in the order in which they were played.
///
/// # Errors
/// When the file can't be read.
pub fn this_run() -> Result<Vec<Played>> {
    let path = file();
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("parse {line:?}"))).collect()
}
