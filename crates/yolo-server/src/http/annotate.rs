//! `Accept: image/png` or `image/jpeg` on `/predict`: the picture itself, with what was found drawn into it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use axum::Extension;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use yolo_vision::{PictureFormat, decode, draw, encode};

use super::body::Upload;
use super::error::{ApiError, Code};
use super::held_file::HeldFile;
use super::unread::HeldAnswer;
use crate::app::App;
use crate::batcher::Place;
use crate::cache::Answer;
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

/// What came of an attempt to draw.
enum Drawn {
    /// The file, and what it holds of the memory for bodies.
    Whole(Vec<u8>, HeldAnswer),
    /// There was no memory for so many bytes of it, now.
    Lacking(ApiError, usize),
}

impl Drawing {
    /// Draws a prediction into its picture, on the pool that pictures are decoded on, in memory for bodies.
    ///
    /// What is known is not refused: it waits for its turn, and for memory. The picture is decoded a second time: to keep
    /// its pixels while it waits in the queue would cost forty times the memory of the file.
    ///
    /// # Errors
    /// 504 if its turn comes later than an image's batch may start, or the drawing ends after the time-out; 422 for a picture
    /// past this server's bounds; 413 if its file is more than memory can hold at all, 429 if it is more than memory has until
    /// a batch would have to start, or ever beside the upload.
    pub(super) async fn respond(
        self,
        app: &App,
        predictor: &Predictor,
        prediction: Prediction,
    ) -> Result<Response, ApiError> {
        let (Self { upload, answer_by, format }, Prediction { answer, promise, .. }) = (self, prediction);
        let place = Place::of_new_request();
        let start_by = Instant::now() + app.knobs().deadline;
        let turn = Turn { place: &place, start_by: Some(start_by), answer_by, unrun: false };
        drop(promise); // it waits itself now
        let drawn = async {
            let (memory, mut file) = (&app.bodies, HeldFile::new(app.bodies.clone()));
            loop {
                let attempt = attempt((upload.clone(), format), &answer, predictor, file);
                match predictor.preparer().run(&turn, attempt).await? {
                    Drawn::Whole(file, held) => return Ok((file, held)),
                    Drawn::Lacking(refusal, bytes) if memory.holds_beside(upload.memory.as_deref(), bytes) => {
                        // Not on the pool: those who will leave memory may need its threads for that.
                        let room = HeldFile::with_room(memory.clone(), bytes);
                        let room = tokio::time::timeout_at(start_by.into(), room).await;
                        file = room.map_err(|_| refusal)?;
                    }
                    Drawn::Lacking(..) => break,
                }
            }
            // It would wait for what its own upload holds: that is left as soon as it is decoded.
            let attempt = attempt((upload, format), &answer, predictor, HeldFile::new(memory.clone()));
            match predictor.preparer().run(&turn, attempt).await? {
                Drawn::Whole(file, held) => Ok((file, held)),
                Drawn::Lacking(refusal, _) => Err(refusal),
            }
        };
        let (file, held) = predictor.within(answer_by, &AtomicBool::new(true), drawn).await?;
        let headers = [(header::CONTENT_TYPE, format.media_type()), (header::VARY, "Accept")];
        Ok((headers, Extension(held), file).into_response())
    }
}

/// Draws a picture into a file, as far as there is memory for it.
fn attempt(
    (upload, format): (Upload, PictureFormat),
    answer: &Arc<Answer>,
    predictor: &Predictor,
    mut file: HeldFile,
) -> impl FnOnce() -> Result<Drawn, ApiError> + Send + 'static {
    let (answer, limits) = (Arc::clone(answer), *predictor.preparer().limits());
    move || {
        // What is remembered may have been found by a server with more memory.
        let mut picture = decode(&upload.bytes, &limits).map_err(|error| of_picture(&error))?;
        drop(upload);
        draw(&mut picture, &answer.detections);
        let Err(error) = encode(&picture, format, &mut file) else {
            let (file, held) = file.finished();
            return Ok(Drawn::Whole(file, held));
        };
        match file.refused() {
            Some((refusal, bytes)) if refusal.code == Code::QueueFull => Ok(Drawn::Lacking(refusal, bytes)),
            Some((refusal, _)) => Err(refusal),
            None => Err(ApiError::new(Code::Internal, error.to_string())),
        }
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
