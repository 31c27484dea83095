//! What the loop of [`super`] knows of a place that holds a model: bytes from an offset on, or why there are none.

use axum::http::StatusCode;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::location::{Location, Place};
use super::registry::Registry;
use super::store::Store;

/// A place that holds the model.
pub enum Source {
    /// S3, Google Cloud Storage, Azure or an HTTPS server.
    Store(Store),
    /// An OCI registry.
    Registry(Box<Registry>),
}

/// An open transfer.
pub struct Transfer {
    /// Bytes of the whole model.
    pub size: u64,
    /// The model's SHA-256, where the place vouches for it: 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// The bytes from the asked offset on.
    pub bytes: BoxStream<'static, Result<Bytes, Failure>>,
}

/// Why there are no bytes. The texts leave out what changes from try to try: they become a condition's message.
#[derive(Debug)]
pub enum Failure {
    /// There is nothing of that name.
    Missing(String),
    /// It is there and cannot be served.
    Unsupported(String),
    /// The next try would get the same answer.
    Refused(String),
    /// The next try may succeed.
    Interrupted(String),
    /// It cannot be gone on from there: the place has no ranges, or another file by now.
    Stale,
}

impl Source {
    /// Prepares to read from `location`, with the credentials of the environment; connects to nothing.
    ///
    /// # Errors
    /// [`Failure::Refused`] if a setting or a credential has the wrong form.
    pub fn new(location: &Location) -> Result<Self, Failure> {
        Ok(match &location.place {
            Place::Url(url) => Self::Store(Store::new(url)?),
            Place::Registry(reference) => Self::Registry(Box::new(Registry::new(reference.clone())?)),
        })
    }

    /// Starts to read at `offset`.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn open(&self, offset: u64) -> Result<Transfer, Failure> {
        match self {
            Self::Store(store) => store.open(offset).await,
            Self::Registry(registry) => registry.open(offset).await,
        }
    }
}

impl Failure {
    /// What an HTTP status other than success means, whoever sends it.
    pub fn of_status(status: u16) -> Self {
        let named = StatusCode::from_u16(status).map_or_else(|_| status.to_string(), |status| status.to_string());
        let answered = format!("the server answered {named}");
        match status {
            404 | 410 => Self::Missing(answered),
            416 => Self::Stale,
            401 | 403 => Self::Refused(format!("{answered}: check the credentials and what they allow")),
            408 | 429 | 500.. => Self::Interrupted(answered),
            _ => Self::Refused(answered),
        }
    }
}

/// The innermost cause: `Connection refused`, `invalid peer certificate`; what wraps it names times and addresses.
pub fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map_or_else(String::new, ToString::to_string)
}
