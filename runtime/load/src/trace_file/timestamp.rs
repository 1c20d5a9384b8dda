//! Times as traces write them: `2023-11-16 18:17:03.9799600`, `2024-05-10T00:00:00.009930+00:00`, or plain seconds.

/// Seconds since 1970, or the number itself; `None` for anything else. Near today an f64 is exact to a quarter of a
/// microsecond.
pub(super) fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then_some(seconds);
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.split('-');
    let (year, month, day) = (number(date.next()?)?, number(date.next()?)?, number(date.next()?)?);
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && date.next().is_none();
    let (clock, offset_s) = split_offset(time)?;
    let mut clock = clock.split(':');
    let (hour, minute, second) = (number(clock.next()?)?, number(clock.next()?)?, clock.next()?);
    let digits = second.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let second = second.parse::<f64>().ok().filter(|second| digits && *second < 61.0)?;
    let in_range = in_range && hour < 24 && minute < 60 && clock.next().is_none();
    let whole = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 - offset_s;
    in_range.then_some(whole as f64 + second)
}

/// The time of day, and how far its zone is ahead of UTC.
fn split_offset(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let Some(at) = time.find(['+', '-']) else { return Some((time, 0)) };
    let (hours, minutes) = time[at + 1..].split_once(':')?;
    let ahead = number(hours)? * 3600 + number(minutes)? * 60;
    Some((&time[..at], if time.as_bytes()[at] == b'-' { -ahead } else { ahead }))
}

/// Up to four digits.
fn number(text: &str) -> Option<i64> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// Days since 1970-01-01 in the Gregorian calendar: years begin in March, so that the leap day is a year's last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let known = [
            ("1970-01-01 00:00:00", 0.0),
            ("2000-03-01T00:00:00Z", 951_868_800.0),
            ("2023-11-16 18:17:03.5", 1_700_158_623.5),
            ("2024-05-10 00:00:00.25+00:00", 1_715_299_200.25),
            ("2024-05-10 02:30:00+02:30", 1_715_299_200.0),
            ("12.5", 12.5),
        ];
        for (text, want) in known {
            assert_eq!(seconds(text), Some(want), "{text}");
        }
        for text in
            ["", "yesterday", "2023-11-16", "2023-13-16 18:17:03", "2023-11-16 25:17:03", "2023-11-16 18:17", "nan"]
        {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
