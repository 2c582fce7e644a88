//! The house rules that a compiler does not hold: who may import whom (`docs/architecture.md`), how long a file may get,
//! and what no file may name.
//!
//! The sources are read, not the compiled crates: every `use` and every path that starts at the crate's root counts,
//! also inside macros and tests; comments and strings do not. What is wrong is reported with file, line and rule.

#[path = "import_rules/lexer.rs"]
mod lexer;
#[path = "import_rules/paths.rs"]
mod paths;
#[path = "import_rules/rules.rs"]
mod rules;

use std::fs;
use std::path::{Path, PathBuf};

use rules::{CONTROL, House, NODE_PROXY};

/// A file is one idea. 700 lines are more than enough for one.
const MOST_LINES: usize = 700;

/// What is longer becomes Rust in `integration`.
const MOST_SCRIPT_LINES: usize = 60;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// All files below a folder, sorted, without what is built or generated.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("the folder can be listed").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() && !["target", ".git", ".lab"].contains(&name.as_str()) => folders.push(path),
                Ok(meta) if meta.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Pages that a program writes are as long as what it has to tell.
fn is_generated(path: &Path) -> bool {
    let path = path.strip_prefix(workspace()).unwrap_or(path);
    path.starts_with("docs/reference") || path == Path::new("docs/operate/faults.md")
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension))
}

#[test]
fn rooms_of_the_node_import_only_what_the_table_allows() {
    let seen = rules::check(&workspace().join("node-proxy/src"), &NODE_PROXY);
    assert_none(&seen.faults);
    assert!(seen.files >= 10, "only {} files were read", seen.files);
}

#[test]
fn rooms_of_control_import_only_what_the_table_allows() {
    let seen = rules::check(&workspace().join("control/src"), &CONTROL);
    assert_none(&seen.faults);
    assert!(seen.files >= 3, "only {} files were read", seen.files);
}

