//! What only a real socket shows: recycling, slow and leaving clients, the drain.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yolo_server::{Config, Server};

use crate::support::{
    PATIENCE, admin, emulated, eventually, get, metric, png, start, start_gated, start_patient, value_of,
};

pub fn request(picture: &[u8]) -> Vec<u8> {
    let head = format!("POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", picture.len());
    [head.as_bytes(), picture].concat()
}

/// Reads one response; returns its head, or `None` at the end of the stream.
pub async fn response(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(bytes).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}

pub async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.api_address()).await.unwrap()
}

/// Sends a request each `pace` until an answer announces the connection's end; how many were answered.
async fn answers_until_close(stream: &mut TcpStream, picture: &[u8], pace: Duration) -> u32 {
    let opened = Instant::now();
    for answered in 1.. {
        stream.write_all(&request(picture)).await.unwrap();
        if response(stream).await.unwrap().contains("connection: close") {
            return answered;
        }
        assert!(opened.elapsed() < Duration::from_secs(40), "not recycled after {answered} requests");
        tokio::time::sleep(pace).await;
    }
    unreachable!("the age ends the loop")
}

#[tokio::test]
async fn a_kept_alive_connection_is_told_to_close_within_its_age() {
    let server = start(emulated(0, 1)).await;
    let picture = png(8, 8, [1; 3]);
    let mut stream = connect(&server).await;
    let opened = Instant::now();
    let answered = answers_until_close(&mut stream, &picture, Duration::from_millis(50)).await; // a calm client
    assert!(opened.elapsed() > Duration::from_secs(10) || answered == 1_000, "{:?}, {answered}", opened.elapsed());
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed after that answer");
    server.stop().await;
}

