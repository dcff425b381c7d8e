//! RFC 3339 in UTC, by arithmetic alone. Here, because the rest may use what is pure, and not the other way round.

/// Seconds since 1970 as `2026-11-21T08:00:00Z`.
///
/// Days to civil date after Howard Hinnant, "chrono-compatible low-level date algorithms".
pub fn rfc3339(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Seconds since 1970 of `2026-11-21T08:00:00Z`, `2026-11-21T10:00:00.5+02:00`, …; `None` for anything else.
///
/// Civil date to days after the same.
pub fn parse(text: &str) -> Option<u64> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let mut date = date.split('-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, offset) = split_offset(rest)?;
    let clock = clock.split_once('.').map_or(Some(clock), |(clock, fraction)| {
        number(fraction.get(..1)?).map(|_| clock)
    })?;
    let mut clock = clock.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    if !in_range || date.next().is_some() || clock.next().is_some() {
        return None;
    }
    let shifted_year = year - i64::from(month <= 2);
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    u64::try_from(seconds).ok()
}

/// Up to four digits and nothing else.
fn number(text: &str) -> Option<i64> {
    let is_number = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// The time of day, and how many seconds it is ahead of UTC.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let at = text.rfind(['+', '-'])?;
    let (clock, offset) = text.split_at_checked(at)?;
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= 23 && minutes <= 59).then_some((clock, sign * (hours * 3600 + minutes * 60)))
}

#[cfg(test)]
mod tests {
    use super::{parse, rfc3339};

    #[test]
    fn what_is_written_is_read() {
        for unix in [
            0,
            951_782_399,
            951_782_400,
            1_795_248_000,
            4_102_444_799,
            253_402_300_799,
        ] {
            assert_eq!(parse(&rfc3339(unix)), Some(unix));
        }
    }

    /// Go's `time.RFC3339` writes the local offset.
    #[test]
    fn offsets_and_fractions_are_read_and_nonsense_is_not() {
        assert_eq!(parse("2026-11-21T10:00:00+02:00"), Some(1_795_248_000));
        assert_eq!(parse("2026-11-21T04:30:00.123456789-03:30"), Some(1_795_248_000));
        for text in [
            "",
            "T",
            "yesterday",
            "2026-11-21",
            "2026-11-21T08:00:00",
            "2026-13-21T08:00:00Z",
            "2026-11-21T08:00Z",
            "2026-11-21T08:00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-11-21T08:00:00.Z",
            "+026-11-21T08:00:00Z",
            "2026-11-21T08:00:00+2",
            "2026-11-21T08:00:00ZZ",
            "2026-11-21T\u{1F600}Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn known_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_248_000), "2026-11-21T08:00:00Z");
        assert!(!rfc3339(u64::MAX / 1000).is_empty());
    }
}
