//! Version `v1alpha1` of the group `yolo-operator.io`.

pub mod conditions;
pub mod defaults;
pub mod model;
pub mod pod;
pub mod scalars;
pub mod scaling;
mod schema;
pub mod spec;
pub mod status;
pub mod targets;
pub mod validate;

pub use scalars::{Decimal, DurationText, Quantity};
pub use spec::{YoloInferenceService, YoloInferenceServiceSpec};
pub use status::YoloInferenceServiceStatus;
