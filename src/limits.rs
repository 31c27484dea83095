//! A limit on everything. Values of `reliability.md` section 6, each with its reason.

use std::time::Duration;

/// One API call. The client's own retries could sleep 164 s in one call, so they are off and this bounds the call.
pub const API_CALL: Duration = Duration::from_secs(5);
/// One reconcile: six writes of [`API_CALL`] each.
pub const RECONCILE: Duration = Duration::from_secs(30);
/// Reconciles at the same time: more would only queue at the API server.
pub const RECONCILES_IN_FLIGHT: u16 = 8;
/// A watch ends and starts again after this, because some load balancers drop a silent one at 240 s without a word.
pub const WATCH_S: u32 = 200;

/// A lease that is not renewed for this long may be taken.
pub const LEASE: Duration = Duration::from_secs(12);
/// Renewal interval: three tries fit into a lease.
pub const LEASE_RENEW: Duration = Duration::from_secs(4);
/// One try to renew; `LEASE - LEASE_RENEW - LEASE_TRY` leaves [`API_CALL`] for a write under way.
pub const LEASE_TRY: Duration = Duration::from_secs(3);
/// How often a candidate looks.
pub const LEASE_POLL: Duration = Duration::from_secs(1);

/// First retry of a transient failure; doubled at each.
pub const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Latest retry of a transient failure.
pub const RETRY_TRANSIENT_MAX: Duration = Duration::from_secs(30);
/// Latest retry of a refusal (quota, Pod Security, an invalid spec): only a person can end it.
pub const RETRY_DENIED_MAX: Duration = Duration::from_mins(5);
/// A service whose rollout waits for those of others looks this often: as often as a sampling round wakes it.
pub const ROLLOUT_LOOK: Duration = Duration::from_secs(5);
/// The net under all triggers while a service is at work: sampling rounds trigger reconciles long before.
pub const REQUEUE: Duration = Duration::from_mins(1);

/// Nudges under way for one service.
pub const NUDGES_IN_FLIGHT: usize = 16;
/// A pod that has not applied its knobs by then is nudged again.
pub const RENUDGE_AFTER: Duration = Duration::from_secs(2);
/// Re-nudges a pod and generation: `17.1`, `17.2`, `17.3`; afterwards the kubelet's own sync (about 60 s) must do.
pub const RENUDGES_MAX: u32 = 3;

/// The status refresh of values that moved, at most this often.
pub const STATUS_REFRESH: Duration = Duration::from_secs(30);
/// A shown value that moved by less than this share is not worth a write.
pub const STATUS_MOVED_RATIO: f64 = 0.10;
/// `status.learned` is a hint for a successor: written at most this often.
pub const LEARNED_REFRESH: Duration = Duration::from_mins(10);
/// A second foreign write to replicas within this time means that another autoscaler is at work.
pub const FOREIGN_WRITE_WINDOW: Duration = Duration::from_mins(10);
/// What somebody else changed a second time is put back this long after the first; doubled at each: at most twice a minute.
pub const REWRITE_REST: Duration = Duration::from_secs(30);
/// The longest of these rests.
pub const REWRITE_REST_MAX: Duration = Duration::from_mins(5);
/// Reconcile triggers waiting; a full channel loses nothing, because the requeue comes anyway.
pub const TRIGGERS_WAITING: usize = 4096;
