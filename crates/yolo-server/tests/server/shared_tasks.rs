//! Tasks in a real Redis: any server takes, shows and runs them; what happens when one dies, or Redis does.

use std::net::SocketAddr;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use yolo_server::{Config, limits};

use crate::errors::fragile_predictor;
use crate::program::{free_address, program};
use crate::redis::{Redis, SCOPE};
use crate::support::{
    self, call, emulated, eventually, metric, png, post, predict, send_to, start, start_gated, value_of,
};
use crate::tasks::{delete, ended, get, padded_png, submit, with_key};

const TAKEN_ON: &str = r#"yolo_tasks_total{state="running"}"#;

fn quick(redis: &Redis) -> Config {
    redis.shared_by(Config { tasks: true, ..emulated(0, 1) })
}

/// An image takes so long that this server does not end a task while a test looks.
fn slow(redis: &Redis, ms: u64) -> Config {
    redis.shared_by(Config { tasks: true, tasks_reclaim_seconds: 1, ..emulated(0, ms) })
}

#[tokio::test]
async fn any_server_takes_and_shows_any_task() {
    let Some(redis) = Redis::start("any_server_takes_and_shows_any_task").await else { return };
    let (one, other) = (start(quick(&redis)).await, start(quick(&redis)).await);
    let mut locations = Vec::new();
    for shade in 0..20 {
        locations.push(submit(&one, &png(8, 8, [shade; 3])).await);
    }
    for (shade, location) in (0..).zip(&locations) {
        let task = ended(&other, location).await;
        assert_eq!(task.body["status"], "succeeded", "{}", task.body);
        let answer = predict(&other, &png(8, 8, [shade; 3])).await;
        assert_eq!(task.body["result"]["detections"], answer.body["detections"]);
    }
    let ended = r#"yolo_tasks_total{state="succeeded"}"#;
    assert!((metric(&one, ended).await + metric(&other, ended).await - 20.0).abs() < 1e-9);
    let first = call(&one, with_key(&png(9, 9, [1; 3]), "k")).await;
    let again = call(&other, with_key(&png(9, 9, [1; 3]), "k")).await;
    assert_eq!((again.status, &again.headers["location"]), (StatusCode::ACCEPTED, &first.headers["location"]));
    let conflict = call(&other, with_key(&png(9, 9, [2; 3]), "k")).await;
    assert_eq!((conflict.status, conflict.code()), (StatusCode::CONFLICT, "idempotency_conflict"));
    assert_eq!(get(&one, "/tasks/0123").await.code(), "not_found");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_withdrawn_or_expired_task_leaves_nothing_behind() {
    let Some(redis) = Redis::start("a_withdrawn_or_expired_task_leaves_nothing_behind").await else { return };
    let (server, gate) = start_gated(Config { tasks_ttl_seconds: 1, ..slow(&redis, 1) }).await;
    let held = gate.hold().await;
    let mut locations = Vec::new();
    for shade in 0..6 {
        locations.push(submit(&server, &png(8, 8, [shade; 3])).await);
    }
    let last = locations.pop().unwrap();
    assert_eq!(delete(&server, &last).await.body["status"], "cancelled");
    drop(held);
    for location in &locations {
        eventually("gone", async || get(&server, location).await.status == StatusCode::GONE).await;
    }
    assert_eq!(get(&server, &last).await.code(), "task_expired");
    let left = ["yolo:{kitchen/fork}:b", "yolo:{kitchen/fork}:q"];
    assert_eq!(redis.other_keys().await, left, "the empty queue and its sum");
    assert!((metric(&server, "yolo_batched_images_total").await - 5.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn results_that_need_more_than_their_room_push_out_the_oldest() {
    let test = "results_that_need_more_than_their_room_push_out_the_oldest";
    let Some(redis) = Redis::start(test).await else { return };
    let server = start(quick(&redis)).await;
    let first = call(&server, with_key(&png(8, 8, [1; 3]), "k")).await.headers["location"].to_str().unwrap().to_owned();
    ended(&server, &first).await;
    let second = submit(&server, &png(8, 8, [2; 3])).await;
    ended(&server, &second).await;
    redis.inflate_first_ended(limits::TASKS_BYTES_MAX).await;
    assert_eq!(get(&server, &first).await.body["status"], "succeeded");
    let third = submit(&server, &png(8, 8, [3; 3])).await;
    eventually("the first one gives way", async || get(&server, &first).await.code() == "task_expired").await;
    assert_eq!(get(&server, &second).await.body["status"], "succeeded");
    assert_eq!(ended(&server, &third).await.body["status"], "succeeded");
    let other = call(&server, with_key(&png(8, 8, [4; 3]), "k")).await;
    assert_eq!(other.status, StatusCode::ACCEPTED, "its key is free again: {}", other.body);
    server.stop().await;
}

#[tokio::test]
async fn a_running_task_is_stopped_by_a_delete_at_any_server() {
    let Some(redis) = Redis::start("a_running_task_is_stopped_by_a_delete_at_any_server").await else { return };
    let (runs, gate) = start_gated(slow(&redis, 1)).await;
    let held = gate.hold().await;
    let tasks = [submit(&runs, &png(8, 8, [1; 3])).await, submit(&runs, &png(8, 8, [2; 3])).await];
    for task in &tasks {
        eventually("it is taken on", async || get(&runs, task).await.body["status"] == "running").await;
    }
    let other = start(quick(&redis)).await;
    for task in &tasks {
        assert_eq!(delete(&other, task).await.body["status"], "cancelled");
        assert_eq!(delete(&other, task).await.body["status"], "cancelled", "again");
    }
    let ended = r#"yolo_tasks_total{state="cancelled"}"#;
    assert!((metric(&other, ended).await - 2.0).abs() < 1e-9, "each once");
    let cancelled = r#"yolo_images_total{outcome="cancelled",source="async"}"#;
    eventually("neither is awaited", async || (metric(&runs, cancelled).await - 2.0).abs() < 1e-9).await;
    drop(held);
    // At most the one in the engine is run to its end; what waits is never run.
    eventually("the other one leaves the queue", async || {
        metric(&runs, r#"yolo_cancelled_total{where="queue"}"#).await >= 1.0
    })
    .await;
    assert!(metric(&runs, "yolo_batched_images_total").await < 1.5);
    runs.stop().await;
    other.stop().await;
}

/// A server in a process of its own, which takes two seconds for an image: it can die.
struct Program {
    child: Child,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Program {
    async fn start(redis: &Redis) -> Self {
        let (api, admin) = (free_address(), free_address());
        let mut command = program("pretended.onnx");
        command.args(["--engine=emulated", "--imgsz=64", "--emulated-alpha-micros=2000000", "--sessions=1"]);
        command.args(["--tasks", "--tasks-reclaim-seconds=3", "--redis-scope", SCOPE]);
        command.args(["--api-address".to_owned(), api.to_string(), "--admin-address".to_owned(), admin.to_string()]);
        command.arg("--redis-url-file").arg(quick(redis).redis_url_file.unwrap());
        let program = Self { child: command.spawn().unwrap(), api, admin };
        let ready = async || support::get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200);
        eventually("ready", ready).await;
        program
    }

    async fn submit(&self, picture: &[u8]) -> String {
        let answer = send_to(self.api, post("/predict/async", picture.to_vec())).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
        answer.headers["location"].to_str().unwrap().to_owned()
    }

    async fn has_taken_on(&self) -> bool {
        let (_, page) = support::get(self.admin, "/metrics").await.unwrap();
        value_of(&page, TAKEN_ON).unwrap() > 0.5
    }

    fn die(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn a_task_over_which_three_servers_died_is_given_up() {
    let Some(redis) = Redis::start("a_task_over_which_three_servers_died_is_given_up").await else { return };
    let mut servers = futures::future::join_all([(); 3].map(|()| Program::start(&redis))).await;
    let location = servers[0].submit(&png(8, 8, [1; 3])).await;
    while !servers.is_empty() {
        let mut takes = None;
        eventually("one takes it on", async || {
            for (index, server) in servers.iter().enumerate() {
                if server.has_taken_on().await {
                    takes = Some(index);
                }
            }
            takes.is_some()
        })
        .await;
        servers.swap_remove(takes.unwrap()).die();
    }
    let heir = start(slow(&redis, 1)).await;
    let ended = ended(&heir, &location).await.body;
    assert_eq!(
        (ended["status"].as_str(), ended["error"]["code"].as_str()),
        (Some("failed"), Some("internal")),
        "{ended}"
    );
    assert!(metric(&heir, "yolo_batched_images_total").await < 0.5, "it may be what kills them");
    heir.stop().await;
}

#[tokio::test]
async fn a_task_that_was_handed_back_in_good_order_is_run_however_often_it_was() {
    let test = "a_task_that_was_handed_back_in_good_order_is_run_however_often_it_was";
    let Some(redis) = Redis::start(test).await else { return };
    // Nobody takes it over before it was looked at.
    let one = || start(Config { tasks_reclaim_seconds: 3, ..slow(&redis, 1_000) });
    let mut servers = futures::future::join_all([(); 4].map(|()| one())).await;
    let location = submit(&servers[0], &png(8, 8, [1; 3])).await;
    let heir = loop {
        let mut takes = None;
        eventually("one takes it on", async || {
            for (index, server) in servers.iter().enumerate() {
                if metric(server, TAKEN_ON).await > 0.5 {
                    takes = Some(index);
                }
            }
            takes.is_some()
        })
        .await;
        let stops = servers.swap_remove(takes.unwrap());
        let Some(other) = servers.first() else {
            let heir = start(slow(&redis, 1)).await;
            stops.stop().await;
            break heir;
        };
        stops.stop().await;
        eventually("it waits again", async || get(other, &location).await.body["status"] == "queued").await;
    };
    let ended = ended(&heir, &location).await.body;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    heir.stop().await;
}

/// A piece of what passes between a client and a Redis.
struct Passing<'a> {
    /// Whether the client says it.
    asked: bool,
    piece: &'a [u8],
    /// Bytes that passed in its connection and direction, it included.
    through_bytes: usize,
}

/// Passes on what clients and a Redis say, but cuts a connection off before a piece that `cuts`. Returns where it listens.
async fn through(redis: &Redis, cuts: impl Fn(&Passing) -> bool + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, redis, cuts) = (listener.local_addr().unwrap().port(), redis.port(), Arc::new(cuts));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (cuts, store) = (Arc::clone(&cuts), TcpStream::connect(("127.0.0.1", redis)).await.unwrap());
            let ((from_client, to_client), (from_store, to_store)) = (client.into_split(), store.into_split());
            tokio::spawn(async move {
                tokio::select! {
                    () = pass(from_client, to_store, |piece, through_bytes| cuts(&Passing { asked: true, piece, through_bytes })) => {}
                    () = pass(from_store, to_client, |piece, through_bytes| cuts(&Passing { asked: false, piece, through_bytes })) => {}
                }
            });
        }
    });
    port
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, cuts: impl Fn(&[u8], usize) -> bool) {
    let (mut through_bytes, mut piece) = (0, vec![0; 16 << 10]);
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        through_bytes += read;
        if cuts(&piece[..read], through_bytes) || to.write_all(&piece[..read]).await.is_err() {
            break;
        }
    }
}

/// Whether one is left, which it takes.
fn take_one(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[tokio::test]
async fn a_task_whose_picture_does_not_come_is_begun_by_nobody() {
    let Some(redis) = Redis::start("a_task_whose_picture_does_not_come_is_begun_by_nobody").await else { return };
    let left = AtomicU32::new(4);
    let port = through(&redis, move |passing| !passing.asked && passing.through_bytes > 128 << 10 && take_one(&left));
    let port = port.await;
    let server = start(redis.shared_through(port, slow(&redis, 1))).await;
    let picture = vec![7; 1 << 20];
    let location = submit(&server, &picture).await;
    let mut task = get(&server, &location).await;
    // While a connection is made anew the store counts as away.
    eventually("it ends", async || {
        task = get(&server, &location).await;
        task.body["status"] == "failed"
    })
    .await;
    assert_eq!(task.body["error"]["code"], predict(&server, &picture).await.code(), "{}", task.body);
    assert!(
        metric(&server, r#"yolo_store_errors_total{operation="task_claim"}"#).await > 3.5,
        "four times it did not come"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_task_is_not_run_before_the_store_knows_that_it_began() {
    let Some(redis) = Redis::start("a_task_is_not_run_before_the_store_knows_that_it_began").await else { return };
    // The first time the script is sent that begins a task.
    let (left, begins) = (AtomicU32::new(1), b"'ended_servers', 1");
    let port = through(&redis, move |passing| {
        passing.asked && passing.piece.windows(begins.len()).any(|text| text == begins) && take_one(&left)
    });
    let (server, gate) = start_gated(redis.shared_through(port.await, slow(&redis, 1))).await;
    let held = gate.hold().await;
    let location = submit(&server, &png(8, 8, [1; 3])).await;
    eventually("it is taken on", async || metric(&server, TAKEN_ON).await > 0.5).await;
    let other = start(quick(&redis)).await;
    assert_eq!(get(&other, &location).await.body["status"], "running");
    assert!(metric(&server, r#"yolo_store_errors_total{operation="task_claim"}"#).await > 0.5, "it was cut off once");
    drop(held);
    assert_eq!(ended(&other, &location).await.body["status"], "succeeded");
    server.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_lost_task_leaves_no_bytes_behind_while_others_wait() {
    let Some(redis) = Redis::start("a_lost_task_leaves_no_bytes_behind_while_others_wait").await else { return };
    let (server, gate) = start_gated(slow(&redis, 1)).await;
    let held = gate.hold().await;
    let pictures = [1, 2, 3, 4].map(|shade| png(8, 8, [shade; 3]));
    let mut tasks = Vec::new();
    for picture in &pictures {
        tasks.push(submit(&server, picture).await);
    }
    let status = async |task: usize| get(&server, &tasks[task]).await.body["status"].clone();
    // One runs, and one waits for the engine.
    eventually("two are taken on", async || status(0).await == "running" && status(1).await == "running").await;
    redis.lose(&tasks[2]).await;
    assert_eq!(get(&server, &tasks[2]).await.code(), "task_expired");
    let all: usize = pictures.iter().map(Vec::len).sum();
    assert_eq!(redis.bytes_unfinished().await, all);
    delete(&server, &tasks[0]).await;
    eventually("the last is taken on", async || status(3).await == "running").await;
    assert_eq!(redis.bytes_unfinished().await, pictures[1].len() + pictures[3].len());
    drop(held);
    for task in [1, 3] {
        assert_eq!(ended(&server, &tasks[task]).await.body["status"], "succeeded");
    }
    assert_eq!(redis.bytes_unfinished().await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_full_store_refuses_with_a_time_to_come_back() {
    let Some(redis) = Redis::start("a_full_store_refuses_with_a_time_to_come_back").await else { return };
    let server = start(slow(&redis, 1_000)).await;
    let succeeded = async || metric(&server, r#"yolo_tasks_total{state="succeeded"}"#).await;
    let submit_until_full = async |picture: &dyn Fn(u16) -> Vec<u8>| {
        let (mut accepted, before) = (Vec::new(), succeeded().await);
        for index in 0.. {
            let answer = call(&server, post("/predict/async", picture(index))).await;
            if answer.status != StatusCode::ACCEPTED {
                assert_eq!((answer.status, answer.code()), (StatusCode::TOO_MANY_REQUESTS, "queue_full"));
                assert!(answer.headers.contains_key("retry-after"));
                break;
            }
            accepted.push(answer.headers["location"].to_str().unwrap().to_owned());
        }
        // Those that ended meanwhile have left their places to others.
        (accepted, succeeded().await - before)
    };
    let fits = |accepted: usize, most: usize, ended: f64| {
        let accepted = f64::from(u32::try_from(accepted).unwrap()) - f64::from(u32::try_from(most).unwrap());
        assert!(accepted >= 0.0 && accepted <= ended, "{accepted} more, {ended} ended");
    };
    let large = |index| padded_png(u8::try_from(index).unwrap(), limits::TASKS_BYTES_MAX / 16);
    let (accepted, ended) = submit_until_full(&large).await;
    fits(accepted.len(), 16, ended);
    for task in &accepted {
        delete(&server, task).await;
    }
    assert_eq!(redis.bytes_unfinished().await, 0);
    let small = |index: u16| [png(8, 8, [1; 3]), index.to_le_bytes().to_vec()].concat();
    let (accepted, ended) = submit_until_full(&small).await;
    fits(accepted.len(), limits::TASKS_MAX, ended);
    delete(&server, accepted.last().unwrap()).await;
    assert_eq!(call(&server, post("/predict/async", png(8, 8, [2; 3]))).await.status, StatusCode::ACCEPTED);
    server.stop().await;
}

#[tokio::test]
async fn a_dead_servers_task_is_taken_over() {
    let Some(redis) = Redis::start("a_dead_servers_task_is_taken_over").await else { return };
    let dying = Program::start(&redis).await;
    let location = dying.submit(&png(8, 8, [1; 3])).await;
    eventually("it runs", async || dying.has_taken_on().await).await;
    dying.die();
    // The dead one's last sign of life is older than the heir, but not so old that the heir takes over before it is asked.
    let heir = start(Config { tasks_reclaim_seconds: 5, ..quick(&redis) }).await;
    let left = get(&heir, &location).await.body;
    assert_eq!(left["status"], "running", "not answered by the one that died: {left}");
    let ended = ended(&heir, &location).await.body;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    eventually("the dead one is forgotten", async || redis.consumers().await == 1).await;
    heir.stop().await;
}

#[tokio::test]
async fn a_task_that_another_server_runs_is_not_counted_as_queued() {
    let Some(redis) = Redis::start("a_task_that_another_server_runs_is_not_counted_as_queued").await else { return };
    // Each takes on as many as its engine runs and has waiting: two.
    let one = || start_gated(Config { tasks_reclaim_seconds: 60, ..slow(&redis, 1) });
    let ((first, gate), (second, other_gate)) = (one().await, one().await);
    let held = (gate.hold().await, other_gate.hold().await);
    let servers = [first, second];
    let mut tasks = Vec::new();
    for shade in 0..4 {
        tasks.push(submit(&servers[0], &png(8, 8, [shade; 3])).await);
    }
    for server in &servers {
        let (queued, running) = (r#"yolo_tasks{state="queued"}"#, r#"yolo_tasks{state="running"}"#);
        eventually("it has its fill, and two run elsewhere", async || {
            metric(server, running).await > 1.5 && metric(server, queued).await < 0.5
        })
        .await;
    }
    for task in &tasks {
        delete(&servers[0], task).await;
    }
    drop(held);
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_server_whose_engine_fails_leaves_tasks_to_the_others() {
    let Some(redis) = Redis::start("a_server_whose_engine_fails_leaves_tasks_to_the_others").await else { return };
    // What it takes before it knows that it fails is soon taken over.
    let (broken, other) = (start(slow(&redis, 1)).await, start(slow(&redis, 1)).await);
    let fails = Arc::new(AtomicBool::new(false));
    broken.app().serve(fragile_predictor(&broken.app(), &fails)).unwrap().batcher().stop();
    fails.store(true, Ordering::SeqCst);
    let mut shade = 0;
    eventually("its engine counts as failed", async || {
        shade += 1;
        predict(&broken, &png(9, 9, [shade; 3])).await.code() == "engine_failed"
    })
    .await;
    // More than both read at once, so that it would get some.
    let mut locations = Vec::new();
    for shade in 0..30 {
        locations.push(submit(&broken, &png(8, 8, [shade; 3])).await);
    }
    for location in &locations {
        let ended = ended(&other, location).await.body;
        assert_eq!(ended["status"], "succeeded", "{ended}");
    }
    broken.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_task_that_takes_longer_than_a_reclaim_is_run_once() {
    let Some(redis) = Redis::start("a_task_that_takes_longer_than_a_reclaim_is_run_once").await else { return };
    // A sign of life comes each second.
    let one = |ms| start(Config { tasks_reclaim_seconds: 4, ..slow(&redis, ms) });
    let (busy, idle) = (one(6_000).await, one(1).await);
    // Whoever takes them: the slow one gets some.
    let mut locations = Vec::new();
    for shade in 0..10 {
        locations.push(submit(&busy, &png(8, 8, [shade; 3])).await);
    }
    for location in &locations {
        assert_eq!(ended(&idle, location).await.body["status"], "succeeded");
    }
    let images = "yolo_batched_images_total";
    let (one, other) = (metric(&busy, images).await, metric(&idle, images).await);
    assert!(one >= 1.0 && (one + other - 10.0).abs() < 1e-9, "{one} + {other}");
    busy.stop().await;
    idle.stop().await;
}

#[tokio::test]
async fn without_redis_tasks_are_unavailable_and_predictions_are_not() {
    let Some(mut redis) = Redis::start("without_redis_tasks_are_unavailable_and_predictions_are_not").await else {
        return;
    };
    let server = start(quick(&redis)).await;
    let kept = submit(&server, &png(8, 8, [1; 3])).await;
    ended(&server, &kept).await;
    redis.kill();
    let started = Instant::now();
    for _ in 0..8 {
        let refused = call(&server, post("/predict/async", png(8, 8, [2; 3]))).await;
        assert_eq!((refused.status, refused.code()), (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"));
        assert!(refused.headers.contains_key("retry-after"));
        assert_eq!(get(&server, &kept).await.code(), "store_unavailable");
        assert_eq!(predict(&server, &png(8, 8, [3; 3])).await.status, StatusCode::OK);
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(metric(&server, r#"yolo_store_errors_total{operation="task_submit"}"#).await >= 1.0);
    redis.restart().await;
    eventually("tasks are taken again", async || {
        call(&server, post("/predict/async", png(8, 8, [4; 3]))).await.status == StatusCode::ACCEPTED
    })
    .await;
    let location = submit(&server, &png(8, 8, [5; 3])).await;
    assert_eq!(ended(&server, &location).await.body["status"], "succeeded");
    assert_eq!(get(&server, &kept).await.code(), "task_expired", "its memory is gone");
    server.stop().await;
}
