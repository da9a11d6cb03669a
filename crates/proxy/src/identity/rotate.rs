//! When to renew: pure arithmetic on the leaf's times.

use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate's times, seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Valid from.
    pub not_before: i64,
    /// Valid until.
    pub not_after: i64,
}

impl Validity {
    /// How long to wait before renewing: to half the life, moved by up to 5 % of it either way so that a fleet does not ask
    /// at once (Istio: SECRET_GRACE_PERIOD_RATIO 0.5 with jitter). `dice` is any number. At least 500 ms, so that a tiny
    /// life is not a busy loop.
    pub fn renew_in(self, now: i64, dice: u16) -> Duration {
        let life = (self.not_after - self.not_before).max(0) as f64;
        let jitter = (f64::from(dice) / f64::from(u16::MAX) - 0.5) * 0.1;
        let due = self.not_before as f64 + life * (0.5 + jitter);
        Duration::from_secs_f64((due - now as f64).clamp(0.5, 1e9))
    }
}

/// The pause after the `attempt`-th failure (from 0): 100 ms, doubling to 15 s, with jitter of half.
pub fn back_off(attempt: u32, dice: u16) -> Duration {
    let base = 0.1 * f64::from(2u32.saturating_pow(attempt.min(8)));
    Duration::from_secs_f64(base.min(15.0) * (0.75 + 0.5 * f64::from(dice) / f64::from(u16::MAX)))
}

/// Reads a leaf's times and its one URI name.
///
/// # Errors
/// The certificate cannot be read or names no workload.
pub fn read_leaf(leaf: &CertificateDer<'_>) -> Result<(Validity, String)> {
    let (_, certificate) = X509Certificate::from_der(leaf).context("the certificate cannot be read")?;
    let times = certificate.validity();
    let names = certificate.subject_alternative_name().context("the certificate's names cannot be read")?;
    let uri = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
    });
    let name = uri.context("the certificate has no URI name")?;
    Ok((Validity { not_before: times.not_before.timestamp(), not_after: times.not_after.timestamp() }, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_half_the_life() {
        let valid = Validity { not_before: 1_000, not_after: 1_000 + 86_400 };
        for dice in [0, u16::MAX / 2, u16::MAX] {
            let pause = valid.renew_in(1_000, dice).as_secs();
            assert!((38_000..=48_000).contains(&pause), "{pause}");
        }
        assert_eq!(valid.renew_in(80_000, 7), Duration::from_millis(500));
    }

    #[test]
    fn failures_wait_longer_and_longer_but_never_long() {
        assert!(back_off(0, 0) < back_off(3, 0));
        assert!(back_off(60, u16::MAX) <= Duration::from_secs(19));
    }
}
