//! What a call's answers hold of the memory for bodies, from their encoding until their last byte is with the system.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Extensions;

use crate::http::body::BodyMemory;
use crate::http::error::ApiError;
use crate::http::unread::Piece;

/// The memory of a call's answers that are not yet in a piece on its way. Its handler adds each answer to it, and whoever
/// writes takes each piece from it; what is left goes with the call.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<Mutex<Share>>);

#[derive(Debug, Default)]
struct Share {
    bytes: usize,
    memory: Option<OwnedSemaphorePermit>,
}

impl Unread {
    /// That of the call whose request has these `extensions`.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an answer of `bytes`, for which `held` is held already.
    ///
    /// # Errors
    /// 429 if it is more than memory can hold beside all other bodies.
    pub(super) fn add(
        &self,
        memory: &BodyMemory,
        held: Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> Result<(), ApiError> {
        let mut share = self.share();
        match (&mut share.memory, held) {
            (Some(share), Some(held)) => share.merge(held),
            (share @ None, held) => *share = held,
            (Some(_), None) => {}
        }
        let bytes = share.bytes + bytes;
        memory.hold(&mut share.memory, bytes)?;
        share.bytes = bytes;
        // What was held for it was a bound.
        if let Some(held) = &mut share.memory {
            drop(held.split(held.num_permits().saturating_sub(bytes.div_ceil(1 << 10))));
        }
        Ok(())
    }

    /// Lets `bytes` take their share with them.
    pub(super) fn take(&self, bytes: Bytes) -> Bytes {
        let mut share = self.share();
        share.bytes = share.bytes.saturating_sub(bytes.len());
        let left_kib = share.bytes.div_ceil(1 << 10);
        let memory = share.memory.as_mut().and_then(|memory| {
            let kib = bytes.len().div_ceil(1 << 10).min(memory.num_permits());
            let taken = memory.split(kib);
            // Each answer held whole kibibytes; together they may need fewer.
            drop(memory.split(memory.num_permits().saturating_sub(left_kib)));
            taken
        });
        Bytes::from_owner(Piece::new(bytes, memory.map(Arc::new)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BodyLimits;

    #[test]
    fn an_answer_is_held_until_its_last_byte_is_dropped_and_many_small_ones_hold_no_more_than_they_are() {
        let memory = BodyMemory::new(BodyLimits { bodies_bytes_max: 10 << 10, ..BodyLimits::DEFAULT });
        let free_kib = || (1..=10).take_while(|kib| memory.hold(&mut None, kib << 10).is_ok()).count();
        let unread = Unread::default();
        unread.add(&memory, None, 4 << 10).unwrap();
        assert!(unread.add(&memory, None, 7 << 10).is_err(), "11 of 10 KiB");
        let mut piece = unread.take(Bytes::from(vec![0; 4 << 10]));
        let rest = piece.split_off(1 << 10);
        drop(piece);
        assert_eq!(free_kib(), 6, "a part of it is unread");
        drop(rest);
        assert_eq!(free_kib(), 10);
        for _ in 0..100 {
            unread.add(&memory, None, 50).unwrap();
        }
        assert_eq!(free_kib(), 5);
        let written = unread.take(Bytes::from(vec![0; 4_000]));
        assert_eq!(free_kib(), 5, "4 KiB are written, 1 KiB waits");
        drop((written, unread));
        assert_eq!(free_kib(), 10);
    }
}
