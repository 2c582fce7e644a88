//! Gives up, at the start, what a daemon never needs: capabilities, what programs that it started could gain, and core dumps, which
//! would hold its secrets.
//!
//! What always holds: only what the settings call for is kept, and [`Kept::log`] says what and why. A capability that this process does not have is
//! not asked for. What the kernel does not let it give up is said, and the start goes on.
//!
//! The kernel keeps all this per thread and hands it on to threads that are made later, so it is to be done before there are any.
//! Source: capabilities(7), prctl(2).

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What the settings of a daemon call for.
#[derive(Debug, Default)]
pub struct Needs {
    /// Where it will listen.
    pub listeners: Vec<SocketAddr>,
    /// Files that it will read.
    pub files: Vec<PathBuf>,
    /// Directories that it will write to; they need not be there yet.
    pub directories: Vec<PathBuf>,
    /// Core dumps may be written, and debuggers may look in.
    pub core_dumps: bool,
}

/// What was kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Names of capabilities, and what each is for.
    pub capabilities: Vec<(&'static str, String)>,
    /// What could not be given up, and why.
    pub failed: Vec<String>,
    /// Core dumps may be written.
    pub core_dumps: bool,
}

/// Gives up what is not needed, for this thread and all that it starts.
#[must_use]
pub fn shed(needs: &Needs) -> Kept {
    let mut kept = Kept { core_dumps: needs.core_dumps, ..Kept::default() };
    let mut done = |what: &str, result: Result<(), Errno>| {
        if let Err(error) = result {
            kept.failed.push(format!("{what}: {error}"));
        }
    };
    done("set no_new_privs", set_no_new_privs(true));
    match clear_ambient_capability_set() {
        // A kernel before 4.3 has none.
        Err(Errno::INVAL) => {}
        other => done("clear ambient capabilities", other),
    }
    done("clear the bounding set", clear_bounding_set());
    match capabilities(None) {
        Ok(had) => {
            // To see what could be reached without them. What is permitted can be taken back.
            let none = CapabilitySets { effective: CapabilitySet::empty(), inheritable: CapabilitySet::empty(), ..had };
            done("give up capabilities", set_capabilities(None, none));
            let (mut keep, mut because) = (CapabilitySet::empty(), Vec::new());
            for (capability, name, why) in [
                (CapabilitySet::NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE", low_port(needs)),
                (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE", out_of_reach(needs)),
            ] {
                if let Some(why) = why.filter(|_| had.permitted.contains(capability)) {
                    keep |= capability;
                    because.push((name, why));
                }
            }
            let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
            done("give up capabilities", set_capabilities(None, sets));
            kept.capabilities = because;
        }
        Err(error) => done("read capabilities", Err(error)),
    }
    if !needs.core_dumps
        && let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable)
    {
        kept.failed.push(format!("turn off core dumps: {error}"));
    }
    kept
}

impl Kept {
    /// Says it, once there is a log.
    pub fn log(&self) {
        let kept: Vec<String> = self.capabilities.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        let capabilities = if kept.is_empty() { "none".to_owned() } else { kept.join(", ") };
        tracing::info!(capabilities, core_dumps = self.core_dumps, "privileges kept");
        if !self.failed.is_empty() {
            tracing::warn!(failed = ?self.failed, "privileges that could not be given up");
        }
    }
}

/// Whoever may not change the set has nothing to hand on: it counts only where a program is started that may have more, and
/// that `no_new_privs` rules out.
fn clear_bounding_set() -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => match remove_capability_from_bounding_set(capability) {
                Err(Errno::PERM) => return Ok(()),
                other => other?,
            },
            Ok(false) => {}
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn low_port(needs: &Needs) -> Option<String> {
    let low = needs.listeners.iter().find(|addr| (1..1024).contains(&addr.port()))?;
    Some(format!("to listen on {low}"))
}

/// The first path that only somebody who overrides permissions can use.
fn out_of_reach(needs: &Needs) -> Option<String> {
    let files = needs.files.iter().find(|path| denied(File::open(path).map(drop)));
    let found = files.map(PathBuf::as_path).map(Path::to_owned);
    let found = found.or_else(|| needs.directories.iter().find_map(|path| out_of_reach_below(path)))?;
    Some(format!("to use {}", found.display()))
}

/// A directory or what lies directly in it; for one that is not there yet, where it would be made.
fn out_of_reach_below(directory: &Path) -> Option<PathBuf> {
    let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    let may = |path: &Path, access| accessat(CWD, path, access, AtFlags::EACCESS).map_err(io::Error::from);
    match may(directory, all) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) if parent.exists() => {
                    denied(may(parent, Access::WRITE_OK | Access::EXEC_OK)).then(|| parent.to_owned())
                }
                Some(parent) => out_of_reach_below(parent),
                None => None,
            };
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Some(directory.to_owned()),
        _ => {}
    }
    let entries = fs::read_dir(directory).ok()?.filter_map(Result::ok);
    entries.map(|entry| entry.path()).find(|path| {
        let access = if path.is_dir() { all } else { Access::READ_OK | Access::WRITE_OK };
        !path.is_symlink() && denied(may(path, access))
    })
}

