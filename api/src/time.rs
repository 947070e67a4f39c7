//! Points in time and lifetimes, in the one form that YAML, JSON, SQL and marks agree on.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, UTC, to the millisecond. Written as RFC 3339 with `Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The last instant that can be written in every zone: a day before the year 9999 ends.
const LAST_MILLIS: i64 = 253_402_207_200_000;

impl Timestamp {
    /// From seconds since the epoch; what lies outside the years 1970 to 9999 is cut to them.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Self {
        Self::from_unix_millis(seconds.saturating_mul(1000))
    }

    /// From milliseconds since the epoch; what lies outside the years 1970 to 9999 is cut to them.
    #[must_use]
    pub fn from_unix_millis(millis: i64) -> Self {
        Self(millis.clamp(0, LAST_MILLIS))
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub fn as_unix(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn as_unix_millis(self) -> i64 {
        self.0
    }

    /// The start of this second: ends are stored in whole seconds, as a mark can hold no less.
    #[must_use]
    pub fn whole_second(self) -> Self {
        Self::from_unix(self.as_unix())
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This time moved by a signed number of milliseconds, as a measured clock offset is.
    #[must_use]
    pub fn offset_by_millis(self, millis: i64) -> Self {
        Self::from_unix_millis(self.0.saturating_add(millis))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        self.offset_by_millis(i64::try_from(later.as_millis()).unwrap_or(i64::MAX))
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, earlier: Duration) -> Self {
        self.offset_by_millis(-i64::try_from(earlier.as_millis()).unwrap_or(i64::MAX))
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(at: jiff::Timestamp) -> Self {
        Self::from_unix_millis(at.as_millisecond())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => at.fmt(f),
            Err(_) => Err(fmt::Error),
        }
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>()
            .map(Self::from)
            .map_err(|_| TimestampError)
    }
}

/// A text that is no RFC 3339 time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time with a zone, such as `2026-01-05T20:00:00Z`")]
pub struct TimestampError;

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// How long a lease lives: whole seconds, from one second to thirty days. Written `90s`, `15m`, `8h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u32);

impl Ttl {
    /// The longest lifetime that can be written at all; policies set far lower limits.
    pub const LONGEST: Self = Self(30 * 24 * 3600);
    /// The shortest lifetime that can be written at all.
    pub const SHORTEST: Self = Self(1);
    /// What every text of one matches, as a regular expression of JSON Schema: 1 to 2592000 seconds, 1 to 43200
    /// minutes or 1 to 720 hours, with zeros before them.
    pub const PATTERN: &str = "^0*(?:\
        (?:[1-9][0-9]{0,5}|1[0-9]{6}|2[0-4][0-9]{5}|25[0-8][0-9]{4}|259[01][0-9]{3}|2592000)s|\
        (?:[1-9][0-9]{0,3}|[1-3][0-9]{4}|4[0-2][0-9]{3}|43[01][0-9]{2}|43200)m|\
        (?:[1-9][0-9]?|[1-6][0-9]{2}|7[01][0-9]|720)h)$";

    /// From a number of seconds.
    pub fn from_secs(seconds: u32) -> Result<Self, TtlError> {
        match seconds {
            0 => Err(TtlError::Zero),
            s if s > Self::LONGEST.0 => Err(TtlError::TooLong),
            s => Ok(Self(s)),
        }
    }

    /// The number of seconds.
    #[must_use]
    pub fn as_secs(self) -> u32 {
        self.0
    }

    /// The same as a duration.
    #[must_use]
    pub fn as_duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            s if s % 3600 == 0 => write!(f, "{}h", s / 3600),
            s if s % 60 == 0 => write!(f, "{}m", s / 60),
            s => write!(f, "{s}s"),
        }
    }
}

/// Why a text is no lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TtlError {
    /// Not a whole number and one of the units.
    #[error("a duration is a whole number and a unit: `90s`, `15m` or `8h`")]
    Malformed,
    /// Nothing lives for no time.
    #[error("a duration must be at least `1s`")]
    Zero,
    /// Longer than [`Ttl::LONGEST`].
    #[error("a duration must be at most `720h`")]
    TooLong,
}

impl FromStr for Ttl {
    type Err = TtlError;

