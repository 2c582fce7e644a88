//! What the address of a page asks for, and what pages have in common that ask for something.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts as Head;

use super::ask::{Answer, encoded};

/// What the address of a page asks for. What is empty was left open in a form.
#[derive(Default)]
pub(super) struct Search(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Search {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut Head, _: &S) -> Result<Self, Infallible> {
        let asked = Query::<BTreeMap<String, String>>::try_from_uri(&head.uri);
        let mut asked = asked.map(|Query(asked)| asked).unwrap_or_default();
        asked.remove("do");
        Ok(Self(asked).filled())
    }
}

impl Search {
    /// Without what was left open.
    pub(super) fn filled(mut self) -> Self {
        self.0.retain(|_, value| !value.trim().is_empty());
        self
    }

    /// What is said of these names.
    pub(super) fn of(asked: &[(&str, &str)]) -> Self {
        Self(asked.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// Nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// The address with what is asked for.
    pub(super) fn on(&self, path: &str) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }

    /// The address of the next page; empty: this was the last.
    pub(super) fn next(&self, path: &str, answer: &Answer) -> String {
        let Some(next) = answer.body["next"].as_str() else { return String::new() };
        let mut further = self.0.clone();
        further.insert("after".to_owned(), next.to_owned());
        Self(further).on(path)
    }
}

/// A digest in a table.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

/// What a filter may be, and any.
pub(super) fn choice(values: &[&str]) -> Vec<(String, String)> {
    let any = (String::new(), "any".to_owned());
    std::iter::once(any).chain(values.iter().map(|value| ((*value).to_owned(), (*value).to_owned()))).collect()
}
