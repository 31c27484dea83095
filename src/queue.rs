//! Which services wait for a reconcile, and since when: the controller's own queue cannot be looked into.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fleet::ServiceId;

/// Services that something has woken and that have not been reconciled since. Sampling rounds and changes of children wake;
/// a change of the service itself comes past this.
#[derive(Debug, Default)]
pub struct Queue {
    woken: Mutex<HashMap<ServiceId, Instant>>,
}

impl Queue {
    /// `service` was woken. Returns how many wait.
    pub fn woken(&self, service: &ServiceId) -> usize {
        let mut woken = self.lock();
        woken.entry(service.clone()).or_insert_with(Instant::now);
        woken.len()
    }

    /// `service` is taken up, or gone. Returns how many still wait, and how long it did since it was first woken.
    pub fn taken(&self, service: &ServiceId) -> (usize, Option<Duration>) {
        let mut woken = self.lock();
        let waited = woken.remove(service).map(|since| since.elapsed());
        (woken.len(), waited)
    }

    /// Nobody waits any more.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// A panic elsewhere cannot leave a half-written entry here.
    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceId, Instant>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_woken_twice_waits_once_from_the_first_time() {
        let queue = Queue::default();
        let [fork, knife] = ["fork", "knife"].map(|name| ServiceId { namespace: "kitchen".into(), name: name.into() });
        assert_eq!((queue.woken(&fork), queue.woken(&knife), queue.woken(&fork)), (1, 2, 2));
        let (left, waited) = queue.taken(&fork);
        assert_eq!((left, waited.is_some()), (1, true));
        assert_eq!(queue.taken(&fork), (1, None), "taken already");
    }
}
