//! What a request may choose, from query, form and JSON alike. An unknown name is refused: a typo must not be ignored.

use std::time::Duration;

use axum::extract::Query;
use axum::http::{HeaderMap, Uri, header};
use yolo_vision::{Masks, Parameters, Size};

use super::error::{ApiError, Code};
use crate::batcher::{Place, StreamKey};
use crate::limits;

/// Longest `timeout_ms`.
const TIMEOUT_MS_MAX: u64 = 600_000;
/// Most classes in a filter.
const CLASSES_MAX: usize = 1_000;

/// What a request may choose from: the served model and its defaults.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Parameters of a request that chooses nothing.
    pub defaults: &'a Parameters,
    /// Sizes of the model's input, the default first.
    pub sizes: &'a [Size],
}

/// A request's choices on top of the server's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Wishes {
    /// Thresholds and filters.
    pub parameters: Parameters,
    /// The model's input.
    pub size: Size,
    /// Time for the whole answer; it only shortens.
    pub timeout: Option<Duration>,
    /// `Cache-Control: no-cache`.
    pub bypass_cache: bool,
    /// The client offers the image again: not part of the arrival rate.
    pub retry: bool,
    /// The picture is drawn once its objects are known.
    pub drawn: bool,
    /// Whose turn its images share: of `X-Stream-Id`'s camera, or its own.
    pub place: Place,
}

impl Wishes {
    /// Reads the query and the headers.
    ///
    /// # Errors
    /// 400 for an unknown parameter or one of a wrong form, 404 for another model, 422 for one out of range.
    pub fn of_head(uri: &Uri, headers: &HeaderMap, served: &Served<'_>) -> Result<Self, ApiError> {
        let query = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| ApiError::new(Code::InvalidRequest, format!("query: {error}")))?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let attempt = |name| text(name).trim().parse::<u32>().is_ok_and(|attempt| attempt > 1);
        let mut wishes = Self {
            parameters: served.defaults.clone(),
            size: served.sizes.first().copied().unwrap_or(Size::new(0, 0)),
            timeout: None,
            bypass_cache: text(header::CACHE_CONTROL.as_str()).contains("no-cache"),
            retry: attempt("x-retry-attempt") || attempt("x-envoy-attempt-count"),
            drawn: false,
            place: Place { stream: stream(text("x-stream-id"))?, ..Place::of_new_request() },
        };
        wishes.add(&query.0, served)?;
        Ok(wishes)
    }

    /// Adds parameters that came inside the body.
    ///
    /// # Errors
    /// As [`Self::of_head`].
    pub fn add(&mut self, pairs: &[(String, String)], served: &Served<'_>) -> Result<(), ApiError> {
        pairs.iter().try_for_each(|(name, value)| self.set(name, value.trim(), served))
    }

    fn set(&mut self, name: &str, value: &str, served: &Served<'_>) -> Result<(), ApiError> {
        let parameters = &mut self.parameters;
        match name {
            "conf" => parameters.confidence = within(name, value, 0.0..=1.0)?,
            "iou" => parameters.iou = within(name, value, 0.0..=1.0)?,
            "max_det" => parameters.detections_max = within(name, value, 1..=limits::DETECTIONS_MAX)?,
            "classes" => parameters.classes = classes(value)?,
            "agnostic_nms" => parameters.agnostic = switch(name, value)?,
            "normalize" => parameters.normalize = switch(name, value)?,
            "masks" => parameters.masks = masks(value)?,
            "timeout_ms" => self.timeout = Some(Duration::from_millis(within(name, value, 1..=TIMEOUT_MS_MAX)?)),
            "model" if value == served.model => {}
            "model" => {
                let message = format!("no model {value:.64} here: leave it out or ask for {}", served.model);
                return Err(ApiError::new(Code::NotFound, message));
            }
            "imgsz" => self.size = size(within(name, value, 1..=u32::MAX)?, served.sizes)?,
            _ => {
                let message = format!(
                    "unknown parameter {name:.64}: known are conf, iou, max_det, classes, agnostic_nms, normalize, masks, \
                     imgsz, model, timeout_ms"
                );
                return Err(ApiError::new(Code::InvalidRequest, message));
            }
        }
        Ok(())
    }
}

/// The served size of this width.
fn size(width_px: u32, served: &[Size]) -> Result<Size, ApiError> {
    served.iter().copied().find(|size| size.width_px == width_px).ok_or_else(|| {
        let served: Vec<_> = served.iter().map(|size| size.width_px.to_string()).collect();
        let message = format!("imgsz {width_px} is not served here: leave it out or ask for {}", served.join(" or "));
        ApiError::new(Code::ImgszUnavailable, message)
    })
}

fn malformed(name: &str, value: &str, expected: &str) -> ApiError {
    ApiError::new(Code::InvalidRequest, format!("{name} must be {expected}, found {value:.32}"))
}

