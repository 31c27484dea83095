//! The log's line of a decision: what a person greps for, and what a log store can count.

use yolo_planner::Record;

use super::text;
use crate::fleet::ServiceId;

/// Logs that `service` got other knobs; `decision` is the id that its status shows.
pub fn decided(service: &ServiceId, record: &Record) {
    let Record { from, to, .. } = record;
    tracing::info!(
        %service,
        decision = record.id,
        trigger = text::trigger(record.trigger),
        from.replicas = from.replicas.get(),
        to.replicas = to.replicas.get(),
        from.batch = from.max_batch_size.get(),
        to.batch = to.max_batch_size.get(),
        from.cache_bytes = from.cache_bytes.get(),
        to.cache_bytes = to.cache_bytes.get(),
        reason = record.reason,
        "Knobs were changed."
    );
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use serde_json::{Value, json};
    use yolo_planner::decision::{Outcome, Trigger};
    use yolo_planner::units::{Replicas, Timestamp};
    use yolo_planner::{Knobs, Policy};

    use super::*;

    #[test]
    fn decision_is_one_line_with_its_id_its_knobs_and_its_reason() {
        let from = Knobs::initial(&Policy::default());
        let record = Record {
            id: 7,
            time: Timestamp::whole(7),
            trigger: Trigger::Load,
            from,
            to: Knobs { replicas: Replicas::new(3), ..from },
            reason: "replicas 1→3: 40/s need 3 pods".to_owned(),
            constraints: Vec::new(),
            predicted: Outcome::default(),
            actual: None,
            verdict: None,
        };
        let mut file = tempfile::tempfile().unwrap();
        let writer = std::sync::Mutex::new(file.try_clone().unwrap());
        let subscriber = tracing_subscriber::fmt().json().with_writer(writer).finish();
        let fork = ServiceId { namespace: "kitchen".to_owned(), name: "fork".to_owned() };
        tracing::subscriber::with_default(subscriber, || decided(&fork, &record));
        file.flush().unwrap();
        file.rewind().unwrap();
        let text = std::io::read_to_string(file).unwrap();
        let fields = serde_json::from_str::<Value>(&text).unwrap()["fields"].clone();
        assert_eq!(
            fields,
            json!({"message": "Knobs were changed.", "service": "kitchen/fork", "decision": 7, "trigger": "Load",
                "from.replicas": 1, "to.replicas": 3, "from.batch": 4, "to.batch": 4, "from.cache_bytes": 0,
                "to.cache_bytes": 0, "reason": "replicas 1→3: 40/s need 3 pods"})
        );
    }
}
