//! Pure image and tensor semantics: bytes to pixels to tensor, output tensor to detections.
//!
//! The path of one picture, in the order of the calls:
//!
//! | step | call | shapes |
//! |---|---|---|
//! | bytes to pixels | [`decode`] | `[height, width, 3]` u8 RGB |
//! | geometry | [`Letterbox::plan`] | |
//! | resize and pad | [`letterbox_into`] | `[3, H, W]` u8 RGB |
//! | (resize and cut, to classify) | [`centre_crop_into`] | `[3, H, W]` u8 RGB |
//! | tensor | [`normalise`] | `[3, H, W]` f32 in 0..=1 |
//! | (the engine runs; not here) | | `[rows, columns]` f32 and what the task needs |
//! | detections | [`postprocess`] | boxes, masks, points in pixels of the picture |
//! | a picture to look at | [`draw`], [`encode`] | |
//!
//! A model describes itself by [`ModelInfo::parse`]. Hostile input gives an error, never a panic.
#![forbid(unsafe_code)]

mod boxes;
mod centre_crop;
mod contour;
mod decode;
mod detection;
mod draw;
mod encode;
mod head;
mod layout;
mod letterbox;
mod literal;
mod mask;
mod metadata;
mod nms;
mod picture;
mod postprocess;
mod projection;
mod properties;
mod rotated;
mod summary;
mod task;
mod tensor;

pub use boxes::BoxXyxyPx;
pub use centre_crop::centre_crop_into;
pub use decode::{DecodeError, DecodeLimits, decode};
pub use detection::{Detection, Form, Keypoint};
pub use draw::draw;
pub use encode::{EncodeError, PictureFormat, encode};
pub use layout::Layout;
pub use letterbox::{Letterbox, LetterboxError, Tap, letterbox_into, letterbox_parallel_into};
pub use mask::Rle;
pub use metadata::{ModelError, ModelInfo, TensorShape};
pub use picture::{Picture, Size};
pub use postprocess::{FORMS_BYTES_MAX, Masks, OutputError, OutputView, Parameters, postprocess};
pub use rotated::RotatedBoxPx;
pub use summary::{BoxJson, CornersJson, DetectionJson, EdgesJson, KeypointsJson, RleJson, SegmentsJson};
pub use task::Task;
pub use tensor::normalise;
