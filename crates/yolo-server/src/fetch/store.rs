//! Objects of S3, Google Cloud Storage, Azure and HTTPS servers, through the crate `object_store`.
//!
//! Its own retries are off: the loop of [`super`] keeps what came and goes on from there. Credentials are those of the
//! environment, under the names that each service's own tools use (`AWS_…`, `GOOGLE_…`, `AZURE_…`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use async_trait::async_trait;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, GetOptions, GetRange, ObjectStore, RetryConfig};
use url::Url;

use super::source::{Failure, Transfer, cause};
use super::{credential, trusted};
use crate::limits;

/// One object of a store.
pub struct Store {
    bucket: Box<dyn ObjectStore>,
    path: Path,
    status: Arc<AtomicU16>,
}

impl Store {
    /// A store for the object at `url`; connects to nothing.
    ///
    /// # Errors
    /// [`Failure::Refused`] if a setting of the environment has the wrong form.
    pub fn new(url: &Url) -> Result<Self, Failure> {
        let status = Arc::new(AtomicU16::new(0));
        let connector = Connector { certificates: certificates()?, status: Arc::clone(&status) };
        let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let text = url.as_str();
        let refused = |error: object_store::Error| Failure::Refused(cause(&error));
        // A bucket's objects are named below it; a web server's file is the whole url, its query included.
        let mut path = Path::from_url_path(url.path()).map_err(|error| Failure::Refused(error.to_string()))?;
        macro_rules! built {
            ($builder:expr) => {
                Box::new(
                    $builder.with_url(text).with_retry(once).with_http_connector(connector).build().map_err(refused)?,
                )
            };
        }
        let bucket: Box<dyn ObjectStore> = match url.scheme() {
            "s3" => built!(AmazonS3Builder::from_env()),
            "gs" => built!(GoogleCloudStorageBuilder::from_env()),
            "az" => built!(MicrosoftAzureBuilder::from_env()),
            _ => {
                path = Path::ROOT;
                built!(
                    HttpBuilder::new().with_client_options(ClientOptions::new().with_default_headers(authorization()?))
                )
            }
        };
        Ok(Self { bucket, path, status })
    }

    /// See [`super::source::Source::open`].
    pub async fn open(&self, offset: u64) -> Result<Transfer, Failure> {
        let range = (offset > 0).then_some(GetRange::Offset(offset));
        self.status.store(0, Ordering::Relaxed);
        let answer = self.bucket.get_opts(&self.path, GetOptions { range, ..GetOptions::default() }).await;
        let answer = answer.map_err(|error| self.failure(&error, offset))?;
        let size = answer.meta.size;
        let bytes = answer.into_stream().map_err(|error| Failure::Interrupted(cause(&error)));
        Ok(Transfer { size, sha256: None, bytes: bytes.boxed() })
    }

    /// By the status of the last answer; without one the connection failed.
    fn failure(&self, error: &object_store::Error, offset: u64) -> Failure {
        match self.status.load(Ordering::Relaxed) {
            0 => Failure::Interrupted(cause(error)),
            // The whole file where a part was asked for, or another part.
            200..=299 if offset > 0 => Failure::Stale,
            200..=299 => Failure::Refused(cause(error)),
            status => Failure::of_status(status),
        }
    }
}

/// User and password, or a token, for an HTTPS server.
fn authorization() -> Result<HeaderMap, Failure> {
    let value = match (credential("HTTP_BEARER_TOKEN"), credential("HTTP_USERNAME"), credential("HTTP_PASSWORD")) {
        (Some(token), _, _) => format!("Bearer {token}"),
        (None, Some(user), password) => {
            let pair = format!("{user}:{}", password.unwrap_or_default());
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        }
        (None, None, _) => return Ok(HeaderMap::new()),
    };
    let unfit = |_| Failure::Refused("HTTP_BEARER_TOKEN holds what no header may hold".to_owned());
    let mut value = HeaderValue::from_str(&value).map_err(unfit)?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

fn certificates() -> Result<Vec<Certificate>, Failure> {
    let of_der = |der: Vec<u8>| Certificate::from_der(&der).map_err(|error| Failure::Refused(cause(&error)));
    trusted()?.into_iter().map(of_der).collect()
}

/// `object_store`'s own client with our trust and limits, which also says with what status the last answer came: the
/// errors of the crate tell only some of them.
#[derive(Debug, Clone)]
struct Connector {
    certificates: Vec<Certificate>,
    status: Arc<AtomicU16>,
}

#[derive(Debug)]
struct Observed {
    client: HttpClient,
    status: Arc<AtomicU16>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // A large model takes longer than any whole-request timer; a stall is noticed by the loop that reads.
        let options = options.clone().with_timeout_disabled().with_connect_timeout(limits::FETCH_CONNECT_MAX);
        let options = self.certificates.iter().cloned().fold(options, ClientOptions::with_root_certificate);
        let client = ReqwestConnector::default().connect(&options)?;
        Ok(HttpClient::new(Observed { client, status: Arc::clone(&self.status) }))
    }
}

#[async_trait]
impl HttpService for Observed {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.status.store(0, Ordering::Relaxed);
        let answer = self.client.execute(request).await?;
        self.status.store(answer.status().as_u16(), Ordering::Relaxed);
        Ok(answer)
    }
}
