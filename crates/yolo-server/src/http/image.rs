//! One image in flight: it is counted as demand when it has come, and with its outcome when it is done.

use std::sync::Arc;
use std::time::Instant;

use super::body::Upload;
use super::error::{ApiError, Code};
use super::parameters::Wishes;
use crate::app::App;
use crate::batcher::ImageTensor;
use crate::engine::EngineInput;
use crate::lifecycle::Stage;
use crate::metrics::observe_seconds;
use crate::predictor::{Prediction, Predictor, Speed, images_outcome};

/// An image in flight. Dropped before its outcome is known, its client has left.
pub(super) struct Image<'a> {
    app: &'a App,
    content: Option<[u8; 32]>,
    /// Whether it was its turn already: from then on, who works on it counts whether its client left.
    begun: bool,
    outcome: &'static str,
}

impl<'a> Image<'a> {
    pub(super) fn arrived(app: &'a App) -> Self {
        app.metrics.images.in_flight.inc();
        Self { app, content: None, begun: false, outcome: "cancelled" }
    }

    /// The whole picture is here: it is demand, whether or not it will be served.
    ///
    /// Offered again after a refusal it is the same demand; a client says so (`retry`), or its content does.
    pub(super) fn offered(&mut self, upload: &Upload, retry: bool) {
        let metrics = &self.app.metrics.images;
        self.demanded(upload.content, upload.received, retry);
        observe_seconds(&metrics.stage.of("read"), upload.read);
        observe_seconds(&metrics.stage.of("hash"), upload.hash);
    }

    /// [`Self::offered`], of a picture that its client prepared.
    pub(super) fn demanded(&mut self, content: [u8; 32], received: Instant, retry: bool) {
        if retry || self.app.refusals.recent(&content) {
            self.app.metrics.images.retries.inc();
        } else {
            self.app.arrivals.count(received);
        }
        self.content = Some(content);
    }

    /// Finds its objects.
    ///
    /// # Errors
    /// As [`Predictor::predict`], and 503 once the server stops waiting for what is unfinished.
    pub(super) async fn predict(
        &mut self,
        predictor: &Arc<Predictor>,
        upload: Upload,
        wishes: &Wishes,
    ) -> Result<Prediction, ApiError> {
        self.begun = true;
        let knobs = self.app.knobs();
        let result = self.unless_aborted(predictor.predict(upload, wishes, &knobs)).await;
        if let Ok(prediction) = &result {
            self.app.metrics.images.detections.inc_by(prediction.answer.detections.len() as u64);
            self.outcome = images_outcome(prediction.cache);
        }
        result
    }

    /// Runs it and gives the model's own outputs.
    ///
    /// # Errors
    /// As [`Predictor::tensors`], and 503 once the server stops waiting for what is unfinished.
    pub(super) async fn tensors(
        &mut self,
        predictor: &Predictor,
        input: EngineInput,
        received: Instant,
        wishes: &Wishes,
    ) -> Result<(Vec<ImageTensor>, Speed), ApiError> {
        self.begun = true;
        let knobs = self.app.knobs();
        let result = self.unless_aborted(predictor.tensors(input, received, wishes, &knobs)).await;
        match &result {
            Ok(_) => self.outcome = "ok",
            Err(error) => self.failed(error),
        }
        result
    }

    async fn unless_aborted<T>(&self, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        tokio::select! {
            result = work => result,
            () = self.app.lifecycle.reached(Stage::Aborting) => {
                Err(ApiError::new(Code::Draining, "the server shut down before the image was done"))
            }
        }
    }

    /// It will not be answered as its client wishes.
    pub(super) fn failed(&mut self, error: &ApiError) {
        self.outcome = error.code.image_outcome();
        let rejected = &self.app.metrics.images.rejected;
        match error.code {
            Code::QueueFull | Code::PredictedLate => {
                rejected.of(error.code.as_str()).inc();
                if let Some(content) = self.content {
                    self.app.refusals.remember(content);
                }
            }
            Code::Draining | Code::Starting => {
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
        let metrics = &self.app.metrics.images;
        metrics.in_flight.dec();
        metrics.count("sync", self.outcome);
        // One of a batch that waited for the others.
        if self.outcome == "cancelled" && self.content.is_some() && !self.begun {
            metrics.cancelled.of("queue").inc();
        }
    }
}

/// Time of the encoding of an answer.
pub(super) fn encoded(app: &App, start: Instant) {
    observe_seconds(&app.metrics.images.stage.of("encode"), start.elapsed());
}
