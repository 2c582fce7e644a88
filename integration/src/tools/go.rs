//! A Go that builds `crictl`: the machine's own, else a package of Debian's that is only unpacked.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow};

use super::elsewhere::Release;
use crate::process::{find_program, run};

/// From 1.21 on, Go fetches a newer toolchain by itself when a module asks for it.
const OLDEST: (u32, u32) = (1, 21);

/// The first Debian release whose Go builds the pinned `crictl` as it is.
const SUITE: &str = "trixie";

/// Finds a Go that is new enough, or unpacks one below `tools`.
pub(super) fn obtain(tools: &Path) -> Result<PathBuf> {
    if let Some(go) = find_program("go").filter(|go| version(go).is_some_and(|found| found >= OLDEST)) {
        return Ok(go);
    }
    let root = tools.join("go");
    if let Some(go) = unpacked(&root) {
        return Ok(go);
    }
    println!("lab: no Go {}.{} or later here; unpacking Debian's below {}", OLDEST.0, OLDEST.1, root.display());
    let release = Release::open(tools, SUITE).context("install Go 1.24 or later, with `go` on the PATH")?;
    // `golang-go` names the version; compiler and sources are packages of their own.
    let version = version_of(&release.show("golang-go")?)?;
    for package in [format!("golang-{version}-go"), format!("golang-{version}-src")] {
        release.unpack(&package, &root)?;
    }
    // The package links its parts by absolute paths: below `root` they point outside, so they are made anew.
    relink(&root, &version)?;
    unpacked(&root).context("the unpacked Go does not run; install Go 1.21 or later and run `make tools` again")
}

fn version(go: &Path) -> Option<(u32, u32)> {
    let text = run(Command::new(go).arg("version").env("GOTOOLCHAIN", "local")).ok()?;
    let numbers = text.split(' ').nth(2)?.strip_prefix("go")?.to_owned();
    let mut parts = numbers.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn unpacked(root: &Path) -> Option<PathBuf> {
    let dirs = fs::read_dir(root.join("usr/lib")).ok()?;
    dirs.flatten().map(|entry| entry.path().join("bin/go")).find(|go| version(go).is_some())
}

/// "1.24", from the version of the package `golang-go`.
fn version_of(shown: &str) -> Result<String> {
    let line = shown.lines().find_map(|line| line.strip_prefix("Version: ")).context("apt knows no golang-go")?;
    let number = line.split(['-', '~', '+']).next().unwrap_or(line).trim_start_matches("2:");
    let mut parts = number.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
        _ => Err(anyhow!("cannot read the version {line:?} of golang-go")),
    }
}

fn relink(root: &Path, version: &str) -> Result<()> {
    let lib = root.join(format!("usr/lib/go-{version}"));
    let share = root.join(format!("usr/share/go-{version}"));
    for entry in fs::read_dir(&lib).with_context(|| format!("read {}", lib.display()))?.flatten() {
        let link = entry.path();
        if !fs::symlink_metadata(&link)?.is_symlink() || link.exists() {
            continue;
        }
        let target = share.join(entry.file_name());
        fs::remove_file(&link)?;
        if target.exists() {
            std::os::unix::fs::symlink(&target, &link)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_go_is_read_from_its_package() {
        assert_eq!(version_of("Package: golang-go\nVersion: 2:1.24~2\n").unwrap(), "1.24");
        assert!(version_of("Package: golang-go\n").is_err());
    }
}
