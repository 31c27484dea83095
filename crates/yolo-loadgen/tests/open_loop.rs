//! The client against real servers on loopback sockets.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers here are test code too; clippy sees only the test functions as such"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::Instant;
use yolo_loadgen::client::{Client, ClientError, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::record::{Ending, Recording};
use yolo_loadgen::schedule::{self, Phase};

const FAR_AWAY: Duration = Duration::from_hours(1);

fn pictures() -> Pictures {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.jpg"), [0xFF, 0xD8, 0xFF, 0xD9]).unwrap();
    Pictures::read(folder.path(), 1).unwrap()
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn client(address: SocketAddr, limits: Limits) -> Client {
    let target = Target { address, host: "test".to_owned(), path: "/predict".to_owned() };
    Client::new(target, limits, &[], Instant::now()).unwrap()
}

async fn run(client: &Client, rate_per_second: f64, length: Duration) -> Recording {
    let arrivals = schedule::arrivals(&[Phase { rate_per_second, length }], 1);
    client.run(arrivals, (&pictures(), Mode::Distinct), std::future::pending()).await
}

fn count(recording: &Recording, ending: Ending) -> usize {
    recording.outcomes().iter().filter(|o| o.ending == ending).count()
}

/// Answers one request at a time, each after 50 ms: 20 a second at most.
fn slow() -> Router {
    async fn answer(State(turn): State<Arc<Mutex<()>>>) {
        let _turn = turn.lock().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Router::new().route("/predict", post(answer)).with_state(Arc::default())
}

#[tokio::test]
async fn an_overloaded_server_shows_its_queue_in_the_latency_even_through_one_connection() {
    let client = client(serve(slow()).await, Limits { connections: 1, ..Limits::default() });
    // 40/s offered for 1.5 s, 20/s served: the last request waits about 1.5 s, although each answer took 50 ms.
    let recording = run(&client, 40.0, Duration::from_millis(1_500)).await;
    let summary = recording.summary(Duration::ZERO, FAR_AWAY);
    assert!(summary.requests > 40, "{summary:?}");
    assert!((summary.success_ratio - 1.0).abs() < f64::EPSILON, "{summary:?}");
    assert!(summary.latency_ms_max > Some(800.0), "{summary:?}");
    assert_eq!(client.connections_opened(), 1);
}

#[tokio::test]
async fn an_arrival_beyond_the_limit_in_flight_is_recorded_as_not_sent() {
    let limits = Limits { connections: 2, in_flight_max: 2, ..Limits::default() };
    let recording = run(&client(serve(slow()).await, limits), 100.0, Duration::from_secs(4)).await;
    let (sent, not_sent) = (count(&recording, Ending::Status(200)), count(&recording, Ending::NotSent));
    assert!(sent >= 5 && not_sent >= 20, "{sent} sent, {not_sent} not");
    assert_eq!(sent + not_sent, recording.outcomes().len());
}

#[tokio::test]
async fn a_connection_that_the_server_closes_is_opened_anew_and_no_request_is_lost() {
    async fn every_third_closes(State(served): State<Arc<AtomicU64>>) -> Response {
        let header = if served.fetch_add(1, Ordering::Relaxed) % 3 == 2 { "close" } else { "keep-alive" };
        AppendHeaders([("connection", header)]).into_response()
    }
    let router = Router::new().route("/predict", post(every_third_closes)).with_state(Arc::default());
    let client = client(serve(router).await, Limits { connections: 4, ..Limits::default() });
    let recording = run(&client, 200.0, Duration::from_secs(1)).await;
    let all = recording.outcomes().len();
    assert!(all > 150);
    assert_eq!(count(&recording, Ending::Status(200)), all);
    let reopened = usize::try_from(client.connections_opened()).unwrap();
    assert!(reopened >= all / 3 && reopened <= all / 3 + 4, "{reopened} connections for {all} requests");
}

#[tokio::test]
async fn connections_are_used_in_turn() {
    let client = client(serve(slow()).await, Limits { connections: 8, ..Limits::default() });
    // At 5/s one connection would do, yet all eight are opened, so that load spreads as that of many clients does.
    run(&client, 10.0, Duration::from_secs(2)).await;
    assert_eq!(client.connections_opened(), 8);
}

#[tokio::test]
async fn a_server_that_hangs_up_and_one_that_says_nothing_are_told_apart() {
    let hangs_up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let says_nothing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = Limits { request_timeout: Duration::from_millis(200), ..Limits::default() };
    let clients = [&hangs_up, &says_nothing].map(|listener| client(listener.local_addr().unwrap(), limits));
    tokio::spawn(async move { while hangs_up.accept().await.is_ok() {} });
    let [broken, silent] = clients;
    let recording = run(&broken, 50.0, Duration::from_millis(500)).await;
    assert_eq!(count(&recording, Ending::Broken), recording.outcomes().len());
    let recording = run(&silent, 50.0, Duration::from_millis(500)).await;
    assert_eq!(count(&recording, Ending::TimedOut), recording.outcomes().len());
    drop(says_nothing);
}

#[tokio::test]
async fn a_run_ends_when_it_is_told_to() {
    let client = client(serve(slow()).await, Limits::default());
    let arrivals = schedule::arrivals(&[Phase { rate_per_second: 10.0, length: FAR_AWAY }], 1);
    let stop = tokio::time::sleep(Duration::from_secs(5));
    let recording = client.run(arrivals, (&pictures(), Mode::Repeated), stop).await;
    assert!((1..=140).contains(&recording.outcomes().len()), "{}", recording.outcomes().len());
    assert!(recording.outcomes().iter().all(|o| o.scheduled < Duration::from_secs(7)));
}

#[test]
fn load_is_not_sent_to_an_address_that_nobody_allowed() {
    let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
    let target = Target { address, host: "test".to_owned(), path: "/predict".to_owned() };
    let made = |allowed: &[_]| Client::new(target.clone(), Limits::default(), allowed, Instant::now());
    assert!(matches!(made(&[]), Err(ClientError::NotAllowed(_))));
    assert!(made(&[address.ip()]).is_ok());
}

#[tokio::test]
async fn a_closed_loop_has_one_request_a_caller_in_flight() {
    async fn answer(State(inside): State<Arc<[AtomicU64; 2]>>) {
        let [now, most] = &*inside;
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
        now.fetch_sub(1, Ordering::SeqCst);
    }
    let inside = Arc::<[AtomicU64; 2]>::default();
    let address = serve(Router::new().route("/predict", post(answer)).with_state(Arc::clone(&inside))).await;
    let length = Duration::from_secs(1);
    let recording = client(address, Limits::default()).run_closed((3, length), (&pictures(), Mode::Distinct)).await;
    let answered = count(&recording, Ending::Status(200));
    assert_eq!(answered, recording.outcomes().len());
    assert!(answered >= 3, "{answered}");
    assert_eq!(inside[1].load(Ordering::SeqCst), 3, "an open loop would not wait");
}
