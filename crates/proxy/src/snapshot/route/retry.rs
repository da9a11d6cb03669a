//! Whether a try is repeated: a pure function of the plan and of what happened (Envoy `RetryPolicy`).

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::failure::Failure;

/// When and how often a request is repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPlan {
    /// On what.
    pub on: RetryOn,
    /// Repetitions at most.
    pub num_retries: u32,
    /// Time for one try; zero: none.
    pub per_try_timeout: Duration,
    /// Hosts tried before are avoided (`previous_hosts`).
    pub avoid_previous: bool,
    /// How often another host is drawn to avoid those.
    pub host_attempts: u32,
    /// Statuses for `retriable-status-codes`.
    pub statuses: Vec<u16>,
    /// Base and longest back-off.
    pub back_off: (Duration, Duration),
}

macro_rules! conditions {
    ($($field:ident = $name:literal),* $(,)?) => {
        /// What is repeated on; the fields are Envoy's `retry_on` words.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub struct RetryOn { $(pub $field: bool),* }

        impl RetryOn {
            /// What either names.
            pub fn or(self, other: Self) -> Self {
                Self { $($field: self.$field || other.$field),* }
            }

            /// Reads a comma-separated list; a number is a retriable status. Returns the statuses, and words that are unknown.
            pub fn parse(text: &str) -> (Self, Vec<u16>, Vec<String>) {
                let (mut on, mut statuses, mut unknown) = (Self::default(), Vec::new(), Vec::new());
                for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                    match word {
                        $($name => on.$field = true,)*
                        other => match other.parse() {
                            Ok(status) => {
                                on.statuses = true;
                                statuses.push(status);
                            }
                            Err(_) => unknown.push(other.to_owned()),
                        },
                    }
                }
                (on, statuses, unknown)
            }
        }
    };
}

conditions! {
    five_hundreds = "5xx", gateway_error = "gateway-error", reset = "reset", reset_before_request = "reset-before-request",
    connect_failure = "connect-failure", refused_stream = "refused-stream", retriable_4xx = "retriable-4xx",
    statuses = "retriable-status-codes", headers = "retriable-headers", envoy_ratelimited = "envoy-ratelimited", http3 = "http3-post-connect-failure",
    cancelled = "cancelled", deadline_exceeded = "deadline-exceeded", internal = "internal",
    resource_exhausted = "resource-exhausted", unavailable = "unavailable",
}

/// What a try came to.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// A head of an answer arrived.
    Answered {
        /// Its status.
        status: u16,
        /// Its gRPC status, if it stands in the head (an answer of trailers only).
        grpc_status: Option<u32>,
    },
    /// None arrived.
    Failed {
        /// Why.
        failure: Failure,
        /// The endpoint refused the stream (HTTP/2 `REFUSED_STREAM` or a GOAWAY that excludes it): it was not processed.
        refused: bool,
        /// No byte of the request had been written.
        unsent: bool,
    },
}

impl RetryPlan {
    /// Whether this outcome is one to repeat on. `safe` says that the request may be repeated even if it was processed: its
    /// method is idempotent. What may have been processed is repeated for other methods only where the policy names the case
    /// itself (`reset`, `5xx`, a status): then its writer has said that it is safe.
    pub fn wants(&self, outcome: Outcome) -> bool {
        let on = &self.on;
        match outcome {
            Outcome::Answered { status, grpc_status } => {
                (on.five_hundreds && status >= 500)
                    || (on.gateway_error && matches!(status, 502..=504))
                    || (on.retriable_4xx && status == 409)
                    || (on.envoy_ratelimited && status == 429)
                    || (on.statuses && self.statuses.contains(&status))
                    || match grpc_status {
                        Some(1) => on.cancelled,
                        Some(4) => on.deadline_exceeded,
                        Some(8) => on.resource_exhausted,
                        Some(13) => on.internal,
                        Some(14) => on.unavailable,
                        _ => false,
                    }
            }
            Outcome::Failed { failure, refused, unsent } => {
                if failure == Failure::PerTryTimeout {
                    return on.five_hundreds || on.gateway_error || on.reset;
                }
                (on.connect_failure && failure.is_connect_failure())
                    || (on.refused_stream && refused)
                    || (on.reset_before_request && (unsent || failure.is_connect_failure()))
                    || ((on.reset || on.five_hundreds || on.gateway_error) && failure.is_reset())
            }
        }
    }

    /// The pause before repetition number `retry` (from 1): a random time below an exponentially growing bound.
    pub fn pause(&self, retry: u32, dice: &mut SmallRng) -> Duration {
        let (base, most) = self.back_off;
        let bound = base.saturating_mul((1_u32 << retry.min(16)) - 1).min(most).max(Duration::from_millis(1));
        Duration::from_micros(dice.random_range(0..bound.as_micros().min(u128::from(u64::MAX)) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(on: &str) -> RetryPlan {
        let (on, statuses, unknown) = RetryOn::parse(on);
        assert!(unknown.is_empty(), "{unknown:?}");
        RetryPlan {
            on,
            num_retries: 2,
            per_try_timeout: Duration::ZERO,
            avoid_previous: true,
            host_attempts: 5,
            statuses,
            back_off: (Duration::from_millis(25), Duration::from_millis(250)),
        }
    }

    #[test]
    fn each_word_means_its_cases() {
        let answered = |status| Outcome::Answered { status, grpc_status: None };
        let grpc = |code| Outcome::Answered { status: 200, grpc_status: Some(code) };
        let failed = |failure| Outcome::Failed { failure, refused: false, unsent: false };
        let refused = Outcome::Failed { failure: Failure::UpstreamReset, refused: true, unsent: false };
        let unsent = Outcome::Failed { failure: Failure::UpstreamClosed, refused: false, unsent: true };
        let cases = [
            ("5xx", answered(500), true),
            ("5xx", answered(404), false),
            ("5xx", failed(Failure::UpstreamClosed), true),
            ("gateway-error", answered(500), false),
            ("gateway-error", answered(503), true),
            ("connect-failure", failed(Failure::ConnectFailed), true),
            ("connect-failure", failed(Failure::UpstreamClosed), false),
            ("connect-failure,refused-stream,unavailable,cancelled,503", failed(Failure::UpstreamClosed), false),
            ("connect-failure,refused-stream,unavailable,cancelled,503", answered(503), true),
            ("refused-stream", refused, true),
            ("reset-before-request", failed(Failure::UpstreamClosed), false),
            ("reset-before-request", unsent, true),
            ("reset", failed(Failure::PerTryTimeout), true),
            ("retriable-4xx", answered(409), true),
            ("unavailable", grpc(14), true),
            ("cancelled", grpc(14), false),
            ("internal,resource-exhausted,deadline-exceeded", grpc(8), true),
        ];
        for (on, outcome, expected) in cases {
            assert_eq!(plan(on).wants(outcome), expected, "{on} {outcome:?}");
        }
    }

    #[test]
    fn pauses_stay_below_the_bound() {
        let mut dice: SmallRng = rand::make_rng();
        for retry in 1..40 {
            assert!(plan("5xx").pause(retry, &mut dice) <= Duration::from_millis(250));
        }
        assert!(plan("5xx").pause(1, &mut dice) <= Duration::from_millis(25));
    }

    #[test]
    fn unknown_words_are_told() {
        assert_eq!(RetryOn::parse("5xx, bogus").2, ["bogus"]);
    }
}
