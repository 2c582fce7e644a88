//! Lists in pages. A cursor is the key of the last item of a page, so that what comes and goes between two pages moves nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::problem::Problem;

/// Items of a page, unless the caller says otherwise.
pub(super) const DEFAULT_LIMIT: u32 = 100;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct List<T> {
    /// What was found.
    pub(super) items: Vec<T>,
    /// Give it as `after` to read on; null: that was all.
    #[schema(required = true)]
    pub(super) next: Option<String>,
    /// How many there are on all pages together; null: that is not counted.
    #[schema(minimum = 0, required = true)]
    pub(super) total: Option<usize>,
}

impl<T> List<T> {
    /// The same list of something else.
    pub(super) fn map<U>(self, view: impl FnMut(T) -> U) -> List<U> {
        List { items: self.items.into_iter().map(view).collect(), next: self.next, total: self.total }
    }

    /// The same list, of which it is known how long it is.
    pub(super) fn of(self, total: usize) -> Self {
        Self { total: Some(total), ..self }
    }
}

/// Which page.
pub(super) struct Page<'a> {
    /// Items at most.
    pub(super) limit: Option<u32>,
    /// The cursor.
    pub(super) after: Option<&'a str>,
}

impl Page<'_> {
    /// Items at most.
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT) as usize
    }

    /// The key behind which to read on.
    ///
    /// # Errors
    /// A cursor that this list did not give.
    pub(super) fn after<K: DeserializeOwned>(&self) -> Result<Option<K>, Problem> {
        let Some(text) = self.after else { return Ok(None) };
        let key = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        key.map(Some).ok_or_else(|| Problem::field("after", "is not what this list gave as `next`".to_owned()))
    }

    /// The page of a list that is in the order of its keys, each of which is there once.
    ///
    /// # Errors
    /// As [`Page::after`].
    pub(super) fn of<T, K>(&self, items: Vec<T>, key: impl Fn(&T) -> K) -> Result<List<T>, Problem>
    where
        K: Ord + Serialize + DeserializeOwned,
    {
        let (after, total): (Option<K>, usize) = (self.after()?, items.len());
        let rest = items.into_iter().filter(|item| after.as_ref().is_none_or(|after| key(item) > *after));
        Ok(self.first(rest.take(self.limit() + 1).collect(), key).of(total))
    }

    /// The page of items that start where it starts: one more than it may have, if there are as many.
    pub(super) fn first<T, K: Serialize>(&self, mut items: Vec<T>, key: impl Fn(&T) -> K) -> List<T> {
        let more = items.len() > self.limit();
        items.truncate(self.limit());
        let next = items.last().filter(|_| more).map(|last| cursor(&key(last)));
        List { items, next, total: None }
    }
}

/// A cursor for a key.
pub(super) fn cursor(key: &impl Serialize) -> String {
    let text = serde_json::to_vec(key).expect("keys are texts and numbers");
    URL_SAFE_NO_PAD.encode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_show_each_item_once_whatever_goes_in_between() {
        let all: Vec<u32> = (0..10).collect();
        let mut seen = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = Page { limit: Some(3), after: after.as_deref() };
            // What was the last of the page before is gone.
            let left = all.iter().copied().filter(|n| seen.last() != Some(n)).collect();
            let List { items, next, total } = page.of(left, |n| *n).unwrap();
            assert!(items.len() <= 3);
            assert_eq!(total, Some(if seen.is_empty() { 10 } else { 9 }), "of all pages, whichever this is");
            seen.extend(items);
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_cursor_of_another_list_is_refused() {
        for after in ["", "nonsense", &cursor(&("a", 1)), "%%%"] {
            let page = Page { limit: None, after: Some(after) };
            assert!(page.after::<(String, String, String)>().is_err(), "{after:?}");
        }
    }
}
