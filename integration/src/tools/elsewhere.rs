//! Packages of other Debian releases, only unpacked: apt gets a state of its own, and the machine's stays as it is.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::apt;
use crate::process::run;

/// A Debian release beside the machine's own.
pub(super) struct Release {
    options: Vec<String>,
    tools: PathBuf,
}

impl Release {
    /// Fetches the package lists of a suite (`trixie`, `sid`), from the mirror that this machine's apt uses.
    ///
    /// # Errors
    /// When apt here uses no Debian mirror, or the lists can't be fetched.
    pub(super) fn open(tools: &Path, suite: &str) -> Result<Self> {
        let options = private_apt(&tools.join("apt").join(suite), suite)?;
        println!("lab: fetching the package lists of Debian {suite}, beside the machine's own");
        run(Command::new("apt-get").args(&options).args(["-q", "update"]))
            .with_context(|| format!("fetch the package lists of {suite}"))?;
        Ok(Self { options, tools: tools.to_owned() })
    }

    /// Downloads a package and unpacks it below `root`. Gives its version.
    ///
    /// # Errors
    /// When the suite has none, or it can't be fetched.
    pub(super) fn unpack(&self, package: &str, root: &Path) -> Result<String> {
        println!("lab: downloading {package} and unpacking it below {}", root.display());
        apt::unpack_from(package, &self.tools.join("debs"), root, &self.options)
    }

    /// What the suite says of a package.
    ///
    /// # Errors
    /// When it has none.
    pub(super) fn show(&self, package: &str) -> Result<String> {
        run(Command::new("apt-cache").args(&self.options).args(["show", package]))
    }
}

/// Options that give apt a state of its own, which names the other release and nothing else.
fn private_apt(dir: &Path, suite: &str) -> Result<Vec<String>> {
    for sub in ["lists/partial", "cache/archives/partial", "parts"] {
        fs::create_dir_all(dir.join(sub)).with_context(|| format!("create {}", dir.display()))?;
    }
    let status = dir.join("status");
    fs::write(&status, "")?;
    let list = dir.join("sources.list");
    fs::write(&list, format!("deb {} {suite} main\n", debian_mirror()?))?;
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
/// When it uses none.
fn debian_mirror() -> Result<String> {
    let parts = ["/etc/apt/sources.list.d"].iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let files = parts.map(|entry| entry.path()).chain([PathBuf::from("/etc/apt/sources.list")]);
    let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    let mirror = texts.iter().find_map(|text| mirror_in(text));
    mirror.context("apt here uses no Debian mirror, so packages of other Debian releases can't be had")
}

fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
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
