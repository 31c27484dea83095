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
/// By then all of a wave are queued, and at 640 px none is answered; at 320 px a worker may have begun its second one.
const STAY: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// Shares of inferences that nobody needed.
#[derive(Debug, Clone, Copy, Default)]
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
        for wave in 0..WAVES {
            leave(service.address, &site.pictures, wave).await?;
            at_rest(service.admin).await?;
        }
        let end = at_rest(service.admin).await?;
        let callers = (WAVES * CALLERS) as f64;
        Ok(Waste { repeated: between - start - SAME_PICTURES as f64, left_ratio: (end - between) / callers })
    })
}

/// Images of all batches, once none is in work.
async fn at_rest(admin: SocketAddr) -> anyhow::Result<f64> {
    let asked = Instant::now();
    loop {
        let metrics = page(admin, "/metrics").await?;
        if metrics.sum("yolo_images_in_flight", &[]) < 0.5 && metrics.sum("yolo_queue_depth", &[]) < 0.5 {
            return Ok(metrics.sum("yolo_batched_images_total", &[]));
        }
        ensure!(asked.elapsed() < PATIENCE, "the server does not come to rest");
        tokio::time::sleep(LOOK).await;
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

/// All callers send a new picture each, and leave.
async fn leave(address: SocketAddr, pictures: &Pictures, wave: usize) -> anyhow::Result<()> {
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
    tokio::time::sleep(STAY).await;
    Ok(())
}
