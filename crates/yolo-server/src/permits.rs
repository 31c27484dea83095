//! A bounded number of permits, handed out in the order of [`FairQueue`]: a request with many pictures delays one with
//! a single picture by one turn, and of a stream's frames only the newest waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::fair::{FairQueue, Place};

#[derive(Debug)]
struct State {
    free: usize,
    waiting: FairQueue<oneshot::Sender<Permit>>,
}

/// The permits of one pool.
#[derive(Debug, Clone)]
pub(crate) struct FairPermits(Arc<Mutex<State>>);

/// Leave to use the pool; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    /// `None` once it has been handed on.
    pool: Option<FairPermits>,
}

/// A newer frame of the same stream came while this one waited.
#[derive(Debug)]
pub(crate) struct Superseded;

impl FairPermits {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: count, waiting: FairQueue::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit.
    ///
    /// Cancellation: dropped, the call loses its turn and nothing else.
    pub(crate) async fn acquire(&self, place: &Place) -> Result<Permit, Superseded> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Permit { pool: Some(self.clone()) });
            }
            // Those that were cancelled or dropped here learn it by the end of their channel.
            state.waiting.remove(oneshot::Sender::is_closed);
            state.waiting.push(place, sender);
        }
        receiver.await.map_err(|_| Superseded)
    }

    /// Up to `count` permits that nobody waits for.
    pub(crate) fn take_idle(&self, count: usize) -> Vec<Permit> {
        let mut state = self.state();
        let taken = count.min(state.free);
        state.free -= taken;
        std::iter::repeat_with(|| Permit { pool: Some(self.clone()) }).take(taken).collect()
    }

    /// Gives a permit to the next one that still waits.
    fn hand_on(&self) {
        loop {
            let next = {
                let mut state = self.state();
                let next = state.waiting.take(1, |_, _| true).pop();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some(next) = next else { return };
            match next.send(Permit { pool: Some(self.clone()) }) {
                Ok(()) => return,
                // It left meanwhile: the permit is still ours.
                Err(mut unwanted) => unwanted.pool = None,
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.hand_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_lone_request_is_one_turn_behind_a_large_one() {
        let pool = FairPermits::new(1);
        let (large, small) = (Place::of_new_request(), Place::of_new_request());
        let running = pool.acquire(&large).now_or_never().unwrap().unwrap();
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire(&large))).collect();
        let mut lone = Box::pin(pool.acquire(&small));
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert!(lone.as_mut().now_or_never().is_none());
        drop(running);
        let first = waiting[0].as_mut().now_or_never().unwrap().unwrap();
        assert!(lone.as_mut().now_or_never().is_none(), "one turn");
        drop(first);
        assert!(lone.as_mut().now_or_never().unwrap().is_ok());
    }

    #[test]
    fn a_permit_that_nobody_takes_is_not_lost() {
        let pool = FairPermits::new(1);
        let place = Place::of_new_request();
        let running = pool.acquire(&place).now_or_never().unwrap().unwrap();
        let mut gone_before = Box::pin(pool.acquire(&place));
        let mut gone_after = Box::pin(pool.acquire(&place));
        assert!(gone_before.as_mut().now_or_never().is_none() && gone_after.as_mut().now_or_never().is_none());
        drop(gone_before);
        drop(running);
        drop(gone_after); // it had the permit and never looked
        assert!(pool.acquire(&place).now_or_never().unwrap().is_ok());
    }

    #[test]
    fn a_newer_frame_replaces_the_waiting_one() {
        let pool = FairPermits::new(1);
        let frame = || Place { stream: Some("gate".into()), ..Place::of_new_request() };
        let (first, second, third) = (frame(), frame(), frame());
        let running = pool.acquire(&first).now_or_never().unwrap();
        let mut old = Box::pin(pool.acquire(&second));
        assert!(old.as_mut().now_or_never().is_none());
        let mut new = Box::pin(pool.acquire(&third));
        assert!(new.as_mut().now_or_never().is_none());
        assert!(old.as_mut().now_or_never().unwrap().is_err());
        drop(running);
        assert!(new.as_mut().now_or_never().unwrap().is_ok());
    }
}
