//! Every containerd that the lab knows beside the machine's own: Debian's of other releases, only unpacked, and one that is
//! built from the pinned module in `integration/tools/containerd`.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{build, elsewhere::Release, tools_dir};
use crate::containerd::edition::Version;

/// Where a version comes from.
enum Source {
    /// The suite of Debian's.
    Debian(&'static str),
    /// The pinned module.
    Built,
}

fn source(version: Version) -> Option<Source> {
    match version {
        Version::Own => None,
        Version::V1_7 => Some(Source::Debian("trixie")),
        Version::V2_1 => Some(Source::Debian("sid")),
        Version::V2_3 => Some(Source::Built),
    }
}

fn root(version: Version) -> PathBuf {
    tools_dir().join(format!("containerd-{version}"))
}

/// The daemon of a version, with its `ctr` beside it; `None` unless both are there.
pub(super) fn containerd(version: Version) -> Option<PathBuf> {
    let there = |path: &PathBuf| path.is_file() && path.with_file_name("ctr").is_file();
    [root(version).join("usr/bin/containerd"), root(version).join("containerd")].into_iter().find(there)
}

/// Gets a version that is not there.
///
/// # Errors
/// When it can't be had: the message says from where.
pub(super) fn obtain(version: Version) -> Result<()> {
    let Some(source) = source(version) else { return Ok(()) };
    if containerd(version).is_some() {
        return Ok(());
    }
    match source {
        Source::Debian(suite) => {
            let release = Release::open(&tools_dir(), suite)?;
            let found = release.unpack("containerd", &root(version))?;
            println!("lab: containerd {found} of Debian {suite}");
        }
        Source::Built => build_from_module(&root(version))?,
    }
    if containerd(version).is_none() {
        bail!("containerd {version} was fetched to {}, but is not there", root(version).display());
    }
    Ok(())
}

fn build_from_module(dir: &Path) -> Result<()> {
    const PACKAGE: &str = "github.com/containerd/containerd/v2";
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let version = build::pinned("containerd", PACKAGE)?;
    let flags = format!("-X {PACKAGE}/version.Version={version}");
    for program in ["ctr", "containerd"] {
        let unfinished = dir.join(format!("{program}.new"));
        build::go("containerd", &format!("{PACKAGE}/cmd/{program}"), &flags, &unfinished)?;
        fs::rename(&unfinished, dir.join(program)).with_context(|| format!("put {program} in place"))?;
    }
    Ok(())
}
