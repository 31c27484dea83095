//! One image in flight: it is counted as demand when it has come, and with its outcome when it is done.

use std::time::Instant;

use super::body::Upload;
use super::error::{ApiError, Code};
use super::parameters::Wishes;
use crate::app::App;
use crate::lifecycle::Stage;
use crate::metrics::observe_seconds;
use crate::predictor::{Prediction, Predictor, images_outcome};

/// An image in flight. Dropped before its outcome is known, its client has left.
pub(super) struct Image<'a> {
    app: &'a App,
    outcome: &'static str,
}

impl<'a> Image<'a> {
    pub(super) fn arrived(app: &'a App) -> Self {
        app.metrics.images.in_flight.inc();
        Self { app, outcome: "cancelled" }
    }

    /// The whole picture is here: it is demand, whether or not it will be served.
    pub(super) fn offered(&mut self, upload: &Upload, retry: bool) {
        let metrics = &self.app.metrics.images;
        if retry {
            metrics.retries.inc();
        } else {
            self.app.arrivals.count(upload.received);
        }
        observe_seconds(&metrics.stage.of("read"), upload.read);
        observe_seconds(&metrics.stage.of("hash"), upload.hash);
    }

    /// Finds its objects.
    ///
    /// # Errors
    /// As [`Predictor::predict`], and 503 once the server stops waiting for what is unfinished.
    pub(super) async fn predict(
        &mut self,
        predictor: &Predictor,
        upload: Upload,
        wishes: &Wishes,
    ) -> Result<Prediction, ApiError> {
        let knobs = self.app.knobs();
        let result = tokio::select! {
            result = predictor.predict(upload, wishes, &knobs) => result,
            () = self.app.lifecycle.reached(Stage::Aborting) => {
                Err(ApiError::new(Code::Draining, "the server shut down before the image was done"))
            }
        };
        if let Ok(prediction) = &result {
            self.app.metrics.images.detections.inc_by(prediction.answer.detections.len() as u64);
            self.outcome = images_outcome(prediction.cache);
        }
        result
    }

    /// It will not be answered with detections.
    pub(super) fn failed(&mut self, error: &ApiError) {
        self.outcome = error.code.image_outcome();
        let rejected = &self.app.metrics.images.rejected;
        match error.code {
            Code::QueueFull | Code::PredictedLate | Code::Draining | Code::Starting => {
                rejected.of(error.code.as_str()).inc();
            }
            Code::PayloadTooLarge => {
                rejected.of("payload").inc();
            }
            _ => {}
        }
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        self.app.metrics.images.in_flight.dec();
        self.app.metrics.images.count("sync", self.outcome);
    }
}

/// Time of the encoding of an answer.
pub(super) fn encoded(app: &App, start: Instant) {
    observe_seconds(&app.metrics.images.stage.of("encode"), start.elapsed());
}
