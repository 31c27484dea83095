//! Types of the `YoloInferenceService` custom resource, its validation rules and conditions.
//!
//! Pure: no client, no tokio. `v1alpha1` is the one served version.
#![forbid(unsafe_code)]

pub mod crd;
pub mod v1alpha1;

pub use v1alpha1::validate::inactive_fields;
