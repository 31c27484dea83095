//! Whether a live object already is what we would apply, so that nothing is written when nothing changed.
//!
//! Guarantees: `true` only if every field of `desired` has its value in `live`. A field that `desired` has *no longer* is
//! caught by the hash annotation, which `desired` carries and which then differs.

use serde_json::Value;

/// Whether every field of `desired` is in `live` with an equal value. Lists are compared item by item, at equal length.
pub fn covers(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(key, value)| live.get(key).is_some_and(|live| covers(live, value)))
        }
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len() && live.iter().zip(desired).all(|(live, desired)| covers(live, desired))
        }
        (live, desired) => live == desired,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_of_the_server_do_not_count_and_ours_do() {
        let desired = json!({"spec": {"replicas": 2, "ports": [{"port": 80}]}});
        assert!(covers(
            &json!({"spec": {"replicas": 2, "x": 1, "ports": [{"port": 80, "protocol": "TCP"}]}}),
            &desired
        ));
        assert!(!covers(&json!({"spec": {"replicas": 3, "ports": [{"port": 80}]}}), &desired));
        assert!(!covers(&json!({"spec": {"replicas": 2, "ports": [{"port": 80}, {"port": 81}]}}), &desired));
        assert!(!covers(&json!({"spec": {"replicas": 2}}), &desired));
    }
}
