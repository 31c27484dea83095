//! Leader election by a `Lease`, and the evidence of it that every write demands.
//!
//! # Guarantees
//! - A [`LeaderToken`] permits a write only while the lease, measured on the monotonic clock from *before* the renewal was
//!   sent, outlasts the longest API call. So a leader that was paused and resumes cannot write in its successor's term.
//! - Other holders are judged by when this process saw their record change, never by their clock.
//! - A lost term is over for good: the same process becomes a candidate again, and a new term has a new number.
//!
//! # Assumptions
//! The API server orders updates by `resourceVersion`; the monotonic clock of one machine does not run backwards.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::limits;

/// Why a write was not permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaderError {
    /// Another process leads, or nobody does.
    #[error("this process is not the leader")]
    NotLeader,
    /// The lease may end before a write would have returned.
    #[error("the lease ends too soon for another write")]
    Expiring,
}

/// One uninterrupted time of leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    number: u64,
    until: Instant,
}

/// The election as the rest of the operator sees it; cheap to clone.
#[derive(Clone)]
pub struct Leader {
    term: watch::Receiver<Option<Term>>,
}

/// Evidence that this process leads; every writing step takes one.
#[derive(Clone)]
pub struct LeaderToken {
    term: watch::Receiver<Option<Term>>,
    number: u64,
}

impl Leader {
    /// Evidence of the present term.
    ///
    /// # Errors
    /// [`LeaderError`] if this process does not lead, or not long enough for one more write.
    pub fn token(&self) -> Result<LeaderToken, LeaderError> {
        let term = (*self.term.borrow()).ok_or(LeaderError::NotLeader)?;
        let token = LeaderToken { term: self.term.clone(), number: term.number };
        token.check().map(|()| token)
    }

    /// Whether this process leads now.
    pub fn leads(&self) -> bool {
        self.token().is_ok()
    }

    /// Waits until this process leads. Returns nothing if the election has ended.
    pub async fn acquired(&mut self) -> Option<LeaderToken> {
        let term = self.term.wait_for(Option::is_some).await.ok()?.as_ref().map(|term| term.number)?;
        Some(LeaderToken { term: self.term.clone(), number: term })
    }
}

impl LeaderToken {
    /// Permits one write.
    ///
    /// # Errors
    /// [`LeaderError`] if the term is over, or would be before the call times out.
    pub fn check(&self) -> Result<(), LeaderError> {
        match *self.term.borrow() {
            Some(term) if term.number == self.number => {
                let remaining = term.until.saturating_duration_since(Instant::now());
                if remaining >= limits::API_CALL { Ok(()) } else { Err(LeaderError::Expiring) }
            }
            _ => Err(LeaderError::NotLeader),
        }
    }

    /// Waits until the term is over.
    pub async fn lost(mut self) {
        let number = self.number;
        // An error means that the election itself has ended, and with it the term.
        let _ended = self.term.wait_for(|term| term.is_none_or(|term| term.number != number)).await;
    }
}

/// Takes part in the election until `shutdown`; vacates the lease on the way out.
///
/// Whoever campaigns for the lease of the same `namespace` and `name` is a replica of the same installation. `identity` must be
/// unique among them. The task ends only after `shutdown`.
pub fn elect(
    client: Client,
    (namespace, name): (&str, &str),
    identity: String,
    shutdown: CancellationToken,
) -> (Leader, Candidate) {
    let (sender, receiver) = watch::channel(None);
    let candidate = Candidate {
        api: Api::namespaced(client, namespace),
        name: name.to_owned(),
        identity,
        term: sender,
        held: None,
        seen: None,
        terms: 0,
        shutdown,
    };
    (Leader { term: receiver }, candidate)
}

/// The process's part in the election. Run it with [`Candidate::run`].
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    term: watch::Sender<Option<Term>>,
    /// Our own record as last written: a renewal needs no read.
    held: Option<Lease>,
    /// The other's record, and when this process first saw it so.
    seen: Option<(Option<LeaseSpec>, Instant)>,
    terms: u64,
    shutdown: CancellationToken,
}

