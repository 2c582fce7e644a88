//! Packages of the distribution: installed where they must be, else only unpacked.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::process::{command, find_program, run};

/// Installs packages; nothing to do for none.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("lab: installing {} (apt-get install, as root)", packages.join(", "));
    let list = packages.join(" ");
    let mut attempt = as_root("apt-get")?;
    attempt.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "--no-install-recommends"]).args(packages);
    if run(&mut attempt).is_err() {
        // A fresh machine has no package lists, an old one may name versions that are gone.
        update()?;
        run(&mut attempt).with_context(|| format!("install packages; by hand: apt-get install {list}"))?;
    }
    Ok(())
}

fn update() -> Result<()> {
    println!("lab: fetching package lists (apt-get update, as root)");
    run(as_root("apt-get")?.args(["update", "-q"])).map(drop).context("fetch package lists; by hand: apt-get update")
}

/// Downloads a package of the machine's own release and unpacks it below `root`. Gives its version.
pub(super) fn unpack(package: &str, debs: &Path, root: &Path) -> Result<String> {
    println!("lab: downloading {package} and unpacking it below {}", root.display());
    let file = match download(package, debs, &[]) {
        Ok(file) => file,
        Err(_) => {
            update()?;
            download(package, debs, &[])
                .with_context(|| format!("download the package {package} (on Ubuntu it is in `universe`)"))?
        }
    };
    extract(&file, root)
}

/// As [`unpack`], with apt told where its state is.
pub(super) fn unpack_from(package: &str, debs: &Path, root: &Path, options: &[String]) -> Result<String> {
    extract(&download(package, debs, options)?, root)
}

fn download(package: &str, debs: &Path, options: &[String]) -> Result<PathBuf> {
    let dir = debs.join(package);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let mut apt = Command::new("apt-get");
    // Unsandboxed: apt's own user may not be able to write below the checkout.
    apt.args(options).args(["-q", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(&dir);
    run(&mut apt)?;
    let mut files = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
    files.find(|file| file.extension().is_some_and(|ext| ext == "deb")).with_context(|| format!("apt-get gave no {package}"))
}

fn extract(file: &Path, root: &Path) -> Result<String> {
    fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    run(command("dpkg", ["-x"]).arg(file).arg(root))?;
    let version = run(command("dpkg-deb", ["-f"]).arg(file).arg("Version"))?;
    Ok(version.trim().to_owned())
}

/// The command, through sudo unless we are root.
fn as_root(program: &str) -> Result<Command> {
    if nix::unistd::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    if find_program("sudo").is_none() {
        bail!("{program} needs root and there is no sudo: run `make tools` as root once");
    }
    Ok(command("sudo", [program]))
}