    fn from_str(text: &str) -> Result<Self, TtlError> {
        let (digits, factor) = match text.as_bytes() {
            [digits @ .., b's'] => (digits, 1),
            [digits @ .., b'm'] => (digits, 60),
            [digits @ .., b'h'] => (digits, 3600),
            _ => return Err(TtlError::Malformed),
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(TtlError::Malformed);
        }
        let mut seconds: u32 = 0;
        for digit in digits {
            let next = seconds
                .checked_mul(10)
                .and_then(|s| s.checked_add(u32::from(digit - b'0')));
            seconds = next.ok_or(TtlError::TooLong)?;
        }
        Self::from_secs(seconds.checked_mul(factor).ok_or(TtlError::TooLong)?)
    }
}

impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
mod openapi {
    use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
    use utoipa::openapi::{RefOr, Schema};
    use utoipa::{PartialSchema, ToSchema};

    impl PartialSchema for super::Timestamp {
        fn schema() -> RefOr<Schema> {
            ObjectBuilder::new()
                .schema_type(Type::String)
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
                .build()
                .into()
        }
    }
    impl ToSchema for super::Timestamp {}

    impl PartialSchema for super::Ttl {
        fn schema() -> RefOr<Schema> {
            ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some("A whole number and `s`, `m` or `h`: `1s` to `720h`."))
                .pattern(Some(super::Ttl::PATTERN))
                .examples([serde_json::json!("2h")])
                .build()
                .into()
        }
    }
    impl ToSchema for super::Ttl {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Found by fuzzing: in the last day of the year 9999 the text was an error, which is a panic.
    #[test]
    fn every_timestamp_can_be_written_and_read() {
        for seconds in [
            i64::MIN,
            -1,
            0,
            253_402_207_200,
            253_402_207_201,
            253_402_300_799,
            i64::MAX,
        ] {
            let at = Timestamp::from_unix(seconds);
            assert_eq!(at.to_string().parse(), Ok(at), "{seconds}");
        }
    }

    #[test]
    fn a_timestamp_is_written_in_utc_with_a_z() {
        assert_eq!(Timestamp::from_unix(1_767_643_200).to_string(), "2026-01-05T20:00:00Z");
        assert_eq!(
            "2026-01-05T21:00:00+01:00".parse(),
            Ok(Timestamp::from_unix(1_767_643_200))
        );
        assert!(
            "2026-01-05T20:00:00".parse::<Timestamp>().is_err(),
            "a time without a zone"
        );
    }

    #[test]
    fn a_duration_out_of_its_form_is_refused() {
        for (text, error) in [
            ("", TtlError::Malformed),
            ("h", TtlError::Malformed),
            ("2", TtlError::Malformed),
            ("-2h", TtlError::Malformed),
            ("2 h", TtlError::Malformed),
            ("1.5h", TtlError::Malformed),
            ("2H", TtlError::Malformed),
            ("0m", TtlError::Zero),
            ("721h", TtlError::TooLong),
            ("99999999999999999999s", TtlError::TooLong),
        ] {
            assert_eq!(text.parse::<Ttl>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_longest_and_shortest_durations_are_the_ends_of_the_documented_pattern() {
        for (inside, outside) in [
            ("2592000s", "2592001s"),
            ("43200m", "43201m"),
            ("720h", "721h"),
            ("001s", "000s"),
        ] {
            assert!(inside.parse::<Ttl>().is_ok(), "{inside}");
            assert!(outside.parse::<Ttl>().is_err(), "{outside}");
        }
    }

    proptest! {
        #[test]
        fn every_text_of_the_documented_pattern_is_a_duration(text in Ttl::PATTERN.trim_matches(['^', '$'])) {
            prop_assert!(text.parse::<Ttl>().is_ok(), "{text}");
        }

        #[test]
        fn a_duration_survives_its_own_text(seconds in 1..=Ttl::LONGEST.as_secs()) {
            let ttl = Ttl::from_secs(seconds).unwrap();
            prop_assert_eq!(ttl.to_string().parse(), Ok(ttl));
        }

        #[test]
        fn a_timestamp_survives_its_own_text(millis in 0..LAST_MILLIS) {
            let at = Timestamp::from_unix_millis(millis);
            prop_assert_eq!(at.to_string().parse(), Ok(at));
        }

        #[test]
        fn no_time_and_no_duration_leaves_the_range(millis: i64, seconds: u64) {
            let at = Timestamp::from_unix_millis(millis);
            let moved = [at + Duration::from_secs(seconds), at - Duration::from_secs(seconds)];
            prop_assert!(moved.iter().all(|t| (0..=LAST_MILLIS).contains(&t.as_unix_millis())));
        }
    }
}
