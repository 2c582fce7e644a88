//! containerd's filters: `labels.kind==layer,size!=0` holds when all of it does; of several filters one must hold. Pure.
//!
//! A selector is a field alone (it is there), or a field, one of `==`, `!=`, `~=` (a regular expression), and a value. The parts of
//! a field are joined by dots and may be quoted; a value is quoted by `"`, after `~=` by `/` or `|` too. Source: containerd's
//! `pkg/filters`.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// A compiled expression is not larger: a filter is a line that somebody typed.
const LARGEST_EXPRESSION: usize = 1 << 20;

/// Filters of which one must hold; none: everything does.
#[derive(Debug)]
pub(super) struct Filter(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    IsThere,
    Is(String),
    IsNot(String),
    /// `None`: what is no expression matches nothing.
    Matches(Option<Box<Regex>>),
}

/// Why a text is not a filter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {why}")]
pub(super) struct FilterError {
    filter: String,
    why: &'static str,
}

impl Filter {
    pub(super) fn parse(filters: &[String]) -> Result<Self, FilterError> {
        let parsed = filters.iter().map(|filter| {
            let mut input = Input { rest: filter.chars().peekable() };
            input.selectors().map_err(|why| FilterError { filter: filter.clone(), why })
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// `field` gives the value of a field, `None` when it is not there.
    pub(super) fn matches<'a>(&self, field: impl Fn(&[String]) -> Option<Cow<'a, str>>) -> bool {
        let holds = |selector: &Selector| {
            let value = field(&selector.path);
            match &selector.test {
                Test::IsThere => value.is_some(),
                Test::Is(wanted) => value.is_some_and(|value| value == *wanted),
                Test::IsNot(other) => value.unwrap_or_default() != *other,
                Test::Matches(expression) => {
                    expression.as_ref().is_some_and(|expression| expression.is_match(&value.unwrap_or_default()))
                }
            }
        };
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(holds))
    }
}

struct Input<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Input<'_> {
    /// An empty filter holds always.
    fn selectors(&mut self) -> Result<Vec<Selector>, &'static str> {
        let mut all = Vec::new();
        if self.peek().is_none() {
            return Ok(all);
        }
        loop {
            all.push(self.selector()?);
            match self.next() {
                None => return Ok(all),
                Some(',') => {}
                Some(_) => return Err("a comma belongs between two selectors"),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, &'static str> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.field()?);
        }
        self.peek();
        let mut operator = String::new();
        while let Some(sign @ ('=' | '!' | '~')) = self.rest.peek() {
            operator.push(*sign);
            self.rest.next();
        }
        let test = match operator.as_str() {
            "" => Test::IsThere,
            "==" => Test::Is(self.value(&['"'])?),
            "!=" => Test::IsNot(self.value(&['"'])?),
            "~=" => {
                let expression = self.value(&['"', '/', '|'])?;
                let compiled = RegexBuilder::new(&expression).size_limit(LARGEST_EXPRESSION).build();
                Test::Matches(compiled.ok().map(Box::new))
            }
            _ => return Err("an operator is ==, != or ~="),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, &'static str> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let mut field = String::new();
        while let Some(letter) = self.rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '_') {
            field.push(letter);
        }
        if field.is_empty() { Err("a field has letters, digits and _, or is quoted") } else { Ok(field) }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, &'static str> {
        match self.peek() {
            Some(quote) if quotes.contains(&quote) => return self.quoted(),
            Some('"' | '/' | '|') => return Err("these quotes belong to ~= alone"),
            _ => {}
        }
        let mut value = String::new();
        while let Some(next) = self.rest.next_if(|next| *next != ',' && !next.is_whitespace() && !next.is_control()) {
            value.push(next);
        }
        if value.is_empty() { Err("a value is missing") } else { Ok(value) }
    }

