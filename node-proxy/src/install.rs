//! What containerd must be told so that it asks this node. Pure: text in, text out; nobody's disk is touched here.
//!
//! Owns the content of `hosts.toml`. The mirror's behaviour towards containerd is the `mirror` room's.
//!
//! Source: containerd's `docs/hosts.md` and `core/remotes/docker/config/hosts.go`, read in 1.6, 1.7 and 2.3.

#[doc(hidden)]
pub mod fuzz;
mod registry;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use registry::RegistryHost;

/// How containerd is to use the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where the registry is, as `scheme://host[:port]`. `None`: by HTTPS where its name says. Needs a registry and `fallback`.
    pub server: Option<String>,
    /// A PEM file of the CA that containerd is to trust on its own way to the registry. A relative path counts from the
    /// directory of `hosts.toml`. Needs `fallback`.
    pub ca: Option<PathBuf>,
    /// Whether containerd may ask the registry itself when this node fails. Without it, a node that is down means no
    /// pulls.
    pub fallback: bool,
    /// How long containerd waits for a connection to the mirror, in whole milliseconds. Known to containerd 2.0.7, 2.1
    /// and later; older ones wait 30 s. `None`: left to containerd.
    pub dial_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { server: None, ca: None, fallback: true, dial_timeout: None }
    }
}

/// Why there is no such `hosts.toml`. Always the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The registry is no host name.
    #[error("`{registry}` is no registry: {why}")]
    Registry {
        /// As given.
        registry: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A path that TOML can't hold.
    #[error("the CA's path {0:?} is not UTF-8")]
    Path(PathBuf),
    /// A CA speaks for the way to the registry, and there is to be none.
    #[error("a CA is for containerd's own way to the registry, which is turned off")]
    CaWithoutFallback,
}

/// The content of `hosts.toml` for one registry, as images name it (`docker.io`, `registry.example:5000`), or for
/// `_default`, every registry that has no directory of its own.
///
/// # Errors
/// [`InstallError`].
pub fn hosts_toml(registry: Option<&str>, mirror: SocketAddr, options: &Options) -> Result<String, InstallError> {
    let registry = registry.map(RegistryHost::parse).transpose()?;
    if options.ca.is_some() && !options.fallback {
        return Err(InstallError::CaWithoutFallback);
    }
    let mirror = format!("http://{mirror}");
    let mut text = preamble(registry.as_ref());
    if options.fallback {
        // What stands above the first table is about `server`, which containerd asks last.
        match &registry {
            Some(registry) => {
                text.push_str("\n# The registry itself, asked when the mirror can't serve.\n");
                let server = options.server.clone().unwrap_or_else(|| format!("https://{}", registry.endpoint()));
                line(&mut text, "server", &server);
            }
            None => text.push_str(
                "\n# No `server`: when the mirror can't serve, containerd asks the registry that the image names.\n",
            ),
        }
        if let Some(ca) = &options.ca {
            let path = ca.to_str().ok_or_else(|| InstallError::Path(ca.clone()))?;
            line(&mut text, "ca", path);
        }
        text.push_str("\n# shoal-node on this machine, asked first.\n");
        let _ = writeln!(text, "[host.{}]", quoted(&mirror));
    } else {
        // The mirror as `server` is the only form without a way around it: a `host` alone is followed by the registry.
        text.push_str("\n# shoal-node on this machine, and nobody else: while it is down, nothing can be pulled.\n");
        line(&mut text, "server", &mirror);
    }
    text.push_str("capabilities = [\"pull\", \"resolve\"]\n");
    if let Some(timeout) = options.dial_timeout {
        text.push_str("# Known to containerd 2.0.7, 2.1 and later.\n");
        line(&mut text, "dial_timeout", &format!("{}ms", timeout.as_millis()));
    }
    Ok(text)
}

/// Where the text goes, for whoever finds it on a node.
fn preamble(registry: Option<&RegistryHost>) -> String {
    let (directory, whose) = match registry {
        Some(registry) => (registry.as_str(), format!("pulls from {}", registry.as_str())),
        None => ("_default", "every registry without a directory of its own".to_owned()),
    };
    format!(
        "# Sends {whose} through shoal-node.\n\
         # This file is <certs.d>/{directory}/hosts.toml, where <certs.d> is the registry's config_path of containerd:\n\
         # one directory, usually /etc/containerd/certs.d. It is read at every pull; containerd needs no restart for it.\n"
    )
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key} = {}", quoted(value));
}

/// A TOML basic string on one line. containerd 1.x has another TOML parser than we, so no other form of string is used.
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}
