//! The registry's token server (Docker's token specification): it gives anyone a token to pull what is open, users one to pull what
//! is theirs, and the lab one to push.
//!
//! `ghcr.io` and others always challenge, so the lab's registry does too: that is the way pulls go in the field.
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    routing::get,
};
use base64::Engine as _;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

use crate::{
    rights::{Caller, Rights},
    tls::Leaf,
};

/// Who signs, as registry and token server agree.
pub const ISSUER: &str = "shoal-lab";
/// The registry's name in tokens.
pub const SERVICE: &str = "registry.shoal.test";
/// The token server's port, beside the registry.
pub const PORT: u16 = 5001;
/// Seconds for which a token is good.
const LIFE: u64 = 300;

#[derive(Serialize)]
struct Access {
    r#type: String,
    name: String,
    actions: Vec<String>,
}

#[derive(Serialize)]
struct Claims {
    iss: &'static str,
    sub: String,
    aud: &'static str,
    exp: u64,
    nbf: u64,
    iat: u64,
    jti: String,
    access: Vec<Access>,
}

/// Signs tokens with the key of a certificate that the registry's bundle vouches for.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    chain: Vec<String>,
}

impl Signer {
    /// Signs with the leaf's key; the registry finds the certificate in each token (`x5c`).
    ///
    /// # Errors
    /// When the key is not of P-256.
    pub fn new(leaf: &Leaf) -> Result<Self> {
        let key = EncodingKey::from_ec_pem(leaf.key_pem.as_bytes()).context("read the signing key")?;
        Ok(Self { key, chain: vec![base64::engine::general_purpose::STANDARD.encode(&leaf.der)] })
    }

    /// A token for the actions on a repository, good for five minutes.
    ///
    /// # Errors
    /// When signing fails.
    pub fn token(&self, repository: &str, actions: &[&str]) -> Result<String> {
        self.sign("", vec![pull_of(repository, actions)], 0)
    }

    /// A token to pull, whose five minutes were over a while ago.
    ///
    /// # Errors
    /// When signing fails.
    pub fn stale(&self, repository: &str) -> Result<String> {
        self.sign("", vec![pull_of(repository, &["pull"])], 2 * LIFE)
    }

    fn sign(&self, user: &str, access: Vec<Access>, ago: u64) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_secs() - ago;
        let claims = Claims {
            iss: ISSUER,
            sub: user.to_owned(),
            aud: SERVICE,
            exp: now + LIFE,
            nbf: now - 5,
            iat: now,
            jti: hex::encode(rand::random::<[u8; 16]>()),
            access,
        };
        let mut header = Header::new(Algorithm::ES256);
        header.x5c = Some(self.chain.clone());
        jsonwebtoken::encode(&header, &claims, &self.key).context("sign a token")
    }
}

fn pull_of(repository: &str, actions: &[&str]) -> Access {
    let actions = actions.iter().map(|action| (*action).to_owned()).collect();
    Access { r#type: "repository".into(), name: repository.into(), actions }
}

/// Gives tokens by rights, and notes each. Clones are the same desk.
#[derive(Clone)]
pub struct Desk {
    signer: Signer,
    rights: Rights,
    /// Tokens of users, not of nobody in particular.
    given: Arc<Mutex<Vec<String>>>,
}

impl Desk {
    /// A desk that goes by these rights.
    pub(crate) fn new(signer: Signer, rights: Rights) -> Self {
        Self { signer, rights, given: Arc::default() }
    }

    /// Who signs.
    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// A token to pull from a repository, for whoever shows that `Authorization` header; one for nothing where he may not. `None`:
    /// the password is wrong.
    ///
    /// # Errors
    /// When signing fails.
    pub fn token(&self, authorization: Option<&str>, repository: &str) -> Result<Option<String>> {
        self.give(authorization, vec![pull_of(repository, &["pull"])])
    }

    /// Every token that a user was given so far.
    pub fn given_to_users(&self) -> Vec<String> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn give(&self, authorization: Option<&str>, mut access: Vec<Access>) -> Result<Option<String>> {
        let caller = self.rights.caller(authorization);
        let user = match &caller {
            Caller::Wrong => return Ok(None),
            Caller::User(name) => name.as_str(),
            Caller::Anonymous => "",
        };
        // As registries do: a token for nothing, which the registry itself then does not take.
        access.iter_mut().filter(|one| !self.rights.may_pull(&caller, &one.name)).for_each(|one| one.actions.clear());
        let token = self.signer.sign(user, access, 0)?;
        if !user.is_empty() {
            self.given.lock().unwrap_or_else(PoisonError::into_inner).push(token.clone());
        }
        Ok(Some(token))
    }
}

/// The server; it ends when dropped.
pub struct TokenServer {
    accepting: JoinHandle<()>,
}

impl TokenServer {
    /// Serves `/token` over TLS on the listener.
    ///
    /// # Errors
    /// When the certificate can't be used.
    pub fn spawn(listener: TcpListener, leaf: &Leaf, desk: Desk) -> Result<Self> {
        let tls = tokio_rustls::TlsAcceptor::from(leaf.server()?);
        let router = Router::new().route("/token", get(give)).with_state(Arc::new(desk));
        let accepting = tokio::spawn(async move {
            // Ends with the server: one that is gone answers on no connection.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((stream, from)) = listener.accept() => {
                        connections.spawn(serve(stream, from, tls.clone(), router.clone()));
                    }
                    Some(_) = connections.join_next(), if !connections.is_empty() => {}
                }
            }
        });
        Ok(Self { accepting })
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: tokio::net::TcpStream, from: SocketAddr, tls: tokio_rustls::TlsAcceptor, router: Router) {
    let stream = match tls.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%from, %error, "token server: no TLS"),
    };
    let service = TowerToHyperService::new(router);
    if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    {
        tracing::debug!(%from, %error, "token server: connection");
    }
}

/// Gives the pull part of what is asked for: the answer to a scope with `push` is a token that only pulls.
async fn give(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Json<serde_json::Value>, (StatusCode, String)> {
    let access = asked_scopes(query.as_deref().unwrap_or_default());
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = desk.give(authorization, access);
    let token = token.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let token = token.ok_or_else(|| (StatusCode::UNAUTHORIZED, "no such user, or not his password".to_owned()))?;
    Ok(Json(serde_json::json!({ "token": token, "access_token": token, "expires_in": LIFE })))
}

fn asked_scopes(query: &str) -> Vec<Access> {
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .flat_map(|value| percent_decode(value).split(' ').map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let pulls = actions.split(',').any(|action| action == "pull");
            let actions = if pulls { vec!["pull".to_owned()] } else { Vec::new() };
            (kind == "repository").then(|| Access { r#type: kind.into(), name: name.into(), actions })
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match (bytes[at], hex.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_understood_encoded_or_not_and_push_is_never_given() {
        for query in
            ["service=x&scope=repository%3Alab%2Fdemo%3Apull%2Cpush", "scope=repository:lab/demo:pull,push&a=b"]
        {
            let scopes = asked_scopes(query);
            assert_eq!(scopes.len(), 1, "{query}");
            assert_eq!(scopes[0].name, "lab/demo");
            assert_eq!(scopes[0].actions, ["pull"]);
        }
    }

    #[test]
    fn a_scope_that_is_no_repository_gives_nothing() {
        assert!(asked_scopes("scope=registry:catalog:*").is_empty());
        assert!(asked_scopes("").is_empty());
    }
}
