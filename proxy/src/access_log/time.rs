//! Points in time as text, in UTC and without allocation.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, broken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    year: i64,
    month: u32,
    day: u32,
    hour: u64,
    minute: u64,
    second: u64,
    nanos: u32,
    epoch: u64,
}

impl Civil {
    /// Breaks a time down; times before 1970 count as 1970.
    pub fn new(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let epoch = since.as_secs();
        let (year, month, day) = date(epoch / 86_400);
        Self {
            year,
            month,
            day,
            hour: epoch / 3600 % 24,
            minute: epoch / 60 % 60,
            second: epoch % 60,
            nanos: since.subsec_nanos(),
            epoch,
        }
    }

    /// Writes it in a `strftime` format; `%f` with a digit before it is a fraction of a second
    /// of that many digits. An unknown specifier is written as it stands.
    pub fn write(&self, format: &str, out: &mut impl Write) -> fmt::Result {
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c == '%' {
                self.specifier(&mut chars, out)?;
            } else {
                out.write_char(c)?;
            }
        }
        Ok(())
    }

    fn specifier(&self, chars: &mut std::str::Chars<'_>, out: &mut impl Write) -> fmt::Result {
        match chars.next() {
            Some('Y') => write!(out, "{:04}", self.year),
            Some('m') => write!(out, "{:02}", self.month),
            Some('d') => write!(out, "{:02}", self.day),
            Some('H') => write!(out, "{:02}", self.hour),
            Some('M') => write!(out, "{:02}", self.minute),
            Some('S') => write!(out, "{:02}", self.second),
            Some('F') => write!(out, "{:04}-{:02}-{:02}", self.year, self.month, self.day),
            Some('T') => write!(
                out,
                "{:02}:{:02}:{:02}",
                self.hour, self.minute, self.second
            ),
            Some('s') => write!(out, "{}", self.epoch),
            Some('z') => out.write_str("+0000"),
            Some('Z') => out.write_str("UTC"),
            Some('f') => self.fraction(9, out),
            Some(digit @ '1'..='9') => {
                let mut rest = chars.clone();
                if rest.next() == Some('f') {
                    *chars = rest;
                    self.fraction(digit.to_digit(10).unwrap_or(9), out)
                } else {
                    write!(out, "%{digit}")
                }
            }
            Some('%') | None => out.write_char('%'),
            Some(other) => write!(out, "%{other}"),
        }
    }

    fn fraction(&self, digits: u32, out: &mut impl Write) -> fmt::Result {
        let value = self.nanos / 10u32.pow(9 - digits);
        write!(out, "{value:0width$}", width = digits as usize)
    }
}

/// `2026-11-21T10:02:33.123Z`.
impl fmt::Display for Civil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write("%FT%T.%3fZ", f)
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn date(days: u64) -> (i64, u32, u32) {
    let z = i64::try_from(days).unwrap_or(0) + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let small = |n: i64| u32::try_from(n).unwrap_or(0);
    (year, small(month), small(day))
}