fn within<T>(name: &str, value: &str, range: std::ops::RangeInclusive<T>) -> Result<T, ApiError>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Debug,
{
    let number = value.parse().map_err(|_| malformed(name, value, "a number"))?;
    if !range.contains(&number) {
        let message = format!("{name} must be within {range:?}, found {value:.32}");
        return Err(ApiError::new(Code::InvalidParameter, message));
    }
    Ok(number)
}

fn switch(name: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" | "True" | "1" => Ok(true),
        "false" | "False" | "0" => Ok(false),
        _ => Err(malformed(name, value, "true or false")),
    }
}

fn masks(value: &str) -> Result<Masks, ApiError> {
    match value {
        "polygon" => Ok(Masks::Polygon),
        "rle" => Ok(Masks::Rle),
        "none" => Ok(Masks::None),
        _ => Err(malformed("masks", value, "polygon, rle or none")),
    }
}

/// The camera's name; an empty one is none.
fn stream(name: &str) -> Result<Option<StreamKey>, ApiError> {
    if name.len() > limits::STREAM_ID_BYTES_MAX {
        let message = format!("X-Stream-Id is longer than {} bytes", limits::STREAM_ID_BYTES_MAX);
        return Err(ApiError::new(Code::InvalidRequest, message));
    }
    Ok((!name.is_empty()).then(|| name.into()))
}

/// `0,2`; an empty list filters nothing.
fn classes(value: &str) -> Result<Option<Vec<u32>>, ApiError> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed: Result<Vec<u32>, _> =
        value.split(',').take(CLASSES_MAX + 1).map(|class| class.trim().parse()).collect();
    let classes = parsed.map_err(|_| malformed("classes", value, "class numbers separated by commas"))?;
    if classes.len() > CLASSES_MAX {
        return Err(ApiError::new(Code::InvalidParameter, format!("classes names more than {CLASSES_MAX} classes")));
    }
    Ok(Some(classes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(query: &str, headers: &HeaderMap) -> Result<Wishes, ApiError> {
        let uri = Uri::builder().path_and_query(format!("/predict?{query}")).build();
        let sizes = [640, 320].map(|side_px| Size::new(side_px, side_px));
        let served = Served { model: "yolo11n", defaults: &Parameters::default(), sizes: &sizes };
        Wishes::of_head(&uri.unwrap_or_default(), headers, &served)
    }

    fn read(query: &str) -> Result<Wishes, ApiError> {
        read_with(query, &HeaderMap::new())
    }

    #[test]
    fn every_parameter_is_read() {
        let query = "conf=0.5&iou=0.4&max_det=7&classes=0,%202&agnostic_nms=true&normalize=1&masks=rle&imgsz=320\
                     &timeout_ms=250&model=yolo11n";
        let wishes = read(query).unwrap();
        let parameters = Parameters {
            confidence: 0.5,
            iou: 0.4,
            detections_max: 7,
            classes: Some(vec![0, 2]),
            agnostic: true,
            normalize: true,
            masks: Masks::Rle,
        };
        assert_eq!(wishes.parameters, parameters);
        assert_eq!(wishes.timeout, Some(Duration::from_millis(250)));
        assert_eq!((wishes.size.width_px, read("").unwrap().size.width_px), (320, 640));
    }

    #[test]
    fn bad_parameters_name_themselves() {
        for (query, code) in [
            ("confidence=0.5", Code::InvalidRequest),
            ("conf=high", Code::InvalidRequest),
            ("conf=1.01", Code::InvalidParameter),
            ("conf=NaN", Code::InvalidParameter),
            ("iou=-0.1", Code::InvalidParameter),
            ("max_det=0", Code::InvalidParameter),
            ("max_det=3001", Code::InvalidParameter),
            ("max_det=1.5", Code::InvalidRequest),
            ("classes=0,x", Code::InvalidRequest),
            ("agnostic_nms=perhaps", Code::InvalidRequest),
            ("masks=png", Code::InvalidRequest),
            ("timeout_ms=0", Code::InvalidParameter),
            ("imgsz=1280", Code::ImgszUnavailable),
            ("model=yolo11x", Code::NotFound),
        ] {
            let error = read(query).unwrap_err();
            assert_eq!(error.code, code, "{query}");
            assert!(error.message.contains(query.split('=').next().unwrap()), "{}", error.message);
        }
    }

    #[test]
    fn headers_mark_retries_and_bypass_the_cache() {
        let headers = [("x-envoy-attempt-count", "2"), ("cache-control", "no-cache")];
        let headers =
            headers.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let (first, again) = (read("").unwrap(), read_with("", &headers).unwrap());
        assert_eq!((first.retry, first.bypass_cache), (false, false));
        assert_eq!((again.retry, again.bypass_cache), (true, true));
    }
}
