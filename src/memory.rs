//! What the leader remembers of each service between two reconciles. It is lost with the leadership, on purpose: every step
//! must be able to start from the live objects and the status alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fleet::ServiceId;

/// One value a service. Reconciles of one object never overlap, so that a read and a later write need no lock between them.
#[derive(Debug)]
pub struct Memory<T> {
    services: Mutex<HashMap<ServiceId, (String, T)>>,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { services: Mutex::default() }
    }
}

impl<T: Clone> Memory<T> {
    /// What was kept for `service`; nothing if the object is another one (`uid`) of the same name.
    pub fn of(&self, service: &ServiceId, uid: &str) -> Option<T> {
        self.lock().get(service).filter(|(kept_uid, _)| kept_uid == uid).map(|(_, value)| value.clone())
    }

    /// Replaces what is kept for `service`.
    pub fn keep(&self, service: &ServiceId, uid: &str, value: T) {
        self.lock().insert(service.clone(), (uid.to_owned(), value));
    }

    /// Forgets a service that is gone.
    pub fn forget(&self, service: &ServiceId) {
        self.lock().remove(service);
    }

    /// Forgets every service.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// A panic elsewhere cannot leave a half-written value here: inserts and removes are whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceId, (String, T)>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_created_again_under_its_name_starts_afresh() {
        let memory = Memory::default();
        let fork = ServiceId { namespace: "kitchen".into(), name: "fork".into() };
        memory.keep(&fork, "first", 7);
        assert_eq!(memory.of(&fork, "first"), Some(7));
        assert_eq!(memory.of(&fork, "second"), None);
        memory.forget(&fork);
        assert_eq!(memory.of(&fork, "first"), None);
    }
}
