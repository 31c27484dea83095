//! Readings straight from the pods: `GET /metrics` of every one's admin port.
//!
//! Bounded: [`IN_FLIGHT`] requests at a time, [`TIMEOUT`] each, answers of [`ANSWER_BYTES_MAX`]. A redirect is an error.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::exposition::parse;
use super::raw::RawSample;
use super::{ADMIN_PORT, ReadError, Readings, Target};
use crate::clock::Clock;

/// One pod's whole answer, from connecting to the last byte.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Connecting alone: an address that swallows packets must not hold a slot for longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A server writes about 60 kB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Requests at a time; bounds the memory of hostile answers to 64 MiB, and lets 300 dead addresses pass in 5 s.
const IN_FLIGHT: usize = 64;
/// Longer than a round's interval, so that each pod keeps its connection.
const IDLE: Duration = Duration::from_secs(15);

/// Reads pods over kept-alive connections, which clones share.
#[derive(Clone)]
pub struct Pods {
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Pods {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).pool_max_idle_per_host(1);
        Self { client: client.build(connector) }
    }

    /// One reading of each target.
    pub(super) async fn read(&self, targets: &[Target], clock: Clock) -> Readings {
        // Each future owns what it needs: one that borrows from `self` is not Send for the compiler.
        let all: Vec<_> = targets.iter().map(|target| self.clone().pod(target.uid.clone(), target.ip, clock)).collect();
        stream::iter(all).buffer_unordered(IN_FLIGHT).collect().await
    }

    async fn pod(self, uid: String, ip: IpAddr, clock: Clock) -> (String, Result<RawSample, ReadError>) {
        // The moment before: an answer that came late then looks a little older than it is, never newer.
        let at_s = clock.now().get();
        let answer = timeout(TIMEOUT, self.get(SocketAddr::new(ip, ADMIN_PORT))).await;
        let text = answer.unwrap_or(Err(ReadError::Timeout { limit: TIMEOUT }));
        (uid, text.and_then(|text| parse(&text, at_s)))
    }

    async fn get(&self, address: SocketAddr) -> Result<String, ReadError> {
        let url = format!("http://{address}/metrics");
        let request = Request::get(&url).body(Empty::new()).map_err(|e| unreachable_pod(&url, e))?;
        let answer = self.client.request(request).await.map_err(|e| unreachable_pod(&url, e))?;
        if answer.status() != StatusCode::OK {
            return Err(ReadError::Status(answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ReadError::TooLarge { bytes_max: ANSWER_BYTES_MAX }
            } else {
                ReadError::Unreachable { url: url.clone(), source: Arc::from(error) }
            }
        })?;
        String::from_utf8(body.to_bytes().into()).map_err(|_| ReadError::Malformed { what: "the text" })
    }
}

fn unreachable_pod(url: &str, source: impl std::error::Error + Send + Sync + 'static) -> ReadError {
    ReadError::Unreachable { url: url.to_owned(), source: Arc::new(source) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::sampler::raw::tests::page;

    /// Reads a pod whose every connection is answered with `answer`; `None` keeps it open and says nothing.
    async fn read(test: u8, answer: Option<String>) -> Result<RawSample, ReadError> {
        // An address of this test alone, so that the pods' fixed port is free on it.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let ip = IpAddr::from([127, 64 | (test << 3) | (high & 7), low, 2]);
        let listener = TcpListener::bind(SocketAddr::new(ip, ADMIN_PORT)).await.unwrap();
        let pod = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _request = stream.read(&mut [0; 1024]).await.unwrap();
                match &answer {
                    Some(answer) => drop(stream.write_all(answer.as_bytes()).await), // The reader may hang up.
                    None => std::future::pending().await,
                }
            }
        });
        let target = Target { uid: "u".to_owned(), namespace: "kitchen".to_owned(), name: "fork".to_owned(), ip };
        let reading = Pods::new().read(&[target], Clock::start()).await.remove("u").unwrap();
        pod.abort();
        reading
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn page_is_read() {
        assert!(read(0, Some(ok(&page(1.0)))).await.is_ok());
    }

    #[tokio::test]
    async fn redirect_is_not_followed() {
        let elsewhere = "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(read(1, Some(elsewhere.to_owned())).await, Err(ReadError::Status(302))));
    }

    #[tokio::test]
    async fn endless_answer_is_cut() {
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "yolo_workers 1\n".repeat(200_000));
        assert!(matches!(read(2, Some(endless)).await, Err(ReadError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn page_cut_by_a_broken_connection_is_no_page() {
        let cut = ok(&page(1.0));
        assert!(matches!(read(3, Some(cut[..cut.len() / 2].to_owned())).await, Err(ReadError::Unreachable { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_pod_is_given_up() {
        assert!(matches!(read(4, None).await, Err(ReadError::Timeout { .. })));
    }
}
