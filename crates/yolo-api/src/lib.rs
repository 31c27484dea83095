//! Types of the YoloInferenceService custom resource, its validation rules and conditions.
