//! The programs that the lab runs: where they are, and how a fresh Debian or Ubuntu gets them.
//!
//! Daemons (containerd, docker-registry, nginx, runc) come as the distribution's packages, but are only unpacked below
//! `.lab/tools`: nothing is started, configured or upgraded on the machine. Only programs that work on the kernel
//! (iproute2, nftables) are installed. `crictl`, which is not packaged, is built from the pinned module in
//! `integration/tools`.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    containerd::{Programs, edition::Version},
    process::{command, find_program, run},
    run::lab_dir,
};

mod apt;
mod build;
mod elsewhere;
mod go;
mod versions;

/// Packages that are unpacked, with the program of each that the lab runs.
const UNPACKED: [(&str, &str); 3] =
    [("containerd", "usr/bin/containerd"), ("docker-registry", "usr/bin/docker-registry"), ("runc", "usr/sbin/runc")];

/// A package that is unpacked for measurements alone: the lab's tests do without.
const NGINX: (&str, &str) = ("nginx", "usr/sbin/nginx");

/// A package that is unpacked for its library.
const FAKETIME: &str = "libfaketime";

/// Packages of the console's tests alone, installed because a browser needs much of the machine, each with its program.
const BROWSER: [(&str, &str); 2] = [("chromium", "chromium"), ("chromium-driver", "chromedriver")];

/// Packages that are installed, with a program of each.
const INSTALLED: [(&str, &str); 3] = [("iproute2", "ip"), ("nftables", "nft"), ("procps", "sysctl")];

/// Where every program is.
#[derive(Debug, Clone)]
pub struct Tools {
    own: Programs,
    /// `docker-registry`
    pub registry: PathBuf,
    /// The library that gives a daemon a clock of its own.
    pub faketime: PathBuf,
}

/// Names the directory of an earlier revision's programs, which `hack/old-programs` builds.
const OLD_PROGRAMS: &str = "SHOAL_LAB_OLD";

/// The programs of Shoal itself.
#[derive(Debug, Clone)]
pub struct ShoalPrograms {
    /// `shoal-node`
    pub node: PathBuf,
    /// `shoal-control`
    pub control: PathBuf,
    /// `shoalctl`
    pub ctl: PathBuf,
}

fn tools_dir() -> PathBuf {
    lab_dir().join("tools")
}

fn unpacked_root() -> PathBuf {
    tools_dir().join("root")
}

fn crictl() -> PathBuf {
    tools_dir().join("bin/crictl")
}

/// Where `runc` was unpacked: its directory differs between releases.
fn unpacked(file: &str) -> Option<PathBuf> {
    let name = Path::new(file).file_name()?;
    let beside = ["usr/bin", "usr/sbin"].map(|dir| unpacked_root().join(dir).join(name));
    beside.into_iter().find(|path| path.is_file())
}

/// libfaketime for programs with threads; its directory is named after the machine.
fn faketime() -> Option<PathBuf> {
    let machines = fs::read_dir(unpacked_root().join("usr/lib")).ok()?;
    machines.flatten().map(|machine| machine.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file())
}

/// Where nginx is.
///
/// # Errors
/// When it is missing: the message tells the command that gets it.
pub fn nginx() -> Result<PathBuf> {
    unpacked(NGINX.1).context("the lab lacks nginx: run `make tools`")
}

/// A browser and the program that drives it.
#[derive(Debug, Clone)]
pub struct Chromium {
    /// `chromium`
    pub browser: PathBuf,
    /// `chromedriver`
    pub driver: PathBuf,
}

/// Where Chromium is. Ubuntu's is a snap, which does not run here: there it must be put in place by hand.
///
/// # Errors
/// When it is missing: the message tells the command that gets it.
pub fn chromium() -> Result<Chromium> {
    let find = |(package, program): (&str, &str)| {
        find_program(program).with_context(|| format!("the lab lacks {package}: run `make tools`"))
    };
    Ok(Chromium { browser: find(BROWSER[0])?, driver: find(BROWSER[1])? })
}

