//! What `shoalctl preheat …` sends along for a registry.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Error;
use super::super::cli::PreheatLogin;

/// Of docker's `config.json`.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, Auth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
}

/// What is sent along for the registry. Passwords come from files and pipes, never from an argument, which everybody on the machine may
/// read.
pub(super) fn login_for(login: &PreheatLogin, image: &str) -> Result<Option<Value>, Error> {
    if let Some(user) = &login.user {
        let mut password = String::new();
        let read = std::io::stdin().read_to_string(&mut password);
        read.map_err(|error| Error::Refused(format!("--password-stdin: {error}")))?;
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(Error::Refused("--password-stdin: nothing came on standard input".to_owned()));
        }
        return Ok(Some(json!({ "user": user, "password": password })));
    }
    let Some(path) = &login.docker_config else { return Ok(None) };
    let (user, password) = from_docker_config(path, registry(image))
        .map_err(|why| Error::Refused(format!("--docker-config {}: {why}", path.display())))?;
    Ok(Some(json!({ "user": user, "password": password })))
}

/// The registry of an image: its first part, if that is a host.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn from_docker_config(path: &Path, registry: &str) -> Result<(String, String), String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    // The parser's own words could quote what it did not understand.
    let config: DockerConfig = serde_json::from_slice(&text)
        .map_err(|error| format!("is not a docker config (line {}, column {})", error.line(), error.column()))?;
    let means = |key: &str| {
        let host = key.trim_start_matches("https://").trim_start_matches("http://").split('/').next();
        host == Some(registry) || (registry == "docker.io" && host == Some("index.docker.io"))
    };
    let found = config.auths.into_iter().find(|(key, _)| means(key));
    let (key, auth) =
        found.ok_or_else(|| format!("has no `auths` of {registry}; credential helpers are not asked here"))?;
    if !auth.username.is_empty() {
        return Ok((auth.username, auth.password));
    }
    let text = BASE64_STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.split_once(':'));
    let (user, password) = pair.ok_or_else(|| format!("auths.{key:?}.auth is not the base64 of user:password"))?;
    Ok((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_the_registry_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let auth = BASE64_STANDARD.encode("hub:p:w");
        let text = json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": auth },
            "registry.example:5000": { "username": "u", "password": "p" },
            "broken.example": { "auth": "%%%" },
        }});
        std::fs::write(&path, text.to_string()).unwrap();
        let login = |image: &str| from_docker_config(&path, registry(image));
        assert_eq!(login("alpine:3"), Ok(("hub".into(), "p:w".into())));
        assert_eq!(login("library/alpine"), Ok(("hub".into(), "p:w".into())));
        assert_eq!(login("registry.example:5000/a/b:1"), Ok(("u".into(), "p".into())));
        assert!(login("other.example/a").unwrap_err().contains("other.example"));
        assert!(login("broken.example/a").unwrap_err().contains("base64"));
        std::fs::write(&path, "{ \"auths\": planted-secret").unwrap();
        let why = login("alpine").unwrap_err();
        assert!(why.contains("line 1") && !why.contains("planted-secret"), "{why}");
    }
}
