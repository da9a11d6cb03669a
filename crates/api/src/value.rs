//! Leaf values that parse while they are read: durations, percentages, string matches, ports. A value of these types
//! cannot be wrong, so that nobody validates later.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// A length of time as Istio's objects write it: Go's syntax (`1.5s`, `1h2m`, `100ms`, `0s`). Never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// Of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// Of milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// Whether it is nothing at all; many fields take that as "off".
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// The same length in Envoy's type.
    pub fn proto(self) -> envoy_types::pb::google::protobuf::Duration {
        envoy_types::pb::google::protobuf::Duration {
            seconds: i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(self.0.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// Units of Go's `time.ParseDuration` and their length in nanoseconds.
const UNITS: &[(&str, f64)] =
    &[("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration; write a number with a unit, such as 1.5s, 100ms or 1h2m");
        if text == "0" {
            return Ok(Self::default());
        }
        if text.is_empty() {
            return Err(wrong());
        }
        let mut rest = text;
        let mut nanos = 0.0_f64;
        while !rest.is_empty() {
            let digits =
                rest.find(|character: char| !character.is_ascii_digit() && character != '.').ok_or_else(wrong)?;
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters =
                rest.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(rest.len());
            let unit = UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(wrong)?;
            nanos += number * unit.1;
            rest = &rest[letters..];
        }
        // Envoy's limit on durations is far below this one.
        if !nanos.is_finite() || nanos > 3.0e20 {
            return Err(wrong());
        }
        Ok(Self(std::time::Duration::new((nanos / 1e9) as u64, (nanos % 1e9) as u32)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}s", self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Duration;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a duration such as 1.5s")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `{value: 0.1}`: a share in percent, 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percent {
    /// Percent, with fractions.
    pub value: f64,
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct Plain {
            value: f64,
        }
        let Plain { value } = Plain::deserialize(deserializer)?;
        if !(0.0..=100.0).contains(&value) {
            return Err(de::Error::custom(format!("{value} is not a percentage; it must be from 0 to 100")));
        }
        Ok(Self { value })
    }
}

/// How a text is compared (Istio `StringMatch`): exactly one of the three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StringMatch {
    /// The whole text.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// A regular expression (RE2 syntax) that must match the whole text.
    Regex(String),
    /// None was given: any value does, the thing must only be there.
    Present,
}

impl<'de> Deserialize<'de> for StringMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct StringMatch {
            exact: Option<String>,
            prefix: Option<String>,
            regex: Option<String>,
        }
        let plain = StringMatch::deserialize(deserializer)?;
        match (plain.exact, plain.prefix, plain.regex) {
            (None, None, None) => Ok(Self::Present),
            (Some(text), None, None) => Ok(Self::Exact(text)),
            (None, Some(text), None) => Ok(Self::Prefix(text)),
            (None, None, Some(text)) => Ok(Self::Regex(text)),
            _ => Err(de::Error::custom("only one of exact, prefix and regex may be given")),
        }
    }
}

impl StringMatch {
    /// The regular expression, if it is one.
    pub fn regex(&self) -> Option<&str> {
        match self {
            Self::Regex(text) => Some(text),
            _ => None,
        }
    }
}

/// A number or a name, as Kubernetes' `IntOrString`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NumberOrName {
    /// A port number.
    Number(u16),
    /// A port's name.
    Name(String),
}

impl<'de> Deserialize<'de> for NumberOrName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = NumberOrName;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a port's number or name")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<NumberOrName, E> {
                u16::try_from(number)
                    .map(NumberOrName::Number)
                    .map_err(|_| E::custom(format!("{number} is not a port number")))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<NumberOrName, E> {
                u16::try_from(number)
                    .map(NumberOrName::Number)
                    .map_err(|_| E::custom(format!("{number} is not a port number")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<NumberOrName, E> {
                Ok(text.parse().map_or_else(|_| NumberOrName::Name(text.to_owned()), NumberOrName::Number))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

mod schema;

/// Names with values in the order of the names.
pub type Labels = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let millis = |text: &str| text.parse::<Duration>().map(|duration| duration.0.as_millis());
        assert_eq!(millis("1.5s"), Ok(1500));
        assert_eq!(millis("1h2m"), Ok(3_720_000));
        assert_eq!(millis("100ms"), Ok(100));
        assert_eq!(millis("0s"), Ok(0));
        for text in ["", "5", "s", "5 s", "-1s", "1x", "1..5s", "5s5"] {
            assert!(millis(text).is_err(), "{text}");
        }
    }
}
