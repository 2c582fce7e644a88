//! Sizes and spans of time as people write them: `4MiB`, `30s`.
//!
//! What is printed parses to the same value. Units are exact (1 KiB is 1,024 bytes); decimal ones (kB, MB) are refused
//! rather than guessed.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::ser::{Serialize, Serializer};

/// Text that is no size or no span. Says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}: {why}")]
pub struct UnitError {
    text: String,
    expected: &'static str,
    why: &'static str,
}

const SIZE_EXPECTED: &str = "a size such as 64KiB, 4MiB, 1.5GiB or a number of bytes";
const SPAN_EXPECTED: &str = "a span such as 500ms, 30s, 5m or 24h";

const SIZE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const SPAN_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A number of bytes. Text: digits, possibly with a fraction, and `B`, `KiB`, `MiB`, `GiB` or `TiB`; without a unit,
/// bytes. A fraction of a byte is dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// KiB.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// In bytes.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// In bytes, or the most that an address space holds.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZE_UNITS.iter().find(|(name, unit)| *name != "B" && self.0 != 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fault = |why| UnitError { text: text.to_owned(), expected: SIZE_EXPECTED, why };
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let unit = match unit.trim_start() {
            "" => 1,
            name => SIZE_UNITS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, unit)| *unit)
                .ok_or_else(|| fault("the unit must be B, KiB, MiB, GiB or TiB"))?,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        // 18 digits fit the arithmetic below; nobody writes more.
        if whole.is_empty()
            || fraction.is_empty()
            || fraction.len() > 18
            || !fraction.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(fault("there is no number"));
        }
        let whole: u64 = whole.parse().map_err(|_| fault("the number is too large"))?;
        let numerator: u128 = fraction.parse().map_err(|_| fault("there is no number"))?;
        let fraction = numerator * u128::from(unit) / 10u128.pow(u32::try_from(fraction.len()).unwrap_or(18));
        u64::try_from(u128::from(whole) * u128::from(unit) + fraction)
            .map(Self)
            .map_err(|_| fault("the number is too large"))
    }
}

/// A span of time in whole milliseconds. Text: digits and `ms`, `s`, `m` or `h`; `0` needs no unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Span {
    /// Milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(n)
    }

    /// Seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(n * 1_000)
    }

    /// Minutes.
    #[must_use]
    pub const fn mins(n: u64) -> Self {
        Self(n * 60_000)
    }

    /// Hours.
    #[must_use]
    pub const fn hours(n: u64) -> Self {
        Self(n * 3_600_000)
    }

    /// As the standard library has it.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// Whether it is 0, which usually means "off".
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.as_duration()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SPAN_UNITS.iter().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => f.write_str("0"),
        }
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fault = |why| UnitError { text: text.to_owned(), expected: SPAN_EXPECTED, why };
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        if number.is_empty() {
            return Err(fault("there is no whole number"));
        }
        let number: u64 = number.parse().map_err(|_| fault("the number is too large"))?;
        let unit = match unit.trim_start() {
            "" if number == 0 => 1,
            name => SPAN_UNITS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, unit)| *unit)
                .ok_or_else(|| fault("the unit must be ms, s, m or h, after a whole number"))?,
        };
        number.checked_mul(unit).map(Self).ok_or_else(|| fault("the number is too large"))
    }
}

/// Reads a string, or a whole number where that has a meaning.
struct TextOrNumber {
    expected: &'static str,
    numbers: bool,
}

impl Visitor<'_> for TextOrNumber {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<String, E> {
        if self.numbers || number == 0 {
            return Ok(number.to_string());
        }
        Err(E::custom(format_args!("{number} has no unit: write {}", self.expected)))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<String, E> {
        let number = u64::try_from(number).map_err(|_| E::custom(format_args!("{number} is below 0")))?;
        self.visit_u64(number)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_any(TextOrNumber { expected: SIZE_EXPECTED, numbers: true })?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_any(TextOrNumber { expected: SPAN_EXPECTED, numbers: false })?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGT]iB|B)?\s*$",
            "x-type": "size",
            "x-expected": SIZE_EXPECTED,
        })
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "maximum": 0,
            "pattern": r"^\s*(0+|[0-9]+\s*(ms|s|m|h))\s*$",
            "x-type": "span",
            "x-expected": SPAN_EXPECTED,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4MiB", 4 << 20),
            ("64KiB", 64 << 10),
            ("1.5GiB", 3 << 29),
            (" 12 B ", 12),
            ("1234567", 1_234_567),
            ("0.1KiB", 102),
        ] {
            assert_eq!(text.parse::<ByteSize>().map(ByteSize::as_u64), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_decimal_units_signs_and_nonsense_in_sizes() {
        for text in ["", "MiB", "4MB", "4kb", "-1", "+1", "1.MiB", ".5MiB", "1.2.3MiB", "99999999TiB", "4 Mi B", "1e3"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn reads_spans_as_people_write_them() {
        for (text, millis) in [("0", 0), ("500ms", 500), ("30s", 30_000), ("24h", 86_400_000), ("5 m", 300_000)] {
            assert_eq!(text.parse::<Span>().map(Span::as_duration), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_a_span_without_a_unit_and_says_so() {
        for text in ["", "30", "s", "1.5s", "-1s", "2d", "1h30m", "99999999999999999h"] {
            assert!(text.parse::<Span>().is_err(), "{text:?} was taken");
        }
        let error = serde_json::from_str::<Span>("30").unwrap_err().to_string();
        assert!(error.contains("has no unit"), "{error}");
    }

    #[test]
    fn numbers_in_a_file_are_bytes_and_negative_ones_are_refused() {
        assert_eq!(serde_json::from_str::<ByteSize>("4096").unwrap(), ByteSize::kib(4));
        assert!(serde_json::from_str::<ByteSize>("-1").is_err());
        assert!(serde_json::from_str::<ByteSize>("true").is_err());
    }

    proptest! {
        #[test]
        fn a_printed_size_parses_to_itself(bytes: u64, shift in 0u32..40) {
            let size = ByteSize::new((bytes >> shift) << shift.min(39));
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
            let json = serde_json::to_string(&size).unwrap();
            prop_assert_eq!(serde_json::from_str::<ByteSize>(&json).unwrap(), size);
        }

        #[test]
        fn a_printed_span_parses_to_itself(millis: u64, unit in prop::sample::select(vec![1u64, 1_000, 60_000, 3_600_000])) {
            let span = Span::millis(millis / unit * unit);
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
            let json = serde_json::to_string(&span).unwrap();
            prop_assert_eq!(serde_json::from_str::<Span>(&json).unwrap(), span);
        }

        #[test]
        fn the_schema_takes_what_parses_and_refuses_nothing_more(text in r"[ 0-9.]{0,6}[KMGTiBmshd ]{0,4}") {
            let size = schemars::schema_for!(ByteSize).to_value();
            let span = schemars::schema_for!(Span).to_value();
            let value = serde_json::Value::String(text.clone());
            prop_assert_eq!(jsonschema::is_valid(&size, &value), text.parse::<ByteSize>().is_ok(), "size {:?}", text);
            prop_assert_eq!(jsonschema::is_valid(&span, &value), text.parse::<Span>().is_ok(), "span {:?}", text);
        }
    }
}
