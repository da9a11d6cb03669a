//! Values as Go spells them, which Istio's flags and variables follow.

use std::time::Duration;

/// A duration: `24h`, `90m`, `1h30m`.
///
/// # Errors
/// It is none; a sentence.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 24h, 90m or 1h30m");
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        total += number
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                _ => return Err(wrong()),
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() || !total.is_finite() || total < 0.0 { Err(wrong()) } else { Ok(Duration::from_secs_f64(total)) }
}

/// A truth: `true`, `1`, `T` and the like. An empty variable is as good as none.
///
/// # Errors
/// It is none; a sentence.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        for text in ["", "12", "h", "1d", "-1s", "1e3s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn truths_are_read_as_go_reads_them() {
        for (text, truth) in [("true", true), ("1", true), ("T", true), ("false", false), ("0", false), ("", false)] {
            assert_eq!(parse_bool(text), Ok(truth), "{text}");
        }
        assert!(parse_bool("yes").is_err());
    }
}
