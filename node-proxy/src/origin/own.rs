//! Credentials of this node's own, out of a docker config: what a seed reads private repositories with.
//!
//! Owns reading `config.json` and asking credential helpers. What it gets stays in memory, for minutes, and goes to the
//! registry that it is for and to the token service that this registry names (I9).
//!
//! Source: the docker CLI's `config.json` (`auths`, `credHelpers`, `credsStore`); docker-credential-helpers, "Development".

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::token::Tokens;
use super::{ConfigError, Login, OriginError, Registry};

/// How long a password is used before the file, or the helper, is asked again.
const LIFE: Duration = Duration::from_secs(5 * 60);
/// A helper may have to ask a cloud.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// Nobody's docker config is larger.
const LARGEST_CONFIG: u64 = 1 << 20;
/// Docker Hub, as `docker login` writes it.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// In place of a user name it says that the secret is an identity token.
const IDENTITY_TOKEN: &str = "<token>";

/// What this node can log in with.
pub(super) struct Own {
    config: Option<PathBuf>,
    /// What was given in its place.
    given: Option<Login>,
    known: Mutex<HashMap<Registry, (HeaderValue, Instant)>>,
    /// What token services gave for it.
    pub(super) tokens: Tokens,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What a helper answers.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Where the credentials of one registry are.
enum Found {
    Login { user: String, password: String },
    Helper { name: String, server: String },
    Nothing,
}

impl Own {
    /// # Errors
    /// Why the file is of no use. It is read again when it is needed, since passwords change.
    pub(super) fn new(config: Option<PathBuf>, given: Option<Login>) -> Result<Self, ConfigError> {
        if let Some(path) = &config {
            let read = std::fs::read(path).map_err(|error| error.to_string());
            read.and_then(|bytes| parse(&bytes))
                .map_err(|why| ConfigError::DockerConfig { path: path.clone(), why })?;
        }
        Ok(Self { config, given, known: Mutex::default(), tokens: Tokens::default() })
    }

    pub(super) fn is_there(&self) -> bool {
        self.config.is_some() || self.given.is_some()
    }

    /// An `Authorization: Basic` header for a registry; `None` when there is nothing for it.
    ///
    /// # Errors
    /// [`OriginError::Refused`]: the file can't be read, or the helper failed. It names the file or the helper, and no secret.
    pub(super) async fn login(&self, registry: &Registry) -> Result<Option<HeaderValue>, OriginError> {
        let refused = |why: String| OriginError::Refused { registry: registry.to_string(), why };
        if let Some(login) = &self.given {
            return basic(&login.user, &login.password).map(Some).map_err(refused);
        }
        let Some(path) = &self.config else { return Ok(None) };
        if let Some((header, since)) = self.known.lock().get(registry)
            && since.elapsed() < LIFE
        {
            return Ok(Some(header.clone()));
        }
        let config = read(path).await.map_err(|why| refused(format!("docker config {}: {why}", path.display())))?;
        let found = find(&config, &registry.to_string())
            .map_err(|why| refused(format!("docker config {}: {why}", path.display())))?;
        let (user, password) = match found {
            Found::Nothing => return Ok(None),
            Found::Login { user, password } => (user, password),
            Found::Helper { name, server } => {
                let asked = ask(&name, &server).await;
                asked.map_err(|why| refused(format!("docker-credential-{name}: {why}")))?
            }
        };
        let header = basic(&user, &password).map_err(refused)?;
        self.known.lock().insert(registry.clone(), (header.clone(), Instant::now()));
        Ok(Some(header))
    }

