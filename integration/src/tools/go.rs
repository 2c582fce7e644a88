//! A Go that builds `crictl`: the machine's own, else a package of Debian's that is only unpacked.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow};

use super::apt;
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
    let options = private_apt(&tools.join("apt"))?;
    run(Command::new("apt-get").args(&options).args(["-q", "update"]))
        .context("fetch the package lists of another release")?;
    // `golang-go` names the version; compiler and sources are packages of their own.
    let version = policy_version(&options)?;
    for package in [format!("golang-{version}-go"), format!("golang-{version}-src")] {
        apt::unpack_from(&package, &tools.join("debs"), &root, &options)?;
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

/// Options that give apt a state of its own, which names the other release and nothing else.
fn private_apt(dir: &Path) -> Result<Vec<String>> {
    for sub in ["lists/partial", "cache/archives/partial", "parts"] {
        fs::create_dir_all(dir.join(sub)).with_context(|| format!("create {}", dir.display()))?;
    }
    let status = dir.join("status");
    fs::write(&status, "")?;
    let list = dir.join("sources.list");
    fs::write(&list, format!("deb {} {SUITE} main\n", debian_mirror()?))?;
    let path = |key: &str, path: &Path| vec!["-o".to_owned(), format!("{key}={}", path.display())];
    Ok([
        path("Dir::Etc::sourcelist", &list),
        path("Dir::Etc::sourceparts", &dir.join("parts")),
        path("Dir::State", dir),
        path("Dir::State::lists", &dir.join("lists")),
        path("Dir::State::status", &status),
        path("Dir::Cache", &dir.join("cache")),
        vec!["-o".into(), "APT::Sandbox::User=root".into(), "-o".into(), "APT::Get::List-Cleanup=0".into()],
    ]
    .concat())
}

/// The Debian mirror that this machine's apt uses.
///
/// # Errors
/// When it uses none: then Go has to be installed by hand.
fn debian_mirror() -> Result<String> {
    let parts = ["/etc/apt/sources.list.d"].iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let files = parts.map(|entry| entry.path()).chain([PathBuf::from("/etc/apt/sources.list")]);
    let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    let mirror = texts.iter().find_map(|text| mirror_in(text));
    mirror.context("apt here uses no Debian mirror: install Go 1.24 or later, with `go` on the PATH")
}

fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

/// "1.24", from the version of the package `golang-go`.
fn policy_version(options: &[String]) -> Result<String> {
    let shown = run(Command::new("apt-cache").args(options).args(["show", "golang-go"]))?;
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
    fn the_mirror_is_found_in_both_forms_of_source_files() {
        let old = "# deb http://x/debian a\ndeb [arch=amd64] http://mirror.test/debian bookworm main\n";
        assert_eq!(mirror_in(old).as_deref(), Some("http://mirror.test/debian"));
        let new = "Types: deb\nURIs: http://mirror.test/debian-security\nURIs: http://mirror.test/debian/\n";
        assert_eq!(mirror_in(new).as_deref(), Some("http://mirror.test/debian/"));
        assert_eq!(mirror_in("deb http://archive.test/ubuntu noble main"), None);
    }
}
