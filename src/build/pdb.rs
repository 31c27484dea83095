//! The disruption budget: a node drain takes one pod at a time.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, selector};
use crate::validate::Validated;

/// Builds the budget. A pod that does not serve anyway may always be evicted: it must not block a drain for ever.
pub fn budget(spec: &Validated) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(spec, &spec.id.name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(spec)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
