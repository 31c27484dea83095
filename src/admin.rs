//! The operator's own ports: 8080 `/metrics`, 8081 `/livez` and `/readyz`.
//!
//! Neither shows an object's content. Both bind every interface: the kubelet and Prometheus come from outside the pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Connections of one port: a few Prometheus replicas or kubelet probes, and nobody else.
const CONNECTIONS_MAX: usize = 64;
/// Request headers must be whole by then, so that a silent client cannot hold one of the connections.
const HEADER_READ: Duration = Duration::from_secs(5);
/// Request headers; hyper's floor for a read buffer.
const HEADER_BYTES_MAX: usize = 8192;
/// Rest after a failed accept (no file descriptor left), which else would be repeated at once and for ever.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the operator works: told by `run`, asked by the kubelet. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    ready: Arc<AtomicBool>,
}

impl Health {
    /// Ready: the watches have synced, so that a takeover would act on complete knowledge. Not ready at first.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

/// `/metrics`, as OpenMetrics text.
pub fn metrics_router(metrics: Arc<Metrics>) -> Router {
    let text = async |State(metrics): State<Arc<Metrics>>| ([(CONTENT_TYPE, OPEN_METRICS)], metrics.text());
    Router::new().route("/metrics", get(text)).with_state(metrics)
}

/// `/livez`: 200 while the runtime turns. `/readyz`: 200 while [`Health`] says so, else 503.
pub fn health_router(health: Health) -> Router {
    let ready = async |State(health): State<Health>| {
        if health.ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok\n").into_response()
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the watches have not synced yet\n").into_response()
        }
    };
    Router::new().route("/livez", get("ok\n")).route("/readyz", get(ready)).with_state(health)
}

/// Serves `router` until dropped. Own accept loop: `axum::serve` sets no timer, so that a client that sends half a
/// header would keep its connection for ever.
///
/// # Cancellation
/// Dropping the future closes the listener; connections end with the runtime.
pub async fn serve(listener: TcpListener, router: Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Taken before the accept: what is beyond the cap waits in the kernel's queue.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "Cannot accept a connection.");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_READ).max_buf_size(HEADER_BYTES_MAX);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await {
        debug!(%error, "A connection to an admin port ended early.");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(router: Router, request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let serving = tokio::spawn(serve(listener, router));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serving.abort();
        answer
    }

    fn get_request(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn readyz_follows_the_watches_and_livez_does_not() {
        let health = Health::default();
        assert!(ask(health_router(health.clone()), &get_request("/readyz")).await.starts_with("HTTP/1.1 503"));
        assert!(ask(health_router(health.clone()), &get_request("/livez")).await.starts_with("HTTP/1.1 200"));
        health.set_ready(true);
        assert!(ask(health_router(health), &get_request("/readyz")).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn metrics_come_as_openmetrics() {
        let answer = ask(metrics_router(Arc::new(Metrics::new())), &get_request("/metrics")).await;
        assert!(answer.to_lowercase().contains(&format!("content-type: {OPEN_METRICS}").to_lowercase()), "{answer}");
        assert!(answer.trim_end().ends_with("# EOF"));
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_sends_half_a_header_is_let_go() {
        let answer = ask(health_router(Health::default()), "GET /livez HTTP/1.1\r\nHos").await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
}
