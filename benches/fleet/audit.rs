//! What the operator asked of the API server, from the audit log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::time::{Duration, Instant};

use serde::Deserialize;
use yolo_testkit::cluster::{LocalCluster, wait_for};

use crate::operator::USER;

/// At rest: nothing but the status was written for this long.
const QUIET: Duration = Duration::from_secs(30);
/// Decisions about new services settle within a window and a hold.
const SETTLED: Duration = Duration::from_mins(10);

/// The operator's calls in a span of time; leases and Events are left out.
pub struct Seen {
    pub reads: f64,
    /// Besides the status.
    pub writes: f64,
    pub status_writes: f64,
    /// Number of writes by kind.
    pub written: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: String,
    impersonated_user: Option<User>,
    object_ref: Option<Object>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct Object {
    resource: String,
    #[serde(default)]
    subresource: String,
}

/// Where the log ends now.
pub fn end(cluster: &LocalCluster) -> std::io::Result<u64> {
    Ok(std::fs::metadata(cluster.audit_log())?.len())
}

/// The calls from `offset` of the log on.
pub fn since(cluster: &LocalCluster, offset: u64) -> std::io::Result<Seen> {
    let mut log = std::fs::File::open(cluster.audit_log())?;
    log.seek(SeekFrom::Start(offset))?;
    let mut seen = Seen { reads: 0.0, writes: 0.0, status_writes: 0.0, written: String::new() };
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for line in BufReader::new(log).lines() {
        // A first or last line may be cut.
        let Ok(event) = serde_json::from_str::<Event>(&line?) else { continue };
        let own = event.impersonated_user.is_some_and(|user| user.username == USER);
        let Some(object) = event.object_ref.filter(|_| own && event.stage == "ResponseComplete") else { continue };
        match (event.verb.as_str(), object.resource.as_str(), object.subresource.as_str()) {
            (_, "leases" | "events", _) => {}
            ("get" | "list" | "watch", ..) => seen.reads += 1.0,
            (_, _, "status") => seen.status_writes += 1.0,
            _ => {
                seen.writes += 1.0;
                *kinds.entry(object.resource).or_default() += 1;
            }
        }
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    seen.written = kinds.join(", ");
    Ok(seen)
}

/// Waits until nothing but the status was written for [`QUIET`].
pub async fn quiet(cluster: &LocalCluster) -> anyhow::Result<()> {
    let (mut offset, mut since_then) = (end(cluster)?, Instant::now());
    let look = async || {
        let (now, seen) = (end(cluster).ok()?, since(cluster, offset).ok()?);
        if seen.writes > 0.0 {
            (offset, since_then) = (now, Instant::now());
        }
        (since_then.elapsed() >= QUIET).then_some(())
    };
    wait_for("rest", SETTLED, look).await.map_err(Into::into)
}
