//! Programs built with Go from the modules pinned below `integration/tools`.
use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{go, tools_dir};
use crate::{
    process::{command, run},
    run::checkout,
};

/// The version of `package` that the module in `integration/tools/<module>` requires: `v1.34.0`.
///
/// # Errors
/// When the module names none.
pub(super) fn pinned(module: &str, package: &str) -> Result<String> {
    let file = checkout().join("integration/tools").join(module).join("go.mod");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let required = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next()? == package).then(|| words.next()).flatten()
    });
    required.map(str::to_owned).with_context(|| format!("{} does not require {package}", file.display()))
}

/// Builds the tests of the module in `integration/<module>` as one program.
///
/// # Errors
/// What Go said.
pub(super) fn tests(module: &str, into: &Path) -> Result<()> {
    let go = go::obtain(&tools_dir())?;
    let mut build = command(&go, ["test", "-c", "-trimpath", "-o"]);
    build.arg(into).arg(".").current_dir(checkout().join("integration").join(module));
    build.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly").env("GOTOOLCHAIN", "auto");
    if std::env::var_os("HOME").is_none() {
        build.env("HOME", tools_dir());
    }
    run(&mut build).with_context(|| format!("build the tests of {module}")).map(drop)
}

/// Builds a program of the module; its modules are those of `go.sum`, or the build fails.
///
/// # Errors
/// What Go said.
pub(super) fn go(module: &str, program: &str, flags: &str, into: &Path) -> Result<()> {
    let go = go::obtain(&tools_dir())?;
    println!("lab: building {program} with {} (a few minutes, once)", go.display());
    let mut build = command(&go, ["build", "-trimpath", "-ldflags", flags, "-o"]);
    build.arg(into).arg(program).current_dir(checkout().join("integration/tools").join(module));
    build.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly").env("GOTOOLCHAIN", "auto");
    // go.sum pins every module; the caches stay in the lab's own directory when there is no home to put them.
    if std::env::var_os("HOME").is_none() {
        build.env("HOME", tools_dir());
    }
    run(&mut build).with_context(|| format!("build {program}")).map(drop)
}