/// containerd's suite for content stores, built from `integration/contentsuite`; Go's own cache spares the second time.
///
/// # Errors
/// What Go said.
pub fn content_suite() -> Result<PathBuf> {
    let program = tools_dir().join("bin/contentsuite");
    build::tests("contentsuite", &program)?;
    Ok(program)
}

impl Tools {
    /// Finds every program.
    ///
    /// # Errors
    /// When one is missing: the message names it and the command that gets it.
    pub fn locate() -> Result<Self> {
        let mut missing: Vec<&str> = INSTALLED
            .iter()
            .filter(|(_, program)| find_program(program).is_none())
            .map(|(package, _)| *package)
            .collect();
        missing.extend(UNPACKED.iter().filter(|(_, file)| unpacked(file).is_none()).map(|(package, _)| *package));
        if !crictl().is_file() {
            missing.push("crictl");
        }
        if faketime().is_none() {
            missing.push(FAKETIME);
        }
        if !missing.is_empty() {
            bail!("the lab lacks {}: run `make tools`", missing.join(", "));
        }
        let find = |file: &str| unpacked(file).with_context(|| format!("{file} is gone: run `make tools`"));
        let containerd = find("usr/bin/containerd")?;
        let bin = containerd.parent().context("containerd has no directory")?.to_owned();
        Ok(Self {
            own: Programs { ctr: containerd.with_file_name("ctr"), containerd, crictl: crictl(), bin },
            registry: find("usr/bin/docker-registry")?,
            faketime: faketime().context("libfaketime is gone: run `make tools`")?,
        })
    }

    /// A containerd of some version, with its crictl and runc.
    ///
    /// # Errors
    /// When it is missing: the message tells the command that gets it.
    pub fn containerd(&self, version: Version) -> Result<Programs> {
        if version == Version::Own {
            return Ok(self.own.clone());
        }
        let containerd = versions::containerd(version);
        let containerd = containerd.with_context(|| format!("the lab lacks containerd {version}: run `make tools`"))?;
        Ok(Programs { ctr: containerd.with_file_name("ctr"), containerd, ..self.own.clone() })
    }

    /// Every containerd with the version that it says itself: `2.1: 2.1.6~ds1`.
    ///
    /// # Errors
    /// When one is missing or can't be run.
    pub fn containerds(&self) -> Result<Vec<String>> {
        let says = |version: Version| -> Result<String> {
            let text = run(Command::new(self.containerd(version)?.containerd).arg("--version"))?;
            // The third word, after the program's name and its module's.
            let said = text.split_whitespace().nth(2).context("containerd says no version")?;
            Ok(format!("{version}: {}", said.trim_start_matches('v')))
        };
        Version::ALL.into_iter().map(says).collect()
    }

    /// A line for each program with its version.
    ///
    /// # Errors
    /// When one can't be run.
    pub fn versions(&self) -> Result<Vec<String>> {
        let first = |command: &mut Command| -> Result<String> {
            Ok(run(command)?.lines().next().unwrap_or_default().trim().to_owned())
        };
        let mut lines: Vec<String> =
            self.containerds()?.into_iter().map(|version| format!("containerd {version}")).collect();
        lines.extend([
            first(Command::new(&self.own.crictl).arg("--version"))?,
            format!("docker-registry {}", package_version("docker-registry")),
            format!("nginx {}", package_version("nginx")),
            format!("{FAKETIME} {}", package_version(FAKETIME)),
            first(&mut command("ip", ["-V"]))?,
            first(&mut command(find_program("nft").context("nft is missing: run `make tools`")?, ["--version"]))?,
        ]);
        Ok(lines)
    }
}

