//! `POST /predict`: one picture in, its detections out. HTTP to types and back; the work is in [`crate::predictor`].

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::annotate::{Drawing, Output};
use super::answer::{self, PredictionBody};
use super::body;
use super::error::ApiError;
use super::image::{self, Image};
use super::making::Making;
use super::parameters::Wishes;
use super::{Received, RequestId};
use crate::app::App;
use crate::predictor::Speed;

/// The handler.
pub async fn predict(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut received = None;
    let mut image = Image::arrived(&app);
    let result = steps(&app, request, &mut image, &mut received).await;
    if let Err(error) = &result {
        image.failed(error);
    }
    Received::attach(received, result.into_response())
}

async fn steps(
    app: &App,
    request: Request,
    image: &mut Image<'_>,
    received: &mut Option<Received>,
) -> Result<Response, ApiError> {
    let predictor = app.serving()?;
    let id = RequestId::of(&request);
    let output = Output::accepted_by(request.headers());
    let mut wishes = Wishes::of_head(request.uri(), request.headers(), &predictor.served())?;
    let upload = body::receive(request, &app.bodies, &app.metrics.http).await?;
    wishes.add(&upload.parameters, &predictor.served())?;
    let at = upload.received;
    *received = Some(Received { at, speed: Speed::default() });
    image.offered(&upload, wishes.retry);
    let answer_by = wishes.timeout.map(|timeout| at + timeout);
    let drawing = output.picture().map(|format| Drawing { upload: upload.clone(), answer_by, format });
    wishes.drawn = drawing.is_some();
    let prediction = image.predict(&predictor, upload, &wishes).await?;
    *received = Some(Received { at, speed: prediction.speed });
    let start = Instant::now();
    let mut response = if let Some(drawing) = drawing {
        drawing.respond(app, &predictor, prediction).await?
    } else {
        let mut making = Making::default();
        making.add(&app.bodies, prediction.answer.answered_bytes())?;
        let predictor = Arc::clone(&predictor);
        let body = move || Json(PredictionBody::new(&predictor, &prediction, &wishes, &id)).into_response();
        making.work(body).await?
    };
    answer::mark_emulated(&mut response, &predictor);
    image::encoded(app, start);
    Ok(response)
}
