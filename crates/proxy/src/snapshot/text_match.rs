//! Matching of one text (Envoy `type.matcher.v3.StringMatcher`).

use regex::Regex;

/// One text matcher. With `ignore_case` the pattern is lower case already.
#[derive(Clone, Debug)]
pub struct TextMatch {
    /// How.
    pub pattern: Pattern,
    /// Letters of the ASCII range match in either case; a regular expression is never affected.
    pub ignore_case: bool,
}

/// How a text is matched.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// The whole text.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// Any part.
    Contains(String),
    /// The whole text (the expression is anchored when it is compiled).
    Regex(Regex),
}

impl TextMatch {
    /// Matches one text and nothing else.
    pub fn exact(text: &str) -> Self {
        Self { pattern: Pattern::Exact(text.to_owned()), ignore_case: false }
    }

    /// Whether the text matches.
    pub fn matches(&self, text: &str) -> bool {
        if !self.ignore_case {
            return match &self.pattern {
                Pattern::Exact(exact) => text == exact,
                Pattern::Prefix(prefix) => text.starts_with(prefix.as_str()),
                Pattern::Suffix(suffix) => text.ends_with(suffix.as_str()),
                Pattern::Contains(part) => text.contains(part.as_str()),
                Pattern::Regex(regex) => regex.is_match(text),
            };
        }
        match &self.pattern {
            Pattern::Exact(exact) => text.eq_ignore_ascii_case(exact),
            Pattern::Prefix(prefix) => {
                text.as_bytes().get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
            }
            Pattern::Suffix(suffix) => text
                .len()
                .checked_sub(suffix.len())
                .and_then(|from| text.as_bytes().get(from..))
                .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix.as_bytes())),
            Pattern::Contains(part) => text.to_ascii_lowercase().contains(part.as_str()),
            Pattern::Regex(regex) => regex.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_in_both_cases() {
        let cases = [
            (Pattern::Exact("ab".into()), "ab", "AB", "abc"),
            (Pattern::Prefix("ab".into()), "abc", "ABc", "ba"),
            (Pattern::Suffix("ab".into()), "cab", "cAB", "b"),
            (Pattern::Contains("ab".into()), "cabc", "cABc", "acb"),
        ];
        for (pattern, yes, other_case, no) in cases {
            let strict = TextMatch { pattern: pattern.clone(), ignore_case: false };
            let loose = TextMatch { pattern, ignore_case: true };
            assert!(strict.matches(yes) && !strict.matches(other_case) && !strict.matches(no), "{strict:?}");
            assert!(loose.matches(yes) && loose.matches(other_case) && !loose.matches(no), "{loose:?}");
        }
    }
}
