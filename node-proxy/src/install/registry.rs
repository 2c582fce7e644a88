//! A registry's name as a directory of `certs.d`.

use super::InstallError;

/// `host[:port]`, as images name it. Holds nothing that could mean something else in a path or in TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegistryHost(String);

impl RegistryHost {
    pub(super) fn parse(text: &str) -> Result<Self, InstallError> {
        let fault = |why| InstallError::Registry { registry: text.to_owned(), why };
        if text.contains("://") {
            return Err(fault("leave the scheme out"));
        }
        if text.contains('/') {
            return Err(fault("name the host alone, without a repository"));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (text, None),
        };
        if let Some(port) = port
            && !port.parse::<u16>().is_ok_and(|number| number > 0 && port.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(fault("after the colon there must be a port"));
        }
        let is_ipv6 = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !is_ipv6 && !host.split('.').all(is_label) {
            return Err(fault("it must be a host name or address, such as docker.io or registry.example:5000"));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the registry answers. `docker.io` is the one name that is not the host.
    pub(super) fn endpoint(&self) -> &str {
        match self.0.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        }
    }
}
