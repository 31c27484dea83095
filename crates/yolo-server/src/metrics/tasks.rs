//! Series of the asynchronous tasks and of the shared store.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::{Labelled, Registrar};
use crate::store::OPERATIONS;
use crate::tasks::Status;

/// Asynchronous tasks.
#[derive(Debug, Clone)]
pub struct TaskMetrics {
    /// New tasks, those refused because too many wait too.
    pub arrivals: Counter,
    /// Tasks kept, by status.
    kept: Labelled<Gauge>,
    /// Tasks that reached a status.
    reached: Labelled<Counter>,
}

impl TaskMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        let states = &Status::ALL.map(Status::as_str);
        Self {
            arrivals: register
                .counter("task_arrivals", "New tasks, those refused because too many wait too, retries not"),
            kept: register.labelled(
                ("tasks", "Tasks kept; with a shared store, of queued ones the whole service's"),
                "state",
                states,
                Gauge::default,
            ),
            reached: register.counters(("tasks", "Tasks that reached a state"), "state", states),
        }
    }

    /// A task moved on: `None` is before its submission, and after its end.
    pub fn moved(&self, from: Option<Status>, to: Option<Status>) {
        if let Some(from) = from {
            self.kept.of(from.as_str()).dec();
        }
        if let Some(to) = to {
            self.kept.of(to.as_str()).inc();
            self.reached(to);
        }
    }

    /// A task that is kept elsewhere reached a status here.
    pub fn reached(&self, status: Status) {
        self.reached.of(status.as_str()).inc();
    }

    /// Tasks that are kept elsewhere.
    pub fn set_kept(&self, status: Status, tasks: usize) {
        self.kept.of(status.as_str()).set(i64::try_from(tasks).unwrap_or(i64::MAX));
    }

    /// Tasks that have not ended.
    pub fn unfinished(&self) -> f64 {
        let waiting = [Status::Queued, Status::Running].map(|status| self.kept.of(status.as_str()).get());
        f64::from(waiting.iter().filter_map(|count| u32::try_from(*count).ok()).sum::<u32>())
    }
}

/// The store that all pods share.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    /// Calls that failed or took too long, by operation.
    pub errors: Labelled<Counter>,
}

impl StoreMetrics {
    pub(super) fn new(register: &mut Registrar<'_>) -> Self {
        let name = ("store_errors", "Calls to the shared store that failed or took too long");
        Self { errors: register.counters(name, "operation", &OPERATIONS) }
    }
}
