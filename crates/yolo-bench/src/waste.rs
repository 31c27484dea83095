//! Inferences that nobody needed: of a picture that is in work already, and for callers who have left.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::scrape::page;

use crate::contender::{Contender, WORKERS};
use crate::load;
use crate::site::Site;
use crate::turn::Service;

/// Each sent by all callers at once.
const SAME_PICTURES: u64 = 20;
const CALLERS: usize = 8;
/// Of [`CALLERS`] each.
const WAVES: usize = 10;
/// Of a wave, once every worker has a picture.
#[expect(clippy::cast_precision_loss, reason = "a handful")]
const QUEUED: f64 = (CALLERS - WORKERS) as f64;
/// Waves with somebody who was answered before all were queued are not counted.
const WAVES_MAX: usize = 5 * WAVES;
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);
/// Without a change for so long no worker runs: several inferences. The server counts an inference at its end, and a
/// caller who has left is no longer in flight.
const REST: Duration = Duration::from_millis(300);

/// Shares of inferences that nobody needed.
#[derive(Debug, Clone, Copy)]
pub struct Waste {
    /// Inferences beyond the first of each picture that all callers sent at once.
    pub repeated: f64,
    /// Inferences for callers who left before their answer, over those callers.
    pub left_ratio: f64,
}

impl Waste {
    /// The least share for callers who leave: what was running cannot be stopped.
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    pub const LEFT_RATIO_MAX: f64 = WORKERS as f64 / CALLERS as f64;
}

/// Counts batched images around both loads.
///
/// # Errors
/// If the server does not serve, or does not come to rest.
#[expect(clippy::cast_precision_loss, reason = "some dozens")]
pub fn measure(site: &Site) -> anyhow::Result<Waste> {
    let service = Service::start(site, Contender::Ours, r#"{"generation":1}"#)?;
    load::runtime()?.block_on(async {
        let start = at_rest(service.admin).await?;
        for number in 0..SAME_PICTURES {
            same_picture(service.address, &site.pictures, number).await?;
        }
        let between = at_rest(service.admin).await?;
        let (mut before, mut counted, mut needless) = (between, 0, 0.0);
        for wave in 0..WAVES_MAX {
            let none_answered = leave(&service, &site.pictures, wave).await?;
            let after = at_rest(service.admin).await?;
            if none_answered {
                counted += 1;
                needless += after - before;
            }
            if counted == WAVES {
                break;
            }
            before = after;
        }
        ensure!(counted == WAVES, "only {counted} waves were queued before their first answer");
        let callers = (WAVES * CALLERS) as f64;
        Ok(Waste { repeated: between - start - SAME_PICTURES as f64, left_ratio: needless / callers })
    })
}

/// Images of all batches, once none is in work.
async fn at_rest(admin: SocketAddr) -> anyhow::Result<f64> {
    let asked = Instant::now();
    let (mut images, mut since) = (0.0, asked);
    loop {
        let metrics = page(admin, "/metrics").await?;
        let now = metrics.sum("yolo_batched_images_total", &[]);
        let busy = metrics.sum("yolo_images_in_flight", &[]) + metrics.sum("yolo_queue_depth", &[]) > 0.5;
        if busy || now > images {
            (images, since) = (now, Instant::now());
        }
        if since.elapsed() >= REST {
            return Ok(images);
        }
        ensure!(asked.elapsed() < PATIENCE, "the server does not come to rest");
        tokio::time::sleep(20 * LOOK).await;
    }
}

/// All callers send one new picture at once.
async fn same_picture(address: SocketAddr, pictures: &Pictures, number: u64) -> anyhow::Result<()> {
    let client = load::client(Contender::Ours, address, CALLERS)?;
    let picture = pictures.body(Mode::Distinct, number);
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, picture) = (client.clone(), picture.clone());
        callers.spawn(async move { client.once(picture).await });
    }
    while let Some(answered) = callers.join_next().await {
        let (status, _) = answered??;
        ensure!(status == 200, "a picture was answered {status}");
    }
    Ok(())
}

/// All callers send a new picture each, and leave once every worker has one and all others are queued. Whether nobody
/// was answered before: whose answer is there leaves nothing behind, and another one's work has begun in good faith.
async fn leave(service: &Service, pictures: &Pictures, wave: usize) -> anyhow::Result<bool> {
    let address = service.address;
    let mut connections = Vec::new();
    for caller in 0..CALLERS {
        let number = u64::try_from(wave * CALLERS + caller)?;
        let body = pictures.body(Mode::Distinct, number);
        let head = format!("POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut connection = TcpStream::connect(address).await.context("failed to connect")?;
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(&body).await?;
        connections.push(connection);
    }
    let asked = Instant::now();
    loop {
        let metrics = page(service.admin, "/metrics").await?;
        // Nothing can be read of a connection without an answer; 0 bytes say that the server has closed it.
        if connections.iter().any(|connection| connection.try_read(&mut [0; 1]).is_ok()) {
            return Ok(false);
        }
        if metrics.sum("yolo_queue_depth", &[]) > QUEUED - 0.5 {
            return Ok(true);
        }
        ensure!(asked.elapsed() < PATIENCE, "the pictures are neither queued nor answered");
        tokio::time::sleep(LOOK).await;
    }
}
