//! `WWW-Authenticate`, as registries and RFC 9110 section 11.6.1 write it. Pure.

use http::HeaderValue;

/// Where an anonymous token is had, by a `Bearer` challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) realm: String,
    pub(super) service: Option<String>,
}

/// The first usable `Bearer` challenge among all headers.
pub(super) fn bearer<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Bearer> {
    headers.into_iter().filter_map(|header| header.to_str().ok()).flat_map(parse).find_map(|challenge| {
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let find = |name: &str| {
            challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        Some(Bearer { realm: find("realm")?, service: find("service").filter(|service| !service.is_empty()) })
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    params: Vec<(String, String)>,
}

/// Every challenge of one header. What makes no sense is skipped up to the next comma.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut at = Cursor(header);
    loop {
        at.skip(|c| c == ',' || c.is_ascii_whitespace());
        if at.0.is_empty() {
            return challenges;
        }
        let word = at.take(is_token);
        if word.is_empty() {
            at.skip(|c| c != ',');
            continue;
        }
        // `word =` continues the challenge before; a word and then anything else opens a new one.
        let mut ahead = Cursor(at.0);
        ahead.skip(|c| c.is_ascii_whitespace());
        if let (Some(rest), Some(open)) = (ahead.0.strip_prefix('='), challenges.last_mut()) {
            at = Cursor(rest);
            at.skip(|c| c.is_ascii_whitespace());
            open.params.push((word.to_owned(), at.value()));
            at.skip(|c| c != ',');
        } else {
            challenges.push(Challenge { scheme: word.to_owned(), params: Vec::new() });
            if ahead.0.starts_with('=') {
                at.skip(|c| c != ',');
            } else {
                skip_token68(&mut at);
            }
        }
    }
}

/// `Negotiate YIIJvw==`: base64 in place of parameters.
fn skip_token68(at: &mut Cursor<'_>) {
    let mut ahead = Cursor(at.0);
    ahead.skip(|c| c.is_ascii_whitespace());
    let word = ahead.take(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
    ahead.skip(|c| c == '=');
    if !word.is_empty() && (ahead.0.is_empty() || ahead.0.starts_with(',')) {
        *at = ahead;
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn take(&mut self, of: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !of(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn skip(&mut self, of: impl Fn(char) -> bool) {
        self.take(of);
    }

    /// A token or a quoted string; an unclosed quote reaches to the end.
    fn value(&mut self) -> String {
        let Some(quoted) = self.0.strip_prefix('"') else {
            // Wider than a token: some write an URL without quotes.
            return self.take(|c| c != ',' && !c.is_ascii_whitespace()).to_owned();
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &quoted[at + 1..];
                    return value;
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                c => value.push(c),
            }
        }
        self.0 = "";
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(headers: &[&str]) -> Option<Bearer> {
        let headers: Vec<HeaderValue> = headers.iter().map(|h| HeaderValue::from_str(h).unwrap()).collect();
        bearer(&headers)
    }

    fn at(realm: &str, service: Option<&str>) -> Option<Bearer> {
        Some(Bearer { realm: realm.into(), service: service.map(String::from) })
    }

    #[test]
    fn reads_the_challenges_of_real_registries() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(of(&[hub]), at("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(of(&[r#"bearer Realm="https://x/t""#]), at("https://x/t", None));
        assert_eq!(of(&[r#"Bearer realm=https://x/t, service = "s""#]), at("https://x/t", Some("s")));
    }

    #[test]
    fn finds_bearer_among_several_schemes_and_headers() {
        assert_eq!(of(&[r#"Basic realm="b", Bearer realm="t", service="s""#]), at("t", Some("s")));
        assert_eq!(of(&[r#"Negotiate YIIJ==, Bearer realm="t""#]), at("t", None));
        assert_eq!(of(&[r#"Negotiate, Bearer realm="t""#]), at("t", None));
        assert_eq!(of(&[r#"Basic realm="b""#, r#"Bearer realm="t""#]), at("t", None));
        assert_eq!(of(&[r#"Digest realm="Bearer realm=\"no\"", nonce="1""#]), None);
        assert_eq!(of(&[r#"Basic realm="b""#]), None);
        assert_eq!(of(&["Bearer", "Bearer service=s"]), None);
    }

    #[test]
    fn unescapes_quoted_strings() {
        assert_eq!(of(&[r#"Bearer realm="a\"b,c\\d",service="s""#]), at(r#"a"b,c\d"#, Some("s")));
        assert_eq!(of(&[r#"Bearer realm="open"#]), at("open", None));
    }

    proptest! {
        #[test]
        fn never_panics(text in r#"[ -~]{0,60}|(Bearer|realm|=|"|,| |\\|x)*"#) {
            if let Ok(header) = HeaderValue::from_str(&text) {
                let _ = bearer([&header]);
            }
        }

        #[test]
        fn reads_back_what_was_quoted(realm in "[ -~]{1,20}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let header = HeaderValue::from_str(&format!("Basic realm=\"x\", Bearer realm=\"{quoted}\"")).unwrap();
            prop_assert_eq!(bearer([&header]).unwrap().realm, realm);
        }
    }
}
