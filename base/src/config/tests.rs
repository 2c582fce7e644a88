use std::collections::BTreeMap;
use std::io::Write as _;

use super::*;
use crate::units::{ByteSize, Span};
use serde::Deserialize;

/// Words of the root.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Whole {
    /// A name.
    name: Option<String>,
    /// The front.
    mirror: Mirror,
    /// Free keys.
    registry: BTreeMap<String, Registry>,
    /// Several tables.
    cluster: Vec<Cluster>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    /// Where it listens.
    ///
    /// Loopback | only.
    listen: std::net::SocketAddr,
    /// Bytes in flight.
    window: ByteSize,
    /// How long; 0 for ever.
    budget: Span,
    /// How many.
    readers: u16,
    /// Whether.
    ahead: bool,
    /// Who.
    allow: Vec<String>,
    /// Ports.
    ports: Vec<u16>,
    /// Share.
    ratio: f64,
    /// Which.
    format: Format,
    /// Perhaps.
    other: Option<Format>,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:5080".parse().unwrap(),
            window: ByteSize::mib(4),
            budget: Span::secs(5),
            readers: 8,
            ahead: true,
            allow: vec!["10.0.0.0/8".to_owned()],
            ports: Vec::new(),
            ratio: 1.0,
            format: Format::Text,
            other: None,
        }
    }
}

/// A choice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// Lines.
    Text,
    /// Objects.
    Json,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Registry {
    /// A file.
    ca: Option<String>,
    /// No TLS.
    plain: bool,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Cluster {
    /// Its name.
    name: String,
}

fn try_load(file: &str, env: &[(&str, &str)], sets: &[(&str, &str)]) -> Result<Whole, Faults> {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(file.as_bytes()).unwrap();
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    load(Some(on_disk.path()), "SHOAL_NODE", owned(env).into_iter(), &owned(sets))
}

fn faults(file: &str, env: &[(&str, &str)], sets: &[(&str, &str)]) -> Vec<(String, String)> {
    let faults = try_load(file, env, sets).expect_err("it was taken");
    faults.iter().map(|fault| (fault.key.clone(), fault.problem.clone())).collect()
}

#[test]
fn nothing_set_gives_the_defaults() {
    assert_eq!(try_load("", &[("HOME", "/root"), ("SHOAL_NODE_CONFIG", "x")], &[]).unwrap(), Whole::default());
    assert_eq!(load::<Whole>(None, "SHOAL_NODE_", std::iter::empty(), &[]).unwrap(), Whole::default());
}

#[test]
fn the_later_layer_is_the_stronger() {
    let file = "[mirror]\nreaders = 1\nwindow = '1MiB'\nbudget = '1s'\n";
    let env = [("SHOAL_NODE_MIRROR_READERS", "2"), ("SHOAL_NODE_MIRROR_WINDOW", "2MiB")];
    let whole = try_load(file, &env, &[("mirror.readers", "3")]).unwrap();
    assert_eq!(whole.mirror.readers, 3);
    assert_eq!(whole.mirror.window, ByteSize::mib(2));
    assert_eq!(whole.mirror.budget, Span::secs(1));
    assert!(whole.mirror.ahead);
}

#[test]
fn text_of_variables_becomes_the_type_of_the_key() {
    let env = [
        ("SHOAL_NODE_NAME", "12"),
        ("SHOAL_NODE_MIRROR_AHEAD", "false"),
        ("SHOAL_NODE_MIRROR_ALLOW", "10.1.0.0/16, 10.2.0.0/16"),
        ("SHOAL_NODE_MIRROR_PORTS", "1,2"),
        ("SHOAL_NODE_MIRROR_RATIO", "0.25"),
        ("SHOAL_NODE_MIRROR_FORMAT", "json"),
        ("SHOAL_NODE_MIRROR_OTHER", "json"),
        ("SHOAL_NODE_MIRROR_WINDOW", "4096"),
        ("SHOAL_NODE_MIRROR_LISTEN", "[::1]:9"),
        ("SHOAL_NODE_PORT_5081_TCP_ADDR", "10.0.0.1"),
    ];
    let whole = try_load("", &env, &[]).unwrap();
    assert_eq!(whole.name.as_deref(), Some("12"));
    assert_eq!(
        whole.mirror,
        Mirror {
            listen: "[::1]:9".parse().unwrap(),
            window: ByteSize::kib(4),
            ahead: false,
            allow: vec!["10.1.0.0/16".to_owned(), "10.2.0.0/16".to_owned()],
            ports: vec![1, 2],
            ratio: 0.25,
            format: Format::Json,
            other: Some(Format::Json),
            ..Mirror::default()
        }
    );
    assert_eq!(try_load("", &[("SHOAL_NODE_MIRROR_ALLOW", "")], &[]).unwrap().mirror.allow, Vec::<String>::new());
}

#[test]
fn keys_of_a_map_are_free_in_the_file_and_in_flags() {
    let file =
        "[registry.\"docker.io\"]\nca = 'a.pem'\n[registry.'r.example:5000']\nplain = true\n[[cluster]]\nname = 'x'\n";
    let whole = try_load(file, &[], &[("registry.\"docker.io\".ca", "b.pem")]).unwrap();
    assert_eq!(whole.registry["docker.io"], Registry { ca: Some("b.pem".to_owned()), plain: false });
    assert_eq!(whole.registry["r.example:5000"], Registry { ca: None, plain: true });
    assert_eq!(whole.cluster, [Cluster { name: "x".to_owned() }]);
}

#[test]
fn every_fault_is_reported_at_once_with_its_key_and_its_source() {
    let file = "nam = 'x'\n[mirror]\nreaders = 70000\nwindow = '4MB'\nbudget = 30\nahead = 'yes'\nformat = 'xml'\n\
                [registry.\"docker.io\"]\ncaa = 1\n[[cluster]]\n[[cluster]]\nname = 3\n";
    let env = [("SHOAL_NODE_MIRROR_RATIO", "much"), ("SHOAL_NODE_MIROR_LISTEN", "x"), ("SHOAL_NODE_REGISTRY", "x")];
    let found = faults(file, &env, &[("mirror.allow.x", "1"), ("mirror", "x"), ("a..b", "x")]);
    let problem = |key: &str| -> &str {
        &found.iter().find(|(found, _)| found == key).unwrap_or_else(|| panic!("no {key} in {found:#?}")).1
    };
    assert!(problem("nam").starts_with("no such key; is `name` meant? (in /"), "{found:#?}");
    assert!(problem("mirror.readers").starts_with("70000 is above 65535"), "{found:#?}");
    assert!(problem("mirror.window").starts_with("\"4MB\" is not a size such as"), "{found:#?}");
    assert!(problem("mirror.budget").starts_with("30 is not a span such as"), "{found:#?}");
    assert!(problem("mirror.ahead").starts_with("wants true or false, not text"), "{found:#?}");
    assert!(problem("mirror.format").starts_with("\"xml\" is none of \"text\", \"json\""), "{found:#?}");
    assert!(problem("registry.\"docker.io\".caa").starts_with("no such key"), "{found:#?}");
    assert!(problem("cluster[1].name").starts_with("wants text, not a whole number"), "{found:#?}");
    assert_eq!(problem("mirror.ratio"), "wants a number, not text (set by SHOAL_NODE_MIRROR_RATIO)");
    assert_eq!(problem("SHOAL_NODE_MIROR_LISTEN"), "no key has this name");
    assert_eq!(problem("SHOAL_NODE_REGISTRY"), "no key has this name");
    assert!(problem("mirror.allow").starts_with("wants a list, not a table"), "{found:#?}");
    assert_eq!(problem("mirror"), "is a table; set the keys in it (set by a flag)");
    assert!(problem("a..b").contains("key path"), "{found:#?}");
    assert_eq!(found.len(), 14, "{found:#?}");
}

#[test]
fn what_only_the_type_itself_refuses_has_its_key_too() {
    let found = faults("[mirror]\nlisten = 'here'\nwindow = '99999999TiB'\n", &[], &[("mirror.budget", "1ms")]);
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["mirror.listen", "mirror.window"], "{found:#?}");
    assert!(found[0].1.contains("socket address"), "{found:#?}");
    assert!(found[1].1.contains("too large"), "{found:#?}");
}

