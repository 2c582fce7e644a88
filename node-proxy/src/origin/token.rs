//! Tokens, anonymous ones and those for credentials of this node's own, by the Docker token authentication specification: one
//! per registry and repository, until it expires.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::challenge::{self, Bearer};
use super::metrics::Asked;
use super::request::{Outgoing, Sent, unreachable};
use super::site::Site;
use super::{Origin, OriginError, Target};

/// The specification's default when the answer names none.
const USUAL_LIFE: u64 = 60;
/// A token that is about to expire is not used: the request has to travel. At most half of its life.
const SLACK: Duration = Duration::from_secs(10);
/// No token server hands out more.
const LARGEST_ANSWER: usize = 256 << 10;
/// Repositories remembered before those without a live token are dropped.
const MOST_SLOTS: usize = 1024;

#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<Target, Arc<Slot>>>);

/// What is known of one repository. The lock of `token` is held while one is fetched, so that one request does for all.
#[derive(Default)]
pub(super) struct Slot {
    token: tokio::sync::Mutex<Option<Token>>,
    /// The challenge to a request without any token, to be relayed as it was.
    challenges: Mutex<Vec<HeaderValue>>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

impl Tokens {
    fn slot(&self, target: &Target) -> Arc<Slot> {
        let mut slots = self.0.lock();
        if slots.len() >= MOST_SLOTS && !slots.contains_key(target) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.is_live());
            if slots.len() >= MOST_SLOTS {
                return Arc::default();
            }
        }
        Arc::clone(slots.entry(target.clone()).or_default())
    }
}

impl Slot {
    fn is_live(&self) -> bool {
        self.token.try_lock().is_ok_and(|token| token.as_ref().is_some_and(Token::is_live))
    }
}

impl Token {
    fn is_live(&self) -> bool {
        Instant::now() < self.until
    }
}

impl Origin {
    /// Sends a request with an anonymous token, if the registry wants one.
    pub(super) async fn send_anonymous(
        &self,
        site: &Site,
        target: &Target,
        request: Outgoing,
    ) -> Result<Sent, OriginError> {
        self.send_with_token(site, target, request, &self.tokens, None).await
    }

    /// Sends a request with this node's own credentials: a token for them, or themselves, as the registry wants it.
    pub(super) async fn send_own(&self, site: &Site, target: &Target, request: Outgoing) -> Result<Sent, OriginError> {
        let login = self.own.login(&target.registry).await?;
        let login = login
            .ok_or_else(|| OriginError::Unauthorized { registry: site.registry.to_string(), challenges: Vec::new() })?;
        let sent = self.send_with_token(site, target, request, &self.own.tokens, Some(&login)).await;
        if matches!(sent, Err(OriginError::Unauthorized { .. })) {
            self.own.forget(&target.registry);
        }
        sent
    }

    /// What is to be shown to a registry that answered with these challenges, as a client of its own has to: a token for the
    /// login of the docker config, or the login itself; `None`: nothing is known that could help.
    ///
    /// # Errors
    /// The docker config, or the token service.
    pub async fn answer(
        &self,
        target: &Target,
        challenges: Vec<HeaderValue>,
    ) -> Result<Option<HeaderValue>, OriginError> {
        let (site, login) = (self.site(&target.registry), self.own.login(&target.registry).await?);
        let Some(bearer) = challenge::bearer(&challenges) else { return Ok(login) };
        let slot = Slot { challenges: Mutex::new(challenges), ..Slot::default() };
        let renewing = Renewing { site: &site, target, slot: &slot, bearer: &bearer, login: login.as_ref() };
        self.renew(renewing, None).await.map(Some)
    }

    async fn send_with_token(
        &self,
        site: &Site,
        target: &Target,
        request: Outgoing,
        tokens: &Tokens,
        login: Option<&HeaderValue>,
    ) -> Result<Sent, OriginError> {
        let slot = tokens.slot(target);
        let known = slot.token.lock().await.clone().filter(Token::is_live);
        let used = known.map(|token| token.header);
        let sent = self.send(site, request.clone(), used.clone()).await?;
        let refused = match sent.response.status() {
            StatusCode::UNAUTHORIZED if !sent.away => sent,
            StatusCode::FORBIDDEN if !sent.away => return Err(unauthorized(site, &slot, &sent)),
            _ => return Ok(sent),
        };
        let challenges = challenges_of(&refused);
        if used.is_none() || slot.challenges.lock().is_empty() {
            *slot.challenges.lock() = challenges.clone();
        }
        let Some(bearer) = challenge::bearer(&challenges) else {
            let Some(login) = login else { return Err(unauthorized(site, &slot, &refused)) };
            drop(refused);
            return accepted(site, &slot, self.send(site, request, Some(login.clone())).await?);
        };
        drop(refused);
        if used.is_some() {
            tracing::info!(registry = %target.registry, repository = %target.repository, "the registry takes this token no more; asking for another");
        }
        let renewing = Renewing { site, target, slot: &slot, bearer: &bearer, login };
        let token = self.renew(renewing, used.as_ref()).await?;
        accepted(site, &slot, self.send(site, request, Some(token)).await?)
    }

