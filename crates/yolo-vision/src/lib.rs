//! Pure image and tensor semantics: bytes to pixels to tensor, output tensor to detections.
//!
//! The path of one picture, in the order of the calls:
//!
//! | step | call | shapes |
//! |---|---|---|
//! | bytes to pixels | [`decode`] | `[height, width, 3]` u8 RGB |
//! | geometry | [`Letterbox::plan`] | |
//! | resize and pad | [`letterbox_into`] | `[3, H, W]` u8 RGB |
//! | tensor | [`normalise`] | `[3, H, W]` f32 in 0..=1 |
//! | (the engine runs; not here) | | `[rows, columns]` f32 |
//! | detections | [`postprocess`] | boxes in pixels of the picture |
//!
//! A model describes itself by [`ModelInfo::parse`]. Hostile input gives an error, never a panic.
#![forbid(unsafe_code)]

mod boxes;
mod decode;
mod detection;
mod layout;
mod letterbox;
mod literal;
mod metadata;
mod nms;
mod picture;
mod postprocess;
mod tensor;

pub use boxes::BoxXyxyPx;
pub use decode::{DecodeError, DecodeLimits, decode};
pub use detection::{BoxJson, Detection, DetectionJson};
pub use layout::Layout;
pub use letterbox::{Letterbox, LetterboxError, letterbox_into};
pub use metadata::{ModelError, ModelInfo, TensorShape};
pub use picture::{Picture, Size};
pub use postprocess::{OutputError, OutputView, Parameters, postprocess};
pub use tensor::normalise;