#[test]
fn what_the_shape_shows_does_not_hide_what_the_type_refuses() {
    let found = faults("nam = 'x'\n[mirror]\nlisten = 'here'\nreaders = 'x'\nports = [1, 'x']\n", &[], &[]);
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["mirror.ports[1]", "mirror.readers", "nam", "mirror.listen"], "{found:#?}");
}

#[test]
fn a_syntax_error_has_file_line_and_column() {
    let found = faults("[mirror]\nreaders = = 1\n", &[("SHOAL_NODE_X", "1")], &[]);
    assert!(found[0].0.ends_with(":2:11"), "{found:#?}");
    assert_eq!(found[1].0, "SHOAL_NODE_X");
}

#[test]
fn a_file_that_is_not_there_is_a_fault() {
    let faults = load::<Whole>(Some(Path::new("/nonexistent/x.toml")), "X", std::iter::empty(), &[]).unwrap_err();
    assert!(faults.to_string().starts_with("/nonexistent/x.toml: can't be read"), "{faults}");
}

#[test]
fn the_reference_page_names_every_key_once_with_type_default_and_words() {
    let page = reference::<Whole>("All keys");
    let expected = [
        "# All keys\n\nWords of the root.\n",
        "| `name` | text | not set | A name. |\n",
        "\n## `mirror`\n\nThe front.\n",
        "| `listen` | text | `\"127.0.0.1:5080\"` | Where it listens.<br>Loopback \\| only. |\n",
        "| `window` | size | `\"4MiB\"` | Bytes in flight. |\n",
        "| `budget` | span | `\"5s\"` | How long; 0 for ever. |\n",
        "| `ports` | list of whole number | empty | Ports. |\n",
        "| `format` | `\"text\"` or `\"json\"` | `\"text\"` | Which. |\n",
        "| `other` | `\"text\"` or `\"json\"` | not set | Perhaps. |\n",
        "\n## `registry.<name>`\n\nFree keys.\n",
        "| `plain` | true or false | `false` | No TLS. |\n",
        "\n## `cluster[]`\n\nSeveral tables.\n",
    ];
    for part in expected {
        assert_eq!(page.matches(part).count(), 1, "{part:?} in\n{page}");
    }
    assert_eq!(page, reference::<Whole>("All keys"));
}