    /// The registry takes this login no more.
    pub(super) fn forget(&self, registry: &Registry) {
        self.known.lock().remove(registry);
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    let mut header = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
        .map_err(|_| "a user name or password that fits no header".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

async fn read(path: &Path) -> Result<DockerConfig, String> {
    let size = tokio::fs::metadata(path).await.map_err(|error| error.to_string())?.len();
    if size > LARGEST_CONFIG {
        return Err(format!("has {size} bytes, more than {LARGEST_CONFIG}"));
    }
    parse(&tokio::fs::read(path).await.map_err(|error| error.to_string())?)
}

fn parse(bytes: &[u8]) -> Result<DockerConfig, String> {
    // The parser's own words could quote what it did not understand.
    serde_json::from_slice(bytes)
        .map_err(|error| format!("is not a docker config (line {}, column {})", error.line(), error.column()))
}

/// What stands for a registry: its helper, its login, or the helper for all.
fn find(config: &DockerConfig, registry: &str) -> Result<Found, String> {
    let means = |key: &&String| host_of(key) == registry || (registry == "docker.io" && key.as_str() == DOCKER_HUB);
    if let Some(key) = config.cred_helpers.keys().find(means) {
        return Ok(Found::Helper { name: config.cred_helpers[key].clone(), server: key.clone() });
    }
    let key = config.auths.keys().find(means);
    if let Some(name) = config.creds_store.as_ref().filter(|name| !name.is_empty()) {
        let server = key.cloned().unwrap_or_else(|| match registry {
            "docker.io" => DOCKER_HUB.to_owned(),
            other => other.to_owned(),
        });
        return Ok(Found::Helper { name: name.clone(), server });
    }
    let Some(key) = key else { return Ok(Found::Nothing) };
    let auth = &config.auths[key];
    if !auth.identitytoken.is_empty() {
        return Err(format!("auths.{key:?}.identitytoken is not supported; use a user name and a password"));
    }
    if !auth.username.is_empty() {
        return Ok(Found::Login { user: auth.username.clone(), password: auth.password.clone() });
    }
    let wrong = || format!("auths.{key:?}.auth is not the base64 of user:password");
    let text = BASE64_STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or_else(wrong)?;
    let (user, password) = text.split_once(':').ok_or_else(wrong)?;
    Ok(Found::Login { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// `https://registry.example/v2/` is of `registry.example`.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or_default()
}

async fn ask(name: &str, server: &str) -> Result<(String, String), String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err("is not the name of a credential helper".into());
    }
    ask_at(Path::new(&format!("docker-credential-{name}")), server).await
}

/// User name and secret that a helper has for a server.
pub(super) async fn ask_at(program: &Path, server: &str) -> Result<(String, String), String> {
    let mut helper = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // What a helper complains of may hold what it was asked to keep.
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("start it: {error}"))?;
    let mut input = helper.stdin.take().expect("it was asked for");
    let asking = async {
        // A helper that does not read what it is asked ends by itself.
        let _ = input.write_all(server.as_bytes()).await;
        drop(input);
        helper.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_TIMEOUT, asking)
        .await
        .map_err(|_| format!("no answer within {HELPER_TIMEOUT:?}"))?
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("it has nothing for {server} ({})", output.status));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|_| "its answer is not a credential")?;
    if answer.username == IDENTITY_TOKEN {
        return Err("it gives an identity token, which is not supported".into());
    }
    Ok((answer.username, answer.secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> DockerConfig {
        serde_json::from_str(json).unwrap()
    }

    fn login(json: &str, registry: &str) -> Option<(String, String)> {
        match find(&config(json), registry).unwrap() {
            Found::Login { user, password } => Some((user, password)),
            Found::Helper { name, server } => Some((format!("helper {name}"), server)),
            Found::Nothing => None,
        }
    }

    fn pair(a: &str, b: &str) -> Option<(String, String)> {
        Some((a.into(), b.into()))
    }

    #[test]
    fn finds_what_docker_login_wrote() {
        // base64 of `me:pass:word`
        let auths = r#"{"auths":{"r.example:5000":{"auth":"bWU6cGFzczp3b3Jk"},"https://index.docker.io/v1/":{"auth":"bWU6cGFzczp3b3Jk"},
            "https://s.example/v2/":{"username":"you","password":"p"}}}"#;
        assert_eq!(login(auths, "r.example:5000"), pair("me", "pass:word"));
        assert_eq!(login(auths, "docker.io"), pair("me", "pass:word"));
        assert_eq!(login(auths, "s.example"), pair("you", "p"));
        assert_eq!(login(auths, "r.example"), None);
        assert_eq!(login("{}", "r.example"), None);
    }

    #[test]
    fn a_helper_for_one_registry_outranks_the_one_for_all() {
        let json =
            r#"{"credsStore":"pass","credHelpers":{"ecr.example":"ecr-login"},"auths":{"https://r.example":{}}}"#;
        assert_eq!(login(json, "ecr.example"), pair("helper ecr-login", "ecr.example"));
        assert_eq!(login(json, "r.example"), pair("helper pass", "https://r.example"));
        assert_eq!(login(json, "docker.io"), pair("helper pass", DOCKER_HUB));
    }

    #[test]
    fn what_makes_no_sense_is_named_without_its_secret() {
        for json in [
            r#"{"auths":{"r":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"r":{"auth":"secret!"}}}"#,
            r#"{"auths":{"r":{"identitytoken":"secret"}}}"#,
        ] {
            let said = find(&config(json), "r").err().unwrap();
            assert!(said.contains(r#"auths."r"."#) && !said.contains("secret"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_docker_config_is_named_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "{}").unwrap();
        let own = Own::new(Some(path.clone()), None).unwrap();
        std::fs::write(&path, r#"{"auths": secret"#).unwrap();
        let at_start = Own::new(Some(path.clone()), None).err().unwrap().to_string();
        assert!(at_start.starts_with("origin.docker_config: ") && !at_start.contains("secret"), "{at_start}");
        assert!(Own::new(Some(folder.path().join("gone")), None).is_err());
        let said = own.login(&"r.example".parse().unwrap()).await.unwrap_err().to_string();
        assert!(said.contains(&path.display().to_string()) && !said.contains("secret"), "{said}");
    }

    #[tokio::test]
    async fn names_of_helpers_that_lead_elsewhere_are_refused() {
        for name in ["", "../../bin/sh", "a b", "x/y"] {
            assert_eq!(ask(name, "r").await.unwrap_err(), "is not the name of a credential helper");
        }
        assert!(ask("surely-not-installed", "r").await.unwrap_err().starts_with("start it"));
    }
}
