//! Durations as people write them in flags: `45s`, `1m0s`, `1h30m`, `250ms`, or a plain number of seconds.
//!
//! Input: the text of a flag. Output: a duration, or what is wrong with the text. Used by the flags of
//! proxy and launcher; the units are those of Go, whose programs had these flags first.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration; write it like 45s, 1m0s or 250ms")]
pub struct InvalidDuration(String);

const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// Reads a duration.
///
/// # Errors
/// When the text is none.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.to_owned());
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(invalid)?);
        let end = after.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let known = UNITS.iter().find(|(name, _)| *name == unit);
        let (_, seconds) = known.ok_or_else(invalid)?;
        total += number.parse::<f64>().map_err(|_| invalid())? * seconds;
        rest = after;
    }
    if text.is_empty() {
        return Err(invalid());
    }
    Duration::try_from_secs_f64(total).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_of_go_and_plain_seconds_are_read() {
        for (text, millis) in [
            ("45s", 45_000),
            ("45", 45_000),
            ("1m", 60_000),
            ("1m0s", 60_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1.5s", 1500),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "s",
            "-1s",
            "1x",
            "1m0",
            "1..2s",
            "one",
            "1e3s",
            "999999999999999999999h",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
