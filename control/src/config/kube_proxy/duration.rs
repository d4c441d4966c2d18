//! Durations as Go writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use thiserror::Error;

const NANO: i64 = 1;
const MICRO: i64 = 1000 * NANO;
const MILLI: i64 = 1000 * MICRO;
const SECOND: i64 = 1000 * MILLI;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

const UNITS: [(&str, i64); 8] = [
    ("ns", NANO),
    ("us", MICRO),
    ("µs", MICRO),
    ("μs", MICRO),
    ("ms", MILLI),
    ("s", SECOND),
    ("m", MINUTE),
    ("h", HOUR),
];

/// A duration in nanoseconds, of either sign: `1h2m3s`, `1.5s`, `-10ms`, `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GoDuration(i64);

/// What is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a duration such as 30s, 1m30s or 1h")]
pub struct NotADuration;

impl GoDuration {
    /// No time.
    pub const ZERO: Self = Self(0);

    /// So many seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        // A u32 of seconds is below 2^63 nanoseconds.
        Self(seconds as i64 * SECOND)
    }

    /// So many nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Whether it is no time at all, which often stands for a default.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The time; none for a negative one.
    pub fn time(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }

    /// Whole seconds, a part of one counted as one; 0 for a negative time.
    pub fn seconds(self) -> u64 {
        let time = self.time();
        time.as_secs() + u64::from(time.subsec_nanos() > 0)
    }
}

impl FromStr for GoDuration {
    type Err = NotADuration;

    /// What Go's `time.ParseDuration` takes.
    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(NotADuration);
        }
        let mut nanos: i128 = 0;
        while !rest.is_empty() {
            let (part, behind) = read_part(rest)?;
            nanos += part;
            // Checked here too, so that the sum of many parts cannot overflow.
            if nanos > i128::from(i64::MAX) + 1 {
                return Err(NotADuration);
            }
            rest = behind;
        }
        let nanos = if negative { -nanos } else { nanos };
        i64::try_from(nanos).map(Self).map_err(|_| NotADuration)
    }
}

/// The first number with its unit, in nanoseconds, and what is behind it.
fn read_part(text: &str) -> Result<(i128, &str), NotADuration> {
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(NotADuration);
    }
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at_checked(end).ok_or(NotADuration)?;
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(NotADuration)?;
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| NotADuration)? };
    let mut nanos = i128::from(whole) * i128::from(*unit);
    // Digits of a fraction beyond these are worth less than a nanosecond of an hour.
    let mut worth = i128::from(*unit) * 1_000_000;
    let mut part = 0;
    for digit in fraction.bytes().take(18) {
        worth /= 10;
        part += i128::from(digit - b'0') * worth;
    }
    nanos += part / 1_000_000;
    Ok((nanos, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

impl fmt::Display for GoDuration {
    /// As Go's `Duration.String` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let (second, minute, hour) = (SECOND.unsigned_abs(), MINUTE.unsigned_abs(), HOUR.unsigned_abs());
        match nanos {
            0 => f.write_str("0s"),
            nanos if nanos < MICRO.unsigned_abs() => write!(f, "{nanos}ns"),
            nanos if nanos < MILLI.unsigned_abs() => write_decimal(f, nanos, MICRO.unsigned_abs(), "µs"),
            nanos if nanos < second => write_decimal(f, nanos, MILLI.unsigned_abs(), "ms"),
            nanos => {
                if nanos >= hour {
                    write!(f, "{}h", nanos / hour)?;
                }
                if nanos >= minute {
                    write!(f, "{}m", nanos % hour / minute)?;
                }
                write_decimal(f, nanos % minute, second, "s")
            }
        }
    }
}

fn write_decimal(f: &mut fmt::Formatter<'_>, nanos: u64, unit: u64, name: &str) -> fmt::Result {
    write!(f, "{}", nanos / unit)?;
    let rest = nanos % unit;
    if rest > 0 {
        let digits = unit.ilog10() as usize;
        let fraction = format!("{rest:0digits$}");
        write!(f, ".{}", fraction.trim_end_matches('0'))?;
    }
    f.write_str(name)
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_durations_are_read_and_written_as_go_does() {
        for (text, nanos, written) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("-0", 0, "0s"),
            ("30s", 30 * SECOND, "30s"),
            ("1h2m3s", HOUR + 2 * MINUTE + 3 * SECOND, "1h2m3s"),
            ("24h", 24 * HOUR, "24h0m0s"),
            ("15m", 15 * MINUTE, "15m0s"),
            ("90s", 90 * SECOND, "1m30s"),
            ("1.5s", 1500 * MILLI, "1.5s"),
            (".5s", 500 * MILLI, "500ms"),
            ("1.s", SECOND, "1s"),
            ("250ms", 250 * MILLI, "250ms"),
            ("1m0.25s", MINUTE + 250 * MILLI, "1m0.25s"),
            ("3us", 3 * MICRO, "3µs"),
            ("3µs", 3 * MICRO, "3µs"),
            ("3μs", 3 * MICRO, "3µs"),
            ("1500ns", 1500, "1.5µs"),
            ("7ns", 7, "7ns"),
            ("-1h", -HOUR, "-1h0m0s"),
            ("+1s", SECOND, "1s"),
            ("1s1s", 2 * SECOND, "2s"),
            ("0.000000001s", 1, "1ns"),
            ("0.00000000000000000000000001s", 0, "0s"),
            ("2562047h", 2_562_047 * HOUR, "2562047h0m0s"),
        ] {
            let read: GoDuration = text.parse().unwrap();
            assert_eq!((read.0, read.to_string().as_str()), (nanos, written), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_to_go_is_none() {
        for text in [
            "", "-", "+", "s", ".s", "1", "30", "1 s", "1sec", "1d", "s1", "1s ", "--1s", "1h30", "2562048h",
            "٣s",
        ] {
            assert_eq!(text.parse::<GoDuration>(), Err(NotADuration), "{text}");
        }
    }

    #[test]
    fn parts_of_a_second_count_as_one_and_negative_times_as_none() {
        for (text, seconds) in [("0s", 0), ("1ns", 1), ("1s", 1), ("1.1s", 2), ("-5s", 0)] {
            assert_eq!(text.parse::<GoDuration>().unwrap().seconds(), seconds, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(nanos: i64) {
            let duration = GoDuration(nanos);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "\\PC*|[0-9.hmsnuµ+-]*") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
