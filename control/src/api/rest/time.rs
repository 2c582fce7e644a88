//! Times as the API writes them (RFC 3339, UTC).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970 as text.
pub(super) fn seconds(seconds: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// `2026-11-23T12:44:10.250Z`. A time before 1970 is a clock that was never set, and is printed as 1970.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second, milli) = (second / 3600, second / 60 % 60, second % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// The seconds since 1970 of a time as RFC 3339 writes it, such as `2026-11-23T12:44:10Z` or `2026-11-23T13:44:10.5+01:00`; a part of a
/// second counts as a whole one, a time before 1970 as 1970. `None`: it is none, or no such day is in the calendar.
pub(super) fn parse(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |at: std::ops::Range<usize>| {
        let digits = text.get(at)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().ok()).flatten()
    };
    let sign = |at: usize, of: &[u8]| bytes.get(at).is_some_and(|b| of.contains(b)).then_some(());
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    [(4, &b"-"[..]), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")]
        .into_iter()
        .try_for_each(|(at, of)| sign(at, of))?;
    let mut rest = text.get(19..)?;
    let mut part = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.bytes().take_while(u8::is_ascii_digit).count();
        part = i64::from(fraction[..end].bytes().any(|digit| digit != b'0'));
        rest = &fraction[end..];
        (end > 0).then_some(())?;
    }
    let offset = match rest.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let from = text.len() - 5;
            let (hours, minutes) = (number(from..from + 2)?, number(from + 3..from + 5)?);
            (hours <= 23 && minutes <= 59).then_some(())?;
            (hours * 60 + minutes) * if *sign == b'+' { 60 } else { -60 }
        }
        _ => return None,
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    // Second 60 is a leap second (RFC 3339 section 5.7).
    ((1..=days).contains(&day) && hour <= 23 && minute <= 59 && second <= 60).then_some(())?;
    let at = days_since(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second + part - offset;
    Some(u64::try_from(at).unwrap_or(0))
}

/// A date to days since 1970-01-01, which may be negative: the way back of [`civil`], by the same author.
fn days_since(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let (year_of_era, march_month) = (year.rem_euclid(400), (month + 9) % 12);
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Days since 1970-01-01 to a date: Howard Hinnant's `civil_from_days`, for days that are not negative. Years start in
/// March there, so that the leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert_eq};
    use proptest::proptest;

    use super::*;

    #[test]
    fn reads_times_as_rfc_3339_has_them_and_nothing_else() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59Z", 0),
            ("0000-01-01T00:00:00Z", 0),
            ("2000-02-29t12:00:00z", 951_825_600),
            ("2000-02-29 13:00:00.000+01:00", 951_825_600),
            ("2000-02-29T11:30:00-00:30", 951_825_600),
            ("2000-02-29T11:59:59.001Z", 951_825_600),
            ("2000-02-29T11:59:60Z", 951_825_600),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
        for text in [
            "",
            "today",
            "2026-11-23",
            "2026-11-23T12:44:10",
            "2026-11-23T12:44Z",
            "2026-11-23T12:44:10.Z",
            "2026-11-23T12:44:10+01",
            "2026-11-23T12:44:10+0100",
            "2026-11-23T12:44:10+24:00",
            "2026-11-23T24:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-00-10T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "+026-11-23T12:44:10Z",
            "2026-11-23T12:44:10Zé",
            "2026-11-23é12:44:10Z",
            "2026-11-23T12:44:10+é1:00",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_printed_is_read_again(second in 0..253_402_300_800_u64) {
            prop_assert_eq!(parse(&seconds(second)), Some(second));
        }

        #[test]
        fn no_text_is_too_odd_to_be_refused(text in ".*") {
            let _ = parse(&text);
        }
    }

    #[test]
    fn prints_times_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