#[tokio::test]
async fn a_busy_connection_is_recycled_after_a_thousand_requests() {
    let server = start(emulated(0, 0)).await;
    let picture = png(8, 8, [1; 3]);
    let mut stream = connect(&server).await;
    let opened = Instant::now();
    let answered = answers_until_close(&mut stream, &picture, Duration::ZERO).await;
    assert!(answered == 1_000 || opened.elapsed() > Duration::from_secs(10), "closed after {answered}");
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off_while_an_idle_connection_is_kept() {
    let server = start(emulated(0, 1)).await;
    let (mut slow, mut idle) = (connect(&server).await, connect(&server).await);
    idle.write_all(&request(&png(8, 8, [2; 3]))).await.unwrap();
    assert!(response(&mut idle).await.unwrap().starts_with("http/1.1 200"));
    slow.write_all(b"POST /predict HTTP/1.1\r\nHost:").await.unwrap();
    let cut = tokio::time::timeout(PATIENCE, slow.read(&mut [0])).await;
    assert_eq!(cut.expect("cut off").unwrap_or(0), 0);
    idle.write_all(&request(&png(8, 8, [1; 3]))).await.unwrap();
    assert!(response(&mut idle).await.unwrap().starts_with("http/1.1 200"));
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_stays_idle_for_too_long_is_closed() {
    let mut config = emulated(0, 1);
    config.connections.keep_alive_idle_seconds = 1;
    let server = start(config).await;
    let (mut stream, asked) = (connect(&server).await, Instant::now());
    stream.write_all(&request(&png(8, 8, [1; 3]))).await.unwrap();
    let head = response(&mut stream).await.unwrap();
    assert!(head.starts_with("http/1.1 200") && !head.contains("connection: close"), "{head}");
    // Without an answer before it: nobody asked for one.
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
    assert_eq!(ended.expect("closed").unwrap(), 0);
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}: not at once", asked.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_costs_no_run() {
    let (server, gate) = start_gated(emulated(0, 1)).await;
    let (held, predictor) = (gate.hold().await, server.app().predictor().unwrap());
    let before = metric(&server, "yolo_batched_images_total").await;
    let mut first = connect(&server).await;
    first.write_all(&request(&png(8, 8, [1; 3]))).await.unwrap();
    gate.begun(1).await;
    let mut second = connect(&server).await;
    second.write_all(&request(&png(8, 8, [2; 3]))).await.unwrap();
    eventually("second waits", async || predictor.batcher().queued() == 1).await;
    drop(second);
    let left = r#"yolo_http_requests_total{endpoint="predict",code="499"}"#;
    eventually("its end is seen", async || value_of(&admin(&server, "/metrics").await.1, left) == Some(1.0)).await;
    drop(held);
    assert!(response(&mut first).await.unwrap().starts_with("http/1.1 200"));
    let cancelled = r#"yolo_cancelled_total{where="queue"}"#;
    eventually("cancelled", async || metric(&server, cancelled).await > 0.5).await;
    assert!((metric(&server, "yolo_batched_images_total").await - before - 1.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn ready_means_warm_and_both_ports_answer_before() {
    // Warm-up runs three batches of one: 6 s.
    let config = emulated(2_000, 0);
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = config;
    (config.admin_address, config.api_address) = (probe, std::net::SocketAddr::from(([127, 0, 0, 2], probe.port())));
    let api = config.api_address;
    let starting = tokio::spawn(start(config));
    eventually("admin port", async || get(probe, "/livez").await.is_ok()).await;
    for (path, status) in [("/livez", 200), ("/startupz", 503), ("/readyz", 503)] {
        assert_eq!(get(probe, path).await.unwrap().0, status, "{path} while starting");
    }
    let mut early = TcpStream::connect(api).await.unwrap();
    early.write_all(&request(&png(8, 8, [1; 3]))).await.unwrap();
    let refused = response(&mut early).await.unwrap();
    assert!(refused.starts_with("http/1.1 503") && refused.contains("retry-after"), "{refused}");
    let server = starting.await.unwrap();
    for path in ["/livez", "/startupz", "/readyz"] {
        assert_eq!(get(probe, path).await.unwrap().0, 200, "{path} when started");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_drain_fails_no_request() {
    let mut config = emulated(100, 0);
    config.drain_propagation_seconds = 6;
    let server = start_patient(config).await;
    let (api, ready) = (server.api_address(), server.admin_address());
    let mut kept = connect(&server).await;
    let drain = tokio::spawn(server.drain());
    eventually("not ready", async || get(ready, "/readyz").await.is_ok_and(|(status, _)| status == 503)).await;
    // Endpoints have not propagated yet: old and new connections are served, and told to go.
    for stream in [&mut kept, &mut TcpStream::connect(api).await.unwrap()] {
        stream.write_all(&request(&png(8, 8, [7; 3]))).await.unwrap();
        let head = response(stream).await.unwrap();
        assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    }
    drain.await.unwrap();
    assert!(TcpStream::connect(api).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn a_running_request_is_finished_after_the_port_is_closed() {
    let (server, gate) = start_gated(emulated(0, 1)).await;
    let (api, held) = (server.api_address(), gate.hold().await);
    let (mut stream, mut idle) = (connect(&server).await, connect(&server).await);
    stream.write_all(&request(&png(8, 8, [1; 3]))).await.unwrap();
    gate.begun(1).await;
    let drain = tokio::spawn(server.drain());
    eventually("closed", async || TcpStream::connect(api).await.is_err()).await;
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "an idle connection is closed");
    drop(held);
    assert!(response(&mut stream).await.unwrap().starts_with("http/1.1 200"));
    drain.await.unwrap();
}

#[tokio::test]
async fn what_outlasts_the_budget_gets_503() {
    let (server, gate) = start_gated(Config { drain_budget_seconds: 1, ..emulated(0, 1) }).await;
    let held = gate.hold().await;
    let mut stream = connect(&server).await;
    stream.write_all(&request(&png(8, 8, [1; 3]))).await.unwrap();
    gate.begun(1).await;
    let drain = tokio::spawn(server.drain());
    let answered = response(&mut stream).await.unwrap();
    drop(held);
    assert!(answered.starts_with("http/1.1 503") && answered.contains("retry-after"), "{answered}");
    drain.await.unwrap();
}

#[tokio::test]
async fn several_servers_live_in_one_process() {
    let (first, second) = tokio::join!(start(emulated(0, 1)), start(emulated(0, 1)));
    let mut stream = connect(&first).await;
    stream.write_all(&request(&png(8, 8, [1; 3]))).await.unwrap();
    assert!(response(&mut stream).await.unwrap().starts_with("http/1.1 200"));
    assert!((metric(&first, "yolo_arrivals_total").await - 1.0).abs() < 1e-9);
    assert!(metric(&second, "yolo_arrivals_total").await.abs() < 1e-9, "each has its own figures");
    first.stop().await;
    assert_eq!(admin(&second, "/readyz").await.0, 200);
    second.stop().await;
}