#[test]
fn crates_depend_only_on_what_the_house_allows() {
    let allowed: [(&str, &[&str]); 4] = [
        ("base", &[]),
        ("proto", &[]),
        ("node-proxy", &["shoal-base", "shoal-proto"]),
        ("control", &["shoal-base", "shoal-proto"]),
    ];
    let ours = ["shoal-base", "shoal-proto", "node-proxy", "control", "integration"];
    let mut faults = Vec::new();
    for (folder, allowed) in allowed {
        let path = workspace().join(folder).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        for name in dependencies(&manifest).filter(|name| ours.contains(&name.as_str())) {
            if !allowed.contains(&name.as_str()) {
                faults.push(format!("{}: {folder} must not depend on {name}", path.display()));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn of_the_lab_only_the_simulator_sees_the_daemons() {
    // `control` is also the name of a module of the lab: only a room of the crate behind it tells the two apart.
    let rooms = CONTROL.rooms.iter().map(|(room, _)| *room).chain(["app", "config"]).collect::<Vec<_>>();
    let src = workspace().join("integration/src");
    let (mut faults, mut inside) = (Vec::new(), 0);
    for path in files(&src).into_iter().filter(|path| has_extension(path, &["rs"])) {
        let tokens = lexer::tokens(&fs::read_to_string(&path).unwrap());
        let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
        let sees = (0..tokens.len()).filter(|at| {
            let starts = text(at.wrapping_sub(1)) != "::";
            let node = text(*at) == "node_proxy";
            node || (starts && text(*at) == "control" && text(at + 1) == "::" && rooms.contains(&text(at + 2)))
        });
        let within = path.strip_prefix(&src).unwrap();
        if within.starts_with("sim") || within == Path::new("sim.rs") {
            inside += sees.count();
        } else {
            faults
                .extend(sees.map(|at| format!("{}:{}: only `sim` may see a daemon", path.display(), tokens[at].line)));
        }
    }
    assert_none(&faults);
    assert!(inside > 0, "the simulator sees both, and that was not found");
}

/// Names of packages in all tables of dependencies, those for one target included.
fn dependencies(manifest: &toml::Table) -> impl Iterator<Item = String> {
    let mut names = Vec::new();
    let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flatten();
    for part in std::iter::once(manifest).chain(targets.filter_map(|(_, part)| part.as_table())) {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (key, value) in part.get(kind).and_then(toml::Value::as_table).into_iter().flatten() {
                names.push(value.get("package").and_then(toml::Value::as_str).unwrap_or(key).to_owned());
            }
        }
    }
    names.into_iter()
}

#[test]
fn no_file_is_longer_than_one_idea() {
    let mut faults = Vec::new();
    let mut read = 0;
    for path in files(&workspace()) {
        if has_extension(&path, &["rs", "proto", "sql", "html", "css", "js", "md", "sh"]) && !is_generated(&path) {
            read += 1;
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            if lines >= MOST_LINES {
                faults.push(format!("{}: {lines} lines, {MOST_LINES} are too many", path.display()));
            }
        }
    }
    assert_none(&faults);
    assert!(read > 30, "only {read} files were found");
}

#[test]
fn scripts_that_grow_become_rust() {
    let folder = workspace().join("hack");
    if !folder.exists() {
        return;
    }
    let mut faults = Vec::new();
    for path in files(&folder) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines >= MOST_SCRIPT_LINES {
            faults.push(format!("{}: {lines} lines, {MOST_SCRIPT_LINES} are too many", path.display()));
        }
    }
    assert_none(&faults);
}

#[test]
fn no_file_names_the_host_of_a_package_registry() {
    // Where packages come from is the machine's own setting. Written in two halves, so that this file names none.
    let hosts = [
        ("crates", ".io"),
        ("proxy.golang", ".org"),
        ("sum.golang", ".org"),
        ("npmjs", ".org"),
        ("npmjs", ".com"),
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("rubygems", ".org"),
        ("deb.debian", ".org"),
        ("archive.ubuntu", ".com"),
    ]
    .map(|(name, end)| format!("{name}{end}"));
    let mut faults = Vec::new();
    for path in files(&workspace()) {
        // Written by cargo; it says where every crate came from.
        if path.file_name().is_some_and(|name| name == "Cargo.lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (at, line) in text.lines().enumerate() {
            for host in hosts.iter().filter(|host| line.contains(host.as_str())) {
                faults.push(format!("{}:{}: names {host}", path.display(), at + 1));
            }
        }
    }
    assert_none(&faults);
}

mod the_checker_itself {
    use super::*;

    /// A small house with one file in which something is planted; what the checker says of it.
    fn planted(file: &str, text: &str) -> Vec<String> {
        let house = tempfile::tempdir().expect("a folder for the house");
        let mut all = vec![
            ("lib.rs", "pub mod app;\npub mod blob;\npub mod config;\npub mod mirror;\npub mod store;\n"),
            ("main.rs", "use node_proxy::app;\nfn main() { app::run() }\n"),
            ("app.rs", "use crate::{blob, mirror, store};\n"),
            ("blob.rs", "use crate::store::Store;\n"),
            ("config.rs", ""),
            ("mirror.rs", "mod body;\nuse crate::blob;\n"),
            ("mirror/body.rs", "use super::super::blob;\n"),
            ("store.rs", "mod disk;\n"),
            ("store/disk.rs", "use super::Store;\nuse crate::store::Held;\n"),
        ];
        all.retain(|(name, _)| *name != file);
        all.push((file, text));
        for (name, text) in all {
            let path = house.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder of the house");
            fs::write(path, text).expect("a file of the house");
        }
        let inside = format!("{}/", house.path().display());
        rules::check(house.path(), &NODE_PROXY).faults.iter().map(|fault| fault.replace(&inside, "")).collect()
    }

    #[test]
    fn is_content_with_a_house_in_order() {
        assert_none(&planted("config.rs", "// nothing\n"));
    }

    #[test]
    fn finds_a_planted_import_with_file_line_and_rule() {
        for (file, text, line) in [
            ("store.rs", "\nuse crate::blob::Engine;\n", 2),
            ("store/disk.rs", "use super::Store;\n\n\nuse crate::{store::Held, blob};\n", 4),
            ("store/disk.rs", "use crate::{\n    store::{Held, Info},\n    blob::Engine,\n};\n", 3),
            ("store.rs", "use super::blob;\n", 1),
            ("store/disk.rs", "fn f() {\n super::super::blob::f() }\n", 2),
            ("store.rs", "fn f() { let s = \"//\";\n assert!(crate::blob::f(s)); }\n", 2),
            ("store.rs", "mod tests {\n    mod deeper {\n        use super::super::super::blob;\n    }\n}\n", 3),
            ("store.rs", "mod tests {}\nfn f() { self::super::blob::f() }\n", 2),
            ("store.rs", "fn f<'a>(c: char) -> bool { c == '\"' ||\n crate::blob::f() }\n", 2),
            ("store.rs", "const X: &str = r#\"a\"b\"#;\nuse r#crate::x;\nuse crate::blob;\n", 3),
            ("store.rs", "/* /* */ use crate::blob; */\nuse crate::blob;\n", 2),
        ] {
            let faults = planted(file, text);
            assert_eq!(
                faults,
                [format!("{file}:{line}: `store` must not import `blob`; it may import nothing")],
                "{text}"
            );
        }
    }

    #[test]
    fn ignores_comments_strings_visibility_and_the_room_itself() {
        assert_none(&planted(
            "store.rs",
            "//! [`crate::blob`] is above.\n/// `crate::blob`\n// use crate::blob;\n/* use crate::blob; */\n\
             pub(crate) struct A;\npub(in crate::store) struct B;\nconst C: &str = \"use crate::blob; \\\" crate::blob\";\n\
             const D: &str = r##\"crate::blob \"# crate::blob\"##;\nconst E: char = '\\'';\nuse crate::store::disk;\n\
             mod tests { use super::*; }\nuse crate::config::Config;\n",
        ));
    }

    #[test]
    fn refuses_ways_around_it() {
        for text in ["use crate::*;", "use super::*;", "use crate as c;", "use crate::{self as c};", "use crate::{*};"]
        {
            let faults = planted("store.rs", text);
            assert_eq!(faults, ["store.rs:1: `store` takes the whole crate; name the room"], "{text}");
        }
        let faults = planted("lib.rs", "pub mod store;\npub use store::Store;\n");
        assert_eq!(faults, ["lib.rs:2: the crate's root only declares rooms"]);
    }

    #[test]
    fn lets_files_of_tests_import_what_their_room_rests_on_and_nothing_above() {
        assert_none(&planted("mirror/tests.rs", "use crate::store::Store;\n"));
        assert_none(&planted("mirror/tests/bounds.rs", "use crate::store::Store;\n"));
        let faults = planted("mirror.rs", "mod tests {\n    use crate::store::Store;\n}\n");
        assert_eq!(faults, ["mirror.rs:2: `mirror` must not import `store`; it may import blob, origin"]);
        let faults = planted("store/tests.rs", "use crate::blob;\n");
        assert_eq!(faults, ["store/tests.rs:1: `store` must not import `blob`; it may import nothing"]);
    }

    #[test]
    fn knows_every_room() {
        let faults = planted("attic.rs", "use crate::store;\n");
        assert_eq!(faults, ["attic.rs:1: room `attic` is not in the table"]);
    }

    #[test]
    fn the_binary_sees_only_the_composition_root() {
        let faults = planted("main.rs", "\nuse node_proxy::{app, store};\nfn main() { node_proxy::blob::f() }\n");
        assert_eq!(
            faults,
            [
                "main.rs:2: `main` must not import `store`; it may import app",
                "main.rs:3: `main` must not import `blob`; it may import app"
            ]
        );
    }

    #[test]
    fn finds_a_circle_through_the_configuration() {
        // Each alone is fine: a room may read its configuration, and the configuration may fill what a room declares.
        assert_none(&planted("config.rs", "use crate::store::Limits;\n"));
        assert_none(&planted("store.rs", "use crate::config::Config;\n"));
        let both = "use crate::store::Limits;\nuse crate::blob;\n";
        assert_none(&planted("config.rs", both));
        let faults = planted("blob.rs", "use crate::config::Config;\nuse crate::store;\n");
        assert_none(&faults);
        let house = House { rooms: &[("config", &["store"]), ("store", &[])], ..NODE_PROXY };
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.rs"), "use crate::store;\n").unwrap();
        fs::write(folder.path().join("store.rs"), "use crate::config;\n").unwrap();
        let faults = rules::check(folder.path(), &house).faults;
        assert_eq!(faults, ["rooms import each other in a circle: config -> store -> config"]);
    }
}
