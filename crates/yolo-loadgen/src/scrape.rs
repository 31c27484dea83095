//! Reads a server's own metrics: one GET, and the values of single series from the Prometheus text.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A page of metrics of one server is some 50 kB; more than this is something else.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// From the connection's start to the last byte.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a page of metrics could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// No connection.
    #[error("failed to connect to {address}")]
    Connect {
        /// The server's address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The exchange failed.
    #[error("failed to get {path}")]
    Http {
        /// As asked for.
        path: String,
        /// The HTTP library's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Answered, but not with 200.
    #[error("{path} was answered with {status}")]
    Status {
        /// As asked for.
        path: String,
        /// The answer's status.
        status: StatusCode,
    },
    /// No whole page in time.
    #[error("{path} took longer than {TIMEOUT:?}")]
    Timeout {
        /// As asked for.
        path: String,
    },
}

/// A page of metrics in the Prometheus text format.
#[derive(Debug, Clone, Default)]
pub struct Page(String);

impl Page {
    /// The page of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Value of the first series called `name` whose labels include every pair of `labels`.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.series(name, labels).next()
    }

    /// Sum over all series called `name` whose labels include every pair of `labels`; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).sum()
    }

    fn series<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = f64> + 'a {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (inside, value) = match rest.strip_prefix('{') {
                // Label values of these servers are closed words without braces.
                Some(labelled) => labelled.split_once('}')?,
                None => ("", rest.starts_with(' ').then_some(rest)?),
            };
            let has = |(key, value): &(&str, &str)| inside.split(',').any(|pair| pair == format!("{key}=\"{value}\""));
            labels.iter().all(has).then(|| value.split_whitespace().next()?.parse().ok()).flatten()
        })
    }
}

/// Gets `path` of `address` over a connection of its own.
///
/// # Errors
/// [`ScrapeError`]: no connection, broken, not 200, or no whole page within 2 s.
pub async fn page(address: SocketAddr, path: &str) -> Result<Page, ScrapeError> {
    let got = tokio::time::timeout(TIMEOUT, get(address, path)).await;
    let bytes = got.map_err(|_elapsed| ScrapeError::Timeout { path: path.to_owned() })??;
    Ok(Page(String::from_utf8_lossy(&bytes).into_owned()))
}

async fn get(address: SocketAddr, path: &str) -> Result<Bytes, ScrapeError> {
    let http = |source: Box<dyn std::error::Error + Send + Sync>| ScrapeError::Http { path: path.to_owned(), source };
    let connected = TcpStream::connect(address).await;
    let stream = connected.map_err(|source| ScrapeError::Connect { address, source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| http(e.into()))?;
    tokio::spawn(connection); // ends with the sender
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let response = sender.send_request(request.map_err(|e| http(e.into()))?).await.map_err(|e| http(e.into()))?;
    if response.status() != StatusCode::OK {
        return Err(ScrapeError::Status { path: path.to_owned(), status: response.status() });
    }
    Ok(Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await.map_err(http)?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP yolo_images_total Images.
# TYPE yolo_images_total counter
yolo_images_total{outcome=\"ok\",source=\"sync\"} 12
yolo_images_total{outcome=\"cached\",source=\"sync\"} 3 1700000000
yolo_images_total_created 99
yolo_knobs_generation 17
";

    #[test]
    fn values_are_found_by_name_and_labels() {
        let page = Page::new(TEXT);
        assert_eq!(page.value("yolo_knobs_generation", &[]), Some(17.0));
        assert_eq!(page.value("yolo_images_total", &[("outcome", "cached")]), Some(3.0));
        assert_eq!(page.value("yolo_images_total", &[("outcome", "failed")]), None);
        assert_eq!(page.value("yolo_images", &[]), None);
        assert!((page.sum("yolo_images_total", &[]) - 15.0).abs() < f64::EPSILON);
    }
}
