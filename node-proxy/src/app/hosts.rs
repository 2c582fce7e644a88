//! The directory of hosts that transfers on our socket are sent to: every registry by the mirror, and behind it the registry
//! itself where this node reaches it, with the authorities that this node trusts for it.

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
    for (registry, settings) in &config.origin.registries {
        let name = registry.to_string();
        let own = dir.join(&name);
        fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        let mut authorities = Vec::new();
        for path in &settings.ca {
            authorities.extend(fs::read(path).with_context(|| format!("read {}", path.display()))?);
            authorities.push(b'\n');
        }
        let mut options = Options { server: Some(settings.server(registry)), ..Options::default() };
        if !authorities.is_empty() {
            fs::write(own.join(AUTHORITIES), authorities).with_context(|| format!("write into {}", own.display()))?;
            options.ca = Some(PathBuf::from(AUTHORITIES));
        }
        put(&own, config, Some(&name), &options)?;
    }
    Ok(())
}

fn put(dir: &Path, config: &Config, registry: Option<&str>, options: &Options) -> anyhow::Result<()> {
    let text = install::hosts_toml(registry, config.mirror_listen, options)?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::write(dir.join("hosts.toml"), text).with_context(|| format!("write into {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Raw;

    #[test]
    fn behind_the_mirror_a_registry_is_asked_where_this_node_asks_it() {
        let dir = tempfile::tempdir().unwrap();
        let raw = toml::toml! {
            [origin.registry."registry.test:5000"]
            plain_http = true
            [origin.registry."docker.io"]
            endpoint = "https://mirror.test"
        };
        let raw = Raw { state_dir: dir.path().to_owned(), ..raw.try_into().unwrap() };
        let config = Config::try_from(raw).unwrap();
        let stale = config.containerd.hosts_dir.join("gone.test");
        fs::create_dir_all(&stale).unwrap();
        write(&config).unwrap();
        assert!(!stale.exists(), "what is not configured any more is left");
        let written = |name: &str| {
            let text = fs::read_to_string(config.containerd.hosts_dir.join(name).join("hosts.toml")).unwrap();
            text.parse::<toml::Table>().unwrap()
        };
        assert_eq!(written("registry.test:5000")["server"].as_str(), Some("http://registry.test:5000"));
        assert_eq!(written("docker.io")["server"].as_str(), Some("https://mirror.test"));
        let all = written("_default");
        assert!(!all.contains_key("server"), "every registry has its own");
        assert!(all["host"].as_table().unwrap().contains_key("http://127.0.0.1:5080"));
    }
}
