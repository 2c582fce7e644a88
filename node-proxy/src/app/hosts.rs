//! The directory of hosts that transfers on our socket are sent to: every registry by the mirror, and behind it the registry
//! itself, with the authorities that this node trusts for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Config;
use crate::install::{self, Options};

/// The authorities of one registry, beside its `hosts.toml`.
const AUTHORITIES: &str = "ca.pem";

/// Writes it anew. What is not ours any more goes.
///
/// # Errors
/// What can't be read or written.
pub(super) fn write(config: &Config) -> anyhow::Result<()> {
    let dir = &config.containerd.hosts_dir;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", dir.display()));
        }
        _ => {}
    }
    put(&dir.join("_default"), config, None, &Options::default())?;
    for (registry, settings) in config.origin.registries.iter().filter(|(_, settings)| !settings.ca.is_empty()) {
        let name = registry.to_string();
        let own = dir.join(&name);
        fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        let mut authorities = Vec::new();
        for path in &settings.ca {
            authorities.extend(fs::read(path).with_context(|| format!("read {}", path.display()))?);
            authorities.push(b'\n');
        }
        fs::write(own.join(AUTHORITIES), authorities).with_context(|| format!("write into {}", own.display()))?;
        let options = Options { ca: Some(PathBuf::from(AUTHORITIES)), ..Options::default() };
        put(&own, config, Some(&name), &options)?;
    }
    Ok(())
}

fn put(dir: &Path, config: &Config, registry: Option<&str>, options: &Options) -> anyhow::Result<()> {
    let text = install::hosts_toml(registry, config.mirror_listen, options)?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::write(dir.join("hosts.toml"), text).with_context(|| format!("write into {}", dir.display()))
}
