//! `Accept: image/png` or `image/jpeg` on `/predict`: the picture itself, with what was found drawn into it.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use axum::Extension;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use yolo_vision::{PictureFormat, decode, draw, encode};

use super::body::Upload;
use super::error::{ApiError, Code};
use super::held_file::HeldFile;
use crate::app::App;
use crate::batcher::Place;
use crate::predictor::{Prediction, Predictor};
use crate::prepare::{Turn, of_picture};

/// What a client wants to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Detections as JSON.
    Json,
    /// The annotated picture.
    Picture(PictureFormat),
}

impl Output {
    /// The output that `Accept` prefers: the highest `q`, then the first named. JSON if it names none that we have.
    pub(super) fn accepted_by(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut best = (0.0, Self::Json);
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let output = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/json" | "application/*" | "*/*" => Self::Json,
                "image/jpeg" | "image/jpg" | "image/*" => Self::Picture(PictureFormat::Jpeg),
                "image/png" => Self::Picture(PictureFormat::Png),
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0_f32);
            if quality > best.0 {
                best = (quality, output);
            }
        }
        best.1
    }

    pub(super) const fn picture(self) -> Option<PictureFormat> {
        match self {
            Self::Json => None,
            Self::Picture(format) => Some(format),
        }
    }
}

/// A picture that will be drawn once its objects are known.
pub(super) struct Drawing {
    pub(super) upload: Upload,
    /// The end of the request's own time-out.
    pub(super) answer_by: Option<Instant>,
    pub(super) format: PictureFormat,
}

impl Drawing {
    /// Draws a prediction into its picture, on the pool that pictures are decoded on, in memory for bodies.
    ///
    /// The picture is decoded a second time: to keep its pixels while it waits in the queue would cost forty times the
    /// memory of the file.
    ///
    /// # Errors
    /// 504 if its turn comes later than an image's batch may start, or the drawing ends after the time-out; 422 for a
    /// picture past this server's bounds; 429 if its file is more than memory can hold now.
    pub(super) async fn respond(
        self,
        app: &App,
        predictor: &Predictor,
        prediction: Prediction,
    ) -> Result<Response, ApiError> {
        let (Self { upload, answer_by, format }, Prediction { answer, promise, .. }) = (self, prediction);
        let limits = *predictor.preparer().limits();
        let mut file = HeldFile::new(app.bodies.clone());
        let work = move || {
            // What is remembered may have been found by a server with more memory.
            let mut picture = decode(&upload.bytes, &limits).map_err(|error| of_picture(&error))?;
            drop(upload);
            draw(&mut picture, &answer.detections);
            match encode(&picture, format, &mut file) {
                Ok(()) => Ok(file.finished()),
                Err(error) => Err(file.refused().unwrap_or_else(|| ApiError::new(Code::Internal, error.to_string()))),
            }
        };
        let place = Place::of_new_request();
        let start_by = Some(Instant::now() + app.knobs().deadline);
        let turn = Turn { place: &place, start_by, answer_by, unrun: false };
        drop(promise); // it waits itself now
        let drawn = predictor.preparer().run(&turn, work);
        let (file, held) = predictor.within(answer_by, &AtomicBool::new(true), drawn).await?;
        let headers = [(header::CONTENT_TYPE, format.media_type()), (header::VARY, "Accept")];
        Ok((headers, Extension(held), file).into_response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_chooses_by_quality_then_by_order() {
        let of = |accept: &str| {
            Output::accepted_by(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().expect("a header"))]))
        };
        let (jpeg, png) = (Output::Picture(PictureFormat::Jpeg), Output::Picture(PictureFormat::Png));
        for (accept, expected) in [
            ("image/png", png),
            ("IMAGE/JPEG", jpeg),
            ("image/*", jpeg),
            ("application/json", Output::Json),
            ("*/*", Output::Json),
            ("text/html", Output::Json),
            ("image/png;q=0, application/json;q=0.1", Output::Json),
            ("application/json;q=0.5, image/jpeg;q=0.9, image/png", png),
            ("text/html,application/xhtml+xml,image/png,*/*;q=0.8", png),
            ("", Output::Json),
        ] {
            assert_eq!(of(accept), expected, "{accept}");
        }
        assert_eq!(Output::accepted_by(&HeaderMap::new()), Output::Json);
    }
}