    /// A token other than `used`, fetched unless somebody else just did.
    async fn renew(&self, of: Renewing<'_>, used: Option<&HeaderValue>) -> Result<HeaderValue, OriginError> {
        let slot = of.slot;
        let mut token = slot.token.lock().await;
        if let Some(token) = token.as_ref().filter(|token| token.is_live() && Some(&token.header) != used) {
            return Ok(token.header.clone());
        }
        *token = None;
        let since = Instant::now();
        let fetched = self.fetch_token(of).await;
        self.metrics.asked(Asked::Token, &fetched, since.elapsed());
        let fetched = fetched.map_err(|error| match error {
            // The token service says no: it is the registry's challenge that the caller must answer.
            OriginError::Denied { registry } => {
                OriginError::Unauthorized { registry, challenges: slot.challenges.lock().clone() }
            }
            error => error,
        })?;
        let header = fetched.header.clone();
        *token = Some(fetched);
        Ok(header)
    }

    async fn fetch_token(&self, of: Renewing<'_>) -> Result<Token, OriginError> {
        let Renewing { site, target, bearer, login, .. } = of;
        let nonsense = |why: &str| OriginError::Nonsense { registry: site.registry.to_string(), why: why.to_owned() };
        // A realm that is no URL gives no token here; the registry's challenge goes to the caller, who may know better.
        let no_realm = || OriginError::Denied { registry: site.registry.to_string() };
        let url = token_url(bearer, target).ok_or_else(no_realm)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let request = Outgoing { method: Method::GET, url, headers, follow: true };
        let sent = self.send(site, request, login.cloned()).await?;
        match sent.response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
                return Err(OriginError::Denied { registry: site.registry.to_string() });
            }
            _ => return Err(super::request::judge(site, &sent, None)),
        }
        let bytes =
            http_body_util::BodyExt::collect(http_body_util::Limited::new(sent.response.into_body(), LARGEST_ANSWER))
                .await
                .map_err(|error| unreachable(site, &format!("the token's body broke: {error}")))?
                .to_bytes();
        read_token(&bytes).ok_or_else(|| nonsense("the token service sent no token"))
    }
}

/// What a request for a token needs.
#[derive(Clone, Copy)]
struct Renewing<'a> {
    site: &'a Site,
    target: &'a Target,
    slot: &'a Slot,
    bearer: &'a Bearer,
    /// `None`: an anonymous one.
    login: Option<&'a HeaderValue>,
}

fn accepted(site: &Site, slot: &Slot, sent: Sent) -> Result<Sent, OriginError> {
    match sent.response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !sent.away => Err(unauthorized(site, slot, &sent)),
        _ => Ok(sent),
    }
}

fn challenges_of(sent: &Sent) -> Vec<HeaderValue> {
    sent.response.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect()
}

fn unauthorized(site: &Site, slot: &Slot, sent: &Sent) -> OriginError {
    let known = slot.challenges.lock().clone();
    let challenges = if known.is_empty() { challenges_of(sent) } else { known };
    OriginError::Unauthorized { registry: site.registry.to_string(), challenges }
}

/// `realm?service=…&scope=repository:<repository>:pull`
fn token_url(bearer: &Bearer, target: &Target) -> Option<Uri> {
    let mut url = bearer.realm.split('#').next()?.to_owned();
    let mut add = |name: &str, value: &str| {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(name);
        url.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                    url.push(byte.into())
                }
                _ => url.push_str(&format!("%{byte:02X}")),
            }
        }
    };
    if let Some(service) = &bearer.service {
        add("service", service);
    }
    add("scope", &format!("repository:{}:pull", target.repository));
    url.parse::<Uri>().ok().filter(|url| url.scheme().is_some() && url.host().is_some())
}

#[derive(serde::Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

fn read_token(bytes: &[u8]) -> Option<Token> {
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let text =
        answer.token.filter(|token| !token.is_empty()).or(answer.access_token.filter(|token| !token.is_empty()))?;
    let mut header = HeaderValue::try_from(format!("Bearer {text}")).ok()?;
    header.set_sensitive(true);
    // The service's clock is not ours: its `issued_at` is left alone, and a day is the most that is believed.
    let life = Duration::from_secs(answer.expires_in.filter(|life| *life > 0).unwrap_or(USUAL_LIFE).min(86_400));
    Some(Token { header, until: Instant::now() + life - SLACK.min(life / 2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_the_realm_for_pull_of_one_repository() {
        let target = Target { registry: "r.example".parse().unwrap(), repository: "a/b".parse().unwrap() };
        let url = |realm: &str, service: Option<&str>| {
            token_url(&Bearer { realm: realm.into(), service: service.map(String::from) }, &target)
                .map(|url| url.to_string())
        };
        assert_eq!(
            url("https://auth.example/token", Some("a b&c")).unwrap(),
            "https://auth.example/token?service=a%20b%26c&scope=repository:a/b:pull"
        );
        assert_eq!(url("https://x/t?k=v", None).unwrap(), "https://x/t?k=v&scope=repository:a/b:pull");
        assert_eq!(url("/token", None), None);
        assert_eq!(url("", None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_a_minute_unless_told_otherwise() {
        let left = |json: &str| read_token(json.as_bytes()).map(|token| token.until - Instant::now());
        assert_eq!(left(r#"{"token":"t"}"#), Some(Duration::from_secs(50)));
        assert_eq!(left(r#"{"access_token":"t","expires_in":300}"#), Some(Duration::from_secs(290)));
        assert_eq!(left(r#"{"token":"","access_token":"t","expires_in":4}"#), Some(Duration::from_secs(2)));
        assert_eq!(left(r#"{"token":"a\nb"}"#), None);
        assert_eq!(left("{}"), None);
    }
}
