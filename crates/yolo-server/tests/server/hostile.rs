//! Clients that attack the protocol: slow, many, torn, ambiguous, leaving. None costs another client its answer.

use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use yolo_server::Server;
use yolo_server::limits::BodyLimits;

use crate::sockets::{connect, request, response};
use crate::support::{
    PATIENCE, admin, call, emulated, eventually, json, metric, multipart, png, post, start, start_gated,
};

/// Everything that comes until the server closes; fails if it does not.
pub async fn until_closed(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset is a close too: the server leaves unread what it does not want.
    let _ = read.expect("the server closes the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn is_healthy(server: &Server) {
    let mut stream = connect(server).await;
    stream.write_all(&request(&png(8, 8, [9; 3]))).await.unwrap();
    assert!(response(&mut stream).await.unwrap().starts_with("http/1.1 200"));
    for gauge in ["yolo_images_in_flight", "yolo_http_requests_in_flight", "yolo_queue_depth"] {
        eventually(gauge, async || metric(server, gauge).await < 0.5).await;
    }
    for code in ["500", "other"] {
        for endpoint in ["predict", "other"] {
            let series = format!(r#"yolo_http_requests_total{{endpoint="{endpoint}",code="{code}"}}"#);
            assert!(metric(server, &series).await < 0.5, "{series}");
        }
    }
}

/// Checks that most answers came within a second; returns the time of the slowest, which may be the machine's fault.
fn prompt(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    let (median, slowest) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(median < Duration::from_secs(1) && slowest < PATIENCE, "{median:?}, {slowest:?}");
    slowest
}

#[tokio::test]
async fn a_body_that_trickles_holds_no_slot_and_is_cut_off() {
    let server = start(emulated(0, 1)).await;
    let mut slow = connect(&server).await;
    slow.write_all(b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = slow.split();
    let trickle = async {
        loop {
            writer.write_all(b"x").await?;
            assert!(metric(&server, "yolo_queue_depth").await < 0.5);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let mut answer = String::new();
    let started = Instant::now();
    tokio::select! {
        ended = trickle => { let _: std::io::Result<()> = ended; }
        read = reader.read_to_string(&mut answer) => { read.unwrap(); }
    }
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    let at_most = Duration::from_secs(BodyLimits::DEFAULT.read_seconds / 2);
    assert!(started.elapsed() < at_most, "its pace was judged, not its length: {:?}", started.elapsed());
    is_healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let mut config = emulated(0, 1);
    config.connections.response_write_seconds = 1;
    (config.connections.requests_max, config.connections.age_seconds) = (u32::MAX, 3_600);
    let server = start(config).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut deaf = socket.connect(server.api_address()).await.unwrap();
    let questions = b"GET /openapi.json HTTP/1.1\r\nHost: t\r\n\r\n".repeat(1_000);
    // The answers, which are large, fill both sockets' buffers; then the server waits for its client, and no longer than it may.
    let refused = tokio::time::timeout(PATIENCE, async { while deaf.write_all(&questions).await.is_ok() {} });
    refused.await.expect("cut off");
    is_healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn of_five_thousand_connections_a_thousand_too_many_are_closed_and_the_probes_still_answer() {
    const ALLOWED: usize = 4_000;
    let mut config = emulated(0, 1);
    (config.connections.connections_max, config.connections.age_seconds) = (ALLOWED, 3_600);
    config.connections.keep_alive_idle_seconds = 3_600;
    let server = start(config).await;
    let picture = request(&png(8, 8, [1; 3]));
    let mut held = Vec::new();
    for _ in 0..ALLOWED {
        let mut stream = connect(&server).await;
        stream.write_all(&picture).await.unwrap();
        assert!(response(&mut stream).await.is_some(), "served, so the server has it");
        held.push(stream);
    }
    let mut probes = Vec::new();
    for number in 0..1_000 {
        assert_eq!(until_closed(&mut connect(&server).await).await, "");
        if number % 10 == 0 {
            let asked = Instant::now();
            assert_eq!(admin(&server, "/livez").await.0, 200);
            probes.push(asked.elapsed());
        }
    }
    let mut other = TcpStream::connect(server.grpc_address()).await.unwrap();
    assert_eq!(until_closed(&mut other).await, "", "they are as many as the process has files for, on either port");
    println!("slowest of 100 probes beside {ALLOWED} connections and a flood of others: {:?}", prompt(probes));
    assert!((metric(&server, r#"yolo_rejected_total{reason="connections"}"#).await - 1_001.0).abs() < 1e-9);
    drop(held);
    eventually("a place is free again", async || {
        let mut stream = connect(&server).await;
        stream.write_all(&request(&png(8, 8, [1; 3]))).await.is_ok() && response(&mut stream).await.is_some()
    })
    .await;
    server.stop().await;
}

/// Heads and bodies on which two parsers could disagree; each is followed by another request. `#` is a picture, `%` its
/// length, `$` the same in hexadecimal, `@` the picture in chunks: with it, only its framing is wrong with a request.
const AMBIGUOUS: [(&str, &str); 19] = [
    ("length, then chunks", "Content-Length: %\r\nTransfer-Encoding: chunked\r\n\r\n@"),
    ("chunks, then length", "Transfer-Encoding: chunked\r\nContent-Length: %\r\n\r\n@"),
    ("two lengths", "Content-Length: %\r\nContent-Length: 0\r\n\r\n#"),
    ("a list of lengths", "Content-Length: %, %\r\n\r\n#"),
    ("a signed length", "Content-Length: +%\r\n\r\n#"),
    ("a negative length", "Content-Length: -%\r\n\r\n#"),
    ("chunks not last", "Transfer-Encoding: chunked, identity\r\n\r\n@"),
    ("an unknown coding", "Transfer-Encoding: xchunked\r\n\r\n@"),
    ("a space before the colon", "Transfer-Encoding : chunked\r\n\r\n@"),
    ("a folded header", "X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n@"),
    ("a signed chunk size", "Transfer-Encoding: chunked\r\n\r\n+$\r\n#\r\n0\r\n\r\n"),
    ("a prefixed chunk size", "Transfer-Encoding: chunked\r\n\r\n0x$\r\n#\r\n0\r\n\r\n"),
    ("a chunk size that ends with a bare line feed", "Transfer-Encoding: chunked\r\n\r\n$\n#\r\n0\r\n\r\n"),
    ("a chunk that ends with a bare line feed", "Transfer-Encoding: chunked\r\n\r\n$\r\n#\n0\r\n\r\n"),
    ("a trailer that ends with a bare line feed", "Transfer-Encoding: chunked\r\n\r\n$\r\n#\r\n0\r\nX-A: b\n\r\n"),
    ("chunks that end with a bare line feed", "Transfer-Encoding: chunked\r\n\r\n$\r\n#\r\n0\r\n\n"),
    ("a header that ends with a bare line feed", "X-A: b\nContent-Length: %\r\n\r\n#"),
    ("a head that ends with a bare line feed", "Content-Length: %\r\n\n#"),
    ("a zero byte in a header", "X-A: \0\r\nContent-Length: %\r\n\r\n#"),
];

/// The request that such a text stands for.
fn with_picture(text: &str, picture: &[u8]) -> Vec<u8> {
    let hexadecimal = format!("{:x}", picture.len());
    let chunks = [hexadecimal.as_bytes(), b"\r\n", picture, b"\r\n0\r\n\r\n"].concat();
    let part = |byte: u8| match byte {
        b'#' => picture.to_vec(),
        b'%' => picture.len().to_string().into_bytes(),
        b'$' => hexadecimal.clone().into_bytes(),
        b'@' => chunks.clone(),
        other => vec![other],
    };
    text.bytes().flat_map(part).collect()
}

/// What the server answers to a request and to the one after it, until it closes.
async fn answers_to(server: &Server, request: &[u8]) -> String {
    let mut stream = connect(server).await;
    // In one piece: after the first request the server may have closed.
    let next = b"GET /version HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    stream.write_all(&[request, next].concat()).await.unwrap();
    until_closed(&mut stream).await
}

#[tokio::test]
async fn an_ambiguous_request_gets_one_answer_and_ends_its_connection() {
    let server = start(emulated(0, 1)).await;
    let picture = png(8, 8, [1; 3]);
    let posted = |rest: &str| with_picture(&format!("POST /predict HTTP/1.1\r\nHost: t\r\n{rest}"), &picture);
    for framing in [
        "Content-Length: %\r\n\r\n#",
        "Content-Length: %\r\nContent-Length: %\r\n\r\n#",
        "Transfer-Encoding: chunked\r\n\r\n@",
        "Transfer-Encoding: chunked\r\n\r\n0$;a=b\r\n#\r\n0\r\nX-A: b\r\n\r\n",
    ] {
        let answers = answers_to(&server, &posted(framing)).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{framing} is not ambiguous: {answers}");
    }
    let mut attacks: Vec<_> = AMBIGUOUS.into_iter().map(|(name, rest)| (name, posted(rest))).collect();
    let whole = |text: &str| with_picture(text, &picture);
    attacks.push(("chunks in HTTP/1.0", whole("POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n@")));
    attacks.push(("bare line feeds only", whole("POST /predict HTTP/1.1\nHost: t\nContent-Length: %\n\n#")));
    attacks.push(("no HTTP at all", b"\x16\x03\x01\x02\0\r\n\r\n".to_vec()));
    for (name, attack) in attacks {
        let answers = answers_to(&server, &attack).await;
        assert!(answers.starts_with("HTTP/1.1 400"), "{name}: {answers}");
        assert!(answers.matches("HTTP/1.1 ").count() == 1 && !answers.contains("yolo-server"), "{name}: {answers}");
    }
    let answers = answers_to(&server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(answers.is_empty() || answers.starts_with("HTTP/1.1 4") && !answers.contains("yolo-server"), "{answers}");
    is_healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let server = start(emulated(5, 0)).await;
    let mut stream = connect(&server).await;
    let picture = png(8, 8, [1; 3]);
    let named = |id: u8| {
        let head = format!(
            "POST /predict HTTP/1.1\r\nHost: t\r\nX-Request-Id: {id}\r\nContent-Length: {}\r\n\r\n",
            picture.len()
        );
        [head.as_bytes(), &picture].concat()
    };
    stream.write_all(&(0..20).flat_map(named).collect::<Vec<_>>()).await.unwrap();
    for id in 0..20 {
        let head = response(&mut stream).await.unwrap();
        assert!(head.starts_with("http/1.1 200") && head.contains(&format!("x-request-id: {id}\r\n")), "{head}");
    }
    server.stop().await;
}

#[tokio::test]
async fn oversized_heads_are_refused_and_hostile_ones_make_no_label() {
    let server = start(emulated(0, 1)).await;
    is_healthy(&server).await;
    // Without those that timing at idle adds meanwhile.
    let told = |page: &str| page.lines().filter(|line| !line.contains("yolo_batch_curve_seconds")).count();
    let series = async || told(&admin(&server, "/metrics").await.1);
    let before = series().await;
    let long = "x".repeat(20 << 10);
    let many = "X-A: b\r\n".repeat(200);
    for (name, head, statuses) in [
        ("a giant path", format!("GET /{long} HTTP/1.1\r\n\r\n"), "431 414"),
        ("a giant header", format!("GET / HTTP/1.1\r\nX-A: {long}\r\n\r\n"), "431"),
        ("many headers", format!("GET / HTTP/1.1\r\n{many}\r\n"), "431"),
        ("a zero byte", "GET /%00 HTTP/1.1\r\n\r\n".to_owned(), "404"),
        ("a way out", "GET /../../etc/passwd HTTP/1.1\r\n\r\n".to_owned(), "404"),
        ("a forged label", "GET /\"}%0Ayolo_ready%200 HTTP/1.1\r\n\r\n".to_owned(), "404 400"),
        ("a forged log line", "GET / HTTP/1.1\r\nX-Request-Id: a%0A{\"level\":\"ERROR\"}\r\n\r\n".to_owned(), "404"),
        ("an odd method", "BREW /predict HTTP/1.1\r\n\r\n".to_owned(), "405"),
    ] {
        let mut stream = connect(&server).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = response(&mut stream).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap();
        assert!(statuses.contains(status), "{name}: {answer}");
    }
    assert_eq!(series().await, before, "no series more");
    server.stop().await;
}

#[tokio::test]
async fn a_client_may_leave_at_any_moment() {
    let (server, gate) = start_gated(emulated(100, 0)).await;
    let whole = request(&png(8, 8, [1; 3]));
    let running = async || metric(&server, "yolo_images_in_flight").await > 0.5;
    for end in [0, 10, whole.len() - 5, whole.len()] {
        for _ in 0..5 {
            let mut stream = connect(&server).await;
            stream.write_all(&whole[..end]).await.unwrap();
            drop(stream); // at the end: queued or running by now, or not even read
        }
    }
    for _ in 0..3 {
        let mut stream = connect(&server).await;
        let held = gate.hold().await;
        stream.write_all(&whole).await.unwrap();
        eventually("runs", running).await;
        drop((stream, held));
    }
    let mut deaf = connect(&server).await;
    deaf.write_all(&whole).await.unwrap();
    eventually("answered", async || {
        let answered = r#"yolo_http_requests_total{endpoint="predict",code="200"}"#;
        metric(&server, answered).await > 0.5
    })
    .await;
    drop(deaf); // with its answer unread
    is_healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn an_address_in_a_request_is_never_connected_to() {
    let server = start(emulated(0, 1)).await;
    let bait = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/picture.png", bait.local_addr().unwrap());
    let named = |name: &str| json("/predict", &serde_json::json!({name: address}));
    let input = serde_json::json!({"name": "image", "shape": [1], "datatype": "BYTES", "data": [address]});
    let refused = [
        named("image"),
        named("image_url"),
        named("url"),
        multipart("/predict", &[("file", address.as_bytes())]),
        multipart("/predict", &[("image_url", address.as_bytes())]),
        multipart("/predict/batch", &[("files", address.as_bytes())]),
        post("/predict", address.clone()),
        post("/predict/async", address.clone()),
        post(&format!("/predict?image_url={address}"), ""),
        json("/v2/models/pretended/infer", &serde_json::json!({"inputs": [input]})),
    ];
    for request in refused {
        let what = request.uri().to_string();
        let answer = call(&server, request).await;
        let code = answer.body["results"][0]["error"]["code"].as_str();
        assert!(answer.status.is_client_error() || code == Some("unsupported_image"), "{what}: {}", answer.body);
    }
    let mut called_back = post("/predict", png(8, 8, [1; 3]));
    for header in ["referer", "origin", "x-forwarded-for", "forwarded", "callback-url", "traceparent"] {
        called_back.headers_mut().insert(header, address.parse().unwrap());
    }
    assert_eq!(call(&server, called_back).await.status, 200);
    is_healthy(&server).await;
    assert!(bait.accept().now_or_never().is_none(), "it was connected to");
    server.stop().await;
}
