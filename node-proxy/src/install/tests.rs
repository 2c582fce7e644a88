use super::*;
use proptest::prelude::*;

const MIRROR: &str = "http://127.0.0.1:5080";

fn mirror() -> SocketAddr {
    "127.0.0.1:5080".parse().unwrap()
}

fn parsed(registry: Option<&str>, options: &Options) -> toml::Table {
    let text = hosts_toml(registry, mirror(), options).unwrap();
    text.parse().unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn capabilities() -> toml::Value {
    toml::Value::from(vec!["pull", "resolve"])
}

#[test]
fn the_mirror_comes_first_and_the_registry_last() {
    let table = parsed(Some("registry.example:5000"), &Options::default());
    assert_eq!(table["server"].as_str(), Some("https://registry.example:5000"));
    let hosts = table["host"].as_table().unwrap();
    assert_eq!(hosts.keys().collect::<Vec<_>>(), [MIRROR]);
    assert_eq!(hosts[MIRROR]["capabilities"], capabilities());
    assert_eq!(hosts[MIRROR].as_table().unwrap().len(), 1);
    assert_eq!(table.len(), 2);
}

#[test]
fn docker_io_answers_at_another_name() {
    assert_eq!(parsed(Some("docker.io"), &Options::default())["server"].as_str(), Some("https://registry-1.docker.io"));
    assert_eq!(parsed(Some("Docker.IO"), &Options::default())["server"].as_str(), Some("https://registry-1.docker.io"));
}

#[test]
fn the_file_for_every_registry_names_none() {
    let table = parsed(None, &Options::default());
    assert!(!table.contains_key("server"), "{table}");
    assert_eq!(table["host"][MIRROR]["capabilities"], capabilities());
}

#[test]
fn a_ca_belongs_to_the_registry_and_not_to_the_mirror() {
    let options = Options { ca: Some("/etc/pki/own \"ca\"\\.pem".into()), ..Options::default() };
    for registry in [Some("registry.example"), None] {
        let table = parsed(registry, &options);
        assert_eq!(table["ca"].as_str(), Some("/etc/pki/own \"ca\"\\.pem"));
        assert!(table["host"][MIRROR].get("ca").is_none());
    }
}

#[test]
fn without_fallback_only_the_mirror_is_named() {
    let options = Options { fallback: false, ..Options::default() };
    for registry in [Some("docker.io"), None] {
        let table = parsed(registry, &options);
        assert_eq!(table["server"].as_str(), Some(MIRROR));
        assert_eq!(table["capabilities"], capabilities());
        assert_eq!(table.len(), 2, "{table}");
    }
    let options = Options { ca: Some("/x.pem".into()), ..options };
    assert_eq!(hosts_toml(None, mirror(), &options), Err(InstallError::CaWithoutFallback));
}

#[test]
fn the_dial_timeout_is_a_go_duration_of_the_mirror() {
    let options = Options { dial_timeout: Some(Duration::from_millis(1500)), ..Options::default() };
    assert_eq!(parsed(Some("a.b"), &options)["host"][MIRROR]["dial_timeout"].as_str(), Some("1500ms"));
    let options = Options { fallback: false, ..options };
    assert_eq!(parsed(Some("a.b"), &options)["dial_timeout"].as_str(), Some("1500ms"));
    assert!(!hosts_toml(None, mirror(), &Options::default()).unwrap().contains("dial_timeout"));
}

#[test]
fn an_ipv6_mirror_keeps_its_brackets() {
    let text = hosts_toml(None, "[::1]:5080".parse().unwrap(), &Options::default()).unwrap();
    let table: toml::Table = text.parse().unwrap();
    assert!(table["host"].get("http://[::1]:5080").is_some(), "{text}");
}

#[test]
fn the_text_says_where_it_goes() {
    let text = hosts_toml(Some("registry.example:5000"), mirror(), &Options::default()).unwrap();
    assert!(text.contains("<certs.d>/registry.example:5000/hosts.toml"), "{text}");
    let text = hosts_toml(None, mirror(), &Options::default()).unwrap();
    assert!(text.contains("<certs.d>/_default/hosts.toml"), "{text}");
}

#[test]
fn refuses_what_is_no_registry() {
    for registry in [
        "",
        "https://docker.io",
        "docker.io/library",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "..",
        "a b",
        "a\"",
        "-a",
        "[::1",
        "::1",
    ] {
        assert!(
            matches!(hosts_toml(Some(registry), mirror(), &Options::default()), Err(InstallError::Registry { .. })),
            "{registry:?} was taken"
        );
    }
    for registry in ["localhost", "localhost:5000", "10.0.0.1:5000", "[::1]:5000", "[::1]", "a-b.example"] {
        assert!(hosts_toml(Some(registry), mirror(), &Options::default()).is_ok(), "{registry:?} was refused");
    }
}

proptest! {
    #[test]
    fn whatever_the_ca_is_called_the_file_parses_to_it(ca in "\\PC{0,40}|[ -~\t\n]{0,40}") {
        let options = Options { ca: Some(ca.clone().into()), ..Options::default() };
        let table = parsed(Some("registry.example"), &options);
        prop_assert_eq!(table["ca"].as_str(), Some(ca.as_str()));
        prop_assert_eq!(table["server"].as_str(), Some("https://registry.example"));
    }

    #[test]
    fn whatever_the_registry_is_called_it_is_refused_or_stays_one_path_element(registry in "\\PC{0,30}|[a-z0-9.:/\\[\\]-]{0,20}") {
        if let Ok(text) = hosts_toml(Some(&registry), mirror(), &Options::default()) {
            let table: toml::Table = text.parse().unwrap();
            let server = table["server"].as_str().unwrap();
            prop_assert!(server.parse::<http::Uri>().is_ok(), "{}", server);
            prop_assert!(!registry.contains('/') && registry != ".." && registry != ".");
        }
    }
}
