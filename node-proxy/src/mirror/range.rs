//! The `Range` header, as far as containerd uses it: one range of bytes.
//!
//! Source: RFC 9110 section 14.2: what does not parse, has another unit or several ranges is ignored.

use std::ops::Range;

use http::HeaderMap;

/// What a request asks of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// No range, or one that is ignored.
    Whole,
    /// `first-` and `first-last`, last inclusive.
    From(u64, Option<u64>),
    /// `-n`: the last n bytes.
    Last(u64),
    /// Well formed and never satisfiable: `500-0`, `-0`.
    Impossible,
}

/// What is given, half open. A range that starts at 0 and has no end is the whole: containerd's
/// `concurrent_layer_fetch_buffer` sends it to learn whether ranges are worth it, and a 200 keeps it on one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    Whole,
    Part(Range<u64>),
    /// 416.
    Unsatisfiable,
}

impl Asked {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        // We give no validator, so none matches, and then the range counts for nothing (RFC 9110 section 13.1.5).
        if headers.contains_key(http::header::IF_RANGE) {
            return Self::Whole;
        }
        let mut values = headers.get_all(http::header::RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Self::Whole };
        value.to_str().ok().and_then(Self::parse).unwrap_or(Self::Whole)
    }

    /// `None`: ignored.
    fn parse(text: &str) -> Option<Self> {
        let (unit, set) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
            return None;
        }
        let (first, last) = set.trim().split_once('-')?;
        let number = |text: &str| -> Option<u64> {
            (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
        };
        match (first.trim(), last.trim()) {
            ("", last) => Some(match number(last)? {
                0 => Self::Impossible,
                n => Self::Last(n),
            }),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                Some(if last < first { Self::Impossible } else { Self::From(first, Some(last)) })
            }
        }
    }

    /// The first byte, when it is known without the size.
    pub(super) fn start(self) -> u64 {
        match self {
            Self::From(first, _) => first,
            _ => 0,
        }
    }

    /// Whether it may be answered with the whole before the size is known.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Whole | Self::From(0, None))
    }

    /// Against content of `size` bytes.
    pub(super) fn within(self, size: u64) -> Given {
        match self {
            Self::Whole | Self::From(0, None) => Given::Whole,
            Self::Impossible => Given::Unsatisfiable,
            Self::From(first, _) if first >= size => Given::Unsatisfiable,
            Self::From(first, last) => Given::Part(first..last.map_or(size, |last| last.saturating_add(1).min(size))),
            Self::Last(_) if size == 0 => Given::Unsatisfiable,
            Self::Last(n) => Given::Part(size - n.min(size)..size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn given(range: &str, size: u64) -> Given {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::RANGE, range.parse().unwrap());
        Asked::of(&headers).within(size)
    }

    #[test]
    fn answers_as_containerd_expects() {
        for (range, want) in [
            ("bytes=0-", Given::Whole),
            ("bytes=0-0", Given::Part(0..1)),
            ("bytes=2-5", Given::Part(2..6)),
            ("bytes=2-500", Given::Part(2..10)),
            ("bytes=9-", Given::Part(9..10)),
            ("bytes=-3", Given::Part(7..10)),
            ("bytes=-30", Given::Part(0..10)),
            ("bytes=-0", Given::Unsatisfiable),
            ("bytes=10-", Given::Unsatisfiable),
            ("bytes=500-0", Given::Unsatisfiable),
            ("bytes=99999999999999999999999-", Given::Unsatisfiable),
            ("bytes=1-2,4-5", Given::Whole),
            ("items=1-2", Given::Whole),
            ("bytes=a-b", Given::Whole),
            ("bytes=-", Given::Whole),
            ("bytes", Given::Whole),
            ("bytes=+1-2", Given::Whole),
        ] {
            assert_eq!(given(range, 10), want, "{range}");
        }
        assert_eq!(given("bytes=-1", 0), Given::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_content(text in "(bytes=)?[0-9]{0,4}-?[0-9]{0,4}", size in 0u64..2000) {
            if let Given::Part(range) = given(&text, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