impl Candidate {
    /// Campaigns, renews and, at shutdown, vacates.
    pub async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        // The lease is released whatever the campaign was doing: an unfinished renewal only makes the release conflict.
        shutdown.run_until_cancelled(self.campaign()).await;
        self.term.send_replace(None);
        self.vacate().await;
    }

    async fn campaign(&mut self) {
        loop {
            let sent = Instant::now();
            let outcome = timeout(limits::LEASE_TRY, self.attempt()).await;
            let pause = match outcome {
                Ok(Ok(true)) => {
                    self.extend(sent + limits::LEASE);
                    limits::LEASE_RENEW
                }
                Ok(Ok(false)) => {
                    self.term.send_replace(None);
                    limits::LEASE_POLL
                }
                Ok(Err(error)) => self.failed(&error.to_string()),
                Err(_elapsed) => self.failed("no answer in time"),
            };
            self.pause(pause).await;
        }
    }

    /// Sleeps, but wakes at the end of the term to announce the loss.
    async fn pause(&self, pause: Duration) {
        let until = self.term.borrow().map(|term| term.until);
        let end = Instant::now() + pause;
        match until {
            Some(until) if until <= end => {
                sleep_until(until).await;
                self.term.send_replace(None);
            }
            _ => sleep(pause).await,
        }
    }

    fn failed(&mut self, why: &str) -> Duration {
        tracing::warn!(error = why, "The lease could not be renewed or taken.");
        self.held = None; // The write may have taken effect: read before the next one.
        limits::LEASE_POLL
    }

    fn extend(&mut self, until: Instant) {
        let current = *self.term.borrow();
        let number = current.map_or_else(
            || {
                self.terms += 1;
                tracing::info!(identity = %self.identity, "This process leads.");
                self.terms
            },
            |term| term.number,
        );
        self.term.send_replace(Some(Term { number, until }));
    }

    /// One try: `true` if the lease is ours afterwards.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let current = match self.held.take() {
            Some(lease) => Some(lease),
            None => self.api.get_opt(&self.name).await?,
        };
        let Some(current) = current else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.record(None)) };
            self.held = Some(self.api.create(&PostParams::default(), &lease).await?);
            return Ok(true);
        };
        if !self.may_take(current.spec.as_ref()) {
            return Ok(false);
        }
        let spec = self.record(current.spec.as_ref());
        let lease = Lease { spec: Some(spec), ..current }; // Its resourceVersion makes a concurrent writer lose.
        self.held = Some(self.api.replace(&self.name, &PostParams::default(), &lease).await?);
        Ok(true)
    }

    fn may_take(&mut self, record: Option<&LeaseSpec>) -> bool {
        let since = match &self.seen {
            Some((seen, since)) if seen.as_ref() == record => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((record.cloned(), now));
                now
            }
        };
        judge(record, &self.identity, since.elapsed())
    }

    fn record(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let renewal = before.filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(limits::LEASE.as_secs()).ok(),
            acquire_time: renewal.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if renewal.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }

    /// Leaves the lease to the next candidate at once, instead of after its whole duration.
    async fn vacate(&mut self) {
        let held = match self.held.take() {
            Some(lease) => Some(lease),
            None => timeout(limits::LEASE_TRY, self.api.get_opt(&self.name)).await.ok().and_then(Result::ok).flatten(),
        };
        let Some(mut lease) = held else { return };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity))
        else {
            return;
        };
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        let released = timeout(limits::LEASE_TRY, self.api.replace(&self.name, &PostParams::default(), &lease)).await;
        if !matches!(released, Ok(Ok(_))) {
            tracing::warn!("The lease could not be vacated; it runs out by itself.");
        }
    }
}

/// Whether `me` may write itself into `record`, which this process has seen unchanged for `unchanged`.
fn judge(record: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> bool {
    let Some(spec) = record else { return true };
    match spec.holder_identity.as_deref() {
        None | Some("") => true,
        Some(holder) if holder == me => true,
        Some(_) => {
            let duration_s = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            unchanged >= duration_s.map_or(limits::LEASE, Duration::from_secs)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(holder.to_owned()), lease_duration_seconds: Some(12), ..LeaseSpec::default() }
    }

    #[test]
    fn lease_of_another_is_taken_only_after_it_stood_still_for_its_duration() {
        let record = held_by("other");
        assert!(!judge(Some(&record), "me", Duration::from_secs(11)));
        assert!(judge(Some(&record), "me", Duration::from_secs(12)));
        assert!(judge(Some(&held_by("me")), "me", Duration::ZERO));
        assert!(judge(Some(&held_by("")), "me", Duration::ZERO));
        assert!(judge(None, "me", Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn token_ends_one_call_before_the_lease_does() {
        let (sender, receiver) = watch::channel(Some(Term { number: 1, until: Instant::now() + limits::LEASE }));
        let leader = Leader { term: receiver };
        let token = leader.token().unwrap();
        tokio::time::advance(limits::LEASE.saturating_sub(limits::API_CALL)).await;
        assert_eq!(token.check(), Ok(()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(token.check(), Err(LeaderError::Expiring));
        // A new term does not revive evidence of the old one.
        sender.send_replace(Some(Term { number: 2, until: Instant::now() + limits::LEASE }));
        assert_eq!(token.check(), Err(LeaderError::NotLeader));
        assert_eq!(leader.token().unwrap().check(), Ok(()));
        token.lost().await;
    }
}