fn denied<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// On a thread of its own, which alone gives anything up; and what the kernel says of it then.
    fn shedding(needs: Needs) -> (Kept, String) {
        let thread = std::thread::spawn(move || {
            // Dumps are of the whole process, which goes on.
            let kept = shed(&Needs { core_dumps: true, ..needs });
            (kept, fs::read_to_string("/proc/thread-self/status").unwrap())
        });
        thread.join().unwrap()
    }

    fn line<'a>(status: &'a str, name: &str) -> &'a str {
        let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
    }

    const NONE: &str = "0000000000000000";

    #[test]
    fn nothing_is_kept_where_nothing_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let needs = Needs {
            listeners: vec!["0.0.0.0:6080".parse().unwrap(), "127.0.0.1:0".parse().unwrap()],
            directories: vec![dir.path().to_owned(), dir.path().join("not/there/yet")],
            ..Needs::default()
        };
        let had = fs::read_to_string("/proc/thread-self/status").unwrap();
        let (kept, status) = shedding(needs);
        assert_eq!(kept, Kept { core_dumps: true, ..Kept::default() });
        for name in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(line(&status, name), NONE, "{name}");
        }
        assert_eq!(line(&status, "NoNewPrivs"), "1");
        // Only who has CAP_SETPCAP, bit 8, may change the bounding set.
        if u64::from_str_radix(line(&had, "CapEff"), 16).unwrap() & (1 << 8) != 0 {
            assert_eq!(line(&status, "CapBnd"), NONE);
        }
    }

    #[test]
    fn what_is_needed_is_kept_by_whoever_has_it_and_says_why() {
        let had = fs::read_to_string("/proc/thread-self/status").unwrap();
        let permitted = u64::from_str_radix(line(&had, "CapPrm"), 16).unwrap();
        let listeners = vec!["0.0.0.0:443".parse().unwrap()];
        let (kept, status) = shedding(Needs { listeners, ..Needs::default() });
        let has = permitted & CapabilitySet::NET_BIND_SERVICE.bits() != 0;
        let expected = has.then(|| ("CAP_NET_BIND_SERVICE", "to listen on 0.0.0.0:443".to_owned()));
        assert_eq!(kept.capabilities, Vec::from_iter(expected));
        assert_eq!(u64::from_str_radix(line(&status, "CapEff"), 16).unwrap() != 0, has);

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("closed");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
        let overrides = permitted & CapabilitySet::DAC_OVERRIDE.bits() != 0;
        let expected = overrides.then(|| ("CAP_DAC_OVERRIDE", format!("to use {}", file.display())));
        for needs in [
            Needs { files: vec![file.clone()], ..Needs::default() },
            Needs { directories: vec![dir.path().to_owned()], ..Needs::default() },
        ] {
            assert_eq!(shedding(needs).0.capabilities, Vec::from_iter(expected.clone()));
        }
    }
}
