//! Pure image and tensor semantics: bytes to pixels to tensor, output tensor to detections.
