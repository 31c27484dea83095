//! `POST /predict/batch`: several pictures in, a result or an error for each, in their order.
//!
//! A batch is split: only as many of its pictures are in flight as keep the workers busy, and a picture's deadline
//! counts from when it is taken up. So a lone client gets all its results, and a large batch never fills the queue.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::answer::{self, BatchBody, BatchItem, PredictionBody};
use super::body::{self, Bounds, Upload};
use super::error::{ApiError, Code};
use super::image::{self, Image};
use super::making::Making;
use super::parameters::Wishes;
use super::{Received, RequestId};
use crate::app::App;
use crate::limits;
use crate::predictor::{Prediction, Predictor, Speed};

/// Rounds of batches in flight for one request: one runs, the next is being decoded.
const ROUNDS_IN_FLIGHT: usize = 2;

/// The handler.
pub async fn batch(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut received = None;
    let result = steps(&app, request, &mut received).await;
    Received::attach(received, result.into_response())
}

async fn steps(app: &App, request: Request, received: &mut Option<Received>) -> Result<Response, ApiError> {
    let id = RequestId::of(&request);
    // Refused as a whole, a batch counts as one image: nobody knows how many it held.
    let received_parts = receive(app, request).await.inspect_err(|error| Image::arrived(app).failed(error));
    let (predictor, wishes, pictures, at) = received_parts?;
    let items: Vec<_> = pictures
        .into_iter()
        .map(|picture| {
            let mut image = Image::arrived(app);
            if let Ok(upload) = &picture {
                image.offered(upload, wishes.retry);
            }
            (image, picture)
        })
        .collect();
    let begun = Instant::now();
    let (results, mut making) = results(app, &predictor, items, (&wishes, at)).await;
    // The pictures of a batch wait and run beside each other, so the sum of their times means nothing here.
    let speed = Speed { inference: begun.elapsed(), ..Speed::default() };
    *received = Some(Received { at, speed });
    if results.iter().all(Result::is_err) {
        return Err(none_usable(results));
    }
    let start = Instant::now();
    let found = results.iter().flatten();
    making.add(&app.bodies, found.map(|found| found.answer.answered_bytes() - found.answer.found_bytes()).sum())?;
    let served = Arc::clone(&predictor);
    let body = move || {
        let items = results.iter().map(|result| match result {
            Ok(prediction) => BatchItem::Found(PredictionBody::new(&served, prediction, &wishes, &id).into()),
            Err(error) => BatchItem::Failed(error.body(&id)),
        });
        Json(BatchBody { request_id: &id, results: items.collect() }).into_response()
    };
    let mut response = making.work(body).await?;
    answer::mark_emulated(&mut response, &predictor);
    image::encoded(app, start);
    Ok(response)
}

/// Runs the pictures. What was found in them is held from when it is there; what memory has no room for is an error.
async fn results(
    app: &App,
    predictor: &Arc<Predictor>,
    items: Vec<(Image<'_>, Result<Upload, ApiError>)>,
    at: (&Wishes, Instant),
) -> (Vec<Result<Prediction, ApiError>>, Making) {
    let runs: Vec<_> = items.into_iter().map(|(image, picture)| run(predictor, image, picture, at)).collect();
    let mut runs = pin!(futures::stream::iter(runs).buffered(in_flight(predictor)));
    let (mut results, mut making) = (Vec::new(), Making::default());
    while let Some(result) = runs.next().await {
        let held = |found: Prediction| making.add(&app.bodies, found.answer.found_bytes()).map(|()| found);
        results.push(result.and_then(held));
    }
    (results, making)
}

type Parts = (Arc<Predictor>, Wishes, Vec<Result<Upload, ApiError>>, Instant);

async fn receive(app: &App, request: Request) -> Result<Parts, ApiError> {
    let predictor = app.serving()?;
    let mut wishes = Wishes::of_head(request.uri(), request.headers(), &predictor.served())?;
    let form = body::receive_all(request, &Bounds::BATCH, &app.bodies, &app.metrics.http).await?;
    wishes.add(&form.parameters, &predictor.served())?;
    Ok((predictor, wishes, form.pictures, form.received))
}

/// Pictures of one request that may be in flight at a time.
pub(super) fn in_flight(predictor: &Predictor) -> usize {
    let load = predictor.batcher().load();
    (ROUNDS_IN_FLIGHT * load.workers * load.batch_effective).clamp(1, limits::BATCH_PARTS_MAX)
}

/// One picture; `received`: when the whole request was there, from which its `timeout_ms` counts.
pub(super) async fn run(
    predictor: &Arc<Predictor>,
    mut image: Image<'_>,
    picture: Result<Upload, ApiError>,
    (wishes, received): (&Wishes, Instant),
) -> Result<Prediction, ApiError> {
    let result = async {
        let upload = Upload { received: Instant::now(), ..picture? };
        image.predict(predictor, upload, &at_its_turn(wishes, received)).await
    };
    let result = result.await;
    if let Err(error) = &result {
        image.failed(error);
    }
    result
}

/// The wishes of a picture whose turn it is, of a request that was there at `received`: what is left of its time-out.
pub(super) fn at_its_turn(wishes: &Wishes, received: Instant) -> Wishes {
    let timeout = wishes.timeout.map(|timeout| timeout.saturating_sub(received.elapsed()));
    Wishes { timeout, ..wishes.clone() }
}

/// What a batch without a result is answered: the first error that a retry may cure, else the first.
fn none_usable(results: Vec<Result<Prediction, ApiError>>) -> ApiError {
    let count = results.len();
    let mut errors: Vec<_> = results.into_iter().filter_map(Result::err).enumerate().collect();
    errors.sort_by_key(|(_, error)| !error.code.retryable()); // stable
    match errors.into_iter().next() {
        Some((_, error)) if count == 1 => error,
        Some((index, error)) => {
            let message = format!("none of the {count} pictures was usable; number {}: {}", index + 1, error.message);
            ApiError { message, ..error }
        }
        None => ApiError::new(Code::InvalidRequest, "the batch holds no picture"),
    }
}
