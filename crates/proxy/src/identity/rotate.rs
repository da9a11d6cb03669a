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
    /// How long to wait before renewing a certificate that has just been issued: half of what is left of its life, moved by up to
    /// 5 % of it either way so that a fleet does not ask at once (Istio: SECRET_GRACE_PERIOD_RATIO 0.5 with jitter). What was
    /// dated back for clocks that are behind does not count: of a short life that would be more than half. `now` is in seconds
    /// since 1970, `dice` any number. At least 500 ms, so that a tiny life is not a busy loop.
    pub fn renew_in(self, now: f64, dice: u16) -> Duration {
        let left = (self.not_after as f64 - now).max(0.0);
        let jitter = (f64::from(dice) / f64::from(u16::MAX) - 0.5) * 0.1;
        Duration::from_secs_f64((left * (0.5 + jitter)).clamp(0.5, 1e9))
    }
}

/// The pause after the `attempt`-th failure (from 0) with so many seconds left of the certificate's life: 100 ms, doubling to
/// 15 s, with jitter of half. Never longer than an eighth of what is left, and not above a second once nothing is: without a
/// certificate no new connection can be made, so that each second counts when the authority is back.
pub fn back_off(attempt: u32, left: f64, dice: u16) -> Duration {
    let base = 0.1 * f64::from(2u32.saturating_pow(attempt.min(8)));
    let most = (left / 8.0).clamp(1.0, 15.0);
    Duration::from_secs_f64(base.min(most) * (0.75 + 0.5 * f64::from(dice) / f64::from(u16::MAX)))
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
    fn renewal_is_due_around_half_of_what_is_left() {
        // Dated back by two minutes, as our authority and Istio's do.
        for (life, least, most) in [(86_400, 38_000.0, 48_000.0), (10, 4.4, 5.6), (3, 1.3, 1.7), (0, 0.5, 0.5)] {
            let valid = Validity { not_before: 1_000_000 - 120, not_after: 1_000_000 + life };
            for dice in [0, u16::MAX / 2, u16::MAX] {
                let pause = valid.renew_in(1_000_000.0, dice).as_secs_f64();
                assert!((least..=most).contains(&pause), "{pause} of {life}");
            }
        }
    }

    #[test]
    fn failures_wait_longer_and_longer_but_never_long() {
        let day = 86_400.0;
        assert!(back_off(0, day, 0) < back_off(3, day, 0));
        assert!(back_off(60, day, u16::MAX) <= Duration::from_secs(19));
        assert!(back_off(60, 40.0, u16::MAX) <= Duration::from_secs_f64(6.3));
        assert!(back_off(60, -10.0, u16::MAX) <= Duration::from_secs_f64(1.3), "nothing is left");
    }
}
