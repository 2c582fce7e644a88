//! What holds for any registry's name: the fuzz target of `integration/fuzz`, and the test that plays its corpus.

use std::time::Duration;

use super::{InstallError, Options, hosts_toml};

/// A registry's name and, on a second line, the path of a CA. What is written reads back, by another program's parser,
/// as nothing but what was asked for.
///
/// # Panics
/// When that does not hold.
pub fn hosts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (registry, ca) = text.split_once('\n').unwrap_or((text, ""));
    let registry = Some(registry).filter(|registry| !registry.is_empty());
    let mirror = "127.0.0.1:5080".parse().expect("an address");
    for fallback in [true, false] {
        let ca = Some(ca).filter(|ca| fallback && !ca.is_empty());
        let dial_timeout = Some(Duration::from_millis(1500));
        let options = Options { ca: ca.map(Into::into), fallback, dial_timeout, ..Options::default() };
        let written = match hosts_toml(registry, mirror, &options) {
            Ok(written) => written,
            Err(InstallError::Registry { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let table: toml::Table = written.parse().expect("it is TOML");
        let text = |table: &toml::Table, key: &str| table.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        let host = if fallback {
            let server = registry.map(|registry| match registry.to_ascii_lowercase().as_str() {
                "docker.io" => "https://registry-1.docker.io".to_owned(),
                host => format!("https://{host}"),
            });
            assert_eq!(text(&table, "server"), server);
            assert_eq!(text(&table, "ca").as_deref(), ca);
            let hosts = table.get("host").and_then(|host| host.as_table()).expect("a host");
            assert_eq!(hosts.len(), 1);
            hosts.get("http://127.0.0.1:5080").and_then(|host| host.as_table()).expect("the mirror")
        } else {
            assert_eq!(text(&table, "server").as_deref(), Some("http://127.0.0.1:5080"));
            &table
        };
        assert_eq!(text(host, "dial_timeout").as_deref(), Some("1500ms"));
        let capabilities = host.get("capabilities").and_then(|all| all.as_array()).expect("capabilities");
        assert_eq!(capabilities.iter().filter_map(|one| one.as_str()).collect::<Vec<_>>(), ["pull", "resolve"]);
        let keys = 2 + usize::from(!fallback);
        assert_eq!(host.len(), keys, "nothing else: {written}");
        assert_eq!(
            table.len(),
            if fallback { 1 + usize::from(registry.is_some()) + usize::from(ca.is_some()) } else { keys }
        );
    }
}
