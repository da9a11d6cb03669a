//! Plans shared between proxies for which they are equal, for as long as one of them uses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use api::xds::ResourceKind;
use plan::{ProxyIdentity, Scope, Snapshot};

use super::offer::Offer;

/// The offers in use, by what they are made of.
#[derive(Default)]
pub struct Cache {
    offers: Mutex<HashMap<(u64, bool), Weak<Offer>>>,
}

impl Cache {
    /// What a proxy should hold. `secrets`: whether it has proven itself over an encrypted connection; to all others no
    /// secret is offered.
    pub fn offer(&self, snapshot: &Arc<Snapshot>, proxy: &ProxyIdentity, secrets: bool) -> Arc<Offer> {
        let scope = Scope::of(snapshot, proxy);
        let key = (scope.key(), secrets);
        let mut offers = self.lock();
        if let Some(offer) = offers.get(&key).and_then(Weak::upgrade) {
            return offer;
        }
        let offer = Arc::new(Offer::new(Box::new(move |kind| {
            if kind == ResourceKind::Secret && !secrets {
                return Default::default();
            }
            scope.generate(kind)
        })));
        offers.retain(|_, offer| offer.strong_count() > 0);
        offers.insert(key, Arc::downgrade(&offer));
        offer
    }

    /// Number of plans in use.
    pub fn len(&self) -> usize {
        self.lock().values().filter(|offer| offer.strong_count() > 0).count()
    }

    /// Whether no plan is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, bool), Weak<Offer>>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
