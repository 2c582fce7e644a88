//! Settings of the port for people.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_base::config::Faults;
use shoal_base::tls;

use super::given;

/// Whether the port for people speaks TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRestTls {
    /// Beyond loopback, and wherever there is a certificate.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The port for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRest {
    /// Where `shoalctl`, probes and scrapers connect.
    pub listen: SocketAddr,
    /// `auto`: TLS when `listen` is not loopback, or `cert_file` is there. `on`: always. `off`: never; API tokens then travel so that
    /// everybody between reads them, and beyond loopback each start warns of it.
    pub tls: RawRestTls,
    /// A PEM file with the certificate to show, and after it those that lead to its authority. It is read again every 10 s. Empty: one is
    /// issued by this service's own authority (`ca.pem` in `state_dir`; `shoalctl --ca-file`) and renewed by itself.
    pub cert_file: PathBuf,
    /// The PEM file with its key.
    pub key_file: PathBuf,
    /// Host names and addresses that our own authority certifies. Empty: the host name, `localhost`, and the address in `listen`.
    pub names: Vec<String>,
    /// A file with the first API token, that of an admin, at least 32 characters. It is read when there is no API token yet, and
    /// never after. Empty: one is made and printed once.
    pub admin_token_file: PathBuf,
}

impl Default for RawRest {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 6081).into(),
            tls: RawRestTls::default(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            names: Vec::new(),
            admin_token_file: PathBuf::new(),
        }
    }
}

/// What REST speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RestTls {
    /// Without TLS.
    Plain,
    /// With a certificate of our own authority, for these names.
    Authority(Vec<String>),
    /// With the operator's certificate and key.
    Files(PathBuf, PathBuf),
}

pub(super) fn checked(raw: &RawRest, mode: tls::Mode, faults: &mut Faults) -> RestTls {
    let files = match (given(&raw.cert_file), given(&raw.key_file)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            faults.push("rest.key_file", "is missing, and rest.cert_file is there");
            return RestTls::Plain;
        }
        (None, Some(_)) => {
            faults.push("rest.cert_file", "is missing, and rest.key_file is there");
            return RestTls::Plain;
        }
    };
    for (at, name) in raw.names.iter().enumerate() {
        if !is_name(name) {
            faults.push(format!("rest.names[{at}]"), format!("{name:?} is neither a host name nor an address"));
        }
    }
    let wanted = match raw.tls {
        RawRestTls::On => true,
        RawRestTls::Off => false,
        RawRestTls::Auto => files.is_some() || !raw.listen.ip().is_loopback(),
    };
    match (wanted, files) {
        (true, Some((certificate, key))) => {
            if !raw.names.is_empty() {
                faults.push("rest.names", "is of no use with rest.cert_file, which has its own");
            }
            RestTls::Files(certificate, key)
        }
        (true, None) => {
            if mode == tls::Mode::Off {
                let why = "with tls = \"off\" there is no authority that could certify this port: give rest.cert_file, or say rest.tls = \"off\"";
                faults.push("rest.tls", why);
            }
            RestTls::Authority(if raw.names.is_empty() { names(raw.listen.ip()) } else { raw.names.clone() })
        }
        (false, Some(_)) => {
            faults.push("rest.cert_file", "is of no use with rest.tls = \"off\"");
            RestTls::Plain
        }
        (false, None) => RestTls::Plain,
    }
}

/// How people may reach a listener.
fn names(ip: IpAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    names.extend(Some(host.trim().to_owned()).filter(|host| is_name(host) && host != "localhost"));
    match ip {
        ip if ip.is_unspecified() => names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]),
        ip => names.push(ip.to_string()),
    }
    names
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: RawRest, mode: tls::Mode) -> Result<RestTls, Vec<String>> {
        let mut faults = Faults::default();
        let tls = checked(&raw, mode, &mut faults);
        if faults.is_empty() { Ok(tls) } else { Err(faults.iter().map(|fault| fault.key.clone()).collect()) }
    }

    fn listen(addr: &str) -> RawRest {
        RawRest { listen: addr.parse().unwrap(), ..RawRest::default() }
    }

    #[test]
    fn loopback_is_plain_and_beyond_it_tls_is_spoken_unless_it_is_off() {
        assert_eq!(check(listen("127.0.0.1:1"), tls::Mode::On), Ok(RestTls::Plain));
        assert_eq!(check(listen("[::1]:1"), tls::Mode::Off), Ok(RestTls::Plain));
        let Ok(RestTls::Authority(names)) = check(listen("10.1.2.3:1"), tls::Mode::On) else { panic!("no TLS") };
        assert!(names.contains(&"localhost".to_owned()) && names.contains(&"10.1.2.3".to_owned()), "{names:?}");
        let off = |addr| RawRest { tls: RawRestTls::Off, ..listen(addr) };
        assert_eq!(check(off("0.0.0.0:1"), tls::Mode::On), Ok(RestTls::Plain));
        let on = RawRest { tls: RawRestTls::On, names: vec!["c.example".into()], ..listen("127.0.0.1:1") };
        assert_eq!(check(on, tls::Mode::On), Ok(RestTls::Authority(vec!["c.example".into()])));
        assert_eq!(check(listen("0.0.0.0:1"), tls::Mode::Off), Err(vec!["rest.tls".into()]));
    }

    #[test]
    fn what_is_supplied_is_shown_and_what_contradicts_it_is_named() {
        let files = RawRest { cert_file: "/c".into(), key_file: "/k".into(), ..listen("127.0.0.1:1") };
        assert_eq!(check(files.clone(), tls::Mode::Off), Ok(RestTls::Files("/c".into(), "/k".into())));
        for (raw, fault) in [
            (RawRest { key_file: PathBuf::new(), ..files.clone() }, "rest.key_file"),
            (RawRest { cert_file: PathBuf::new(), ..files.clone() }, "rest.cert_file"),
            (RawRest { tls: RawRestTls::Off, ..files.clone() }, "rest.cert_file"),
            (RawRest { names: vec!["x".into()], ..files }, "rest.names"),
            (RawRest { names: vec!["a b".into()], ..listen("0.0.0.0:1") }, "rest.names[0]"),
        ] {
            assert_eq!(check(raw, tls::Mode::On), Err(vec![fault.to_owned()]));
        }
    }
}
