//! What gives way when cores are scarce: work on pictures to the handlers, so that a refusal, or an answer from the cache,
//! is quick however busy the engine is.

use std::cell::Cell;

/// The nicest there is. Niceness counts within a container only; to others, the container weighs what its requests say.
const NICENESS: i32 = 19;

thread_local! {
    static LOWERED: Cell<bool> = const { Cell::new(false) };
}

/// Lets this thread, for good, run after those that answer requests.
pub fn give_way() {
    if LOWERED.replace(true) {
        return;
    }
    // On Linux niceness belongs to the thread. Refused at worst: then it competes as an equal.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "A thread that works on pictures keeps its priority.");
    }
}
