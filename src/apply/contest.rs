//! Somebody keeps changing what we keep putting back: who writes more often wins nothing, and the API server pays.
//!
//! The first change is put back at once; each further one only after a rest that doubles. While it rests, the object stays as
//! the other has it, and the status says so.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use yolo_planner::units::Timestamp;

use super::objects::FIELD_MANAGER;
use super::release::RELEASED_MANAGER;
use crate::call::Target;
use crate::limits;

/// Contests by kind; kept from one reconcile to the next.
pub type Contests = BTreeMap<&'static str, Contest>;

/// One object that was put back.
#[derive(Debug, Clone, PartialEq)]
pub struct Contest {
    /// Times that it was put back without a quiet time between them.
    rewrites: u32,
    /// The last of them.
    last: Timestamp,
    /// Said once it had to be changed again too soon: what a person should know.
    told: Option<String>,
}

impl Contest {
    /// It was put back at `now`, `before` being what is known of earlier times.
    pub fn after(before: Option<Self>, now: Timestamp) -> Self {
        let (rewrites, told) = before.map_or((0, None), |before| (before.rewrites, before.told));
        Self { rewrites: rewrites.saturating_add(1), last: now, told }
    }

    /// Whether the rest since it was last put back is over at `now`.
    pub fn rested(&self, now: Timestamp) -> bool {
        let doubled = limits::REWRITE_REST.saturating_mul(1 << self.rewrites.saturating_sub(1).min(16));
        now.since(self.last) >= doubled.min(limits::REWRITE_REST_MAX).as_secs_f64()
    }

    /// Whether it stays as the other has it, at `now`.
    pub fn rests(&self, now: Timestamp) -> bool {
        self.told.is_some() && !self.rested(now)
    }

    /// `target`, which `meta` is of, was changed again too soon.
    pub fn tell(&mut self, target: &Target, meta: &ObjectMeta) {
        let by = other(meta).unwrap_or("another client");
        self.told = Some(format!(
            "{by} keeps changing {target}, which the operator puts back ever more rarely; end it there, or set the field in this service."
        ));
    }

    /// What to tell a person.
    pub fn told(&self) -> Option<&str> {
        self.told.as_deref()
    }
}

/// The field manager, not ours, that last wrote the object (its status apart).
fn other(meta: &ObjectMeta) -> Option<&str> {
    let foreign = meta.managed_fields.iter().flatten().filter(|entry| {
        entry.subresource.as_deref().is_none_or(str::is_empty)
            && !matches!(entry.manager.as_deref(), Some(FIELD_MANAGER | RELEASED_MANAGER))
    });
    foreign.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?.manager.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_doubles_with_each_rewrite_up_to_its_limit() {
        let mut contest = None;
        let mut now_s = 1000;
        for rest_s in [30, 60, 120, 240, 300, 300] {
            let put_back = Contest::after(contest, Timestamp::whole(now_s));
            assert!(!put_back.rested(Timestamp::whole(now_s + rest_s - 1)), "{rest_s} s");
            now_s += rest_s;
            assert!(put_back.rested(Timestamp::whole(now_s)), "{rest_s} s");
            contest = Some(put_back);
        }
    }

    #[test]
    fn the_other_writer_is_named_and_the_writers_of_a_status_are_not() {
        let meta = "{managedFields: [{manager: yolo-operator, time: '2026-01-03T00:00:00Z'}, \
            {manager: old, time: '2026-01-01T00:00:00Z'}, {manager: kubectl, time: '2026-01-02T00:00:00Z'}, \
            {manager: kube-controller-manager, subresource: status, time: '2026-01-04T00:00:00Z'}]}";
        let meta: ObjectMeta = serde_yaml_ng::from_str(meta).unwrap();
        let mut contest = Contest::after(None, Timestamp::ZERO);
        assert_eq!(contest.told(), None);
        assert!(!contest.rests(Timestamp::ZERO), "nobody has changed it again");
        contest.tell(&Target::new("Service", "kitchen", "fork"), &meta);
        assert!(contest.rests(Timestamp::ZERO) && !contest.rests(Timestamp::whole(30)));
        assert!(contest.told().unwrap().starts_with("kubectl keeps changing Service kitchen/fork"), "{contest:?}");
        assert!(Contest::after(Some(contest), Timestamp::ZERO).told().is_some(), "told until it is over");
    }
}