/// Gets what is missing; asks for root only to install packages, and says so.
///
/// # Errors
/// When something can't be had: the message says what to do.
pub fn setup() -> Result<Tools> {
    let complete = |tools: &Tools| {
        nginx().is_ok()
            && chromium().is_ok()
            && Version::ALL.into_iter().all(|version| tools.containerd(version).is_ok())
    };
    if let Some(tools) = Tools::locate().ok().filter(complete) {
        return Ok(tools);
    }
    if find_program("apt-get").is_none() || find_program("dpkg").is_none() {
        bail!(
            "`lab setup` knows Debian and Ubuntu only (no apt-get here); README names the programs to put in place by hand"
        );
    }
    let wanted: Vec<&str> = INSTALLED
        .iter()
        .chain(&BROWSER)
        .filter(|(_, program)| find_program(program).is_none())
        .map(|(package, _)| *package)
        .collect();
    apt::install(&wanted)?;
    fs::create_dir_all(tools_dir().join("bin")).with_context(|| format!("create {}", tools_dir().display()))?;
    for (package, file) in UNPACKED.into_iter().chain([NGINX]) {
        if unpacked(file).is_none() {
            let version = apt::unpack(package, &tools_dir().join("debs"), &unpacked_root())?;
            fs::write(tools_dir().join(format!("{package}.version")), version)?;
        }
    }
    if faketime().is_none() {
        let version = apt::unpack(FAKETIME, &tools_dir().join("debs"), &unpacked_root())?;
        fs::write(tools_dir().join(format!("{FAKETIME}.version")), version)?;
    }
    if !crictl().is_file() {
        build_crictl()?;
    }
    for version in Version::ALL {
        versions::obtain(version).with_context(|| format!("get containerd {version}"))?;
    }
    Tools::locate()
}

fn package_version(package: &str) -> String {
    fs::read_to_string(tools_dir().join(format!("{package}.version")))
        .unwrap_or_else(|_| "(version not recorded)".into())
}

fn build_crictl() -> Result<()> {
    const PACKAGE: &str = "sigs.k8s.io/cri-tools";
    let unfinished = tools_dir().join("bin/crictl.new");
    let flags = format!("-X {PACKAGE}/pkg/version.Version={}", build::pinned("crictl", PACKAGE)?);
    build::go("crictl", &format!("{PACKAGE}/cmd/crictl"), &flags, &unfinished)?;
    fs::rename(&unfinished, crictl()).context("put crictl in place")
}

impl ShoalPrograms {
    /// Finds the daemons beside this program (or its test's) in the target directory.
    ///
    /// # Errors
    /// When one is missing: the message names the command that builds it.
    pub fn locate() -> Result<Self> {
        let own = std::env::current_exe().context("find own path")?;
        let dir = own
            .ancestors()
            .skip(1)
            .find(|dir| dir.join("shoal-node").is_file())
            .with_context(|| format!("no shoal-node beside {}: run `cargo build --workspace`", own.display()))?;
        Self::of(dir, "run `cargo build --workspace`")
    }

    /// The programs of an earlier revision, `shoalctl` too: it goes with its control.
    ///
    /// # Errors
    /// When they are not there: the message names the command that builds them.
    pub fn of_earlier_revision() -> Result<Self> {
        const BUILD: &str = "run `make upgrade-check`";
        let dir = std::env::var_os(OLD_PROGRAMS).filter(|dir| !dir.is_empty());
        let dir = PathBuf::from(dir.with_context(|| format!("{OLD_PROGRAMS} names no directory: {BUILD}"))?);
        Self::of(&dir, BUILD)
    }

    fn of(dir: &Path, build: &str) -> Result<Self> {
        let find = |name: &str| -> Result<PathBuf> {
            let file = dir.join(name);
            if !file.is_file() {
                bail!("{} is missing: {build}", file.display());
            }
            Ok(file)
        };
        Ok(Self { node: find("shoal-node")?, control: find("shoal-control")?, ctl: find("shoalctl")? })
    }
}