    /// A text between two of the sign that comes next, with the escapes of a Go string.
    fn quoted(&mut self) -> Result<String, &'static str> {
        let quote = self.next().ok_or("a quote is missing")?;
        let mut bytes = Vec::new();
        loop {
            match self.rest.next() {
                None | Some('\n') => return Err("a quote is not closed"),
                Some(end) if end == quote => break,
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(other) => push(&mut bytes, other),
            }
        }
        String::from_utf8(bytes).map_err(|_| "a quoted text is not UTF-8")
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), &'static str> {
        let byte = match self.rest.next().ok_or("a quote is not closed")? {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            'x' => self.number(0, 16, 2)? as u8,
            'u' | 'U' if self.rest.peek().is_none() => return Err("an escape is cut short"),
            'u' => return self.letter(4, bytes),
            'U' => return self.letter(8, bytes),
            digit @ '0'..='7' => {
                let first = digit.to_digit(8).unwrap_or_default();
                u8::try_from(self.number(first, 8, 2)?).map_err(|_| "an escape is above 255")?
            }
            other if other == quote => {
                push(bytes, other);
                return Ok(());
            }
            _ => return Err("there is no such escape"),
        };
        bytes.push(byte);
        Ok(())
    }

    fn letter(&mut self, digits: u32, bytes: &mut Vec<u8>) -> Result<(), &'static str> {
        let letter = char::from_u32(self.number(0, 16, digits)?).ok_or("an escape is no letter")?;
        push(bytes, letter);
        Ok(())
    }

    fn number(&mut self, first: u32, base: u32, digits: u32) -> Result<u32, &'static str> {
        (0..digits).try_fold(first, |number, _| {
            let digit = self.rest.next().and_then(|digit| digit.to_digit(base)).ok_or("an escape is cut short")?;
            number.checked_mul(base).map(|number| number + digit).ok_or("an escape is too large")
        })
    }

    /// Behind white space.
    fn peek(&mut self) -> Option<char> {
        while self.rest.next_if(|next| next.is_whitespace()).is_some() {}
        self.rest.peek().copied()
    }

    fn next(&mut self) -> Option<char> {
        self.peek();
        self.rest.next()
    }
}

fn push(bytes: &mut Vec<u8>, letter: char) {
    bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Whatever bytes come: a filter or an error, and a match that ends.
pub fn fuzz(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(filter) = Filter::parse(&[text.to_owned()]) {
        filter.matches(|path| path.first().map(|first| Cow::Owned(first.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holds(filter: &str) -> bool {
        let filter = Filter::parse(&[filter.to_owned()]).unwrap_or_else(|error| panic!("{error}"));
        filter.matches(|path| match path.join("/").as_str() {
            "digest" => Some("sha256:abc".into()),
            "size" => Some("17".into()),
            "labels/kind" => Some("layer, gz".into()),
            "labels/containerd.io/gc.root" => Some("now".into()),
            "labels/empty" => Some("".into()),
            _ => None,
        })
    }

    #[test]
    fn a_filter_holds_when_all_its_selectors_do() {
        for (filter, wanted) in [
            ("", true),
            ("digest", true),
            ("labels.none", false),
            ("labels.empty", true),
            ("digest==sha256:abc", true),
            ("digest==sha256:abd", false),
            ("digest!=sha256:abd", true),
            ("labels.none!=x", true),
            ("labels.none==x", false),
            ("size==17,digest~=/^sha256:/", true),
            ("size==18,digest~=/^sha256:/", false),
            ("labels.kind==\"layer, gz\"", true),
            ("labels.\"containerd.io/gc.root\"==now", true),
            ("labels.\"containerd.io/gc.root\"", true),
            ("labels.kind~=|^lay|", true),
            ("labels.kind~=\"g[yz]$\"", true),
            ("labels.kind~=/(/", false),
            ("labels.kind==\"\\x6cayer\\u002c \\147z\"", true),
            (" size == 17 , digest ", true),
        ] {
            // White space is allowed around selectors, as a person types them.
            assert_eq!(holds(filter), wanted, "{filter}");
        }
    }

    #[test]
    fn of_several_filters_one_must_hold() {
        let filter = Filter::parse(&["a==1".into(), "b==2".into()]).unwrap();
        assert!(filter.matches(|path| (path == ["b"]).then(|| "2".into())));
        assert!(!filter.matches(|path| (path == ["b"]).then(|| "1".into())));
        assert!(Filter::parse(&[]).unwrap().matches(|_| None));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for bad in
            ["a==", "a=1", "a===1", ",", "a,", "a b", "a.", "\"a", "a==\"x", "a==/x/", "a==\"\\q\"", "a==\"\\x1\"", "é"]
        {
            assert!(Filter::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_filter_or_an_error(text in ".*") {
            fuzz(text.as_bytes());
        }

        #[test]
        fn a_quoted_value_is_the_value(value in "[^\n]*", key in "[a-z./-]+") {
            let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let text = format!("labels.{}=={}", quoted(&key), quoted(&value));
            let filter = Filter::parse(std::slice::from_ref(&text)).unwrap();
            prop_assert!(filter.matches(|path| (path == ["labels", &key]).then(|| value.as_str().into())), "{}", text);
            prop_assert!(!filter.matches(|_| None));
        }
    }
}
